"""The key frames of an AVA data set and their boxes: files on disk -> one `KeyFrameList`.

    train = read_key_frames("data/ava", cfg.ava, "train")
    train.notes                      # which layout was read, and what was left out
    boxes = train.boxes(7)           # ClipBoxes of the 8th key frame, in its whole picture

Two layouts (`layouts.py`): SlowFast's, with a folder of pictures for each video and lists of them,
and the same without either, with the video files.

What becomes of what the files say:

* a line that is none, a box outside of the picture, an action that does not exist, an annotated
  second outside of AVA.SECONDS: refused, with file and line;
* a box without width or height, an action that does not count (not in the list of actions), a
  detector's box outside of AVA.SECONDS, training videos that are missing: left out; `notes` count
  and name them;
* a box without an action, or with none that counts, stays: nothing that counts is seen in it;
* lines of the same box are one box with several actions, whichever of the files they are in.

Key frames to train on are the annotated ones, and those of TRAIN_PREDICT_BOX_LISTS. In validation
and test the boxes of a person detector are scored, or the annotated ones where there are none, and
`truth` is what they are measured by. Validation takes every fourth second, as SlowFast does.
Missing videos stay in these lists: their key frames fail when they are read, and are counted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from hiera_video.config.detection import AvaConfig
from hiera_video.data.boxes import ClipBoxes
from hiera_video.data.manifests.manifest import Manifest, PathTable
from hiera_video.detection.box_checks import BoxFile, Checks, Rows, checked
from hiera_video.detection.files import (
    BoxTable,
    LabelMap,
    read_annotated_boxes,
    read_excluded,
    read_label_map,
    read_scored_boxes,
)
from hiera_video.detection.layouts import Layout, find_layout
from hiera_video.detection.movie_frames import FRAMES_PER_SECOND, NumberedNames
from hiera_video.errors import DataError, first_few

NAME = "ava"

_EVERY = 4
"""Validation takes the seconds that this divides."""

_NO_BOXES = BoxTable(
    videos=(),
    video=np.zeros(0, np.int32),
    second=np.zeros(0, np.int32),
    corners=np.zeros((0, 4)),
    action=np.zeros(0, np.int32),
    score=None,
    person=np.zeros(0, np.int32),
    lines=np.zeros(0, np.int32),
)


@dataclass(frozen=True, kw_only=True)
class KeyFrameList(Manifest):
    """K key frames with B boxes: a `Manifest` whose videos are the key frames, in the order of
    video and second. The labels of a key frame are the classes that are seen in any of its boxes.

    The place of a box among all B is its row. See also `Manifest`.
    """

    videos: tuple[str, ...]
    """Names of the movies."""
    video: NDArray[np.int32]
    """[K]: index into `videos`."""
    seconds: NDArray[np.int32]
    """[K]"""
    centres: NDArray[np.int32]
    """[K]: the picture of the key frame, counted at 30 a second from where the movie begins."""
    box_ends: NDArray[np.int64]
    """[K]: where the boxes of each key frame end."""
    corners: NDArray[np.float64]
    """[B, 4], as the files have them."""
    box_labels: NDArray[np.uint8]
    """[B, C]: 1 for the classes seen in a box; [B, 0] for boxes of a detector."""
    pictures: tuple[NumberedNames | None, ...]
    """The names of each movie's pictures; None of a video file."""
    label_map: LabelMap
    truth: BoxTable = _NO_BOXES
    """What the scores are measured by (validation and test)."""
    excluded: frozenset[tuple[str, int]] = frozenset()
    """(video, second) that are not measured; none of them is a key frame here."""
    unit: ClassVar[str] = "key frames"

    @property
    def num_boxes(self) -> int:
        return len(self.corners)

    def second(self, index: int) -> int:
        return int(self.seconds[index])

    def video_name(self, index: int) -> str:
        return self.videos[self.video[index]]

    def picture_names(self, index: int) -> NumberedNames | None:
        """The names of the pictures of a key frame's movie; None of a video file."""
        return self.pictures[self.video[index]]

    def rows(self, index: int) -> range:
        """The rows of a key frame's boxes."""
        index = range(len(self))[index]
        start = int(self.box_ends[index - 1]) if index else 0
        return range(start, int(self.box_ends[index]))

    def boxes(self, index: int) -> ClipBoxes:
        """The boxes of a key frame in its whole picture."""
        rows = self.rows(index)
        some = slice(rows.start, rows.stop)
        return ClipBoxes(
            torch.from_numpy(self.corners[some].astype(np.float32)),
            torch.from_numpy(self.box_labels[some].astype(np.float32)),
            torch.arange(rows.start, rows.stop),
        )

    def scored_boxes(self, rows: NDArray[np.int64]) -> BoxTable:
        """Where the boxes at `rows` are, without action or score: what detections begin with."""
        frames = np.searchsorted(self.box_ends, rows, side="right")
        return BoxTable(
            videos=self.videos,
            video=self.video[frames],
            second=self.seconds[frames],
            corners=self.corners[rows],
            action=np.zeros(len(rows), np.int32),
            score=None,
            person=None,
            lines=np.zeros(len(rows), np.int32),
        )

    def select(self, kept: np.ndarray) -> KeyFrameList:
        """The same list with the key frames where `kept`, bool [K], is true; rows count anew."""
        counts = np.diff(self.box_ends, prepend=0)
        boxes = np.repeat(kept, counts)
        frames = super().select(kept)
        assert isinstance(frames, KeyFrameList)
        return replace(
            frames,
            video=self.video[kept],
            seconds=self.seconds[kept],
            centres=self.centres[kept],
            box_ends=np.cumsum(counts[kept], dtype=np.int64),
            corners=self.corners[boxes],
            box_labels=self.box_labels[boxes],
        )


