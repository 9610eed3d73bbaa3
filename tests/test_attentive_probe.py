"""TRAIN.PROBE attentive: attention with one query over frozen tokens, fitted before any step."""

from __future__ import annotations

import re

import pytest
import torch
from randomness import redraw, relative_error
from test_probe import (
    MOTIONS,
    READOUT,
    begins_again_after_a_stop_in,
    goes_on_bit_for_bit,
    line_of,
    of_toys,
    write_motions,
)
from tiny_runs import config, empty, final, losses, run, run_child, same, settings

from hiera_video import Predictor, build_model, load_config
from hiera_video.classifier import load_classifier
from hiera_video.engine import attentive, build, checkpoint
from hiera_video.engine.probe import Features
from hiera_video.engine.records import read_metrics
from hiera_video.errors import ConfigError, UserError, WeightsError
from hiera_video.export.export import ExportSettings, export
from hiera_video.models.readout import heads_for
from hiera_video.models.weights.file import read_checkpoint
from hiera_video.models.weights.load import load_weights

pytestmark = pytest.mark.usefixtures("no_curves")

ATTENTIVE = {**READOUT, "TRAIN.PROBE": "attentive"}
SMALL = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 2, 1), "input_size": (4, 64, 64)}


def small(name="hiera_tiny_16x224", **kwargs):
    """A small model with an attentive readout, parameters and statistics at random."""
    model = build_model(name, num_classes=3, **{**SMALL, "attentive": True, **kwargs})
    redraw(model).eval()
    generator = torch.Generator().manual_seed(1)
    readout = model.readout
    if readout is not None:
        readout.mean.copy_(torch.randn(readout.mean.shape, generator=generator))
        readout.std.copy_(torch.rand(readout.std.shape, generator=generator) + 0.5)
    return model


