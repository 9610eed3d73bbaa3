"""Benchmarks, one subcommand each; every number comes with the conditions it was taken under.

    python tools/benchmark.py model
    python tools/benchmark.py model --names hiera_base_16x224 mae_hiera_base_16x224 --json out.json

Machines are noisy, so contenders take turns, measurement by measurement, on the same input and
the same weights; the median is reported, with the spread beside it, and the ratio is the median of
the ratios of neighbouring measurements.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, too

from hiera_video import __version__, build_model, cli
from hiera_video.errors import UserError
from hiera_video.scoring import choose_device, choose_dtype

REFERENCE = "hiera-transformer"
MATRIX_SIDE = 2048


# ---- measuring ------------------------------------------------------------------------------


@dataclass
class Contender:
    """One thing to time: a function without arguments, and what to say about it."""

    model: str
    implementation: str
    mode: str
    dtype: str
    batch: int
    gmacs: float
    """Multiply-adds of one call, in units of 1e9."""
    run: Callable[[], Any]
    note: str = ""
    seconds: list[float] = field(default_factory=list)


def interleave(contenders: Sequence[Contender], *, repeats: int, device: torch.device) -> None:
    """Time each contender `repeats` times, taking turns; a first round warms up, uncounted."""
    for round_number in range(repeats + 1):
        for contender in contenders:
            wait_for(device)
            start = time.perf_counter()
            contender.run()
            wait_for(device)
            if round_number > 0:
                contender.seconds.append(time.perf_counter() - start)
        progress(f"round {round_number}/{repeats}" if round_number else "warm-up")
    progress("")


def wait_for(device: torch.device) -> None:
    """Let the device finish: kernels are launched without waiting."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def progress(text: str) -> None:
    """One line that overwrites itself, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}", end="\r" if not text else "", file=sys.stderr, flush=True)


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """This machine's own matrix product, in 1e9 multiply-adds per second (best of five)."""
    a = torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device).to(dtype)
    best = float("inf")
    for _ in range(6):
        wait_for(device)
        start = time.perf_counter()
        a @ a
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return MATRIX_SIDE**3 / best / 1e9


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What a reader needs to know to place a number."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hiera_video": __version__,
        REFERENCE: installed_version(REFERENCE),
    }


def cpu_name() -> str:
    """The processor's name, as the kernel gives it where there is one."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def installed_version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---- model ----------------------------------------------------------------------------------


def benchmark_model(args: argparse.Namespace) -> int:
    """Forward pass and training step of registered models, beside the reference's."""
    device = choose_device(args.device)
    dtypes = usable_dtypes(args.dtype, device)
    facts = machine_facts(device)
    peaks = {name: matrix_peak(device, dtype) for name, dtype in dtypes.items()}
    rows = []
    for name in args.names:
        contenders = model_contenders(name, args, device=device, dtypes=dtypes)
        interleave(contenders, repeats=args.repeats, device=device)
        rows += summarise(contenders, peaks)
    print_facts(facts, peaks)
    print_table(rows)
    write_json(args.json, {"command": sys.argv, "machine": facts, "peak": peaks, "rows": rows})
    return 0


def usable_dtypes(names: Sequence[str], device: torch.device) -> dict[str, torch.dtype]:
    """The number formats asked for; without asking, those that this device computes natively."""
    chosen = {}
    for name in names or ("fp32", "bf16", "fp16"):
        dtype, warning = choose_dtype(name, device)
        if warning and not names:
            print(f"{name}: left out, not native on this device (--dtype {name} forces it)")
            continue
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
        chosen[name] = dtype
    return chosen


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
                        model=name,
                        implementation=implementation,
                        mode=mode,
                        dtype=dtype_name,
                        batch=args.batch,
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


# ---- reporting ------------------------------------------------------------------------------


def summarise(contenders: Sequence[Contender], peaks: dict[str, float]) -> list[dict[str, Any]]:
    """Medians, spread, rates, and ratios to the reference in float32 and in the same format."""
    by_key = {(c.implementation, c.mode, c.dtype): c for c in contenders}
    rows = []
    for c in contenders:
        median = statistics.median(c.seconds)
        row = {key: v for key, v in asdict(c).items() if key not in ("run", "seconds")}
        row |= {
            "ms": 1e3 * median,
            "ms_min": 1e3 * min(c.seconds),
            "ms_max": 1e3 * max(c.seconds),
            "repeats": len(c.seconds),
            "clips_per_s": c.batch / median,
            "gmacs_per_s": c.gmacs / median,
            "of_peak": c.gmacs / median / peaks[c.dtype],
            "ratio": ratio_of(c, by_key.get((REFERENCE, c.mode, c.dtype))),
            "ratio_fp32": ratio_of(c, by_key.get((REFERENCE, c.mode, "fp32"))),
        }
        rows.append(row)
    return rows


def ratio_of(contender: Contender, reference: Contender | None) -> float | None:
    """How many times faster than the reference: median over rounds of their ratio."""
    if reference is None:
        return None
    pairs = zip(reference.seconds, contender.seconds, strict=True)
    return statistics.median(theirs / mine for theirs, mine in pairs)


def print_facts(facts: dict[str, Any], peaks: dict[str, float]) -> None:
    """The conditions, one line each."""
    print(", ".join(f"{key} {value}" for key, value in facts.items() if value is not None))
    for name, peak in peaks.items():
        print(f"matrix product {MATRIX_SIDE} cubed, {name}: {peak:.0f} G multiply-adds/s")


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """A plain table; `x ref` compares in the same number format, `x fp32` with float32."""
    columns = [
        ("model", lambda r: r["model"]),
        ("implementation", lambda r: r["implementation"]),
        ("mode", lambda r: r["mode"]),
        ("dtype", lambda r: r["dtype"]),
        ("batch", lambda r: str(r["batch"])),
        ("median ms", lambda r: f"{r['ms']:.1f}"),
        ("min-max", lambda r: f"{r['ms_min']:.0f}-{r['ms_max']:.0f}"),
        ("clips/s", lambda r: f"{r['clips_per_s']:.3g}"),
        ("GMAC/s", lambda r: f"{r['gmacs_per_s']:.0f}"),
        ("of peak", lambda r: f"{100 * r['of_peak']:.0f} %"),
        ("x ref", lambda r: ratio_text(r["ratio"])),
        ("x fp32", lambda r: ratio_text(r["ratio_fp32"])),
    ]
    cells = [[title for title, _ in columns]] + [[show(r) for _, show in columns] for r in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())


def ratio_text(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def write_json(path: str | None, record: dict[str, Any]) -> None:
    """Write the whole record where `--json` says."""
    if path is not None:
        Path(path).write_text(json.dumps(record, indent=1) + "\n")


# ---- command line ---------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    model = commands.add_parser("model", help="models, ours beside the reference")
    model.add_argument("--names", nargs="+", default=["hiera_base_16x224"], metavar="NAME")
    model.add_argument("--batch", type=positive, default=1, help="clips per call (1)")
    model.add_argument("--modes", nargs="+", choices=("forward", "train"), default=["forward"])
    model.add_argument("--dtype", nargs="+", default=[], metavar="DTYPE", help="fp32 bf16 fp16")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda")
    model.add_argument("--repeats", type=positive, default=7, help="measurements of each (7)")
    model.add_argument("--threads", type=positive, help="CPU threads (torch's choice)")
    model.add_argument("--json", metavar="FILE", help="write everything measured to FILE")
    cli.add_import_argument(parser)
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    return benchmark_model(args)


if __name__ == "__main__":
    cli.run(main)
