"""The folder of a job: what is to be done, what is done, and the result.

    DIR/part-00000.parquet ...          the result: rows in the order of the input
    DIR/_job.json                       what the job is; written once, when its input is there
    DIR/_input/part-00000.parquet ...   the rows to be done, one file for each part
    DIR/_unfinished/part-00003/000017.parquet    a finished block of a part that is not
    DIR/_lock                           held by the command that works on the job

Readers of Parquet pass over names with an underscore: the folder is a table of all finished parts.

The files themselves say what is done: a block is written in one step under a name that follows from
its number, with a content that follows from its rows. A block that is done twice (because its
process was killed between writing it and saying so) is one file all the same, and nothing can say
that a block is done which is not there. There is no list of finished rows that could be wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from hiera_video.errors import DataError, RunFailed, UserError
from hiera_video.features.parquet import parquet, stored_path
from hiera_video.files import atomic_write, explained, hold, remove_leftovers
from hiera_video.scale.job import Job, read_job
from hiera_video.scale.outcome import Outcome
from hiera_video.scale.rows import Row, Rows

JOB, COUNTS = b"hiera_video", b"hiera_video_counts"
"""In the metadata of a part: what the job is, and how many rows and errors the part has."""


class JobFolder:
    """The folder of a job."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    # ---- names

    @property
    def job_file(self) -> Path:
        """Says what the job is."""
        return self.path / "_job.json"

    @property
    def unfinished(self) -> Path:
        """Holds the blocks of parts that are not finished."""
        return self.path / "_unfinished"

    def part_file(self, part: int) -> Path:
        """A file of the result."""
        return self.path / f"part-{part:05d}.parquet"

    def input_file(self, part: int) -> Path:
        """The rows of a part that are to be done."""
        return self.path / "_input" / f"part-{part:05d}.parquet"

    def blocks_folder(self, part: int) -> Path:
        """Holds the finished blocks of a part."""
        return self.unfinished / f"part-{part:05d}"

    def block_file(self, job: Job, block: int) -> Path:
        """A finished block."""
        return self.blocks_folder(job.part_of(block)) / f"{block:06d}.parquet"

    # ---- the job

    def open(self) -> IO[Any]:
        """Create the folder if need be, and lock it until the file that is returned is closed.

        Raises UserError: another command works in it, or it holds other things.
        """
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = hold(self.path / "_lock")
        if lock is None:
            raise UserError(f"another command is writing {self.path}; wait for it, or end it")
        if not self.job_file.exists():
            own = {"_lock", "_input"}
            with os.scandir(self.path) as entries:
                others = sorted(e.name for e in entries if e.name not in own)
            if others:
                lock.close()
                raise UserError(
                    f"--out {self.path} holds other things ({others[0]!r}); name a new folder"
                )
        return lock

    def job(self) -> Job | None:
        """Read what the job is; None in a new folder."""
        return read_job(self.job_file)

    def write_input(self, part: int, rows: Rows) -> None:
        """Write the rows of a part that are to be done."""
        arrow, module = parquet()
        table = arrow.table(
            {
                "path": arrow.array(rows.paths, arrow.binary()),
                "start": arrow.array(rows.starts, arrow.float64()),
                "end": arrow.array(rows.ends, arrow.float64()),
            }
        )
        file_name = self.input_file(part)
        with explained(file_name):
            file_name.parent.mkdir(exist_ok=True)
        with atomic_write(file_name) as file:
            module.write_table(table, file, compression="zstd")

    def rows(self, job: Job, block: int) -> list[Row]:
        """The rows of a block."""
        part = job.part_of(block)
        table = _input_of(str(self.input_file(part)))
        numbers = job.rows_of(block)
        some = table.slice(numbers.start - part * job.part_rows, len(numbers)).to_pydict()
        found = zip(numbers, some["path"], some["start"], some["end"], strict=True)
        return [Row(n, os.fsdecode(path), start, end) for n, path, start, end in found]

    # ---- blocks

    def is_done(self, job: Job, block: int) -> bool:
        """Whether a block is there, by itself or in its part."""
        file = self.block_file(job, block)
        return file.exists() or self.part_file(job.part_of(block)).exists()

    def todo(self, job: Job) -> Iterator[tuple[int, list[int]]]:
        """Yield (part, its blocks that are not done) of each part that has no file yet.

        One listing of the folder, and one of each part that was begun.
        """
        parts = _names(self.path)
        begun = _names(self.unfinished)
        for part in range(job.parts):
            if self.part_file(part).name in parts:
                continue
            folder = self.blocks_folder(part)
            there = _names(folder) if folder.name in begun else frozenset[str]()
            missing = [b for b in job.blocks_of(part) if f"{b:06d}.parquet" not in there]
            yield part, missing

    def write_block(self, job: Job, block: int, table: Any) -> None:
        """Write a finished block."""
        _, module = parquet()
        file_name = self.block_file(job, block)
        with explained(file_name):
            file_name.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file_name) as file:
            module.write_table(table, file, compression="zstd")
        self.forget_tries(job, block)

    def merge(self, job: Job, part: int, facts: dict[str, Any]) -> Counts:
        """Make one file of the blocks of a part; returns what is in it.

        facts: of this run, for the metadata: versions, ...
        """
        arrow, module = parquet()
        tables = []
        for block in job.blocks_of(part):
            table = _read(self.block_file(job, block))
            if table.column("row").to_pylist() != list(job.rows_of(block)):
                raise RunFailed(
                    f"{self.block_file(job, block)} does not have the rows of its block; delete "
                    "it, and run the command again"
                )
            tables.append(table)
        whole = arrow.concat_tables(tables).combine_chunks()
        errors = Counter(e for e in whole.column("error").to_pylist() if e is not None)
        counts = Counts(whole.num_rows, errors)
        content = json.loads(job.to_json())
        metadata = {
            JOB: json.dumps({**content, **facts}, indent=1).encode(),
            COUNTS: json.dumps({"rows": counts.rows, "errors": errors}).encode(),
        }
        with atomic_write(self.part_file(part)) as file:
            module.write_table(whole.replace_schema_metadata(metadata), file, compression="zstd")
        self.drop_blocks(part)
        return counts

    def drop_blocks(self, part: int) -> None:
        """Delete the blocks of a part that has its file."""
        # A process of a run before that still lives may be writing one: it is deleted next time.
        shutil.rmtree(self.blocks_folder(part), ignore_errors=True)

    def clean(self, job: Job) -> None:
        """Delete what killed processes left: unfinished files, and blocks of finished parts."""
        remove_leftovers(self.path)
        for name in _names(self.unfinished):
            part = name.removeprefix("part-")
            if part.isdigit() and self.part_file(int(part)).exists():
                self.drop_blocks(int(part))
            else:
                remove_leftovers(self.unfinished / name)
        if all(not missing for _, missing in self.todo(job)):
            with contextlib.suppress(OSError):
                self.unfinished.rmdir()

    def counts(self, job: Job) -> Iterator[Counts]:
        """What is in each part that has its file, from its metadata."""
        _, module = parquet()
        arrow, _ = parquet()
        for part in range(job.parts):
            file = self.part_file(part)
            if not file.exists():
                continue
            try:
                content = json.loads(module.read_metadata(file).metadata[COUNTS])
                yield Counts(int(content["rows"]), Counter(content["errors"]))
            except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{file} cannot be read ({error}); delete it, and its rows are done again"
                ) from None

    # ---- tries: how often a block or a row was in work when its process was killed
    #
    # A byte is added when the work begins, and the file is deleted when it is done: its size is the
    # number of processes that did not live to finish it. Not flushed to the disk: what this must
    # outlive is a process, and flushing costs more than a small block.

    def begin(self, job: Job, block: int, row: int | None = None) -> int:
        """Note that a block, or one of its rows, is begun; returns how often it was before."""
        name = self._tries(job, block, row)
        with explained(name):
            name.parent.mkdir(parents=True, exist_ok=True)
            with open(name, "ab") as file:
                before = file.tell()
                file.write(b"x")
        return before

    def tries(self, job: Job, block: int) -> int:
        """How often a block was begun and not done."""
        try:
            return self._tries(job, block, None).stat().st_size
        except FileNotFoundError:
            return 0

    def end_row(self, job: Job, block: int, row: int) -> None:
        """Note that the row that was begun is done."""
        with contextlib.suppress(OSError):
            self._tries(job, block, row).unlink()

    def forget_tries(self, job: Job, block: int) -> None:
        """Forget how often a block was tried."""
        with contextlib.suppress(OSError):
            self._tries(job, block, None).unlink()

    def forget_all_tries(self) -> None:
        """Forget all: the user ended the processes."""
        for file in self.unfinished.glob("*/*.try*"):
            with contextlib.suppress(OSError):
                file.unlink()

    def in_work(self, since: float) -> list[int]:
        """The blocks that are begun and not done, since a time of the clock of the folder."""
        found = []
        for file in self.unfinished.glob("*/*.try"):
            with contextlib.suppress(OSError):
                if file.stat().st_mtime >= since:
                    found.append(int(file.stem))
        return sorted(found)

    def _tries(self, job: Job, block: int, row: int | None) -> Path:
        name = f"{block:06d}.try" if row is None else f"{block:06d}.row-{row}.try-row"
        return self.blocks_folder(job.part_of(block)) / name


