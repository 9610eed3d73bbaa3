"""Copies of videos with their labels drawn on them: same frames, times, sound; right captions."""

from __future__ import annotations

import av
import numpy as np
import pytest
from clips import is_upright, read_indices, write_clip

from hiera_video.errors import DecodeError, RunFailed, UserError
from hiera_video.labelled_video import encoder, write
from hiera_video.labelled_video.captions import Caption, Panel, caption_at
from hiera_video.labelled_video.write import enlargement, write_labelled_video, write_small_copy
from hiera_video.video.decode import probe, read_frames

WHOLE = [Caption(0.0, None, (("jump", 0.9), ("run", 0.1)))]


def frames_of(path):
    """uint8 RGB [N, 3, H, W] of a whole file."""
    return read_frames(path, range(probe(path).num_frames))


def sound_of(path):
    """(codec, seconds) of each sound track, by its packets."""
    with av.open(str(path)) as container:
        found = []
        for stream in container.streams.audio:
            packets = [packet for packet in container.demux(stream) if packet.pts is not None]
            end = max((p.pts + p.duration) * p.time_base for p in packets)
            found.append((stream.codec_context.name, float(end)))
            container.seek(0)
        return found


# ---- the copy -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rotation": 90},
        {"times": [0, 0.5, 0.6, 1.4, 1.5, 3.0]},
        {"start": 1.5, "audio": True},
        {"size": (97, 65), "pix_fmt": "yuv444p", "audio": True},
        {"b_frames": 2},
        {"size": (400, 200)},
    ],
    ids=lambda changes: ", ".join(changes) or "plain",
)
@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_the_copy_has_the_frames_times_and_sound(tmp_path, changes, ending):
    count = len(changes.get("times", range(20)))
    path = write_clip(tmp_path / "v.mp4", frames=count, fps=10, **changes)
    target = tmp_path / f"out{ending}"
    assert write_labelled_video(path, target, WHOLE) in encoder.ENCODERS
    before, after = probe(path), probe(target)
    frames = frames_of(target)
    assert read_indices(frames) == list(range(count))
    # the last line is doubled where a side was odd
    factor = enlargement(before.width, before.height)
    sides = [side * factor + side * factor % 2 for side in (before.width, before.height)]
    assert [after.width, after.height] == sides
    assert after.rotation == 0
    np.testing.assert_allclose(after.times, before.times, atol=2e-3)  # MKV counts milliseconds
    if ending == ".mp4":
        assert after.duration == pytest.approx(before.duration, abs=1e-3)
    heard, kept = sound_of(path), sound_of(target)
    assert [codec for codec, _ in kept] == [codec for codec, _ in heard]
    assert bool(kept) == bool(changes.get("audio"))
    for (_, end), (_, copied) in zip(heard, kept, strict=True):
        # sound before the first picture is left out
        assert copied == pytest.approx(end - changes.get("start", 0.0), abs=0.1)


def test_colours_stay(tmp_path):
    path = write_clip(tmp_path / "v.mp4", frames=4, size=(640, 480))
    write_labelled_video(path, tmp_path / "out.mp4", WHOLE)
    before, after = frames_of(path).float(), frames_of(tmp_path / "out.mp4").float()
    upper = (before - after)[:, :, 250:300]
    assert upper.abs().mean() < 3
    assert upper.mean(dim=(0, 2, 3)).abs().max() < 2


def test_the_copy_is_upright(tmp_path):
    # the ramp is below the panel's upper edge, where a quarter of it shines through
    path = write_clip(tmp_path / "v.mp4", frames=3, size=(96, 64), rotation=270)
    write_labelled_video(path, tmp_path / "out.mp4", WHOLE)
    frame = frames_of(tmp_path / "out.mp4")[0]
    panel = Panel(frame.shape[2], frame.shape[1])
    assert is_upright(frame[:, : frame.shape[1] - panel.height])


