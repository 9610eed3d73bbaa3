"""A page of queries and their neighbours, with a picture of each: a folder that any browser opens.

    OUT/index.html            no script, nothing from elsewhere
    OUT/pictures/*.jpg        named by their content

The page is data and a template (`page.html`). Paths, and what errors say of files, may come from
strangers: the template escapes them, control characters are shown as such, and names that read
from right to left do not turn the text around them.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hiera_video import cli
from hiera_video.errors import DecodeError, UserError
from hiera_video.features.search import Neighbour
from hiera_video.features.settings import FeatureSettings
from hiera_video.files import AnyPath, atomic_write, explained, write_text
from hiera_video.video.guarded_pool import GuardedPool
from hiera_video.video.guarded_video import GuardedVideo

MARK = "hiera_video neighbours/1"
"""In every page, so that a later one may replace it."""

SIDE = 192
"""Of a picture, in pixels."""


_OUR_PICTURE = re.compile(r"[0-9a-f]{20}\.jpg")
"""Others in the folder are not ours to delete."""


class Moment(NamedTuple):
    """The part of a video that a vector describes."""

    path: str
    start: float
    """Seconds from the first frame."""
    end: float

    @property
    def middle(self) -> float:
        """Seconds from the first frame."""
        return (self.start + self.end) / 2

    @property
    def span(self) -> str:
        """The time, to be read by people."""
        return f"{self.start:.1f} to {self.end:.1f} s"


class Picture(NamedTuple):
    """A picture of a moment, or why there is none."""

    file: str = ""
    """Relative to the page."""
    error: str = ""


@dataclass(frozen=True)
class Answer:
    """A query and what was found for it."""

    path: str
    moment: Moment | None
    """What was described of the query; None with an error."""
    neighbours: Sequence[Neighbour]
    error: str | None = None


@dataclass(frozen=True)
class PageWriter:
    """Writes the page of a search.

    Raises UserError where `folder` cannot be replaced: a file, or a folder of other things.
    """

    folder: str
    process: GuardedPool
    """Reads the videos (`video.decoding_process`): one that crashes a decoder costs its picture."""
    decoder: str = "auto"

    def __call__(self, answers: Sequence[Answer], settings: FeatureSettings, table: str) -> str:
        """Write the page of `answers` from the file `table`; returns the path of index.html.

        Raises RunFailed, which names the file, if something cannot be written. A page that was
        there stays until the new one is complete.
        """
        require_replaceable(self.folder)
        with explained(self.folder):
            os.makedirs(os.path.join(self.folder, "pictures"), exist_ok=True)
        moments = [moment for answer in answers for moment in _moments(answer)]
        pictures = dict(self._pictures(moments))
        content = _rendered(answers, pictures, settings, table)
        page = os.path.join(self.folder, "index.html")
        write_text(page, content)
        used = {picture.file for picture in pictures.values()}
        for old in Path(self.folder, "pictures").iterdir():
            if _OUR_PICTURE.fullmatch(old.name) and f"pictures/{old.name}" not in used:
                with explained(old):
                    old.unlink(missing_ok=True)
        return page

    def _pictures(self, moments: Iterable[Moment]) -> Iterator[tuple[Moment, Picture]]:
        """Read the picture of each moment once, every video opened once."""
        for path, group in groupby(sorted(set(moments)), key=lambda moment: moment.path):
            left = deque(group)
            try:
                with GuardedVideo(path, self.process, self.decoder) as video:
                    while left:
                        file = self._write(_jpeg(video, left[0].middle))
                        yield left.popleft(), Picture(file=file)
            except DecodeError as error:  # one failure is enough: the next may take minutes
                yield from ((moment, Picture(error=error.reason)) for moment in left)

    def _write(self, jpeg: bytes) -> str:
        name = f"pictures/{hashlib.sha256(jpeg).hexdigest()[:20]}.jpg"
        with atomic_write(os.path.join(self.folder, name)) as file:
            file.write(jpeg)
        return name


def require_replaceable(folder: AnyPath) -> None:
    """Raise UserError unless `folder` is new, empty or holds an earlier page."""
    place = Path(folder)
    if not os.path.lexists(place):
        return
    if not place.is_dir():
        raise UserError(f"{place} is a file; name a folder for the page")
    try:
        ours = _is_ours(place)
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error.strerror}; name a new folder") from None
    if not ours:
        raise UserError(
            f"{place} holds other things than an earlier page; name a new or an empty folder"
        )


def _is_ours(place: Path) -> bool:
    """Whether a folder is empty, or holds a page of this module, or the pictures of one that was
    interrupted."""
    names = {entry.name for entry in place.iterdir()}
    if "index.html" in names:
        with open(place / "index.html", "rb") as file:
            return MARK.encode() in file.read(1000)
    if names != {"pictures"}:
        return not names
    return all(_OUR_PICTURE.fullmatch(entry.name) for entry in (place / "pictures").iterdir())


def moment_of(neighbour: Neighbour) -> Moment:
    """Return the part of a video that a row of the table describes."""
    return Moment(neighbour.path, neighbour.start, neighbour.end)


def _moments(answer: Answer) -> Iterator[Moment]:
    if answer.moment is not None:
        yield answer.moment
    yield from map(moment_of, answer.neighbours)


def _jpeg(video: GuardedVideo, seconds: float) -> bytes:
    """The frame that is shown at a time, its centre, SIDE x SIDE pixels."""
    from PIL import Image

    times = video.info.times
    index = int(np.searchsorted(times, seconds, side="right")) - 1
    (crop,) = video.read_crops([min(max(index, 0), len(times) - 1)], SIDE, 1)
    file = io.BytesIO()
    Image.fromarray(crop[0].permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=82)
    return file.getvalue()


def _rendered(
    answers: Sequence[Answer],
    pictures: dict[Moment, Picture],
    settings: FeatureSettings,
    table: str,
) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["printable"] = cli.printable
    return environment.get_template("page.html").render(
        answers=answers,
        pictures=pictures,
        settings=settings,
        table=table,
        moment_of=moment_of,
        mark=MARK,
        side=SIDE,
    )
