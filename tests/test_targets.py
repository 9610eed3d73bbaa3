"""Targets of masked autoencoding: histograms against a naive loop, flow against its truth, runs."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from randomness import redraw
from small_models import DECODER, IMAGE, VIDEO, autoencoder, held, image_autoencoder, untouched
from small_models import video as classifier
from tiny_runs import PRETRAIN, config, final, interrupted, losses, run, same, write_videos

from hiera_video import build_model, load_config
from hiera_video.clip_spec import ClipSpec
from hiera_video.config.model import HieraConfig
from hiera_video.data.batch import Batch
from hiera_video.data.synthetic.body_motion import truth as body_truth
from hiera_video.engine import motion, tasks
from hiera_video.engine.flow import flow_colours, scaled_flow
from hiera_video.engine.pictures import hog_colours
from hiera_video.errors import ConfigError, UserError, WeightsError
from hiera_video.models.targets import FLOW_CELLS, FLOW_NUMBERS, TARGETS, oriented_gradients
from hiera_video.models.tokens import unit_ids
from hiera_video.models.weights.load import load_weights

pytestmark = pytest.mark.usefixtures("no_curves")


def tiny(target="pixels", **overrides):
    return autoencoder(target=target, mask_ratio=0.5, **overrides)


def image(target, **overrides):
    return build_model("mae_hiera_base_224", target=target, **{**IMAGE, **DECODER, **overrides})


def clips_of(count=2, seed=3):
    return torch.randn(count, 3, 4, 64, 64, generator=torch.Generator().manual_seed(seed))


def truth_of(count=2, seed=4):
    """Displacements as a model predicts them."""
    shape = (count, FLOW_NUMBERS, 2, FLOW_CELLS, FLOW_CELLS)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def given(target, count=2):
    return {"truth": truth_of(count)} if target == "flow" else {}


# ---- histograms of oriented gradients -----------------------------------------------------------


def naive_cell(picture, top, left):
    """The histogram of one cell of a picture, a list of lists, pixel by pixel."""
    height, width = len(picture), len(picture[0])

    def at(y, x):  # the picture goes on as in a mirror, without repeating its edge
        y, x = abs(y), abs(x)
        return picture[min(y, 2 * height - 2 - y)][min(x, 2 * width - 2 - x)]

    bins = [0.0] * 9
    for y in range(top, top + 8):
        for x in range(left, left + 8):
            across = sum(w * (at(y + d, x - 1) - at(y + d, x + 1)) for d, w in SOBEL)
            down = sum(w * (at(y - 1, x + d) - at(y + 1, x + d)) for d, w in SOBEL)
            degrees = math.degrees(math.atan2(across, down)) % 180
            bins[int(degrees // 20) % 9] += math.hypot(across, down)
    length = math.sqrt(sum(value * value for value in bins))
    return [value / length for value in bins]


SOBEL = ((-1, 1), (0, 2), (1, 1))


@pytest.mark.numbers
def test_histograms_are_those_of_a_naive_loop():
    pictures = torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(0))
    found = oriented_gradients(pictures)
    assert found.shape == (2, 9, 2, 3)
    for n in range(2):
        rows = pictures[n].double().tolist()
        for i in range(2):
            for j in range(3):
                expected = naive_cell(rows, 8 * i, 8 * j)
                assert found[n, :, i, j].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.numbers
def test_edges_and_slopes_by_hand():
    """A pixel's direction is atan2 of its differences: left minus right, above minus below."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    upright = (x < 12).float()  # the middle cells hold the edge: columns 11 and 12
    upright = oriented_gradients(upright)
    assert upright[4, :, 1].tolist() == [1, 1, 1]  # 90 degrees, the middle of 80 to 100
    assert upright[:, :, 0].abs().max() == 0  # flat cells have no direction and no noise
    assert upright[:, :, 1].sum() == 3
    level = oriented_gradients((y < 12).float())
    assert level[0, 1].tolist() == [1, 1, 1]
    # along a slope of 50 degrees all pixels inside have one direction; borders are reflected
    for degrees, wanted in ((50, 2), (70, 3), (110, 5), (170, 8), (190, 0), (-10, 8)):
        angle = math.radians(degrees)
        slope = oriented_gradients(-(math.sin(angle) * x + math.cos(angle) * y))
        assert slope[:, 1, 1].argmax() == wanted
        assert slope[wanted, 1, 1] == pytest.approx(1)


