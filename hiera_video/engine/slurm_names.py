"""Slurm's compressed lists: names of machines, and tasks on each of them.

hosts("node[001-003,7]-ib,login")     node001-ib node002-ib node003-ib node7-ib login
tasks_on_nodes("4(x2),3")             4 4 3
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

MOST_HOSTS = 1_000_000
"""Longer ranges are mistakes, and would fill the memory."""

_PIECE = re.compile(r"\[([^\[\]]*)\]|([^\[\],]+)|(,)")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def hosts(nodelist: str) -> list[str]:
    """Return the machines of SLURM_JOB_NODELIST, in its order; ValueError where it is none."""
    found: list[str] = []
    for name in _split(nodelist):
        pieces = [_expanded(group) if group else [text] for group, text in name]
        found += map("".join, itertools.islice(itertools.product(*pieces), MOST_HOSTS + 1))
        if len(found) > MOST_HOSTS:
            raise ValueError(f"{nodelist!r} names more than {MOST_HOSTS} machines")
    if not found:
        raise ValueError(f"{nodelist!r} names no machine")
    return found


def _split(nodelist: str) -> Iterator[list[tuple[str, str]]]:
    """Yield each name of a list as its pieces: (what brackets hold, "") or ("", text)."""
    name: list[tuple[str, str]] = []
    end = 0
    for piece in _PIECE.finditer(nodelist):
        if piece.start() != end:
            break
        group, text, comma = piece.groups()
        if group == "":
            break
        end = piece.end()
        if not comma:
            name.append((group or "", text or ""))
        elif name:
            yield name
            name = []
        else:
            break
    if end != len(nodelist) or not name:
        raise ValueError(f"{nodelist!r} is not a list of machines as Slurm writes it")
    yield name


def _expanded(group: str) -> list[str]:
    """Return the numbers of `001-003,7`, with their leading zeros."""
    found: list[str] = []
    for part in group.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f"[{group}] is not a range of numbers")
        first, last = match[1], match[2] or match[1]
        count = int(last) - int(first) + 1
        if not 0 < count <= MOST_HOSTS:
            raise ValueError(f"[{group}] is not a range of numbers")
        found += [f"{int(first) + i:0{len(first)}d}" for i in range(count)]
    return found


def tasks_on_nodes(text: str) -> list[int]:
    """Return how many tasks each machine has, of SLURM_TASKS_PER_NODE; ValueError for others."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None or int(match[2] or 1) > MOST_HOSTS:
            raise ValueError(f"{text!r} is not a number of tasks for each machine")
        found += [int(match[1])] * int(match[2] or 1)
    return found
