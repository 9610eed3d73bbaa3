"""Other libraries' models from a published file to labels, and through training, test and demo."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from clips import write_clip
from randomness import redraw
from test_baselines import hub, train_statistics
from test_videomae import TINY as TINY_VIDEOMAE
from test_videomae import published as as_on_the_hub
from tiny_runs import final, losses, run, run_child, settings, write_videos

from hiera_video import Predictor
from hiera_video.config import load_config
from hiera_video.data.views import load_test_views
from hiera_video.engine import build, distributed, dry_run, evaluate, train
from hiera_video.errors import UserError, WeightsError
from hiera_video.labels import load_labels
from hiera_video.models.baselines.pytorchvideo import CONVOLUTIONAL, slow_frames
from hiera_video.models.weights import load
from hiera_video.models.weights.download import cached_path
from hiera_video.models.weights.published import PUBLISHED, names_for
from hiera_video.models.weights.resolve import resolve


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty cache of weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(load, "_licences_logged", set())


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """75 frames at 30 fps, wider than high."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_clip(path, frames=75, fps=30, size=(128, 96))


def place(state, row):
    """Put a state dict where the fetched file of a row would lie, in the file's layout."""
    path = cached_path(row.url)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def scores_of(prediction):
    names = load_labels("kinetics400")
    scores = torch.zeros(len(names))
    for label in prediction.labels:
        scores[names.index(label.label)] = label.score
    return scores


# ---- the table ----------------------------------------------------------------------------------


def test_what_the_table_says_of_them():
    top1 = {str(row): row.top1 for row in PUBLISHED.values() if "hiera" not in row.model}
    assert {name: value for name, value in top1.items() if value} == {
        "slow_r50.k400": 74.58,
        "c2d_r50.k400": 71.46,
        "i3d_r50.k400": 73.27,
        "csn_r101.k400": 77.0,
        "r2plus1d_r50.k400": 76.01,
        "slowfast_r50.k400": 76.94,
        "slowfast_r101.k400": 77.9,
        "slowfast_16x8_r101_50_50.k400": 78.7,
        "x3d_xs.k400": 69.12,
        "x3d_s.k400": 73.33,
        "x3d_m.k400": 75.94,
        "x3d_l.k400": 77.44,
        "mvit_base_16x4.k400": 78.9,
        "mvit_base_32x3.k400": 80.3,
        "torchvision_mvit_v1_b.k400": 78.477,
        "torchvision_mvit_v2_s.k400": 80.757,
        "mvitv2_small_16x224.k400": 81.0,
        "mvitv2_small_16x224.k400_torchvision": 80.757,
        "mvitv2_base_32x224.k400": 82.9,
        "mvitv2_tiny_224.in1k": 82.3,
        "mvitv2_small_224.in1k": 83.6,
        "mvitv2_base_224.in1k": 84.4,
        "mvitv2_large_224.in1k": 85.3,
        "videomae_base_16x224.mae_k400_ft_k400": 81.5,
        "videomae_large_16x224.mae_k400_ft_k400": 85.2,
        "videomae_small_16x224.mae_k400_ft_k400": 79.0,
    }
    spec = PUBLISHED["x3d_s", "k400"].spec
    assert (spec.num_frames, spec.sampling_rate, spec.crop_size) == (13, 6, 182)
    assert names_for("mae_videomae_base_16x224") == ["mae_k400"]
    assert PUBLISHED["videomae_base_16x224", "mae_k400"].spec.mean == (0.485, 0.456, 0.406)
    for row in PUBLISHED.values():
        assert ("NC" in row.licence) == ("hiera" in row.model or "videomae" in row.model)


@pytest.mark.parametrize("name", sorted({*CONVOLUTIONAL, "mvit_base_16x4", "mvit_base_32x3"}))
def test_addresses_are_the_hubs(name):
    import sys

    hub(name)
    home = sys.modules[hub(name).__module__]
    assert PUBLISHED[name, "k400"].url == home.checkpoint_paths[name]
    frames = CONVOLUTIONAL[name].input_size[0] if name in CONVOLUTIONAL else int(name[10:12])
    assert PUBLISHED[name, "k400"].spec.num_frames == frames


