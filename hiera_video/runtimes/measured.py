"""Which runtime was the fastest on this machine, as `hiera-video doctor --measure` found.

`runtimes.json` in the cache folder holds one record for each machine and kind of weights: the time
of one clip in every runtime and number format that was there, with the versions of the libraries.
`--runtime auto` reads it. A record of other versions says nothing, and nothing is measured on the
way: without a record it is PyTorch that computes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from hiera_video import __version__, files

GAIN = 1.1
"""How many times faster than PyTorch another runtime must be: less may be chance."""

LIBRARIES = {"torch": "torch", "onnx": "onnxruntime", "openvino": "openvino"}
"""Runtime -> the library whose version counts."""


@dataclass(frozen=True)
class Kind:
    """What decides the speed of weights: two checkpoints of one kind take the same time."""

    model: str
    """Registered name."""
    clip_shape: tuple[int, ...]
    """(3, T, H, W), or (3, H, W) of an image model."""
    parameters: int
    """Of the model without its head, whose size depends on the classes."""
    threads: int
    """CPU threads that compute."""

    def key(self) -> str:
        """The record's name in the file: this machine and kind."""
        shape = "x".join(map(str, self.clip_shape))
        parts = (cpu_name(), f"{self.threads} threads", self.model, shape, str(self.parameters))
        return ", ".join(parts)


@dataclass(frozen=True)
class Record:
    """What was measured for one kind of weights on one machine."""

    date: str
    """2026-11-27."""
    versions: dict[str, str]
    """Of hiera_video and of every library of `LIBRARIES` that was there."""
    seconds: dict[str, float]
    """ "openvino fp32" -> seconds of one clip, for those that gave the model's logits."""

    def fastest(self, dtype: str) -> tuple[str, float]:
        """The runtime to take for a dtype, and how many times as fast as PyTorch it is.

        ("torch", 1.0) unless another one is faster by `GAIN`, and where PyTorch was not measured.
        """
        usual = self.seconds.get(f"torch {dtype}")
        times = {name: self.seconds.get(f"{name} {dtype}") for name in LIBRARIES}
        gains = {name: usual / t for name, t in times.items() if usual and t}
        best = max(gains, key=lambda name: gains[name], default="torch")
        return (best, gains[best]) if gains.get(best, 0.0) >= GAIN else ("torch", 1.0)

    def differing(self, runtime: str) -> list[str]:
        """What differs from the time of the measurement and matters to a runtime: "torch 2.14.1
        then, 2.15.0 now"."""
        now = installed_versions()
        names = ("hiera_video", "torch", LIBRARIES[runtime])
        return [
            f"{name} {self.versions.get(name)} then, {now.get(name, 'missing')} now"
            for name in dict.fromkeys(names)
            if self.versions.get(name) != now.get(name)
        ]


def read_record(kind: Kind) -> Record | None:
    """Read what was measured for a kind of weights on this machine.

    None where nothing was, and where the file is damaged or unreadable.
    """
    stored = files.read_measured(_path(), dict).get(kind.key())
    try:
        record = Record(**stored)  # type: ignore[arg-type]
        record.seconds.update({name: float(t) for name, t in record.seconds.items()})
        sound = isinstance(record.versions, dict) and all(t > 0 for t in record.seconds.values())
    except (AttributeError, TypeError, ValueError):
        return None
    return record if sound else None


def store_record(kind: Kind, record: Record) -> Path:
    """Add a measurement to the file; returns its path. Raises RunFailed if it cannot be written."""
    path = _path()
    files.add_measured(path, kind.key(), asdict(record))
    return path


def _path() -> Path:
    return files.cache_file("runtimes.json")


# ---- the machine --------------------------------------------------------------------------------


@functools.cache
def cpu_name() -> str:
    """The name of the processor, from /proc/cpuinfo where that exists."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def installed_version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_versions() -> dict[str, str]:
    """Versions of hiera_video and of the libraries that are installed."""
    found = {name: installed_version(name) for name in LIBRARIES.values()}
    return {"hiera_video": __version__, **{n: v for n, v in found.items() if v is not None}}
