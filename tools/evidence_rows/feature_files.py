"""Features of videos, computed once per video and kept on disk.

A *describer* turns a video into a few blocks of numbers (the stages of an encoder, one kind of
hand-made feature), for the clip as it is and for each control. Files are named by a hash of all
that the numbers depend on, and hold a few videos each: an interrupted call loses seconds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evidence_rows.action_sets import Video
from evidence_rows.claims import claimed, each_settled
from evidence_rows.controls import PLAIN
from evidence_rows.progress import Progress
from hiera_video import files

Array = np.ndarray[Any, Any]
Videos = Sequence[Video]
Blocks = dict[str, Array]
"""Name of a block -> float32 [N, S, D]: N videos, S samples of each (its windows), D numbers."""

_VIDEOS_A_FILE = 20


class Describer(Protocol):
    """Turns a video into numbers."""

    @property
    def name(self) -> str:
        """For people, and in names of files."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on, besides the video."""

    @property
    def controls(self) -> tuple[str, ...]:
        """The names of the clips that are described: "plain", and controls."""

    def describe(self, video: Video) -> dict[tuple[str, str], Array]:
        """(control, block) -> float [S, D] of one video. Raises DecodeError."""


@dataclass(frozen=True)
class FeatureStore:
    """The features in a folder; what is not there is computed."""

    folder: Path
    progress: Progress

    def plain(self, describer: Describer, videos: Videos) -> Blocks:
        """All blocks of the unchanged videos."""
        return self._read(describer, videos, PLAIN, None)

    def block(self, describer: Describer, videos: Videos, *, control: str, block: str) -> Array:
        """One block, [N, S, D], of the videos as a control shows them."""
        return self._read(describer, videos, control, block)[block]

    def _read(
        self, describer: Describer, videos: Videos, control: str, block: str | None
    ) -> Blocks:
        folder = self.folder / f"{plain_name(describer.name)}-{digest(describer.settings)}"
        starts = range(0, len(videos), _VIDEOS_A_FILE)
        some = [videos[start : start + _VIDEOS_A_FILE] for start in starts]
        made = [folder / f"{digest([[v.name, v.size] for v in part])}.npz" for part in some]
        with self.progress.counting(f"features: {describer.name}", len(videos)) as done:

            def settle(one: tuple[Path, Videos], seconds: float) -> bool:
                there = _is_made(*one, describer, seconds)
                done(len(one[1]) if there else 0)
                return there

            each_settled(list(zip(made, some, strict=True)), settle)
        parts: dict[str, list[Array]] = {}
        for file in made:
            with np.load(file) as arrays:
                for key in arrays.files:
                    shown, _, name = key.partition("/")
                    if shown == control and block in (None, name):
                        parts.setdefault(name, []).append(arrays[key].astype(np.float32))
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _is_made(file: Path, videos: Videos, describer: Describer, seconds: float) -> bool:
    """Make a file that is not there; False if another call is still at it after so many seconds."""
    if file.is_file():
        return True
    with claimed(file, wait=seconds) as mine:
        if mine and not file.is_file():
            _write(file, describer, videos)
        return mine


def _write(file: Path, describer: Describer, videos: Videos) -> None:
    described = [describer.describe(video) for video in videos]
    # half precision: the features of six clips of each window are many
    arrays: dict[str, Any] = {
        f"{key[0]}/{key[1]}": np.stack([one[key] for one in described]).astype(np.float16)
        for key in described[0]
    }
    with files.atomic_write(file) as out:
        np.savez(out, **arrays)


def digest(value: Any) -> str:
    """A short hash of numbers, texts, lists and dicts."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()


def plain_name(text: str) -> str:
    """A text as a name of a file or folder."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
