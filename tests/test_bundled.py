"""The model that comes with the package: what it is, what it knows, and that it says so."""

from pathlib import Path

import pytest
import torch

from hiera_video import Predictor, build_model, load_config
from hiera_video.config import Config
from hiera_video.data.synthetic import camera_motion as synthetic
from hiera_video.data.synthetic.camera_motion import CLIP_SPEC, LABELS
from hiera_video.errors import WeightsError
from hiera_video.models.weights.load import load_weights
from hiera_video.models.weights.resolve import bundled, resolve

SMALL = Path(__file__).resolve().parent.parent / "configs" / "small"
MOTION_RECIPE, FOLDER_RECIPE = SMALL / "motion_pretrain.yaml", SMALL / "finetune_folder.yaml"
RECIPE = Path(__file__).resolve().parent.parent / "configs" / "small" / "camera_motion.yaml"


@pytest.fixture(scope="module")
def predictor():
    return Predictor.load(weights="camera_motion", views=(1, 1), device="cpu")


def test_it_is_small_and_says_what_made_it():
    path = bundled()["camera_motion"]
    assert path.stat().st_size <= 8 << 20
    checkpoint, published = resolve("camera_motion")
    assert published is None
    assert sorted(checkpoint.classes) == sorted(LABELS)
    stored = torch.load(path, weights_only=True)
    made_with, recipe = Config.from_yaml(stored["cfg"]), load_config(RECIPE)
    for section in ("model", "aug", "mixup", "solver", "synthetic"):
        assert getattr(made_with, section) == getattr(recipe, section)
    assert made_with.data.clip_spec(training=False) == recipe.data.clip_spec(training=False)
    assert recipe.data.clip_spec(training=False) == CLIP_SPEC
    assert "optimizer_state" not in stored


def test_it_names_the_motion_of_scenes_it_has_never_seen(predictor, tmp_path):
    right = 0
    for number in range(45):
        label = LABELS[number % 9]
        path = tmp_path / f"{number}.mp4"
        synthetic.write_clip(path, label, 70_000_000 + 16 * number)
        right += predictor(path).labels[0].label == label
    assert right >= 41, f"{right} of 45, graded clips"


def test_the_encoder_of_motion_is_small_and_starts_a_classifier():
    path = bundled()["motion"]
    assert path.stat().st_size <= 8 << 20
    checkpoint, published = resolve("motion")
    assert published is None
    recipe = load_config(MOTION_RECIPE)
    made_with = Config.from_yaml(checkpoint.settings)
    assert (made_with.task, made_with.train.dataset) == ("motion", "body_motion")
    assert made_with.model == recipe.model
    assert checkpoint.spec == recipe.data.clip_spec(training=False)
    folder = load_config(FOLDER_RECIPE)
    assert folder.data.clip_spec(training=False) == checkpoint.spec
    model = build_model("hiera_tiny_16x224", num_classes=3, **folder.model_arguments())
    report = load_weights(model, checkpoint)
    assert "encoder taken out of a predictor of motion" in report.notes[0]
    with pytest.raises(WeightsError, match="no trained classifier"):
        Predictor.load(weights="motion", device="cpu")


def test_what_is_pretrained_on_a_folder_fits_the_recipe_that_follows():
    before, after = load_config(SMALL / "pretrain_folder.yaml"), load_config(FOLDER_RECIPE)
    assert before.data.clip_spec(training=False) == after.data.clip_spec(training=False)
    encoder = dict(after.model.kwargs)
    del encoder["readout_stages"]
    assert before.model.kwargs == encoder


@pytest.mark.numbers
def test_it_needs_the_order_of_the_frames(predictor):
    """Played backwards, a pan left is a pan right, and the model must say so."""
    forth, back = [], []
    for label in ("pan left", "tilt up", "zoom in", "roll clockwise"):
        for seed in range(80_000_000, 80_000_064, 16):
            clip = synthetic.render_clip(label, seed, frames=8, size=64, fps=5, plain=True)
            forth.append(named(predictor, clip) == label)
            back.append(named(predictor, clip.flip(0)) == OPPOSITE[label])
    assert sum(forth) >= 15
    assert sum(back) >= 15


OPPOSITE = {
    "pan left": "pan right",
    "tilt up": "tilt down",
    "zoom in": "zoom out",
    "roll clockwise": "roll counter-clockwise",
}


def named(predictor, clip):
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (CLIP_SPEC.mean, CLIP_SPEC.std))
    with torch.no_grad():
        logits = predictor.model(((clip.transpose(0, 1) / 255 - mean) / std)[None])
    return predictor.classes[int(logits.argmax())]
