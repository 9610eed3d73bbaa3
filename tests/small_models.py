"""Small models of real shape, and their weights, for the tests of weights."""

import io
from contextlib import contextmanager

import torch

from hiera_video.clip_spec import ClipSpec
from hiera_video.models import build_model
from hiera_video.models.weights.file import Checkpoint

TINY = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
VIDEO = {**TINY, "input_size": (4, 64, 64)}
IMAGE = {**TINY, "input_size": (64, 64)}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}


def video(num_classes=5, **overrides):
    return build_model("hiera_base_16x224", num_classes=num_classes, **{**VIDEO, **overrides})


def image(num_classes=5, **overrides):
    return build_model("hiera_base_224", num_classes=num_classes, **{**IMAGE, **overrides})


def autoencoder(**overrides):
    return build_model("mae_hiera_base_16x224", **{**VIDEO, **DECODER, **overrides})


def image_autoencoder():
    return build_model("mae_hiera_base_224", **{**IMAGE, **DECODER})


def held(model, **facts):
    """The model's weights as a checkpoint in memory."""
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    return Checkpoint(state_dict=state, path="given.pth", **facts)


def same(model, state):
    """Whether a model holds exactly these values."""
    mine = model.state_dict()
    return mine.keys() == state.keys() and all(torch.equal(mine[k], state[k]) for k in mine)


@contextmanager
def untouched(model):
    """The model is bit for bit what it was, after an error too."""
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    yield
    assert same(model, before)


def tensors():
    """Two tensors of a state dict."""
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int64)}


def truncated():
    """The first half of one."""
    return zip_bytes()[: len(zip_bytes()) // 2]


def zip_bytes():
    """A small real checkpoint."""
    return saved(tensors())


def saved(content):
    """What `torch.save` makes of it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


BOX_SPEC = ClipSpec(num_frames=4, sampling_rate=2, crop_size=64)
BOX_CLASSES = ["stand", "walk", "=talk to"]


def write_box_checkpoint(path):
    """A checkpoint of a model that scores boxes, as the trainer writes it; returns its path."""
    torch.manual_seed(0)
    name, kwargs = "hiera_tiny_16x224_ava", {"num_classes": len(BOX_CLASSES), **VIDEO}
    model = build_model(name, **kwargs)
    torch.nn.init.normal_(model.head.projection.weight, std=1.0)
    content = {
        "format": "hiera_video/1",
        "model_state": model.state_dict(),
        "model": {"name": name, "kwargs": kwargs},
        "classes": BOX_CLASSES,
        "multi_label": True,
        "spec": BOX_SPEC.to_dict(),
        "epoch": 1,
    }
    torch.save(content, path)
    return str(path)
