"""Sharded checkpoints: folders that the processes of a sharded run write together.

    checkpoint_epoch_00003.sharded/
        run.pyth            what a checkpoint file holds, with `SHARDED` in place of each shard
        .metadata           where each tensor is (torch.distributed.checkpoint)
        __0_0.distcp ...    the tensors: one file for each process

`run.pyth` is written last and lists the size and the CRC-32 of every other file: a folder without
it is incomplete. The files of torch.distributed.checkpoint are read as every file of weights is:
nothing that is stored in them is executed.
"""

from __future__ import annotations

import inspect
import os
import pickle
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hiera_video.errors import WeightsError
from hiera_video.models.weights.archive import archive_fault, unpickled

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata

SUFFIX = ".sharded"
RECORD = "run.pyth"
METADATA = ".metadata"
SHARDED = "<sharded>"
"""What stands in the record in place of a tensor that is in the shards."""
FILES = "files"
"""Entry of the record: name of each other file -> (size, CRC-32)."""


def is_sharded(path: str | os.PathLike) -> bool:
    """Return whether a path is a folder that is, or was to be, a sharded checkpoint."""
    folder = Path(path)
    return folder.is_dir() and (folder.suffix == SUFFIX or (folder / RECORD).is_file())


# ---- is it whole? -------------------------------------------------------------------------------


def checksum(path: str | os.PathLike) -> tuple[int, int]:
    """Read a file; return its size and CRC-32."""
    size = crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a folder, with the marks of its shards.

    Raises WeightsError for a folder that is incomplete or damaged.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise WeightsError(
            f"{folder}: this sharded checkpoint is incomplete (no {RECORD}): its run was killed "
            "while it saved, or not all files were copied; use an earlier checkpoint"
        )
    fault = archive_fault(path)
    if fault:
        raise WeightsError(f"{path}: the file is {fault}; copy the folder again")
    record = unpickled(path)
    if not isinstance(record, dict) or not isinstance(record.get(FILES), dict):
        raise WeightsError(f"{path} is not the record of a sharded checkpoint")
    return record


def file_names(record: dict[str, Any]) -> list[str]:
    """Return the names of the files that a record lists, in order."""
    return sorted(str(name) for name in record[FILES])


def files_fault(folder: Path, record: dict[str, Any], names: Iterable[str]) -> str | None:
    """Read these files; return what is wrong with the first that is not as it was written."""
    for name in names:
        try:
            size, crc = record[FILES][name]
            if os.path.basename(name) != name:
                return f"the record lists {name!r}, which is no file of the folder"
            found = checksum(Path(folder) / name)
        except FileNotFoundError:
            return f"incomplete: {name} is missing; copy all files of the folder"
        except (OSError, TypeError, ValueError) as error:
            return f"{name} cannot be read ({error})"
        if found != (size, crc):
            what = f"has {found[0]:,} bytes of {size:,}" if found[0] != size else "is damaged"
            return f"{name} {what}; copy the folder again"
    return None


# ---- reading ------------------------------------------------------------------------------------


def read_whole(folder: str | os.PathLike) -> dict[str, Any]:
    """Read a sharded checkpoint as if it were one file: whole tensors, on the CPU.

    Raises WeightsError for a folder that is incomplete or damaged, or would run code.
    """
    folder = Path(folder)
    record = read_record(folder)
    fault = files_fault(folder, record, file_names(record))
    if fault:
        raise WeightsError(f"{folder}: {fault}")
    return fill(folder, record, lambda size, dtype: torch.empty(size, dtype=dtype))


def fill(
    folder: Path, record: dict[str, Any], empty: Callable[[torch.Size, torch.dtype], Tensor]
) -> dict[str, Any]:
    """Return the record with its tensors, read from the shards, without its list of files.

    empty: makes the tensor that one is read into, of this size and type: a whole one, or a DTensor
        with the part that this process needs. This is no collective.
    Raises WeightsError for shards that do not fit the record.
    """
    try:
        reader = _reader(folder, set(file_names(record)))
        sizes = reader.read_metadata().state_dict_metadata
        _require_plausible(folder, record, sizes)
        tensors = {}
        for key in marks(record):
            found = sizes[key]
            tensors[key] = empty(found.size, found.properties.dtype)  # type: ignore[union-attr]
        if tensors:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is one process which reads
                _load(dict(tensors), reader)
    except WeightsError:
        raise
    except Exception as error:  # arbitrary bytes raise errors of many types
        name = type(error).__name__
        line = str(error).strip().split("\n")[0][:160]
        raise WeightsError(f"{folder}: its shards cannot be read ({name}: {line})") from error
    content: dict[str, Any] = replaced(record, lambda key, value: tensors.get(key, value))
    content.pop(FILES)
    return content