# ---- reading ------------------------------------------------------------------------------------


def read_key_frames(folder: str | os.PathLike[str], ava: AvaConfig, split: str) -> KeyFrameList:
    """Read the key frames of a split, "train", "val" or "test"; see the top of this file.

    Raises DataError for files that are missing or wrong, and where nothing is left.
    """
    root = Path(folder).expanduser()
    labels = read_label_map(_file(root, ava, ava.label_map_file, "AVA.LABEL_MAP_FILE"))
    checks = Checks(labels, ava.seconds)
    layout = find_layout(root, ava, training=split == "train")
    truth, annotated = _NO_BOXES, True
    excluded: set[tuple[str, int]] = set()
    notes: list[str] = []
    if split == "train":
        rows = _boxes_to_learn(root, ava, checks)
    else:
        truth, excluded = _measured_by(root, ava, checks, every_second=split == "test")
        rows, annotated, note = _boxes_to_score(root, ava, checks, truth)
        notes.append(note)
        if split == "val" and not ava.full_test_on_val:
            rows = rows.where(rows.second % _EVERY == 0)
            notes.append(
                "validation takes every fourth second, the test all (AVA.FULL_TEST_ON_VAL)"
            )
        unmeasured = rows.at(excluded)
        if unmeasured.any():
            notes.append(f"boxes at seconds of {ava.exclusion_file}, left out: {unmeasured.sum()}")
        rows = rows.where(~unmeasured)
    found = _grouped(rows, labels, layout, ava, with_labels=annotated)
    found, missing = _without_missing(found, layout, leave_out=split == "train")
    found = replace(
        found,
        notes=(layout.note, *notes, *checks.notes, *missing),
        truth=truth,
        excluded=frozenset(excluded),
    )
    if not len(found):
        raise DataError(f"{root}: no key frames for {split}; {'; '.join(found.notes)}")
    return found


def _file(root: Path, ava: AvaConfig, name: str, key: str) -> str:
    """The path of one of the annotation files; DataError where it is not there."""
    path = os.path.join(root, ava.annotation_dir, name)
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file; {key} names it")
    return path


