"""What workers need, imported once by the fork server, which they then inherit for nothing.

torchcodec alone costs three seconds of processor time to import. Parts that are absent or broken
here are left out: the worker that uses them will say so.
"""

import contextlib
import importlib

for name in (
    "hiera_video.data.loader",
    "hiera_video.data.transforms.rand_augment",
    "torchcodec.decoders",
    "av",
):
    with contextlib.suppress(Exception):
        importlib.import_module(name)
