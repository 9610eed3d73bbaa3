"""Loading weights into a model: every check comes before the first copy.

Loading is strict: whatever is missing, left over or of another shape is an error that lists it, and
the model is then exactly as it was. What is fitted on purpose is said in the report's notes:

* other classes: rows of the head are placed by the names of their classes, new ones are randomly
  initialised; without names, another number of classes replaces the head (`head`);
* a pretrained model's file for a classifier: the encoder is taken out of it (`fit`);
* another clip length or frame size: position embeddings are resized (`positions`);
* an image model's file for a video model: the patch kernel is repeated over time (`inflate`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from hiera_video.classes import ClassMatch
from hiera_video.errors import WeightsError, first_few
from hiera_video.models.weights.file import Checkpoint
from hiera_video.models.weights.fit import Fit, fit_task, shape_text
from hiera_video.models.weights.head import fit_head
from hiera_video.models.weights.inflate import inflate as inflate_to_video
from hiera_video.models.weights.positions import fit_positions
from hiera_video.models.weights.published import PUBLISHED, PublishedWeights, names_for
from hiera_video.models.weights.resolve import resolve


@dataclass
class LoadReport:
    """What was loaded from a checkpoint and what was not; `print(report)` gives a few lines."""

    source: str
    """Name of the published weights, or the file."""
    loaded: list[str]
    """Keys of the model that got their values from the checkpoint."""
    missing: list[str] = field(default_factory=list)
    """Keys of the model that keep the values it was built with."""
    unexpected: list[str] = field(default_factory=list)
    """Keys of the checkpoint that were not used."""
    reshaped: list[str] = field(default_factory=list)
    """"key: shape there, shape here" of what was skipped for its shape (strict=False only)."""
    resized: list[str] = field(default_factory=list)
    """Position embeddings that were resized or converted."""
    notes: list[str] = field(default_factory=list)
    """One sentence for each thing that was done to fit the checkpoint to the model."""
    classes: ClassMatch | None = None
    """Which row of the checkpoint's head each class has, where both sides have names; a class
    without one has a new row."""

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing)
        lines = [f"loaded {len(self.loaded)} of {total} tensors from {self.source}", *self.notes]
        return "\n  ".join(lines)


def load_pretrained(
    model: nn.Module,
    model_name: str,
    pretrained: Literal[True] | str | os.PathLike,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
) -> LoadReport:
    """Find weights and load them into `model`; notes on what was fitted are printed on stderr.

    Args:
        model: the model as built; changed only if all goes well.
        model_name: its registered name, for names of the table.
        pretrained: True for the table's default for this model, or what `resolve` takes.
        num_classes: the number of classes that the caller asked for. None: it was not given, and a
            file whose head has another number than the model is an error rather than a lost head.
        classes: names of the model's outputs, in their order (see `load_weights`).

    Raises:
        WeightsError: as `resolve` and `load_weights`.
    """
    weights = _default_weights(model_name) if pretrained is True else pretrained
    checkpoint, _ = resolve(weights, model_name)
    if num_classes is None:
        _check_number_of_classes(model, checkpoint)
    report = load_weights(model, checkpoint, classes=classes)
    if num_classes is not None and classes is None:
        report.notes += _kept_head(model, checkpoint)
    for note in report.notes:
        _log(f"{checkpoint.label}: {note}")
    return report


def load_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    strict: bool = True,
    into_autoencoder: bool = False,
    inflate: bool = True,
    classes: Sequence[str] | None = None,
) -> LoadReport:
    """Copy a checkpoint into a model, fitting head, dimensions and positions where they differ.

    Everything is checked before the first value is copied: after an error the model is as it was.
    The licence of public weights is printed on stderr.

    Args:
        model: a classifier or an autoencoder, on any device but meta.
        checkpoint: what `read_checkpoint` or `resolve` returned.
        strict: True: a key that is missing, left over or of another shape is an error. False: it
            is skipped and reported.
        into_autoencoder: allow a classifier's weights in an autoencoder, whose decoder then starts
            from scratch.
        inflate: allow an image model's weights in a video model.
        classes: names of the model's outputs, in their order: the rows of the head are placed by
            name, and a class that the checkpoint does not know gets a new row. Empty: the outputs
            have no names. None: the outputs are those of the checkpoint, in its order.

    Returns:
        What was loaded, what was not, and a note on every adaptation.

    Raises:
        WeightsError: the checkpoint does not fit; it lists the keys and shapes that do not.
    """
    model = _unwrapped(model)
    fit = Fit(model, checkpoint)
    fit_task(fit, allowed=into_autoencoder)
    inflate_to_video(fit, allowed=inflate)
    fit_positions(fit)
    new_rows = fit_head(fit, classes)
    report = _compare(fit, strict=strict)
    values = {key: fit.value(key) for key in report.loaded}
    _note_values(fit, values)
    _copy(model, values, new_rows=new_rows, head=fit.names.head)
    if checkpoint.published is not None:
        _log_licence(checkpoint.published)
    return report


def _copy(
    model: nn.Module, values: dict[str, Tensor], *, new_rows: Sequence[int], head: Sequence[str]
) -> None:
    """Copy checked values into the model; rows of new classes get fresh values of the model's."""
    reset_head: Callable[[], None] | None = getattr(model, "reset_head", None)
    if new_rows and reset_head is not None:
        reset_head()
    own = model.state_dict()
    for key in head:
        if new_rows and key in values:
            values[key][new_rows] = own[key][new_rows].to(values[key])
    # with the model's own values for the rest the set is complete, so that PyTorch checks it too
    model.load_state_dict({**own, **values}, strict=True)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile wrappers."""
    while True:
        compiled = getattr(model, "_orig_mod", None)
        if isinstance(compiled, nn.Module):
            model = compiled
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        else:
            return model


def _default_weights(model_name: str) -> str:
    """The table's default weights for a model; WeightsError where it has none."""
    names = names_for(model_name)
    if not names:
        raise WeightsError(
            f"no public weights exist for {model_name}; they do for "
            f"{', '.join(sorted({owner for owner, _ in PUBLISHED}))}. "
            "Name a file or an address instead, or one of those as model.weights"
        )
    return names[0]