def test_addresses_are_torchvisions_and_timms():
    import timm
    from torchvision.models.video import MViT_V1_B_Weights, MViT_V2_S_Weights

    for model, weights in (
        ("torchvision_mvit_v1_b", MViT_V1_B_Weights.DEFAULT),
        ("torchvision_mvit_v2_s", MViT_V2_S_Weights.DEFAULT),
    ):
        row = PUBLISHED[model, "k400"]
        assert row.url == weights.url
        assert row.top1 == weights.meta["_metrics"]["Kinetics-400"]["acc@1"]
        transform = weights.transforms()
        assert row.spec.mean == tuple(transform.mean)
        assert row.spec.crop_size == transform.crop_size[0]
    for size in ("tiny", "small", "base", "large"):
        cfg = timm.get_pretrained_cfg(f"mvitv2_{size}.fb_in1k")
        row = PUBLISHED[f"mvitv2_{size}_224", "in1k"]
        assert row.url == cfg.url
        assert (row.spec.mean, row.spec.std) == (cfg.mean, cfg.std)
        assert row.licence.lower() == cfg.license


def test_files_of_one_name_on_the_hub_are_two_in_the_cache():
    rows = [row for row in PUBLISHED.values() if row.url.endswith("/pytorch_model.bin")]
    assert {cached_path(row.url).name for row in rows} == {
        "videomae-base.bin",
        "videomae-base-finetuned-kinetics.bin",
        "videomae-large.bin",
        "videomae-large-finetuned-kinetics.bin",
        "videomae-small-finetuned-kinetics.bin",
    }
    by_name = {}
    for row in PUBLISHED.values():
        assert by_name.setdefault(row.file_name, row.url) == row.url


# ---- from a file to labels ----------------------------------------------------------------------


@torch.no_grad()
def test_x3d_labels_a_video_as_the_hubs_model_does(clip, capsys):
    theirs = train_statistics(redraw(hub("x3d_xs")())).eval()
    row = PUBLISHED["x3d_xs", "k400"]
    path = place({"model_state": theirs.state_dict()}, row)
    predictor = Predictor.load("x3d_xs", views=(1, 1))
    assert predictor.spec == row.spec
    assert predictor.classes == load_labels("kinetics400")
    found = scores_of(predictor(clip, top_k=400))
    views = load_test_views(clip, row.spec, 1, 1)
    assert views.shape == (1, 3, 4, 182, 182)
    assert torch.allclose(found, theirs(views)[0], atol=1e-6)  # it gives probabilities
    said = capsys.readouterr().err
    assert "x3d_xs.k400: these weights are licensed Apache-2.0" in said
    assert "not for commercial use" not in said

    renamed = path.with_name("mine.pyth")
    path.rename(renamed)
    lines = []
    again = Predictor.load("x3d_xs", renamed, warn=lines.append)
    assert again.spec == row.spec  # the model's usual one
    assert "does not say how its clips are sampled" in "\n".join(lines)
    assert torch.equal(again.model.head.weight, predictor.model.head.weight)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["slow_r50", "slowfast_r50", "mvit_base_16x4", "r2plus1d_r50"])
