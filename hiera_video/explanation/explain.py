"""Explain the label of a video: of all its views, the clip that speaks most for the label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hiera_video.errors import UserError
from hiera_video.explanation.heat import Heat, strengths
from hiera_video.explanation.relevance import (
    PASSES,
    Relevance,
    clip_relevance,
    require_gradients,
)
from hiera_video.scoring import ScoreSettings, clip_scores
from hiera_video.video.crops import Area

_CHOOSING = 0.3
"""The share of the work that goes into scoring the views once more."""


class VideoViews(NamedTuple):
    """The K x S views of a video: its clips, with T frames each."""

    file: str
    clips: Tensor
    """uint8 [K * S, 3, T, H, W]; the crops of a view are neighbours."""
    times: NDArray[np.float64]
    """[K, T], seconds from the first frame."""
    areas: Sequence[Area]
    """S: what each crop shows of the picture."""


@dataclass(frozen=True)
class Explanation:
    """Why a video got a label.

    T frames of the clip, T' = ceil(T / 2).
    """

    file: str
    label: str
    score: float
    """Of the clip, not of the video: a probability."""
    relevance: Relevance
    times: NDArray[np.float64]
    """[T], seconds from the first frame of the video."""
    pixels: NDArray[np.uint8]
    """The clip, [T, H, W, 3]."""
    area: Area
    """What the clip shows of the picture."""

    @property
    def lines(self) -> tuple[str, str]:
        """Which clip was explained, and where its logit comes from, for people."""
        found = self.relevance
        start, end = self.times[0], self.times[-1]
        return (
            f"the clip from {start:.1f} to {end:.1f} s, {self.score:.1%} for this label",
            f"logit {found.clip:.1f} = {found.grey:.1f} without a picture "
            f"{_signed(found.appearance)} still picture {_signed(found.motion)} motion",
        )

    @property
    def heat(self) -> Heat:
        """Return it as colours for the frames of the video."""
        return Heat(self.times, strengths(self.relevance.cells), self.area)

    def to_dict(self) -> dict[str, Any]:
        """Return plain strings, numbers and lists, for JSON."""
        found = self.relevance
        return {
            "label": self.label,
            "score": self.score,
            "start": float(self.times[0]),
            "end": float(self.times[-1]),
            "area": list(self.area),
            "logit": {"grey": found.grey, "still": found.still, "clip": found.clip},
            "cells": [
                [[round(float(cell), 5) for cell in row] for row in plane] for plane in found.cells
            ],
        }


def explain_views(
    model: nn.Module,
    views: VideoViews,
    settings: ScoreSettings,
    classes: Sequence[str],
    label: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Explanation:
    """Explain a label, or the first of a video, by the view that has the highest score for it.

    The gradients are taken in float32, whatever the settings say.

    Raises UserError for a label that is not among `classes`, and for a model without gradients.
    """
    require_gradients(model)
    index = None if label is None else _index(label, classes)
    done = 0.0

    def advance(share: float) -> None:
        nonlocal done
        done += share
        if on_progress is not None:
            on_progress(min(done, 1.0))

    device = next(model.parameters()).device
    count = len(views.clips)
    scores = clip_scores(
        model,
        views.clips,
        settings,
        device=device,
        on_views=lambda number: advance(_CHOOSING * number / count),
    )
    if index is None:
        index = int(scores.mean(dim=0).argmax())
    best = int(scores[:, index].argmax())
    clip = settings.prepare(views.clips[best : best + 1].to(device))[0]
    relevance = clip_relevance(
        model, clip, index, on_pass=lambda: advance((1 - _CHOOSING) / PASSES)
    )
    view, crop = divmod(best, len(views.areas))
    return Explanation(
        file=views.file,
        label=classes[index],
        score=float(scores[best, index]),
        relevance=relevance,
        times=views.times[view],
        pixels=views.clips[best].permute(1, 2, 3, 0).contiguous().numpy(),
        area=views.areas[crop],
    )


def _signed(number: float) -> str:
    return f"{'-' if number < 0 else '+'} {abs(number):.1f}"


def _index(label: str, classes: Sequence[str]) -> int:
    """The output of a class."""
    if label not in classes:
        raise UserError(f"label {label!r} is none of the model's {len(classes)} classes")
    return list(classes).index(label)
