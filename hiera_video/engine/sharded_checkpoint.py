"""Checkpoints of a sharded run: every process writes its part into one folder, in the background.

The layout of the folder is that of `hiera_video.models.weights.sharded`. The parts are copied to
the CPU, and training goes on while a thread writes them through torch.distributed.checkpoint, with
a process group of its own. The folder has a hidden name until all parts are on the disk: whenever
the machine stops, a folder under its final name is complete.

The thread is our own and not `async_save`'s, because it also checks, renames and prunes, and
because `async_save` refuses runs whose default group is NCCL alone in some versions of PyTorch.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from hiera_video.engine import checkpoint
from hiera_video.engine.distributed import World
from hiera_video.engine.sharding import cut_like, local, placement
from hiera_video.engine.state import CheckpointWriter, TrainingState
from hiera_video.engine.step import NotFinite
from hiera_video.errors import RunFailed, UserError, WeightsError, kind_and_line
from hiera_video.files import atomic_write, unfinished_name
from hiera_video.models.weights import sharded as layout


class CheckpointGroup:
    """The processes of a run, as those that write and read checkpoints together.

    Its group is gloo's, on the CPU: what is written lies there, and the thread that writes must not
    mix its messages with those of training.
    """

    def __init__(self, world: World) -> None:
        from torch.distributed.device_mesh import DeviceMesh

        self.rank, self.size = world.rank, world.size
        self.process_group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self.mesh = DeviceMesh.from_group(self.process_group, "cpu")

    def copied(self, tensor: Tensor) -> Tensor:
        """Copy a sharded tensor to the CPU."""
        from torch.distributed.tensor import DTensor

        assert isinstance(tensor, DTensor)
        part = local(tensor.detach()).to("cpu", copy=True)
        return cut_like(tensor, part, self.mesh)

    def empty(self, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return a tensor of which this process has the part that it trains, as `shard` cuts it."""
        from torch.distributed import tensor as distributed_tensor

        if not size:
            return torch.empty(size, dtype=dtype)
        return distributed_tensor.empty(
            size,
            dtype=dtype,
            device_mesh=self.mesh,
            placements=[placement(size, self.size)],
        )

    def gather(self, value: Any) -> list[Any]:
        """Gather a value from every process, by rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.process_group)
        return values

    def first_fault(self, attempt: Callable[[], str | None]) -> str | None:
        """Call `attempt` on every process; return the first that is wrong, the same on each."""
        try:
            fault = attempt()
        except (RunFailed, UserError, WeightsError, OSError) as error:
            fault = str(error)
        except Exception as error:
            fault = kind_and_line(error)
        return next((text for text in self.gather(fault) if text), None)


# ---- writing ------------------------------------------------------------------------------------


class Saving(threading.Thread):
    """Writes one checkpoint; `join`, then look at `fault`."""

    def __init__(
        self, group: CheckpointGroup, content: dict[str, Any], path: Path, keep: int
    ) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.group, self.path, self.keep = group, path, keep
        self.parts: dict[str, Tensor] = {}
        self.record = layout.replaced(content, self._taken_apart)
        hidden = [unfinished_name(path) if group.rank == 0 else ""]
        dist.broadcast_object_list(hidden, src=0, group=group.process_group)
        self.unfinished = Path(hidden[0])
        self.fault: str | None = None
        """Why it was not written, the same on every process."""

    def _taken_apart(self, key: str, value: Any) -> Any:
        """Copy what the steps change: shards into `parts`, the rest into the record."""
        if not isinstance(value, Tensor):
            return list(value) if isinstance(value, list) else value
        if not hasattr(value, "to_local"):
            return value.detach().to("cpu", copy=True)
        self.parts[key] = self.group.copied(value)
        return layout.SHARDED

    def run(self) -> None:
        self.fault = self._run()
        self.parts, self.record = {}, {}
        if self.fault and self.group.rank == 0:
            shutil.rmtree(self.unfinished, ignore_errors=True)

    def _run(self) -> str | None:
        """Write the folder and give it its name; returns what went wrong anywhere."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        def write_part() -> None:
            writer = FileSystemWriter(str(self.unfinished), sync_files=True, thread_count=1)
            try:
                save(self.parts, storage_writer=writer, process_group=self.group.process_group)
            except CheckpointException as error:  # of each process that failed
                causes = {kind_and_line(cause) for cause, _ in error.failures.values()}
                raise RunFailed("; ".join(sorted(causes))) from error

        fault = self.group.first_fault(write_part)
        if fault is not None:
            return fault
        sums: dict[str, tuple[int, int]] = {}

        def add_sums() -> None:
            names = [path.name for path in self.unfinished.glob(f"__{self.group.rank}_*")]
            names += [layout.METADATA] if self.group.rank == 0 else []
            sums.update({name: layout.checksum(self.unfinished / name) for name in names})

        fault = self.group.first_fault(add_sums)
        files = {name: found for part in self.group.gather(sums) for name, found in part.items()}
        if fault is not None:
            return fault
        return self.group.first_fault(lambda: self._finish(files))

    def _finish(self, files: dict[str, tuple[int, int]]) -> None:
        """Write the record, give the folder its name and delete old ones; on rank 0."""
        if self.group.rank:
            return
        with atomic_write(self.unfinished / layout.RECORD) as file:
            torch.save({**self.record, layout.FILES: files}, file)
        checkpoint.put_folder_in_place(self.unfinished, self.path)
        checkpoint.prune(self.path.parent, keep=self.keep)


