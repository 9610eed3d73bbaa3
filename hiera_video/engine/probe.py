"""A linear probe before the first step: the head, fitted to features of the frozen encoder.

A hundred videos are too few to train an encoder from a random head: its first gradients are noise,
and then it learns rooms and faces by heart. So the head comes first, by logistic regression on a
few random clips of each training video. How strongly it is regularised is chosen by
cross-validation on whole groups of training videos. What fine-tuning then changes starts from a
head that fits, and has to beat it.

Shapes: N videos, S clips of each, D numbers of a clip, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.data.loader import Loader
from hiera_video.engine import memory, sharding, tasks
from hiera_video.engine.distributed import World
from hiera_video.engine.folds import CrossValidated, grouped_folds
from hiera_video.engine.prefetch import DevicePrefetcher
from hiera_video.engine.step import blank
from hiera_video.errors import RunFailed, UserError
from hiera_video.models.layers import Head
from hiera_video.models.readout import AttentiveReadout, Readout
from hiera_video.progress import counted
from hiera_video.scoring import takes_images

STRENGTHS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
"""What L2 is chosen from, from strong to weak, for features of unit length: the loss is that of
the clips plus L2 / 2 times the squares of all weights."""

USUAL = 3e-4
"""The strength that is taken unless another one is clearly better: the best for the bundled encoder
of motion on generated actions, and on fights that share no source (docs/results.md)."""

FOLDS = 5

MOST_BYTES = 4 << 30
"""Most memory for the features, which are all needed at once."""

_BIAS = 1e-4
"""L2 of the biases: just enough that one of a class without videos does not grow for ever."""


class Features(NamedTuple):
    """What the frozen encoder says about the training videos."""

    video_ids: Tensor
    """int64 [N], ascending."""
    rows: Tensor
    """float32 [N, S, D], on the CPU."""


@dataclass(frozen=True)
class Labels:
    """What is known of the videos with features."""

    of_videos: Tensor
    """int64 [N]."""
    groups: Sequence[str]
    """Videos of one group are held out together, [N]."""
    class_weights: Tensor
    """float64 [K]: the weight of a video of each class."""

    def select(self, kept: Tensor) -> Labels:
        """The same of the videos where `kept`, bool [N], is true."""
        groups = list(itertools.compress(self.groups, kept.tolist()))
        return Labels(self.of_videos[kept], groups, self.class_weights)


class Linear(NamedTuple):
    """A linear classifier, float64."""

    weight: Tensor
    """[K, D]."""
    bias: Tensor
    """[K]."""

    def videos_right(self, rows: Tensor, labels: Tensor) -> int:
        """Count the videos [N, S, D] that are right by the mean of their clips' probabilities."""
        scores = (rows @ self.weight.T + self.bias).softmax(dim=2).mean(dim=1)
        return int((scores.argmax(dim=1) == labels).sum())


@dataclass(frozen=True)
class Probe(CrossValidated):
    """A fitted head, and how it was chosen."""

    mean: Tensor
    std: Tensor
    head: Linear
    strength: float

    def __str__(self) -> str:
        return (
            f"probe: {self.videos} videos x {self.clips} clips, L2 {self.strength:g} of "
            f"{len(STRENGTHS)}, {self.chosen}"
        )


# ---- the model ----------------------------------------------------------------------------------


def parts_of(model: nn.Module) -> tuple[Readout | AttentiveReadout, Head]:
    """Return readout and head of a model; UserError where it has none."""
    readout, head = getattr(model, "readout", None), getattr(model, "head", None)
    if not isinstance(readout, Readout | AttentiveReadout) or not isinstance(head, Head):
        raise UserError(
            f"TRAIN.PROBE needs a model with a readout; {type(model).__name__} has none as it is "
            "set up here: a hiera_* model with MODEL.KWARGS {readout_stages: [3]} has one"
        )
    return readout, head


def bytes_of_features(model: nn.Module, *, clips: int) -> int:
    """Return the bytes that the features of so many clips take."""
    return 4 * clips * parts_of(model)[0].dim


def require_memory(model: nn.Module, *, clips: int, most: int) -> None:
    """Raise UserError where the features of so many clips take more than `most` bytes."""
    size = bytes_of_features(model, clips=clips)
    if size > most:
        raise UserError(
            f"TRAIN.PROBE would hold the features of {clips} clips, {size / 2**30:.1f} GiB, and is "
            f"for at most {most / 2**30:.0f}: it is meant for small sets. Lower "
            "TRAIN.PROBE_VIEWS, or set TRAIN.PROBE False"
        )


def require_linear(model: nn.Module) -> None:
    """Raise UserError unless the model has a readout that a linear probe is fitted to."""
    readout, _ = parts_of(model)
    if not isinstance(readout, Readout):
        raise UserError(
            "TRAIN.PROBE linear needs a readout without attention, and MODEL.KWARGS has "
            "{attentive: true}: take it out, or set TRAIN.PROBE attentive"
        )


