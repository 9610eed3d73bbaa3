"""Scores of many videos whose clips share forward passes, one pass ahead of what is read.

    queue = BatchedScores(model, settings, device)
    for name, clips in videos:
        queue.add(name, clips)
        for name, scores in queue.finished(): ...     # in the order of `add`
    for name, scores in queue.finished(wait=True): ...

On a GPU a pass is queued and its result fetched when the next one is queued, so the GPU computes
while the caller reads the next video. On a CPU a pass has the clips of one video only: its scores
are then the same, bit for bit, whatever video came before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.errors import RunFailed
from hiera_video.scoring import ScoreSettings, distinct_clips, score_batch

_MOST_WAITING = 1
"""Passes whose results may wait on a GPU while the next one is prepared."""


@dataclass
class _Video:
    """A video whose clips are being scored."""

    name: Any
    error: Exception | None = None
    row_of: Tensor | None = None
    """int64 [V]: which of the distinct clips each view is."""
    clips: int = 0
    """Distinct clips."""
    left: int = 0
    """Those that have no scores yet."""
    rows: list[Tensor] = field(default_factory=list)

    def outcome(self) -> Tensor | Exception:
        """The mean over the views, float32 [C]; or why there is none."""
        if self.error is not None or self.row_of is None:
            return self.error or RunFailed("no clips")
        return torch.cat(self.rows)[self.row_of].mean(dim=0)


@dataclass
class _Pass:
    """One forward pass."""

    scores: Tensor
    """float32 [B, C], on the CPU once `arrived`."""
    owners: list[tuple[_Video, int]]
    """Videos and their numbers of clips, in the order of the rows."""
    arrived: Callable[[], None]
    """Waits for the result."""


class BatchedScores:
    """See the module.

    Args:
        model: in eval mode and on `device`.
        settings: batch size, number format, and how clips are prepared.
        device: where the model is.
        mixed: put clips of several videos into one pass; None: on a GPU.
        on_clips: called after each pass with (video, share of its clips that the pass had).
        smaller: called where the GPU's memory is full: the batch size to go on with; None: there is
            none, and the videos of that pass fail with the error.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: ScoreSettings,
        device: torch.device,
        *,
        mixed: bool | None = None,
        on_clips: Callable[[Any, float], None] = lambda name, share: None,
        smaller: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.model, self.settings, self.device = model, settings, device
        self.mixed = device.type == "cuda" if mixed is None else mixed
        self.on_clips, self.smaller = on_clips, smaller
        self._videos: deque[_Video] = deque()
        self._pieces: deque[tuple[_Video, Tensor]] = deque()
        self._waiting = 0
        self._passes: deque[_Pass] = deque()

    def add(self, name: Any, clips: Tensor | Exception) -> None:
        """Score the clips [V, 3, T, H, W] of a video; an exception is passed on in its turn."""
        if isinstance(clips, Exception):
            self._videos.append(_Video(name, error=clips))
            return
        distinct, row_of = distinct_clips(clips)
        if len(distinct) < len(clips):
            clips = clips[distinct]
        video = _Video(name, row_of=row_of, clips=len(clips), left=len(clips))
        self._videos.append(video)
        self._pieces.append((video, clips))
        self._waiting += len(clips)
        while self._waiting >= self.settings.batch_size or (self._waiting and not self.mixed):
            self._start_pass()

    def finished(self, *, wait: bool = False) -> Iterator[tuple[Any, Tensor | Exception]]:
        """Yield (name, scores [C] or exception) of the videos that are done, in their order.

        wait: of all videos; the last pass may then be a small one.
        """
        while wait and self._waiting:
            self._start_pass()
        while len(self._passes) > (0 if wait else _MOST_WAITING):
            self._end_pass()
        while self._videos and (self._videos[0].error is not None or not self._videos[0].left):
            video = self._videos.popleft()
            yield video.name, video.outcome()

    def _start_pass(self) -> None:
        owners: list[tuple[_Video, int]] = []
        pieces: list[Tensor] = []
        room = self.settings.batch_size
        while room and self._pieces:
            video, clips = self._pieces.popleft()
            part, rest = clips[:room], clips[room:]
            if len(rest):
                self._pieces.appendleft((video, rest))
            owners.append((video, len(part)))
            pieces.append(part)
            room -= len(part)
            self._waiting -= len(part)
        try:
            self._passes.append(self._forward(pieces, owners))
        except torch.OutOfMemoryError as error:
            size = self.smaller()
            if size is None:
                for video, _ in owners:
                    self._fail(video, error)
            else:
                self.settings = replace(self.settings, batch_size=size)
                for (video, count), part in zip(owners[::-1], pieces[::-1], strict=True):
                    self._pieces.appendleft((video, part))
                    self._waiting += count
            return
        if self.device.type != "cuda":
            self._end_pass()

    def _fail(self, video: _Video, error: Exception) -> None:
        """Give up a video: its clips that still wait are dropped."""
        video.error = error
        self._pieces = deque(piece for piece in self._pieces if piece[0] is not video)
        self._waiting = sum(len(clips) for _, clips in self._pieces)

    def _forward(self, pieces: list[Tensor], owners: list[tuple[_Video, int]]) -> _Pass:
        """Queue a forward pass and the copy of its scores."""
        moved = [piece.to(self.device, non_blocking=True) for piece in pieces]
        batch = moved[0] if len(moved) == 1 else torch.cat(moved)
        scores = score_batch(self.model, batch, self.settings)
        if self.device.type != "cuda":
            return _Pass(scores, owners, arrived=lambda: None)
        here = torch.empty(scores.shape, dtype=scores.dtype, pin_memory=True)
        here.copy_(scores, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return _Pass(here, owners, arrived=event.synchronize)

    def _end_pass(self) -> None:
        """Wait for the oldest pass and hand out its rows."""
        ended = self._passes.popleft()
        ended.arrived()
        rows = ended.scores.split([count for _, count in ended.owners])
        for (video, count), part in zip(ended.owners, rows, strict=True):
            video.rows.append(part)
            video.left -= count
            self.on_clips(video.name, count / video.clips)
