"""`model`: forward pass and training step of registered models, beside other implementations."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hiera_video.benchmark import machine, measure, tables
from hiera_video.benchmark.measure import Contender
from hiera_video.benchmark.tables import Column
from hiera_video.errors import UserError
from hiera_video.models import build_model

REFERENCE = "hiera-transformer"

COLUMNS = (
    Column("model", "model"),
    Column("implementation", "implementation"),
    Column("mode", "mode"),
    Column("dtype", "dtype"),
    Column("batch", "batch"),
    *tables.TIMES,
    Column("clips/s", "samples_per_s", ".3g"),
    Column("GMAC/s", "gmacs_per_s", ".0f"),
    Column("of peak", tables.percent("of_peak")),
    Column("x ref", "ratio", ".2f"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `model`."""
    parser.add_argument("--names", nargs="+", default=["hiera_base_16x224"], metavar="NAME")
    parser.add_argument("--batch", type=machine.positive, default=1, help="clips per call (1)")
    parser.add_argument("--modes", nargs="+", choices=("forward", "train"), default=["forward"])
    parser.add_argument("--dtype", nargs="+", default=[], metavar="DTYPE", help="fp32 bf16 fp16")
    machine.add_machine_arguments(parser)
    tables.add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    device = machine.device_of(args)
    dtypes = machine.usable_dtypes(args.dtype, device)
    facts = machine.machine_facts(device, [REFERENCE])
    peak = measure.Peak(device, dtypes)
    with tables.Report(args, facts=facts, columns=COLUMNS) as report:
        peak.look()
        for name in args.names:
            contenders = model_contenders(name, args, device=device, dtypes=dtypes)
            try:
                measure.interleave(contenders, repeats=args.repeats, device=device)
                peak.look()
            finally:
                report.rows += summarise(contenders, peak)
                report.record["peak"] = peak.facts()
    return 0


def model_contenders(
    name: str,
    args: argparse.Namespace,
    *,
    device: torch.device,
    dtypes: dict[str, torch.dtype],
) -> list[Contender]:
    """Ours in every number format, and the reference in the same, on shared weights and input."""
    torch.manual_seed(0)
    ours = build_model(name).to(device)
    models: dict[str, nn.Module] = {"hiera_video": ours}
    reference = reference_model(name)
    if reference is not None:
        reference.load_state_dict(ours.state_dict(), strict=True)
        models[REFERENCE] = reference.to(device)
    clips = torch.randn(args.batch, 3, *ours.input_size, device=device)
    keep = ours.random_keep(args.batch) if is_autoencoder(ours) else None
    gmacs = multiply_adds(ours, clips, keep)
    if reference is not None:
        check_agreement(name, ours, reference, clips, keep)
    contenders = []
    for mode in args.modes:
        for dtype_name, dtype in dtypes.items():
            for implementation, model in models.items():
                contenders.append(
                    Contender(
                        {
                            "model": name,
                            "implementation": implementation,
                            "mode": mode,
                            "dtype": dtype_name,
                            "batch": args.batch,
                        },
                        samples=args.batch,
                        gmacs=gmacs * (3 if mode == "train" else 1),
                        run=step_of(model, clips, keep, mode=mode, dtype=dtype),
                    )
                )
    return contenders


def reference_model(name: str) -> nn.Module | None:
    """The model of this name in hiera-transformer, where it is installed and has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import hiera
        except ImportError:
            print(f"{REFERENCE} is not installed (pip install {REFERENCE}): ours alone")
            return None
    if not hasattr(hiera, name):
        print(f"{REFERENCE} has no {name}: ours alone")
        return None
    return getattr(hiera, name)(pretrained=False)


def is_autoencoder(model: nn.Module) -> bool:
    """Whether the model takes a mask and returns its own loss."""
    return hasattr(model, "mask_ratio")


def step_of(
    model: nn.Module, clips: Tensor, keep: Tensor | None, *, mode: str, dtype: torch.dtype
) -> Callable[[], Any]:
    """One timed call: a forward pass, or forward and backward."""
    autocast = torch.autocast(clips.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def forward() -> Tensor:
        with autocast:
            return output_of(model, clips, keep)

    def evaluate() -> None:
        model.eval()
        with torch.inference_mode():
            forward()

    def train() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        forward().float().mean().backward()

    return train if mode == "train" else evaluate


def output_of(model: nn.Module, clips: Tensor, keep: Tensor | None) -> Tensor:
    """Logits of a classifier, loss of an autoencoder, whoever made the model."""
    if keep is None:
        return model(clips)
    if is_autoencoder(model):
        return model(clips, keep).loss
    return model(clips, mask=keep)[0]


def check_agreement(
    name: str, ours: nn.Module, reference: nn.Module, clips: Tensor, keep: Tensor | None
) -> None:
    """Two programs are compared only if they compute the same thing.

    Raises:
        UserError: if the outputs differ by more than rounding.
    """
    with torch.inference_mode():
        mine = output_of(ours.eval(), clips, keep)
        theirs = output_of(reference.eval(), clips, keep)
    if keep is None:
        mine = mine.softmax(-1)  # the reference's eval mode gives probabilities
    error = ((mine - theirs).abs().max() / theirs.abs().max()).item()
    if error > 1e-4:
        raise UserError(f"{name}: ours and the reference differ by {error:.1e}; nothing to compare")


def multiply_adds(model: nn.Module, clips: Tensor, keep: Tensor | None) -> float:
    """Multiply-adds (1e9) of one forward pass, attention included."""
    model.eval()
    # the counter does not know the CPU's fused attention; as plain products it is counted
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        output_of(model, clips, keep)
    return counter.get_total_flops() / 2e9


def summarise(contenders: list[Contender], peak: measure.Peak) -> list[tables.Row]:
    """Rows with the ratio to the reference in the same mode and number format."""
    by_key = {(c.facts["implementation"], c.facts["mode"], c.facts["dtype"]): c for c in contenders}
    rows = []
    for c in measure.measured(contenders):
        row = measure.row_of(c, peak=peak[c.facts["dtype"]])
        reference = by_key.get((REFERENCE, c.facts["mode"], c.facts["dtype"]))
        rows.append({**row, "ratio": measure.ratio_of(c, reference)})
    return rows
