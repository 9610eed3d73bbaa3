"""From uint8 clips to the float32 clips that a model takes.

Clips travel as uint8, a quarter of the bytes, and are normalised on the device that computes.

With `ClipSpec.normalize_brightness` each clip is first brought to the same levels, so that a model
trained on well lit videos also reads dark, pale and overexposed ones. With the 1st, 50th and 99th
percentile of all its values, low, median and high,

    x' = clamp((x - low) / max(high - low, 8), 0, 1)        the range that is used becomes 0 to 1
    y  = x' ** gamma, gamma such that the median becomes 0.4, but between 0.2 and 2

and y is what mean and std are applied to. A rising map of the values moves percentiles along: the
percentile of the mapped clip is the mapped percentile. So a change of gain or offset leaves x' as
it was and one of gamma leaves y, but for what 8 bits round and clip. All frames and colours of a
clip share one map: flicker and the ratios of colours stay.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hiera_video.clip_spec import ClipSpec


def normalize(frames: Tensor, spec: ClipSpec) -> Tensor:
    """uint8 [T, 3, S, S] -> float32 [3, T, S, S]: to [0, 1], minus the mean, over the standard
    deviation; to the same levels before that, where the spec says so."""
    return normalize_clips(frames.transpose(0, 1)[None], spec)[0]


def normalize_clips(clips: Tensor, spec: ClipSpec, *, out: Tensor | None = None) -> Tensor:
    """`normalize` for clips uint8 [B, 3, T, S, S], on the device where they are: float32, the same
    shape, contiguous or in `out`. The same numbers, bit for bit, for any B and any layout."""
    if out is None:
        out = torch.empty(clips.shape, dtype=torch.float32, device=clips.device)
    if spec.normalize_brightness:
        return _normalize_brightness(clips, spec, out)
    # Colour by colour and in place: a third of the time of one broadcast over all three, whose
    # temporaries are as large as the clips. (x / 255 - mean) / std == x * scale + shift.
    for colour, (m, s) in enumerate(zip(spec.mean, spec.std, strict=True)):
        out[:, colour].copy_(clips[:, colour]).mul_(1 / (255 * s)).add_(-m / s)
    return out


# ---- brightness ---------------------------------------------------------------------------------
#
# A clip has at most 256 different values: a table holds what becomes of each. Nothing here waits
# for a GPU, so that the next batch is prepared while it computes.

LOW, MIDDLE, HIGH = 1, 50, 99
"""Percentiles of a clip that are brought to 0, to `MEDIAN` and to 1."""

MEDIAN = 0.4

GAMMAS = (0.2, 2.0)
"""Least and largest exponent: what is nearly black or white has noise to show, not a picture."""

SMALLEST_RANGE = 8
"""Levels between the percentiles below which a clip is stretched no further."""

_VALUES_AT_ONCE = 1 << 21
"""Pixels x colours of the clips looked up together: small clips need few calls on a GPU, large ones
no temporary tensors of the size of a batch."""


def _normalize_brightness(clips: Tensor, spec: ClipSpec, out: Tensor) -> Tensor:
    """`normalize_clips` for a spec with `normalize_brightness`."""
    step = max(1, _VALUES_AT_ONCE // max(1, math.prod(clips.shape[1:])))
    for some, target in zip(clips.split(step), out.split(step), strict=True):
        tables = _tables(_histograms(some), spec)
        for colour in range(3):
            _look_up(some[:, colour], tables[:, colour], target[:, colour])
    return out


def _look_up(frames: Tensor, tables: Tensor, out: Tensor) -> None:
    """out[b] = tables[b][frames[b]] for uint8 [B, T, S, S] and float32 [B, 256]."""
    starts = 256 * torch.arange(len(frames), dtype=torch.int32, device=frames.device)
    places = torch.empty(frames.shape, dtype=torch.int32, device=frames.device)
    torch.add(frames, starts.view(-1, 1, 1, 1), out=places)
    out.copy_(tables.reshape(-1).index_select(0, places.view(-1)).view(frames.shape))


def _histograms(clips: Tensor) -> Tensor:
    """How often each value occurs in each clip uint8 [B, 3, T, S, S]: int64 [B, 256]."""
    if clips.is_cuda:
        return _histograms_without_waiting(clips)
    counts = [torch.bincount(_in_memory_order(clip), minlength=256) for clip in clips]
    return torch.stack(counts) if counts else torch.zeros((0, 256), dtype=torch.int64)


def _histograms_without_waiting(clips: Tensor) -> Tensor:
    """`_histograms` for a GPU: bincount, a quarter of the time on a CPU, would wait for it."""
    # Frame by frame: a dark clip would have millions of additions to one number wait in line.
    values = clips.flatten(3).flatten(1, 2).long()  # [B, 3 * T, S * S]
    one = torch.ones(1, dtype=torch.int64, device=clips.device).expand(values.shape)
    by_frame = torch.zeros((*values.shape[:2], 256), dtype=torch.int64, device=clips.device)
    return by_frame.scatter_add_(2, values, one).sum(1)


def _in_memory_order(clip: Tensor) -> Tensor:
    """All values in one row, whose order does not matter: without a copy if the clip is dense."""
    order = sorted(range(clip.ndim), key=clip.stride, reverse=True)
    return clip.permute(order).reshape(-1)


def _tables(histograms: Tensor, spec: ClipSpec) -> Tensor:
    """What each value of each colour becomes, by the clip's histogram: float32 [B, 3, 256]."""
    counts = histograms.cumsum(1)
    low, middle, high = (
        (100 * counts < percent * counts[:, -1:]).sum(1, keepdim=True)
        for percent in (LOW, MIDDLE, HIGH)
    )
    # float64: a float32 power differs in its last digit between the ends and the middle of a row.
    values = torch.arange(256, dtype=torch.float64, device=histograms.device)
    x = ((values - low) / (high - low).clamp(min=SMALLEST_RANGE)).clamp(0, 1)
    # The limits of gamma as limits of the median, which cannot divide by zero.
    least, most = (MEDIAN ** (1 / gamma) for gamma in GAMMAS)
    gamma = math.log(MEDIAN) / x.gather(1, middle).clamp(least, most).log()
    y = x**gamma
    colours = [(y - m) / s for m, s in zip(spec.mean, spec.std, strict=True)]
    return torch.stack(colours, dim=1).float()
