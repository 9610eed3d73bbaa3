"""Peak memory of one call: the allocator's own count on a GPU, a process of its own on a CPU.

On a CPU only the resident set of the whole process is known, and an allocator keeps what it has:
one candidate after the other in one process would hide the next. So each is built and called once
in a fresh process, and the result is the peak of its resident set during the call, less the
resident set before the model was built (libraries and interpreter): weights, input, gradients and
activations. On a GPU it is the most that torch's allocator held.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hiera_video.benchmarks import machine
from hiera_video.benchmarks.machine import PURE
from hiera_video.benchmarks.measure import Candidate, CannotMeasure, progress
from hiera_video.registry import import_user_module

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Bytes of one call."""

    peak: int
    """All of it: weights, input, gradients, activations."""
    before: int
    """Allocated before the call: weights and input."""

    def of_batch(self, factor: float) -> float:
        """Bytes that a batch `factor` times as large needs, at most."""
        return self.before + factor * (self.peak - self.before)


def describe(device: torch.device) -> str:
    """What the memory column means, in one sentence."""
    if device.type == "cuda":
        return "the most that torch's allocator held during one call, weights included"
    return (
        "growth of the resident set's peak over one call, weights included, in a fresh process each"
    )


# ---- GPU ----------------------------------------------------------------------------------------


def gpu_memory(
    candidate: Candidate, module: torch.nn.Module, device: torch.device, *, optimizer: bool = False
) -> Memory:
    """Memory of one more call of a warm candidate; other candidates' tensors are not counted.

    Args:
        optimizer: whether AdamW's two averages of every weight belong to it.
    """
    module.zero_grad(set_to_none=True)
    torch.cuda.synchronize(device)
    own = bytes_of(module.parameters()) * (3 if optimizer else 1) + bytes_of(module.buffers())
    start = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    candidate.run()
    torch.cuda.synchronize(device)
    grown = torch.cuda.max_memory_allocated(device) - start
    module.zero_grad(set_to_none=True)
    return Memory(peak=own + grown, before=own)


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Total size of the tensors in bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)


# ---- CPU ----------------------------------------------------------------------------------------


def cpu_memory(case: Any, *, imports: Sequence[str] = ()) -> Memory | None:
    """Memory of one call of a `steps.Case` in a fresh process; None where it cannot be read.

    Args:
        imports: modules of the user's that register models.

    Raises:
        CannotMeasure: the process was ended, most often by the kernel for its memory, or failed.
    """
    if not STATUS.is_file():
        return None
    progress(f"memory of {case.name}, {case.implementation}")
    order = {
        "case": asdict(case),
        "imports": list(imports),
        "threads": torch.get_num_threads(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "hiera_video.benchmarks.memory"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        env=machine.child_environment(),
        check=False,
    )
    progress("")
    if done.returncode < 0:
        raise CannotMeasure("out of memory" if done.returncode == -9 else "the process was ended")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it failed without a message"]
        raise CannotMeasure(last[0][:80])
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def available() -> float:
    """Bytes that this process can still allocate before the kernel ends one; inf: unknown."""
    limits = [float("inf")]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024.0 * int(line.split()[1]))
    group = Path("/sys/fs/cgroup")
    try:
        most = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        if most != "max":
            limits.append(float(int(most) - used))
    except (OSError, ValueError):
        pass  # no such group: the machine's own memory is the limit
    return min(limits)


def _measure(order: dict[str, Any]) -> Memory:
    """Measure a case; runs in the child process."""
    from hiera_video.benchmarks import steps

    torch.set_num_threads(order["threads"])
    for module in order["imports"]:
        import_user_module(module)
    case = steps.Case(**{**order["case"], "input_size": _size(order["case"]["input_size"])})
    _start_libraries()
    idle = _resident("VmRSS")
    model = steps.build(case)
    size = steps.model_input_size(case, model)
    clips = torch.randn(case.batch, 3, *size)
    if case.dtype.endswith(PURE):
        dtype = steps.torch_dtype(case.dtype, clips.device)
        model, clips = model.to(dtype), clips.to(dtype)
    step = steps.Step(case, model, clips)
    return _peak_of(step, idle)


def _peak_of(step: Callable[[], None], idle: int) -> Memory:
    """Peak of the resident set during a call, over `idle`."""
    before = _resident("VmRSS")
    # the peak so far is that of building; 5 sets it back to what is resident now
    with contextlib.suppress(OSError):  # not every kernel can; then the peak of building may count
        Path("/proc/self/clear_refs").write_text("5")
    step()
    return Memory(peak=_resident("VmHWM") - idle, before=before - idle)


def _start_libraries() -> None:
    """Start torch's threads, whose buffers do not belong to the model."""
    x = torch.randn(256, 256, requires_grad=True)
    (x @ x).sum().backward()


def _resident(field: str) -> int:
    """VmRSS (now) or VmHWM (the most so far) of this process, in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{STATUS} has no {field}")


def _size(size: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if size is None else tuple(size)


if __name__ == "__main__":
    print(json.dumps(asdict(_measure(json.load(sys.stdin)))))