class Counts:
    """Rows, and errors by their reason."""

    def __init__(self, rows: int = 0, errors: Counter[str] | None = None) -> None:
        self.rows = rows
        self.errors: Counter[str] = Counter(errors or ())

    def add(self, other: Counts) -> None:
        """Add those of another part."""
        self.rows += other.rows
        self.errors += other.errors

    @property
    def failed(self) -> int:
        """Rows with an error."""
        return sum(self.errors.values())


@lru_cache(maxsize=1)
def _input_of(file: str) -> Any:
    """The rows of one part: the blocks that a process does are neighbours."""
    return _read(file)


def _read(file: str | Path) -> Any:
    arrow, module = parquet()
    try:
        # one file, not a data set whose folders' names could become columns
        return module.ParquetFile(file).read()
    except FileNotFoundError:
        raise RunFailed(
            f"{file} is not there; is its folder deleted, or not shared by all machines?"
        ) from None
    except (arrow.ArrowException, OSError) as error:
        raise RunFailed(
            f"{file} is damaged ({error}); delete it, and run the command again"
        ) from None


def _names(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries)
    except FileNotFoundError:
        return frozenset()


# ---- rows of the result -------------------------------------------------------------------------


def table_of(job: Job, rows: Sequence[Row], outcomes: Iterable[Outcome]) -> Any:
    """The table of finished rows, one outcome for each."""
    arrow, _ = parquet()
    found = list(outcomes)
    if len(found) != len(rows):
        raise RunFailed(f"{len(found)} results for {len(rows)} rows: a bug, please report it")
    facts = [outcome.facts for outcome in found]
    columns = {
        "row": arrow.array([row.number for row in rows], arrow.int64()),
        "path": arrow.array([stored_path(row.path) for row in rows], arrow.string()),
        "start": arrow.array([row.start for row in rows], arrow.float64()),
        "end": arrow.array([row.end for row in rows], arrow.float64()),
        **(_vectors(job, found) if job.length else _labels(found)),
        "decoder": arrow.array([f and f.decoder for f in facts], arrow.string()),
        "frames": arrow.array([f and f.frames for f in facts], arrow.int64()),
        "seconds": arrow.array([f and f.seconds for f in facts], arrow.float64()),
        "error": arrow.array([outcome.error for outcome in found], arrow.string()),
    }
    return arrow.table(columns)


def _labels(found: Sequence[Outcome]) -> dict[str, Any]:
    arrow, _ = parquet()
    names = [None if x.labels is None else [label.label for label in x.labels] for x in found]
    scores = [None if x.labels is None else [label.score for label in x.labels] for x in found]
    return {
        "labels": arrow.array(names, arrow.list_(arrow.string())),
        "scores": arrow.array(scores, arrow.list_(arrow.float32())),
    }


def _vectors(job: Job, found: Sequence[Outcome]) -> dict[str, Any]:
    import numpy as np

    arrow, _ = parquet()
    number = np.float16 if job.settings.stored_as == "fp16" else np.float32
    # NaN, not null: older readers of Parquet fail on a null among lists of a fixed size
    numbers = np.full((len(found), job.length), np.nan, dtype=number)
    for line, outcome in zip(numbers, found, strict=True):
        if outcome.vector is not None:
            line[:] = outcome.vector
    flat = arrow.array(numbers.reshape(-1))
    return {"vector": arrow.FixedSizeListArray.from_arrays(flat, job.length)}
