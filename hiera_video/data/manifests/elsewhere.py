"""Data sets that do not lie in a folder of this machine: at an address, or in tar shards.

    with brought_here("s3://bucket/videos/", "train", settings) as here:
        manifest = here.moved(reader(here.path))

What describes the data is brought into a temporary folder in the form that the readers know: a list
as it is; a folder as the same folders with its lists, and with empty files for its videos; shards
as a list of their videos and labels. No video is fetched. Afterwards the paths lead to where the
videos really are, and messages name that place.

A shard's video `key.mp4` has its label in `key.cls` (a number or a name), `key.json` (a
field of `shard_labels.LABEL_FIELDS`) or `key.txt` (a name), the first of these that there is.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hiera_video.data.manifests.class_names import CLASS_FILES
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.data.manifests.shard_labels import label_of
from hiera_video.data.manifests.splits import split_of
from hiera_video.errors import DataError, hide_secrets
from hiera_video.progress import Progress
from hiera_video.storage.addresses import (
    absolute,
    base_name,
    folder_of,
    is_address,
    is_shard,
    member_path,
    plain_name,
    refusal,
)
from hiera_video.storage.listing import indexed, shards_at
from hiera_video.storage.retries import StorageError
from hiera_video.video.find import is_video

LISTS = (".csv", ".tsv", ".txt", ".json")
SHARDS = "shards"
"""The layout's name in messages."""

_TABLE = "shards.csv"

MOST_LIST = 4 << 30
"""Bytes of a list that is fetched."""

_SEPARATORS = re.compile(r"[^a-z]+")


@dataclass
class Here:
    """The description of a data set, on this machine for a while."""

    place: str
    """What the user named."""
    path: Path
    settings: dict[str, Any]
    """Those for reading `path`."""
    root: str
    """Where the paths of the manifest begin, instead of `path` or its folder."""
    is_table: bool = False
    """Whether `path` is a list that was made here."""
    notes: list[str] = field(default_factory=list)

    def moved(self, manifest: Manifest) -> Manifest:
        """The manifest with the paths of the videos where they are."""
        top = str(self.path if self.path.is_dir() else self.path.parent)
        root = manifest.paths.root
        if root == top or root.startswith(top + os.sep):
            below = os.path.relpath(root, top)
            root = self.root if below == "." else f"{self.root.rstrip('/')}/{below}"
        return replace(
            manifest,
            paths=manifest.paths.moved(root),
            name=SHARDS if self.path.name == _TABLE else manifest.name,
            notes=(*self.notes, *(self.text(note) for note in manifest.notes)),
            classes_from=self.text(manifest.classes_from),
        )

    def text(self, message: str) -> str:
        """A message about what is here, as one about the place that the user named."""
        shown = hide_secrets(self.place)
        if self.path.is_dir():
            return message.replace(str(self.path), shown.rstrip("/"))
        if self.path.name == _TABLE:
            message = message.replace("column 'label'", "key.cls, key.json or key.txt")
        return message.replace(str(self.path), shown).replace(self.path.name, base_name(shown))


def lies_elsewhere(place: str) -> bool:
    """Whether a data set is for this module."""
    if is_address(place) or is_shard(place) or place.lower().endswith(".parquet"):
        return True
    return bool(os.path.isdir(place) and _shards_of_folder(place))


@contextlib.contextmanager
def brought_here(place: str, split: str, settings: dict[str, Any]) -> Iterator[Here]:
    """What describes the data at `place`, on this machine until the block ends.

    Raises DataError: it cannot be read, is no data set, has a secret in its address.
    """
    if is_address(place) and (reason := refusal(place)):
        raise DataError(f"{hide_secrets(place)}: {reason}")
    if hide_secrets(place) != place:
        raise DataError(
            f"{hide_secrets(place)}: an address with a password or a signature would be written "
            "into checkpoints and logs; leave credentials to fsspec's usual places"
        )
    with tempfile.TemporaryDirectory(prefix="hiera_video_") as folder:
        try:
            here = _bring(place, Path(folder), dict(settings))
        except StorageError as error:
            raise DataError(f"{error} (the data to read, DATA.PATH_TO_DATA_DIR)") from None
        reject: Callable[[int, DataError], None] | None = settings.get("on_bad_line")
        if reject is not None:
            here.settings["on_bad_line"] = lambda line, error: reject(
                line, type(error)(here.text(str(error)))
            )
        try:
            yield here
        except DataError as error:
            raise type(error)(here.text(str(error))) from None


