"""Find out what an exported file is, and open it in a runtime."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from hiera_video.errors import UserError, WeightsError
from hiera_video.runtimes.exported import ExportedModel
from hiera_video.runtimes.onnx import open_onnx
from hiera_video.runtimes.openvino import open_openvino
from hiera_video.runtimes.programs import open_program, program_facts

RUNTIMES = ("torch", "onnx", "openvino")
"""What computes: PyTorch, ONNX Runtime, OpenVINO."""

OPENVINO_MODEL = "openvino_model.xml"
"""The file inside a folder that was exported for OpenVINO."""

AnyPath = str | os.PathLike[str]


def check_runtime(name: str) -> str:
    """Return the name of a runtime or "auto"; UserError for anything else."""
    if name != "auto" and name not in RUNTIMES:
        raise UserError(f"runtime {name!r}; choose auto, {', '.join(RUNTIMES)}")
    return name


def exported_kind(path: AnyPath) -> str | None:
    """Return the format of an exported file or folder, by its name; None if it is none.

    PyTorch's programs and weights have the same endings: they are told apart by what is inside.
    """
    place = Path(path)
    if place.is_dir():
        return "openvino" if (place / OPENVINO_MODEL).is_file() else None
    if place.suffix.lower() == ".onnx":
        return "onnx"
    if place.suffix.lower() == ".xml":
        return "openvino"
    facts = program_facts(os.fspath(place)) if place.is_file() else None
    return None if facts is None else facts.kind


def open_exported(path: AnyPath, runtime: str = "auto") -> ExportedModel:
    """Open an exported file on the CPU, with as many threads as PyTorch uses in this process.

    Args:
        path: an .onnx file, a folder or .xml file for OpenVINO, a program of PyTorch.
        runtime: "auto": the one that the file is for. OpenVINO runs ONNX files, too.

    Raises:
        UserError: an unknown runtime, one that cannot run such a file, or one that is not
            installed; a program of PyTorch without `runtime="torch"`, since opening it may run it.
        WeightsError: the file is missing, damaged, or not one that this package exported.
    """
    check_runtime(runtime)
    kind = exported_kind(path)
    text = os.fspath(path)
    if kind is None:
        raise WeightsError(f"{text} is not an exported model: an .onnx, an .xml, a folder with one")
    if os.path.isdir(text):
        text = os.path.join(text, OPENVINO_MODEL)
    if not os.path.isfile(text):
        raise WeightsError(f"no such file: {text}")
    threads = torch.get_num_threads()
    if kind in ("torch_export", "torchscript"):
        return _open_program(text, runtime)
    if kind == "onnx" and runtime in ("auto", "onnx"):
        return open_onnx(text, threads=threads)
    if runtime in ("auto", "openvino"):
        return open_openvino(text, threads=threads)
    able = "onnx or openvino" if kind == "onnx" else "openvino"
    raise UserError(f"{text} runs in {able}, not in {runtime}; drop --runtime")


def _open_program(path: str, runtime: str) -> ExportedModel:
    if runtime == "torch":
        return open_program(path)
    if runtime != "auto":
        raise UserError(f"{path} is a program of PyTorch; it does not run in {runtime}")
    raise UserError(
        f"{path} is a program of PyTorch, and opening it may run what it holds; if you trust where "
        "it comes from, say so with --runtime torch"
    )
