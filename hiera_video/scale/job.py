"""What a job is: its rows, what they become, and how they are cut into blocks and parts.

A block is what is written at once, by one process: a kill costs a block and no more. A part is a
file of the result: many blocks, so that ten million rows are not a million files. Both are
arithmetic: row r belongs to block r // block_rows and to part r // part_rows, whoever works on it
and however often the job is begun.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hiera_video.errors import DataError, UserError
from hiera_video.files import sha256_of, write_text

FORMAT = "hiera_video dataset/1"

LABELS, FEATURES = "labels", "features"

NOT_COMPARED = ("weights", "labels")
"""Names of files, which may lie elsewhere; their hashes are compared."""

BUNDLED = Path(__file__).resolve().parent.parent / "bundled"

MOST_PART_ROWS, MOST_BLOCK_ROWS = 65_536, 256
PART_BYTES = 64 << 20
"""Of the vectors of a part, which are in memory when its blocks are merged."""

BLOCKS_OF_AN_ACTOR = 100
"""At least, as long as blocks have rows to spare: what is in work when a job is killed is then less
than a percent of it."""


@dataclass(frozen=True)
class Settings:
    """All that a row of the result depends on, besides its video."""

    task: str
    """"labels" or "features"."""
    model: str
    """Registered name."""
    weights: str
    """As they were named."""
    weights_sha256: str
    """Of the file of weights."""
    views: tuple[int, int]
    """Clips in time x crops in space."""
    computed_in: str
    """Number format of the forward pass: "fp32", "bf16" or "fp16"."""
    decoder: str
    """As asked for: "auto", "pyav", ..."""
    top_k: int = 0
    """Labels of a row; 0: it has a vector."""
    labels: str = ""
    """The file of class names, or the name of a list; empty: the checkpoint's."""
    labels_sha256: str = ""
    """Of these names."""
    layer: str = ""
    """Layer that vectors are read of, as it was asked for; empty: the usual one."""
    pool: str = ""
    stored_as: str = ""
    """Number format of vectors in the file: "fp32" or "fp16"."""


@dataclass(frozen=True)
class Job:
    """A data set and what becomes of it."""

    settings: Settings
    source: str
    """The input, as it was named."""
    root: str
    """Folder that relative paths of the input are relative to."""
    rows: int
    fingerprint: str
    """Hash of all rows of the input and their order."""
    block_rows: int
    part_rows: int
    """A whole number of blocks."""
    asked: dict[str, str]
    """The options that the settings follow from."""
    length: int = 0
    """Numbers of a vector; 0: rows have labels."""

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-self.rows // self.block_rows)

    @property
    def parts(self) -> int:
        """The number of parts."""
        return -(-self.rows // self.part_rows)

    def rows_of(self, block: int) -> range:
        """The numbers of the rows of a block."""
        first = block * self.block_rows
        return range(first, min(first + self.block_rows, self.rows))

    def part_of(self, block: int) -> int:
        """The part that a block belongs to."""
        return block * self.block_rows // self.part_rows

    def blocks_of(self, part: int) -> range:
        """The blocks of a part."""
        each = self.part_rows // self.block_rows
        return range(part * each, min((part + 1) * each, self.blocks))

    def to_json(self) -> str:
        """Return the text that the folder holds, and each part in its metadata."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    def write(self, path: Path) -> None:
        """Write the file; from then on there is a job."""
        write_text(path, self.to_json() + "\n")


def part_sizes(rows: int, actors: int, length: int) -> tuple[int, int]:
    """Return (block_rows, part_rows) of a new job of so many rows.

    actors: processes that work at once. length: numbers of a vector; 0: rows have labels.
    """
    most = max(1, min(MOST_PART_ROWS, PART_BYTES // (4 * max(1, length))))
    block = min(MOST_BLOCK_ROWS, most, max(1, rows // (BLOCKS_OF_AN_ACTOR * actors)))
    return _power_of_two(block), _power_of_two(most)


def settings_again(stored: Job, weights: str, asked: dict[str, str]) -> Settings | None:
    """The settings of a job, where the same options and weights are given again; None where that
    takes reading the weights: without torch, a command with nothing to do ends at once."""
    file = Path(weights)
    if not file.is_file():
        file = BUNDLED / f"{weights}.pyth"
    if asked != stored.asked or not file.is_file():
        return None
    same = sha256_of(file) == stored.settings.weights_sha256
    return stored.settings if same else None


def _power_of_two(most: int) -> int:
    """The largest one: a part is then a whole number of blocks, whatever their sizes."""
    return int(1 << (most.bit_length() - 1))


def read_job(path: Path) -> Job | None:
    """Read the file of a job; None where there is none. DataError for what is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        content: dict[str, Any] = json.loads(text)
        if content.pop("format") != FORMAT:
            raise ValueError("it is of another version of this package")
        settings = content.pop("settings")
        settings["views"] = tuple(settings["views"])
        return Job(settings=Settings(**settings), **content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); write into another folder with --out"
        ) from None


def require_same(stored: Job, settings: Settings, fingerprint: tuple[int, str], root: str) -> None:
    """Raise UserError, which says what differs, unless a command goes on with the job `stored`.

    fingerprint: rows of the input now, and their hash. root: what they are relative to.
    """
    names = [f.name for f in fields(Settings) if f.name not in NOT_COMPARED]
    pairs = [(name, getattr(stored.settings, name), getattr(settings, name)) for name in names]
    different = [f"{name} {_short(a)} there, {_short(b)} here" for name, a, b in pairs if a != b]
    rows, text = fingerprint
    if rows != stored.rows:
        different.append(f"the input has {rows:,} rows and had {stored.rows:,}")
    elif text != stored.fingerprint:
        different.append("the input has other rows, or another order of them")
    elif root != stored.root:
        different.append(f"paths are relative to {root} and were to {stored.root}")
    if different:
        raise UserError(
            f"the folder holds another job: {'; '.join(different)}. Name another folder with "
            "--out, or give what that job was given"
        )


def _short(value: Any) -> str:
    text = str(value) if value not in ("", 0) else "none"
    return text[:16] if len(text) == 64 else text
