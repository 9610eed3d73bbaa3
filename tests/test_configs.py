"""Every recipe loads, builds its model and says whose its numbers are; the paper's are held."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hiera_video import build_model, load_config
from hiera_video.config.detection import DETECTION_SETS
from hiera_video.config.generated import GENERATED_SETS
from hiera_video.data.synthetic.generated_streams import STREAMS
from hiera_video.engine.tasks import OBJECTIVE_REGISTRY
from hiera_video.labels import known_labels, load_labels
from hiera_video.models.weights.published import PUBLISHED
from hiera_video.models.weights.resolve import bundled
from hiera_video.registry import DATASET_REGISTRY

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
RECIPES = [path for path in FILES if "_base" not in path.parts]


def by_name(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def test_the_recipes_are_there():
    names = {by_name(path) for path in RECIPES}
    sizes = ("b", "bplus", "l", "h")
    expected = {
        f"{data}/{kind}hiera_{size}_16x4.yaml"
        for data in ("K400", "K600", "K700")
        for kind in ("", "mae_")
        for size in sizes
    }
    expected |= {f"SSv2/{kind}hiera_l_{n}.yaml" for kind in ("", "mae_") for n in (16, 32)}
    expected |= {"finetune_folder.yaml", "quickstart/pretrain.yaml", "quickstart/finetune.yaml"}
    assert expected <= names


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_a_config_is_a_record(path):
    """It opens with a comment: what it is, whose numbers, and whether we ran it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line)
    text = "\n".join(head)
    assert "Source" in text
    if path in RECIPES and path.parent.name.startswith(("K", "SSv2", "AVA")):
        assert "Accuracy" in text
        assert "ot run by us" in text


@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_a_recipe_builds_its_model_at_full_size(path):
    cfg = load_config(path)
    labelled = OBJECTIVE_REGISTRY.get(cfg.task).labelled
    classes = {"num_classes": cfg.model.num_classes or 5} if labelled else {}
    with torch.device("meta"):
        model = build_model(cfg.model.model_name, **classes, **cfg.model_arguments())
    frames, side = cfg.data.num_frames, cfg.data.train_crop_size
    assert tuple(model.input_size) == (frames, side, side)
    assert (cfg.task == "pretrain") == cfg.model.model_name.startswith("mae_")
    assert (cfg.task == "motion") == cfg.model.model_name.startswith("motion_")
    assert (cfg.task == "detect") == cfg.model.model_name.endswith("_ava")


@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_a_recipe_names_what_exists(path):
    cfg = load_config(path)
    assert cfg.task in OBJECTIVE_REGISTRY
    for dataset in (cfg.train.dataset, cfg.test.dataset):
        generated = (*GENERATED_SETS, *STREAMS)
        assert dataset in (*generated, *DETECTION_SETS) or dataset in DATASET_REGISTRY
    weights = cfg.train.checkpoint_file_path
    if "." in weights and "/" not in weights:
        assert tuple(weights.split(".")) in PUBLISHED
        assert cfg.model.model_name == weights.partition(".")[0] + "_ava"
    elif weights and "/" not in weights:
        assert (cfg.model.model_name, weights) in PUBLISHED or weights in bundled()
    elif weights:
        # What another recipe writes: its folder, and the name of its last checkpoint.
        folder, _, file = weights.partition("/checkpoints/")
        (source,) = [p for p in RECIPES if load_config(p).output_dir == folder]
        epochs = load_config(source).solver.max_epoch
        assert file == f"checkpoint_epoch_{epochs:05d}.pyth"
    if cfg.data.class_names:
        assert cfg.data.class_names in known_labels()
        assert len(load_labels(cfg.data.class_names)) == cfg.model.num_classes


def test_no_two_recipes_write_to_one_folder():
    folders = [load_config(path).output_dir for path in RECIPES]
    assert len(folders) == len(set(folders))


# ---- the paper's numbers ------------------------------------------------------------------------

SIZES = {"b": "base", "bplus": "base_plus", "l": "large", "h": "huge"}
PRETRAINING = {  # learning rate, drop path
    "b": (8e-4, 0.1),
    "bplus": (8e-4, 0.2),
    "l": (8e-4, 0.2),
    "h": (3.2e-4, 0.4),
}
FINE_TUNING = {  # learning rate, drop path, dropout, layer decay, effective epochs
    "b": (8e-4, 0.2, 0.3, 0.8, 150),
    "bplus": (8e-4, 0.2, 0.3, 0.8, 150),
    "l": (8e-4, 0.2, 0.5, 0.875, 100),
    "h": (4e-4, 0.3, 0.5, 0.875, 100),
}


@pytest.mark.parametrize("data", ["K400", "K600", "K700"])
@pytest.mark.parametrize("size", SIZES)
def test_pretraining_on_kinetics_is_table_11(data, size):
    cfg = load_config(CONFIGS / data / f"mae_hiera_{size}_16x4.yaml")
    assert cfg.model.model_name == f"mae_hiera_{SIZES[size]}_16x224"
    assert (cfg.solver.base_lr, cfg.hiera.droppath_rate) == PRETRAINING[size]
    assert cfg.train.batch_size == cfg.solver.lr_batch == 512
    repeats = cfg.data.train_crop_num_temporal * cfg.aug.num_sample
    assert cfg.solver.max_epoch * repeats == 3200
    assert cfg.solver.warmup_epochs * repeats == 120
    assert (cfg.solver.optimizing_method, cfg.solver.betas) == ("adamw", (0.9, 0.95))
    assert cfg.solver.weight_decay == 0.05
    assert cfg.aug.mask_ratio == 0.9
    assert cfg.data.train_jitter_scales_relative == (0.5, 1.0)
    assert cfg.data.random_flip
    assert (cfg.hiera.decoder_depth, cfg.hiera.decoder_num_heads) == (8, 8)
    assert cfg.hiera.decoder_embed_dim == 512
    assert (cfg.data.num_frames, cfg.data.sampling_rate) == (16, 4)
    assert cfg.aug.aa_type == ""