def clips_of(model, batch=2):
    return torch.randn(batch, 3, *model.input_size, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def motions(tmp_path_factory):
    return write_motions(tmp_path_factory.mktemp("motions"))


@pytest.fixture(scope="module")
def probed(motions, tmp_path_factory):
    """The folder of a run that is an attentive probe alone."""
    out = tmp_path_factory.mktemp("probed") / "out"
    assert run(config(motions, out, task=ATTENTIVE)) == 0
    return out


# ---- the readout --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [128, 192])
def test_it_is_attention_with_one_query(width):
    """Against PyTorch's own: keys and values are projected first there."""
    model = small(embed_dim=width // 8)
    readout = model.readout
    assert readout.heads == width // 64
    features = model.forward_features(clips_of(model))
    ((tokens, channels),) = readout.stages
    rows = (features.view(-1, tokens, channels) - readout.mean) / readout.std
    theirs = torch.nn.MultiheadAttention(width, readout.heads, bias=False, batch_first=True)
    part = width // readout.heads
    queries = redraw(torch.nn.Linear(1, width, bias=False)).weight.view(readout.heads, part)
    keys = redraw(torch.nn.Linear(channels, width, bias=False), seed=5).weight
    with torch.no_grad():
        # the usual query, key by key: what `readout.queries` holds is their product
        folded = torch.einsum("hd,hdc->hc", queries, keys.view(readout.heads, part, channels))
        readout.queries[0].weight.copy_(folded / part**0.5)
        theirs.in_proj_weight.copy_(torch.cat([torch.eye(width), keys, readout.values[0].weight]))
        theirs.out_proj.weight.copy_(torch.eye(width))
        query = queries.reshape(1, 1, width).expand(2, 1, width)
        expected, _ = theirs(query, rows, rows)
        assert relative_error(readout.head_input(features), expected.squeeze(1)) < 1e-4


def test_tokens_of_several_stages_share_one_softmax():
    model = small(readout_stages=(1, 3))
    readout = model.readout
    features = model.forward_features(clips_of(model))
    assert features.shape == (2, readout.dim)
    widths = [channels for _, channels in readout.stages]
    tokens = [
        (t - m) / s
        for t, m, s in zip(
            readout.tokens(features),
            readout.mean.split(widths, 1),
            readout.std.split(widths, 1),
            strict=True,
        )
    ]
    stages = model.stage_features(clips_of(model))
    torch.testing.assert_close(readout.tokens(features)[1], stages[3].flatten(1, 3))
    scores = [q(t) for q, t in zip(readout.queries, tokens, strict=True)]
    values = [v(t) for v, t in zip(readout.values, tokens, strict=True)]
    weights = torch.cat(scores, 1).softmax(1)  # one head
    expected = (weights * torch.cat(values, 1)).sum(1)
    assert relative_error(readout.head_input(features), expected) < 1e-5
    assert torch.equal(model(clips_of(model)), model.forward_head(features))


@pytest.mark.parametrize(("width", "heads"), [(16, 1), (64, 1), (192, 3), (768, 12), (200, 2)])
def test_heads_divide_the_width(width, heads):
    assert heads_for(width) == heads
    assert width % heads == 0


@pytest.mark.parametrize("name", ["ladder_r0_small_16x224", "hiera_tiny_224"])
def test_image_models_and_steps_of_the_ladder_have_one(name):
    size = {"input_size": (64, 64)} if name.endswith("_224") and "16x" not in name else {}
    model = small(name, **size)
    assert model.readout_stages == (3,)
    assert model(clips_of(model)).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kwargs", [{}, {"attentive": False, "readout_stages": (1, 2)}])
def test_models_with_a_readout_work_in_other_number_formats(dtype, kwargs):
    model = small(**kwargs)
    clips = clips_of(model)
    with torch.no_grad():
        expected = model(clips)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert relative_error(model(clips).float(), expected) < 0.1
        found = model.to(dtype)(clips.to(dtype))
    assert found.dtype == dtype
    assert relative_error(found.double(), expected.double()) < 0.1


def test_every_parameter_gets_a_gradient():
    model = small(readout_stages=(1, 2)).train()
    model(clips_of(model)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith("blocks.4.")), name


def saved(model, path):
    content = {"format": "hiera_video/1", "model_state": model.state_dict()}
    torch.save({**content, "classes": ["a", "b", "c"]}, path)
    return read_checkpoint(path)


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ({"attentive": False, "readout_stages": (2,)}, {}),  # as wide: 2 x 32 and 64
        ({}, {"attentive": False, "readout_stages": (2,)}),
        ({}, {"attentive": False}),
        ({"readout_stages": (1, 3)}, {}),
    ],
)
def test_weights_of_another_readout_leave_the_head_fresh(tmp_path, there, here):
    stored = saved(small(**there), tmp_path / "a.pyth")
    report = load_weights(small(**here), stored, classes=["a", "b", "c"])
    assert not any(key.startswith(("head.", "norm.", "readout.")) for key in report.loaded)
    with pytest.raises(WeightsError, match="its scores would be lost"):
        load_weights(small(**here), stored)


def test_weights_of_the_same_readout_load_by_names(tmp_path):
    twin = small()
    stored = saved(twin, tmp_path / "a.pyth")
    model = small()
    torch.nn.init.zeros_(model.readout.queries[0].weight)
    load_weights(model, stored, classes=["c", "a", "b"])
    clips = clips_of(model)
    torch.testing.assert_close(model(clips), twin(clips)[:, [2, 0, 1]])


# ---- fitting ------------------------------------------------------------------------------------


def toy_tokens(model, videos=24, clips=3):
    """Tokens of noise, one of which, in a place at random, says the class."""
    ((tokens, channels),) = model.readout.stages
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(videos) % 3
    rows = torch.randn(videos, clips, tokens, channels, generator=generator)
    for video in range(videos):
        for clip in range(clips):
            place = int(torch.randint(tokens, (), generator=generator))
            rows[video, clip, place] = 0
            rows[video, clip, place, int(labels[video])] = 12
    return Features(torch.arange(videos), rows.flatten(2)), labels


def fitting(stopped=lambda: False, seed=1):
    return attentive.Fitting(seed, torch.device("cpu"), stopped)