def _boxes_to_learn(root: Path, ava: AvaConfig, checks: Checks) -> Rows:
    """The boxes of training: annotated ones, and those of a detector that are sure enough."""
    keys = ("AVA.TRAIN_GT_BOX_LISTS", "AVA.TRAIN_PREDICT_BOX_LISTS")
    paths = [_file(root, ava, name, keys[0]) for name in ava.train_gt_box_lists]
    found = [checked(BoxFile(path, read_annotated_boxes(path)), checks) for path in paths]
    for name in ava.train_predict_box_lists:
        path = _file(root, ava, name, keys[1])
        found.append(_sure_enough(path, ava, checks))
    if not found:
        raise DataError(f"{keys[0]} and {keys[1]} are both empty: name a list of boxes")
    return Rows.joined(found)


def _sure_enough(path: str, ava: AvaConfig, checks: Checks) -> Rows:
    """The boxes of a detector with a score of at least the threshold."""
    file = BoxFile(path, read_scored_boxes(path))
    return checked(file, checks, least_score=ava.detection_score_thresh)


def _measured_by(
    root: Path, ava: AvaConfig, checks: Checks, *, every_second: bool
) -> tuple[BoxTable, set[tuple[str, int]]]:
    """The annotated boxes that scores are measured by, and the seconds that are not measured."""
    path = _file(root, ava, ava.groundtruth_file, "AVA.GROUNDTRUTH_FILE")
    truth = read_annotated_boxes(path)
    checks.require_known(BoxFile(path, truth))
    if not every_second and not ava.full_test_on_val:
        truth = _part_of(truth, truth.second % _EVERY == 0)
    excluded = set()
    if ava.exclusion_file:
        excluded = read_excluded(_file(root, ava, ava.exclusion_file, "AVA.EXCLUSION_FILE"))
    return truth, excluded


def _part_of(table: BoxTable, kept: NDArray[np.bool_]) -> BoxTable:
    return replace(
        table,
        video=table.video[kept],
        second=table.second[kept],
        corners=table.corners[kept],
        action=table.action[kept],
        score=None if table.score is None else table.score[kept],
        person=None if table.person is None else table.person[kept],
        lines=table.lines[kept],
    )


def _boxes_to_score(
    root: Path, ava: AvaConfig, checks: Checks, truth: BoxTable
) -> tuple[Rows, bool, str]:
    """The boxes of validation and test, whether they are the annotated ones, and a note."""
    key = "AVA.TEST_PREDICT_BOX_LISTS"
    if ava.test_predict_box_lists:
        paths = [_file(root, ava, name, key) for name in ava.test_predict_box_lists]
        rows = Rows.joined([_sure_enough(path, ava, checks) for path in paths])
        names = ", ".join(ava.test_predict_box_lists)
        return rows, False, _reach(rows, truth, names, ava.detection_score_thresh)
    path = os.path.join(root, ava.annotation_dir, ava.groundtruth_file)
    note = (
        f"the annotated boxes of {ava.groundtruth_file} are scored, which makes the result look "
        f"better than it is; {key} names those of a person detector"
    )
    return checked(BoxFile(path, truth), checks), True, note


def _reach(rows: Rows, truth: BoxTable, names: str, least: float) -> str:
    """In how many of the annotated seconds there is a box to score."""
    annotated = set(zip(truth.video.tolist(), truth.second.tolist(), strict=True))
    boxed = set(zip(rows.video.tolist(), rows.second.tolist(), strict=True))
    places = {name: place for place, name in enumerate(rows.videos)}
    found = sum((places.get(truth.videos[v], -1), s) in boxed for v, s in annotated)
    text = f"boxes of {names} with a score of {least:g} or more are scored"
    if found < len(annotated):
        text += f"; {len(annotated) - found} of {len(annotated)} annotated seconds have none"
    return text


# ---- from rows to key frames --------------------------------------------------------------------


