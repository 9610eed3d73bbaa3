"""Checkpoints: written whole or not at all, checked before they are trusted, the last few kept.

A checkpoint is one `torch.save` file, that is a zip archive whose directory stores every record's
size and CRC-32; `fault` reads all of it back against them, so truncation and bit rot are found.
It is written beside its final name, flushed to the disk, then renamed: whenever the machine
stops, a file under its final name is complete. `model_state` is what was validated: the averaged
weights (EMA) where a run keeps them, and then `raw_state` is what training goes on from.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hiera_video.errors import RunFailed, UserError
from hiera_video.models.weights_file import WeightsError, archive_fault, unpickled

FORMAT = "hiera_video/1"
BEST = "best.pyth"
_NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?\.pyth")
_TEMPORARY = ".tmp"


def file_name(epoch: int, step: int = 0) -> str:
    """Name after `epoch` whole epochs and `step` optimizer steps of the next one."""
    return f"checkpoint_epoch_{epoch:05d}" + (f"_step_{step:07d}" if step else "") + ".pyth"


def in_order(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest training first, whether they are readable or not."""
    found = [(m, p) for p in Path(folder).glob("*.pyth") if (m := _NAME.fullmatch(p.name))]
    return [path for *_, path in sorted((int(m[1]), int(m[2] or 0), p) for m, p in found)]


# ---- writing ------------------------------------------------------------------------------------


class _Written:
    """A file for `torch.save` that remembers why a write failed: torch only says that it did."""

    def __init__(self, file: Any):
        self.file, self.error = file, None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


def save(state: dict[str, Any], path: Path) -> int:
    """Write `state` to `path` atomically and durably; the size in bytes.

    Raises RunFailed where the disk refuses it; what was under `path` before is then still there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}{_TEMPORARY}")
    try:
        # unbuffered: a full disk must fail in write(), not in a close() long after
        with open(temporary, "wb", buffering=0) as file:
            target = _Written(file)
            try:
                torch.save(state, target)
            except RuntimeError as error:
                raise target.error or error from None
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunFailed(_could_not_write(path, error)) from error
    return size


def write_text(text: str, path: Path) -> None:
    """Replace a small text file atomically and durably; OSError where the disk refuses it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}{_TEMPORARY}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, without which a rename may be forgotten in a power cut."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Delete half-written files of a run that was killed while saving."""
    for path in Path(folder).glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints; 0 keeps all. `best.pyth` is not touched."""
    for path in in_order(folder)[: -keep or None] if keep else []:
        path.unlink(missing_ok=True)


def _could_not_write(path: Path, error: OSError) -> str:
    kept = in_order(path.parent) if path.parent.is_dir() else []
    last = (
        f"the last complete checkpoint is {kept[-1]}" if kept else "no checkpoint was kept before"
    )
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        last = f"{free / 2**20:.0f} MiB are free there; {last}"
    return (
        f"could not write {path}: {error.strerror or error}; {last}. "
        "Free some space and run the same command again to continue"
    )


# ---- the best one -------------------------------------------------------------------------------


def keep_best(path: Path, record: dict[str, Any]) -> None:
    """Make `path` the folder's best.pyth, `record` (metric, value, epoch) beside it as JSON.

    A second name for the same file where the file system has those, else a copy.
    """
    best = path.parent / BEST
    temporary = path.parent / f".{BEST}{_TEMPORARY}"
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, best)
        write_text(json.dumps(record, sort_keys=True) + "\n", best.with_suffix(".json"))
    except OSError as error:
        raise RunFailed(_could_not_write(best, error)) from error


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
    free = shutil.disk_usage(folder).free
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

    Returns the size in bytes. UserError where `source` is no checkpoint of this trainer.
    """
    state = _read(source)
    kept = ("format", "model", "model_state", "classes", "spec", "cfg", "epoch", "step")
    return save({key: state[key] for key in kept}, target)
