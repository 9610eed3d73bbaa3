"""Weights for models: found by name, file or address, and fitted to the model or refused.

    model = build_model("hiera_base_16x224", pretrained="mae_k400_ft_k400", num_classes=12)

or, a step at a time,

    checkpoint, published = resolve("hiera_base_16x224.mae_k400_ft_k400")
    report = load_weights(model, checkpoint)

Loading is strict: whatever is missing, left over or of another shape is an error that lists it, and
the model is then exactly as it was. What is fitted on purpose is said in the report's notes:

* other classes: rows of the head are placed by the names of their classes, new ones are randomly
  initialised; without names, another number of classes replaces the head;
* an autoencoder's file for a classifier: the encoder is taken out of it;
* another clip length or frame size: position embeddings are resized (`pos_embed`);
* an image model's file for a video model: the patch kernel is spread over time.

The table of public checkpoints is in `published`, the fetching in `download`, the reading of files
in `weights_file`, the fitting in `loading` and `pos_embed`; their public names are gathered here.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from hiera_video.errors import WeightsError, first_few
from hiera_video.labels import load_labels
from hiera_video.models.weights.download import cache_folder, cached_path, fetch
from hiera_video.models.weights.file import (
    FILE_ENDINGS,
    Checkpoint,
    load_untrusted,
    read_checkpoint,
    save_published,
)
from hiera_video.models.weights.loading import LoadReport, load_weights, say
from hiera_video.models.weights.mvit_keys import published_model
from hiera_video.models.weights.published import (
    PUBLISHED,
    PublishedWeights,
    by_file_name,
    names_for,
)

__all__ = [
    "PUBLISHED",
    "Checkpoint",
    "LoadReport",
    "PublishedWeights",
    "WeightsError",
    "bundled",
    "cache_folder",
    "cached_path",
    "fetch",
    "load_pretrained",
    "load_untrusted",
    "load_weights",
    "names_for",
    "read_checkpoint",
    "resolve",
    "save_published",
]

# ---- finding ------------------------------------------------------------------------------------


def resolve(
    weights: str | os.PathLike, model_name: str | None = None
) -> tuple[Checkpoint, PublishedWeights | None]:
    """Read the weights that a user named, fetching them if they must be.

    Args:
        weights: a name of the table ("mae_k400_ft_k400" with `model_name`, or
            "hiera_base_16x224.mae_k400_ft_k400" by itself), the name of a model that comes with
            the package ("camera_motion"), a local file, or an http(s) address.
        model_name: registered name of the model they are for, if known.

    Returns:
        The checkpoint, with the names of its outputs where they are known or likely
        (`classes_guessed`), and its row of the table if it is a public one. A file that carries no
        facts of its own but is called like a public one (hiera_base_16x224.pth), and has its number
        of classes, counts as that. One with the sizes of a published MViTv2, in SlowFast's,
        torchvision's or timm's names, is taken for that model where none is named.

    Raises:
        WeightsError: no such name, file or address, with near names; or it cannot be fetched, or
            read.
    """
    text = os.fspath(weights)
    if text in (packaged := bundled()):
        checkpoint = read_checkpoint(packaged[text])
        checkpoint.name = f"bundled {text}"
        return checkpoint, None
    row = _table_row(text, model_name)
    if row is not None:
        checkpoint = _read_fetched(row.url)
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        checkpoint = _read_fetched(text)
    else:
        path = os.path.expanduser(text)
        if not os.path.exists(path):
            raise WeightsError(_no_such_weights(text, model_name))
        checkpoint = read_checkpoint(path)
    if row is None and checkpoint.model_name is None:
        row = _public_by_name(text.replace("\\", "/").rsplit("/", 1)[-1], checkpoint, model_name)
    if row is not None:
        checkpoint.published, checkpoint.head = row, row.head
        checkpoint.model_name, checkpoint.spec = row.model, row.spec
    else:
        if checkpoint.model_name is None and model_name is None:
            checkpoint.model_name = published_model(checkpoint.state_dict)
        checkpoint.head = _head_of(checkpoint, checkpoint.model_name or model_name)
    _name_outputs(checkpoint, checkpoint.model_name or model_name)
    return checkpoint, row


BUNDLED = Path(__file__).resolve().parents[2] / "bundled"


def bundled() -> dict[str, Path]:
    """The checkpoints that come with the package, by name."""
    return {path.stem: path for path in sorted(BUNDLED.glob("*.pyth"))}


def load_pretrained(
    model: nn.Module,
    model_name: str,
    pretrained: bool | str | os.PathLike,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    strict: bool = True,
    into_autoencoder: bool = False,
    inflate: bool = True,
) -> LoadReport:
    """Find weights and load them into `model`, saying on stderr what was done to fit them.

    Args:
        model: the model as built; changed only if all goes well.
        model_name: its registered name, for names of the table.
        pretrained: True for the table's default for this model, or what `resolve` takes.
        num_classes: the number of classes that was asked for. None: nobody asked, and a file whose
            head has another number than the model is an error rather than a lost head.
        classes: names of the model's outputs, in their order (see `load_weights`).
        strict, into_autoencoder, inflate: see `load_weights`.

    Raises:
        WeightsError: as `resolve` and `load_weights`.
    """
    if pretrained is True:
        names = names_for(model_name)
        if not names:
            raise WeightsError(
                f"no public weights exist for {model_name}; they do for "
                f"{', '.join(sorted({owner for owner, _ in PUBLISHED}))}. "
                "Name a file or an address instead, or one of those as model.weights"
            )
        pretrained = names[0]
    checkpoint, _ = resolve(pretrained, model_name)
    _check_head(model, checkpoint, asked_for=num_classes)
    report = load_weights(
        model,
        checkpoint,
        strict=strict,
        into_autoencoder=into_autoencoder,
        inflate=inflate,
        classes=classes,
    )
    if num_classes is not None and classes is None:
        report.notes += _kept_head(model, checkpoint)
    for note in report.notes:
        say(f"{checkpoint.label}: {note}")
    return report


def _kept_head(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """What is said of a head that is kept because it has as many outputs as were asked for."""
    names = checkpoint.classes
    if not names or checkpoint.classes_guessed or len(names) != getattr(model, "num_classes", None):
        return []
    return [
        f"head kept: its {len(names)} outputs are {first_few(names)}; "
        "classes=[...] places them by name"
    ]


def _read_fetched(url: str) -> Checkpoint:
    """Fetch and read; where what lies in the cache proves unreadable, say how to be rid of it."""
    path = fetch(url)
    try:
        return read_checkpoint(path)
    except WeightsError as error:
        raise WeightsError(f"{error}\n  fetched from {url}; delete it to fetch it again") from None


def _table_row(text: str, model_name: str | None) -> PublishedWeights | None:
    """The row that "weights" (of `model_name`) or "model.weights" names; None if neither."""
    if (model_name, text) in PUBLISHED:
        return PUBLISHED[model_name, text]
    owner, _, name = text.rpartition(".")
    return PUBLISHED.get((owner, name))


def _public_by_name(
    file_name: str, checkpoint: Checkpoint, model_name: str | None
) -> PublishedWeights | None:
    """The row of a file called like a public one, if it could be that one."""
    row = by_file_name(file_name, model_name)
    if row is None or row.num_classes != replace(checkpoint, head=row.head).num_classes:
        return None
    return row if checkpoint.is_autoencoder == (row.num_classes is None) else None


def _head_of(checkpoint: Checkpoint, model_name: str | None) -> str:
    """The key of a checkpoint's classifier, as the public weights of the same model call theirs."""
    heads = [row.head for (owner, _), row in PUBLISHED.items() if owner == model_name]
    return next((head for head in heads if head in checkpoint.state_dict), checkpoint.head)