def test_it_finds_the_token_that_says_the_class():
    model = small()
    features, labels = toy_tokens(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = attentive.fit(model, features, of_toys(labels), fitting())
    assert same(before, dict(model.state_dict()))  # only `write` changes the model
    assert found.accuracy > 80
    assert (found.decay, found.epochs) in attentive._CHOICES
    assert re.fullmatch(
        r"attentive probe: 24 videos x 3 clips, \d+ epochs and decay [\d.]+ of 8 choices, "
        r"\d+\.\d % by 5-fold cross-validation, too high where videos share .* DATA\.GROUP_BY",
        str(found),
    )
    attentive.write(model, found)
    with torch.no_grad():
        answers = model.forward_head(features.rows.flatten(0, 1)).argmax(1)
    assert (answers == labels.repeat_interleave(3)).float().mean() > 0.9
    again = attentive.fit(small(), features, of_toys(labels), fitting())
    assert same(again.state, found.state)
    _, tokens = features, model.readout.tokens(features.rows.flatten(0, 1))[0]
    torch.testing.assert_close(model.readout.mean[0], tokens.mean((0, 1)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        model.readout.std[0], tokens.std((0, 1), correction=0), rtol=1e-3, atol=1e-4
    )


def test_videos_of_one_group_do_not_choose():
    model = small()
    features, labels = toy_tokens(model, videos=6)
    found = attentive.fit(model, features, of_toys(labels, ["one"] * 6), fitting())
    assert found.accuracy is None
    assert (found.decay, found.epochs) == attentive.USUAL
    assert "not cross-validated" in str(found)


def test_a_fit_ends_when_it_is_asked_to():
    model = small()
    features, labels = toy_tokens(model, videos=6)
    asked = iter([False, True])
    found = attentive.fit(model, features, of_toys(labels), fitting(lambda: next(asked)))
    assert found is None


# ---- runs ---------------------------------------------------------------------------------------


def test_a_run_learns_motion_and_leaves_the_encoder_alone(motions, probed):
    assert line_of(probed).startswith("probe: 24 videos x 4 clips, ")  # after "attentive"
    (record,) = [r for r in read_metrics(probed) if r["_type"] == "val_epoch"]
    assert record["step"] == 0
    assert 100 - record["top1_err"] >= 50  # chance is 25 %
    cfg = config(motions, probed, task=ATTENTIVE)
    fresh, _ = build.training_model(cfg, num_classes=4)
    state, before = final(probed)["model_state"], fresh.state_dict()
    changed = {key for key in before if not torch.equal(before[key], state[key])}
    assert changed == {k for k in before if k.startswith(("head.", "norm.", "readout."))}


def test_the_checkpoint_alone_labels_videos(motions, probed):
    """The kind of the head is in the checkpoint's model."""
    assert final(probed)["model"]["kwargs"]["attentive"] is True
    best = probed / "checkpoints" / "best.pyth"
    predictor = Predictor.load(best, device="cpu", views=(1, 1))
    videos = sorted((motions / "val").glob("*/*.mp4"))
    right = [predictor(path).labels[0].label == path.parent.name for path in videos]
    value = checkpoint.best_record(probed / "checkpoints")["value"]
    assert 100 * sum(right) / len(videos) == pytest.approx(value, abs=9)  # a video is 8.3 %
    turned = build_model(
        "hiera_tiny_16x224",
        pretrained=best,
        classes=sorted(MOTIONS)[::-1],
        **final(probed)["model"]["kwargs"],
    ).eval()
    clips = torch.randn(2, 3, *turned.input_size)
    with torch.no_grad():
        torch.testing.assert_close(turned(clips), predictor.model(clips).flip(1))


def test_the_same_command_again_changes_nothing(motions, probed):
    before = {p: p.stat().st_mtime_ns for p in (probed / "checkpoints").iterdir()}
    assert run(config(motions, probed, task=ATTENTIVE)) == 0
    assert {p: p.stat().st_mtime_ns for p in (probed / "checkpoints").iterdir()} == before


def test_fine_tuning_after_it_is_resumed_bit_for_bit(motions, tmp_path):
    goes_on_bit_for_bit(motions, tmp_path, ATTENTIVE, epochs=1, stops=(2,))


def test_a_stop_in_the_fit_saves_nothing_and_begins_again(motions, tmp_path):
    part = (attentive, "_set_statistics")
    begins_again_after_a_stop_in(part, motions, tmp_path, ATTENTIVE)


def test_two_processes_give_the_head_of_one(motions, probed, tmp_path):
    out = tmp_path / "out"
    words = settings(motions, out, "TEST.ENABLE", "false", task=ATTENTIVE)
    done = run_child("--cfg", empty(tmp_path), *words, processes=2)
    assert done.returncode == 0, done.stderr
    assert line_of(out) == line_of(probed)
    ours, theirs = final(probed)["model_state"], final(out)["model_state"]
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=2e-3, atol=1e-3)


def test_too_many_tokens_are_computed_step_by_step(motions, tmp_path, monkeypatch):
    monkeypatch.setattr(attentive, "MOST_BYTES", 1000)
    monkeypatch.setattr(attentive, "STEPPED_EPOCHS", 2)
    out = tmp_path / "out"
    cfg = config(motions, out, task=ATTENTIVE)
    assert run(cfg) == 0
    said = (out / "stdout.log").read_text()
    assert "GiB: they are computed anew in each of 2 epochs, which train the head alone" in said
    state = final(out)
    assert state["step"] > 0
    fresh, _ = build.training_model(cfg, num_classes=4)
    before = fresh.state_dict()
    changed = {k for k in before if not torch.equal(before[k], state["model_state"][k])}
    assert changed == {
        k
        for k in before
        if k.startswith(("head.", "norm.", "readout.")) and k not in ("readout.mean", "readout.std")
    }
    assert state["model"]["kwargs"]["attentive"] is True
    before = losses(out)
    assert run(cfg) == 0  # it resumes as what it was
    assert losses(out) == before
    more = config(motions, tmp_path / "more", "SOLVER.MAX_EPOCH", 1, task=ATTENTIVE)
    with pytest.raises(UserError, match=r"PROBE would hold .* Lower TRAIN\.PROBE_VIEWS"):
        run(more)


def test_an_exported_probe_gives_the_same_logits(motions, probed, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    best = probed / "checkpoints" / "best.pyth"
    found = load_classifier(None, best, None, spec=None, model_kwargs={}, warn=lambda line: None)
    done = export(found, ExportSettings("onnx", str(tmp_path / "m.onnx")), lambda line: None)
    assert done.parity.relative <= 1e-4
    assert done.parity.classes_seen > 1
    clip = next((motions / "val" / "up").glob("*.mp4"))
    ours, theirs = (
        Predictor.load(weights, device="cpu", views=(1, 1))(clip).labels[0]
        for weights in (best, done.path)
    )
    assert ours.label == theirs.label
    assert ours.score == pytest.approx(theirs.score, abs=1e-4)


# ---- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        *[("true", "linear"), ("True", "linear"), ("false", "off"), ("False", "off")],
        *[("off", "off"), ("linear", "linear"), ("attentive", "attentive")],
    ],
)
def test_old_spellings_stay_valid(given, kind, tmp_path):
    assert load_config(None, ["TRAIN.PROBE", given]).train.probe == kind
    (tmp_path / "c.yaml").write_text(f"TRAIN: {{PROBE: {given}}}\n")
    cfg = load_config(tmp_path / "c.yaml")
    assert cfg.train.probe == kind
    assert type(cfg).from_yaml(cfg.to_yaml()) == cfg


@pytest.mark.parametrize("given", ["atentive", "1", "[linear]", "None"])
def test_wrong_values_are_told_what_is_allowed(given):
    with pytest.raises(
        ConfigError,
        match=r"TRAIN\.PROBE=.* must be one of off, linear, attentive "
        r"\(true is linear, false is off\)",
    ):
        load_config(None, ["TRAIN.PROBE", given])


def test_a_model_that_cannot_have_one_is_refused(motions, tmp_path):
    words = ("MODEL.MODEL_NAME", "x3d_xs", "MODEL.KWARGS", "{}")
    with pytest.raises(UserError, match=r"TRAIN.PROBE=attentive needs a hiera_\*.*not x3d_xs"):
        run(config(motions, tmp_path / "out", *words, task=ATTENTIVE))


def test_a_linear_probe_of_an_attentive_readout_is_refused(motions, tmp_path):
    words = ("TRAIN.PROBE", "linear", "MODEL.KWARGS.attentive", "true")
    with pytest.raises(UserError, match=r"take it out, or set TRAIN\.PROBE attentive"):
        run(config(motions, tmp_path / "out", *words, task=ATTENTIVE))
