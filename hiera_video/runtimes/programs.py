"""Programs of PyTorch: what torch.export.save and torch.jit.save wrote.

Unlike weights, these are programs, and opening one may run it. They are opened only for users who
ask for that by name (`--runtime torch`).
"""

from __future__ import annotations

import warnings
import zipfile

import torch

from hiera_video.errors import WeightsError
from hiera_video.runtimes.exported import Array, ExportedModel
from hiera_video.runtimes.facts import EXTRA_FILE, Facts
from hiera_video.runtimes.libraries import unreadable


def program_facts(path: str) -> Facts | None:
    """Return the facts inside an archive of PyTorch, without opening the program; None if none."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [n for n in archive.namelist() if n.endswith(f"extra/{EXTRA_FILE}")]
            text = archive.read(found[0]).decode("utf-8") if found else None
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return None if text is None else Facts.from_json(text, path)


def open_program(path: str) -> ExportedModel:
    """Open a program in PyTorch, on the CPU; WeightsError for what is none."""
    facts = program_facts(path)
    if facts is None:
        raise WeightsError(f"{path} is no program that hiera-video export wrote")
    try:
        if facts.kind == "torchscript":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.jit is deprecated; people still use it
                module = torch.jit.load(path, map_location="cpu")
        else:
            module = torch.export.load(path).module()
    except Exception as error:  # damaged archives raise errors of many types
        raise unreadable(path, error) from None

    def run(clips: Array) -> Array:
        with torch.no_grad():
            rows: Array = module(torch.from_numpy(clips)).numpy()
        return rows

    return ExportedModel(facts, run, "PyTorch")
