"""Writing a trained checkpoint as a folder that model hubs know, and uploading it.

    save_pretrained("runs/mine/checkpoints/best.pyth", "my-model")
    push_to_hub("runs/mine/checkpoints/best.pyth", "me/my-model")

`hub` reads such folders. They have weights as safetensors, config.json and a model card.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from hiera_video import __version__
from hiera_video.errors import RunFailed, UserError, WeightsError, first_line
from hiera_video.files import atomic_write, explained, write_text
from hiera_video.models.weights import hub
from hiera_video.models.weights.file import Checkpoint
from hiera_video.models.weights.hub import CARD, CONFIG, MODEL_TYPE, WEIGHTS
from hiera_video.models.weights.resolve import resolve


def save_pretrained(
    weights: str | os.PathLike[str], folder: str | os.PathLike[str], *, licence: str = ""
) -> Path:
    """Write a trained checkpoint as a folder for a hub.

    Args:
        weights: a checkpoint of the trainer, or whatever else `resolve` takes that says its model.
        folder: made if it is missing; files of the same names are replaced.
        licence: for the card and config, such as "apache-2.0"; "": that of published weights, else
            "unknown".

    Returns the folder. Raises WeightsError: weights that do not say which model they are for, or
    cannot be read; RunFailed where the folder cannot be written.
    """
    checkpoint, published = resolve(weights)
    if checkpoint.model_name is None or checkpoint.spec is None:
        raise WeightsError(
            f"{checkpoint.label} does not say which model it is for and how its clips are sampled; "
            "checkpoints of the trainer do"
        )
    licence = licence or (published.licence if published is not None else "unknown")
    place = Path(folder)
    with explained(place):
        place.mkdir(parents=True, exist_ok=True)
    with atomic_write(place / WEIGHTS[0]) as file:
        file.write(_as_safetensors(checkpoint))
    text = json.dumps(_config(checkpoint, licence), indent=2, ensure_ascii=False)
    write_text(place / CONFIG, text + "\n")
    write_text(place / CARD, _card(checkpoint, licence))
    return place


def push_to_hub(
    weights: str | os.PathLike[str], name: str, *, private: bool = False, licence: str = ""
) -> str:
    """Upload a checkpoint to the Hugging Face Hub as `owner/name`; returns its address.

    Needs `pip install huggingface_hub` and a login (`hf auth login`). Raises WeightsError as
    `save_pretrained`, UserError for a name that is none, RunFailed where the hub refuses.
    """
    hub.owner_and_name(name)
    library = hub.library()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(weights, folder, licence=licence)
        try:
            library.create_repo(name, private=private, exist_ok=True)
            library.upload_folder(repo_id=name, folder_path=folder)
        except (OSError, ValueError) as error:  # its errors of HTTP and of names are of these
            raise RunFailed(f"cannot upload to {name}: {first_line(error)}") from None
    return f"https://huggingface.co/{name}"


def _as_safetensors(checkpoint: Checkpoint) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError:
        raise UserError(
            "safetensors is not installed, and hubs keep weights in that format; run "
            "`pip install safetensors`"
        ) from None
    state = {key: tensor.contiguous() for key, tensor in checkpoint.state_dict.items()}
    return save(state, metadata={"format": "pt"})


def _config(checkpoint: Checkpoint, licence: str) -> dict[str, Any]:
    assert checkpoint.spec is not None
    classes = checkpoint.classes or []
    return {
        "model_type": MODEL_TYPE,
        "library_name": MODEL_TYPE,
        "version": __version__,
        "architecture": checkpoint.model_name,
        "model_kwargs": checkpoint.model_kwargs,
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "classes_guessed": checkpoint.classes_guessed,
        "clip": checkpoint.spec.to_dict(),
        "multi_label": checkpoint.multi_label,
        "license": licence,
        "epoch": checkpoint.epoch,
        "settings": checkpoint.settings,
        "trained_on": checkpoint.trained_on,
    }


def _card(checkpoint: Checkpoint, licence: str) -> str:
    """The README of the folder: what it is, what it tells apart, how to use it."""
    assert checkpoint.spec is not None
    tag = re.sub(r"[^a-z0-9.]+", "-", licence.lower())
    classes = checkpoint.classes or []
    published = checkpoint.published
    facts = [f"- model: `{checkpoint.model_name}`", f"- clips: {checkpoint.spec.in_words()}"]
    if published is not None:
        facts.append(f"- trained on: {published.trained_on}")
        if published.top1 is not None:
            facts.append(f"- top-1, as published: {published.top1} %")
    if checkpoint.epoch is not None:
        facts.append(f"- epochs: {checkpoint.epoch}")
    facts.append(f"- licence: {licence}")
    names = "\n".join(f"{i}. {name}" for i, name in enumerate(classes)) or "None: it is an encoder."
    settings = f"\n## Training\n\n```yaml\n{checkpoint.settings.strip()}\n```\n"
    return (
        f"---\nlibrary_name: {MODEL_TYPE}\npipeline_tag: video-classification\n"
        f"license: {tag if tag in _TAGS else 'other'}\n---\n\n"
        f"# {checkpoint.model_name}\n\n" + "\n".join(facts) + "\n\n## Use\n\n"
        "```python\nfrom hiera_video import Predictor\n\n"
        'predictor = Predictor.load("hf:OWNER/NAME")  # or this folder\n'
        'print(predictor("clip.mp4"))\n```\n\n'
        f"## Classes\n\n{names}\n" + (settings if checkpoint.settings else "")
    )


_TAGS = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "bsd-3-clause", "unknown")
