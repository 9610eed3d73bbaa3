"""An attentive probe before the first step: a query, a norm and a head, fitted to frozen tokens.

The encoder runs once over a few random clips of each training video; the tokens of its stages stay
in memory. AdamW fits the attentive readout to them. How long it runs and how strongly weights decay
is chosen by cross-validation on whole groups of training videos, as for the linear probe
(`probe.py`). Everything happens on one process, whose result the others take.

Shapes: N videos, S clips of each, D numbers of a clip (its tokens), K classes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.engine import sharding
from hiera_video.engine.distributed import World
from hiera_video.engine.folds import CrossValidated, grouped_folds
from hiera_video.engine.probe import FOLDS, Features, Labels, clearly_best, parts_of
from hiera_video.errors import UserError
from hiera_video.models.readout import AttentiveReadout
from hiera_video.progress import Progress, counted

DECAYS = (0.1, 10.0)
"""Weight decay of AdamW, to choose from."""
EPOCHS = (3, 6, 12, 24)
"""Passes over the clips, to choose from."""
USUAL = (0.1, 12)
"""Decay and epochs that are taken unless others are clearly better."""
LEARNING_RATE = 1e-3
BATCH_SIZE = 32
"""Clips of a step."""

MOST_BYTES = 2 << 30
"""Most memory for the tokens; copies of them exist for a moment."""
STEPPED_EPOCHS = 24
"""Epochs of the usual training steps that stand in where the tokens are too many."""

_CHOICES = tuple(itertools.product(DECAYS, EPOCHS))


class Parts(nn.Module):
    """What is fitted: readout, norm and head of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.readout, self.head = parts_of(model)
        self.norm = model.get_submodule("norm")

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, D] -> logits [B, K]."""
        assert isinstance(self.readout, AttentiveReadout)
        logits: Tensor = self.head(self.norm(self.readout.head_input(features)))
        return logits


@dataclass(frozen=True)
class AttentiveProbe(CrossValidated):
    """Fitted parts, and how they were chosen."""

    state: dict[str, Tensor]
    """Of `Parts`, on the CPU."""
    decay: float
    epochs: int

    def __str__(self) -> str:
        return (
            f"attentive probe: {self.videos} videos x {self.clips} clips, {self.epochs} epochs and "
            f"decay {self.decay:g} of {len(_CHOICES)} choices, {self.chosen}"
        )


def require_attentive(model: nn.Module) -> None:
    """Raise UserError unless the model has an attentive readout."""
    readout, _ = parts_of(model)
    if not isinstance(readout, AttentiveReadout):
        raise UserError(
            "TRAIN.PROBE attentive needs a model with an attentive readout: MODEL.KWARGS "
            "{attentive: true}"
        )


@torch.no_grad()
def write(model: nn.Module, probe: AttentiveProbe) -> None:
    """Put a fitted probe into readout, norm and head of the model."""
    parts = Parts(model)
    parts.load_state_dict(sharding.placed(parts.state_dict(), probe.state))


# ---- fitting ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitting:
    """What a fit is given besides its clips."""

    seed: int
    """Of folds, batches and dropout."""
    device: torch.device
    stopped: Callable[[], bool]
    """Whether this process was asked to stop; looked at after every epoch."""


class Stopped(Exception):
    """The process was asked to stop."""


def fit_on_main(
    model: nn.Module,
    features: Features,
    labels: Labels,
    *,
    seed: int,
    world: World,
    stopped: Callable[[], bool],
) -> str | None:
    """Fit the attentive parts of the model on the main process, and put them into all.

    Returns a line about it; None if any process was asked to stop.
    """
    start = sharding.whole_copy(Parts(model)) if sharding.is_sharded(model) else model
    settings = Fitting(seed, world.device, lambda: world.any_stopped(stopped()))

    def compute() -> list[AttentiveProbe] | None:
        if not world.is_main:
            return []
        found = fit(start, features, labels, settings)
        return None if found is None else [found]

    # no broadcast: it would time out in a process that waits half an hour, and hear no signal
    parts = world.gather_parts(
        compute, name="attentive probe", stopped=stopped, explain=lambda error: None
    )
    if parts is None:
        return None
    (found,) = itertools.chain.from_iterable(parts)
    write(model, found)
    return str(found)


def fit(
    model: nn.Module, features: Features, labels: Labels, settings: Fitting
) -> AttentiveProbe | None:
    """Fit the attentive parts of a model, with the settings that cross-validation prefers.

    The model itself stays as it is: its parts are where every fit begins. Returns None if the
    process was asked to stop.
    """
    rows = features.rows
    start = copy.deepcopy(Parts(model)).to(settings.device)
    with torch.random.fork_rng(devices=_cards(settings.device)):
        try:
            chosen, accuracy, folds = _choose(start, rows, labels, settings)
            decay, epochs = _CHOICES[chosen]
            with Progress("fitting the head"):
                *_, (_, fitted) = _path(start, (rows, labels), decay, settings, until=epochs)
        except Stopped:
            return None
    return AttentiveProbe(
        state={key: value.detach().cpu().clone() for key, value in fitted.state_dict().items()},
        decay=decay,
        epochs=epochs,
        accuracy=accuracy,
        folds=folds,
        videos=rows.shape[0],
        clips=rows.shape[1],
        grouped=len(set(labels.groups)) < len(labels.groups),
    )


def _cards(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _choose(
    start: Parts, rows: Tensor, labels: Labels, settings: Fitting
) -> tuple[int, float | None, int]:
    """Return the place among the choices, its accuracy in percent (None: nothing to choose by) and
    the folds."""
    usual = _CHOICES.index(USUAL)
    held_out = grouped_folds(
        labels.of_videos.tolist(), labels.groups, folds=FOLDS, seed=settings.seed
    )
    if len(held_out) < 2:
        return usual, None, 0
    right = np.zeros(len(_CHOICES), dtype=int)
    for mask in counted(held_out, "cross-validated", len(held_out), unit="folds"):
        held = torch.from_numpy(mask)
        train, queries = (rows[~held], labels.select(~held)), rows[held]
        if len(train[1].of_videos.unique()) < 2:
            continue  # nothing to tell apart: all of them count as wrong
        for decay in DECAYS:
            for epochs, parts in _path(start, train, decay, settings, until=EPOCHS[-1]):
                found = _answers(parts, queries, settings.device)
                place = _CHOICES.index((decay, epochs))
                right[place] += int((found == labels.of_videos[held]).sum())
    most_common = int(labels.of_videos.bincount().max()) / len(rows)
    chosen = clearly_best(right / len(rows), usual, videos=len(rows), chance=most_common)
    return chosen, 100 * int(right[chosen]) / len(rows), len(held_out)


@torch.no_grad()
def _answers(parts: Parts, rows: Tensor, device: torch.device) -> Tensor:
    """Return the class of each video [N, S, D], by the mean of its clips' probabilities, [N]."""
    parts.eval()
    scores = [parts(clips.to(device)).softmax(1).mean(0) for clips in rows]
    return torch.stack(scores).argmax(dim=1).cpu()


