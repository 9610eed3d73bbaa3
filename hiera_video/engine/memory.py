"""Recognises errors of too little memory, on a GPU or on the machine."""

from __future__ import annotations

import re

import torch

from hiera_video.video.limits import is_out_of_memory


def shortage(error: BaseException) -> str | None:
    """Return one line, "CUDA out of memory. Tried to allocate 2.00 GiB"; None for other errors."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return text.split(". GPU")[0].rstrip(".")
    if not is_out_of_memory(error):
        return None
    asked = re.search(r"tried to allocate (\d+) bytes", text)
    amount = f": {int(asked[1]) / 2**30:.2f} GiB more were asked for" if asked else ""
    return f"out of memory{amount}"
