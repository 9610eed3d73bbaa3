"""Position embeddings of another clip length or frame size."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from small_models import (
    DECODER,
    IMAGE,
    autoencoder,
    held,
    image,
    image_autoencoder,
    untouched,
    video,
)

from hiera_video.errors import WeightsError
from hiera_video.models import build_model
from hiera_video.models.pos_embed import abs_win_embedding, resize_joint, split_abs_win
from hiera_video.models.weights.load import load_weights

pytestmark = pytest.mark.numbers


def ramp(grid, channels=8):
    """An embedding that grows linearly along time, rows and columns: [1, t*h*w, C]."""
    axes = [torch.linspace(0, 1, 2 * n + 1)[1::2] for n in grid]  # at the tokens' centres
    time, rows, columns = torch.meshgrid(*axes, indexing="ij")
    total = 100 * time + 10 * rows + columns
    return total.reshape(1, -1, 1).repeat(1, 1, channels)


def test_resizing_keeps_a_plane_a_plane_in_time_and_space():
    """Interpolation leaves linear functions (almost) alone, away from the borders."""
    small, large = ramp((4, 6, 6)), ramp((8, 12, 12))
    resized = resize_joint(small, (4, 6, 6), (8, 12, 12)).reshape(8, 12, 12, 8)
    inside = (slice(1, -1), slice(4, -4), slice(4, -4))
    expected = large.reshape(8, 12, 12, 8)[inside]
    # PyTorch's cubic (a = -0.75) bends a slope a little; a row's step here is 0.83
    torch.testing.assert_close(resized[inside], expected, atol=0.1, rtol=0)


def test_rows_and_columns_are_not_swapped():
    embed = ramp((1, 4, 8))
    assert torch.equal(resize_joint(embed, (1, 4, 8), (1, 4, 8)), embed)
    wide = resize_joint(embed, (1, 4, 8), (1, 4, 16)).reshape(4, 16, 8)
    assert wide[:, 0].std() > wide[0].std()  # rows weigh ten times the columns


def test_another_clip_length_and_size_resizes_positions_and_says_so():
    source, model = video(), video(input_size=(8, 96, 32))
    report = load_weights(model, held(source))
    assert report.resized == ["pos_embed_temporal", "pos_embed_spatial"]
    assert report.notes == [
        "pos_embed_temporal resized from 2 to 4 tokens (linear)",
        "pos_embed_spatial resized from 16x16 to 24x8 tokens (bicubic)",
    ]
    plane = source.pos_embed_spatial.detach().reshape(1, 16, 16, 8).permute(0, 3, 1, 2)
    plane = F.interpolate(plane, size=(24, 8), mode="bicubic")
    assert torch.equal(model.pos_embed_spatial, plane.flatten(2).transpose(1, 2))
    line = source.pos_embed_temporal.detach().transpose(1, 2)
    line = F.interpolate(line, size=4, mode="linear").transpose(1, 2)
    assert torch.equal(model.pos_embed_temporal, line)
    assert model(torch.randn(1, 3, 8, 96, 32)).shape == (1, 5)


def test_an_autoencoders_decoder_positions_are_resized_too():
    source, model = autoencoder(), autoencoder(input_size=(8, 96, 32))
    report = load_weights(model, held(source))
    assert report.notes[-1] == (
        "decoder_pos_embed resized from 2x4x4 to 4x6x2 tokens (linear in time, bicubic in space)"
    )
    assert model.decoder_pos_embed.shape == (1, 4 * 6 * 2, 16)
    assert torch.isfinite(model(torch.randn(1, 3, 8, 96, 32)).loss)


def test_an_image_models_positions_are_resized():
    report = load_weights(image(input_size=(96, 96)), held(image()))
    assert report.notes == ["pos_embed resized from 16x16 to 24x24 tokens (bicubic)"]
    report = load_weights(
        build_model("mae_hiera_base_224", **{**IMAGE, **DECODER, "input_size": (96, 96)}),
        held(image_autoencoder()),
    )
    assert report.resized == ["pos_embed", "decoder_pos_embed"]


def test_a_size_that_is_not_square_is_taken_from_the_checkpoints_notes():
    source = video(input_size=(4, 32, 96))
    model = video(input_size=(4, 96, 32))  # as many tokens, standing instead of lying
    report = load_weights(model, held(source, model_kwargs={"input_size": [4, 32, 96]}))
    assert report.notes == ["pos_embed_spatial resized from 8x24 to 24x8 tokens (bicubic)"]
    model = video(input_size=(4, 64, 64))
    with untouched(model), pytest.raises(WeightsError, match="pos_embed_spatial: 1x192x8 there"):
        load_weights(model, held(source))


def test_joint_positions_over_time_and_space_are_resized():
    source = video(sep_pos_embed=False)
    model = video(sep_pos_embed=False, input_size=(8, 32, 32))
    report = load_weights(model, held(source, model_kwargs={"input_size": (4, 64, 64)}))
    assert report.resized == ["pos_embed"]
    assert "from 2x16x16 to 4x8x8" in report.notes[0]


@pytest.mark.parametrize("value", [torch.ones(3), torch.ones(2, 2, 8), torch.ones(1, 0, 8)])
@pytest.mark.parametrize("key", ["pos_embed_spatial", "pos_embed_temporal"])
@pytest.mark.parametrize("size", ["large", [0, 1, 2], [4, 64, 64], None])
def test_nonsense_in_the_place_of_positions_is_named(value, key, size):
    checkpoint = held(video(), model_kwargs={"input_size": size})
    checkpoint.state_dict[key] = value
    model = video()
    with untouched(model), pytest.raises(WeightsError, match=f"{key}: "):
        load_weights(model, checkpoint)


def test_windows_split_off_a_sum_of_window_and_smooth_part_give_it_back():
    torch.manual_seed(0)
    window = torch.randn(1, 4, 8, 8)
    window -= window.mean(dim=(2, 3), keepdim=True)  # a constant belongs to either part
    overall = ramp((1, 7, 7), channels=4).transpose(1, 2).reshape(1, 4, 7, 7)
    plain = abs_win_embedding(window, overall, (56, 56))
    part, rest, lost = split_abs_win(plain, (56, 56), window=(8, 8), overall=(7, 7))
    assert (part.shape, rest.shape) == (window.shape, overall.shape)
    assert lost < 0.02
    _, _, lost = split_abs_win(torch.randn(1, 3136, 4), (56, 56), window=(8, 8), overall=(7, 7))
    assert lost > 0.9  # noise has neither part


def test_absolute_windows_repeat_in_step_with_the_mask_units():
    window = torch.randn(1, 4, 8, 8)
    plain = abs_win_embedding(window, torch.zeros(1, 4, 7, 7), (96, 64)).reshape(96, 64, 4)
    for y, x in itertools.product((0, 13, 95), (0, 9, 63)):
        assert torch.equal(plain[y, x], window[0, :, y % 8, x % 8])


def test_plain_positions_load_into_absolute_windows_with_the_loss_stated():
    source, model = video(), video(abs_win=True, input_size=(8, 96, 96))
    report = load_weights(model, held(source))
    assert report.resized == ["pos_embed_temporal", "pos_embed_spatial", "pos_embed_window"]
    assert re.search(
        r"split into a window part \(8x8\) and a global part \(7x7\): an approximation that loses "
        r"\d+% of its variation; fine-tune",
        report.notes[-1],
    )
    assert model(torch.randn(1, 3, 8, 96, 96)).shape == (1, 5)


def test_absolute_windows_load_at_any_size_and_add_up_for_a_plain_model():
    source = video(abs_win=True)
    larger = video(abs_win=True, input_size=(4, 96, 32))
    report = load_weights(larger, held(source))
    assert report.notes == []
    assert torch.equal(larger.pos_embed_spatial, source.pos_embed_spatial)
    plain = video()
    report = load_weights(plain, held(source))
    assert report.notes == [
        "pos_embed_spatial: window and global part added up to one of 16x16 tokens"
    ]
    clips = torch.randn(1, 3, 4, 64, 64)
    torch.testing.assert_close(plain.positions(), source.positions())
    torch.testing.assert_close(plain(clips), source(clips))
