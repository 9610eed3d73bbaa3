"""TRAIN.PROBE: a head that is fitted before the first step, and the readout that it stands on."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from clips import write_clip
from tiny_runs import (
    config,
    empty,
    final,
    interrupted,
    losses,
    run,
    run_child,
    same,
    settings,
    write_videos,
)

from hiera_video import Predictor, build_model, load_config
from hiera_video.engine import build, checkpoint, distributed, evaluate, probe, train
from hiera_video.engine.folds import grouped_folds
from hiera_video.engine.records import read_metrics
from hiera_video.engine.signals import Stop
from hiera_video.errors import ConfigError, UserError, WeightsError
from hiera_video.models.readout import NUMBERS_OF_A_CHANNEL, pooled
from hiera_video.models.weights.file import read_checkpoint
from hiera_video.models.weights.load import load_weights

pytestmark = pytest.mark.usefixtures("no_curves")

SIDE, FRAMES = 64, 16
MOTIONS = {"down": (3, 0), "left": (0, -3), "right": (0, 3), "up": (-3, 0)}
"""Class -> how far its texture moves in a frame, in rows and columns."""

READOUT = {
    "MODEL.KWARGS": "{embed_dim: 16, num_heads: 1, stages: [1, 1, 1, 1], contrast_stem: true, "
    "readout_stages: [1, 2]}",
    "MODEL.DROPOUT_RATE": 0.1,
    "DATA.NUM_FRAMES": 8,
    "DATA.SAMPLING_RATE": 1,
    "TRAIN.PROBE": "true",
    "TRAIN.PROBE_VIEWS": 4,
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.MAX_EPOCH": 0,
}


def write_motions(folder, *, train=24, val=12, groups=8):
    """`folder/{train,val}/CLASS/gGROUP_N.mp4`: a texture that moves as its class says."""
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            name = sorted(MOTIONS)[i % len(MOTIONS)]
            path = folder / split / name / f"g{i // len(MOTIONS) % groups}_{i:02d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(i + (0 if split == "train" else 1000))
            texture = rng.integers(0, 255, size=(SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
            texture = texture.repeat(8, axis=0).repeat(8, axis=1)
            rows, columns = MOTIONS[name]
            frames = [np.roll(texture, (t * rows, t * columns), (0, 1)) for t in range(FRAMES)]
            write_clip(path, frames=frames, fps=10, size=(SIDE, SIDE))
    return folder


@pytest.fixture(scope="module")
def motions(tmp_path_factory):
    return write_motions(tmp_path_factory.mktemp("motions"))


@pytest.fixture(scope="module")
def probed(motions, tmp_path_factory):
    """The folder of a run that is a probe alone."""
    out = tmp_path_factory.mktemp("probed") / "out"
    assert run(config(motions, out, task=READOUT)) == 0
    return out


def line_of(out):
    """The line of the log about the probe."""
    (line,) = re.findall(r"probe: .*", (out / "stdout.log").read_text())
    return line


# ---- the readout --------------------------------------------------------------------------------


def small(**kwargs):
    sizes = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 2, 1), "input_size": (4, 64, 64)}
    return build_model("hiera_tiny_16x224", num_classes=3, **{**sizes, **kwargs}).eval()


def test_without_a_readout_nothing_changes():
    torch.manual_seed(0)
    plain = small()
    torch.manual_seed(0)
    asked = small(readout_stages=())
    assert same(dict(plain.state_dict()), dict(asked.state_dict()))
    assert not any("readout" in key for key in plain.state_dict())
    clips = torch.randn(2, 3, 4, 64, 64)
    tokens = plain.forward_features(clips)
    assert torch.equal(asked(clips), plain.head(plain.norm(tokens.mean(dim=(1, 2)))))


def test_a_map_is_pooled_to_means_and_maxima():
    stage = torch.randn(2, 5, 3, 4, 6)
    expected = torch.cat([stage.mean((1, 2, 3)), stage.amax((1, 2, 3))], dim=1)
    torch.testing.assert_close(pooled(stage), expected)
    picture = stage[:, 0]
    torch.testing.assert_close(pooled(picture)[:, 6:], picture.amax((1, 2)))
    assert pooled(stage.half()).dtype == torch.float32


@pytest.mark.parametrize("size", [(2, 32, 32), (4, 64, 96), (16, 96, 64)])
def test_features_have_one_length_at_any_size(size):
    model = small(readout_stages=(2, 3), input_size=size)
    clips = torch.randn(2, 3, *size)
    features = model.forward_features(clips)
    assert features.shape == (2, NUMBERS_OF_A_CHANNEL * (32 + 64))
    assert torch.equal(model.forward_head(features), model(clips))


def test_an_image_model_has_one_too():
    sizes = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1), "input_size": (64, 64)}
    model = build_model("hiera_tiny_224", num_classes=3, readout_stages=(3,), **sizes).eval()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_a_step_of_the_ladder_has_one_too():
    sizes = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1), "input_size": (4, 64, 64)}
    model = build_model(
        "ladder_r3_base_16x224", num_classes=3, readout_stages=(2, 3), **sizes
    ).eval()
    assert model(torch.randn(1, 3, 4, 64, 64)).shape == (1, 3)


def test_gradients_are_finite_where_nothing_changes_and_reach_all_that_trains():
    model = small(readout_stages=(1, 2)).train()
    model(torch.zeros(2, 3, 4, 64, 64)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith("blocks.4.")), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name


def test_no_numbers_are_left_open_for_exporters():
    model = small(readout_stages=(1, 3))
    clips = torch.randn(2, 3, 4, 64, 64)
    with torch.no_grad():
        exported = torch.export.export(model, (clips,)).module()
        torch.testing.assert_close(exported(clips), model(clips))


@pytest.mark.parametrize("stages", [(3, 2), (2, 2), (4,), (-1,), ("2",)])
def test_wrong_stages_are_refused(stages):
    with pytest.raises(UserError, match="readout_stages"):
        small(readout_stages=stages)


def test_a_readout_takes_no_mask():
    model = small(readout_stages=(3,))
    keep = model.random_keep(1, 0.5)
    with pytest.raises(UserError, match="takes no mask"):
        model(torch.randn(1, 3, 4, 64, 64), keep)


# ---- its weights --------------------------------------------------------------------------------


def saved(model, path, classes=("a", "b", "c"), **kwargs):
    content = {"format": "hiera_video/1", "model_state": model.state_dict()}
    name = {"name": "hiera_tiny_16x224", "kwargs": kwargs}
    torch.save({**content, "classes": list(classes), "model": name}, path)
    return read_checkpoint(path)


@pytest.mark.parametrize(
    ("there", "here"), [((), (2, 3)), ((2, 3), ()), ((1, 2), (2, 3)), ((2, 3), (3,))]
)
def test_weights_of_another_readout_leave_the_head_fresh(tmp_path, there, here):
    stored = saved(small(readout_stages=there), tmp_path / "a.pyth")
    model = small(readout_stages=here)
    report = load_weights(model, stored, classes=["a", "b", "c"])
    assert any("reads other stages" in note for note in report.notes)
    assert not any(key.startswith(("head.", "norm.", "readout.")) for key in report.loaded)
    assert torch.equal(
        model.state_dict()["blocks.0.norm1.bias"], stored.state_dict["blocks.0.norm1.bias"]
    )
    with pytest.raises(WeightsError, match="its scores would be lost"):
        load_weights(small(readout_stages=here), stored)


def test_weights_of_the_same_readout_load_by_names(tmp_path):
    twin = small(readout_stages=(2, 3))
    twin.readout.mean.uniform_()
    stored = saved(twin, tmp_path / "a.pyth")
    model = small(readout_stages=(2, 3))
    load_weights(model, stored, classes=["c", "a", "b"])
    assert torch.equal(model.readout.mean, twin.readout.mean)
    assert torch.equal(model.head.projection.weight, twin.head.projection.weight[[2, 0, 1]])


def test_pretrained_encoders_start_a_readout(tmp_path):
    sizes = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 2, 1), "input_size": (4, 64, 64)}
    motion = build_model("motion_hiera_tiny_16x224", grid=16, **sizes)
    torch.save({"model_state": motion.state_dict()}, tmp_path / "m.pyth")
    model = small(readout_stages=(2, 3))
    report = load_weights(model, read_checkpoint(tmp_path / "m.pyth"), classes=["a", "b", "c"])
    assert {key.split(".")[0] for key in report.missing} == {"head", "readout"}


# ---- fitting ------------------------------------------------------------------------------------


def toy_rows(videos=24, clips=3, numbers=50, classes=3, noise=1.0):
    """Features whose class is in the first numbers."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(videos) % classes
    rows = noise * torch.randn(videos, clips, numbers, generator=generator)
    rows[torch.arange(videos), :, labels] += 3
    return rows, labels


