"""The formats: a torch module and its facts -> a file.

Each writer gets a path in a temporary folder; `export.py` moves what it wrote into place.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.export.quantise import quantised_onnx, quantised_openvino
from hiera_video.runtimes.facts import EXTRA_FILE, INPUT, KEY, OUTPUT, Facts
from hiera_video.runtimes.libraries import library
from hiera_video.runtimes.load import OPENVINO_MODEL

LARGEST_ONNX = 1_900_000_000
"""Bytes of weights in one .onnx file, which may have 2 GiB; larger ones get a file beside it."""

TORCH_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class InDtype(nn.Module):
    """A model that computes in another number format: float32 clips in, float32 logits out."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = copy.deepcopy(model).to(dtype), dtype

    def forward(self, clips: Tensor) -> Tensor:
        """Clips [B, 3, T, H, W] -> logits [B, num_classes]."""
        logits: Tensor = self.model(clips.to(self.dtype)).float()
        return logits


class LogitsOf(nn.Module):
    """A model as exporters call it: with the clips alone, and by that name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor) -> Tensor:
        """Clips [B, 3, T, H, W] -> logits [B, num_classes]."""
        logits: Tensor = self.model(clips)
        return logits


def as_called(model: nn.Module, dtype: str) -> nn.Module:
    """Return the module that is exported for a dtype; int8 starts from float32."""
    other = TORCH_DTYPES.get(dtype)
    return (LogitsOf(model) if other is None else InDtype(model, other)).eval()


def example(facts: Facts) -> Tensor:
    """Return clips to export with. Two where any batch is allowed: one is taken for a constant."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(facts.batch or 2, *facts.clip_shape, generator=generator)


# ---- the writers --------------------------------------------------------------------------------


def write_onnx(model: nn.Module, facts: Facts, file: Path, calibration: Sequence[Tensor]) -> None:
    """Write an .onnx file; large weights go into FILE.data beside it."""
    if facts.dtype != "int8":
        _write_graph(as_called(model, facts.dtype), facts, file)
        return
    plain = file.with_name("fp32.onnx")
    _write_graph(as_called(model, facts.dtype), facts, plain)
    with quiet():
        quantised_onnx(plain, file, calibration, facts)
    for leftover in file.parent.glob("fp32.onnx*"):
        leftover.unlink()


def _write_graph(module: nn.Module, facts: Facts, file: Path) -> None:
    """Write the graph of a module, and the facts into its metadata."""
    library("onnxscript", "writing ONNX")
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example(facts),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},) if not facts.batch else None,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        assert program is not None  # it is None without dynamo
        program.model.metadata_props[KEY] = facts.to_json()
        size = sum(p.numel() * p.element_size() for p in module.parameters())
        program.save(file, external_data=size > LARGEST_ONNX)


def write_openvino(
    model: nn.Module, facts: Facts, file: Path, calibration: Sequence[Tensor]
) -> None:
    """Write FILE.xml and FILE.bin."""
    ov = library("openvino", "--format openvino")
    # bf16 is what it computes in, not what is stored: `runtimes/openvino.py` asks for it.
    with quiet(), torch.no_grad():
        clips = example(facts)
        traced = torch.jit.trace(as_called(model, "fp32"), clips, check_trace=False)
        graph = ov.convert_model(
            traced, example_input=clips, input=[(facts.batch or -1, *facts.clip_shape)]
        )
        graph.inputs[0].get_tensor().set_names({INPUT})
        graph.outputs[0].get_tensor().set_names({OUTPUT})
        if facts.dtype == "int8":
            graph = quantised_openvino(graph, calibration)
        graph.set_rt_info(facts.to_json(), [KEY])
        ov.save_model(graph, file, compress_to_fp16=facts.dtype == "fp16")


def write_torch_export(
    model: nn.Module, facts: Facts, file: Path, calibration: Sequence[Tensor]
) -> None:
    """Write a program of torch.export, .pt2."""
    with quiet(), torch.no_grad():
        shapes: Any = ({0: torch.export.Dim("batch", min=1)},) if not facts.batch else None
        program = torch.export.export(
            as_called(model, facts.dtype), (example(facts),), dynamic_shapes=shapes
        )
        torch.export.save(program, file, extra_files={EXTRA_FILE: facts.to_json()})


def write_torchscript(
    model: nn.Module, facts: Facts, file: Path, calibration: Sequence[Tensor]
) -> None:
    """Write a program of torch.jit."""
    with quiet(), torch.no_grad():
        # The parity that follows takes the place of trace's own check, which is three more calls.
        traced = torch.jit.trace(as_called(model, facts.dtype), example(facts), check_trace=False)
        torch.jit.save(traced, str(file), _extra_files={EXTRA_FILE: facts.to_json()})


@dataclass(frozen=True)
class Format:
    """One format of exported files."""

    write: Callable[[nn.Module, Facts, Path, Sequence[Tensor]], None]
    """Called with the model, its facts, a path and clips for calibration (of int8)."""
    dtypes: tuple[str, ...]
    runtime: str
    """What runs it, see `runtimes.load`."""
    libraries: tuple[str, ...]
    """Needed to write and to run it."""
    main_file: str
    """What the file is called where --out names a folder; empty: --out is a file."""
    why_not: str = ""
    """Why the other dtypes are missing, for messages."""


FORMATS = {
    "onnx": Format(
        write_onnx,
        ("fp32", "fp16", "int8"),
        "onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        "",
        "ONNX Runtime has no bf16 for CPUs; --format openvino has",
    ),
    "openvino": Format(
        write_openvino,
        ("fp32", "fp16", "bf16", "int8"),
        "openvino",
        ("openvino",),
        OPENVINO_MODEL,
    ),
    "torch_export": Format(
        write_torch_export,
        ("fp32", "fp16", "bf16"),
        "torch",
        (),
        "",
        "int8 is for --format onnx and openvino",
    ),
    "torchscript": Format(
        write_torchscript,
        ("fp32", "fp16", "bf16"),
        "torch",
        (),
        "",
        "int8 is for --format onnx and openvino",
    ),
}
"""--format -> how it is written."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters from filling the terminal: warnings, log lines, progress bars.

    What they print on stdout goes nowhere; stdout may be a user's JSON.
    """
    levels = {name: logging.getLogger(name).level for name in ("root", "nncf", "torch.onnx")}
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
