"""Checkpoints: written atomically, verified before they are loaded, and the last few are kept.

A checkpoint is a file, or of a sharded run a folder (`models.weights.sharded`); everything here
takes both. The file is one of `torch.save`: a zip archive that stores the size and CRC-32 of every
record. `fault` reads the whole file and compares them, so truncated and damaged files are found.
Files are written by `files.atomic_write`: whenever the machine stops, a file under its final name
is complete. `model_state` holds the weights that were validated: the averaged ones (EMA) if the run
keeps them. Training then resumes from `raw_state`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hiera_video.errors import RunFailed, UserError, WeightsError
from hiera_video.files import (
    atomic_write,
    explained,
    free_bytes,
    link_or_copy,
    put_in_place,
    unfinished_name,
    write_text,
)
from hiera_video.models.weights import sharded
from hiera_video.models.weights.archive import archive_fault, unpickled

FORMAT = "hiera_video/1"
BEST = "best.pyth"
BEST_SHARDED = f"best{sharded.SUFFIX}"
_NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?\.(?:pyth|sharded)")


def file_name(epoch: int, step: int = 0, suffix: str = ".pyth") -> str:
    """Name the checkpoint after `epoch` whole epochs and `step` optimizer steps of the next."""
    return f"checkpoint_epoch_{epoch:05d}" + (f"_step_{step:07d}" if step else "") + suffix


def in_order(folder: Path) -> list[Path]:
    """List the checkpoints of a folder by training step, first to last, readable or not; those of
    sharded runs are folders."""
    named = [
        (m, p) for p in Path(folder).glob("checkpoint_epoch_*") if (m := _NAME.fullmatch(p.name))
    ]
    return [path for *_, path in sorted((int(m[1]), int(m[2] or 0), p) for m, p in named)]


# ---- writing ------------------------------------------------------------------------------------


def save(state: dict[str, Any], path: Path) -> int:
    """Write `state` to `path` atomically and durably; return the size in bytes.

    Raises RunFailed where it cannot be written; an older file at `path` is then unchanged.
    """
    try:
        return _write(state, path)
    except RunFailed as error:
        raise RunFailed(f"{error}. {what_is_left(Path(path).parent)}") from error


def _write(state: dict[str, Any], path: Path) -> int:
    with atomic_write(path) as file:
        torch.save(state, file)
        return file.tell()


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints; 0 keeps all. `best.pyth` is not touched."""
    for path in in_order(folder)[: -keep or None] if keep else []:
        if path.is_dir():
            _delete_folder(path)
        else:
            path.unlink(missing_ok=True)


def put_folder_in_place(finished: Path, path: Path) -> None:
    """Rename a finished folder; an older one at `path` is replaced.

    Raises RunFailed, which names `path`.
    """
    if path.is_dir():
        _delete_folder(path)
    put_in_place(finished, path)


