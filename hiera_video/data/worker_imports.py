"""Imports what the loader's workers need; the fork server runs it once for all of them."""

from hiera_video.video.worker_imports import import_each

import_each(
    "hiera_video.data.datasets",
    "hiera_video.data.transforms.rand_augment",
    "torchcodec.decoders",
)
