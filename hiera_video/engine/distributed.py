"""One process or many under torchrun, behind the same handful of calls; quiet on one process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hiera_video.errors import RunFailed, UserError
from hiera_video.scoring import choose_device

T = TypeVar("T")
BACKENDS = ("nccl", "gloo")
_STOP, _FAILED = "stop", "failed"
_LOOK_EVERY = 0.2
"""Seconds between looks at the others."""


@dataclass(frozen=True)
class World:
    """Where this process stands among its peers, and the device it computes on."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Any = None
    """A torch.distributed.Store that all processes share, for what one says and the others look up
    when they can: unlike a collective, nobody waits. None on one process."""

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and talks."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Add `tensor` up over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, thing: T) -> list[T]:
        """Every process's `thing`, by rank, on every process."""
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things

    def broadcast(self, thing: T) -> T:
        """The main process's `thing` on every process."""
        if self.size == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box, src=0, device=self._box_device())
        return box[0]

    def run_on_main(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """Run `function` on the main process while the others wait; its result on every process.

        If it raises there, the others leave too instead of waiting for ever: silently, because
        the main process says why (SystemExit with the exit code that message will carry).
        """
        if self.size == 1:
            return function(*args, **kwargs)
        error: BaseException | None = None
        result: T | None = None
        if self.is_main:
            try:
                result = function(*args, **kwargs)
            except BaseException as caught:
                error = caught
        code = 0 if error is None else (2 if isinstance(error, UserError) else 1)
        code, result = self.broadcast((code, result))
        if error is not None:
            raise error
        if code:
            raise SystemExit(code)
        return result

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def any_stopped(self, asked: bool) -> bool:
        """Whether this process (`asked`) or any other was asked to stop.

        Once true it stays true. Processes may call it as often as each likes.
        """
        if self.size == 1:
            return asked
        if asked:
            self.store.set(_STOP, "1")
        return asked or self.store.check([_STOP])

    def meet(self, place: str, asked: Callable[[], bool]) -> None:
        """Wait until every process is at `place`, one process's wait being as long as it takes.

        Returns early where any process is asked to stop (`asked` says whether this one is); then
        the others come as soon as they notice. In a collective a process would hear no signal, and
        after half an hour give up. RunFailed where another process has failed on its way here.
        """
        if self.size == 1:
            return
        self.store.add(place, 1)
        while self.store.add(place, 0) < self.size and not self.any_stopped(asked()):
            if self.store.check([_FAILED]):
                raise RunFailed("another process of this run failed; its message says why")
            time.sleep(_LOOK_EVERY)

    def tell_failure(self) -> None:
        """Let the processes that wait in `meet` know that this one will not come."""
        if self.size > 1:
            self.store.set(_FAILED, "1")

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model whose backward averages gradients over the processes; itself on one."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            model, device_ids=ids, gradient_as_bucket_view=True
        )

    def close(self) -> None:
        """Leave the group; a second call does nothing."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def _box_device(self) -> torch.device | None:
        return self.device if dist.get_backend() == "nccl" else None


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device behind `auto`, `cpu` or `cuda`, one GPU per local process; UserError if none."""
    device = choose_device(wanted)
    if device.type != "cuda" or device.index is not None:
        return device
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"{local_rank + 1} processes on this machine want a GPU each and it has {count}; "
            f"start at most {count} here (torchrun --nproc-per-node {count}), or set DEVICE cpu"
        )
    return torch.device("cuda", local_rank)


def init(device: str = "auto", backend: str = "auto", *, timeout_minutes: int = 30) -> World:
    """Join the processes torchrun started (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_*), or stay alone.

    backend: nccl (GPUs), gloo (CPUs; works on GPUs too) or auto. UserError for anything else, for
    half-set variables, and for more local processes than GPUs. Several launches on one machine do
    not collide: torchrun picks the port (--standalone), nothing is fixed here.
    """
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if not given["WORLD_SIZE"] or int(given["WORLD_SIZE"]) == 1:
        return World(device=_use(pick_device(device)))
    missing = [name for name, value in given.items() if value is None]
    missing += [n for n in ("MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {given['WORLD_SIZE']} but {', '.join(missing)} is not set; start "
            "several processes with: torchrun --nproc-per-node N tools/run_net.py ..."
        )
    rank, size, local_rank = (int(given[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    place = _use(pick_device(device, local_rank))
    if backend == "auto":
        backend = "nccl" if place.type == "cuda" else "gloo"
    if backend not in BACKENDS:
        raise UserError(f"distributed backend {backend!r}: allowed are auto, {', '.join(BACKENDS)}")
    if backend == "nccl" and place.type != "cuda":
        raise UserError("distributed backend 'nccl' needs CUDA devices; use gloo on the CPU")
    timeout = timedelta(minutes=timeout_minutes)
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
    )
    said = dist.PrefixStore("said", store)
    return World(device=place, rank=rank, size=size, local_rank=local_rank, store=said)


def _use(device: torch.device) -> torch.device:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
