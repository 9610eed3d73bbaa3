"""The contract of a model: held by every registered one, and enough for one from outside."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys

import pytest
import torch
from conftest import REPOSITORY
from tiny_runs import CLASSES, config, losses, run, write_videos

from hiera_video import Predictor, build_model, list_models
from hiera_video.engine import checkpoint, distributed, evaluate, plots, train
from hiera_video.errors import UserError
from hiera_video.models import contract
from hiera_video.models.contract import (
    AnyCropModel,
    Autoencoder,
    Classifier,
    FeatureModel,
    LayeredModel,
    MaskableModel,
    MotionModel,
    NamedKeysModel,
    TranslatedKeysModel,
    VideoModel,
    takes_boxes,
)
from hiera_video.models.hiera import HieraEncoder
from hiera_video.models.weights.key_names import KeyNames
from hiera_video.registry import MODEL_REGISTRY

HIERA = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
VIDEOMAE = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "decoder_hidden_size": 16, "decoder_intermediate_size": 32},
    **{"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2},
}
SLOW_TO_BUILD = ("mvit_", "torchvision_mvit")
"""Their libraries compute while they build, at full size."""
KINDS = {"mae": Autoencoder, "motion": MotionModel}
"""Beginning of a name -> its kind; all others are classifiers."""
MASKLESS = ("ladder_r0_", "mvitv2_")


def of_this_package(name: str) -> bool:
    return "hiera" in name or "ladder" in name or name.startswith("mvitv2")


def slow_if_large(name: str):
    large = name.startswith(SLOW_TO_BUILD)
    deep = "r101" in name or name == "x3d_l"
    return pytest.param(name, marks=pytest.mark.slow) if large or deep else name


NAMES = [slow_if_large(name) for name in list_models()]


@functools.cache
def on_meta(name: str):
    """A registered model without values, at its own input size; not to be changed."""
    if "videomae" in name and importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    arguments = {}
    if of_this_package(name):
        arguments = {**HIERA, **(DECODER if name.startswith("mae_") else {})}
    elif "videomae" in name:
        arguments = {"library": VIDEOMAE}
    with torch.device("meta"):
        return build_model(name, **arguments).eval()


def clips_of(model, batch: int = 2):
    return torch.empty(batch, 3, *model.input_size, device="meta")


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_model_keeps_the_contract(name):
    model = on_meta(name)
    assert isinstance(model, VideoModel)
    assert isinstance(model, KINDS.get(name.partition("_")[0], Classifier))
    assert len(model.input_size) in (2, 3)
    assert all(isinstance(side, int) for side in model.input_size)
    parameters = {parameter for parameter, _ in model.named_parameters()}
    assert model.no_weight_decay() <= parameters
    if isinstance(model, LayeredModel):
        ids = {model.layer_id(parameter) for parameter in parameters}
        assert ids == set(range(model.num_layers + 1))
    if isinstance(model, NamedKeysModel):
        assert isinstance(model.key_names, KeyNames)
    if isinstance(model, AnyCropModel):
        assert isinstance(model.any_crop, bool)


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_model_is_called_by_position(name):
    """Exporters, tracers and profilers give the arguments in their places."""
    model = on_meta(name)
    places = inspect.signature(model.forward).parameters.values()
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in places)
    first, *others = places
    assert (first.name, first.default) == ("clips", first.empty)
    assert all(other.default is None for other in others)
    if isinstance(model, Autoencoder):
        assert others[0].name == "keep"
        return  # a mask of a meta tensor cannot be counted; `test_model_calls` runs some
    if isinstance(model, MotionModel):
        with torch.no_grad():
            predictions = model(clips_of(model))
        assert tuple(p.shape[1] for p in predictions) == model.channels
        return
    with torch.no_grad():
        logits = model(clips_of(model), *(other.default for other in others))
    assert logits.shape == (2, model.num_classes)
    assert any(parameter.startswith("head.") for parameter, _ in model.named_parameters())


@pytest.mark.parametrize("name", [name for name in list_models() if of_this_package(name)])
def test_models_of_this_package_have_the_optional_parts(name):
    model = on_meta(name)
    assert isinstance(model, LayeredModel)
    if isinstance(model, Autoencoder | MotionModel):
        assert isinstance(model.encoder, HieraEncoder)
        return
    assert isinstance(model, FeatureModel)
    if takes_boxes(model):
        with torch.no_grad():
            maps = model.forward_features(clips_of(model))
            assert model.forward_head(maps).shape == (2, model.num_classes)
        return
    assert isinstance(model, MaskableModel)
    with torch.no_grad():
        tokens = model.forward_features(clips_of(model))
        assert tokens.ndim == 4
        assert tokens.shape[:2] == (2, model.num_mask_units)
        assert model.forward_head(tokens).shape == (2, model.num_classes)
    if name.startswith(MASKLESS):
        with pytest.raises(UserError, match="no mask units"):
            model.random_keep(2, 0.5)
    else:
        assert model.random_keep(2, 0.5).shape == (2, model.num_mask_units)


def test_isinstance_works_on_every_protocol():
    for protocol in (VideoModel, Classifier, Autoencoder, MotionModel, LayeredModel, FeatureModel,
                     MaskableModel, AnyCropModel, NamedKeysModel, TranslatedKeysModel):  # fmt: skip
        assert not isinstance(torch.nn.Linear(1, 1), protocol)
        assert protocol.__module__ == contract.__name__


@pytest.mark.parametrize("file", ["hiera", "mae", "layers", "tokens", "pos_embed", "inputs"])
def test_hiera_is_readable_without_the_ladder(file):
    """The ladder builds on Hiera; Hiera's own files do not even name it."""
    source = (REPOSITORY / "hiera_video" / "models" / f"{file}.py").read_text().lower()
    for word in ("import hiera_video.models.ladder", "models.ladder", "ablation", "cls_token"):
        assert word not in source
    for room in ("ladder", "baselines", "weights"):
        assert f"from hiera_video.models.{room}" not in source


