"""One job of the app: a video that was uploaded, and what a visitor wants to see of it.

Everything a visitor sends comes through here and is checked; nothing of it is a path that this
machine would open, but for that of an upload. Jobs come one at a time.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from hiera_video.app.choices import GIVEN, Choice, chosen
from hiera_video.app.reconstruct import (
    LEAST_HIDDEN,
    MOST_HIDDEN,
    Reconstruction,
    Reconstructor,
)
from hiera_video.cli import printable
from hiera_video.errors import DecodeError, RunFailed, UserError, first_line
from hiera_video.explanation.relevance import require_gradients
from hiera_video.predict import Predictor
from hiera_video.prediction import Prediction, Window
from hiera_video.runtimes.load import exported_kind
from hiera_video.video.guarded_pool import GuardedPool
from hiera_video.video.sampling import check_window

TOP_K = 5

LEAST_SECONDS, MOST_SECONDS = 0.1, 600.0
"""Of a window of the timeline."""

OnProgress = Callable[[float, str], None]
"""Called with the share of the job that is done, and a word for what is being done."""


@dataclass(frozen=True)
class Wanted:
    """What a visitor wants to see, as sent: of any type."""

    weights: object
    timeline: object = True
    explanation: object = True
    seconds: object = 2.0
    """Of a window of the timeline."""
    hidden: object = 0.9
    """Share of the clip that is hidden from an autoencoder."""


@dataclass
class Found:
    """What a job found so far."""

    name: str
    """Of the video, as the visitor called it."""
    weights: str
    notes: list[str] = field(default_factory=list)
    """What people should know of the weights."""
    prediction: Prediction | None = None
    """None: the weights name nothing."""
    reconstruction: Reconstruction | None = None
    timeline: str = ""
    """Why there are no scores over time, or fewer; empty where that is as it should be."""
    explanation: str = ""
    """Why there is no explanation."""
    painting: str = ""
    """Why there is no reconstruction."""


@dataclass(frozen=True)
class Settings:
    """What whoever starts the app decides."""

    device: str = "auto"
    views: tuple[int, int] = (5, 3)
    seconds: float = 300.0
    """Longest time of a job, the loading of its weights not included."""


class _TimeIsUp(Exception):
    """A job took longer than it may."""


class Labeller:
    """Does the jobs of the app.

    Args:
        settings: device, views and the time limit.
        process: the guarded processes that read the videos.
        folder: where uploads are; no other file is ever opened for a visitor.
    """

    def __init__(self, settings: Settings, process: GuardedPool, folder: str) -> None:
        self.settings, self._process = settings, process
        self._folder = os.path.realpath(folder)
        self._one_at_a_time = threading.Lock()
        self._stopping = False
        self._loaded: tuple[Choice, Predictor | Reconstructor, list[str]] | None = None
        """The weights of the last job: one set of them is in memory."""

    def stop(self) -> None:
        """End the job that is going on, at its next step."""
        self._stopping = True

    def is_autoencoder(self, source: str) -> bool:
        """Load what --weights says; return whether it is a masked autoencoder.

        Raises UserError for what is neither that nor a classifier.
        """
        from hiera_video.classifier import find_checkpoint
        from hiera_video.models.weights.key_names import AUTOENCODER

        if exported_kind(source) is not None:
            return False
        _, checkpoint, _ = find_checkpoint(None, source, warn=_on_terminal)
        return checkpoint.kind == AUTOENCODER

    def load(self, choice: Choice) -> tuple[Predictor | Reconstructor, list[str]]:
        """Return the model of a choice, and the notes on its weights; downloads what is missing."""
        if self._loaded is not None and self._loaded[0] == choice:
            return self._loaded[1:]
        self._loaded = None  # its memory is free before the next is loaded
        notes: list[str] = []
        loaded: Predictor | Reconstructor
        if choice.autoencoder:
            loaded = Reconstructor(choice.source, self.settings.device, notes.append)
        else:
            exported = exported_kind(choice.source) if choice.key == GIVEN else None
            loaded = Predictor.load(
                weights=choice.source,
                device=self.settings.device,
                views=self.settings.views,
                process=self._process,
                runtime="torch" if exported is None else "auto",  # explanations need gradients
                warn=notes.append,
            )
        notes = [_without_path(note, choice) for note in notes]
        self._loaded = (choice, loaded, notes)
        return loaded, notes

    def job(
        self, listed: list[Choice], upload: object, wanted: Wanted, on_progress: OnProgress
    ) -> Iterator[Found]:
        """Do a job; yield what is found, more with each step.

        upload: what the browser says of the file: `{"path": ..., "orig_name": ...}`.

        Raises UserError, whose text is for the visitor.
        """
        steps = self._steps(chosen(listed, wanted.weights), upload, wanted, on_progress)
        while True:
            # For each step: a visitor who leaves does not take the lock along.
            with self._one_at_a_time:
                found = next(steps, None)
            if found is None:
                return
            yield found

    def _steps(
        self, choice: Choice, upload: object, wanted: Wanted, on_progress: OnProgress
    ) -> Iterator[Found]:
        path, name = self._uploaded(upload)
        on_progress(0.0, "loading the weights")
        try:
            loaded, notes = self.load(choice)
            found = Found(name, choice.name, notes=list(notes))
            watched = self._watched(on_progress)
            if isinstance(loaded, Reconstructor):
                yield self._reconstruct(loaded, path, found, wanted)
            else:
                yield from _label(loaded, path, found, wanted, watched)
        except DecodeError as error:
            raise UserError(f"{printable(name)}: {error.reason}") from None
        except (UserError, RunFailed) as error:
            if "\n" in str(error):
                _on_terminal(f"error: {error}")  # whole where no stranger reads it
            raise UserError(_without_path(first_line(error), choice)) from None
        except _TimeIsUp:
            raise UserError(
                f"{printable(name)} took longer than {self.settings.seconds:g} s; try a shorter "
                "video or smaller weights. Whoever started the app can allow more with "
                "--max-seconds"
            ) from None

    def _reconstruct(self, model: Reconstructor, path: str, found: Found, wanted: Wanted) -> Found:
        hidden = _number(wanted.hidden, LEAST_HIDDEN, MOST_HIDDEN, "the share that is hidden")
        found.reconstruction = model(path, hidden, self._process)
        why = f"{found.weights} names nothing: it is an autoencoder; choose weights that label"
        found.timeline = found.explanation = why
        return found

    def _watched(self, on_progress: OnProgress) -> OnProgress:
        """`on_progress` that ends a job whose time is over, or when the app stops."""
        end = time.monotonic() + self.settings.seconds

        def watched(share: float, what: str) -> None:
            if self._stopping:
                raise UserError("the app is being stopped")
            if time.monotonic() > end:
                raise _TimeIsUp
            on_progress(share, what)

        return watched

    def _uploaded(self, upload: object) -> tuple[str, str]:
        """(path, name) of an upload; UserError for anything else, such as another file."""
        if upload is None:
            raise UserError("no video yet: drop one, or record one with the camera")
        path = upload.get("path") if isinstance(upload, dict) else None
        if not isinstance(path, str) or "\0" in path:
            raise UserError("that is no uploaded video")
        place = os.path.realpath(path)
        inside = os.path.commonpath([self._folder, place]) == self._folder
        try:
            regular = inside and stat.S_ISREG(os.lstat(path).st_mode)
        except OSError:
            regular = False
        if not inside or not regular:
            raise UserError("the upload is not there any more; drop the video again")
        name = upload.get("orig_name") if isinstance(upload, dict) else None
        return place, name if isinstance(name, str) and name else os.path.basename(place)


def _label(
    predictor: Predictor, path: str, found: Found, wanted: Wanted, watched: OnProgress
) -> Iterator[Found]:
    """The steps of a job whose weights label."""
    seconds = _number(wanted.seconds, LEAST_SECONDS, MOST_SECONDS, "the seconds of a window")
    check_window(seconds)
    found.painting = (
        f"{found.weights} has no decoder, so it cannot reconstruct; choose weights that reconstruct"
    )
    found.timeline = "" if wanted.timeline else "not asked for"
    found.explanation = "" if wanted.explanation else "not asked for"
    labelled = predictor(path, top_k=TOP_K, on_progress=lambda share: watched(share, "labelling"))
    found.prediction = replace(labelled, file=found.name, weights=found.weights)
    yield found
    if wanted.timeline:
        found.prediction.timeline = []
        try:
            for window in _windows(predictor, path, seconds, watched):
                found.prediction.timeline.append(window)
        except (DecodeError, _TimeIsUp) as error:
            found.timeline = _why(error, found.prediction.timeline)
        yield found
    if wanted.explanation:
        try:
            require_gradients(predictor.model)
            found.prediction.explanation = predictor.explain(
                path, on_progress=lambda share: watched(share, "explaining the label")
            )
        except (DecodeError, UserError, RunFailed, _TimeIsUp) as error:
            found.explanation = _why(error, [])
        yield found


def _windows(
    predictor: Predictor, path: str, seconds: float, watched: OnProgress
) -> Iterator[Window]:
    return predictor.timeline(
        path,
        seconds,
        top_k=TOP_K,
        on_progress=lambda share: watched(share, "labelling window by window"),
    )


def _why(error: Exception, done: list[Window]) -> str:
    """Why a part is missing; what is done of it stays."""
    if isinstance(error, DecodeError):
        return error.reason
    if not isinstance(error, _TimeIsUp):
        return first_line(error)
    ended = f"the time of the job ended after {done[-1].end:.1f} s of it" if done else ""
    return ended or "the time of the job ended before it"


def _number(value: object, least: float, most: float, what: str) -> float:
    """Check a number that a visitor sent."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UserError(f"{what} must be from {least:g} to {most:g}")
    return float(value)


def _without_path(text: str, choice: Choice) -> str:
    """A line about weights, with their name in place of where they are on this machine."""
    if choice.key != GIVEN:
        return text
    expanded = os.path.expanduser(choice.source)
    return text.replace(expanded, choice.name).replace(choice.source, choice.name)


def _on_terminal(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
