"""The story of a job: what is not done is cut into tasks, actors do them, parts are merged."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hiera_video.cli import printable
from hiera_video.errors import RunFailed, UserError
from hiera_video.scale.blocks import Counts, JobFolder
from hiera_video.scale.cluster import Actors
from hiera_video.scale.job import Job
from hiera_video.scale.outcome import Equipment
from hiera_video.scale.worker import BlockWorker, Done

SILENCE = 60.0
"""Seconds without a row after which the command says what it waits for."""

TOLD_ROWS = 16
"""Rows of small blocks of which an actor tells together: a table that Ray passes on costs some ten
milliseconds."""

MOST_TASKS = 20_000
"""Of Ray, each of them an object in its store."""

STARTS = 3
"""Times that Ray may fail before the first block is done."""

Say = Callable[[str], None]


# ---- tasks --------------------------------------------------------------------------------------


def tasks_of(blocks: Sequence[int], actors: int) -> list[list[int]]:
    """Cut blocks into tasks: long ones first, so that reading ahead is seldom cut off, and short
    ones at the end, so that all actors end together.

    Each takes its share of a quarter of what is left ("guided" scheduling of loops).
    """
    least = -(-len(blocks) // MOST_TASKS)
    tasks = []
    first = 0
    while first < len(blocks):
        count = max(least, (len(blocks) - first) // (4 * actors), 1)
        tasks.append(list(blocks[first : first + count]))
        first += count
    return tasks


class _Actor:
    """What Ray keeps in an actor: a `BlockWorker` whose blocks travel as small tables."""

    def __init__(self, folder: str, equipment: Equipment) -> None:
        # Processes that an actor starts would run Ray's own script again, which imports all of Ray:
        # seconds and memory for each one that replaces a crashed reader.
        vars(sys.modules["__main__"]).pop("__file__", None)
        self._worker = BlockWorker(folder, equipment)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        # A row for each: Ray would cut longer tables. How many they are follows from the task,
        # because Ray counts them when a task is done again.
        together = max(1, TOLD_ROWS // self._worker.job.block_rows)
        for blocks in batch["blocks"]:
            told: list[Done] = []
            for number, done in enumerate(self._worker([int(block) for block in blocks]), 1):
                told.append(done)
                if len(told) == together or number == len(blocks):
                    yield {"told": [json.dumps([dataclasses.astuple(one) for one in told])]}
                    told = []


def ray_blocks(
    folder: JobFolder, tasks: Sequence[Sequence[int]], actors: Actors, equipment: Equipment
) -> Iterator[Done]:
    """Have Ray's actors do tasks; yield each block when it is done, in any order.

    Raises RunFailed where an actor fails for good.
    """
    import ray
    from ray.exceptions import RayError

    work = (str(folder.path.resolve()), tasks, actors, equipment)
    begun = False
    for tries_left in reversed(range(STARTS)):
        try:
            # The driver of Ray Data must be in the cluster; a client (ray://) is not.
            blocks = _from_inside(*work) if ray.util.client.ray.is_connected() else _blocks(*work)
            for done in blocks:
                begun = True
                yield done
            return
        except (RayError, ValueError, RuntimeError, OSError) as error:
            # Where two threads of Ray Data make its own helpers at once, in the first job of a
            # cluster, one of the two is cancelled: "The actor never ran".
            explained = _explained(error)
            if begun or not tries_left or not isinstance(explained, RayGaveUp):
                raise explained from error
            time.sleep(1)


def _blocks(
    folder: str, tasks: Sequence[Sequence[int]], actors: Actors, equipment: Equipment
) -> Iterator[Done]:
    """The blocks, from a process in the cluster; errors are Ray's."""
    import logging

    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # a block of one row is reported when it is done, not when the whole task ends
    context.target_max_block_size = 1
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    rows = ray.data.from_items(
        [{"blocks": list(task)} for task in tasks], override_num_blocks=len(tasks)
    )
    done = rows.map_batches(
        _Actor,
        fn_constructor_args=(folder, equipment),
        batch_size=1,  # one task: with GPUs Ray Data takes no None
        compute=ray.data.ActorPoolStrategy(size=actors.count, max_tasks_in_flight_per_actor=2),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
    )
    for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
        for told in batch["told"].tolist():
            yield from (Done(*values) for values in json.loads(told))


class _Driver:
    """What a client keeps in the cluster, to ask it for one block after the other."""

    def __init__(
        self, folder: str, tasks: Sequence[Sequence[int]], actors: Actors, equipment: Equipment
    ) -> None:
        self._blocks = _blocks(folder, tasks, actors, equipment)

    def next(self) -> Done | None:
        """The next block that is done; None after the last."""
        return next(self._blocks, None)


def _from_inside(
    folder: str, tasks: Sequence[Sequence[int]], actors: Actors, equipment: Equipment
) -> Iterator[Done]:
    """The blocks, through a driver in the cluster. It ends with this process."""
    import ray

    driver = ray.remote(num_cpus=0)(_Driver).remote(folder, tasks, actors, equipment)
    while (done := ray.get(driver.next.remote())) is not None:
        yield done


class RayGaveUp(RunFailed):
    """Ray failed, and not what it ran."""


def _explained(error: BaseException) -> Exception:
    """The error of an actor as its own process would have told it."""
    found: BaseException | None = error
    while found is not None:
        cause = getattr(found, "cause", None)
        for one in (found, cause):
            if isinstance(one, UserError | RunFailed):
                return type(one)(str(one.args[0])) if type(one) in (UserError, RunFailed) else one
        found = found.__cause__ or (cause if isinstance(cause, BaseException) else None)
    text = str(error).strip().splitlines() or [type(error).__name__]
    kept = "what is done is kept, and the same command goes on"
    for line in reversed(text):
        _, ours, reason = line.partition("UserError: ")
        if not ours:
            _, ours, reason = line.partition("RunFailed: ")
        if ours:
            return RunFailed(f"an actor cannot work: {reason.strip()}; {kept}")
    return RayGaveUp(f"Ray gave up: {text[-1].strip()}; {kept}")


