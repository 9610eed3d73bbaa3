"""`torch.compile` takes each model whole: no break in training, under drop path, with masks."""

import pytest
import torch
from randomness import redraw
from tiny_runs import PRETRAIN, config, losses, run, write_videos

from hiera_video import build_model
from hiera_video.engine import plots
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