def _grouped(
    rows: Rows, labels: LabelMap, layout: Layout, ava: AvaConfig, *, with_labels: bool
) -> KeyFrameList:
    """One box of the rows that have the same corners, one key frame of its boxes."""
    frame = rows.video.astype(np.int64) << 32 | rows.second
    order = np.lexsort((*rows.corners.T, frame))
    starts_box = np.ones(len(order), bool)
    for column in (frame, *rows.corners.T):
        ordered = column[order]
        starts_box[1:] &= ordered[1:] == ordered[:-1]
    starts_box[1:] = ~starts_box[1:]
    # lexsort is stable: of the rows of a box, the first comes first. Boxes keep that order.
    firsts = order[starts_box]
    by_place = np.lexsort((firsts, frame[firsts]))
    box_of = np.empty(len(order), np.int64)
    box_of[order] = np.argsort(by_place)[np.cumsum(starts_box) - 1]
    firsts = firsts[by_place]

    starts = np.flatnonzero(np.diff(frame[firsts], prepend=-1))
    frames, counts = frame[firsts[starts]], np.diff(starts, append=len(firsts))
    video, seconds = (frames >> 32).astype(np.int32), (frames & 0xFFFFFFFF).astype(np.int32)
    seen = rows.label >= 0
    box_labels = np.zeros((len(firsts), len(labels) if with_labels else 0), np.uint8)
    if with_labels:
        box_labels[box_of[seen], rows.label[seen]] = 1
    frame_of = np.repeat(np.arange(len(frames)), counts)
    pairs = np.unique(frame_of[box_of[seen]] * len(labels) + rows.label[seen])
    num_labels = np.bincount(pairs // len(labels), minlength=len(frames))
    places = [os.fsencode(layout.path(name)) for name in rows.videos]
    return KeyFrameList(
        paths=PathTable.of(layout.root, [places[v] for v in video.tolist()]),
        labels=pairs % len(labels),
        label_ends=np.cumsum(num_labels, dtype=np.int64),
        classes=labels.names,
        num_classes=len(labels),
        name=NAME,
        classes_from=f"the actions of {ava.label_map_file}",
        videos=rows.videos,
        video=video,
        seconds=seconds,
        centres=np.round((seconds - ava.video_start) * FRAMES_PER_SECOND).astype(np.int32),
        box_ends=np.cumsum(counts, dtype=np.int64),
        corners=rows.corners[firsts],
        box_labels=box_labels,
        pictures=tuple(layout.pictures(name) for name in rows.videos),
        label_map=labels,
    )


def _without_missing(
    frames: KeyFrameList, layout: Layout, *, leave_out: bool
) -> tuple[KeyFrameList, list[str]]:
    """The key frames whose pictures should be there, or all of them; and what is missing."""
    gone = np.array([not layout.exists(name) for name in frames.videos], bool)
    counts = np.array([_count(names) for names in frames.pictures], np.int64)
    missing = gone[frames.video] if len(gone) else np.zeros(0, bool)
    late = ~missing & (frames.centres >= counts[frames.video]) if len(gone) else missing
    then = "left out" if leave_out else "they will count as unreadable"
    notes = []
    if missing.any():
        names = [frames.videos[i] for i in np.unique(frames.video[missing]).tolist()]
        notes.append(
            f"videos missing in {layout.root}: {len(names)} of {len(frames.videos)} "
            f"({_quoted(names)}); key frames of them: {missing.sum()}, {then}"
        )
    if late.any():
        first = [
            f"{frames.video_name(i)} {frames.second(i)}" for i in np.flatnonzero(late)[:3].tolist()
        ]
        notes.append(
            f"key frames after the last picture of their video: {late.sum()} "
            f"({_quoted(first)}), {then}"
        )
    if leave_out and notes:
        frames = frames.select(~(missing | late))
    return frames, notes


def _count(names: NumberedNames | None) -> int:
    """Pictures of a movie; of a video file this is not known before it is opened."""
    return np.iinfo(np.int64).max if names is None else len(names)


def _quoted(names: Sequence[str]) -> str:
    return first_few([repr(name) for name in names], 3)
