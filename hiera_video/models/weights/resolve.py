"""From what a user named (published weights, a file, an address) to a checkpoint in memory.

checkpoint, published = resolve("mae_k400_ft_k400", "hiera_base_16x224")
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import replace
from pathlib import Path

from hiera_video.errors import WeightsError
from hiera_video.labels import load_labels
from hiera_video.models.weights import hub
from hiera_video.models.weights.download import fetch
from hiera_video.models.weights.file import FILE_ENDINGS, Checkpoint, read_checkpoint
from hiera_video.models.weights.key_names import CLASSIFIER
from hiera_video.models.weights.other_keys import published_model
from hiera_video.models.weights.published import (
    PUBLISHED,
    PublishedWeights,
    by_file_name,
    names_for,
)


def resolve(
    weights: str | os.PathLike, model_name: str | None = None
) -> tuple[Checkpoint, PublishedWeights | None]:
    """Read the weights that a user named, downloading them if they are not in the cache.

    Args:
        weights: a name of the table ("mae_k400_ft_k400" with `model_name`, or
            "hiera_base_16x224.mae_k400_ft_k400" by itself), the name of a model that comes with
            the package ("camera_motion"), a local file, an http(s) address, a folder of a hub
            (`hub.save_pretrained`), or "hf:owner/name", such a folder on the Hugging Face Hub.
        model_name: registered name of the model they are for, if known.

    Returns:
        The checkpoint, with the names of its outputs where they are known or likely
        (`classes_guessed`), and its row of the table if it is a public one. A file that does not
        say what it is but has the name of a public one (hiera_base_16x224.pth) and its number of
        classes counts as that. One with the sizes of a published MViTv2, in SlowFast's,
        torchvision's or timm's names, is taken for that model if none is named.

    Raises:
        WeightsError: no such name, file or address, with near names; or it cannot be downloaded,
            or read.
    """
    text = os.fspath(weights)
    if text in (packaged := bundled()):
        checkpoint = read_checkpoint(packaged[text])
        checkpoint.name = f"bundled {text}"
        return checkpoint, None
    if text.startswith(hub.PREFIX) or hub.is_pretrained(text):
        return _read_folder(text, model_name), None
    row = _table_row(text, model_name)
    checkpoint = _read_named(text, model_name) if row is None else _read_downloaded(row.url)
    if row is None and checkpoint.model_name is None:
        row = _published_by_file_name(text, checkpoint, model_name)
    if row is not None:
        checkpoint.published, checkpoint.head = row, row.head
        checkpoint.model_name, checkpoint.spec = row.model, row.spec
    else:
        if checkpoint.model_name is None and model_name is None:
            checkpoint.model_name = published_model(checkpoint.state_dict)
        checkpoint.head = _head_of(checkpoint, checkpoint.model_name or model_name)
    _name_outputs(checkpoint, checkpoint.model_name or model_name)
    return checkpoint, row


def _read_folder(text: str, model_name: str | None) -> Checkpoint:
    """Read a folder of a hub, downloading it if `text` is its name there."""
    folder = hub.fetch_pretrained(text) if text.startswith(hub.PREFIX) else Path(text).expanduser()
    checkpoint = hub.read_pretrained(folder)
    checkpoint.name = text
    _name_outputs(checkpoint, checkpoint.model_name or model_name)
    return checkpoint


def _read_named(text: str, model_name: str | None) -> Checkpoint:
    """Read the file at an address or a path; WeightsError where there is none."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return _read_downloaded(text)
    path = os.path.expanduser(text)
    if not os.path.exists(path):
        raise WeightsError(_no_such_weights(text, model_name))
    return read_checkpoint(path)


BUNDLED = Path(__file__).resolve().parents[2] / "bundled"


BUNDLED_CLASSIFIER = "camera_motion"
"""The one of them that names classes; the others are to be fine-tuned."""

BUNDLED_LICENCE = "Apache-2.0"


def bundled() -> dict[str, Path]:
    """The checkpoints that come with the package, by name."""
    return {path.stem: path for path in sorted(BUNDLED.glob("*.pyth"))}


def _read_downloaded(url: str) -> Checkpoint:
    """Download and read; where the file in the cache is unreadable, the error says to delete it."""
    path = fetch(url)
    try:
        return read_checkpoint(path)
    except WeightsError as error:
        raise WeightsError(
            f"{error}\n  downloaded from {url}; delete it to download it again"
        ) from None


def _table_row(text: str, model_name: str | None) -> PublishedWeights | None:
    """The row that "weights" (of `model_name`) or "model.weights" names; None if neither."""
    if model_name is not None and (model_name, text) in PUBLISHED:
        return PUBLISHED[model_name, text]
    owner, _, name = text.rpartition(".")
    return PUBLISHED.get((owner, name))


def _published_by_file_name(
    text: str, checkpoint: Checkpoint, model_name: str | None
) -> PublishedWeights | None:
    """The row whose published file is called as `text` ends, if the checkpoint can be that one."""
    row = by_file_name(text.replace("\\", "/").rsplit("/", 1)[-1], model_name)
    if row is None or row.num_classes != replace(checkpoint, head=row.head).num_classes:
        return None
    return row if (checkpoint.kind != CLASSIFIER) == (row.num_classes is None) else None


def _head_of(checkpoint: Checkpoint, model_name: str | None) -> str:
    """The key of a checkpoint's classifier, as the public weights of the same model call theirs."""
    heads = [row.head for (owner, _), row in PUBLISHED.items() if owner == model_name]
    return next((head for head in heads if head in checkpoint.state_dict), checkpoint.head)


def _name_outputs(checkpoint: Checkpoint, model_name: str | None) -> None:
    """Add the class names of public weights.

    Raises WeightsError where the checkpoint has another number of names than of outputs.
    """
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
    """The message for unknown weights: what was given, near names, and what is allowed."""
    ways = "a local file, an https:// address, hf:owner/name, or a published name"
    if packaged := bundled():
        names = " and ".join(packaged)
        ways += f", or {names}, which {'is' if len(packaged) == 1 else 'are'} part of this package"
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
