"""A page of queries and their neighbours, with a picture of each: a folder that any browser opens.

    OUT/index.html            no script, nothing from elsewhere
    OUT/pictures/*.jpg        named by their content

The page is data and a template (`page.html`). Paths, and what errors say of files, may come from
strangers: the template escapes them, control characters are shown as such, and names that read
from right to left do not turn the text around them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from hiera_video.errors import DecodeError
from hiera_video.features.search import Neighbour
from hiera_video.features.settings import FeatureSettings
from hiera_video.files import write_text
from hiera_video.pages.folder import OUR_PICTURE, PICTURES, PageFolder
from hiera_video.pages.moments import SIDE, jpeg_at, write_picture
from hiera_video.pages.templates import environment
from hiera_video.video.guarded_pool import GuardedPool
from hiera_video.video.guarded_video import GuardedVideo

MARK = "hiera_video neighbours/1"
"""In every page, so that a later one may replace it."""


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
    on_progress: Callable[[int, int], None] = lambda done, total: None
    """Called with (videos done, all videos) while their pictures are read."""

    def __call__(self, answers: Sequence[Answer], settings: FeatureSettings, table: str) -> str:
        """Write the page of `answers` from the file `table`; returns the path of index.html.

        Raises RunFailed, which names the file, if something cannot be written. A page that was
        there stays until the new one is complete.
        """
        folder = _folder(self.folder)
        folder.make()
        moments = [moment for answer in answers for moment in _moments(answer)]
        pictures = dict(self._pictures(moments))
        write_text(folder.index, _rendered(answers, pictures, settings, table))
        folder.remove_unused({picture.file for picture in pictures.values()})
        return folder.index

    def _pictures(self, moments: Iterable[Moment]) -> Iterator[tuple[Moment, Picture]]:
        """Read the picture of each moment once, every video opened once."""
        wanted = sorted(set(moments))
        total = len({moment.path for moment in wanted})
        groups = groupby(wanted, key=lambda moment: moment.path)
        for done, (path, group) in enumerate(groups):
            self.on_progress(done, total)
            left = deque(group)
            try:
                with GuardedVideo(path, self.process, self.decoder) as video:
                    while left:
                        file = write_picture(self.folder, jpeg_at(video, left[0].middle))
                        yield left.popleft(), Picture(file=file)
            except DecodeError as error:  # one failure is enough: the next may take minutes
                yield from ((moment, Picture(error=error.reason)) for moment in left)


def require_replaceable(folder: str) -> None:
    """Raise UserError unless `folder` is new, empty or holds an earlier page."""
    _folder(folder).require_replaceable()


def _folder(path: str) -> PageFolder:
    return PageFolder(path, MARK, {PICTURES: OUR_PICTURE})


def moment_of(neighbour: Neighbour) -> Moment:
    """Return the part of a video that a row of the table describes."""
    return Moment(neighbour.path, neighbour.start, neighbour.end)


def _moments(answer: Answer) -> Iterator[Moment]:
    if answer.moment is not None:
        yield answer.moment
    yield from map(moment_of, answer.neighbours)


def _rendered(
    answers: Sequence[Answer],
    pictures: dict[Moment, Picture],
    settings: FeatureSettings,
    table: str,
) -> str:
    return (
        environment(Path(__file__).parent)
        .get_template("page.html")
        .render(
            answers=answers,
            pictures=pictures,
            settings=settings,
            table=table,
            moment_of=moment_of,
            mark=MARK,
            side=SIDE,
        )
    )
