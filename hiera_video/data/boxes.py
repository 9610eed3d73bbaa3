"""The boxes of clips: which parts of a picture a model scores, and what is seen there.

A box is (x1, y1, x2, y2), left, top, right, bottom, as shares of the picture's width and height.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ClipBoxes(NamedTuple):
    """The N boxes of one clip, in the pictures that the model gets; N may be 0."""

    corners: Tensor
    """float32 [N, 4]: x1, y1, x2, y2 in [0, 1] of the clip's own (cropped, mirrored) pictures."""
    labels: Tensor
    """float32 [N, C]: 1 for what is seen in the box, else 0; [N, 0] where labels are not needed."""
    rows: Tensor
    """int64 [N]: the place of each box in its list, by which its scores are known again."""


class BatchBoxes(NamedTuple):
    """The boxes of a batch of clips, one clip after the other."""

    clips: Tensor
    """int64 [N]: the clip of the batch that each box is in, ascending."""
    corners: Tensor
    """float32 [N, 4], as in `ClipBoxes`."""
    labels: Tensor
    """float32 [N, C]."""
    rows: Tensor
    """int64 [N]."""

    @classmethod
    def of(cls, clips: Sequence[ClipBoxes]) -> BatchBoxes:
        """Join the boxes of clips, in their order."""
        counts = torch.tensor([len(boxes.rows) for boxes in clips])
        return cls(
            torch.arange(len(clips)).repeat_interleave(counts),
            torch.cat([boxes.corners for boxes in clips]),
            torch.cat([boxes.labels for boxes in clips]),
            torch.cat([boxes.rows for boxes in clips]),
        )

    def for_model(self) -> Tensor:
        """float32 [N, 5], as models take boxes: the clip, then x1, y1, x2, y2."""
        return torch.cat([self.clips[:, None].to(self.corners), self.corners], dim=1)
