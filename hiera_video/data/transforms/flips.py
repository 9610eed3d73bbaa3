"""Label-aware flips of camera-motion clips (AUG.SYMMETRIES): in space and in time.

    flips = LabelAwareFlips(camera_motion.LABELS)
    batch = flips(batch, seed=1, epoch=3)

A mirrored `pan left` is a `pan right`, so every clip can be used in eight ways, each with its right
label. In other data a mirrored or reversed video may have no label or a wrong one; `check_flip`
forbids it there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hiera_video.data.batch import Batch
from hiera_video.data.randomness import generator_for, uniform
from hiera_video.errors import UserError

# Pairs of labels that are swapped; all others stay. Transposing swaps the axes of the picture.
_PAN, _TILT = ("pan left", "pan right"), ("tilt up", "tilt down")
_ZOOM, _ROLL = ("zoom in", "zoom out"), ("roll clockwise", "roll counter-clockwise")
LABEL_SWAPS = {
    "mirror": (_PAN, _ROLL),
    "reverse": (_PAN, _TILT, _ZOOM, _ROLL),
    "transpose": (("pan left", "tilt up"), ("pan right", "tilt down"), _ROLL),
}
"""Flip -> the pairs of labels that it swaps."""

_NAMED = ("static", *_PAN, *_TILT, *_ZOOM, *_ROLL)


class LabelAwareFlips:
    """Applies each flip to each clip of a batch with probability 0.5, and adapts the labels.

    Attributes:
        new_labels: flip -> int64 [9], the label that each label becomes.

    Raises UserError unless the classes are the camera motions, in any order.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        if sorted(classes) != sorted(_NAMED):
            listed = ", ".join(map(repr, classes[:5])) + (", ..." if len(classes) > 5 else "")
            raise UserError(
                f"AUG.SYMMETRIES is for the nine camera motions ({', '.join(_NAMED)}); the classes "
                f"here are {listed or 'unnamed'}: switch it off"
            )
        place = {name: number for number, name in enumerate(classes)}
        self.new_labels = {}
        for flip, pairs in LABEL_SWAPS.items():
            table = torch.arange(len(classes))
            for one, other in pairs:
                table[place[one]], table[place[other]] = place[other], place[one]
            self.new_labels[flip] = table

    def __call__(self, batch: Batch, *, seed: int, epoch: int) -> Batch:
        """Flip the clips, each a function of (seed, epoch, video, view).

        Labels must be int64 [B], clips square. `batch` is not modified.
        """
        clips, labels = [], []
        for clip, label, video, view in zip(
            batch.clips,
            batch.labels.tolist(),
            batch.video_ids.tolist(),
            batch.views.tolist(),
            strict=True,
        ):
            generator = generator_for("symmetries", seed, epoch, video, view)
            coins = uniform(generator, len(LABEL_SWAPS))
            for flip, coin in zip(LABEL_SWAPS, coins, strict=True):
                if coin < 0.5:
                    clip = apply_flip(clip, flip)
                    label = int(self.new_labels[flip][label])
            clips.append(clip)
            labels.append(label)
        if not clips:
            return batch
        new = torch.tensor(labels, dtype=batch.labels.dtype, device=batch.labels.device)
        return batch._replace(clips=torch.stack(clips), labels=new)


def apply_flip(clip: Tensor, flip: str) -> Tensor:
    """Flip a clip [3, T, S, S]; `flip` is a key of `LABEL_SWAPS`."""
    if flip == "mirror":
        return clip.flip(-1)
    if flip == "reverse":
        return clip.flip(1)
    return clip.transpose(-1, -2)
