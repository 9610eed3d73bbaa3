"""All jobs of a call, each done once: what earlier calls did is kept, and what another call in the
same folder is doing right now is left to it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from evidence_rows.action_sets import ActionSet
from evidence_rows.claims import each_settled
from evidence_rows.progress import Progress
from evidence_rows.results import Job, Result, ResultFiles
from evidence_rows.rows import Row
from hiera_video import cli
from hiera_video.errors import DecodeError, RunFailed, UserError


class _Place(NamedTuple):
    """Where a job is in the table."""

    action_set: str
    row: str
    part: str
    seed: int


@dataclass
class Work:
    """Each row on each part of each set with each seed."""

    rows: list[Row]
    sets: list[ActionSet]
    seeds: int
    kept: ResultFiles
    missing: list[str] = field(default_factory=list)
    """Sentences about rows that were left out."""
    _found: dict[_Place, Result | None] = field(default_factory=dict)
    """In the order of the table: what is done, by this call or another; None where nothing is."""
    _failed: set[str] = field(default_factory=set)
    """Rows that failed."""

    @property
    def results(self) -> list[Result]:
        """What is done, in the order of the table."""
        return [result for result in self._found.values() if result is not None]

    def run(self, progress: Progress) -> int:
        """Do what is not done yet; `results` grows. Returns the exit code.

        A row that fails is left, and the others go on: a night's work must not end with one run.
        Jobs that another call is doing come last: they are done by then, or are waited for.
        """
        jobs = list(self._jobs())
        self._found = {_place_of(job): None for _, job in jobs}
        progress.expect([(row.name, row.kind) for row, _ in jobs])

        def settle(pair: tuple[Row, Job], seconds: float) -> bool:
            settled = self._settled(*pair, progress, seconds)
            if not settled:
                progress.job_later()
            return settled

        each_settled(jobs, settle)
        return cli.FAILED if self._failed else cli.DONE

    def _jobs(self) -> Iterator[tuple[Row, Job]]:
        for row in self.rows:
            if row.missing:
                packages = " ".join(row.missing)
                self.missing.append(f"{row.name}: not installed: pip install {packages}")
                print(f"note: {self.missing[-1]}", file=sys.stderr)
        for action_set in self.sets:
            for row in self.rows:
                for part in action_set.parts:
                    for seed in range(self.seeds):
                        yield row, Job(row.name, action_set, part, seed, row.settings(seed))

    def _settled(self, row: Row, job: Job, progress: Progress, seconds: float) -> bool:
        """Find the result of a job, or do it, or drop it.

        Returns False where another call is still doing it, or its twin, after so many seconds.
        """
        if self._is_kept(job, progress):
            return True
        twin = _place_of(job)._replace(row=row.twin(job.part))
        same = self._found.get(twin)
        if same is not None:
            self._found[_place_of(job)] = replace(same, row=job.row, settings=job.settings)
            progress.job_kept(f"{job.text}: {same.accuracy():.1f} %, that of {twin.row}")
            return True
        if row.missing or row.name in self._failed:
            progress.job_dropped()
            return True
        if twin in self._found and twin.row not in self._failed:
            return False
        if seconds:
            progress.say(f"{job.text}: waiting for the call that is at it")
        with self.kept.claimed(job, wait=seconds) as mine:
            if not mine:
                return False
            # it may have been done while it was waited for
            if not self._is_kept(job, progress):
                self._do(row, job, progress)
        return True

    def _is_kept(self, job: Job, progress: Progress) -> bool:
        """Whether the result of a job is there from another call."""
        result = self.kept.find(job)
        if result is None:
            return False
        self._found[_place_of(job)] = result
        progress.job_kept(f"{job.text}: {result.accuracy():.1f} %")
        return True

    def _do(self, row: Row, job: Job, progress: Progress) -> None:
        began = time.monotonic()
        try:
            answers = row.run(job)
        except (RunFailed, DecodeError, UserError) as error:
            self._failed.add(row.name)
            self.missing.append(f"{row.name} is unfinished: {job.text} failed")
            progress.job_dropped()
            progress.say(f"error: {job.text}: {error}")
            return
        result = Result(
            row=row.name,
            action_set=job.action_set.name,
            part=job.part.name,
            seed=job.seed,
            videos=job.action_set.names_of(job.part.test),
            labels=job.part.test.labels.tolist(),
            predicted=answers.predicted,
            chosen=answers.chosen,
            seconds=round(time.monotonic() - began, 1),
            settings=job.settings,
        )
        self.kept.write(job, result)
        self._found[_place_of(job)] = result
        text = f"{job.text}: {result.accuracy():.1f} % ({result.seconds:.0f} s)"
        progress.job_done(text, result.seconds)


def _place_of(job: Job) -> _Place:
    return _Place(job.action_set.name, job.row, job.part.name, job.seed)
