"""How much memory there is and was taken, and which errors mean that there was too little."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

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


def available() -> float:
    """Return the bytes that this process can still allocate before the kernel ends one; inf where
    the system does not tell."""
    limits = [float("inf"), *_free_in_groups()]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024.0 * int(line.split()[1]))
    return max(0.0, min(limits))


def _free_in_groups(
    group_file: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[float]:
    """Yield what the limit of each control group leaves that this process is in, as containers and
    Slurm set them."""
    places = {(root, "memory.max", "memory.current")}
    lines = group_file.read_text().splitlines() if group_file.is_file() else []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        names = ("memory.max", "memory.current")
        base = root
        if "memory" in kinds.split(","):  # the first version of control groups
            names, base = ("memory.limit_in_bytes", "memory.usage_in_bytes"), root / "memory"
        elif kinds:
            continue
        group = base / path.lstrip("/")
        places |= {(folder, *names) for folder in (group, *group.parents) if base in
                   (folder, *folder.parents)}  # fmt: skip
    for folder, most, used in places:
        try:
            yield float(int((folder / most).read_text())) - int((folder / used).read_text())
        except (OSError, ValueError):  # no such group, or "max"
            continue


def peak_of_process() -> int:
    """Return the most memory that this process has held, in bytes; 0 where nothing tells.

    Not what `getrusage` says, which counts that of the parent before the process was replaced.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(found[1]) * 1024 if found else 0
    return 0
