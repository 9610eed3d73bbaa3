"""Why a label: what lights up where the answer is known, and what the command leaves behind."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clips import read_indices, write_clip
from PIL import Image
from torch import nn

from hiera_video import Predictor, build_model
from hiera_video.clip_spec import ClipSpec
from hiera_video.commands import predict as command
from hiera_video.commands.predict import main
from hiera_video.errors import RunFailed, UserError
from hiera_video.explanation.explain import Explanation
from hiera_video.explanation.heat import Heat, put_heat, strengths
from hiera_video.explanation.places import MARK, strip_files
from hiera_video.explanation.relevance import PASSES, clip_relevance
from hiera_video.video.crops import crop_areas, spatial_crops
from hiera_video.video.decode import probe, read_frames

# ---- models whose answer is known ---------------------------------------------------------------


class Sum(nn.Module):
    """logit 0 = sum of weights * pixels ** power."""

    input_size = (4, 16, 16)

    def __init__(self, weights, power=1):
        super().__init__()
        self.weights, self.power = nn.Parameter(weights), power

    def forward(self, clips):
        return (self.weights * clips**self.power).flatten(1).sum(dim=1, keepdim=True)


@pytest.mark.parametrize("power", [1, 2, 5])
def test_the_parts_of_a_sum(power):
    """For a polynomial the integral is exact, and it is known pixel by pixel."""
    torch.manual_seed(0)
    model = Sum(torch.randn(3, 4, 16, 16).double(), power).eval()
    clip = torch.randn(3, 4, 16, 16).double()
    found = clip_relevance(model, clip, 0)
    assert found.grey + found.appearance + found.motion == pytest.approx(found.clip)
    assert found.clip == pytest.approx(model(clip[None]).item(), rel=1e-5)
    grey = clip.mean(dim=(1, 2, 3), keepdim=True)
    pixels = (model.weights * (clip**power - grey**power)).sum(dim=0).clamp(min=0).detach()
    assert found.cells.shape == (2, 2, 2)
    cells = pixels.view(2, 2, 2, 8, 2, 8).sum(dim=(1, 3, 5))
    np.testing.assert_allclose(found.cells, (cells / cells.sum()).numpy(), rtol=1e-4)


class Changes(nn.Module):
    """logit 0 = how much a clip changes, logit 1 = how bright its left half is."""

    input_size = (8, 32, 32)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, clips):
        change = (clips[:, :, 1:] - clips[:, :, :-1]).square().mean(dim=(1, 2, 3, 4))
        return self.scale * torch.stack([change, clips[..., :16].mean(dim=(1, 2, 3, 4))], dim=1)


def test_appearance_and_motion():
    torch.manual_seed(0)
    clip = torch.rand(3, 1, 32, 32).expand(3, 8, 32, 32).clone()
    clip[..., :16] += 1
    clip[:, :, :8, 24:] += torch.randn(3, 8, 8, 8)  # only here does anything move
    changes, brightness = (clip_relevance(Changes().eval(), clip, index) for index in (0, 1))
    assert changes.appearance == pytest.approx(0, abs=1e-5)
    assert changes.motion == pytest.approx(changes.clip)
    assert changes.motion > 0.1
    assert changes.cells[:, 0, 3].sum() > 0.99
    assert brightness.motion == pytest.approx(0, abs=1e-5)
    assert brightness.appearance > 0.3
    assert brightness.cells[:, :, 2:].sum() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["x3d_xs", "ladder_r3_small_16x224", "mvitv2_small_16x224"])
def test_other_models_are_explained_as_well(name):
    """Convolutions and pooled attention, too: any model with gradients."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=3).eval()
    frames, height, width = model.input_size
    clip = torch.randn(3, frames, height, width)
    found = clip_relevance(model, clip, 1, steps=1)
    assert found.cells.shape == (-(-frames // 2), -(-height // 16), -(-width // 16))
    assert found.cells.sum() == pytest.approx(1, abs=1e-4)
    with torch.no_grad():
        assert found.clip == pytest.approx(float(model(clip[None])[0, 1]), abs=1e-5)


def test_nothing_speaks_for_a_class():
    found = clip_relevance(Sum(torch.zeros(3, 4, 16, 16)).eval(), torch.randn(3, 4, 16, 16), 0)
    assert not found.cells.any()
    assert not strengths(found.cells).any()


def test_gradients_that_are_not_finite():
    model = Sum(torch.full((3, 4, 16, 16), torch.inf)).eval()
    with pytest.raises(RunFailed, match="not finite"):
        clip_relevance(model, torch.randn(3, 4, 16, 16), 0)
    with pytest.raises(ValueError, match=r"model\.eval"):
        clip_relevance(model.train(), torch.randn(3, 4, 16, 16), 0)


# ---- the bundled encoder, and sprites that move -------------------------------------------------

SPRITE, SIDE, FRAMES = 12, 64, 8
WAYS = torch.tensor([[0, 2], [0, -2], [2, 0], [-2, 0]])


def sprites(count, generator):
    """Clips [B, 3, 8, 64, 64] of a sprite that moves over a still, textured background, where it
    goes [B], and where it is [B, 8, 64, 64]."""
    noise = 0.2 + 0.6 * torch.rand(count, 3, SIDE, SIDE, generator=generator)
    clips = F.avg_pool2d(noise, 5, 1, 2)[:, :, None].repeat(1, 1, FRAMES, 1, 1)
    way = torch.randint(4, (count,), generator=generator)
    mask = torch.zeros(count, FRAMES, SIDE, SIDE)
    for i in range(count):
        colour = 0.5 + 0.5 * torch.rand(3, 1, 1, generator=generator)
        sprite = 0.7 * colour + 0.3 * torch.rand(3, SPRITE, SPRITE, generator=generator)
        middle = torch.randint(14, SIDE - SPRITE - 14, (2,), generator=generator)
        for t in range(FRAMES):
            top, left = (middle + WAYS[way[i]] * (t - FRAMES // 2)).tolist()
            clips[i, :, t, top : top + SPRITE, left : left + SPRITE] = sprite
            mask[i, t, top : top + SPRITE, left : left + SPRITE] = 1
    clips += 0.02 * torch.randn(clips.shape, generator=generator)
    return (clips - 0.45) / 0.225, way, mask


@pytest.fixture(scope="module")
def director():
    """Names where the sprite goes: a head fitted to the bundled encoder of motion."""
    linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    torch.manual_seed(0)
    model = build_model(
        "hiera_tiny_16x224",
        **{"input_size": (FRAMES, SIDE, SIDE), "embed_dim": 48, "num_heads": 1},
        **{"stages": (1, 1, 4, 1), "contrast_stem": True, "abs_win": True},
        **{"readout_stages": [3], "num_classes": 4, "pretrained": "motion"},
    ).eval()
    clips, way, _ = sprites(320, torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = [model.stage_features(some)[-1] for some in clips.split(32)]
        features = torch.cat([model.readout([some]) for some in maps])
        model.readout.mean.copy_(features.mean(dim=0))
        model.readout.std.copy_(features.std(dim=0) + 1e-6)
        rows = model.readout.head_input(features).numpy()
        fitted = linear_model.LogisticRegression(C=100, max_iter=500).fit(rows, way.numpy())
        model.head.projection.weight.copy_(torch.from_numpy(fitted.coef_))
        model.head.projection.bias.copy_(torch.from_numpy(fitted.intercept_))
    return model


def probability_without(model, clip, index, cells):
    """The class's probability once the pixels of cells, bool [4, 8, 8], are the mean colour."""
    gone = cells.repeat_interleave(2, 0).repeat_interleave(8, 1).repeat_interleave(8, 2)
    clip = torch.where(gone, clip.mean(dim=(1, 2, 3), keepdim=True), clip)
    with torch.no_grad():
        return float(model(clip[None]).softmax(dim=1)[0, index])


def test_the_moving_sprite_lights_up(director):
    """And without what lights up the label goes, as it does not without as much elsewhere."""
    generator = torch.Generator().manual_seed(77)
    clips, way, masks = sprites(12, generator)
    inside, hits, without, without_others, parts = [], [], [], [], []
    for clip, index, mask in zip(clips, way.tolist(), masks, strict=True):
        found = clip_relevance(director, clip, index)
        parts.append((found.motion, found.appearance))
        cells = torch.from_numpy(found.cells)
        here = F.max_pool3d(mask[None], (2, 8, 8))[0] > 0
        inside.append(float(cells[here].sum()))
        hits.append(bool(here.flatten()[cells.argmax()]))
        for order, kept in (
            (cells.flatten().argsort(descending=True), without),
            (torch.randperm(cells.numel(), generator=generator), without_others),
        ):
            gone = torch.zeros(cells.numel(), dtype=torch.bool)
            gone[order[: cells.numel() // 5]] = True
            kept.append(probability_without(director, clip, index, gone.view(4, 8, 8)))
    motion, appearance = np.mean(parts, axis=0)
    assert motion > 3 * abs(appearance)
    assert np.mean(inside) > 0.45  # of the cells, 9 % touch the sprite
    assert np.mean(hits) > 0.9
    assert np.mean(without) < 0.6 < 0.9 < np.mean(without_others)


# ---- where it is in the picture -----------------------------------------------------------------


@pytest.mark.parametrize("crops", [1, 3])
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (50, 50), (40, 400), (400, 40), (240, 427)])
def test_areas_are_what_the_crops_show(size, crops):
    """Pictures whose colours are their coordinates, cut, and read again."""
    rows, columns = (torch.linspace(0, 255, side) for side in size)
    picture = torch.zeros(1, 3, *size)
    picture[:, 0], picture[:, 1] = rows[:, None], columns[None]
    cut = spatial_crops(picture.round().byte(), 32, crops)
    for area, crop in zip(crop_areas(*size, 32, crops), cut, strict=True):
        left, top, right, bottom = area
        assert crop[0, 0, :, 16].float().mean() / 255 == pytest.approx((top + bottom) / 2, abs=0.02)
        middle = crop[0, 1, 16, :].float().mean() / 255
        assert middle == pytest.approx((left + right) / 2, abs=0.02)
        span = (crop[0, 1, 16, -1].float() - crop[0, 1, 16, 0].float()) / 255
        assert span == pytest.approx(right - left, abs=0.06)


def test_heat_is_on_its_place_at_its_time():
    cells = np.zeros((2, 4, 4), np.float32)
    cells[1, 0, 3] = 1
    heat = Heat(np.array([1.0, 1.5, 2.0, 2.5]), cells, (0.5, 0.0, 1.0, 1.0))
    assert heat.at(0.7) is None
    assert heat.at(2.8) is None
    assert not heat.at(0.8).any()
    assert heat.at(2.1)[0, 3] == 1
    picture = np.full((40, 80, 3), 100, np.uint8)
    heat.put(picture, 2.0)
    changed = (picture != 100).any(axis=2)
    assert not changed[:, :40].any()  # the clip does not show it
    assert changed[3, 75]
    assert not changed[30, 50]
    assert (picture[0, 40:] == 255).all()  # the frame around it
    put_heat(picture, np.zeros((1, 1), np.float32))


# ---- videos and the command ---------------------------------------------------------------------

NAME = "hiera_base_16x224"
TINY = {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1), "input_size": (4, 64, 64)}
CLASSES = ["apple", "bird", "cat $x$", "dog", "eel"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = build_model(NAME, num_classes=5, **TINY)
    nn.init.normal_(model.head.projection.weight, std=1.0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pyth"
    kwargs = {
        key: list(value) if isinstance(value, tuple) else value for key, value in TINY.items()
    }
    content = {
        "format": "hiera_video/1",
        "model_state": model.state_dict(),
        "model": {"name": NAME, "kwargs": kwargs},
        "classes": CLASSES,
        "spec": ClipSpec(num_frames=4, sampling_rate=2, crop_size=64).to_dict(),
        "epoch": 1,
    }
    torch.save(content, path)
    return str(path)


@pytest.fixture
def clip(tmp_path):
    """Square: the three crops are one."""
    return write_clip(tmp_path / "clip.mp4", frames=40, size=(160, 96))


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_video_is_explained_by_the_clip_that_speaks_most_for_its_label(checkpoint, clip):
    predictor = Predictor.load(checkpoint, views=(3, 3), device="cpu")
    shares = []
    found = predictor.explain(clip, on_progress=shares.append)
    assert isinstance(found, Explanation)
    assert found.label == predictor(clip, top_k=1).labels[0].label
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert len(shares) >= PASSES
    # The pixels are those of the file at the times that it names.
    frames = read_frames(clip, np.rint(found.times * 30).astype(int).tolist())
    index = crop_areas(96, 160, 64, 3).index(found.area)
    expected = spatial_crops(frames, 64, 3)[index].permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(found.pixels, expected)
    # Another class, another answer.
    least = predictor(clip).labels[-1].label
    other = predictor.explain(clip, label=least)
    assert other.label == least
    assert not np.allclose(other.relevance.cells, found.relevance.cells)
    with pytest.raises(UserError, match="label 'cow' is none of the model's 5 classes"):
        predictor.explain(clip, label="cow")


def test_an_image_model(tmp_path, clip):
    model = build_model("hiera_base_224", num_classes=5, **{**TINY, "input_size": (64, 64)})
    spec = ClipSpec(num_frames=1, sampling_rate=1, crop_size=64)
    found = Predictor(model, spec=spec, classes=CLASSES, device="cpu").explain(clip)
    assert found.relevance.cells.shape == (1, 8, 8)
    assert found.relevance.motion == pytest.approx(0, abs=1e-5)


def test_the_picture(checkpoint, clip, here, capsys):
    assert main([str(clip), "--weights", checkpoint, "--explain", "--views", "2x1"]) == 0
    out = capsys.readouterr().out
    assert "explained by the clip from" in out
    assert "still picture" in out
    with Image.open("clip_explained.jpg") as picture:
        picture.load()
        assert picture.info["comment"] == MARK
        assert picture.width > picture.height > 200
    # Again: replaced. Two files of one name: two pictures. JSON: the numbers.
    words = ["--weights", checkpoint, "--explain", "--views", "1x1", "--json"]
    assert main([str(clip), str(write_clip(here / "clip.mkv", frames=12)), *words]) == 0
    both = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in here.glob("*.jpg")) == [
        "clip-2_explained.jpg",
        "clip_explained.jpg",
    ]
    for one in both:
        found = one["explanation"]
        assert found["label"] == one["labels"][0]["label"]
        assert np.sum(found["cells"]) == pytest.approx(1, abs=0.01)
        assert 0 <= found["start"] < found["end"]


def test_a_file_that_cannot_be_read_among_others(checkpoint, clip, here, capsys):
    (here / "bad.mp4").write_bytes(b"no video at all" * 100)
    words = ["--weights", checkpoint, "--explain", "--views", "1x1"]
    assert main(["bad.mp4", str(clip), *words]) == 1
    assert [p.name for p in here.glob("*.jpg")] == ["clip_explained.jpg"]
    assert "bad.mp4" in capsys.readouterr().err


def test_what_is_not_ours_stays(checkpoint, clip, here):
    (here / "clip_explained.jpg").write_bytes(b"somebody's picture")
    with pytest.raises(UserError, match="is not a picture that --explain wrote; move it"):
        main([str(clip), "--weights", checkpoint, "--explain"])
    assert (here / "clip_explained.jpg").read_bytes() == b"somebody's picture"
    (here / "folder_explained.jpg").mkdir()
    with pytest.raises(UserError, match="cannot be replaced"):
        strip_files(["folder.mp4"], here)


def test_an_exported_file_has_no_gradients(checkpoint, clip, here, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra export")
    from hiera_video.commands.export import main as export

    file = str(tmp_path / "m.onnx")
    assert export(["--weights", checkpoint, "--format", "onnx", "--out", file, "--clips", "2"]) == 0
    with pytest.raises(UserError, match=r"needs gradients.*--runtime torch with the checkpoint"):
        main([str(clip), "--weights", file, "--explain"])
    assert not list(here.iterdir())


def test_the_copy_shows_it_where_and_when_the_clip_is(checkpoint, clip, here):
    words = ["--weights", checkpoint, "--views", "1x1", "--video"]
    assert main([str(clip), *words, "plain.mp4"]) == 0
    assert main([str(clip), *words, "hot.mp4", "--explain"]) == 0
    found = Predictor.load(checkpoint, views=(1, 1), device="cpu").explain(clip)
    plain, hot = (read_frames(p, range(probe(p).num_frames)) for p in ("plain.mp4", "hot.mp4"))
    assert read_indices(hot.permute(0, 2, 3, 1).numpy()) == read_indices(
        plain.permute(0, 2, 3, 1).numpy()
    )
    changed = (hot.float() - plain.float()).abs().mean(dim=(1, 2, 3))
    times = np.arange(len(plain)) / 30
    inside = np.array([found.heat.at(time) is not None for time in times])
    assert 8 <= inside.sum() <= 10  # frames: 4 of the clip, every second one
    assert changed[inside].min() > 3 * changed[~inside].max() + 1


def test_an_interruption_keeps_the_labels(checkpoint, clip, here, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "explain", interrupt)
    assert main([str(clip), "--weights", checkpoint, "--explain", "--csv", "a.csv"]) == 130
    assert capsys.readouterr().out.count("%") == 5
    assert (here / "a.csv").read_text().count("clip.mp4") >= 5
    assert command.INTERRUPTED == 130