def _check_number_of_classes(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Refuse to drop a trained head because the number of classes was not given."""
    usual, stored = getattr(model, "num_classes", None), checkpoint.num_classes
    if usual and stored and usual != stored:
        raise WeightsError(
            f"{checkpoint.label} has {stored} classes and the model was built with its usual "
            f"{usual}; say num_classes={stored} to use the head in the file, or "
            f"num_classes={usual} for a new one"
        )


def _kept_head(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """The note on a head that is kept because it has as many outputs as were asked for."""
    names = checkpoint.classes
    if not names or checkpoint.classes_guessed or len(names) != getattr(model, "num_classes", None):
        return []
    return [
        f"head kept: its {len(names)} outputs are {first_few(names)}; "
        "classes=[...] places them by name"
    ]


def _compare(fit: Fit, *, strict: bool) -> LoadReport:
    """Compare what is left of the checkpoint with the model.

    Raises WeightsError on any difference if `strict`, and where no tensor matches.
    """
    unexpected = sorted(set(fit.tensors) - set(fit.model_state))
    missing = sorted(set(fit.model_state) - set(fit.tensors) - fit.initial)
    shared = [key for key in fit.model_state if key in fit.tensors]
    other = [key for key in shared if fit.tensors[key].shape != fit.model_state[key].shape]
    shapes = {k: (shape_text(fit.tensors[k]), shape_text(fit.model_state[k])) for k in other}
    reshaped = [f"{key}: {there} there, {here} here" for key, (there, here) in shapes.items()]
    loaded = [key for key in shared if key not in set(other)]
    described = [
        _listed("missing from the checkpoint", missing),
        _listed("not in the model", unexpected),
        _listed("of another shape", reshaped),
    ]
    differences = "\n".join(part for part in described if part)
    if not loaded:
        raise fit.error(f"no tensor matches{_whose(fit)}\n{differences}")
    if differences and strict:
        raise fit.error(
            f"{len(loaded)} of {len(fit.model_state)} tensors match{_whose(fit)}\n{differences}"
        )
    if differences:
        fit.notes.append(f"loaded without strictness; skipped:\n{differences}")
    return LoadReport(
        source=fit.checkpoint.label,
        loaded=loaded,
        missing=sorted({*missing, *fit.initial, *other}),
        unexpected=sorted({*unexpected, *fit.left_out}),
        reshaped=reshaped,
        resized=fit.resized,
        notes=fit.notes,
        classes=fit.classes,
    )


def _note_values(fit: Fit, values: dict[str, Tensor]) -> None:
    """Add notes on values that were stored in another number format, and on NaN and infinity."""
    stored = {
        str(fit.tensors[key].dtype).removeprefix("torch.")
        for key, value in values.items()
        if fit.tensors[key].dtype != value.dtype
    }
    if stored:
        fit.notes.append(f"stored as {', '.join(sorted(stored))}, converted to the model's type")
    broken = [key for key, value in values.items() if not torch.isfinite(value).all()]
    if broken:
        fit.notes.append("NaN or infinite values (did training diverge?) in " + first_few(broken))


def _whose(fit: Fit) -> str:
    """ " (the checkpoint is of NAME)", where that is known."""
    name = fit.checkpoint.model_name
    return f" (the checkpoint is of {name})" if name else ""


def _listed(title: str, entries: list[str], count: int = 10) -> str:
    """A count, a title and the first entries, one a line; empty for none."""
    if not entries:
        return ""
    more = [f"... and {len(entries) - count} more"] if len(entries) > count else []
    return "\n    ".join([f"  {len(entries)} {title}:", *entries[:count], *more])


def _log(line: str) -> None:
    """One line on stderr, from the first process of a distributed run alone."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


_licences_logged: set[str] = set()


def _log_licence(row: PublishedWeights) -> None:
    """The licence of public weights on stderr, once per process."""
    if str(row) not in _licences_logged:
        _licences_logged.add(str(row))
        restriction = " (not for commercial use)" if "NC" in row.licence else ""
        _log(
            f"{row}: these weights are licensed {row.licence}{restriction}; "
            f"trained on {row.trained_on}"
        )
