"""Scores of a video from its views: what is averaged, in which steps, on which device."""

import pytest
import torch
from torch import nn

from hiera_video import scoring
from hiera_video.errors import UserError
from hiera_video.models import build_model
from hiera_video.scoring import (
    ScoreSettings,
    choose_device,
    choose_dtype,
    clip_scores,
    distinct_clips,
    takes_images,
    view_scores,
)

pytestmark = pytest.mark.numbers


class Logits(nn.Module):
    """Reads its logits out of the first pixels of a clip."""

    def __init__(self, num_classes=3, input_size=(2, 4, 4)):
        super().__init__()
        self.num_classes, self.input_size = num_classes, input_size
        self.batches = []

    def forward(self, clips):
        self.batches.append(tuple(clips.shape))
        return clips.flatten(1)[:, : self.num_classes]


def clips_with(logits):
    clips = torch.zeros(len(logits), 3, 2, 4, 4)
    for clip, row in zip(clips, logits, strict=True):
        clip.view(-1)[: len(row)] = torch.tensor(row)
    return clips


def tiny_hiera(**overrides):
    arguments = {
        "embed_dim": 16,
        "num_heads": 1,
        "stages": (1, 1, 1, 1),
        "input_size": (4, 64, 64),
        "num_classes": 5,
    }
    torch.manual_seed(0)
    return build_model("hiera_base_16x224", **{**arguments, **overrides}).eval()


def test_probabilities_are_averaged_not_logits():
    # One loud view for class 0, two quiet ones for class 1: logits averaged would say class 0.
    rows = [[20.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 3.0, 0.0]]
    scores = view_scores(Logits().eval(), clips_with(rows), ScoreSettings(2))
    expected = torch.tensor(rows, dtype=torch.float64).softmax(-1).mean(0).float()
    torch.testing.assert_close(scores, expected)
    assert scores.argmax() == 1
    assert torch.tensor(rows).mean(0).argmax() == 0
    assert scores.dtype == torch.float32
    assert scores.sum() == pytest.approx(1)


def test_multi_label_classes_are_scored_each_for_itself():
    scores = view_scores(
        Logits().eval(), clips_with([[4.0, 4.0, -4.0]] * 2), ScoreSettings(4, multi_label=True)
    )
    torch.testing.assert_close(scores, torch.tensor([4.0, 4.0, -4.0]).sigmoid())


def test_the_batch_size_bounds_the_views_of_a_forward_pass():
    model = Logits().eval()
    seen = []
    view_scores(
        model,
        clips_with([[float(i), 0.0, 0.0] for i in range(5)]),
        ScoreSettings(2),
        on_views=seen.append,
    )
    assert [shape[0] for shape in model.batches] == seen == [2, 2, 1]


@pytest.mark.parametrize("batch_size", [1, 2, 6, 100])
def test_any_batch_size_gives_the_same_scores(batch_size):
    model = tiny_hiera()
    clips = torch.randn(6, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = model(clips).softmax(-1).mean(0)
    scores = view_scores(model, clips, ScoreSettings(batch_size))
    torch.testing.assert_close(scores, expected.detach(), atol=1e-6, rtol=1e-5)


def test_an_image_model_gets_frames():
    model = tiny_hiera(
        input_size=(64, 64), patch_kernel=(7, 7), patch_stride=(4, 4), patch_padding=(3, 3),
        q_stride=(2, 2), mask_unit_size=(8, 8), sep_pos_embed=False,
    )  # fmt: skip
    assert takes_images(model)
    assert not takes_images(tiny_hiera())
    frames = torch.randn(3, 3, 1, 64, 64)
    scores = view_scores(model, frames, ScoreSettings(2))
    torch.testing.assert_close(scores, model(frames[:, :, 0]).softmax(-1).mean(0).detach())


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        view_scores(Logits().train(), clips_with([[0.0] * 3]), ScoreSettings(1))


def test_low_precision_is_used_in_the_model_and_not_in_the_mean():
    class Dtype(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3 * 2 * 4 * 4, 3)

        def forward(self, clips):
            logits = self.linear(clips.flatten(1))
            self.dtype = logits.dtype
            return logits

    model = Dtype().eval()
    settings = ScoreSettings(4, dtype=torch.bfloat16)
    scores = view_scores(model, torch.randn(4, 3, 2, 4, 4), settings)
    assert model.dtype == torch.bfloat16
    assert scores.dtype == torch.float32
    assert scores.sum() == pytest.approx(1, abs=1e-6)


# ---- devices and number formats ----


def test_auto_is_float32_on_a_cpu():
    assert choose_dtype("auto", torch.device("cpu")) == (torch.float32, None)


@pytest.mark.parametrize("name", ["bf16", "bfloat16", "fp16", "float16"])
@pytest.mark.parametrize("native", [True, False])
def test_a_cpu_without_the_format_is_warned_of(name, native, monkeypatch):
    monkeypatch.setattr(scoring, "native_on_cpu", lambda dtype: native)
    dtype, warning = choose_dtype(name, torch.device("cpu"))
    assert dtype == (torch.bfloat16 if name.startswith("b") else torch.float16)
    if native:
        assert warning is None
    else:
        assert "very slow" in warning
        assert "\n" not in warning


def test_the_probe_of_the_cpu_answers():
    assert isinstance(scoring.native_on_cpu(torch.bfloat16), bool)
    assert scoring.native_on_cpu(torch.float32) is True


def test_devices_by_name(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="--device cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="0 to 1"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "tpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_other_devices_are_refused_with_the_choices(name):
    with pytest.raises(UserError, match="auto, cpu, cuda"):
        choose_device(name)


def test_other_number_formats_are_refused_with_the_choices():
    with pytest.raises(UserError, match="auto, fp32, fp16 or bf16"):
        choose_dtype("fp8", torch.device("cpu"))


def test_equal_clips_go_through_the_model_once():
    seen, progress = [], []

    class Counting(Logits):
        def forward(self, clips):
            seen.append(len(clips))
            return super().forward(clips)

    rows = [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]]
    clips = clips_with(rows)
    scores = clip_scores(
        Counting().eval(), clips, ScoreSettings(2), on_views=lambda n: progress.append(n)
    )
    assert seen == [2, 1]
    assert progress == [4, 1]
    assert torch.allclose(scores, torch.tensor(rows).softmax(-1))
    assert torch.allclose(
        view_scores(Logits().eval(), clips, ScoreSettings(5)),
        torch.tensor(rows).softmax(-1).mean(0),
    )


def test_clips_of_equal_sums_and_other_pixels_are_distinct():
    clips = torch.zeros(2, 3, 2, 4, 4)
    clips[0, 0, 0, 0, 0] = clips[1, 0, 0, 0, 1] = 1.0
    firsts, rows = distinct_clips(clips)
    assert (firsts.tolist(), rows.tolist()) == ([0, 1], [0, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("side", [4, 3])
@pytest.mark.parametrize("layout", ["frames first", "colours last", "as it is"])
def test_equal_clips_are_found_in_any_format_and_layout(dtype, side, layout):
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(0, 255, (2, 2, 3, side, side), generator=generator).to(dtype)
    clips = torch.stack([one, other, one, other.flip(0), one])  # [V, T, 3, H, W]
    if layout == "colours last":
        clips = clips.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    clips = clips.transpose(1, 2)
    if layout == "as it is":
        clips = clips.contiguous()
    firsts, rows = distinct_clips(clips)
    assert (firsts.tolist(), rows.tolist()) == ([0, 1, 3], [0, 1, 0, 2, 0])
