"""Data for a dry run without data: a few moving shapes, listed as often as the run takes them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from hiera_video.config.detection import AvaConfig
from hiera_video.detection import moving_shapes
from hiera_video.detection.files import (
    BoxTable,
    LabelMap,
    read_annotated_boxes,
    write_annotated_boxes,
    write_label_map,
)

_VIDEOS = 4
"""Videos that are really made."""


def make_stand_in(folder: Path, *, key_frames: int, classes: int, side: int) -> AvaConfig:
    """Write data with at least so many key frames and classes into `folder`; return the settings
    that read it.

    side: of the pictures, pixels.
    """
    settings = moving_shapes.ShapeSettings(num_train=_VIDEOS, num_val=1, size=side + side % 2)
    moving_shapes.make_shapes(folder, settings, workers=1)
    annotations = folder / "annotations"
    own = read_annotated_boxes(annotations / "train.csv")
    copies = -(-key_frames // (_VIDEOS * len(moving_shapes.SECONDS)))
    for copy in range(1, copies):
        for name in own.videos:
            os.link(folder / f"videos/{name}.mp4", folder / f"videos/{name}_{copy}.mp4")
    write_annotated_boxes(annotations / "train.csv", _repeated(own, copies))
    known = moving_shapes.LABEL_MAP
    more = range(max(known.ids) + 1, classes + 1)
    labels = LabelMap((*known.ids, *more), (*known.names, *(f"action {n}" for n in more)))
    write_label_map(annotations / "stand_in.pbtxt", labels)
    return dataclasses.replace(moving_shapes.SETTINGS, label_map_file="stand_in.pbtxt")


def _repeated(table: BoxTable, times: int) -> BoxTable:
    """The rows again and again, each time of other videos."""
    count = len(table.videos)
    names = [*table.videos]
    names += [f"{name}_{copy}" for copy in range(1, times) for name in table.videos]
    offsets = np.repeat(np.arange(times, dtype=np.int32) * count, len(table.video))
    return dataclasses.replace(
        table,
        videos=tuple(names),
        video=np.tile(table.video, times) + offsets,
        second=np.tile(table.second, times),
        corners=np.tile(table.corners, (times, 1)),
        action=np.tile(table.action, times),
        person=None if table.person is None else np.tile(table.person, times),
        lines=np.tile(table.lines, times),
    )
