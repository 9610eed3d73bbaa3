"""`torch.compile` takes each model whole: no break in training, under drop path, with masks."""

import pytest
import torch
from randomness import redraw
from tiny_runs import PRETRAIN, config, losses, run, write_videos

from hiera_video import build_model
from hiera_video.engine import compiling, plots
from hiera_video.engine.compiling import (
    CompileSettings,
    choose_compile,
    compile_fault,
    compile_model,
)
from hiera_video.models.tokens import num_kept

CLASSIFIER = {"drop_path_rate": 0.5, "head_dropout": 0.5, "num_classes": 5}
AUTOENCODER = {
    "drop_path_rate": 0.5,
    "mask_ratio": 0.5,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}
CASES = {
    "classifier": ("hiera_tiny_16x224", CLASSIFIER, False),
    "classifier, masked": ("hiera_tiny_16x224", CLASSIFIER, True),
    "autoencoder": ("mae_hiera_tiny_16x224", AUTOENCODER, False),
    "autoencoder, masked": ("mae_hiera_tiny_16x224", AUTOENCODER, True),
}
QUICK = ("classifier", "autoencoder, masked")
RUNS = [
    pytest.param(case, backend, marks=() if quick else pytest.mark.slow)
    for case in CASES
    for backend in ("eager", "aot_eager")
    for quick in [backend == "eager" and case in QUICK]
]


def tiny(case):
    name, settings, masked = CASES[case]
    sizes = {"input_size": (4, 64, 64), "embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)}
    return redraw(build_model(name, **sizes, **settings)).train(), masked


def output(model, *args, **kwargs):
    out = model(*args, **kwargs)
    return out.loss if hasattr(out, "loss") else out.square().mean()


@pytest.mark.parametrize(("case", "backend"), RUNS)
def test_one_graph_does_what_the_model_does(case, backend):
    torch._dynamo.reset()
    model, masked = tiny(case)
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=False)
    for seed in (0, 1):  # the second mask by the code of the first
        clips = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        arguments, known = (clips,), {}
        if masked:
            keep = getattr(model, "encoder", model).random_keep(2, 0.5, generator)
            arguments, known = (clips, keep), {"kept": num_kept(model.num_mask_units, 0.5)}
        found = []
        for run_it in (model, compiled):
            torch.manual_seed(seed)  # of drop path, dropout, and a mask that the model draws
            model.zero_grad()
            loss = output(run_it, *arguments, **known)
            loss.backward()
            found.append((loss.item(), model.get_parameter(FIRST[case]).grad.clone()))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
        assert found[0][1].abs().max() > 0
        torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)


FIRST = {
    case: "encoder.patch_embed.proj.weight" if "auto" in case else "patch_embed.proj.weight"
    for case in CASES
}


@pytest.mark.parametrize("case", ["classifier, masked", "autoencoder, masked"])
def test_a_mask_that_is_not_what_was_promised_is_refused(case):
    model, _ = tiny(case)
    keep = getattr(model, "encoder", model).random_keep(2, 0.5)
    clips = torch.randn(2, 3, 4, 64, 64)
    output(model, clips, keep, kept=4)
    with pytest.raises(RuntimeError, match="3 units"):
        output(model, clips, keep, kept=3)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "pretrain"])
def test_a_compiled_run_learns_what_a_plain_one_learns(tmp_path, task, monkeypatch):
    monkeypatch.setattr(plots, "draw_curves", lambda folder: None)
    videos = write_videos(tmp_path / "videos")
    (videos / "train" / "fast" / "00.mp4").write_bytes(b"not a video")  # one step lacks a clip
    kind = PRETRAIN if task == "pretrain" else None
    settings = ("HIERA.DROPPATH_RATE", 0)
    settings += ("MODEL.DROPOUT_RATE", 0) if task == "classify" else ()
    run(config(videos, tmp_path / "plain", *settings, task=kind))
    torch._dynamo.reset()
    run(config(videos, tmp_path / "compiled", *settings, "TRAIN.COMPILE", "true", task=kind))
    plain, compiled = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert plain.keys() == compiled.keys()
    assert max(abs(plain[s] - compiled[s]) for s in plain) < 1e-4


# ---- when a run compiles ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "device", "expected"),
    [
        (None, "cpu", None),
        (None, "cuda", ("default", True)),
        (False, "cuda", None),
        (True, "cpu", ("default", False)),
        (True, "cuda", ("default", False)),
    ],
)
def test_gpus_compile_unless_told_otherwise(wanted, device, expected):
    assert choose_compile(wanted, "default", torch.device(device)) == expected


class Cannot(torch.nn.Module):
    """What torch.compile returns for a model that it cannot compile: fails when called."""

    def __init__(self, error):
        super().__init__()
        self.error, self.calls = error, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        torch.rand(3)  # a compiler may draw: the step must not notice
        raise self.error


def notes_of(out):
    return [x for x in (out / "stdout.log").read_text().splitlines() if "failed (" in x]


@pytest.mark.parametrize("when", ["called", "built"])
def test_a_model_that_cannot_be_compiled_runs_plain_and_says_why(tmp_path, monkeypatch, when):
    monkeypatch.setattr(plots, "draw_curves", lambda folder: None)
    videos = write_videos(tmp_path / "videos")
    plain = config(videos, tmp_path / "plain", "TRAIN.GRAD_ACCUM", 2)
    assert run(plain) == 0
    error = torch._dynamo.exc.Unsupported("Graph break\nmany more lines")
    broken, asked = Cannot(error), []

    def compile_it(model, **settings):
        asked.append(settings)
        if when == "built":
            raise RuntimeError("torch.compile is not supported here")
        return broken

    monkeypatch.setattr(torch, "compile", compile_it)
    words = ("TRAIN.GRAD_ACCUM", 2, "TRAIN.COMPILE", "true")
    assert run(config(videos, tmp_path / "compiled", *words)) == 0
    assert len(asked) == 1
    assert (asked[0]["dynamic"], asked[0]["fullgraph"]) == (False, False)
    assert broken.calls == (1 if when == "called" else 0)
    assert losses(tmp_path / "compiled") == losses(tmp_path / "plain")  # dropout too
    reason = "Unsupported: Graph break)" if when == "called" else "is not supported here)"
    (line,) = notes_of(tmp_path / "compiled")
    assert reason in line
    assert "many more lines" not in line


def test_errors_of_the_model_itself_are_no_reason_to_go_on_without():
    assert compile_fault(RuntimeError("shapes differ")) is None
    assert compile_fault(torch.OutOfMemoryError("CUDA out of memory")) is None
    assert compile_fault(torch._dynamo.exc.Unsupported("a break\nmore")) == "Unsupported: a break"


def test_one_graph_is_asked_for_except_of_several_processes(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, **settings: asked.append(settings))
    whole = CompileSettings("default", whole=True)
    compile_model(torch.nn.Linear(2, 2), whole)

    class Parallel(compiling.DistributedDataParallel):
        def __init__(self):
            torch.nn.Module.__init__(self)

    compile_model(Parallel(), whole)
    assert [settings["fullgraph"] for settings in asked] == [True, False]