def _delete_folder(path: Path) -> None:
    """Delete a folder, hidden first: a kill leaves no half of one under its name."""
    hidden = Path(unfinished_name(path))
    put_in_place(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def what_is_left(folder: Path) -> str:
    kept = in_order(folder) if folder.is_dir() else []
    if not kept:
        return "No checkpoint was written before it"
    return f"The last complete checkpoint is {kept[-1]}: the same command resumes from it"


def remove_unfinished(folder: Path, log: Callable[[str], None]) -> None:
    """Delete the folders that a run was writing, or deleting, when it was killed, and tell of those
    that it was writing.

    The run of this process holds OUTPUT_DIR: nobody else writes there.
    """
    for path in sorted(Path(folder).glob(f".*{sharded.SUFFIX}.*.tmp")):
        if path.is_dir():
            if not (path / sharded.RECORD).is_file():
                log(f"skipping a checkpoint: {path} is unfinished, its run was killed; deleted")
            shutil.rmtree(path, ignore_errors=True)


# ---- the best one -------------------------------------------------------------------------------


def keep_best(path: Path, record: dict[str, Any]) -> None:
    """Make `path` the folder's best.pyth, with `record` (metric, value, epoch) beside it as JSON.

    best.pyth is a hard link to `path` where the file system has them, else a copy. A folder becomes
    best.sharded, of such links.
    """
    best, other = (path.parent / name for name in (BEST, BEST_SHARDED))
    try:
        if path.is_dir():
            _link_folder(path, other)
            best.unlink(missing_ok=True)
        else:
            link_or_copy(path, best)
            if other.is_dir():
                _delete_folder(other)
        write_text(best.with_suffix(".json"), json.dumps(record, sort_keys=True) + "\n")
    except RunFailed as error:
        raise RunFailed(f"{error}. {what_is_left(path.parent)}") from error


def _link_folder(source: Path, path: Path) -> None:
    """Make `path` a folder of hard links to the files of `source`."""
    unfinished = Path(unfinished_name(path))
    try:
        with explained(path):
            unfinished.mkdir()
        for file in source.iterdir():
            link_or_copy(file, unfinished / file.name)
        put_folder_in_place(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def best_path(folder: Path) -> Path:
    """Return the best checkpoint of a folder: best.sharded if there is one, else best.pyth."""
    path = Path(folder) / BEST_SHARDED
    return path if path.is_dir() else Path(folder) / BEST


def best_record(folder: Path) -> dict[str, Any] | None:
    """Read the record that `keep_best` last wrote; None where there is none."""
    try:
        text = (Path(folder) / BEST).with_suffix(".json").read_text(encoding="utf-8")
        record: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return None
    return record


# ---- reading ------------------------------------------------------------------------------------


PARTS = (
    *("model", "model_state", "optimizer_state", "scaler_state", "cfg", "data"),
    *("step", "epoch_sums"),
)
"""What a run needs to resume, besides the format."""


def fault(path: Path) -> str | None:
    """Read a whole checkpoint against its checksums; return what is wrong with it, or None."""
    if not sharded.is_sharded(path):
        return archive_fault(path)
    try:
        record = sharded.read_record(path)
    except WeightsError as error:
        return str(error)
    return sharded.files_fault(path, record, sharded.file_names(record))


def load(path: Path) -> dict[str, Any]:
    """Load a training checkpoint of this package on the CPU, executing nothing stored in it.

    Raises UserError where the file is missing or damaged, or a run cannot be resumed from it.
    """
    state = _read(path)
    require_parts(state, path)
    return state


def require_parts(state: dict[str, Any], path: Path) -> None:
    """Raise UserError where a run cannot be resumed from the content of `path`."""
    missing = [name for name in PARTS if name not in state]
    if missing:
        raise UserError(
            f"{path} holds weights and not the state of a run (no {', '.join(missing)}), so a run "
            "cannot be resumed from it; to start from its weights set TRAIN.CHECKPOINT_FILE_PATH "
            "and leave TRAIN.CHECKPOINT_EPOCH_RESET at True"
        )


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this trainer, or a file that `export` made of one; of a folder whole
    tensors."""
    folder = sharded.is_sharded(path)
    reason = None if folder else archive_fault(path)
    if reason:
        raise UserError(f"cannot read checkpoint {path}: {reason}")
    try:
        state = sharded.read_whole(path) if folder else unpickled(path)
    except WeightsError as error:
        raise UserError(f"cannot read checkpoint {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(
            f"{path} was not written by this trainer (format {FORMAT!r}), so a run cannot be "
            "resumed from it; to start from its weights set TRAIN.CHECKPOINT_FILE_PATH"
        )
    return state


def latest(folder: Path, log: Callable[[str], None] = print) -> tuple[Path, dict[str, Any]] | None:
    """Find the newest checkpoint of `folder` that can be used; return its path and content.

    None where the folder has no checkpoints. Checkpoints that cannot be read are skipped and
    reported through `log`. UserError where all are skipped.
    """
    paths = in_order(folder)
    for path in reversed(paths):
        try:
            return path, load(path)
        except UserError as error:
            log(f"skipping a checkpoint: {error}")
    if paths:
        raise UserError(none_usable(folder, len(paths)))
    return None


def none_usable(folder: Path, count: int) -> str:
    """Return the message for a folder whose checkpoints cannot be used."""
    return (
        f"none of the {count} checkpoints in {folder} can be used; "
        "move them away to start from scratch, or choose another OUTPUT_DIR"
    )


# ---- disk space ---------------------------------------------------------------------------------


def estimated_bytes(model: nn.Module, *, optimizer_states: int, ema: bool) -> int:
    """Estimate the size of a checkpoint in bytes.

    optimizer_states: tensors that the optimizer keeps per trainable weight. ema: averaged weights
    are stored too.
    """
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return weights + trained * optimizer_states + weights * ema


def require_space(folder: Path, *, one: int, keep: int, checkpoints: int) -> None:
    """Raise UserError unless the disk has room for the checkpoints of the run.

    These are the `keep` newest, the best, and one that is being written, of `one` bytes each.
    checkpoints: how many the whole run writes, which counts for keep=0 and for short runs.
    """
    files = min(keep or checkpoints, checkpoints) + 2
    best = [Path(folder) / name for name in (BEST, BEST_SHARDED)]
    present = [p for path in (*in_order(folder), *best) for p in (path, *path.glob("*"))]
    used = sum({(s := p.stat()).st_ino: s.st_size for p in present if p.is_file()}.values())
    free = free_bytes(folder)
    if one * files > free + used:
        raise UserError(
            f"{folder} has {free / 2**30:.2f} GiB free; this run keeps up to {files} checkpoints "
            f"of about {one / 2**30:.2f} GiB ({one * files / 2**30:.2f} GiB). Free some space, "
            "choose another OUTPUT_DIR, or lower TRAIN.KEEP_CHECKPOINTS"
        )


# ---- publishing ---------------------------------------------------------------------------------


def export(source: Path, target: Path) -> int:
    """Write a checkpoint in the published layout, a file also of a folder; return its bytes.

    It has `model_state` and what is needed to use it (model, classes, spec, settings), without the
    state of the training. UserError where `source` is no checkpoint of this trainer; RunFailed
    where `target` cannot be written.
    """
    state = _read(source)
    kept = ("format", "model", "model_state", "classes", "spec", "cfg", "data", "epoch", "step")
    content = {key: state[key] for key in kept}
    content["multi_label"] = state.get("multi_label", False)
    return _write(content, target)