@torch.no_grad()
def write(model: nn.Module, probe: Probe) -> None:
    """Put a probe into readout and head of the model."""
    require_linear(model)
    readout, head = parts_of(model)
    readout.mean.copy_(probe.mean)
    readout.std.copy_(probe.std)
    sharding.assign(head.projection.weight, probe.head.weight)
    sharding.assign(head.projection.bias, probe.head.bias)


# ---- features -----------------------------------------------------------------------------------


def read_features(
    model: nn.Module,
    loader: Loader,
    settings: tasks.StepSettings,
    *,
    batch_size: int,
    world: World,
    stopped: Callable[[], bool],
) -> Features | None:
    """Compute the features of all videos of a loader; every process returns those of all.

    Returns None if any process was asked to stop.

    Args:
        model: on `world.device`; it is put into eval mode.
        loader: this process's share of the videos, each once.
        settings: number format of the forward pass.
        batch_size: most clips of a forward pass.
        world: the processes.
        stopped: whether this process was asked to stop.

    Raises RunFailed: no video can be read, features that are not finite, too little memory.
    """
    parts = world.gather_parts(
        lambda: _own_features(model, loader, settings, batch_size, world, stopped),
        name="features",
        stopped=stopped,
        explain=lambda error: _raise_memory_error(error, batch_size),
        attend=lambda: sharding.attend(
            model, world, lambda: _features_of_nothing(model, loader, settings)
        ),
    )
    return None if parts is None else _merged(parts, loader)


@torch.no_grad()
def _own_features(
    model: nn.Module,
    loader: Loader,
    settings: tasks.StepSettings,
    batch_size: int,
    world: World,
    stopped: Callable[[], bool],
) -> Features | None:
    """Compute the features of this process's share; None if any process was asked to stop."""
    readout, _ = parts_of(model)
    features: Callable[[Tensor], Tensor] = model.forward_features  # type: ignore[assignment]
    clips_per_video = loader.dataset.clips_per_video
    model.eval()
    ids = [torch.zeros(0, dtype=torch.int64)]
    rows = [torch.zeros(0, clips_per_video, readout.dim)]
    batches = DevicePrefetcher(loader, world.device, loader.dataset.spec)
    for batch in counted(batches, "features", len(loader), unit="batches"):
        if world.any_stopped(stopped()):
            return None
        if not len(batch.video_ids):
            continue
        clips = batch.clips.squeeze(2) if takes_images(model) else batch.clips
        with settings.autocast():
            found = [features(part) for part in clips.split(batch_size)]
        batches.fetch()
        ids.append(batch.video_ids[::clips_per_video])  # the clips of a video are neighbours
        rows.append(torch.cat(found).float().cpu().unflatten(0, (-1, clips_per_video)))
    return Features(torch.cat(ids), torch.cat(rows))


@torch.no_grad()
def _features_of_nothing(model: nn.Module, loader: Loader, settings: tasks.StepSettings) -> None:
    """Make a forward pass without clips, for the sake of the other processes."""
    clips = blank(loader.dataset).clips.to(settings.device)
    with settings.autocast():
        cast(Any, model).forward_features(clips.squeeze(2) if takes_images(model) else clips)


def _raise_memory_error(error: Exception, batch_size: int) -> None:
    shortage = memory.shortage(error)
    if shortage is not None:
        raise RunFailed(
            f"{shortage}, in the probe, with {batch_size} clips per forward pass: lower "
            "TEST.BATCH_SIZE"
        ) from error


def _merged(parts: Sequence[Features], loader: Loader) -> Features:
    """Merge the features of all processes, in the order of the list."""
    video_ids = torch.cat([part.video_ids for part in parts])
    if not len(video_ids):
        raise RunFailed(
            f"none of the {len(loader.dataset)} training videos could be read; the first reasons: "
            f"{loader.failures.reasons()}"
        )
    order = video_ids.argsort()
    rows = torch.cat([part.rows for part in parts])[order]
    if not torch.isfinite(rows).all():
        raise RunFailed("the model's features are not finite: its first weights are broken")
    return Features(video_ids[order], rows)


# ---- fitting ------------------------------------------------------------------------------------


def fit(rows: Tensor, labels: Labels, *, seed: int) -> Probe:
    """Fit a head to features [N, S, D], with the strength that cross-validation prefers.

    seed: of the division into folds.
    """
    strength, accuracy, folds = _chosen_strength(rows, labels, seed=seed)
    standard = _Standard.of(rows)
    strengths = STRENGTHS[: STRENGTHS.index(strength) + 1]
    head = _fit_path(standard(rows), labels, strengths)[-1]
    return Probe(
        mean=standard.mean.float(),
        std=standard.std.float(),
        head=Linear(head.weight.float(), head.bias.float()),
        strength=strength,
        accuracy=accuracy,
        folds=folds,
        videos=rows.shape[0],
        clips=rows.shape[1],
        grouped=len(set(labels.groups)) < len(labels.groups),
    )