@pytest.mark.parametrize("size", ["l", "h"])
def test_detection_on_ava_is_table_13(size):
    cfg = load_config(CONFIGS / "AVA" / f"hiera_{size}_16x4.yaml")
    assert cfg.model.model_name == f"hiera_{SIZES[size]}_16x224_ava"
    solver = cfg.solver
    assert (solver.optimizing_method, solver.weight_decay) == ("sgd", 1e-8)
    assert (solver.base_lr, cfg.train.batch_size, solver.lr_batch) == (3.6, 128, 128)
    assert (solver.warmup_epochs, solver.max_epoch, solver.layer_decay) == (5, 30, 0.875)
    assert (cfg.hiera.droppath_rate, cfg.model.dropout_rate) == (0.4, 0.5)
    assert (cfg.data.num_frames, cfg.data.sampling_rate, cfg.test.num_spatial_crops) == (16, 4, 1)


@pytest.mark.parametrize(("data", "classes"), [("K400", 400), ("K600", 600), ("K700", 700)])
@pytest.mark.parametrize("size", SIZES)
def test_fine_tuning_on_kinetics_is_table_11(data, classes, size):
    cfg = load_config(CONFIGS / data / f"hiera_{size}_16x4.yaml")
    lr, drop_path, dropout, layer_decay, epochs = FINE_TUNING[size]
    assert cfg.model.model_name == f"hiera_{SIZES[size]}_16x224"
    assert cfg.model.num_classes == classes
    assert cfg.solver.base_lr == lr
    assert cfg.train.batch_size == cfg.solver.lr_batch == 256
    assert cfg.solver.max_epoch * cfg.aug.num_sample == epochs
    assert cfg.solver.warmup_epochs * cfg.aug.num_sample == 10
    assert (cfg.hiera.droppath_rate, cfg.model.dropout_rate) == (drop_path, dropout)
    assert cfg.solver.layer_decay == layer_decay
    assert (cfg.solver.betas, cfg.solver.weight_decay) == ((0.9, 0.999), 0.05)
    assert cfg.solver.clip_grad_l2norm == 5.0
    assert cfg.aug.aa_type == "rand-m7-mstd0.5-inc1"
    mixup = cfg.mixup
    assert mixup.enable
    assert (mixup.alpha, mixup.cutmix_alpha, mixup.label_smooth_value) == (0.8, 1.0, 0.1)
    assert (cfg.test.num_ensemble_views, cfg.test.num_spatial_crops) == (5, 3)
    assert (cfg.data.num_frames, cfg.data.sampling_rate) == (16, 4)


@pytest.mark.parametrize("frames", [16, 32])
def test_pretraining_on_something_something_is_table_12(frames):
    cfg = load_config(CONFIGS / "SSv2" / f"mae_hiera_l_{frames}.yaml")
    assert cfg.train.batch_size == cfg.solver.lr_batch == 1024
    assert (cfg.solver.base_lr, cfg.solver.max_epoch) == (8e-4, 1600)
    assert (cfg.solver.warmup_epochs, cfg.solver.clip_grad_l2norm) == (30, 0.02)
    assert (cfg.hiera.droppath_rate, cfg.aug.mask_ratio) == (0.2, 0.9)
    assert cfg.data.segments
    assert not cfg.data.random_flip  # left and right are labels
    assert cfg.data.num_frames == frames
    assert cfg.data.train_crop_num_temporal * cfg.aug.num_sample == 1


def test_fine_tuning_on_something_something_is_table_12():
    short = load_config(CONFIGS / "SSv2" / "hiera_l_16.yaml")
    long = load_config(CONFIGS / "SSv2" / "hiera_l_32.yaml")
    for cfg, batch, lr in ((short, 256, 0.16), (long, 128, 0.08)):
        assert cfg.train.batch_size == batch
        assert cfg.solver.base_lr * batch / cfg.solver.lr_batch == pytest.approx(lr)
        assert (cfg.solver.optimizing_method, cfg.solver.weight_decay) == ("sgd", 1e-4)
        assert (cfg.solver.max_epoch, cfg.solver.warmup_epochs) == (40, 3)
        assert (cfg.solver.layer_decay, cfg.model.dropout_rate) == (0.875, 0.5)
        assert cfg.solver.clip_grad_l2norm is None
        assert cfg.data.segments
        assert not cfg.data.random_flip
        assert cfg.test.num_spatial_crops == 3
    assert (short.hiera.droppath_rate, long.hiera.droppath_rate) == (0.1, 0.2)
    assert (short.mixup.enable, long.mixup.enable) == (True, False)
    assert (short.test.num_ensemble_views, long.test.num_ensemble_views) == (2, 1)
