"""The streams of generated clips by name, for TRAIN.DATASET: clips with their truth, and no files.

dataset = VideoDataset(stream_list("camera_flow", 400), STREAMS["camera_flow"].reader(spec, seed=1))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hiera_video.data.datasets import ClipReader
from hiera_video.data.manifests.manifest import UNLABELLED, Manifest, PathTable
from hiera_video.data.synthetic import camera_flow
from hiera_video.data.synthetic.body_motion import reader as body_motion


class GeneratedStream(NamedTuple):
    """One kind of generated clips."""

    reader: Callable[..., ClipReader]
    """Called with (spec, seed=, clips_per_video=); raises UserError for clips it cannot draw."""
    shows: str


STREAMS = {
    body_motion.NAME: GeneratedStream(body_motion.GeneratedReader, "bodies and things that move"),
    camera_flow.NAME: GeneratedStream(camera_flow.CameraFlowReader, "scenes and a moving camera"),
}
"""TRAIN.DATASET -> stream."""


def stream_list(name: str, count: int) -> Manifest:
    """List `count` clips of a stream, without labels."""
    return Manifest(
        paths=PathTable.of("generated", [b"clip %d" % number for number in range(count)]),
        labels=np.full(count, UNLABELLED, np.int64),
        label_ends=None,
        classes=None,
        num_classes=0,
        name=name,
        classes_from=f"{STREAMS[name].shows}, drawn as they are needed, new in every epoch",
    )
