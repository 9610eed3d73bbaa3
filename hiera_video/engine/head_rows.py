"""Reorders the head and its optimizer state where a run resumes with its classes reordered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from hiera_video.classes import ClassMatch, in_order_note, match_classes
from hiera_video.engine import sharding
from hiera_video.errors import UserError, first_few
from hiera_video.models.weights.key_names import HIERA_KEYS


class ClassComparison(NamedTuple):
    """How the classes of the data fit those of a checkpoint."""

    names: list[str]
    """Names of the outputs from now on; empty: they have none."""
    rows: list[int] | None
    """For each output its row in the stored head; None: the head stays as it is."""
    note: str
    """A line for the log; may be empty."""


NO_CLASSES = ClassComparison([], None, "")
"""For objectives without labels."""


def compare_classes(
    path: Path,
    stored: Sequence[str] | None,
    names: Sequence[str],
    *,
    outputs: int,
    same_run: bool,
) -> ClassComparison:
    """Compare the classes of a checkpoint with those of the data of the run that resumes from it.

    Args:
        path: the checkpoint.
        stored: names of its outputs, if it has any.
        names: names of the data's classes, in the order of their labels; empty if it has none.
        outputs: number of outputs.
        same_run: the checkpoint is of the run of this OUTPUT_DIR, whose outputs keep their order.

    Raises UserError for other classes than the checkpoint's; in the same run for another order too.
    """
    stored, names = list(stored or ()), list(names)
    if not stored and not names and same_run:
        return NO_CLASSES
    if not stored or not names:
        note = in_order_note(str(path), outputs, stored=stored, wanted=names)
        return ClassComparison(names or stored, None, note)
    match = match_classes(stored, names)
    if not match.same_names or (same_run and not match.same_order):
        raise UserError(_differences(path, match, same_run=same_run))
    if match.same_order:
        return ClassComparison(names, None, match.spelling_note())
    note = (
        f"the classes of the data are in another order than those of {path}: head and optimizer "
        "state placed by name"
    )
    spelling = match.spelling_note()
    rows = [row for row in match.rows if row is not None]
    return ClassComparison(names, rows, f"{note}; {spelling}" if spelling else note)


def _differences(path: Path, match: ClassMatch, *, same_run: bool) -> str:
    """Return a message on what differs and what to do."""
    there, here = first_few(list(match.stored)), first_few(list(match.wanted))
    differences = []
    if match.left_out:
        differences.append(f"only there: {first_few(match.left_out)}")
    if match.new:
        differences.append(f"only here: {first_few(match.new)}")
    what = "; ".join(differences) or "the same names in another order"
    start = f"TRAIN.CHECKPOINT_FILE_PATH {path}"
    fresh = "rows of known classes are kept, optimizer and epoch start afresh"
    if same_run:
        return (
            f"OUTPUT_DIR holds a run with other classes ({path}):\n"
            f"  {there} there\n  {here} here\n  {what}\n"
            "Put the classes back, or choose another OUTPUT_DIR. To start from that checkpoint "
            f"there, set {start}: {fresh}"
        )
    return (
        f"{path} has other classes than the data, so its run cannot go on with "
        "TRAIN.CHECKPOINT_EPOCH_RESET False:\n"
        f"  {there} there\n  {here} here\n  {what}\n"
        f"Leave TRAIN.CHECKPOINT_EPOCH_RESET at True: {fresh}"
    )


def place_weights(state: dict[str, Any], model: nn.Module, rows: Sequence[int]) -> None:
    """Order the head's rows in the weights of a checkpoint's content, averaged ones too, as `rows`
    says."""
    for name in ("model_state", "raw_state"):
        for key in _head_keys(model) if name in state else ():
            state[name][key] = sharding.whole(state[name][key])[list(rows)]


def place_moments(optimizer: torch.optim.Optimizer, model: nn.Module, rows: Sequence[int]) -> None:
    """Order the moments of the head's weights in the same way."""
    parameters = model.state_dict(keep_vars=True)
    for key in _head_keys(model):
        kept = optimizer.state.get(parameters[key], {})
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.shape == parameters[key].shape:
                kept[name] = sharding.like(value, sharding.whole(value)[list(rows)])


def _head_keys(model: nn.Module) -> list[str]:
    """Return the keys of the head in the model's state dict; UserError where it has no known
    ones."""
    state = model.state_dict()
    keys = [key for key in getattr(model, "key_names", HIERA_KEYS).head if key in state]
    if not keys:
        raise UserError(
            f"the classes of the data are in another order than those of the checkpoint, and "
            f"{type(model).__name__} does not say which tensors are its head. Give it an attribute "
            "key_names (hiera_video.models.weights.key_names.KeyNames), or put the classes in order"
        )
    return keys
