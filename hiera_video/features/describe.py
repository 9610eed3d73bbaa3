"""From a video file to vectors: one of the whole video, or one of each window.

Which clips are read, and how, is the test's and the demo's way (`data/views.py`,
`video/sampling.py`). A window that is shorter than a clip has the clip around its middle: windows
of half a second on clips of two are sliding clips with a stride of half a second.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hiera_video.data.views import Reader, read_test_views, read_views
from hiera_video.errors import DecodeError, UserError
from hiera_video.features.encoder import DTYPE_NAMES, Encoder
from hiera_video.features.settings import FeatureSettings
from hiera_video.video.crops import check_num_crops
from hiera_video.video.decode import open_video
from hiera_video.video.guarded_pool import GuardedPool
from hiera_video.video.guarded_video import GuardedVideo
from hiera_video.video.sampling import WindowClips, check_window, window_clips

Vectors = npt.NDArray[np.floating[Any]]

MOST_WINDOWS = 200_000
"""Of one video: beyond it, a clock that jumps is likelier than a video of that length."""

MOST_BYTES = 4 << 30
"""Of the vectors of one video, which are held until all of them are there."""

_LEAST_CLIPS = 8
"""Clips that are read at once: the frames that neighbouring windows share are decoded once."""


@dataclass(frozen=True)
class Described:
    """The vectors of a video: N windows, D numbers each."""

    starts: list[float]
    """[N], seconds from the first frame."""
    ends: list[float]
    vectors: Vectors
    """float32 [N, D]."""


class Describer:
    """Describes videos by a frozen model: path in, `Described` out.

    Args:
        encoder: the model, and what is read of it.
        views: clips in time x crops in space, over which vectors are averaged.
        every: seconds from a window to the next; None: one vector for the whole video.
        process: child process that reads the files (`video.decoding_process`), so that a file that
            crashes or hangs a decoder raises DecodeError. None: they are read here.
        decoder: "auto" or the name of one, see `video/decode.py`.

    Raises UserError for settings that are not possible.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        views: tuple[int, int] = (2, 1),
        every: float | None = None,
        process: GuardedPool | None = None,
        decoder: str = "auto",
    ) -> None:
        check_num_crops(views[1])
        if views[0] < 1:
            raise UserError(f"views={views}: at least 1 clip in time")
        if every is not None:
            check_window(every)
        if encoder.options.pool == "tokens" and views != (1, 1):
            raise UserError(
                f"pool tokens with {views[0]}x{views[1]} views: the mean over clips would mix "
                "different moments in one place; use --views 1x1, and --every SECONDS for more "
                "clips"
            )
        self.encoder = encoder
        self.views = views
        self.every = every
        self.process = process
        self.decoder = decoder

    def settings(self, stored_as: str, root: str = "") -> FeatureSettings:
        """Return what a file of these vectors says of itself; see `FeatureSettings`."""
        encoder = self.encoder
        return FeatureSettings(
            model=encoder.name,
            weights=encoder.weights,
            weights_sha256=encoder.sha256,
            layer=encoder.layer,
            pool=encoder.options.pool,
            shape=encoder.shape,
            views=self.views,
            every=self.every,
            clip=encoder.spec,
            computed_in=DTYPE_NAMES[encoder.dtype],
            stored_as=stored_as,
            root=root,
        )

    def __call__(
        self, path: str | os.PathLike[str], on_progress: Callable[[float], None] | None = None
    ) -> Described:
        """Describe one video.

        on_progress: called with the share of the video that is done, 0 to 1.

        Raises DecodeError for a file that cannot be decoded, RunFailed if the model cannot be run
        on it.
        """
        with self._open(path) as reader:
            if self.every is None:
                clips = read_test_views(reader, self.encoder.spec, *self.views)
                vector = self.encoder(clips).mean(dim=0).flatten()
                return Described([0.0], [reader.info.duration], vector.numpy()[None])
            return self._windows(reader, on_progress or (lambda share: None))

    def _open(self, path: str | os.PathLike[str]) -> Reader:
        if self.process is None:
            return open_video(path, self.decoder)
        return GuardedVideo(path, self.process, self.decoder)

    def _windows(self, reader: Reader, on_progress: Callable[[float], None]) -> Described:
        info, spec = reader.info, self.encoder.spec
        assert self.every is not None
        _require_bounded(info.path, info.duration / self.every, math.prod(self.encoder.shape))
        starts, ends, vectors = [], [], []
        windows = window_clips(info.times, info.fps, spec, self.every, self.views[0])
        at_once = max(self.encoder.options.batch_size, _LEAST_CLIPS)
        for some in _grouped(windows, at_once):
            clips = read_views(reader, np.concatenate([w.views for w in some]), spec, self.views[1])
            counts = [len(window.views) * self.views[1] for window in some]
            for part in self.encoder(clips).split(counts):
                vectors.append(part.mean(dim=0).flatten().numpy())
            starts += [window.start for window in some]
            ends += [window.end for window in some]
            on_progress(min(ends[-1] / max(info.duration, ends[-1]), 1.0))
        return Described(starts, ends, np.stack(vectors))


def _require_bounded(path: str, windows: float, numbers: int) -> None:
    """Raise DecodeError for more windows, or larger ones, than a video may have."""
    if windows > MOST_WINDOWS:
        raise DecodeError(path, f"more than {MOST_WINDOWS:,} windows; choose a longer --every")
    if 4 * windows * numbers > MOST_BYTES:
        raise DecodeError(
            path,
            f"{windows:,.0f} windows of {numbers:,} numbers are more than "
            f"{MOST_BYTES / 2**30:.3g} GiB; choose a longer --every, or --pool mean",
        )


def _grouped(windows: Iterator[WindowClips], clips: int) -> Iterator[list[WindowClips]]:
    """Neighbouring windows, at least `clips` clips together but for the last ones."""
    some: list[WindowClips] = []
    for window in windows:
        some.append(window)
        if sum(len(one.views) for one in some) >= clips:
            yield some
            some = []
    if some:
        yield some


def every_window(described: Described, every: float, path: str) -> Vectors:
    """The matrix [windows, D] in which row i is the window from i * every on, without gaps.

    A window in which no frame begins shows the frame before: it has the vector of the window
    before. Raises DecodeError, which names `path`, where a jump of the clock gives too many rows.
    """
    numbers = np.round(np.asarray(described.starts) / every).astype(np.int64)
    count = int(numbers[-1]) + 1
    if count > max(MOST_WINDOWS, 2 * len(numbers)):
        raise DecodeError(
            path, f"its clock jumps: {count:,} windows for {len(numbers):,} with frames"
        )
    rows = np.searchsorted(numbers, np.arange(count), side="right") - 1
    return described.vectors[np.maximum(rows, 0)]
