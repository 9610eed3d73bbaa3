"""What `torch.save` wrote: checked against its checksums, and loaded without running code."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from typing import Any

import torch

from hiera_video.errors import WeightsError


def unpickled(path: str | os.PathLike) -> Any:
    """`torch.load`, restricted to tensors and plain values; WeightsError for what it refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on protocols and formats; our errors are clearer
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # arbitrary bytes raise errors of many types
        raise WeightsError(f"{path}: {_load_failure(error)}") from None


def archive_fault(path: str | os.PathLike) -> str | None:
    """Read a whole file of `torch.save` (a zip archive); what is wrong with it, or None.

    `torch.load` checks no checksum: a flipped bit becomes a wrong weight, and if the bit marks a
    record as a folder, the weights are uninitialised memory. So every record is compared with its
    CRC-32 here, and its entry must be as `torch.save` writes it. That also rejects compressed
    records, which could expand a thousandfold.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not _is_plain(entry):
                    return f"damaged: the entry of record {entry.filename} is not torch.save's"
            broken = archive.testzip()
    except FileNotFoundError:
        return "there is no such file"
    except Exception as error:  # zipfile has no common type for all that is wrong with a file
        return f"cut short or damaged ({first_line(error)})"
    return f"damaged: record {broken} does not match its checksum" if broken else None


_ENCRYPTED, _FOLDER = 0x1, 0x10


def _is_plain(entry: zipfile.ZipInfo) -> bool:
    """Whether a record is a stored file: not compressed, not encrypted, no folder."""
    return (
        entry.compress_type == zipfile.ZIP_STORED
        and entry.compress_size == entry.file_size
        and not entry.flag_bits & _ENCRYPTED
        and not entry.external_attr & _FOLDER
    )


def _load_failure(error: Exception) -> str:
    """A sentence for an error of `torch.load`, whose own text fills a page."""
    text = str(error)
    advice = (
        "only tensors, numbers, strings, lists and dicts are accepted. If you trust where the file "
        "comes from, re-save its weights alone where it was made: "
        'torch.save({"model_state": model.state_dict()}, "weights.pth")'
    )
    named = re.search(r"GLOBAL (\S+)", text)
    if named:
        return f"refused, loading it would run code from the file ({named.group(1)}); {advice}"
    if "TorchScript" in text:
        return f"refused, it is a TorchScript program, not a checkpoint; {advice}"
    if "zip archive" in text or "PytorchStreamReader" in text:
        return "the file is cut short or damaged; download or copy it again"
    if isinstance(error, MemoryError):
        return "the file needs more memory than there is; it is damaged, or this machine too small"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {first_line(error)}"
    if "Weights only load failed" in text:
        return f"refused, it is a Python pickle that is more than weights, or damaged; {advice}"
    return f"the file is damaged or no checkpoint ({first_line(error)}); download or copy it again"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, short enough for a message."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return first if len(first) <= 160 else first[:157] + "..."