@pytest.mark.numbers
def test_a_mirror_mirrors_the_bins():
    clips = clips_of(1)[0, :, 0]

    def inner(pictures):  # without the outermost columns, which have no difference across
        return oriented_gradients(pictures)[..., 1:-1]

    found = inner(clips)
    assert torch.allclose(inner(clips.flip(-1)), found.flip(-1).flip(-3), atol=1e-5)
    assert torch.allclose(inner(clips.flip(-2)), found.flip(-2).flip(-3), atol=1e-5)
    assert torch.allclose(inner(clips.flip(-1, -2)), found.flip(-1, -2), atol=1e-5)
    assert not torch.allclose(inner(clips.flip(-1)), found.flip(-1), atol=0.1)


@pytest.mark.numbers
def test_brightness_contrast_and_number_formats_do_not_matter():
    clips = clips_of()
    found = oriented_gradients(clips)
    assert found.square().sum(-3) == pytest.approx(torch.ones(2, 3, 4, 8, 8))
    gain = torch.tensor([0.3, 2.0, 7.0]).view(3, 1, 1, 1)
    assert torch.allclose(oriented_gradients(clips * gain - 1), found, atol=1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(oriented_gradients(clips), found)
    half = clips.bfloat16()
    assert oriented_gradients(half).dtype == torch.float32
    assert torch.equal(oriented_gradients(half), oriented_gradients(half.float()))


# ---- arrangement --------------------------------------------------------------------------------


def place(model, t, y, x):
    """(unit, token in it) of the predicted token in time t, row y and column x: raster in both."""
    _, rows, columns = model.final_unit
    _, across, along = model.encoder.layout.unit_grid
    unit = (t * across + y // rows) * along + x // columns
    return unit, (y % rows) * columns + x % columns


def test_histograms_are_in_the_tokens_of_their_pixels():
    model, clips = tiny("hog"), clips_of()
    tokens = model.target.tokens(clips)
    assert tokens.shape == (2, 8, 4, 108)
    bins = oriented_gradients(clips[1, :, 2])  # second time: the third frame
    for y, x in ((0, 0), (1, 2), (3, 3)):
        token = tokens[1][place(model, 1, y, x)].view(2, 2, 3, 9)  # row, column, colour, bin
        wanted = bins[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        assert torch.equal(token, wanted.permute(2, 3, 0, 1))
    picture = image("hog")
    token = picture.target.tokens(clips[:, :, 0])[0, 0, 1].view(3, 9, 2, 2)
    assert torch.equal(token, oriented_gradients(clips[0, :, 0])[:, :, :2, 2:4])


def test_a_marked_cell_of_the_truth_is_in_its_token_alone():
    model, clips = tiny("flow"), clips_of()
    truth = torch.zeros_like(truth_of())
    truth[1, 3, 1, 9, 14] = 5.0  # fourth number, second time, row 9 and column 14 of cells
    tokens = model.target.tokens(clips, truth)
    assert tokens.shape == (2, 8, 4, 96)
    assert tokens.nonzero().tolist() == [[1, *place(model, 1, 2, 3), (1 * 4 + 2) * 6 + 3]]
    assert tokens.sum() == 5


def test_flow_targets_are_the_truth_token_by_token():
    model, clips, truth = tiny("flow"), clips_of(), truth_of()
    tokens = model.target.tokens(clips, truth)
    for t in range(2):
        for y in range(4):
            for x in range(4):
                cells = truth[0, :, t, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
                assert torch.equal(tokens[0][place(model, t, y, x)], cells.movedim(0, -1).flatten())


@pytest.mark.parametrize("target", TARGETS)
def test_tokens_go_back_into_maps(target):
    model, clips = tiny(target), clips_of()
    maps = model.target.maps(clips, **{"truth": None, **given(target)})
    assert torch.equal(model.target.join(model.target.tokens(clips, **given(target))), maps)
    if target != "flow":
        model, clips = image(target), clips[:, :, 0]
        maps = model.target.maps(clips, None)
        assert torch.equal(model.target.join(model.target.tokens(clips)), maps)


def test_the_grid_of_the_flow_is_that_of_generated_clips():
    assert (FLOW_NUMBERS, FLOW_CELLS) == (body_truth.FLOW_CHANNELS, body_truth.GRID)
    assert tuple(TARGETS) == ("pixels", "hog", "flow")
    for name in TARGETS:
        assert HieraConfig(target=name).target == name


def test_the_flow_is_compressed_and_scaled_as_motion_prediction_does():
    truth = 5 * torch.randn(2, body_truth.TRUTH_CHANNELS, 2, 16, 16)
    flow = scaled_flow(truth)
    assert torch.equal(flow, motion.targets(truth)[0][:, :6])
    assert torch.equal(flow[:, 3], truth[:, 3].asinh() / body_truth.FLOW_SCALE[3])


# ---- models -------------------------------------------------------------------------------------


@pytest.mark.numbers
def test_pixels_are_the_published_target_bit_for_bit():
    """The loss of a seeded model, from before there were other targets; and the formula alone."""
    torch.manual_seed(0)
    model = build_model("mae_hiera_tiny_16x224", mask_ratio=0.5, **VIDEO, **DECODER)
    generator = torch.Generator().manual_seed(1)
    clips = torch.randn(2, 3, 4, 64, 64, generator=generator)
    keep = model.random_keep(2, generator=generator)
    assert model(clips, keep).loss.item() == pytest.approx(float.fromhex("0x1.0a2dd8p+0"), rel=1e-5)
    deleted = unit_ids(~keep, 4)
    pixels = model.pixel_tokens(clips).flatten(0, 1)[deleted].unflatten(0, (2, 4))
    wanted = (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.equal(model.targets(clips, deleted), wanted)
    torch.manual_seed(0)
    named = build_model(
        "mae_hiera_tiny_16x224", mask_ratio=0.5, target="pixels", **VIDEO, **DECODER
    )
    assert same(dict(named.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize(("target", "width"), [("pixels", 768), ("hog", 108), ("flow", 96)])
def test_the_decoder_is_as_wide_as_the_target_and_nothing_else_changes(target, width):
    model, plain = tiny(target), tiny()
    assert model.target.values_per_token == width
    assert model.decoder_pred.weight.shape == (width, 16)
    shapes = {k: v.shape for k, v in model.state_dict().items() if "decoder_pred" not in k}
    assert shapes == {k: v.shape for k, v in plain.state_dict().items() if "decoder_pred" not in k}
    clips, keep, truth = clips_of(), model.random_keep(2), truth_of()
    out = model(clips, keep, 4, truth)  # by position
    assert out.pred.shape == (2, 4, 4, width)
    wanted = model.targets(clips, unit_ids(~keep, 4), truth)
    assert wanted.dtype == torch.float32
    assert torch.equal(out.loss, (out.pred - wanted).square().mean())
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.numbers
@pytest.mark.parametrize("target", ["hog", "flow"])
def test_the_loss_is_taken_on_the_decoded_units(target):
    model = redraw(tiny(target, decode_ratio=0.5)).train()
    clips, keep = clips_of(), model.random_keep(2)
    out = model(clips, keep, **given(target))
    wanted = unit_ids(out.decoded, 2)
    expected = (out.pred - model.targets(clips, wanted, **given(target))).square().mean()
    torch.testing.assert_close(out.loss, expected)


def test_a_ladder_step_takes_a_target_too():
    sizes = {**VIDEO, **DECODER, "mask_ratio": 0.5}
    model = build_model("mae_ladder_r4_small_16x224", target="hog", **sizes)
    assert model(clips_of()).pred.shape[-1] == 108


@pytest.mark.numbers
@pytest.mark.parametrize("target", TARGETS)
def test_eight_clips_are_learnt(target):
    """Stripes of eight angles: better than the best guess that is the same for all tokens."""
    torch.manual_seed(0)
    model = tiny(target, embed_dim=16, decoder_embed_dim=64, decoder_depth=2)
    angles = (torch.arange(8) * math.pi / 8 + 0.1).view(8, 1, 1, 1, 1)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    clips = (0.2 * (angles.cos() * x + angles.sin() * y)).sin().expand(8, 3, 4, 64, 64)
    truth = torch.cat([angles.cos(), angles.sin()], 1).repeat(1, 3, 2, 16, 16)
    keep = model.random_keep(8, generator=torch.Generator().manual_seed(1))
    wanted = model.targets(clips, unit_ids(~keep, 4), truth)
    constant = (wanted - wanted.mean((0, 1, 2))).square().mean().item()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        loss = model(clips, keep, 4, truth).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * constant


# ---- wrong uses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: tiny("hogs"), "'hogs'.*must be one of pixels, hog, flow"),
        (lambda: image("flow"), "nothing moves in an image"),
        (lambda: tiny("flow", input_size=(4, 96, 96)), "16 cells.*6 x 6 tokens.*TRAIN_CROP_SIZE"),
        (
            lambda: tiny("hog", patch_stride=(2, 3, 3), input_size=(4, 48, 48)),
            "multiple of 8 px.*tokens of 12 px",
        ),
    ],
)
def test_models_that_a_target_does_not_fit_are_refused(build, complaint):
    with pytest.raises(UserError, match=complaint):
        build()


@pytest.mark.parametrize("shape", [None, (2, 14, 2, 16, 16), (2, 6, 4, 16, 16), (1, 6, 2, 16, 16)])
def test_flow_without_its_truth_is_refused(shape):
    model = tiny("flow")
    truth = None if shape is None else torch.zeros(shape)
    with pytest.raises(UserError, match=r"needs the truth of the clips, \(2, 6, 2, 16, 16\)"):
        model(clips_of(), None, None, truth)


def test_flow_of_real_videos_is_refused():
    one = torch.zeros(1, dtype=torch.int64)
    batch = Batch(clips_of(1), one, one, one)
    objective, settings = tasks.get("pretrain"), tasks.StepSettings()
    message = r"HIERA\.TARGET flow needs clips with their truth.*TRAIN\.DATASET body_motion"
    with pytest.raises(UserError, match=message):
        objective.step(tiny("flow"), batch, epoch=0, settings=settings)
    spec = ClipSpec(num_frames=4, crop_size=64)
    with pytest.raises(UserError, match=message):
        objective.picture(tiny("flow").eval(), batch, spec=spec, seed=0)
    with torch.no_grad():  # the others ask for none
        for target in ("pixels", "hog"):
            objective.step(tiny(target), batch, epoch=0, settings=settings)


@pytest.mark.parametrize(
    "words", [("TASK", "motion"), ("TASK", "pretrain", "HIERA.TARGET", "flow")], ids=str
)
def test_truth_is_asked_for_before_videos_are_read(tmp_path, words):
    (tmp_path / "empty.yaml").write_text("")
    message = r"TRAIN\.DATASET to body_motion or camera_flow, not 'video'"
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "empty.yaml", list(words))
    load_config(tmp_path / "empty.yaml", [*words, "TRAIN.DATASET", "body_motion"])


def test_the_setting_reaches_the_model_of_pretraining_alone(tmp_path):
    cfg = config(tmp_path, tmp_path, "HIERA.TARGET", "hog", task=PRETRAIN)
    assert cfg.model_arguments()["target"] == "hog"
    # an autoencoder from outside, which knows no targets, is not given the usual one
    assert "target" not in config(tmp_path, tmp_path, task=PRETRAIN).model_arguments()
    assert "target" not in config(tmp_path, tmp_path, "HIERA.TARGET", "hog").model_arguments()
    with pytest.raises(ConfigError, match=r"HIERA\.TARGET=depth must be one of pixels, hog"):
        config(tmp_path, tmp_path, "HIERA.TARGET", "depth", task=PRETRAIN)


# ---- weights ------------------------------------------------------------------------------------


def test_weights_of_another_target_are_refused_and_change_nothing():
    model = tiny("hog")
    with (
        untouched(model),
        pytest.raises(WeightsError, match=r"decoder_pred\.weight: 768x16 there"),
    ):
        load_weights(model, held(tiny()))
    report = load_weights(model, held(tiny()), strict=False)
    assert [line.split(":")[0] for line in report.reshaped] == [
        "decoder_pred.weight",
        "decoder_pred.bias",
    ]
    with untouched(image_autoencoder()) as _, pytest.raises(WeightsError, match="decoder_pred"):
        load_weights(image_autoencoder(), held(image("hog")))


@pytest.mark.parametrize("target", ["hog", "flow"])
def test_a_classifier_starts_from_any_target(target):
    source, model = redraw(tiny(target)), classifier()
    report = load_weights(model, held(source))
    stored = source.state_dict()
    for name, value in model.state_dict().items():
        if not name.startswith(("norm.", "head.")):
            assert torch.equal(value, stored[name]), name
    assert "decoder_pred.weight" in report.unexpected


# ---- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["hog", "flow"])
def test_the_picture_shows_input_hole_target_and_prediction(target):
    model = redraw(tiny(target)).eval()
    clips, truth = clips_of(), given(target).get("truth")
    keep = model.random_keep(2, generator=torch.Generator().manual_seed(0))
    usual = {"mean": [0.45] * 3, "std": [0.225] * 3}
    panels = tasks.reconstructed(model, clips, keep, truth=truth, **usual)
    picture = panels.as_picture()
    assert picture.shape == (3, 2 * 4 * 64, 2 * 64)  # two clips, four rows, two times
    shown, seen, wanted, painted = picture[:, : 4 * 64].unflatten(1, (4, 64)).unbind(1)
    assert torch.allclose(shown[:, :, :64], (clips[0, :, 0] * 0.225 + 0.45).clamp(0, 1), atol=1e-6)
    grey = (seen == torch.tensor(0.45)).all(dim=0)
    hidden = ~keep[0].view(2, 2, 2).repeat_interleave(32, 1).repeat_interleave(32, 2)
    assert torch.equal(grey, hidden.permute(1, 0, 2).reshape(64, 128))
    assert torch.equal(seen[:, ~grey], shown[:, ~grey])
    assert torch.equal(painted[:, ~grey], wanted[:, ~grey])
    assert not torch.allclose(painted[:, grey], wanted[:, grey], atol=1e-2)
    maps = model.target.maps(clips, truth)
    colours = flow_colours(maps[:, :2]) if target == "flow" else hog_colours(maps)
    size = 64 // colours.shape[-1]
    assert torch.equal(wanted[:, ::size, :64:size], colours[0, :, 0])


def test_pictures_of_images_have_one_time():
    model = redraw(image("hog")).eval()
    keep = model.random_keep(2, 0.5)
    panels = tasks.reconstructed(
        model, clips_of()[:, :, :1], keep, mean=[0.45] * 3, std=[0.225] * 3
    )
    assert panels.as_picture().shape == (3, 2 * 4 * 64, 64)


def test_colours_of_gradients_tell_upright_from_level():
    maps = torch.zeros(1, 27, 1, 1, 3)
    maps[0, [4, 13, 22], 0, 0, 0] = 1
    maps[0, [0, 9, 18], 0, 0, 1] = 1
    upright, level, flat = hog_colours(maps)[0, :, 0, 0].unbind(1)
    assert upright[0] < 0.01 < 0.7 < upright[1] == pytest.approx(upright[2])
    assert level[0] > 0.9 > 0.7 > level[1]
    assert flat.tolist() == [0, 0, 0]


# ---- runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Eight training videos: two steps an epoch."""
    return write_videos(tmp_path_factory.mktemp("videos"), train=8, val=3)


@pytest.mark.parametrize("target", TARGETS)
def test_a_run_of_eight_clips_learns_stops_and_resumes(target, videos, tmp_path):
    chosen = {**PRETRAIN, "HIERA.TARGET": target, "TRAIN.PICTURE_PERIOD": 2, "SOLVER.MAX_EPOCH": 4}
    if target == "flow":
        if importlib.util.find_spec("numba") is None:
            pytest.skip("numba, which draws generated clips, is not installed")
        chosen |= {"TRAIN.DATASET": "body_motion", "SYNTHETIC.NUM_TRAIN": 8}
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run(config(videos, straight, task=chosen)) == 0
    assert interrupted(config(videos, broken, task=chosen), after=3) == 130
    assert run(config(videos, broken, task=chosen)) == 0
    assert losses(straight) == losses(broken)
    for key in ("model_state", "optimizer_state", "step"):
        assert same(final(straight)[key], final(broken)[key]), key
    steps = list(losses(straight).values())
    assert len(steps) == 8
    assert sum(steps[-2:]) < sum(steps[:2]) * (0.98 if target == "pixels" else 0.9)
    assert len(list((straight / "pictures").glob("reconstruction_*.png"))) == 2
    if target != "pixels":
        with pytest.raises(UserError, match=rf"HIERA\.TARGET: '{target}' there, 'pixels' here"):
            run(config(videos, broken, "HIERA.TARGET", "pixels", task=chosen))