def test_sound_that_mp4_does_not_hold_is_encoded_again(tmp_path):
    path = tmp_path / "v.mkv"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for _ in range(20):
            picture = np.zeros((64, 96, 3), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        for start in range(0, 32_000, 1600):
            noise = rng.integers(-9000, 9000, (1, 1600)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    write_labelled_video(path, tmp_path / "out.mp4", WHOLE)
    ((codec, end),) = sound_of(tmp_path / "out.mp4")
    assert codec == "aac"
    assert end == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("name", encoder.ENCODERS)
def test_every_encoder_works(tmp_path, monkeypatch, name):
    try:
        av.codec.Codec(name, "w")
    except ValueError:
        pytest.skip(f"this PyAV has no {name}")
    path = write_clip(tmp_path / "v.mp4", frames=12)
    monkeypatch.setattr(encoder, "ENCODERS", {name: encoder.ENCODERS[name]})
    work = write._Work(
        (str(path), "auto"), (str(tmp_path / "out.mp4"), ".mp4"), write._Look(tuple(WHOLE))
    )
    while work.go_on() < work.count:
        pass
    work.end()
    assert work.encoder.codec == name
    assert read_indices(frames_of(tmp_path / "out.mp4")) == list(range(12))


def test_without_any_encoder_it_says_so(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "v.mp4", frames=2)
    monkeypatch.setattr(encoder, "ENCODERS", {"no_such_codec": {}})
    with pytest.raises(RunFailed, match="none of the encoders no_such_codec"):
        write._Work(
            (str(path), "auto"), (str(tmp_path / "out.mp4"), ".mp4"), write._Look(tuple(WHOLE))
        )


def test_a_folder_of_pictures(tmp_path):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for i in range(5):
        picture = np.full((48, 64, 3), 50 * i, np.uint8)
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{i:03d}.png")
    write_labelled_video(tmp_path / "pictures", tmp_path / "out.mp4", WHOLE)
    assert frames_of(tmp_path / "out.mp4")[:, 0, 0, 0].tolist() == pytest.approx(
        [0, 50, 100, 150, 200], abs=4
    )


# ---- captions -----------------------------------------------------------------------------------


def test_each_window_shows_its_own_labels(tmp_path):
    """The panel of every frame, decoded again, is the one drawn for its time."""
    captions = [
        Caption(0.0, 1.0, (("run", 0.75), ("walk", 0.25))),
        Caption(1.0, 2.0, (("jump over a fence", 0.5),)),
        Caption(2.0, 2.4, (("<script>alert(1)</script>", 1.0),)),
    ]
    path = write_clip(tmp_path / "v.mp4", frames=24, fps=10, size=(400, 240))
    write_labelled_video(path, tmp_path / "out.mp4", captions)
    frames = frames_of(tmp_path / "out.mp4").permute(0, 2, 3, 1).numpy().astype(float)
    panel = Panel(400, 240)
    sources = frames_of(path).permute(0, 2, 3, 1).numpy()
    for i, (frame, source) in enumerate(zip(frames, sources, strict=True)):
        errors = []
        for caption in captions:
            picture = source.copy()
            panel.put(picture, caption)
            errors.append(np.abs(picture[-panel.height :] - frame[-panel.height :]).mean())
        assert int(np.argmin(errors)) == i // 10, (i, errors)
        assert min(errors) < 6


def test_a_caption_stays_until_the_next_begins():
    captions = [Caption(0.5, 1.0, ()), Caption(1.0, 2.0, ()), Caption(3.0, 4.0, ())]
    times = [0.0, 0.5, 0.99, 1.0, 2.5, 3.0, 9.0]
    assert [captions.index(caption_at(captions, t)) for t in times] == [0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("size", [(1, 1), (2, 2000), (4000, 2), (320, 180), (1920, 1080)])
def test_a_panel_fits_every_picture(size):
    width, height = size
    picture = np.full((height, width, 3), 255, np.uint8)
    name = "a name\nof two lines, much wider than any picture " * 20
    panel = Panel(width, height)
    panel.put(picture, Caption(0, 9.5, ((name, 0.9), ("שלום", 0.05), ("视频", 0.05), ("d", 0.0))))
    assert panel.height <= height
    assert (picture[: height - panel.height] == 255).all()
    if min(size) >= 180:
        drawn = picture[-panel.height :]
        assert drawn.max() > 200  # text
        assert drawn.min() < 80  # what it stands on


def test_small_pictures_are_enlarged_as_far_as_it_goes():
    assert [enlargement(*size) for size in ((96, 64), (320, 1), (640, 480))] == [4, 1, 1]
    assert [enlargement(*size) for size in ((2, 2000), (1, 1), (32, 480))] == [1, 320, 4]


# ---- what cannot be written ---------------------------------------------------------------------


def test_nothing_is_left_of_a_copy_that_fails(tmp_path):
    path = write_clip(tmp_path / "v.mp4", frames=40, gop=5)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 8] + b"\0" * 64)
    target = tmp_path / "out.mp4"
    target.write_text("what was there before")
    with pytest.raises(DecodeError):
        write_labelled_video(path, target, WHOLE)
    assert target.read_text() == "what was there before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4", "v.mp4"]