def _name_outputs(checkpoint: Checkpoint, model_name: str | None) -> None:
    """Add the class names of public weights. WeightsError where names and outputs do not agree."""
    outputs, row = checkpoint.num_classes, checkpoint.published
    if checkpoint.classes:
        if outputs is not None and outputs != len(checkpoint.classes):
            raise WeightsError(
                f"{checkpoint.label} has {len(checkpoint.classes)} class names for {outputs} "
                "outputs: it was changed by hand, or its writer made a mistake"
            )
        return
    listed = row.classes if row is not None else _usual_classes(model_name, outputs)
    if listed is not None and outputs is not None:
        names = load_labels(listed)
        if len(names) == outputs:
            checkpoint.classes = names
            checkpoint.classes_guessed = "" if row is not None else listed


def _usual_classes(model_name: str | None, outputs: int | None) -> str | None:
    """The list of class names that a model is published with, if it has as many."""
    rows = [row for (owner, _), row in PUBLISHED.items() if owner == model_name and row.classes]
    return next((row.classes for row in rows if row.num_classes == outputs), None)


def _no_such_weights(text: str, model_name: str | None) -> str:
    """What came, what is near, and what is allowed."""
    ways = "a local file, an https:// address, or a published name"
    if packaged := bundled():
        ways += f", or {', '.join(packaged)}, which is part of this package"
    if "/" in text or "\\" in text or Path(text).suffix in FILE_ENDINGS:
        return f"no such weights file: {text}; --weights takes {ways} (hiera_base_16x224.mae_k400)"
    own = names_for(model_name) if model_name else []
    owners = [owner for owner, name in PUBLISHED if name == text]
    if owners:
        hint = f"it needs its model's name before it, such as {owners[0]}.{text}."
        if model_name:
            owner = difflib.get_close_matches(model_name, owners, n=1, cutoff=0.0)[0]
            hint = f"it is published for other models: did you mean {owner}.{text}?"
    else:
        full = [str(row) for row in PUBLISHED.values()]
        near = difflib.get_close_matches(text, [*own, *full, *packaged], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "no published name is near it."
    listed = f"; {model_name} has {', '.join(own)}" if own else ""
    return f"unknown weights {text!r}: {hint} Allowed are {ways}{listed}"


def _check_head(model: nn.Module, checkpoint: Checkpoint, *, asked_for: int | None) -> None:
    """Refuse to lose a trained head by accident."""
    here, there = getattr(model, "num_classes", None), checkpoint.num_classes
    if asked_for is None and here and there and here != there:
        raise WeightsError(
            f"{checkpoint.label} has {there} classes and the model was built with its usual {here};"
            f" say num_classes={there} to use the head in the file, or num_classes={here} for a "
            "new one"
        )