def _bring(place: str, folder: Path, settings: dict[str, Any]) -> Here:
    if is_shard(place):
        return _of_shards(place, shards_at(place), folder, settings)
    if not is_address(place):
        if place.lower().endswith(".parquet"):
            root = settings.get("path_prefix") or os.path.dirname(os.path.abspath(place))
            return _of_parquet(place, place, root, folder, settings)
        return _of_shards(place, _shards_of_folder(place), folder, settings)
    suffix = os.path.splitext(plain_name(place))[1].lower()
    if suffix in (*LISTS, ".parquet"):
        file = folder / base_name(place)
        _fetch(place, file)
        root = settings.get("path_prefix") or folder_of(place)
        if suffix == ".parquet":
            return _of_parquet(place, str(file), root, folder, settings)
        settings["path_prefix"] = root
        return Here(place, file, settings, root)
    return _of_folder(place, folder, settings)


# ---- lists and folders --------------------------------------------------------------------------


def _fetch(address: str, file: Path) -> None:
    from hiera_video.storage.remote import read_small

    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(read_small(address, MOST_LIST))


def _of_folder(place: str, folder: Path, settings: dict[str, Any]) -> Here:
    """The folders of an address, with its lists and with empty files for its videos."""
    from hiera_video.storage.remote import files_below

    with Progress("listing the data", unit="files") as progress:
        files = [file.address for file in files_below(place)]
        progress.add(len(files))
    videos = sum(is_video(name) for name in files)
    shards = [name for name in files if is_shard(name)]
    if not files:
        raise StorageError(place, "there is nothing at this address")
    if shards and not videos:
        here = _of_shards(place, shards, folder, settings)
        _fetch_class_names(files, place, here.path.parent)
        return here
    top = place.rstrip("/")
    target = folder / (base_name(top) or "data")
    target.mkdir()
    known: set[Path] = set()
    for address in files:
        below = address[len(top) + 1 :]
        is_list = below.count("/") < 2 and below.lower().endswith(LISTS)
        if not (is_list or is_video(below)):
            continue
        if not address.startswith(top + "/") or {"", ".", ".."} & set(below.split("/")):
            raise StorageError(address, "has a name that no file can have; rename it")
        file = target / below
        if file.parent not in known:
            file.parent.mkdir(parents=True, exist_ok=True)
            known.add(file.parent)
        if is_list:
            _fetch(address, file)
        else:
            file.touch()
    return Here(place, target, settings, settings.get("path_prefix") or top)


def _fetch_class_names(files: Sequence[str], place: str, folder: Path) -> None:
    top = place.rstrip("/")
    for address in files:
        if base_name(address) in CLASS_FILES and folder_of(address) == top:
            _fetch(address, folder / base_name(address))


def _of_parquet(place: str, file: str, root: str, folder: Path, settings: dict[str, Any]) -> Here:
    """A table as a list in CSV."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(
            f"{place} is a Parquet file, which needs pyarrow: pip install pyarrow"
        ) from None
    target = folder / (Path(base_name(place)).stem + ".csv")
    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            with target.open("w", encoding="utf-8", errors="surrogateescape", newline="") as out:
                writer = csv.writer(out)
                writer.writerow(names)
                for batch in table.iter_batches(65_536):
                    columns = [batch.column(name).to_pylist() for name in names]
                    for row in zip(*columns, strict=True):
                        writer.writerow(["" if cell is None else cell for cell in row])
    except (ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise DataError(f"{place} cannot be read as a Parquet file: {reason}") from None
    return Here(place, target, {**settings, "path_prefix": root, "separator": None}, root, True)


# ---- shards -------------------------------------------------------------------------------------


def _shards_of_folder(folder: str) -> list[str]:
    """The shards of a folder that holds nothing else that could be meant; none otherwise.

    They lie in it, or in its folders train, val and test.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []
    entries = [entry for entry in entries if not entry.name.startswith(".")]
    folders = [entry for entry in entries if entry.is_dir()]
    tables = (".csv", ".tsv")
    if any(is_video(e.name) or e.name.lower().endswith(tables) for e in entries):
        return []
    if folders and not all(split_of(entry.name) for entry in folders):
        return []
    shards = [entry.path for entry in entries if is_shard(entry.name)]
    for inner in folders:
        names = sorted(os.listdir(inner.path))
        found = [os.path.join(inner.path, name) for name in names if is_shard(name)]
        if not found:  # a folder of classes; an archive beside it is no shard
            return []
        shards += found
    return shards


