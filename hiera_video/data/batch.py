"""`Batch`, the one thing that the data hands to the engine, and its collation from single videos.

Clips stay uint8 and are normalised on the device that computes: a quarter of the bytes through
shared memory, page-locked memory and the bus, and less work for the workers, which decide how fast
a GPU is fed. `engine/prefetch.py` does this one batch ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.boxes import BatchBoxes
from hiera_video.data.transforms.normalize import normalize_clips
from hiera_video.data.transforms.train import Pixels


class Failed(NamedTuple):
    """A video that could not be read."""

    video_id: int
    path: str
    reason: str


class Clips(NamedTuple):
    """The N clips of one video; they are neighbours in a batch."""

    clips: list[Pixels]
    """N times uint8 [T, 3, S, S]."""
    label: int | tuple[int, ...]
    video_id: int


class Erasures(NamedTuple):
    """The boxes to erase in the clips of a batch, in the order in which they are filled."""

    boxes: tuple[tuple[int, int, int, int, int], ...] = ()
    """(clip, top, left, height, width) each."""
    noise: Tensor | None = None
    """Flat float32: the contents of the boxes, [3, T, height, width] each, one after the other.
    None fills them with zero."""

    def erase(self, clips: Tensor) -> None:
        """Fill the boxes of normalised clips [B, 3, T, S, S], in place."""
        start = 0
        for clip, top, left, height, width in self.boxes:
            region = clips[clip, :, :, top : top + height, left : left + width]
            if self.noise is None:
                region.zero_()
            else:
                region.copy_(self.noise[start : start + region.numel()].view(region.shape))
                start += region.numel()


class Batch(NamedTuple):
    """Clips with their labels.

    B counts clips: videos x temporal clips x augmentations (training) or x views (test). It is
    smaller where videos failed, down to 0.
    """

    clips: Tensor
    """uint8 [B, 3, T, S, S] in any memory layout, as loaders give it; float32 after `normalized`.
    """
    labels: Tensor
    """int64 [B] (-1: no label); float32 [B, K] of zeros and ones for multi-label data. MixUp and
    CutMix turn both into soft targets, float32 [B, K]."""
    video_ids: Tensor
    """int64 [B]: index of the video in the manifest. Always on the CPU."""
    views: Tensor
    """int64 [B]: which clip of its video. Always on the CPU."""
    failed: tuple[Failed, ...] = ()
    """The videos of this batch that could not be read."""
    erased: Erasures = Erasures()
    """The boxes that `normalized` erases."""
    truth: Tensor | None = None
    """float32 [B, K, T', G, G]: what is known of generated clips, over time and cells; None for
    videos."""
    boxes: BatchBoxes | None = None
    """The boxes of the clips, where the data set has some."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch with its clips and labels on `device`."""
        moved = {
            name: tensor.to(device, non_blocking=non_blocking)
            for name, tensor in self.device_tensors().items()
        }
        boxes = self.boxes
        if boxes is not None:
            boxes = BatchBoxes(*(moved.pop(f"boxes.{name}") for name in boxes._fields))
        erased = self.erased._replace(noise=moved.pop("noise", None))
        return self._replace(**moved, erased=erased, boxes=boxes)  # type: ignore[arg-type]

    def device_tensors(self) -> dict[str, Tensor]:
        """The tensors that `to` moves, by the names of their fields; the erasures' noise, and those
        of the boxes."""
        tensors = {
            "clips": self.clips,
            "labels": self.labels,
            "truth": self.truth,
            "noise": self.erased.noise,
        }
        if self.boxes is not None:
            tensors |= {f"boxes.{name}": part for name, part in self.boxes._asdict().items()}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def normalized(self, spec: ClipSpec) -> Batch:
        """The batch as models take it: contiguous float32 clips [B, 3, T, S, S], normalised and
        erased. A batch that is float32 already is returned as it is."""
        if self.clips.dtype != torch.uint8:
            return self
        clips = normalize_clips(self.clips, spec)
        self.erased.erase(clips)
        return self._replace(clips=clips, erased=Erasures())


@dataclass(frozen=True)
class Collate:
    """Collate function of a DataLoader: the clips of several videos -> one `Batch`.

    In a worker process the clips are copied straight into shared memory.
    """

    spec: ClipSpec
    num_classes: int
    """Columns of multi-hot labels; 0 for one label per video."""

    def __call__(self, items: Sequence[Clips | Failed]) -> Batch:
        failed = tuple(item for item in items if isinstance(item, Failed))
        videos = [item for item in items if isinstance(item, Clips)]
        pixels = [clip for video in videos for clip in video.clips]
        counts = torch.tensor([len(video.clips) for video in videos], dtype=torch.int64)
        ids = torch.tensor([video.video_id for video in videos], dtype=torch.int64)
        views = [torch.arange(count) for count in counts.tolist()]
        return Batch(
            clips=_stack([clip.frames for clip in pixels]) if pixels else self._no_clips(),
            labels=self._labels([v.label for v in videos]).repeat_interleave(counts, dim=0),
            video_ids=ids.repeat_interleave(counts),
            views=torch.cat(views) if views else counts,
            failed=failed,
            erased=_erasures(pixels),
            truth=_truth(pixels),
            boxes=_boxes(pixels),
        )

    def _labels(self, labels: Sequence[int | tuple[int, ...]]) -> Tensor:
        if not self.num_classes:
            return torch.tensor(labels, dtype=torch.int64)
        multi_hot = torch.zeros(len(labels), self.num_classes)
        for row, several in zip(multi_hot, labels, strict=True):
            row[[several] if isinstance(several, int) else list(several)] = 1
        return multi_hot

    def _no_clips(self) -> Tensor:
        size = self.spec.crop_size
        return torch.empty(0, 3, self.spec.num_frames, size, size, dtype=torch.uint8)


def _stack(clips: Sequence[Tensor]) -> Tensor:
    """Stack B clips uint8 [T, 3, S, S] into [B, 3, T, S, S].

    Where the first clip is channels-last in memory, so is the batch: reordering the bytes costs
    more than the copy, and a GPU does it at no cost while it normalises.
    """
    if clips[0].stride(1) == 1:
        return default_collate([clip.permute(0, 2, 3, 1) for clip in clips]).permute(0, 4, 1, 2, 3)
    return default_collate(list(clips)).transpose(1, 2)


def _truth(clips: Sequence[Pixels]) -> Tensor | None:
    """What is known of all clips of a batch, stacked; None where they are videos."""
    known = [clip.truth for clip in clips if clip.truth is not None]
    return default_collate(known) if known else None


def _boxes(clips: Sequence[Pixels]) -> BatchBoxes | None:
    """The boxes of all clips of a batch; None where the clips have no such list."""
    known = [clip.boxes for clip in clips if clip.boxes is not None]
    return BatchBoxes.of(known) if known else None


def _erasures(clips: Sequence[Pixels]) -> Erasures:
    """The erasures of all clips of a batch."""
    rows = [(row, erasure) for row, clip in enumerate(clips) for erasure in clip.erased]
    boxes = tuple((row, *erasure[:4]) for row, erasure in rows)
    noise = [erasure.noise.flatten() for _, erasure in rows if erasure.noise is not None]
    return Erasures(boxes, torch.cat(noise) if noise else None)
