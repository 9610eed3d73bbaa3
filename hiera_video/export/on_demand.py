"""Load a classifier in the runtime that a user asks for: `Predictor.load(..., runtime=...)`.

An exported file opens as it is. A checkpoint is exported once, with its parity proved, into the
cache, and found there the next time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hiera_video import __version__
from hiera_video.classifier import AnyPath, Classifier, Warn, class_names, read_labels
from hiera_video.errors import RunFailed, UserError
from hiera_video.files import explained
from hiera_video.models.weights.download import cache_folder
from hiera_video.models.weights.file import Checkpoint
from hiera_video.runtimes.exported import ExportedModel
from hiera_video.runtimes.load import check_runtime, exported_kind, open_exported
from hiera_video.runtimes.measured import Kind, read_record
from hiera_video.scoring import choose_device

Named = tuple[AnyPath | None, AnyPath | None, AnyPath | None]
"""(model, weights, labels) as `Predictor.load` was given them."""


def load_in_runtime(
    runtime: str,
    named: Named,
    settings: dict[str, Any],
    load: Callable[[], Classifier],
    warn: Warn,
) -> Classifier:
    """Load what a user named, in the runtime that he asked for.

    Args:
        runtime: "auto", "torch", "onnx" or "openvino". "auto" is for an exported file what the file
            is for; for weights the fastest that `hiera-video doctor --measure` found on this
            machine, and PyTorch where nothing was measured.
        named: model, weights and labels.
        settings: further arguments of the Predictor; for another runtime than PyTorch, the device
            and the dtype are set to what it computes in.
        load: loads weights in PyTorch.
        warn: called with each line that the user should read.

    Raises:
        UserError: a runtime, dtype or device that is not possible; a library that is missing.
        WeightsError: missing or unfit files. RunFailed: the weights cannot be exported.
    """
    check_runtime(runtime)
    file = _exported_file(named)
    if file is None and runtime == "auto":
        return _fastest(load(), settings, warn)
    if file is None and runtime == "torch":
        return load()
    dtype = settings.get("dtype", "auto")
    if str(settings.get("device", "auto")) not in ("auto", "cpu"):
        raise UserError(
            f"device {str(settings['device'])!r}: exported models run on the CPU here; use "
            "--device cpu, or --runtime torch with a checkpoint"
        )
    if file is not None:
        found = _opened(file, runtime, named, warn)
    else:
        found = _converted(load(), runtime, "fp32" if dtype == "auto" else str(dtype), warn)
    assert isinstance(found.model, ExportedModel)
    own = found.model.facts.dtype
    if dtype not in ("auto", own):
        raise UserError(f"dtype {dtype!r}: {found.weights} was exported in {own}; leave dtype out")
    settings.update(device="cpu", dtype="auto")
    return found


def kind_of(found: Classifier) -> Kind:
    """Return what decides the speed of a classifier on this machine."""
    body = (p.numel() for name, p in found.model.named_parameters() if not name.startswith("head."))
    return Kind(found.name, found.clip_shape, sum(body), torch.get_num_threads())


def _fastest(found: Classifier, settings: dict[str, Any], warn: Warn) -> Classifier:
    """The classifier in the runtime that was measured as the fastest here; else as it is."""
    given = str(settings.get("dtype", "auto")).removeprefix("torch.")
    dtype = {"auto": "fp32", "float32": "fp32", "bfloat16": "bf16"}.get(given, given)
    on_cpu = choose_device(settings.get("device", "auto")).type == "cpu"
    record = read_record(kind_of(found)) if on_cpu else None
    runtime, gain = ("torch", 1.0) if record is None else record.fastest(dtype)
    if record is None or runtime == "torch":
        return found
    what = f"{runtime} ({gain:.1f} times torch on this machine, measured {record.date})"
    differing = record.differing(runtime)
    if differing:
        changed = "; ".join(differing)
        warn(f"runtime: torch; {what}: {changed}; `hiera-video doctor --measure` measures again")
        return found
    try:
        chosen = _converted(found, runtime, dtype, warn)
    except (RunFailed, ValueError) as error:  # UserError and WeightsError are ValueErrors
        warn(f"runtime: torch, not {what}: {error}")
        return found
    warn(f"runtime: {what}")
    settings.update(device="cpu", dtype="auto")
    return chosen


def _exported_file(named: Named) -> AnyPath | None:
    """The exported file among the model and the weights, if there is one."""
    model, weights, _ = named
    candidates = (weights,) if weights is not None else (model,)
    return next(
        (
            path
            for path in candidates
            if isinstance(path, str | os.PathLike) and exported_kind(path) is not None
        ),
        None,
    )


def _opened(file: AnyPath, runtime: str, named: Named, warn: Warn) -> Classifier:
    """Open an exported file, its outputs called as --labels says where that is given."""
    model, weights, labels = named
    opened = open_exported(file, runtime)
    facts = opened.facts
    if model is not None and weights is not None and os.fspath(model) != facts.model:
        raise UserError(f"{os.fspath(file)} is {facts.model}, not {os.fspath(model)}; drop --model")
    told = Checkpoint(state_dict={}, path=os.fspath(file), classes=list(facts.classes))
    names = None if labels is None else read_labels(labels)
    return Classifier(
        model=opened,
        name=facts.model,
        weights=os.fspath(file),
        spec=facts.spec,
        classes=class_names(opened, names, labels, told, warn),
        multi_label=facts.multi_label,
        licence=facts.licence,
    )


def _converted(found: Classifier, runtime: str, dtype: str, warn: Warn) -> Classifier:
    """Export a classifier into the cache, or find it there, and open it."""
    # Imported here: labelling with PyTorch needs none of it.
    from hiera_video.export.export import ExportSettings, export

    folder = cache_folder() / "exported"
    ending = ".onnx" if runtime == "onnx" else ""
    place = folder / f"{found.name}-{_fingerprint(found)}-{dtype}-{runtime}{ending}"
    settings = ExportSettings(format=runtime, out=str(place), dtype=dtype)
    if exported_kind(place) is None or not place.exists():
        with explained(place):
            folder.mkdir(parents=True, exist_ok=True)
        warn(f"exporting {found.weights} for {runtime}, once, into {_shown(folder)}")
        export(found, settings, warn)
    opened = open_exported(place, runtime)
    return replace(found, model=opened)


def _shown(folder: Path) -> str:
    home = str(Path.home())
    return (
        str(folder).replace(home, "~", 1) if str(folder).startswith(home + os.sep) else str(folder)
    )


def _fingerprint(found: Classifier) -> str:
    """A few digits that differ between models, weights, class names and versions."""
    facts = (__version__, found.name, found.classes, found.spec, found.multi_label, found.licence)
    digest = hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape"))
    _add_weights(digest, found.model)
    return digest.hexdigest()[:16]


def _add_weights(digest: Any, model: nn.Module) -> None:
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().view(-1).numpy()).cast("B"))