def _chosen_strength(rows: Tensor, labels: Labels, *, seed: int) -> tuple[float, float | None, int]:
    """Return the strength, its accuracy in percent (None: nothing to choose by) and the folds."""
    held_out = grouped_folds(labels.of_videos.tolist(), labels.groups, folds=FOLDS, seed=seed)
    if len(held_out) < 2:
        return USUAL, None, 0
    right = np.zeros(len(STRENGTHS), dtype=int)
    for mask in counted(held_out, "cross-validated", len(held_out), unit="folds"):
        held = torch.from_numpy(mask)
        train = labels.select(~held)
        if len(train.of_videos.unique()) < 2:
            continue  # nothing to tell apart: all of them count as wrong
        standard = _Standard.of(rows[~held])
        queries, answers = standard(rows[held]), labels.of_videos[held]
        for i, head in enumerate(_fit_path(standard(rows[~held]), train, STRENGTHS)):
            right[i] += head.videos_right(queries, answers)
    most_common = int(labels.of_videos.bincount().max()) / len(rows)
    usual = STRENGTHS.index(USUAL)
    chosen = clearly_best(right / len(rows), usual, videos=len(rows), chance=most_common)
    return STRENGTHS[chosen], 100 * int(right[chosen]) / len(rows), len(held_out)


def clearly_best(
    accuracies: npt.NDArray[np.float64], usual: int, *, videos: int, chance: float
) -> int:
    """Return the place of the best choice, or that of the `usual` one unless the best beats it by
    more than the standard error that so few videos have.

    Where none beats `chance` by two of them, the folds say nothing: groups with a class or two each
    (rooms, people) make every answer about the held-out ones wrong. The usual one counts, then.
    """
    best = int(accuracies.argmax())
    top = float(accuracies[best])
    error = (top * (1 - top) / videos) ** 0.5
    clear = top - float(accuracies[usual]) > error and top - chance > 2 * error
    return best if clear else usual


@dataclass(frozen=True)
class _Standard:
    """Standardises features as `Readout.head_input`, in float64."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> _Standard:
        clips = rows.flatten(0, 1).double()
        std = clips.std(dim=0, correction=0)
        # what hardly varies would only be noise if it were scaled up
        return cls(clips.mean(dim=0), std.clamp(min=1e-3 * float(std.max()) + 1e-12))

    def __call__(self, rows: Tensor) -> Tensor:
        return (rows.double() - self.mean) / (self.std * rows.shape[-1] ** 0.5)


def _fit_path(rows: Tensor, labels: Labels, strengths: Sequence[float]) -> list[Linear]:
    """Fit a classifier of each strength to standardised rows [N, S, D], the next from the last.

    With fewer clips than numbers, the weights are sums of clips: the same problem in as many
    coordinates as there are clips, which is exact and far smaller.
    """
    clips = rows.flatten(0, 1)
    targets = labels.of_videos.repeat_interleave(rows.shape[1])
    importance = labels.class_weights[targets]
    axes, coordinates = None, clips
    if clips.shape[0] < clips.shape[1]:
        sizes, vectors = torch.linalg.eigh(clips @ clips.T)
        kept = sizes > 1e-10 * sizes[-1]
        lengths = sizes[kept].sqrt()
        axes = clips.T @ (vectors[:, kept] / lengths)  # [D, R], orthonormal
        coordinates = vectors[:, kept] * lengths
    classes = len(labels.class_weights)
    parameters = torch.zeros(classes, coordinates.shape[1] + 1, dtype=torch.float64)
    path = []
    for strength in strengths:
        parameters = _minimum(parameters, coordinates, targets, importance, strength)
        weight = parameters[:, :-1]
        path.append(Linear(weight if axes is None else weight @ axes.T, parameters[:, -1]))
    return path


def _minimum(
    start: Tensor, rows: Tensor, targets: Tensor, importance: Tensor, strength: float
) -> Tensor:
    """Minimise the weighted cross-entropy plus L2, from `start`, weights and biases [K, R + 1]."""
    parameters = start.clone().requires_grad_()
    share = importance / importance.sum()
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=200,
        tolerance_grad=1e-7,
        tolerance_change=1e-13,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        weight, bias = parameters[:, :-1], parameters[:, -1]
        losses = F.cross_entropy(rows @ weight.T + bias, targets, reduction="none")
        total = (share * losses).sum() + strength / 2 * weight.square().sum()
        total = total + _BIAS / 2 * bias.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return parameters.detach()
