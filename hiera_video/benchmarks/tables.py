"""The output of a benchmark: a table on the terminal, one for the docs, JSON."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from hiera_video import files

Row = dict[str, Any]

OUTPUTS = ("--json", "--markdown", "--png")
"""Options that name a file to write."""


@dataclass(frozen=True)
class Column:
    """One column: its title, and how a row shows it (a key, or a function of the row)."""

    title: str
    show: str | Callable[[Row], Any]
    form: str = ""
    """Format of the value, such as ".1f"; a value of None is an empty cell."""

    def text(self, row: Row) -> str:
        value = row.get(self.show) if isinstance(self.show, str) else self.show(row)
        return "" if value is None else format(value, self.form)


def spread(row: Row) -> str | None:
    """ "120-135": the fastest and the slowest measurement in milliseconds, or why there is none."""
    if "ms_min" not in row:
        return row.get("failed")
    digits = 0 if row["ms_min"] >= 100 else 1 if row["ms_min"] >= 10 else 2
    return f"{row['ms_min']:.{digits}f}-{row['ms_max']:.{digits}f}"


def percent(key: str) -> Callable[[Row], str | None]:
    """A share, in whole percent."""
    return lambda row: f"{100 * row[key]:.0f} %" if row.get(key) is not None else None


def mebibytes(key: str) -> Callable[[Row], str | None]:
    """Bytes, in MiB."""
    return lambda row: f"{row[key] / 2**20:,.0f}" if row.get(key) is not None else None


def of_table(table: str, key: str) -> Callable[[Row], Any]:
    """The value of a key in the rows of one table; None for the rows of others."""
    return lambda row: row.get(key) if row["table"] == table else None


TIMES = (
    Column("median ms", "ms", ".1f"),
    Column("min-max", spread),
)
"""The columns of every timed row."""


def cells_of(rows: Sequence[Row], columns: Sequence[Column]) -> list[list[str]]:
    """Titles and rows as text, without empty columns and rows."""
    lines = [[column.text(row) for column in columns] for row in rows]
    lines = [line for line in lines if any(line)]  # else a row of another table
    used = [i for i in range(len(columns)) if any(line[i] for line in lines)]
    return [[columns[i].title for i in used], *([line[i] for i in used] for line in lines)]


def print_table(rows: Sequence[Row], columns: Sequence[Column]) -> None:
    """Print a plain table."""
    cells = cells_of(rows, columns)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())


def markdown_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The table in Markdown."""
    cells = cells_of(rows, columns)
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]]) + "\n"


def facts_line(facts: dict[str, Any]) -> str:
    """The conditions in one line."""
    return ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None)


class Report:
    """Collects rows; when the block ends, however it ends, prints and writes what there is.

        with Report(args, facts=machine_facts(device), columns=COLUMNS) as report:
            report.rows += ...

    So an interrupt or an error loses nothing that was measured.

    Args:
        args: of the command line, with `json`, `markdown` and `command_line`, its words.
        facts: the conditions, see `machine.machine_facts`.
        columns: of the printed table; JSON gets every key of every row.
        more: columns of further tables of the same rows, where one would be too wide.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        *,
        facts: dict[str, Any],
        columns: Sequence[Column],
        more: Sequence[Sequence[Column]] = (),
    ) -> None:
        self.args, self.facts, self.tables = args, facts, (columns, *more)
        self.rows: list[Row] = []
        self.notes: list[str] = []
        """Sentences printed under the table."""
        self.record: dict[str, Any] = {}
        """Further entries for JSON, beside the rows."""

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.rows:
            return
        unfinished = None if error is None else str(error) or type(error).__name__
        if unfinished is not None:
            self.notes.append(f"unfinished ({unfinished}): this is what was measured so far")
        print(facts_line(self.facts))
        for columns in self.tables:
            print_table(self.rows, columns)
        for note in self.notes:
            print(note)
        self._write(unfinished)

    def _write(self, unfinished: str | None) -> None:
        if self.args.json is not None:
            record = {
                "command": self.args.command_line,
                "unfinished": unfinished,
                "machine": self.facts,
                **self.record,
                "notes": self.notes,
                "rows": self.rows,
            }
            _write_text(self.args.json, json.dumps(record, indent=1, default=_plain) + "\n")
        if self.args.markdown is not None:
            notes = "".join(f"\n{note}\n" for note in self.notes)
            command = shlex.join(without_outputs(self.args.command_line))
            tables = "\n".join(markdown_table(self.rows, columns) for columns in self.tables)
            _write_text(
                self.args.markdown,
                f"{facts_line(self.facts)}\n\n```\n{command}\n```\n\n{tables}{notes}",
            )


def without_outputs(words: Sequence[str]) -> list[str]:
    """A command line without the options that name output files."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word.split("=")[0] in OUTPUTS:
            skip = not skip and word in OUTPUTS
            continue
        kept.append(word)
    return kept


def _write_text(path: str, text: str) -> None:
    """Write a file, making its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)


def _plain(value: Any) -> Any:
    """Convert values that JSON does not know; for `json.dumps(default=...)`."""
    if isinstance(value, (torch.dtype, torch.device, Path)):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} in a benchmark's record")
