"""MixUp, CutMix and label smoothing: a batch with labels -> a batch with soft targets.

    mixup = MixUpCutMix(num_classes=400)             # the recipe: 0.8, 1.0, 1.0, 0.5, smoothing 0.1
    batch = mixup(batch, seed=1, step=120)           # labels are now float32 [B, 400]

PyTorchVideo's MixUp and CutMix do what the recipe does (timm's batch mode, SlowFast): one strength
for the whole batch, MixUp or CutMix at random, clip i mixed with clip B - 1 - i, and the label's
share corrected for a box that is cut off at the border. torchvision's MixUp and CutMix pair each
clip with its *neighbour*, which under repeated sampling is its own copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.compat import ensure_pytorchvideo
from hiera_video.data.batch import Batch
from hiera_video.data.randomness import draw_seed, generator_for, global_seed, uniform
from hiera_video.errors import UserError


@dataclass(frozen=True)
class MixUpCutMix:
    """MixUp or CutMix with label smoothing; arguments as in timm's `Mixup`, defaults are Hiera's on
    Kinetics.

    Raises UserError for a value out of range.
    """

    num_classes: int
    mixup_alpha: float = 0.8
    """MixUp's strength is drawn from Beta(alpha, alpha); 0 is off."""
    cutmix_alpha: float = 1.0
    """CutMix's strength is drawn from Beta(alpha, alpha); 0 is off."""
    prob: float = 1.0
    """Probability that a batch is mixed at all."""
    switch_prob: float = 0.5
    """Probability of CutMix, not MixUp, where both are on."""
    label_smoothing: float = 0.1
    """Share of a label that is spread over all classes."""

    def __post_init__(self) -> None:
        for name, most in (
            ("prob", 1),
            ("switch_prob", 1),
            ("label_smoothing", 0.999),
            ("mixup_alpha", float("inf")),
            ("cutmix_alpha", float("inf")),
        ):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise UserError(f"mixing {name}={value!r} must be between 0 and {most}")

    def __call__(self, batch: Batch, *, seed: int, step: int, part: int = 0) -> Batch:
        """Mix the clips in pairs: the batch, reordered, with float32 targets [B, K].

        The result is a function of (batch, seed, step, part); `part` numbers the processes and
        accumulated batches of one step. `batch` is not modified. Clips of the same video are mixed
        with each other only if one video fills more than half of the batch; of an odd number of
        clips, one stays unmixed.
        """
        targets = smooth_labels(batch.labels, self.num_classes, self.label_smoothing)
        chance, switch, lent_seed = self._draw(seed, step, part)
        off = self.mixup_alpha == self.cutmix_alpha == 0
        if chance >= self.prob or off or len(batch.labels) < 2:
            return batch._replace(labels=targets)
        order = pair_across_videos(batch.video_ids)
        order_on_device = order.to(batch.clips.device, non_blocking=True)
        with global_seed(lent_seed):
            # PyTorchVideo mixes single labels only. With its own row number as the label of each
            # clip it returns the mixing matrix, which then applies to any kind of target.
            mix = self._mix(switch, num_classes=len(order))
            clips, shares = mix(batch.clips[order_on_device], torch.arange(len(order)))
        return batch._replace(
            clips=clips,
            labels=shares.to(targets, non_blocking=True) @ targets[order_on_device],
            video_ids=batch.video_ids[order],
            views=batch.views[order],
        )

    def _draw(self, seed: int, step: int, part: int) -> tuple[float, float, int]:
        generator = generator_for("mixing", seed, step, part)
        chance, switch = uniform(generator, 2)
        return chance, switch, draw_seed(generator)

    def _mix(self, switch: float, num_classes: int) -> torch.nn.Module:
        ensure_pytorchvideo()
        from pytorchvideo.transforms.mix import CutMix, MixUp

        cutmix = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or switch < self.switch_prob)
        if cutmix:
            return CutMix(self.cutmix_alpha, num_classes=num_classes)
        return MixUp(self.mixup_alpha, num_classes=num_classes)


def smooth_labels(labels: Tensor, num_classes: int, amount: float) -> Tensor:
    """Smooth labels, int64 [B] or float [B, K]: float32 targets [B, K].

    With one label per clip `amount` is spread over all classes, and a row still sums to 1. With
    several (zeros and ones), each class moves towards one half, as binary losses need it.
    """
    if labels.ndim == 1:
        one_hot = F.one_hot(labels, num_classes).float()
        return one_hot * (1 - amount) + amount / num_classes
    return labels.float() * (1 - amount) + amount / 2


def pair_across_videos(video_ids: Tensor) -> Tensor:
    """Order the clips so that clip i and clip B - 1 - i are of different videos: int64 [B].

    `[0, 0, 1, 1, 2, 2]` -> videos `0 0 1 2 2 1`. In the given order, copies of one video are
    neighbours, and the middle ones would be paired with each other. Where one video has more than
    half of the clips, some of its copies are paired all the same.
    """
    by_video = torch.argsort(video_ids.cpu(), stable=True)
    half = len(by_video) // 2
    # Half a batch apart in sorted order, two clips are of one video only if it fills that half.
    first, middle, second = by_video.tensor_split([half, len(by_video) - half])
    return torch.cat([first, middle, second.flip(0)])
