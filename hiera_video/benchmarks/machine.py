"""The conditions of a measurement: machine, versions, and number formats that it has natively."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hiera_video import __version__
from hiera_video.errors import UserError
from hiera_video.runtimes.measured import cpu_name, installed_version
from hiera_video.scoring import choose_device, choose_dtype

DTYPES = ("fp32", "bf16", "fp16")

PURE = "-pure"
"""Suffix of a dtype's name: the weights are stored in it too, instead of cast at every call."""


def child_environment() -> dict[str, str]:
    """The environment of a process that runs `python -m hiera_video...` with this very package.

    Python keeps its compiled modules there, as it does for users; else every process would compile
    the package anew.
    """
    known = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, known))}


def machine_facts(device: torch.device, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Facts about machine and versions that are printed with every measurement.

    Args:
        packages: libraries that are measured, whose versions are added; None if not installed.
    """
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        **device_facts(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hiera_video": __version__,
        **{package: installed_version(package) for package in packages},
    }


def device_facts(device: torch.device) -> dict[str, Any]:
    """The name of the device; for a GPU also memory, versions and matmul precision."""
    if device.type != "cuda":
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "device_memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def usable_dtypes(
    names: Sequence[str], device: torch.device, *, emulated: bool = False
) -> dict[str, torch.dtype]:
    """The number formats in `names`, for none all, that this device computes natively.

    A CPU without instructions for bfloat16 is a hundred times slower with it: a comparison would
    take half a day. `emulated` measures such formats all the same.

    Raises UserError for an unknown name, and where no format is left.
    """
    chosen = {}
    for name in names or DTYPES:
        dtype, warning = choose_dtype(name.removesuffix(PURE), device)
        if warning and not emulated:
            print(f"{name}: left out, not native on this device (--emulated forces it)")
            continue
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
        chosen[name] = dtype
    if not chosen:
        raise UserError(
            f"--dtype {' '.join(names)}: not native on this device; choose fp32, or add --emulated "
            "to measure it all the same: it can take hours"
        )
    return chosen


def device_of(args: argparse.Namespace) -> torch.device:
    """The device of --device; sets the number of CPU threads too.

    Raises UserError where there is no such device.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    return choose_device(args.device)
