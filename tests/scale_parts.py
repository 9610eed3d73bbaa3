"""Labellers for the tests of data sets, in place of a model: light, so that actors start fast.

Their names are given as `Equipment.maker`; processes of Ray import this file.
"""

from __future__ import annotations

import os
import signal
import time

from hiera_video.errors import RunFailed
from hiera_video.scale.outcome import Outcome


class Named:
    """A stand-in for a label."""

    def __init__(self, label, score):
        self.label, self.score = label, score


def outcome(row):
    """What becomes of a row follows from the row alone."""
    if "bad" in row.path:
        return Outcome(error="cannot be read")
    return Outcome(labels=[Named(f"label of {row.path}", (row.number % 97) / 97)])


def make_quick(job, equipment):
    return lambda rows: map(outcome, rows)


def make_sleeping(job, equipment):
    """A model that takes a fixed time for a row, and no processor."""
    seconds = float(os.environ.get("SLEEP_A_ROW", "0.2"))

    def label(rows):
        for row in rows:
            time.sleep(seconds)
            yield outcome(row)

    return label


def make_deadly(job, equipment):
    """Ends its process at rows that are called deadly, as the system does where memory is short."""

    def label(rows):
        for row in rows:
            if "deadly" in row.path:
                os.kill(os.getpid(), signal.SIGKILL)
            yield outcome(row)

    return label


def make_failing(job, equipment):
    raise RunFailed("the model does not fit into the memory of this card")