def _path(
    start: Parts, train: tuple[Tensor, Labels], decay: float, settings: Fitting, *, until: int
) -> Iterator[tuple[int, Parts]]:
    """Fit copies of the parts to the clips of videos [N, S, D]; yields (epochs, parts) at each of
    EPOCHS up to `until`, the same parts, which go on learning.

    Raises Stopped.
    """
    rows, labels = train
    parts = copy.deepcopy(start)
    _set_statistics(parts, rows)
    clips = rows.flatten(0, 1)
    targets = labels.of_videos.repeat_interleave(rows.shape[1])
    importance = (labels.class_weights / labels.class_weights[targets].mean()).float()
    optimizer = torch.optim.AdamW(parts.parameters(), lr=LEARNING_RATE, weight_decay=decay)
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    for epoch in range(1, until + 1):
        parts.train()
        for batch in torch.randperm(len(clips), generator=generator).split(BATCH_SIZE):
            logits = parts(clips[batch].to(settings.device))
            losses = F.cross_entropy(logits, targets[batch].to(logits.device), reduction="none")
            loss = (losses * importance[targets[batch]].to(logits.device)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if settings.stopped():
            raise Stopped
        if epoch in EPOCHS:
            yield epoch, parts


@torch.no_grad()
def _set_statistics(parts: Parts, rows: Tensor) -> None:
    """Set mean and deviation of each channel over the tokens of the clips [N, S, D]."""
    readout = parts.readout
    assert isinstance(readout, AttentiveReadout)
    sums = [torch.zeros(2, channels, dtype=torch.float64) for _, channels in readout.stages]
    for clips in rows:  # a video at a time: a copy of all in float64 would be large
        for total, tokens in zip(sums, readout.tokens(clips), strict=True):
            flat = tokens.flatten(0, 1).double()
            total += torch.stack([flat.sum(0), flat.square().sum(0)])
    means, deviations = [], []
    for (number, _), (summed, squares) in zip(readout.stages, sums, strict=True):
        count = rows.shape[0] * rows.shape[1] * number
        mean = summed / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        means.append(mean)
        # what hardly varies would only be noise if it were scaled up
        deviations.append(deviation.clamp(min=1e-3 * float(deviation.max()) + 1e-6))
    readout.mean.copy_(torch.cat(means).unsqueeze(0))
    readout.std.copy_(torch.cat(deviations).unsqueeze(0))