def _of_shards(place: str, shards: Sequence[str], folder: Path, settings: dict[str, Any]) -> Here:
    """A list of the videos of shards, with their labels."""
    if not shards:
        raise StorageError(place, "no shards there")
    shards = [absolute(shard) for shard in shards]
    root = _common_folder(shards)
    splits = _splits(place, shards, root)
    need_labels = settings.get("need_labels", True)
    target = folder / _TABLE
    count: Counter[str] = Counter()
    first = ""
    with target.open("w", encoding="utf-8", errors="surrogateescape", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["path", "label", *(["split"] if splits else [])])
        for shard, index in indexed(shards):
            if isinstance(index, StorageError):
                raise index
            for path, label in shard_rows(shard[len(root) + 1 :], index):
                count["videos"] += 1
                if not label and need_labels:
                    count["unlabelled"] += 1
                    first = first or path
                    continue
                count["rows"] += 1
                writer.writerow([path, label, *([splits[shard]] if splits else [])])
    if not count["rows"]:
        what = "videos with a label (key.cls, key.json or key.txt)" if need_labels else "videos"
        raise StorageError(place, f"no {what} in {len(shards)} shards, {count['videos']} videos")
    notes = []
    if count["unlabelled"]:
        notes.append(
            f"ignored: {count['unlabelled']} videos without a label, such as {first} (no key.cls, "
            "key.json or key.txt with one)"
        )
    if not is_address(place):
        _copy_class_names(root, folder)
    own = {**settings, "path_prefix": root, "separator": None}
    return Here(place, target, own, root, True, notes)


def shard_rows(shown: str, index: Any) -> Iterator[tuple[str, str]]:
    """(path, label) of each video of a shard; the label is "" where there is none.

    shown: the shard, as the paths are to name it.
    """
    labels: dict[str, dict[str, str]] = {}
    videos: list[tuple[str, str]] = []
    for number in range(len(index)):
        name = index.name(number)
        head, _, last = name.rpartition("/")
        if last.startswith("."):
            continue
        stem, dot, ending = last.partition(".")  # WebDataset: the key ends at the first dot
        key = f"{head}/{stem}"
        if is_video(last):
            videos.append((key, name))
        elif dot and (text := index.text(number)):
            labels.setdefault(key, {})[ending.lower()] = text
    for key, name in videos:
        yield member_path(shown, name), label_of(labels.get(key, {}))


def _common_folder(shards: Sequence[str]) -> str:
    folders = [folder_of(shard) for shard in shards]
    common = folders[0].split("/")
    for folder in set(folders):
        pairs = zip(common, folder.split("/"), strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        common = common[: min(len(folder.split("/")), len(common)) if same is None else same]
    return "/".join(common)


def _splits(place: str, shards: Sequence[str], root: str) -> dict[str, str]:
    """Shard -> its split, by the words of its name and folders; empty where none names one."""
    found = {}
    for shard in shards:
        words = _SEPARATORS.split(shard[len(root) + 1 :].lower())
        found[shard] = next((split for word in words if (split := split_of(word))), "")
    named = [shard for shard in shards if found[shard]]
    if not named or len({found[shard] for shard in named}) == 1 == len(set(found.values())):
        return {}
    if len(named) < len(shards):
        other = next(shard for shard in shards if not found[shard])
        raise DataError(
            f"{hide_secrets(place)}: {base_name(named[0])} names a split and {base_name(other)} "
            "does not; give each shard train, val or test in its name, or none"
        )
    return found


def _copy_class_names(root: str, folder: Path) -> None:
    for name in CLASS_FILES:
        file = Path(root, name)
        if file.is_file():
            (folder / name).write_bytes(file.read_bytes())
