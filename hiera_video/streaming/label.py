"""Label a stream as it comes: the newest window, then the newest after that.

with stream_process() as process:                       # starts while the model is loaded
    predictor = Predictor.load("runs/mine/checkpoints/best.pyth")
    for window in label_stream(predictor, parse_source("rtsp://cam/1"), process):
        print(window.start, window.labels[0], window.dropped)
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import DecodeError, RunFailed, UserError
from hiera_video.streaming.sources import Source
from hiera_video.video.guarded_pool import PRELOAD, GuardedPool, WorkerFailure
from hiera_video.video.sampling import check_window

if TYPE_CHECKING:
    from hiera_video.predict import Predictor
    from hiera_video.prediction import Label
    from hiera_video.streaming.child import CutWindow

TIMEOUT = 10.0
"""Seconds without anything after which a stream is given up, or a growing file complete."""

_ANSWER_SECONDS = 60.0
"""Seconds for one answer of the process: a second of waiting, and the cutting of a window."""


@dataclass(frozen=True)
class StreamLabels:
    """The labels of one window of a stream."""

    stream: str
    start: float
    """Seconds of stream time: from its first frame."""
    end: float
    time: datetime
    """When its last frame came."""
    labels: tuple[Label, ...]
    dropped: int
    """Frames so far that are in no window that was labelled, and damaged ones."""
    lag: float
    """Seconds from its last frame to its labels."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, strings and numbers, for JSON."""
        return {
            "stream": self.stream,
            "start": self.start,
            "end": self.end,
            "time": self.time.isoformat(timespec="milliseconds"),
            "labels": [label.to_dict() for label in self.labels],
            "dropped": self.dropped,
            "lag": round(self.lag, 3),
        }


def stream_process() -> GuardedPool:
    """Start the process that reads a stream; it imports its libraries in the background."""
    return GuardedPool(
        "hiera_video.streaming.child.serve",
        time_limit=_ANSWER_SECONDS,
        preload=PRELOAD,
        prepare="hiera_video.streaming.child.prepare",
    )


def label_stream(
    predictor: Predictor,
    source: Source,
    process: GuardedPool,
    *,
    seconds: float | None = None,
    timeout: float = TIMEOUT,
    top_k: int = 5,
) -> Iterator[StreamLabels]:
    """Yield the labels of the newest window of a stream, until it ends.

    Windows that came while another one was labelled are dropped, but for those of a file that were
    there when it was opened. The last window ends with the stream.

    Args:
        process: what `stream_process` returns; it reads one stream.
        seconds: length of the windows; None: that of the model's clip.
        timeout: seconds without anything after which the stream is given up, or a file complete.

    Raises DecodeError for what is no video, breaks off or stalls; RunFailed where the model cannot
    be run; UserError for times that are not possible.
    """
    from hiera_video.streaming.child import StreamRequest
    from hiera_video.streaming.windows import Cut

    seconds = clip_seconds(predictor.spec) if seconds is None else seconds
    check_window(seconds)
    check_timeout(timeout)
    num_views, num_crops = predictor.views
    cut = Cut(seconds, predictor.spec, num_views)
    _ask(process, source, StreamRequest(source, cut, num_crops, timeout, _standard_input(source)))
    while True:
        window = _ask(process, source, None)
        if window is False:
            return
        if window is True:  # nothing yet
            continue
        clips = window.view_crops().stacked(pinned=predictor.device.type == "cuda")
        labels = predictor.label_clips(clips, top_k=top_k)
        yield StreamLabels(
            stream=source.name,
            start=window.start,
            end=window.end,
            time=datetime.fromtimestamp(window.clock, timezone.utc),
            labels=tuple(labels),
            dropped=window.dropped,
            lag=time.monotonic() - window.came,
        )


def clip_seconds(spec: ClipSpec) -> float:
    """Return the length of the model's clip, the usual window.

    Raises UserError for a model that samples a whole video, however long it is.
    """
    if spec.segments or spec.num_frames == 1:
        raise UserError(
            "the model's clips have no length of their own; say with --timeline SECONDS how long "
            "a window is"
        )
    return spec.num_frames * spec.sampling_rate / spec.target_fps


def check_timeout(seconds: float) -> None:
    """Raise UserError unless `seconds` can be waited for."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"--stream-timeout {seconds!r}: give seconds above 0")


def _standard_input(source: Source) -> Any:
    if source.kind != "stdin":
        return None
    from multiprocessing.reduction import DupFd

    return DupFd(sys.stdin.fileno())


def _ask(process: GuardedPool, source: Source, request: Any) -> CutWindow | bool:
    try:
        answer: CutWindow | bool = process.call(request)
    except WorkerFailure as failure:
        if failure.kind == "memory":
            raise DecodeError(source.name, f"reading it {failure.reason}") from None
        reason = f"the process that reads it {failure.reason}; start the same command again"
        raise DecodeError(source.name, reason) from None
    except OSError as error:
        raise RunFailed(f"{source.name}: {error}") from None
    return answer