# ---- a model from outside -----------------------------------------------------------------------


@pytest.fixture
def toys(monkeypatch):
    """The module of the toy models, registered for one test."""
    monkeypatch.setattr(MODEL_REGISTRY, "_obj_map", dict(MODEL_REGISTRY._obj_map))
    monkeypatch.delitem(sys.modules, "toy_models", raising=False)
    yield importlib.import_module("toy_models")
    sys.modules.pop("toy_models", None)


BARE = {"MODEL.KWARGS": "{}", "MODEL.DROPOUT_RATE": "None", "HIERA.DROPPATH_RATE": "None"}


def test_toys_keep_the_whole_contract(toys):
    classifier, autoencoder = build_model("toy_classifier"), build_model("toy_autoencoder")
    assert isinstance(classifier, Classifier)
    assert isinstance(classifier, FeatureModel)
    assert isinstance(classifier, NamedKeysModel)
    assert isinstance(autoencoder, Autoencoder)
    for model in (classifier, autoencoder):
        assert isinstance(model, LayeredModel)


def test_a_model_from_outside_is_fine_tuned_tested_and_labels(tmp_path, toys, monkeypatch):
    monkeypatch.setattr(plots, "draw_curves", lambda folder: None)
    videos = write_videos(tmp_path / "videos", train=12, val=3, tinted=True)
    settings = {**BARE, "MODEL.MODEL_NAME": "toy_classifier", "IMPORTS": "toy_models"}
    recipe = ("SOLVER.LAYER_DECAY", 0.8, "SOLVER.MAX_EPOCH", 3, "SOLVER.BASE_LR", 0.01)
    cfg = config(videos, tmp_path / "out", *recipe, task=settings)
    assert run(cfg) == 0
    assert evaluate.test(cfg, distributed.init("cpu"), train.Stop()) == 0
    newest = checkpoint.latest(tmp_path / "out" / "checkpoints")[0]
    predictor = Predictor.load(newest, device="cpu", views=(1, 1))
    assert isinstance(predictor.model, toys.ToyClassifier)
    for video in sorted((videos / "val").glob("*/*.mp4")):
        labels = predictor(video).labels
        assert {label.label for label in labels} == set(CLASSES)
        assert labels[0].label == video.parent.name
    # another order of the classes: the rows of the head follow their names
    turned = build_model("toy_classifier", pretrained=newest, classes=CLASSES[::-1])
    assert torch.equal(turned.head.weight, predictor.model.head.weight.flip(0))


def test_an_autoencoder_from_outside_pretrains_and_starts_a_classifier(tmp_path, toys):
    videos = write_videos(tmp_path / "videos", train=6, val=3)
    pretraining = {**BARE, "TASK": "pretrain", "MODEL.MODEL_NAME": "toy_autoencoder"}
    pretraining |= {"AUG.MASK_RATIO": 0.5, "TRAIN.PICTURE_PERIOD": 1, "IMPORTS": "toy_models"}
    out = tmp_path / "pre"
    assert run(config(videos, out, "SOLVER.MAX_EPOCH", 4, task=pretraining)) == 0
    steps = list(losses(out).values())
    assert steps[-1] < steps[0]
    assert list(out.glob("**/*.png"))
    newest, state = checkpoint.latest(out / "checkpoints")
    classifier = build_model("toy_classifier", num_classes=3, pretrained=newest)
    for key in ("pos_embed", "blocks.1.weight", "patch_embed.bias"):
        assert torch.equal(classifier.state_dict()[key], state["model_state"][key])
