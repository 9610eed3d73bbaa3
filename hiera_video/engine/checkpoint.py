"""Checkpoints: written whole or not at all, checked before they are trusted, the last few kept.

A checkpoint is one `torch.save` file, that is a zip archive whose directory stores every record's
size and CRC-32; `fault` reads all of it back against them, so truncation and bit rot are found.
It is written by `files.atomic_write`: whenever the machine stops, a file under its final name is
complete. `model_state` is what was validated: the averaged weights (EMA) where a run keeps them,
and then `raw_state` is what training goes on from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hiera_video.errors import RunFailed, UserError, WeightsError
from hiera_video.files import atomic_write, free_bytes, link_or_copy, write_text
from hiera_video.models.weights.file import archive_fault, unpickled

FORMAT = "hiera_video/1"
BEST = "best.pyth"
_NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?\.pyth")


def file_name(epoch: int, step: int = 0) -> str:
    """Name after `epoch` whole epochs and `step` optimizer steps of the next one."""
    return f"checkpoint_epoch_{epoch:05d}" + (f"_step_{step:07d}" if step else "") + ".pyth"


def in_order(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest training first, whether they are readable or not."""
    found = [(m, p) for p in Path(folder).glob("*.pyth") if (m := _NAME.fullmatch(p.name))]
    return [path for *_, path in sorted((int(m[1]), int(m[2] or 0), p) for m, p in found)]


# ---- writing ------------------------------------------------------------------------------------


def save(state: dict[str, Any], path: Path) -> int:
    """Write `state` to `path` atomically and durably; the size in bytes.

    Raises RunFailed where the disk refuses it; what was under `path` before is then still there.
    """
    try:
        return _write(state, path)
    except RunFailed as error:
        raise RunFailed(f"{error}. {_what_is_left(Path(path).parent)}") from error


def _write(state: dict[str, Any], path: Path) -> int:
    with atomic_write(path) as file:
        torch.save(state, file)
        return file.tell()


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints; 0 keeps all. `best.pyth` is not touched."""
    for path in in_order(folder)[: -keep or None] if keep else []:
        path.unlink(missing_ok=True)


def _what_is_left(folder: Path) -> str:
    kept = in_order(folder) if folder.is_dir() else []
    if not kept:
        return "No checkpoint was written before it"
    return f"The last complete checkpoint is {kept[-1]}: the same command again goes on from it"


# ---- the best one -------------------------------------------------------------------------------


def keep_best(path: Path, record: dict[str, Any]) -> None:
    """Make `path` the folder's best.pyth, `record` (metric, value, epoch) beside it as JSON.

    A second name for the same file where the file system has those, else a copy.
    """
    best = path.parent / BEST
    try:
        link_or_copy(path, best)
        write_text(best.with_suffix(".json"), json.dumps(record, sort_keys=True) + "\n")
    except RunFailed as error:
        raise RunFailed(f"{error}. {_what_is_left(path.parent)}") from error


def best_record(folder: Path) -> dict[str, Any] | None:
    """What `keep_best` last wrote, or None."""
    try:
        return json.loads((Path(folder) / BEST).with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# ---- reading ------------------------------------------------------------------------------------


PARTS = (
    *("model", "model_state", "optimizer_state", "scaler_state", "cfg", "data"),
    *("step", "epoch_sums"),
)
"""What going on needs, besides the format."""


def fault(path: Path) -> str | None:
    """Why a checkpoint file cannot be trusted, or None: reads all of it against its checksums."""
    return archive_fault(path)


def load(path: Path) -> dict[str, Any]:
    """A training checkpoint of ours, on the CPU, without executing anything stored in it.

    Raises UserError where the file is missing, damaged, or not one that training can go on from.
    """
    state = _read(path)
    missing = [name for name in PARTS if name not in state]
    if missing:
        raise UserError(
            f"{path} holds weights and not the state of a run (no {', '.join(missing)}), so a run "
            "cannot be resumed from it; to start from its weights set TRAIN.CHECKPOINT_FILE_PATH "
            "and leave TRAIN.CHECKPOINT_EPOCH_RESET at True"
        )
    return state


def _read(path: Path) -> dict[str, Any]:
    """A file of this trainer: a checkpoint, or what `export` made of one."""
    reason = fault(path)
    if reason:
        raise UserError(f"cannot read checkpoint {path}: {reason}")
    try:
        state = unpickled(path)
    except WeightsError as error:
        raise UserError(f"cannot read checkpoint {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(
            f"{path} was not written by this trainer (format {FORMAT!r}), so a run cannot be "
            "resumed from it; to start from its weights set TRAIN.CHECKPOINT_FILE_PATH"
        )
    return state


def latest(
    folder: Path,
    say: Callable[[str], None] = print,
    *,
    content_fault: Callable[[dict], str | None] = lambda state: None,
) -> tuple[Path, dict] | None:
    """The newest checkpoint of `folder` that can be used, and its content; None for none at all.

    Files that cannot be read, and those with a `content_fault`, are named through `say` and passed
    over; UserError where none is left, for starting from scratch must be the user's choice.
    """
    paths = in_order(folder)
    for path in reversed(paths):
        try:
            state = load(path)
        except UserError as error:
            say(f"passing over a checkpoint: {error}")
            continue
        reason = content_fault(state)
        if reason is None:
            return path, state
        say(f"passing over a checkpoint: {path}: {reason}")
    if paths:
        raise UserError(
            f"none of the {len(paths)} checkpoints in {folder} can be used; "
            "move them away to start from scratch, or choose another OUTPUT_DIR"
        )
    return None


# ---- disk space ---------------------------------------------------------------------------------


def estimated_bytes(model: nn.Module, *, optimizer_states: int, ema: bool) -> int:
    """Size of one checkpoint: the weights, the optimizer's states of those that train, the EMA."""
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return weights + trained * optimizer_states + weights * ema


def require_space(folder: Path, *, one: int, keep: int, checkpoints: int) -> None:
    """UserError unless `keep` checkpoints of `one` bytes, the best and one in writing fit.

    `checkpoints`: how many the whole run writes; counts for keep=0 and for short runs.
    """
    files = min(keep or checkpoints, checkpoints) + 2
    present = [p for p in [*in_order(folder), Path(folder) / BEST] if p.is_file()]
    there = sum({(s := p.stat()).st_ino: s.st_size for p in present}.values())  # best is a link
    free = free_bytes(folder)
    if one * files > free + there:
        raise UserError(
            f"{folder} has {free / 2**30:.2f} GiB free; this run keeps up to {files} checkpoints "
            f"of about {one / 2**30:.2f} GiB ({one * files / 2**30:.2f} GiB). Free some space, "
            "choose another OUTPUT_DIR, or lower TRAIN.KEEP_CHECKPOINTS"
        )


# ---- publishing ---------------------------------------------------------------------------------


def export(source: Path, target: Path) -> int:
    """Write the published layout: `model_state` under the published keys, with what is needed to
    use it (model, classes, spec, settings) and nothing of the training.

    Returns the size in bytes. UserError where `source` is no checkpoint of this trainer; RunFailed
    where `target` cannot be written.
    """
    state = _read(source)
    kept = ("format", "model", "model_state", "classes", "spec", "cfg", "data", "epoch", "step")
    content = {key: state[key] for key in kept}
    content["multi_label"] = state.get("multi_label", False)
    return _write(content, target)