@dataclass(kw_only=True)
class ShardedCheckpointWriter(CheckpointWriter):
    """Writes the checkpoints of a sharded run, each as a folder, and reads them."""

    group: CheckpointGroup
    saving: Saving | None = field(default=None, init=False)
    """The checkpoint that is being written."""

    def write(self, state: TrainingState) -> Path:
        """Refuse to write a checkpoint on one process, which has only its part of the state."""
        raise RunFailed(
            "the state after the last step was not saved: that takes all processes of a sharded "
            f"run. {checkpoint.what_is_left(self.folder)}"
        )

    def save(self, state: TrainingState, world: World) -> Path:
        """Begin to write a checkpoint on every process; returns its path, see `finish`.

        Raises NotFinite, and writes nothing, where the state holds a NaN or an infinity.
        """
        self.finish(world)
        epochs, rest = divmod(state.step, self.steps_per_epoch)
        path = self.folder / checkpoint.file_name(epochs, rest, layout.SUFFIX)
        if path == self.last_good:  # a run is a function of the step: this is the same state
            return path
        content = self.record.content(state, epoch=epochs)
        fault = self.group.first_fault(lambda: self.numbers.fault(content))
        if fault is not None:
            raise NotFinite(
                f"the state after step {state.step} was not saved, {fault}. "
                f"{self.advice.text(self.last_good)}"
            )
        self.saving = Saving(self.group, content, path, self.keep)
        self.saving.start()
        return path

    def finish(self, world: World) -> None:
        """Wait until the checkpoint that is being written is on the disk.

        Raises RunFailed, on every process, where it could not be written.
        """
        if self.saving is None:
            return
        self.saving.join()
        saving, self.saving = self.saving, None
        if saving.fault is not None:
            raise RunFailed(
                f"cannot write {saving.path}: {saving.fault}. "
                f"{checkpoint.what_is_left(self.folder)}"
            )
        self.last_good = saving.path

    # ---- reading ------------------------------------------------------------------------

    def read(self, path: Path, world: World) -> dict[str, Any] | str:
        """Read a checkpoint to resume from: of a folder, each process its part."""
        if not world.run_on_main(layout.is_sharded, path):
            return super().read(path, world)
        group = self.group
        found: list[dict[str, Any]] = []

        def read_part() -> str | None:
            record = layout.read_record(path)
            own = layout.file_names(record)[group.rank :: group.size]
            fault = layout.files_fault(path, record, own)
            if fault is not None:
                return f"{path}: {fault}"
            found.append(record)
            return None

        fault = group.first_fault(read_part)
        if fault is not None:
            return f"cannot read checkpoint {fault}"

        def read_tensors() -> str | None:
            content = layout.fill(path, found[0], group.empty)
            checkpoint.require_parts(content, path)
            found[0] = content
            fault = self.numbers.fault(content)
            return None if fault is None else f"{path}: {fault}"

        return group.first_fault(read_tensors) or found[0]


def sharded(writer: CheckpointWriter, world: World) -> ShardedCheckpointWriter:
    """Return a writer with the same settings for a sharded run; every process calls this."""
    settings = {field.name: getattr(writer, field.name) for field in fields(writer)}
    return ShardedCheckpointWriter(**settings, group=CheckpointGroup(world))
