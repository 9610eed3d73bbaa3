"""Camera-motion clips mirrored, transposed and reversed in time, with the labels they then have.

    symmetries = Symmetries(synthetic.LABELS)
    batch = symmetries(batch, seed=1, epoch=3)

A mirrored `pan left` is a `pan right`: eight clips for every one that is drawn, all true. Elsewhere
a mirrored or reversed video has no label or a wrong one, which is why `check_flip` forbids it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hiera_video.data.batch import Batch
from hiera_video.data.randomness import generator_for, uniform
from hiera_video.errors import UserError

# Pairs of labels that change places; all others stay. Transposing swaps the picture's axes.
_PAN, _TILT = ("pan left", "pan right"), ("tilt up", "tilt down")
_ZOOM, _ROLL = ("zoom in", "zoom out"), ("roll clockwise", "roll counter-clockwise")
SWAPS = {
    "mirror": (_PAN, _ROLL),
    "reverse": (_PAN, _TILT, _ZOOM, _ROLL),
    "transpose": (("pan left", "tilt up"), ("pan right", "tilt down"), _ROLL),
}
"""What becomes of the labels when a clip is mirrored, played backwards, or transposed."""

_NAMED = ("static", *_PAN, *_TILT, *_ZOOM, *_ROLL)


class Symmetries:
    """Each clip of a batch as it is, mirrored, transposed and reversed, each by a coin of its own.

    Raises UserError unless the classes are the camera motions, in any order.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        if sorted(classes) != sorted(_NAMED):
            shown = ", ".join(map(repr, classes[:5])) + (", ..." if len(classes) > 5 else "")
            raise UserError(
                f"AUG.SYMMETRIES is for the nine camera motions ({', '.join(_NAMED)}); the classes "
                f"here are {shown or 'unnamed'}: switch it off"
            )
        place = {name: number for number, name in enumerate(classes)}
        self.becomes = {}
        """For each change, int64 [9]: the label that each label becomes."""
        for change, pairs in SWAPS.items():
            table = torch.arange(len(classes))
            for one, other in pairs:
                table[place[one]], table[place[other]] = place[other], place[one]
            self.becomes[change] = table

    def __call__(self, batch: Batch, *, seed: int, epoch: int) -> Batch:
        """The changed batch, a function of (seed, epoch, video, view) for each clip.

        Labels must be int64 [B], clips square; `batch` is left as it was.
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
            coins = uniform(generator, len(SWAPS))
            for change, coin in zip(SWAPS, coins, strict=True):
                if coin < 0.5:
                    clip = changed(clip, change)
                    label = int(self.becomes[change][label])
            clips.append(clip)
            labels.append(label)
        if not clips:
            return batch
        new = torch.tensor(labels, dtype=batch.labels.dtype, device=batch.labels.device)
        return batch._replace(clips=torch.stack(clips), labels=new)


def changed(clip: Tensor, change: str) -> Tensor:
    """A clip [3, T, S, S] after one of `SWAPS`."""
    if change == "mirror":
        return clip.flip(-1)
    if change == "reverse":
        return clip.flip(1)
    return clip.transpose(-1, -2)
