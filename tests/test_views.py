"""Which pixels end up in which view, told by the index that every test picture carries."""

import pytest
import torch
from clips import read_index, write_clip

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.views import load_test_views, parse_views
from hiera_video.errors import DecodeError, UserError
from hiera_video.video import view_crops
from hiera_video.video.decode import VideoReader
from hiera_video.video.sampling import segment_views, uniform_views

SPEC = ClipSpec(num_frames=4, sampling_rate=2, crop_size=64)


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    """40 frames of 64x64 at 30 fps: at crop size 64 every crop is the whole picture."""
    return write_clip(tmp_path_factory.mktemp("views") / "square.mp4", frames=40, size=(64, 64))


def indices_of(clips, spec):
    """The indices in the pictures of float [V, 3, T, H, W], back from normalisation."""
    mean = torch.tensor(spec.mean).view(3, 1, 1, 1)
    std = torch.tensor(spec.std).view(3, 1, 1, 1)
    pixels = (clips * std + mean) * 255
    return [[read_index(frame) for frame in view.unbind(1)] for view in pixels]


def test_views_hold_the_frames_that_sampling_chose(square):
    clips = load_test_views(str(square), SPEC, 3, 3)
    assert clips.shape == (9, 3, 4, 64, 64)
    assert clips.dtype == torch.float32
    expected = uniform_views(40, 30.0, SPEC, 3).tolist()
    assert indices_of(clips, SPEC) == [view for view in expected for _ in range(3)]


def test_segments_and_single_frames_take_the_same_road(square):
    segments = ClipSpec(num_frames=8, crop_size=64, segments=True)
    clips = load_test_views(str(square), segments, 2, 3)[::3]
    assert indices_of(clips, segments) == segment_views(40, segments, 2).tolist()
    image = ClipSpec(num_frames=1, crop_size=64)
    assert indices_of(load_test_views(str(square), image, 3, 3)[::3], image) == [[0], [19], [39]]


def test_a_video_shorter_than_a_clip_ends_on_its_last_frame(tmp_path):
    path = write_clip(tmp_path / "short.mp4", frames=3, size=(64, 64))
    clips = load_test_views(str(path), SPEC, 2, 3)
    assert indices_of(clips, SPEC) == [[0, 2, 2, 2]] * 6


def test_twice_the_frame_rate_shows_the_same_moments(tmp_path, square):
    # Every picture twice as fast: frame 2i of this file is shown when frame i of the other is.
    fast = write_clip(tmp_path / "fast.mp4", frames=80, fps=60, size=(64, 64))
    at_60 = indices_of(load_test_views(str(fast), SPEC, 1, 3), SPEC)[0]
    at_30 = indices_of(load_test_views(str(square), SPEC, 1, 3), SPEC)[0]
    # Spans end on the last frame that belongs to them, 1/60 or 1/30 s early: within one frame.
    assert max(abs(a / 2 - b) for a, b in zip(at_60, at_30, strict=True)) <= 1


def test_crops_run_along_the_longer_side(tmp_path):
    path = write_clip(tmp_path / "wide.mp4", frames=8, size=(192, 64))
    clips = load_test_views(str(path), SPEC, 1, 3)
    # The lower half of the pictures runs from red at the left to blue at the right.
    redness = (clips[:, 0] - clips[:, 2])[..., 56:, :].mean((1, 2, 3))
    assert redness[0] > redness[1] > redness[2]


def test_every_frame_is_decoded_once_in_order_and_few_at_a_time(square, monkeypatch):
    read, asked = VideoReader.read, []

    def recording(self, indices, *args, **kwargs):
        asked.append([int(i) for i in indices])
        return read(self, indices, *args, **kwargs)

    monkeypatch.setattr(VideoReader, "read", recording)
    whole = load_test_views(str(square), SPEC, 5, 1)
    assert len(asked) == 1
    monkeypatch.setattr(view_crops, "_DECODED_BYTES", 3 * 3 * 64 * 64)
    asked.clear()
    in_parts = load_test_views(str(square), SPEC, 5, 1)
    assert max(len(part) for part in asked) == 3
    flat = [index for part in asked for index in part]
    assert flat == sorted(set(uniform_views(40, 30.0, SPEC, 5).ravel().tolist()))
    assert torch.equal(in_parts, whole)


def test_what_cannot_be_decoded_is_said(tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    with pytest.raises(DecodeError, match=r"bad\.mp4"):
        load_test_views(str(bad), SPEC, 1, 1)


def test_impossible_views_are_refused(square):
    with pytest.raises(UserError, match="num_views=0"):
        load_test_views(str(square), SPEC, 0, 1)
    with pytest.raises(UserError, match="spatial crops"):
        load_test_views(str(square), SPEC, 1, 2)


# ---- the spelling of views ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5x3", (5, 3)), ("1x1", (1, 1)), ("10X3", (10, 3)), (" 2x1 ", (2, 1)), ("5×3", (5, 3))],
)
def test_views_are_temporal_times_spatial(text, expected):
    assert parse_views(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "5", "x3", "5x", "5x2", "0x3", "5x0", "-1x3", "5*3", "5x3x1", "5.0x3", "five", "1e9x3",
     "99999999x3", "５x３"],
)  # fmt: skip
def test_other_spellings_are_refused_with_what_is_allowed(text):
    with pytest.raises(UserError, match="such as 5x3"):
        parse_views(text)
