"""Vectors as matrices: a folder with one file NAME.npy, [windows, channels], for each video.

Tools for temporal localisation (ActionFormer and its like) read such folders. Row i belongs to the
window that starts at i * `every` seconds. The folder also holds `features.json`, the settings, and
`videos.jsonl`, a line for each video: path, file, windows, end in seconds, error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from hiera_video.errors import DataError, RunFailed, UserError, hide_secrets
from hiera_video.features.describe import Described, every_window
from hiera_video.features.parquet import stored_path
from hiera_video.features.settings import FeatureSettings
from hiera_video.files import AnyPath, atomic_write, explained, hold, write_text
from hiera_video.storage.addresses import INSIDE, absolute, is_stored, plain_name

SETTINGS, JOURNAL = "features.json", "videos.jsonl"

_NUMPY_TYPES = {"fp32": np.float32, "fp16": np.float16}


def common_folder(paths: Sequence[str]) -> str:
    """The folder below which all videos are, to which the names of matrices are relative."""
    folders = {os.path.dirname(_place(path)) for path in paths}
    return os.path.commonpath(sorted(folders)) if folders else os.getcwd()


def _place(path: str) -> str:
    """A whole path; of an address one that looks like it: /s3/bucket/a.mp4."""
    if not is_stored(path):
        return os.path.abspath(path)
    plain = hide_secrets(plain_name(absolute(path))).replace(INSIDE, "/")
    return os.path.normpath("/" + plain.replace("://", "/", 1))


class MatrixWriter:
    """Writes the matrices of videos, and goes on with a folder that was begun.

    Args:
        folder: where to write; it is made if needed.
        settings: of all its vectors; `root` is the `common_folder` of the videos.
        videos: all that will be added, so that two never have the same file.
        afresh: describe every video again.

    Raises UserError: the folder is of other settings, another process writes it, two videos would
    have the same name; DataError: its settings cannot be read; RunFailed: it cannot be written.
    """

    def __init__(
        self,
        folder: AnyPath,
        settings: FeatureSettings,
        videos: Sequence[str],
        *,
        afresh: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self._names = _file_names(videos, settings.root)
        with explained(folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = hold(self.folder / ".lock")
        if lock is None:
            raise UserError(f"another process is writing {folder}; wait for it, or end it")
        self._lock = lock
        try:
            self._compare(afresh)
            self.done = set() if afresh else self._read_done()
            self._journal: IO[str] = self._opened_journal(afresh)
        except BaseException:
            lock.close()
            raise

    def __enter__(self) -> MatrixWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        self._lock.close()

    def is_done(self, path: str) -> bool:
        """Whether a video has its matrix; one that failed is tried again."""
        return stored_path(path) in self.done and (self.folder / self._names[path]).is_file()

    def add(self, path: str, described: Described) -> None:
        """Write the matrix of a video."""
        vectors, every = described.vectors, self.settings.every
        if every is not None:
            vectors = every_window(described, every, path)
        with np.errstate(over="ignore"):  # said below
            matrix = vectors.astype(_NUMPY_TYPES[self.settings.stored_as])
        if not np.isfinite(matrix).all():
            raise RunFailed("the vectors do not fit into fp16; store them as fp32")
        target = self.folder / self._names[path]
        with explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as file:
            np.save(file, matrix)
        self._note(path, file=self._names[path], windows=len(matrix), end=described.ends[-1])

    def add_error(self, path: str, error: str) -> None:
        """Note why a video has no matrix."""
        self._note(path, error=error)

    def finish(self) -> None:
        """Nothing is left to do: each video is whole already."""

    def _note(self, path: str, **facts: Any) -> None:
        line = {
            "path": stored_path(path),
            "file": None,
            "windows": 0,
            "end": None,
            "error": None,
            **facts,
        }
        with explained(self.folder / JOURNAL):
            self._journal.write(json.dumps(line) + "\n")
            self._journal.flush()

    def _compare(self, afresh: bool) -> None:
        file = self.folder / SETTINGS
        if file.exists() and not afresh:
            stored = FeatureSettings.from_json(file.read_text(encoding="utf-8"), str(file))
            self.settings.require_same(stored, str(file))
        elif not afresh and any(self.folder.rglob("*.npy")):
            raise DataError(
                f"{self.folder} has matrices but no {SETTINGS}: it is not known what made them; "
                "name another --out"
            )
        write_text(file, self.settings.to_json() + "\n")

    def _opened_journal(self, afresh: bool) -> IO[str]:
        path = self.folder / JOURNAL
        with explained(path):
            if afresh:
                path.unlink(missing_ok=True)
            file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed at the end)
            if file.tell() and not path.read_bytes().endswith(b"\n"):
                file.write("\n")  # the writer was killed within a line
            return file

    def _read_done(self) -> set[str]:
        """The videos whose last line has no error; a torn line counts as none."""
        done: set[str] = set()
        path = self.folder / JOURNAL
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
                name, failed = entry["path"], entry["error"] is not None
            except (ValueError, TypeError, KeyError):
                continue
            (done.discard if failed else done.add)(name)
        return done


def _file_names(videos: Sequence[str], root: str) -> dict[str, str]:
    """Video -> its file below the folder: its own name below `root`, ending in .npy."""
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for video in videos:
        name = os.path.splitext(os.path.relpath(_place(video), root))[0] + ".npy"
        other = owners.setdefault(name, video)
        if other != video:
            raise UserError(
                f"{other} and {video} would both be written to {name}; rename one, or describe "
                "them into two folders"
            )
        names[video] = name
    return names
