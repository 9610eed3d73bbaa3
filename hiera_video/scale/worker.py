"""What each process does: blocks of rows, one after the other, each written when it is done.

Light to import, so that a process says early that it is there; the labeller imports what it needs.
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hiera_video.errors import RunFailed
from hiera_video.scale.blocks import JobFolder, table_of
from hiera_video.scale.outcome import Equipment, Outcome
from hiera_video.scale.rows import Row

BLOCK_TRIES = 2
"""Processes that may end while they have a block; the next one does its rows one by one."""

ROW_TRIES = 3
"""Processes that may end while they have that one row; then it is an error."""


@dataclass(frozen=True)
class Done:
    """A block that is done."""

    block: int
    rows: int
    """That were done now; 0: another process had done them before it ended."""
    worker: str
    """"host:process"."""
    seconds: float
    """Since the block before, or since the call."""


class BlockWorker:
    """Does blocks of a job. Ray keeps one in each of its actors; it needs no Ray.

    Raises RunFailed where the folder of the job is not there, and what loading the model raises.
    """

    def __init__(self, folder: str, equipment: Equipment) -> None:
        from hiera_video import cli

        cli.spin_briefly()  # before torch is imported
        self.folder = JobFolder(folder)
        job = self.folder.job()
        if job is None:
            raise RunFailed(
                f"there is no job in {folder} on {socket.gethostname()}; all machines must see the "
                "folder of --out under the same name"
            )
        self.job = job
        module, _, name = equipment.maker.partition(":")
        self.label = getattr(importlib.import_module(module), name)(job, equipment)
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def __call__(self, blocks: Sequence[int]) -> Iterator[Done]:
        """Do blocks, and yield each when its file is written. What is there already is left."""
        pending = deque(blocks)
        while pending:
            if self.folder.is_done(self.job, pending[0]):
                yield Done(pending.popleft(), 0, self.name, 0.0)
            elif self._is_suspect(pending[0]):
                yield self._one_by_one(pending.popleft())
            else:
                yield from self._stream(pending)

    def _is_suspect(self, block: int) -> bool:
        return self.folder.tries(self.job, block) >= BLOCK_TRIES

    def _stream(self, pending: deque[int]) -> Iterator[Done]:
        """Do blocks as one stream of rows, so that the next one is read while one is labelled, up
        to one that is done or to be done row by row."""
        begun: deque[tuple[int, list[Row]]] = deque()

        def feed() -> Iterator[Row]:
            while pending and not self.folder.is_done(self.job, pending[0]):
                if self._is_suspect(pending[0]):
                    return
                block = pending.popleft()
                self.folder.begin(self.job, block)
                begun.append((block, self.folder.rows(self.job, block)))
                yield from begun[-1][1]

        found: list[Any] = []
        before = time.monotonic()
        for outcome in self.label(feed()):
            found.append(outcome)
            block, rows = begun[0]
            if len(found) == len(rows):
                begun.popleft()
                self._write(block, rows, found)
                yield Done(block, len(found), self.name, time.monotonic() - before)
                found, before = [], time.monotonic()
        if begun:
            raise RunFailed(f"no results for {len(begun)} blocks: a bug, please report it")

    def _one_by_one(self, block: int) -> Done:
        """Do the rows of a block that ended processes: the one that does it again is an error."""
        before = time.monotonic()
        self.folder.begin(self.job, block)
        rows = self.folder.rows(self.job, block)
        found: list[Any] = []
        for row in rows:
            tries = self.folder.begin(self.job, block, row.number)
            if tries >= ROW_TRIES:
                reason = f"the process that worked on it ended, {tries} times: out of memory?"
                found.append(Outcome(error=reason))
                continue
            found += self.label(iter([row]))
            self.folder.end_row(self.job, block, row.number)
        self._write(block, rows, found)
        return Done(block, len(found), self.name, time.monotonic() - before)

    def _write(self, block: int, rows: Sequence[Row], found: Sequence[Any]) -> None:
        self.folder.write_block(self.job, block, table_of(self.job, rows, found))