def test_nothing_is_left_after_an_interruption(tmp_path):
    path = write_clip(tmp_path / "v.mp4", frames=40)

    def interrupt(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_labelled_video(path, tmp_path / "out.mp4", WHOLE, on_progress=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_what_a_killed_writer_left_is_cleared_away_and_long_names_fit(tmp_path):
    path = write_clip(tmp_path / "v.mp4", frames=4)
    target = tmp_path / ("o" * 246 + ".MP4")

    def leave(share):
        left.extend(p for p in tmp_path.iterdir() if p.name.startswith("."))
        copy = tmp_path / (left[0].name[: -len("00000000.tmp")] + "0badbeef.tmp")
        copy.write_bytes(b"half a video")
        left.append(copy)

    left = []
    write_labelled_video(path, target, WHOLE, on_progress=leave)
    assert left[-1].exists()
    write_labelled_video(path, target, WHOLE)
    assert sorted(p.name for p in tmp_path.iterdir()) == [target.name, "v.mp4"]


def test_a_link_stays_a_link(tmp_path):
    path = write_clip(tmp_path / "v.mp4", frames=4)
    (tmp_path / "link.mp4").symlink_to(tmp_path / "real.mp4")
    write_labelled_video(path, tmp_path / "link.mp4", WHOLE)
    assert (tmp_path / "link.mp4").is_symlink()
    assert probe(tmp_path / "real.mp4").num_frames == 4


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("out.avi", "written as .mp4, .mov, .mkv"),
        ("out", "written as .mp4, .mov, .mkv"),
        ("nowhere/out.mp4", "there is no folder"),
        ("folder.mp4", "is a folder"),
        ("v.mp4", "is the video that is labelled"),
        ("link.mp4", "is the video that is labelled"),
    ],
)
def test_impossible_targets(tmp_path, target, says):
    path = write_clip(tmp_path / "v.mp4", frames=4)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=says):
        write_labelled_video(path, tmp_path / target, WHOLE)
    assert path.read_bytes() == before


def test_a_small_copy_has_every_frame_and_nothing_drawn(tmp_path):
    path = write_clip(tmp_path / "v.avi", frames=12, fps=10, size=(400, 200))
    assert write_small_copy(path, tmp_path / "out.mp4", longest=160) in encoder.ENCODERS
    info = probe(tmp_path / "out.mp4")
    assert (info.width, info.height, info.num_frames) == (160, 80, 12)
    frames = frames_of(tmp_path / "out.mp4")
    assert read_indices(frames) == list(range(12))
    assert is_upright(frames[0]), "the lower edge is the clip's, without a panel"
    small = write_clip(tmp_path / "s.avi", frames=2, size=(64, 48))
    write_small_copy(small, tmp_path / "same.mp4", longest=160)
    assert (probe(tmp_path / "same.mp4").width, probe(tmp_path / "same.mp4").height) == (64, 48)