def test_hub_models_label_a_video_as_the_hubs_do(name, clip):
    theirs = train_statistics(redraw(hub(name)())).eval()
    row = PUBLISHED[name, "k400"]
    place({"model_state": theirs.state_dict()}, row)
    found = scores_of(Predictor.load(name, views=(1, 1))(clip, top_k=400))
    views = load_test_views(clip, row.spec, 1, 1)
    inputs = [views[:, :, slow_frames(32, 4)], views] if name == "slowfast_r50" else views
    out = theirs(inputs)
    expected = out if name == "r2plus1d_r50" else out.softmax(dim=1)
    assert torch.allclose(found, expected[0], atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_torchvisions_file_labels_a_video_as_torchvision_does(clip):
    from torchvision.models.video import mvit_v1_b

    theirs = redraw(mvit_v1_b()).eval()
    row = PUBLISHED["torchvision_mvit_v1_b", "k400"]
    place(theirs.state_dict(), row)  # flat, as torchvision saves
    found = scores_of(Predictor.load("torchvision_mvit_v1_b", views=(1, 1))(clip, top_k=400))
    expected = theirs(load_test_views(clip, row.spec, 1, 1)).softmax(dim=1)
    assert torch.allclose(found, expected[0], atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_a_file_of_the_hugging_face_hub_labels_a_video_as_transformers_does(clip, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(num_labels=400)
    theirs = redraw(transformers.VideoMAEForVideoClassification(config)).eval()
    row = PUBLISHED["videomae_base_16x224", "mae_k400_ft_k400"]
    place(as_on_the_hub(theirs.state_dict()), row)
    found = scores_of(Predictor.load("videomae_base_16x224", views=(1, 1))(clip, top_k=400))
    views = load_test_views(clip, row.spec, 1, 1)
    expected = theirs(views.transpose(1, 2)).logits.softmax(dim=1)
    assert torch.allclose(found, expected[0], atol=1e-5)
    assert "CC BY-NC 4.0 (not for commercial use)" in capsys.readouterr().err


def test_what_has_no_classifier_gives_no_labels():
    with pytest.raises(UserError, match="mae_videomae_base_16x224 has no published classifier"):
        Predictor.load("mae_videomae_base_16x224")
    place({"mask_token": torch.zeros(1)}, PUBLISHED["videomae_base_16x224", "mae_k400"])
    with pytest.raises(WeightsError, match="no trained classifier"):
        Predictor.load("videomae_base_16x224", "mae_k400")


def test_a_head_of_other_classes_is_counted_by_its_own_name(tmp_path):
    state = hub("x3d_xs")(model_num_class=12).state_dict()
    torch.save({"model_state": state}, tmp_path / "X3D_XS.pyth")
    checkpoint, row = resolve(tmp_path / "X3D_XS.pyth", "x3d_xs")
    assert row is None  # called like the public one, but of other classes
    assert checkpoint.num_classes == 12
    assert resolve(tmp_path / "X3D_XS.pyth")[0].num_classes is None  # of whose model?
    predictor = Predictor.load("x3d_xs", tmp_path / "X3D_XS.pyth", warn=lambda line: None)
    assert predictor.classes == [f"class {i}" for i in range(12)]


@pytest.mark.slow
def test_the_demo_labels_with_a_named_model(clip, repository, capsys):
    theirs = redraw(hub("x3d_xs")())
    place({"model_state": theirs.state_dict()}, PUBLISHED["x3d_xs", "k400"])
    spec = importlib.util.spec_from_file_location("demo", repository / "demo" / "predict.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    assert demo.main([str(clip), "--model", "x3d_xs", "--views", "1x1", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["model"], found["weights"], len(found["labels"])) == ("x3d_xs", "x3d_xs.k400", 5)


# ---- through the trainer ------------------------------------------------------------------------

X3D = {
    "MODEL.MODEL_NAME": "x3d_xs",
    "MODEL.KWARGS": "{library: {width_factor: 0.5, head_dim_out: 32}}",
    "HIERA.DROPPATH_RATE": "None",
    "DATA.TRAIN_CROP_SIZE": 32,
    "DATA.TEST_CROP_SIZE": 64,
    "SOLVER.MAX_EPOCH": 1,
}
SLOWFAST = {
    **X3D,
    "MODEL.MODEL_NAME": "slowfast_r50",
    "MODEL.KWARGS": "{library: {stem_dim_outs: [16, 2]}}",
    "DATA.NUM_FRAMES": 8,
}
LIBRARY = "{library: {" + ", ".join(f"{k}: {v}" for k, v in TINY_VIDEOMAE.items()) + "}}"
VIDEOMAE = {
    "MODEL.KWARGS": LIBRARY,
    "MODEL.DROPOUT_RATE": "None",
    "HIERA.DROPPATH_RATE": "None",
    "DATA.TRAIN_CROP_SIZE": 32,
    "DATA.TEST_CROP_SIZE": 32,
    "SOLVER.MAX_EPOCH": 1,
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"), train=4, val=3)


def test_two_pathways_are_trained_tested_and_asked_for_labels(videos, tmp_path):
    cfg = load_config(None, settings(videos, tmp_path / "out", task=SLOWFAST))
    assert run(cfg) == 0
    stored = final(tmp_path / "out")
    assert stored["model"]["name"] == "slowfast_r50"
    assert stored["model_state"]["blocks.6.proj.weight"].shape == (3, 576)
    assert evaluate.test(cfg, distributed.init("cpu"), train.Stop()) == 0
    best = tmp_path / "out" / "checkpoints" / "best.pyth"
    predictor = Predictor.load(weights=best, views=(1, 1))
    assert predictor.spec.crop_size == 64  # larger than what it was trained on, as it was tested
    labels = predictor(next(videos.rglob("*.mp4"))).labels
    assert {label.label for label in labels} == {"fast", "slow", "still"}
    assert sum(label.score for label in labels) == pytest.approx(1)


def test_videomae_is_pretrained_then_fine_tuned(videos, tmp_path, capsys):
    pytest.importorskip("transformers")
    first = {
        **VIDEOMAE,
        "TASK": "pretrain",
        "MODEL.MODEL_NAME": "mae_videomae_base_16x224",
        "AUG.MASK_RATIO": 0.5,
        "TRAIN.PICTURE_PERIOD": 1,
    }
    assert run(load_config(None, settings(videos, tmp_path / "mae", task=first))) == 0
    assert len(losses(tmp_path / "mae")) == 1
    assert list((tmp_path / "mae").rglob("*reconstruction*.png"))
    checkpoint = tmp_path / "mae" / "checkpoints" / "checkpoint_epoch_00001.pyth"
    second = {
        **VIDEOMAE,
        "MODEL.MODEL_NAME": "videomae_base_16x224",
        "SOLVER.LAYER_DECAY": 0.8,
        "TRAIN.CHECKPOINT_FILE_PATH": checkpoint,
    }
    capsys.readouterr()
    assert run(load_config(None, settings(videos, tmp_path / "tuned", task=second))) == 0
    assert "encoder taken out of an autoencoder" in capsys.readouterr().out
    before, after = final(tmp_path / "mae"), final(tmp_path / "tuned")
    key = "videomae.encoder.layer.0.layernorm_before.weight"
    assert key in before["model_state"]
    assert key in after["model_state"]


def test_a_dry_run_tries_a_step(tmp_path, capsys):
    words = settings("", tmp_path / "out", "MODEL.NUM_CLASSES", 4, task=X3D)
    words += ["DATA.PATH_TO_DATA_DIR", "", "TRAIN.BATCH_SIZE", "2"]
    dry_run.run(load_config(None, words), distributed.init("cpu"), steps=1)
    said = capsys.readouterr().out
    assert "classify x3d_xs" in said
    assert "step 1/1: loss" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("x3d_m", "MODEL.MODEL_NAME x3d_xs DATA.NUM_FRAMES 4 DATA.SAMPLING_RATE 12"),
        ("slow_r50_8x8", ""),
        ("slowfast_r50", ""),
        ("mvit_base_16x4", ""),
        ("videomae_base", ""),
        ("mae_videomae_base", ""),
    ],
)
def test_a_recipe_can_be_tried_from_the_command_line(recipe, words, repository):
    done = run_child(
        *("--cfg", repository / "configs" / "baselines" / f"{recipe}.yaml", *words.split()),
        *("DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64, "TRAIN.BATCH_SIZE", 2),
        *("TRAIN.MIXED_PRECISION", "off", "DATA_LOADER.NUM_WORKERS", 0, "DEVICE", "cpu"),
        *("--dry-run", 1),
    )
    assert done.returncode == 0, done.stderr
    assert "step 1/1: loss" in done.stdout


def test_settings_that_a_model_has_no_use_for_are_named(tmp_path):
    words = settings("", tmp_path / "out", "HIERA.DROPPATH_RATE", 0.1, task=X3D)
    with pytest.raises(UserError, match=r"x3d_xs: .*'drop_path_rate'; it takes head_dropout"):
        build.training_model(load_config(None, words), num_classes=3)
    words = settings("", tmp_path / "out", "SOLVER.LAYER_DECAY", 0.8, task=X3D)
    cfg = load_config(None, words)
    model, _ = build.training_model(cfg, num_classes=3)
    with pytest.raises(UserError, match="numbers its layers"):
        build.build_optimizer(cfg.solver, model, torch.device("cpu"))
