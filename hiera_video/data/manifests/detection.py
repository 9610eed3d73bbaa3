"""Which layout a folder or a list has. A reader may bring a function that recognises its layout:

@DATASET_REGISTRY.register(name="mine")
@recognized_by(lambda path: (path / "mine.json").is_file())
def read_mine(source: Source) -> Manifest: ...
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hiera_video.data.manifests.manifest import Manifest
from hiera_video.data.manifests.source import Source
from hiera_video.errors import DataError
from hiera_video.registry import DATASET_REGISTRY
from hiera_video.video.find import VIDEO_SUFFIXES

Reader = Callable[[Source], Manifest]

ANY_FOLDER = "folder"
"""The layout of whatever no reader recognises: one folder per class."""


def recognized_by(recognizes: Callable[[Path], bool]) -> Callable[[Reader], Reader]:
    """Decorate a reader with the function that recognises its layout by a path: a folder, or a file
    that is no video."""

    def decorate(reader: Reader) -> Reader:
        reader.recognizes = recognizes  # type: ignore[attr-defined] # functions take attributes
        return reader

    return decorate


def detect_format(path: Path) -> str:
    """The registered name of the layout of a folder or a list.

    Readers from outside of this package are asked before its own, otherwise in the order in which
    they were registered. Raises DataError for a video file.
    """
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        raise DataError(f"{path} is a video; name a list of videos or a folder of them")
    for name, reader in sorted(DATASET_REGISTRY, key=lambda entry: _is_ours(entry[1])):
        recognizes = getattr(reader, "recognizes", None)
        if recognizes is not None and recognizes(path):
            return name
    return ANY_FOLDER


def _is_ours(reader: Any) -> bool:
    return getattr(reader, "__module__", "").startswith(__name__.partition(".")[0] + ".")
