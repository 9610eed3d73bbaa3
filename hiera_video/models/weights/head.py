"""The rows of a classifier's head, placed by the names of their classes.

Classes are names: equal counts prove nothing. Where names are missing on one side, the order is all
there is, and a note says how it was read; another number of classes replaces the head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hiera_video.classes import ClassMatch, in_order_note, match_classes
from hiera_video.errors import first_few
from hiera_video.models.weights.fit import Fit, shape_text
from hiera_video.models.weights.key_names import CLASSIFIER


def fit_head(fit: Fit, wanted: Sequence[str] | None) -> list[int]:
    """Put the rows of the checkpoint's head in the order of the classes `wanted`.

    Args:
        fit: edited.
        wanted: names of the model's outputs; empty: they have none; None: they are those of the
            checkpoint, in its order.

    Returns:
        The rows of the model's head that no row of the checkpoint belongs to: new classes.

    Raises:
        WeightsError: names and outputs differ in number, or rows cannot be placed.
    """
    key = fit.names.head[0]
    if _reads_otherwise(fit):
        return _leave_out_readout(fit, wanted)
    stored, own = fit.tensors.get(key), fit.model_state.get(key)
    if stored is None or stored.dim() < 2:
        _require_known_head(fit, wanted)
        return []
    if own is None:
        _leave_out_head(fit, outputs=stored.shape[0])
        return []
    if stored.shape[1:] != own.shape[1:]:
        return []  # reported by the comparison of shapes
    if wanted and len(wanted) != own.shape[0]:
        raise fit.error(f"{len(wanted)} class names for a model with {own.shape[0]} outputs")
    match = None if wanted is None else _match_names(fit, wanted, outputs=stored.shape[0])
    if match is not None:
        fit.classes = match
        return _place_rows(fit, match)
    if stored.shape[0] == own.shape[0]:
        if wanted is not None:
            fit.notes.append(_in_order(fit, wanted, outputs=stored.shape[0]))
        return []
    return _replace_head(
        fit, f"head replaced: {stored.shape[0]} -> {own.shape[0]} classes, randomly initialised"
    )


def _reads_otherwise(fit: Fit) -> bool:
    """Whether both sides are classifiers whose heads read other features."""
    key = fit.names.readout
    if not key or fit.kind != CLASSIFIER or fit.checkpoint.kind != CLASSIFIER:
        return False
    stored, own = fit.tensors.get(key), fit.model_state.get(key)
    if stored is None or own is None:
        headless = stored is None and fit.names.head[0] not in fit.tensors
        return (stored is None) != (own is None) and not headless
    return stored.shape != own.shape


def _leave_out_readout(fit: Fit, wanted: Sequence[str] | None) -> list[int]:
    """Leave out a head that reads other features; returns the rows of the model's, all new.

    Raises WeightsError where the model was to have the outputs of the checkpoint.
    """
    own = fit.model_state.get(fit.names.head[0])
    if own is not None and wanted is None and own.shape[0] == fit.checkpoint.num_classes:
        raise fit.error(
            "its head reads other stages than the model's, or in another way, so its scores would "
            "be lost: build the model with its readout_stages and attentive=, or give "
            "classes=[...] for a new head"
        )
    fit.leave_out_all(fit.names.classifier)
    fit.keep_initial_all(fit.names.classifier)
    fit.notes.append(
        "head replaced: the model's reads other stages than the checkpoint's, or in another way; "
        "randomly initialised"
    )
    return [] if own is None else list(range(own.shape[0]))


def _leave_out_head(fit: Fit, *, outputs: int) -> None:
    """Leave out the head, and all that only a classifier has, for a model that has none."""
    if fit.kind != CLASSIFIER:
        return
    if not any(key.startswith(fit.names.classifier) for key in fit.model_state):
        fit.leave_out_all(fit.names.classifier)
        fit.notes.append(f"{fit.names.classifier_words} left out: the model has none")
        return
    fit.leave_out(fit.names.head)
    fit.notes.append(f"head left out ({outputs} classes): the model has none")


def _match_names(fit: Fit, wanted: Sequence[str], *, outputs: int) -> ClassMatch | None:
    """The classes of the checkpoint and of the model, compared; None where one has no names."""
    stored, guess = fit.checkpoint.classes, fit.checkpoint.classes_guessed
    if not stored or not wanted:
        return None
    if len(stored) != outputs:
        raise fit.error(f"it has {len(stored)} class names for {outputs} outputs")
    match = match_classes(stored, wanted)
    if not guess:
        return match
    if not match.same_names:  # guessed names count only where all of them agree
        return None
    fit.notes.append(
        f"{fit.checkpoint.label} has no class names; its {outputs} outputs are read as those of "
        f"{guess}"
    )
    return match


def _in_order(fit: Fit, wanted: Sequence[str], *, outputs: int) -> str:
    """The note on a head that is taken in order because names are missing."""
    stored = [] if fit.checkpoint.classes_guessed else fit.checkpoint.classes or []
    return in_order_note(fit.checkpoint.label, outputs, stored=stored, wanted=wanted)


def _place_rows(fit: Fit, match: ClassMatch) -> list[int]:
    """Move each row of the head to the place of its class; returns the rows of new classes."""
    if match.same_order:
        fit.notes += filter(None, [match.spelling_note()])
        return []
    if not match.known:
        return _replace_head(
            fit,
            f"head replaced: none of its {len(match.stored)} classes "
            f"({first_few(list(match.stored))}) is one of the {len(match.wanted)} here "
            f"({first_few(list(match.wanted))}), which are randomly initialised",
        )
    outputs = fit.tensors[fit.names.head[0]].shape[0]
    for key in fit.names.head:
        if key in fit.tensors and key in fit.model_state:  # else reported by the comparison of keys
            fit.tensors[key] = _placed(fit, key, match, outputs=outputs)
    fit.notes += filter(None, [_placement_note(match), match.spelling_note()])
    return [place for place, row in enumerate(match.rows) if row is None]


def _placed(fit: Fit, key: str, match: ClassMatch, *, outputs: int) -> Tensor:
    """Weight or bias of the head, [K, ...], with the stored rows where their classes are."""
    stored = fit.value(key)
    placed = torch.zeros_like(fit.model_state[key], device="cpu")
    if stored.shape != (outputs, *placed.shape[1:]):
        raise fit.error(
            f"{key} has shape {shape_text(stored)}, which does not fit {outputs} outputs"
        )
    for place, row in enumerate(match.rows):
        if row is not None:
            placed[place] = stored[row]
    return placed


def _placement_note(match: ClassMatch) -> str:
    """Which rows of the head were placed, which are new, which were left out."""
    if match.same_names:
        return (
            f"head: its {len(match.stored)} classes are in another order here; rows placed by name"
        )
    parts = [
        f"head: {len(match.known)} of {len(match.wanted)} classes placed by name "
        f"({first_few(match.known)})"
    ]
    if match.new:
        parts.append(f"{len(match.new)} new, randomly initialised: {first_few(match.new)}")
    if match.left_out:
        left_out = first_few(match.left_out)
        parts.append(f"{len(match.left_out)} of the checkpoint left out: {left_out}")
    return "; ".join(parts)


def _replace_head(fit: Fit, note: str) -> list[int]:
    """Let the whole head keep the model's own values; returns its rows, all of new classes."""
    rows = list(range(fit.model_state[fit.names.head[0]].shape[0]))
    fit.leave_out(fit.names.head)
    fit.keep_initial(fit.names.head)
    fit.notes.append(note)
    return rows


def _require_known_head(fit: Fit, wanted: Sequence[str] | None) -> None:
    """Refuse other classes than the checkpoint's for a model that does not say what its head is."""
    stored, outputs = fit.checkpoint.classes, fit.checkpoint.num_classes
    known = fit.names.head[0] in fit.model_state
    if not wanted or outputs is None or known or fit.kind != CLASSIFIER:
        return
    match = _match_names(fit, wanted, outputs=outputs)
    if match is None and outputs == len(wanted):
        fit.notes.append(_in_order(fit, wanted, outputs=outputs))
    elif match is not None and not match.same_order:
        raise fit.error(
            f"its classes are {first_few(list(stored or ()))} and those here "
            f"{first_few(list(wanted))}, and rows cannot be placed by name: the model does not say "
            "which tensors are its head. Give it an attribute key_names "
            "(hiera_video.models.weights.key_names.KeyNames)"
        )
