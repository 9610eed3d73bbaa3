"""The frames of a video's views, each decoded and cropped once: what travels between processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hiera_video.video.sampling import Indices


class VideoFacts(NamedTuple):
    """What is said of a video beside its labels."""

    decoder: str
    """The library that read it."""
    frames: int
    """Of the whole video."""
    seconds: float
    """Of the whole video."""


class ViewCrops(NamedTuple):
    """The crops of the frames that K views share."""

    place: npt.NDArray[np.int64]
    """[K, T]: which of the U frames each view shows when."""
    crops: list[Tensor]
    """S times uint8 [U, 3, H, W]."""
    facts: VideoFacts | None = None
    """Of the video; where it was read ahead."""

    def clips(self) -> list[Tensor]:
        """K * S clips uint8 [T, 3, H, W]; the crops of a view are neighbours."""
        rows = torch.from_numpy(self.place)
        return [crop[frames] for frames in rows for crop in self.crops]

    def stacked(self, *, pinned: bool = False) -> Tensor:
        """The clips as uint8 [K * S, 3, T, H, W]; pinned: in page-locked memory, from where copies
        to a GPU do not wait."""
        views, frames = self.place.shape
        size = (views * len(self.crops), frames, *self.crops[0].shape[1:])
        out = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        rows = torch.from_numpy(self.place)
        for number, clip in enumerate(out):
            view, crop = divmod(number, len(self.crops))
            torch.index_select(self.crops[crop], 0, rows[view], out=clip)
        return out.transpose(1, 2)


def read_view_crops(read_crops: Callable[[Indices], list[Tensor]], views: Indices) -> ViewCrops:
    """Read the frames of `views` [K, T] of a video, each once and in its order.

    read_crops: reads frames [T] and cuts them: S times uint8 [T, 3, H, W], in bounded memory.
    """
    wanted, back = np.unique(views, return_inverse=True)
    return ViewCrops(back.reshape(views.shape).astype(np.int64), read_crops(wanted))
