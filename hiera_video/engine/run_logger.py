"""The logger of a run: console, stdout.log, metrics.jsonl, pictures, its page, trackers.

On a terminal the last line is progress that redraws itself; in a pipe there are plain lines only.
`stdout.log` holds the lines of the console and SlowFast's `json_stats: {...}` lines;
`metrics.jsonl` holds the same records at full precision, and curves.png is drawn from it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TextIO

from torch import Tensor

from hiera_video.engine import plots
from hiera_video.engine.records import METRICS, json_safe, json_stats, read_metrics
from hiera_video.engine.trackers import Tracker
from hiera_video.errors import RunFailed, first_line
from hiera_video.files import atomic_write, explained
from hiera_video.run_page.page import RunPage

LOG = "stdout.log"
_REDRAW_SECONDS = 0.2
"""Least time between two redraws of the last line of a terminal."""
_CURVES_SECONDS = 60
"""Least time between two drawings of curves.png."""
_PAGE_SECONDS, _PAGE_SHARE = (5, 60), 0.01
"""Least time between two refreshes of the page: at the beginning, and after some minutes; and the
most of the run's time that they take."""


class RunLogger:
    """Writes what a run reports to the console and to the files of its folder.

    A context manager, which closes the files.

    Args:
        folder: where the files go. None: no files, or none until `open` names the folder; lines
            logged before that are written to stdout.log then.
        quiet: print nothing (all processes but rank 0).
        stream: the console; stdout by default.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self.folder: Path | None = None
        self.quiet = quiet
        self.stream = stream or sys.stdout
        self.live = not quiet and getattr(self.stream, "isatty", lambda: False)()
        self._drawn_at, self._line_open = 0.0, False
        self._curves_at = time.monotonic()
        self._page: RunPage | None = None
        self._page_began = self._page_due = 0.0
        self._page_is_live = False
        self._log: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self._trackers: list[Tracker] = []
        self._early: list[str] = []
        if folder is not None:
            self.open(folder)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self._page_is_live:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            self.show("interrupted" if interrupted else f"failed: {first_line(error)}", live=False)
        self.close()

    def open(self, folder: Path) -> None:
        """Write to files in `folder` from now on, first the lines that were logged before."""
        self.folder = folder
        self._log, self._metrics = _open_to_append(folder / LOG), _open_to_append(folder / METRICS)
        for text in self._early:
            self._to_log(text)
        self._early.clear()

    def add_tracker(self, tracker: Tracker) -> None:
        """Send curves and pictures to `tracker` too, from now on; it is closed with the logger."""
        self._trackers.append(tracker)

    def add_page(self, page: RunPage) -> None:
        """Write the page of the run, too, whenever `show` says so."""
        self._page = page

    def show(self, status: str, *, live: bool = True, now: bool = True) -> None:
        """Write the page of the run anew.

        status: how the run stands, in words. live: whether it goes on. now: else only if the last
        time is a while ago, see `_PAGE_SECONDS`.
        """
        if self._page is None or self.folder is None:
            return
        began = time.monotonic()
        if not now and began < self._page_due:
            return
        self._page.refresh(read_metrics(self.folder), status=status, live=live)
        ended = time.monotonic()
        self._page_began = self._page_began or began
        first, most = _PAGE_SECONDS
        pause = min(max((ended - self._page_began) / 5, first), most)
        self._page_due = ended + max(pause, (ended - began) / _PAGE_SHARE)
        self._page_is_live = live

    def info(self, text: str) -> None:
        """Log a line on the console and in stdout.log."""
        if self.folder is None and not self.quiet:
            self._early.append(text)
        self._to_log(text)
        self._to_console(text)

    def log_stats(self, kind: str, **values: Any) -> None:
        """Log a record: a `json_stats` line in stdout.log, full precision in metrics.jsonl.

        kind: its `_type`, such as "train_iter_".
        """
        record = {"_type": kind, **values}
        self._to_log(json_stats(record))
        if self._metrics is not None:
            _append(self._metrics, json.dumps(json_safe(record), sort_keys=True))

    def add_scalars(self, step: int, **values: float) -> None:
        """Add points to the curves of the trackers; `Train__loss` is their Train/loss."""
        named = {name.replace("__", "/"): value for name, value in values.items()}
        for tracker in self._trackers:
            tracker.add_scalars(named, step)

    def add_image(self, name: str, image: Tensor, step: int) -> Path | None:
        """Write an RGB picture, float [3, H, W] in [0, 1], as a PNG in pictures/; return its path.

        It goes to the trackers too. None where there is no folder.
        """
        if self.folder is None:
            return None
        from torchvision.utils import save_image

        path = self.folder / "pictures" / f"{name}_{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as file:
            save_image(image, file, format="png")
        for tracker in self._trackers:
            tracker.add_image(name, image, step)
        return path

    def progress(self, text: str, *, due: bool = False) -> None:
        """Redraw the last line of a terminal, a few times a second; in a pipe, print if `due`."""
        if not self.live:
            if due:
                self._to_console(text)
            return
        if time.monotonic() - self._drawn_at < _REDRAW_SECONDS:
            return
        width = shutil.get_terminal_size().columns - 1
        self.stream.write("\r\x1b[K" + text[:width])
        self.stream.flush()
        self._drawn_at, self._line_open = time.monotonic(), True

    def draw_curves(self, *, last: bool) -> None:
        """Draw curves.png again, if the last drawing is a minute old or this is the `last`."""
        if self.folder is not None and (
            last or time.monotonic() - self._curves_at > _CURVES_SECONDS
        ):
            plots.draw_curves(self.folder)
            self._curves_at = time.monotonic()

    def close(self) -> None:
        """Clear the progress line, and close the trackers and the files."""
        self._end_line()
        for tracker in self._trackers:
            with contextlib.suppress(OSError, RunFailed):
                tracker.close()
        self._trackers.clear()
        for file in (self._log, self._metrics):
            if file is not None:
                # Bytes that a full disk did not take were an error when they were written.
                with contextlib.suppress(OSError):
                    file.close()
        self._log = self._metrics = None

    def _to_console(self, text: str) -> None:
        if self.quiet:
            return
        self._end_line()
        print(text, file=self.stream, flush=True)

    def _to_log(self, text: str) -> None:
        if self._log is not None:
            _append(self._log, text)

    def _end_line(self) -> None:
        if self._line_open:
            self.stream.write("\r\x1b[K")
            self._line_open = False


def _open_to_append(path: Path) -> IO[str]:
    # File names that are not valid UTF-8 are logged escaped.
    with explained(path):
        return open(path, "a", encoding="utf-8", errors="backslashreplace")


def _append(file: IO[str], line: str) -> None:
    with explained(file.name):
        file.write(line + "\n")
        file.flush()