def _load(tensors: dict[str, Tensor], reader: FileSystemReader) -> None:
    """Fill tensors in place; other processes take no part."""
    from torch.distributed.checkpoint.state_dict_loader import load, load_state_dict

    # older versions of PyTorch know `no_dist` under the old name alone
    takes = "no_dist" in inspect.signature(load).parameters
    (load if takes else load_state_dict)(tensors, storage_reader=reader, no_dist=True)


def _require_plausible(folder: Path, record: dict[str, Any], sizes: dict[str, Any]) -> None:
    """Raise WeightsError for tensors that are missing, or larger than the files that hold them."""
    missing = [key for key in marks(record) if not hasattr(sizes.get(key), "size")]
    if missing:
        raise WeightsError(f"{folder}: its shards hold no {missing[0]}")
    wanted = [sizes[key] for key in marks(record)]
    declared = sum(found.size.numel() * found.properties.dtype.itemsize for found in wanted)
    stored = sum(size for size, _ in record[FILES].values())
    if declared > stored:
        raise WeightsError(f"{folder}: tensors of {declared:,} bytes in files of {stored:,}")


def marks(record: dict[str, Any]) -> list[str]:
    """Return the keys of the tensors that are in the shards: their path in the record."""
    found: list[str] = []

    def note(key: str, value: Any) -> Any:
        if isinstance(value, str) and value == SHARDED:
            found.append(key)
        return value

    replaced(record, note)
    return found


def replaced(content: Any, change: Callable[[str, Any], Any], key: str = "") -> Any:
    """Return a copy of nested dicts in which `change(path, value)` stands for every value; the
    path joins the keys by slashes."""
    if isinstance(content, dict):
        return {k: replaced(v, change, f"{key}/{k}" if key else str(k)) for k, v in content.items()}
    return change(key, content)


# ---- without running code -----------------------------------------------------------------------


def _reader(folder: Path, names: set[str]) -> FileSystemReader:
    """Return a reader of torch.distributed.checkpoint that runs nothing of what it reads: its own
    unpickles `.metadata` whatever that says."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader as Unrestricted

    class Reader(Unrestricted):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            with open(folder / METADATA, "rb") as file:
                metadata: Metadata = _Restricted(file).load()
            for info in metadata.storage_data.values():
                if info.relative_path not in names:
                    raise WeightsError(f"{folder}: {METADATA} names a file outside of the folder")
            if metadata.storage_meta is not None:
                metadata.storage_meta.load_id = self.load_id
            return metadata

    return Reader(str(folder))


class _Restricted(pickle.Unpickler):
    """Unpickles what describes the shards, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        for allowed in _allowed(module, name):
            return allowed
        raise WeightsError(f"refused, {METADATA} would run code ({module}.{name})")


def _allowed(module: str, name: str) -> Iterator[Any]:
    """Yield what a name in `.metadata` stands for, if it may be there."""
    from torch import serialization
    from torch.distributed.checkpoint import filesystem, metadata

    if module == metadata.__name__ and isinstance(vars(metadata).get(name), type):
        if vars(metadata)[name].__module__ == module:
            yield vars(metadata)[name]
    elif (module, name) == (filesystem.__name__, "_StorageInfo"):
        yield filesystem._StorageInfo
    elif (module, name) == (serialization.__name__, "_get_layout"):
        yield serialization._get_layout
    elif module == "torch" and (name == "Size" or isinstance(vars(torch).get(name), torch.dtype)):
        yield vars(torch)[name]
    elif module.startswith("pathlib") and name in ("PosixPath", "WindowsPath"):
        yield PurePosixPath  # the folder that it was written to; it is not used