def of_toys(labels, groups=None, classes=3):
    groups = groups or [str(i) for i in range(len(labels))]
    return probe.Labels(labels, groups, torch.ones(classes, dtype=torch.float64))


@pytest.mark.parametrize("numbers", [10, 200], ids=["more clips", "more numbers"])
def test_the_fit_is_the_minimum(numbers):
    """Against gradient descent in all coordinates, both where clips and where numbers are more."""
    rows, labels = toy_rows(numbers=numbers)
    standard = probe._Standard.of(rows)(rows)
    (found,) = probe._fit_path(standard, of_toys(labels), [1e-2])
    weight, bias = found.weight.requires_grad_(), found.bias.requires_grad_()
    scores = standard.flatten(0, 1) @ weight.T + bias
    loss = torch.nn.functional.cross_entropy(scores, labels.repeat_interleave(3))
    (loss + 5e-3 * weight.square().sum() + 5e-5 * bias.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-6
    assert bias.grad.abs().max() < 1e-6


def test_a_probe_says_what_was_chosen():
    rows, labels = toy_rows()
    found = probe.fit(rows, of_toys(labels), seed=1)
    assert found.accuracy > 80
    assert re.fullmatch(
        r"probe: 24 videos x 3 clips, L2 [\d.e-]+ of 7, \d+\.\d % by 5-fold cross-validation, "
        r"too high where videos share a room, .* DATA\.GROUP_BY",
        str(found),
    )
    pairs = probe.fit(rows, of_toys(labels, [str(i // 2) for i in range(24)]), seed=1)
    assert str(pairs).endswith("by 5-fold cross-validation")
    assert same(tuple(found.head), tuple(probe.fit(rows, of_toys(labels), seed=1).head))
    noise = torch.randn(24, 3, 50, generator=torch.Generator().manual_seed(1))
    assert probe.fit(noise, of_toys(labels), seed=1).accuracy < 60


def test_a_strength_other_than_the_usual_one_must_be_clearly_better():
    accuracies = np.array([0.40, 0.45, 0.50, 0.47, 0.46, 0.48, 0.40])
    assert probe.STRENGTHS[4] == probe.USUAL
    assert probe.clearly_best(accuracies, 4, videos=100, chance=0.25) == 4  # 50 % of 100: +-5 %
    assert probe.clearly_best(accuracies, 4, videos=10_000, chance=0.25) == 2
    assert probe.clearly_best(accuracies, 4, videos=10_000, chance=0.495) == 4  # it says nothing
    assert probe.clearly_best(np.zeros(7), 4, videos=10, chance=0.25) == 4


def test_videos_of_one_group_do_not_choose():
    rows, labels = toy_rows()
    found = probe.fit(rows, of_toys(labels, ["one"] * 24), seed=1)
    assert (found.accuracy, found.strength) == (None, probe.USUAL)
    assert "not cross-validated" in str(found)


def test_groups_stay_together():
    """What tells the classes of a group apart helps in no other group: it must not count."""
    groups = [f"g{i // 6}" for i in range(24)]
    labels = torch.arange(24) % 3
    for held in grouped_folds(labels.tolist(), groups, folds=5, seed=0):
        inside = {group for group, out in zip(groups, held, strict=True) if out}
        assert inside.isdisjoint({g for g, out in zip(groups, held, strict=True) if not out})
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(4, 3, 50, generator=generator)  # of each group and class another one
    rows = signs[torch.arange(24) // 6, labels].unsqueeze(1).repeat(1, 3, 1)
    rows += 0.1 * torch.randn(rows.shape, generator=generator)
    assert probe.fit(rows, of_toys(labels), seed=0).accuracy > 80
    assert probe.fit(rows, of_toys(labels, groups), seed=0).accuracy < 70


def test_class_weights_count():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 20 + [1] * 4)
    rows = torch.randn(24, 2, 5, generator=generator)
    rows[labels == 1, :, 0] += 1
    plain = probe.Labels(labels, [str(i) for i in range(24)], torch.ones(2).double())
    weighed = probe.Labels(labels, plain.groups, torch.tensor([0.6, 3.0]).double())
    standard = probe._Standard.of(rows)(rows)
    rare = [
        (standard @ head.weight.T + head.bias).argmax(2).sum()
        for head in (probe._fit_path(standard, each, [1e-1])[0] for each in (plain, weighed))
    ]
    assert rare[1] > rare[0]


def test_a_class_without_videos_is_never_answered():
    rows, labels = toy_rows()
    found = probe.fit(rows, of_toys(labels, classes=4), seed=1)
    assert found.head.weight.shape == (4, 50)
    standard = probe._Standard.of(rows)(rows)
    assert (standard @ found.head.weight.double().T + found.head.bias).argmax(2).max() < 3


# ---- runs ---------------------------------------------------------------------------------------


def test_a_probe_of_a_random_encoder_learns_motion(motions, probed):
    """Chance is 25 %; the mean of all tokens alone could not tell left from right."""
    line = line_of(probed)
    assert line.startswith("probe: 24 videos x 4 clips, L2 ")
    (record,) = [r for r in read_metrics(probed) if r["_type"] == "val_epoch"]
    assert record["step"] == 0
    assert 100 - record["top1_err"] >= 75
    best = checkpoint.best_record(probed / "checkpoints")
    assert best["epoch"] == 0
    assert best["value"] >= 75
    assert {p.name for p in (probed / "checkpoints").glob("*.pyth")} == {
        "best.pyth",
        "checkpoint_epoch_00000.pyth",
    }


def test_a_probe_leaves_the_encoder_alone(motions, probed):
    cfg = config(motions, probed, task=READOUT)
    fresh, _ = build.training_model(cfg, num_classes=4)
    state, before = final(probed)["model_state"], fresh.state_dict()
    changed = {key for key in before if not torch.equal(before[key], state[key])}
    assert changed == {
        "head.projection.weight", "head.projection.bias", "readout.mean", "readout.std"
    }  # fmt: skip


def test_the_checkpoint_alone_labels_videos(motions, probed):
    predictor = Predictor.load(probed / "checkpoints" / "best.pyth", device="cpu", views=(1, 1))
    videos = sorted((motions / "val").glob("*/*.mp4"))
    right = [predictor(path).labels[0].label == path.parent.name for path in videos]
    assert sum(right) >= 0.75 * len(videos)
    turned = build_model(
        "hiera_tiny_16x224",
        pretrained=probed / "checkpoints" / "best.pyth",
        classes=sorted(MOTIONS)[::-1],
        **final(probed)["model"]["kwargs"],
    )
    theirs = predictor.model.head.projection.weight
    assert torch.equal(turned.head.projection.weight, theirs.flip(0))


def test_the_same_command_again_changes_nothing(motions, probed):
    before = {p: p.stat().st_mtime_ns for p in (probed / "checkpoints").iterdir()}
    assert run(config(motions, probed, task=READOUT)) == 0
    assert {p: p.stat().st_mtime_ns for p in (probed / "checkpoints").iterdir()} == before


def test_the_best_of_a_run_can_be_tested(motions, probed):
    cfg = config(motions, probed, "TEST.CHECKPOINT_FILE_PATH", "best", task=READOUT)
    assert evaluate.test(cfg, distributed.init("cpu"), Stop()) == 0
    assert "best.pyth" in (probed / "results.json").read_text()


def test_fine_tuning_that_harms_loses_to_the_probe(motions, tmp_path):
    out = tmp_path / "out"
    harm = ("SOLVER.MAX_EPOCH", 1, "SOLVER.BASE_LR", 1.0, "SOLVER.WARMUP_EPOCHS", 0)
    assert run(config(motions, out, *harm, task=READOUT)) == 0
    assert checkpoint.best_record(out / "checkpoints")["epoch"] == 0
    assert checkpoint.load(out / "checkpoints" / "best.pyth")["step"] == 0
    validated = [r["step"] for r in read_metrics(out) if r["_type"] == "val_epoch"]
    assert validated == [0, 6]


def goes_on_bit_for_bit(motions, tmp_path, task, *, epochs, stops):
    """Stop fine-tuning after a probe at `stops`; returns the folder of the run that was stopped."""
    more = ("SOLVER.MAX_EPOCH", epochs, "TRAIN.EMA_DECAY", 0.9, "SOLVER.LAYER_DECAY", 0.8)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run(config(motions, straight, *more, task=task)) == 0
    cfg = config(motions, broken, *more, task=task)
    for after in stops:
        assert interrupted(cfg, after=after) == 130
    assert run(cfg) == 0
    assert same(final(straight)["model_state"], final(broken)["model_state"])
    assert same(final(straight)["raw_state"], final(broken)["raw_state"])
    assert losses(straight) == losses(broken)
    return broken


def begins_again_after_a_stop_in(part, motions, tmp_path, task):
    """Ask the run to stop when it calls a function of the probe, `part` = (module, name)."""
    out, stop = tmp_path / "out", Stop()
    cfg = config(motions, out, task=task)
    original = getattr(*part)

    def interrupt(*arguments):
        stop.signal = 15
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*part, interrupt)
        assert train.train(cfg, distributed.init("cpu"), stop) == 143
    assert stop.obeyed
    assert not checkpoint.in_order(out / "checkpoints")
    assert run(cfg) == 0
    assert checkpoint.in_order(out / "checkpoints")
    return out


def test_a_stop_after_the_probe_goes_on_bit_for_bit(motions, tmp_path):
    broken = goes_on_bit_for_bit(motions, tmp_path, READOUT, epochs=2, stops=(1, 5))
    assert (broken / "stdout.log").read_text().count("probe: ") == 1


def test_a_stop_in_the_probe_saves_nothing_and_begins_again(motions, tmp_path):
    out = begins_again_after_a_stop_in((probe, "_own_features"), motions, tmp_path, READOUT)
    assert line_of(out)


def test_a_validation_that_a_stop_prevented_comes_later(motions, tmp_path, monkeypatch):
    out, stop = tmp_path / "out", Stop()
    cfg = config(motions, out, task=READOUT)
    monkeypatch.setattr(train.evaluate, "score_videos", lambda *_, **__: None)
    stop.signal = None
    train.train(cfg, distributed.init("cpu"), stop)
    assert not [r for r in read_metrics(out) if r["_type"] == "val_epoch"]
    monkeypatch.undo()
    assert run(cfg) == 0
    assert [r["step"] for r in read_metrics(out) if r["_type"] == "val_epoch"] == [0]


def test_two_processes_give_the_head_of_one(motions, probed, tmp_path):
    out = tmp_path / "out"
    words = settings(motions, out, "TEST.ENABLE", "false", task=READOUT)
    done = run_child("--cfg", empty(tmp_path), *words, processes=2)
    assert done.returncode == 0, done.stderr
    assert line_of(out) == line_of(probed)
    ours, theirs = final(probed)["model_state"], final(out)["model_state"]
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4)


def test_groups_of_the_data_are_held_out_together(motions, tmp_path, monkeypatch):
    seen = []

    def watched(rows, labels, *, seed):
        seen.append(labels.groups)
        return original(rows, labels, seed=seed)

    original = probe.fit
    monkeypatch.setattr(probe, "fit", watched)
    assert run(config(motions, tmp_path / "a", "DATA.GROUP_BY", r"(g\d+)_", task=READOUT)) == 0
    assert set(seen[0]) == {f"g{i}" for i in range(6)}
    lines = [
        f"{path.relative_to(motions)},{path.parent.name},{path.parts[-3]},day {i % 2}"
        for i, path in enumerate(sorted(motions.glob("*/*/*.mp4")))
    ]
    table = tmp_path / "list" / "labels.csv"
    table.parent.mkdir()
    table.write_text("\n".join(["path,label,split,recorded", *lines]) + "\n")
    more = ("DATA.GROUP_BY", "recorded", "DATA.PATH_PREFIX", motions)
    assert run(config(table.parent, tmp_path / "b", *more, task=READOUT)) == 0
    assert set(seen[1]) == {"day 0", "day 1"}


def test_an_unreadable_video_is_left_out(tmp_path):
    videos = write_motions(tmp_path / "videos", train=9, val=4)
    next((videos / "train" / "up").glob("*.mp4")).write_bytes(b"nothing")
    assert run(config(videos, tmp_path / "out", task=READOUT)) == 0
    assert line_of(tmp_path / "out").startswith("probe: 8 videos x 4 clips")


# ---- wrong use ----------------------------------------------------------------------------------


def test_a_model_without_a_readout_is_refused(tmp_path):
    videos = write_videos(tmp_path / "videos", train=3, val=3)
    with pytest.raises(UserError, match=r"readout_stages: \[3\]"):
        run(config(videos, tmp_path / "out", "TRAIN.PROBE", "true"))


@pytest.mark.parametrize(("least", "steps"), [(25, 0), (24, 6), (0, 6)])
def test_the_number_of_videos_decides_about_fine_tuning(motions, tmp_path, least, steps):
    """And one line says so."""
    out = tmp_path / "out"
    more = ("SOLVER.MAX_EPOCH", 1, "TRAIN.PROBE_ALONE_BELOW", least)
    assert run(config(motions, out, *more, task=READOUT)) == 0
    assert final(out)["step"] == steps
    said = re.findall(r"24 training videos, .*", (out / "stdout.log").read_text())
    expected = {25: "fewer than 25: the probe alone", 24: "24 or more: fine-tuning follows"}
    assert len(said) == (least > 0)
    if said:
        assert expected[least] in said[0]
    before = losses(out)
    assert run(config(motions, out, *more, task=READOUT)) == 0  # it resumes as what it was
    assert losses(out) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("TASK", "pretrain"), "TASK=classify"),
        (("DATA.MULTI_LABEL", "true", "MODEL.LOSS_FUNC", "bce_logit"), "DATA.MULTI_LABEL"),
        (("TRAIN.PROBE", "false"), "SOLVER.MAX_EPOCH=0"),
        (("TRAIN.PROBE_VIEWS", "0"), "TRAIN.PROBE_VIEWS"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["TRAIN.PROBE", "true", "SOLVER.MAX_EPOCH", "0", *words])


def test_too_many_features_are_refused(motions, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="PROBE would hold"):
        run(config(motions, tmp_path / "out", task=READOUT))
