"""A folder of pages over labelled videos, which any browser opens without a network.

    OUT/index.html         a table over all videos
    OUT/videos/*.html      a page for each: player, pictures, scores over time, labels, facts
    OUT/pictures/*.jpg     named by their content
    OUT/files/*            copies of videos, where they are asked for
    OUT/base.css, style.css, table.js, player.js

Everything can be read without JavaScript; with it the table sorts and filters, and the chart plays.
Names and labels may come from strangers: the templates escape them, and the pages forbid scripts
and files from anywhere else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from hiera_video import __version__
from hiera_video.cli import printable
from hiera_video.errors import DecodeError, hide_secrets
from hiera_video.explanation.strip import strip_jpeg
from hiera_video.files import write_text
from hiera_video.label_page.chart import chart_of, clock
from hiera_video.label_page.folder import FILES, MARK, VIDEOS, folder_of
from hiera_video.label_page.playback import Playback, container_name, copied, playback
from hiera_video.pages.moments import SIDE, jpegs_at, write_picture
from hiera_video.pages.templates import environment, write_as_they_are
from hiera_video.storage.addresses import absolute
from hiera_video.video.decoding_process import decoding_process
from hiera_video.video.guarded_pool import GuardedPool
from hiera_video.video.guarded_video import GuardedVideo
from hiera_video.video.info import VideoInfo

if TYPE_CHECKING:
    from hiera_video.prediction import Prediction

MOST_PICTURES = 48
"""Of one video, evenly spread where it has more windows."""

PICTURES_WITHOUT_WINDOWS = 6

IN_TABLE = 4
"""Pictures in a row of the table."""

INDEX_EVERY = 60.0
"""Seconds between two writes of the table, so that a killed run leaves one, too."""

_HERE = Path(__file__).parent
_AS_THEY_ARE = ("style.css", "table.js", "player.js")


class Shot(NamedTuple):
    """A picture of a video at a time."""

    time: float
    """Of the picture; seconds from the first frame."""
    start: float
    """Where a click on it plays from."""
    file: str
    """Relative to index.html."""


@dataclass
class _Video:
    """One video and what was found about its file."""

    prediction: Prediction
    """As the page shows it: the secrets of an address are hidden."""
    path: str
    """Where the video is."""
    name: str
    """Of its page and its copy, without ending: the same in every run over the same file."""
    size: int | None
    info: VideoInfo | None = None
    shots: list[Shot] = field(default_factory=list)
    trouble: str = ""
    """Why there are no pictures, or fewer."""
    strip: str = ""
    """The picture of its explanation, relative to index.html; empty without one."""
    playback: Playback = field(default_factory=lambda: Playback(""))

    @property
    def page(self) -> str:
        """Relative to index.html."""
        return f"{VIDEOS}/{self.name}.html"

    @property
    def duration(self) -> float | None:
        """Seconds."""
        return None if self.info is None else self.info.duration


class _Line(NamedTuple):
    """A row of the table."""

    file: str
    page: str
    pictures: tuple[str, ...]
    label: str | None
    score: float | None
    duration: float | None
    error: str | None


class LabelPage:
    """The page of a run. A context manager: what was added is written at the end, in any case.

    Args:
        folder: new, empty, or with an earlier page, which is replaced.
        expected: the number of videos that are to be added: the page says if there are fewer.
        decoder: what reads the pictures, as for labelling.
        copy: put copies of the videos into the folder.
        process: reads the videos in another process; None: one of its own.

    Raises UserError where `folder` holds other things, RunFailed where it cannot be written.
    """

    def __init__(
        self,
        folder: str,
        *,
        expected: int,
        decoder: str = "auto",
        copy: bool = False,
        process: GuardedPool | None = None,
    ) -> None:
        self._folder = folder_of(folder)
        self._expected, self._decoder, self._copy = expected, decoder, copy
        self._given = process
        self._templates = environment(_HERE)
        self._lines: list[_Line] = []
        self._used: set[str] = set()
        self._before: str = ""
        """The page before the one that waits."""
        self._waiting: _Video | None = None
        """Written when the next one is known, to which it has a link."""
        self._settings: Prediction | None = None
        self.written = False
        """Whether there is a page of at least one video."""

    @property
    def index(self) -> str:
        """The path of index.html."""
        return self._folder.index

    def __enter__(self) -> LabelPage:
        self._folder.make()
        write_as_they_are(_HERE, _AS_THEY_ARE, self._folder.path)
        if not os.path.exists(self.index):
            self._write_index()
        self._next_index = time.monotonic() + INDEX_EVERY
        self._process = self._given or decoding_process()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._given is None:
            self._process.close()
        if self._lines:  # else what was there before stays
            self._write_waiting(None)
            self._write_index()
            self._folder.remove_unused(self._used)
            self.written = True

    def add(self, prediction: Prediction) -> None:
        """Add a finished video: read its pictures, and write the page of the one before."""
        path = prediction.file
        shown = replace(prediction, file=hide_secrets(path))
        video = _Video(shown, path, _name(path), _size(path))
        self._write_waiting(video)
        self._waiting = video
        try:
            if prediction.labels:  # a file that could not be read costs its time only once
                self._look(video)
            if prediction.explanation is not None:
                jpeg = strip_jpeg(prediction.explanation)
                video.strip = write_picture(self._folder.path, jpeg)
            video.playback = self._playback(video)
        finally:  # also when it is interrupted
            self._lines.append(_line(video))
            self._used |= {video.page, video.strip, *(shot.file for shot in video.shots)}
        self._settings = self._settings or prediction
        if time.monotonic() >= self._next_index:
            self._write_index()
            self._next_index = time.monotonic() + INDEX_EVERY

    # ---- what is read of the file ----

    def _look(self, video: _Video) -> None:
        try:
            with GuardedVideo(video.path, self._process, self._decoder) as opened:
                video.info = opened.info
                moments = _moments(video.prediction, opened.info)
                jpegs = jpegs_at(opened, [at for at, _ in moments])
                for (at, start), jpeg in zip(moments, jpegs, strict=True):
                    file = write_picture(self._folder.path, jpeg)
                    video.shots.append(Shot(at, start, file))
        except DecodeError as error:
            video.trouble = error.reason

    def _playback(self, video: _Video) -> Playback:
        path, place = video.path, self._folder.path
        if video.size is None:
            return Playback("")
        if not self._copy or video.info is None:
            return playback(path, video.info, os.path.join(place, VIDEOS))
        found = copied(path, video.info, place, video.name, self._decoder)
        if found.url.startswith(f"../{FILES}/"):
            self._used.add(found.url.removeprefix("../"))
        return found

    # ---- what is written ----

    def _write_waiting(self, following: _Video | None) -> None:
        video = self._waiting
        if video is None:
            return
        windows = video.prediction.timeline or []
        text = self._templates.get_template("video.html").render(
            video=video,
            prediction=video.prediction,
            chart=chart_of(windows, video.duration or 0.0) if windows else None,
            windows=windows,
            before=self._before,
            following=f"{following.name}.html" if following is not None else "",
            folder=os.path.dirname(video.prediction.file),
            base=os.path.basename(video.prediction.file),
            clock=clock,
            container_name=container_name,
            side=SIDE,
        )
        write_text(os.path.join(self._folder.path, video.page), text)
        self._before = f"{video.name}.html"
        self._waiting = None

    def _write_index(self) -> None:
        text = self._templates.get_template("index.html").render(
            lines=self._lines,
            failed=sum(line.error is not None for line in self._lines),
            settings=self._settings,
            expected=self._expected,
            folder_of=os.path.dirname,
            name_of=os.path.basename,
            clock=clock,
            mark=MARK,
            side=SIDE,
            version=__version__,
        )
        write_text(self.index, text)


@contextlib.contextmanager
def written_page(
    folder: str, expected: int, decoder: str | None, *, copy: bool
) -> Iterator[Callable[[Prediction], None]]:
    """Yield what adds a video to the page in `folder`. Prints where the page is."""
    page = LabelPage(folder, expected=expected, decoder=decoder or "auto", copy=copy)
    try:
        with page:
            yield page.add
    finally:
        if page.written:
            print(f"wrote {printable(page.index)}", file=sys.stderr)


def _moments(prediction: Prediction, info: VideoInfo) -> list[tuple[float, float]]:
    """(time of the picture, time to play from): of the windows, or spread over the video."""
    if prediction.timeline:
        found = [((w.start + w.end) / 2, w.start) for w in prediction.timeline]
        if len(found) > MOST_PICTURES:
            step = len(found) / MOST_PICTURES
            found = [found[int((k + 0.5) * step)] for k in range(MOST_PICTURES)]
        last = float(info.times[-1])
        return [(min(at, last), start) for at, start in found]
    count = min(PICTURES_WITHOUT_WINDOWS, info.num_frames)
    times = [float(info.times[int((k + 0.5) * info.num_frames / count)]) for k in range(count)]
    return [(at, at) for at in times]


def _line(video: _Video) -> _Line:
    first = video.prediction.labels[0] if video.prediction.labels else None
    step = max(1, -(-len(video.shots) // IN_TABLE))
    return _Line(
        file=video.prediction.file,
        page=video.page,
        pictures=tuple(shot.file for shot in video.shots[step // 2 :: step]),
        label=None if first is None else first.label,
        score=None if first is None else first.score,
        duration=video.duration,
        error=video.prediction.error,
    )


def _name(file: str) -> str:
    return hashlib.sha256(os.fsencode(absolute(file))).hexdigest()[:20]


def _size(file: str) -> int | None:
    """Bytes of a file; None where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return os.stat(file).st_size if os.path.isfile(file) else None
    return None