# ---- what is told meanwhile ---------------------------------------------------------------------


@dataclass
class Tally:
    """What the actors did in this run."""

    rows: int = 0
    by_worker: Counter[str] = field(default_factory=Counter)
    first: float | None = None
    """When the first block was done, by the monotonic clock."""
    first_rows: int = 0
    last: float = field(default_factory=time.monotonic)

    def add(self, done: Done) -> None:
        """Count a block."""
        self.last = time.monotonic()
        if not done.rows:
            return
        if self.first is None:
            self.first, self.first_rows = self.last, done.rows
        self.rows += done.rows
        self.by_worker[done.worker] += done.rows

    def lines(self, actors: int, seconds: float) -> list[str]:
        """How fast it was, and how evenly the rows were spread."""
        steady = self.last - (self.last if self.first is None else self.first)
        rate = (self.rows - self.first_rows) / steady if steady > 0 else 0.0
        said = f"{self.rows / max(seconds, 1e-9):.1f} rows/s over {seconds:.0f} s with the start"
        if rate:
            said += f", {rate:.1f} after it"
        counts = sorted(self.by_worker.values())
        if not counts:
            return [said]
        mean = sum(counts) / actors
        spread = f"{actors} actors, {len(counts)} processes: {counts[0]:,} to {counts[-1]:,} rows"
        return [said, f"{spread}, skew {counts[-1] / mean:.2f} (the most over the mean)"]


class Watchdog:
    """Says what the command waits for when no row has come for `SILENCE`. A context manager."""

    def __init__(self, waits_for: Callable[[], str], tally: Tally, say: Say) -> None:
        self._waits_for, self._tally, self._say = waits_for, tally, say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watches for rows")

    def __enter__(self) -> Watchdog:
        self._tally.last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        told = self._tally.last
        while not self._over.wait(min(SILENCE / 4, 5.0)):
            since = max(told, self._tally.last)
            now = time.monotonic()
            if now - since >= SILENCE:
                told = now
                with contextlib.suppress(Exception):  # a message must not end the work
                    self._say(
                        f"no row for {now - self._tally.last:.0f} s; waiting for "
                        f"{self._waits_for()}"
                    )


def waiting_for(folder: JobFolder, job: Job, actors: Actors, began: float) -> str:
    """What an idle job waits for: the rows in work, or room for its actors."""
    blocks = folder.in_work(began)
    if blocks:
        rows = folder.rows(job, blocks[0])
        more = f" and {len(blocks) - 1} other blocks" if len(blocks) > 1 else ""
        return (
            f"rows {rows[0].number} to {rows[-1].number} ({printable(rows[0].path)}, ...){more}: "
            "slow videos, a large model, or a process that hangs"
        )
    import ray

    def told(resources: dict[str, float]) -> str:
        return f"{resources.get('CPU', 0.0):g} CPU, {resources.get('GPU', 0.0):g} GPU"

    return (
        f"its actors: none has begun a row. {actors.count} of {actors.cpus:g} CPU, "
        f"{actors.gpus:g} GPU each are asked for; free now: {told(ray.available_resources())} of "
        f"{told(ray.cluster_resources())}. They load the model, or wait for room"
    )


# ---- the job ------------------------------------------------------------------------------------


Work = Callable[[Sequence[Sequence[int]]], Iterator[Done]]
"""Does tasks, and yields the blocks that are done."""


def run_job(
    folder: JobFolder,
    job: Job,
    work: Work,
    facts: dict[str, Any],
    on_done: Callable[[Done], None],
    actors: int,
) -> None:
    """Do all blocks that are not done, and merge each part when its last block is there.

    facts: for the metadata of the parts of this run. Raises what `work` raises; what is done stays.
    """
    left = {part: set(missing) for part, missing in folder.todo(job)}
    for part in [part for part, missing in left.items() if not missing]:
        folder.merge(job, part, facts)
        del left[part]
    todo = [block for missing in left.values() for block in sorted(missing)]
    if todo:
        for done in work(tasks_of(todo, actors)):
            on_done(done)
            part = job.part_of(done.block)
            if part in left:  # else it is merged: the block was done again by a second process
                left[part].discard(done.block)
                if not left[part]:
                    folder.merge(job, part, facts)
                    del left[part]
    if left:
        raise RunFailed(
            f"{sum(map(len, left.values()))} blocks came back from no actor; the same command goes "
            "on with them"
        )
    folder.clean(job)


def counts_of(folder: JobFolder, job: Job) -> Counts:
    """What is in all finished parts."""
    total = Counts()
    for counts in folder.counts(job):
        total.add(counts)
    return total


def versions() -> dict[str, str]:
    """What made the rows, for the metadata."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from hiera_video import __version__

    found = {"hiera_video": __version__, "python": platform.python_version()}
    for name in ("torch", "ray", "pyarrow", "av", "torchcodec", "decord"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def error_lines(counts: Counts, most: int = 10) -> list[str]:
    """The reasons of errors, the most frequent ones first."""
    lines = [f"  {n:,}  {printable(reason)[:160]}" for reason, n in counts.errors.most_common(most)]
    others = len(counts.errors) - most
    return [*lines, f"  and {others:,} other reasons"] if others > 0 else lines


def absolute(name: str) -> str:
    """A file by its whole path, anything else as it is: actors work in another folder."""
    return os.path.abspath(name) if os.path.exists(name) else name
