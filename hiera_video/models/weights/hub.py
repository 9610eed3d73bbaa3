"""A model as a folder that model hubs know: weights as safetensors, config.json and a model card.

    Predictor.load("my-model")                     # the folder
    Predictor.load("hf:me/my-model@v1")            # from the Hugging Face Hub, at a revision

`publish` writes it. The folder says all that a checkpoint of the trainer says: model, classes,
sampling of clips. No code is ever read from it. Folders of the authors' own package
(facebook/hiera_*) and of Hugging Face transformers (facebook/hiera-*-hf) are read too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import UserError, WeightsError, first_line
from hiera_video.models.hiera import SIZES
from hiera_video.models.weights.download import is_offline
from hiera_video.models.weights.file import Checkpoint, read_checkpoint
from hiera_video.models.weights.published import IMAGE_CLIPS, VIDEO_CLIPS

PREFIX = "hf:"
CONFIG, CARD = "config.json", "README.md"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in a folder; the first is what is written."""

MODEL_TYPE = "hiera_video"


def is_pretrained(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder of this kind."""
    return os.path.isfile(os.path.join(os.path.expanduser(path), CONFIG))


def read_pretrained(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read a folder of a hub.

    Raises WeightsError: no weights in it, a config that is damaged or of another kind of model.
    """
    place = Path(folder)
    files = [place / name for name in WEIGHTS if (place / name).is_file()]
    if not files:
        raise WeightsError(f"{place} has a {CONFIG}, but no {' or '.join(WEIGHTS)}")
    checkpoint = read_checkpoint(files[0])
    try:
        config = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        facts = _facts(config)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, UserError) as error:
        raise WeightsError(
            f"{place / CONFIG} cannot be read as that of a Hiera: {first_line(error)}"
        ) from None
    for name, value in facts.items():
        setattr(checkpoint, name, value)
    return checkpoint


def fetch_pretrained(text: str) -> Path:
    """Download `hf:owner/name[@revision]`, weights and config alone; returns the folder.

    Raises UserError for a name that is none or a missing library, WeightsError where it cannot be
    downloaded.
    """
    name, revision = owner_and_name(text.removeprefix(PREFIX))
    hub = library()
    try:
        folder = hub.snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=[CONFIG, *WEIGHTS],
            local_files_only=is_offline(),
        )
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"cannot download {text}: {first_line(error)}. Is the name right, is there a network, "
            "and is it public? A copy of the folder works too: --weights FOLDER"
        ) from None
    return Path(folder)


def owner_and_name(text: str) -> tuple[str, str]:
    """ "owner/name@revision" -> ("owner/name", "revision"); "" without a revision.

    Raises UserError for anything else.
    """
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", text)
    if match is None:
        raise UserError(f"{text!r} is no name of a hub; they are OWNER/NAME or OWNER/NAME@REVISION")
    return match[1], match[2] or ""


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says, as fields of `Checkpoint`."""
    if config.get("model_type") == MODEL_TYPE:
        return {
            "model_name": config["architecture"],
            "model_kwargs": dict(config["model_kwargs"]),
            "classes": _class_names(config) or None,
            "classes_guessed": str(config.get("classes_guessed", "")),
            "spec": ClipSpec.from_dict(dict(config["clip"])),
            "multi_label": bool(config.get("multi_label", False)),
            "epoch": config.get("epoch"),
            "settings": str(config.get("settings", "")),
            "trained_on": str(config.get("trained_on", "")),
        }
    if config.get("model_type") == "hiera":
        return _facts_of_transformers(config)
    if "model_type" in config:
        raise ValueError(f"model_type is {config['model_type']!r}")
    return _facts_of_authors(config)


def _class_names(config: Mapping[str, Any]) -> list[str]:
    """The names of `id2label` in the order of their numbers."""
    labels = {int(key): str(name) for key, name in (config.get("id2label") or {}).items()}
    if sorted(labels) != list(range(len(labels))):
        raise ValueError(f"id2label has the numbers {sorted(labels)[:5]}...")
    return [labels[i] for i in range(len(labels))]


def _facts_of_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a HieraConfig of Hugging Face transformers: an image model."""
    size = _size_named(int(config["embed_dim"]), tuple(config["depths"]))
    input_size = [int(side) for side in config["image_size"]]
    names = _class_names(config)
    placeholders = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    return {
        "model_name": f"hiera_{size}_224",
        "model_kwargs": {} if input_size == [224, 224] else {"input_size": input_size},
        "classes": None if placeholders else names,
        "spec": IMAGE_CLIPS,
    }


def _facts_of_authors(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the arguments of a Hiera, as the authors' package writes them: without its defaults."""
    size = _size_named(int(config.get("embed_dim", 96)), tuple(config.get("stages", (2, 3, 16, 3))))
    input_size = [int(side) for side in config.get("input_size", (224, 224))]
    video = len(input_size) == 3
    usual = [16, 224, 224] if video else [224, 224]
    suffix = "16x224" if video else "224"
    mae = "mae_" if "decoder_embed_dim" in config else ""
    return {
        "model_name": f"{mae}hiera_{size}_{suffix}",
        "model_kwargs": {} if input_size == usual else {"input_size": input_size},
        "spec": VIDEO_CLIPS if video else IMAGE_CLIPS,
    }


def _size_named(embed_dim: int, stages: tuple[int, ...]) -> str:
    for name, size in SIZES.items():
        if (size["embed_dim"], size["stages"]) == (embed_dim, stages):
            return name
    raise ValueError(f"no Hiera has embed_dim {embed_dim} and stages {stages}")


def library() -> Any:
    """Import huggingface_hub; UserError where it is not installed."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            "huggingface_hub is not installed; run `pip install huggingface_hub`, or copy the "
            "folder of the model and name that"
        ) from None
    return huggingface_hub
