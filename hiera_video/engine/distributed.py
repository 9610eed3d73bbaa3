"""The process group of a run: the few collectives it needs, which do nothing on one process."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from hiera_video.engine.attempt import name_of_attempt
from hiera_video.engine.launch import Launch, find_launch
from hiera_video.engine.watch import Watch
from hiera_video.errors import RunFailed, UserError
from hiera_video.scoring import choose_device
from hiera_video.video.processes import usable_cores

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")
BACKENDS = ("nccl", "gloo")

MOST_WORKERS = 16
"""Processes that decode for one GPU unless the user asks for more; each holds batches in memory."""

WORKERS_BESIDE_A_CPU = 2
"""The same where the model computes on the CPU, too."""

_BARRIERS = itertools.count()
"""A number for each barrier of `gather_parts`: the count is the same on every process."""

_STOP = "stop"
_POLL_SECONDS = 0.2
"""Seconds between looks into the store."""


@dataclass(frozen=True)
class World:
    """The process group: rank and world size of this process, and the device it computes on."""

    device: torch.device
    rank: int = 0
    size: int = 1
    """Number of processes, torch's world size."""
    local_rank: int = 0
    """Rank among the processes of this machine."""
    local_size: int = 1
    """Number of processes on this machine."""
    store: Store | None = None
    """Key-value store that all processes share; None on one process. One process sets a key and the
    others look it up when they can: unlike in a collective, nobody waits."""
    watch: Watch | None = None
    """Ends all processes where one has failed; None on one process."""

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Close the group; of several processes, an error ends them all, here and at once."""
        if error is None:
            self.close()
        elif self.watch is not None:
            self.watch.fail(error)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only process that writes files and prints."""
        return self.rank == 0

    def loader_workers(self, wanted: int) -> int:
        """Return how many processes decode for this one: `wanted`, or for -1 as many as the cores
        allow. A GPU needs one core of its share to be fed, and a CPU nearly all to compute."""
        if wanted >= 0:
            return wanted
        share = usable_cores() // self.local_size
        if self.device.type == "cuda":
            return max(1, min(share - 1, MOST_WORKERS))
        return max(1, min(share, WORKERS_BESIDE_A_CPU))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over all processes, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_gather(self, value: T) -> list[T]:
        """Gather a picklable `value` from every process; a list by rank, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Send the picklable `value` of rank 0 to every process, and return it there."""
        if self.size == 1:
            return value
        values = [value]
        device = self.device if dist.get_backend() == "nccl" else None
        dist.broadcast_object_list(values, src=0, device=device)
        return values[0]

    def run_on_main(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `function` on rank 0 while the others wait; return its result on every process.

        What it raises ends all processes, through the `watch`: nobody may catch it and go on.
        """
        result = function(*args, **kwargs) if self.is_main else None
        return cast(T, self.broadcast(result))

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            dist.barrier()

    def any_stopped(self, stop_requested: bool) -> bool:
        """Return whether this process (`stop_requested`) or any other was asked to stop.

        Once true it stays true. This is no collective: each process may call it as often as it
        likes.
        """
        if self.store is None:
            return stop_requested
        if stop_requested:
            self.store.set(_STOP, "1")
        return stop_requested or self.store.check([_STOP])

    def barrier_or_stop(self, name: str, stop_requested: Callable[[], bool]) -> None:
        """Wait until every process has come to the barrier `name`, however long that takes.

        Returns early once any process is asked to stop (`stop_requested` tells whether this one
        is); the others come as soon as they notice. A collective would react to no signal while it
        waits, and would time out after half an hour.
        """
        if self.store is None:
            return
        self.store.add(name, 1)
        while self.store.add(name, 0) < self.size and not self.any_stopped(stop_requested()):
            time.sleep(_POLL_SECONDS)

    def gather_parts(
        self,
        compute: Callable[[], T | None],
        *,
        name: str,
        stopped: Callable[[], bool],
        explain: Callable[[Exception], None],
        attend: Callable[[], None] = lambda: None,
    ) -> list[T] | None:
        """Let each process compute its part of one thing and return all parts, by rank.

        compute: returns this process's part; None if it notices that a process was asked to stop.
        name: of what is computed, for the barrier. stopped: whether this process was asked to stop.
        explain: raises a better error for some errors of `compute`. attend: called after it, to
        take part in what the other processes still compute (`sharding.attend`).

        Returns None if any process was asked to stop. Raises what `compute` raises.
        """
        part = None
        try:
            part = compute()
        except Exception as error:
            # A signal to all processes ends the loader's workers too: that is no failure.
            if not self.any_stopped(stopped()):
                explain(error)
                raise
        attend()
        self.barrier_or_stop(f"{name} {next(_BARRIERS)}", stopped)
        parts = self.all_gather(None if self.any_stopped(stopped()) else part)
        complete = [part for part in parts if part is not None]
        return complete if len(complete) == len(parts) else None

    def close(self) -> None:
        """Wait for the other processes and destroy the group; a second call does nothing."""
        if self.size > 1 and dist.is_initialized():
            if self.watch is not None:
                self.watch.finish()
            dist.destroy_process_group()


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means, one GPU per local process.

    A launcher may show each process one card alone (srun --gpus-per-task=1): it is then number 0
    for all of them, whatever their local rank. `require_own_gpus` tells whether it is so.
    Raises UserError where there is no such device.
    """
    device = choose_device(wanted)
    if device.type != "cuda" or device.index is not None:
        return device
    count = torch.cuda.device_count()
    if count == 1:
        return torch.device("cuda", 0)
    if local_rank >= count:
        raise UserError(
            f"{local_rank + 1} processes on this machine want a GPU each and it has {count}; "
            f"start at most {count} here (torchrun --nproc-per-node {count}), or set DEVICE cpu"
        )
    return torch.device("cuda", local_rank)


def init(device: str = "auto", backend: str = "auto", *, timeout_minutes: int = 30) -> World:
    """Join the process group that torchrun or srun started, or return a World of one process.

    Use it in a `with`: of several processes, an error inside ends them all (see `watch`), and from
    here on Ctrl-C and SIGTERM do, too, outside of a `Stop`.

    Reads RANK, WORLD_SIZE, LOCAL_RANK and MASTER_*, or what Slurm sets (see `launch`). Several
    launches on one machine do not collide: torchrun picks the port (--standalone), and under Slurm
    it is that of the job.

    Args:
        device: auto, cpu or cuda; on one process also one GPU by number, cuda:1.
        backend: nccl (GPUs), gloo (CPUs; works on GPUs too) or auto.
        timeout_minutes: how long a collective waits.

    Raises UserError: another device or backend, variables that are only partly set. What can differ
    between processes ends them all instead: more local processes than GPUs, a GPU that two
    processes would share.
    """
    launch = find_launch()
    if launch.note and launch.rank == 0:
        print(launch.note, file=sys.stderr, flush=True)
    if launch.size == 1:
        return World(device=_use(pick_device(device)))
    if ":" in device:
        raise UserError(
            f"device {device!r} names one GPU, and {launch.size} processes need one each: set "
            "DEVICE cuda, and choose the cards with the variable CUDA_VISIBLE_DEVICES"
        )
    if backend not in ("auto", *BACKENDS):
        raise UserError(f"distributed backend {backend!r}: allowed are auto, {', '.join(BACKENDS)}")
    os.environ.update(launch.variables())  # under srun they are not there yet
    watch = Watch(launch.rank, launch.size)
    watch.start()
    try:
        return _join(launch, watch, device, backend, timedelta(minutes=timeout_minutes))
    except BaseException as error:
        watch.fail(error)


def _join(launch: Launch, watch: Watch, device: str, backend: str, timeout: timedelta) -> World:
    """Meet the other processes, then pick the device and build the group."""
    # Imported here: builds of PyTorch without distributed have neither.
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # torch has no __all__

    rank, size = launch.rank, launch.size
    whole = _open_store(launch, timeout)
    store = PrefixStore(name_of_attempt(whole, rank, size, timeout), whole)
    watch.join(
        PrefixStore("watch", store), launch.address, one_machine=launch.local_size == launch.size
    )
    own_device = _use(pick_device(device, launch.local_rank))
    if own_device.type == "cuda":
        require_own_gpus(PrefixStore("gpus", store), _gpu_name(own_device), rank=rank, size=size)
    chosen = pick_backend(backend, own_device)
    dist.init_process_group(
        chosen,
        store=PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
        # NCCL then connects now, to this GPU, and not in the first collective to whatever it finds
        device_id=own_device if chosen == "nccl" else None,
    )
    return World(
        device=own_device,
        rank=rank,
        size=size,
        local_rank=launch.local_rank,
        local_size=launch.local_size,
        store=PrefixStore("world", store),
        watch=watch,
    )


def _open_store(launch: Launch, timeout: timedelta) -> Store:
    """Open the store at the address of rank 0, who makes it unless torchrun has."""
    from torch.distributed.rendezvous import rendezvous

    host = f"[{launch.address}]" if ":" in launch.address else launch.address  # IPv6
    where = f"tcp://{host}:{launch.port}"
    try:
        store, _, _ = next(rendezvous(where, launch.rank, launch.size, timeout=timeout))
    except dist.DistNetworkError as error:
        if launch.rank != 0 or "EADDRINUSE" not in str(error):
            raise
        raise RunFailed(
            f"port {launch.port} is taken, at which the processes meet; set the variable "
            "MASTER_PORT to a free one, the same for all"
        ) from error
    store.set_timeout(timeout)
    return store


def pick_backend(wanted: str, device: torch.device) -> str:
    """Return the backend that `auto`, `nccl` or `gloo` means for the device of this process.

    Raises UserError for NCCL on a CPU.
    """
    if wanted == "auto":
        return "nccl" if device.type == "cuda" else "gloo"
    if wanted == "nccl" and device.type != "cuda":
        raise UserError("distributed backend 'nccl' needs CUDA devices; use gloo on the CPU")
    return wanted


def require_own_gpus(store: Store, own: str, *, rank: int, size: int) -> None:
    """Raise UserError, in every process, where two of them compute on one GPU.

    own: a name of this process's GPU that no other GPU of any machine has. Found out before the
    first collective, in which NCCL would fail without saying why, or hang.
    """
    store.set(str(rank), own)
    ranks_of: dict[str, list[int]] = {}
    for other in range(size):
        ranks_of.setdefault(store.get(str(other)).decode(), []).append(other)
    shared = [(gpu, ranks) for gpu, ranks in ranks_of.items() if len(ranks) > 1]
    if shared:
        gpu, ranks = shared[0]
        raise UserError(
            f"processes {', '.join(map(str, ranks))} were given the same GPU ({gpu}); each needs "
            "one of its own: start as many processes as there are GPUs, or set DEVICE cpu"
        )


def _gpu_name(device: torch.device) -> str:
    """Name a GPU so that no other has the name: machine, model, identity."""
    facts = torch.cuda.get_device_properties(device)
    return f"{socket.gethostname()}, {facts.name}, {facts.uuid}"


def _use(device: torch.device) -> torch.device:
    """Make a GPU the current device of this process; return `device`."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
