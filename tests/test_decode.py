"""Frames by index: the same pictures from all three libraries, and no harm from hostile files.

The expected indices are read back from the pixels of clips written here (tests/clips.py); the real
and hostile files of ../shared/data are gone through where they are there.
"""

import csv
import importlib.metadata
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from clips import (
    cut_clip,
    is_upright,
    read_index,
    read_indices,
    write_audio_only,
    write_clip,
    write_two_streams,
)

from hiera_video.errors import DecodeError, UserError
from hiera_video.video import container, decode, decoders, h264, limits
from hiera_video.video.container import VideoFile
from hiera_video.video.decode import FrameIndexError, VideoReader, probe, read_frames
from hiera_video.video.decoders import DECODERS, available_decoders
from hiera_video.video.readers import portions, remux
from hiera_video.video.readers import pyav as pyav_reader
from hiera_video.video.readers import torchcodec as torchcodec_reader

# Against PyAV, in levels of 255: mean and largest difference.
SAME_PIXELS = (0.5, 4)
# 4:2:0 beyond 8 bits or of odd size: decord spreads colour over pixels by another filter, and the
# codes of these clips are nothing but hard edges of colour.
DECORD_FILTERED = (2.0, 48)


@pytest.fixture(params=DECODERS)
def decoder(request):
    reason = available_decoders()[request.param]
    if reason:
        pytest.skip(f"{request.param} {reason}")
    return request.param


@pytest.fixture(autouse=True)
def _announce_anew():
    decoders._announce.cache_clear()
    decoders._fallback_reasons.clear()


def differences(a: torch.Tensor, b: torch.Tensor) -> tuple[float, int]:
    difference = (a.short() - b.short()).abs()
    return difference.float().mean().item(), difference.max().item()


# ---- the same frames whatever the file is like ----

CLIPS = {
    "plain.mp4": {},
    "b_frames.mp4": {"b_frames": 3},
    "one_key_frame.mp4": {"b_frames": 2, "gop": 600},
    "start_at_3.7_s.mp4": {"start": 3.7, "b_frames": 2},
    "variable.mp4": {"times": [i * i / 200 for i in range(30)], "b_frames": 2, "frames": 30},
    "variable.mkv": {"times": [i * i / 200 for i in range(30)], "frames": 30},
    "with_sound.mp4": {"audio": True, "frames": 20},
    "turned_90.mp4": {"rotation": 90, "frames": 6},
    "turned_180.mov": {"rotation": 180, "frames": 6},
    "turned_270.mp4": {"rotation": 270, "frames": 6},
    "turned_180.mkv": {"rotation": 180, "frames": 6},
    "turned_270.mkv": {"rotation": 270, "frames": 6},
    "one_frame.mp4": {"frames": 1},
    "two_frames.mp4": {"frames": 2},
    "120_fps.mp4": {"fps": 120},
    "1_fps.mp4": {"fps": 1, "frames": 5},
    "odd_444.mp4": {"size": (97, 63), "pix_fmt": "yuv444p", "frames": 6},
    "odd_420.mkv": {"size": (97, 63), "codec": "libvpx-vp9", "frames": 6},
    "narrow.mp4": {"size": (48, 34), "frames": 6},
    "422.mp4": {"pix_fmt": "yuv422p", "frames": 6},
    "full_range.mp4": {"pix_fmt": "yuvj420p", "frames": 6},
    "10_bit.mp4": {"pix_fmt": "yuv420p10le", "frames": 6},
    "12_bit.mkv": {"codec": "libx265", "pix_fmt": "yuv420p12le", "frames": 6},
    "open_groups.mp4": {"b_frames": 3, "options": {"x264-params": "open-gop=1"}},
    "open_groups.ts": {"b_frames": 3, "options": {"x264-params": "open-gop=1"}},
    "refresh.mp4": {"frames": 90, "options": {"x264-params": "intra-refresh=1:keyint=20"}},
    "hevc_open_groups.ts": {"codec": "libx265", "frames": 30},
    "b_frames.ts": {"b_frames": 3},
    "b_frames.flv": {"b_frames": 3, "frames": 30},
    "mpeg4.avi": {"codec": "mpeg4", "frames": 30},
    "vp9.webm": {"codec": "libvpx-vp9", "frames": 20},
    "name with spaces (1).mp4": {"frames": 4},
    "ünïcødé 视频.mp4": {"frames": 4},
    "frame%03d.mp4": {"frames": 4},
}


@pytest.mark.parametrize("name", CLIPS)
def test_every_decoder_gives_the_same_upright_frames(tmp_path, name):
    spec = CLIPS[name]
    path = write_clip(tmp_path / name, **spec)
    count = spec.get("frames", 64)
    everything = read_frames(path, range(count), "pyav")
    assert read_indices(everything) == list(range(count))
    assert all(is_upright(frame) for frame in everything)

    # Ends first, middle, repeats: whatever a seek could get wrong.
    wanted = sorted({count - 1, 1 % count, count // 2, count // 3, 0}, reverse=True) + [count // 2]
    for name_of in DECODERS:
        if available_decoders()[name_of]:
            continue
        info = probe(path, name_of)
        assert info.num_frames == count
        frames = read_frames(path, wanted, name_of, info=info)
        assert read_indices(frames) == wanted, name_of
        assert all(is_upright(frame) for frame in frames), name_of
        filtered = name_of == "decord" and name.startswith(("odd_420", "10_bit", "12_bit"))
        mean, largest = differences(frames, everything[wanted])
        limits = DECORD_FILTERED if filtered else SAME_PIXELS
        assert mean <= limits[0], name_of
        assert largest <= limits[1], name_of


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "ts"])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_trimmed_without_encoding(tmp_path, decoder, ending, b_frames):
    whole = write_clip(tmp_path / "whole.mp4", frames=60, gop=20, b_frames=b_frames)
    path = cut_clip(whole, tmp_path / f"trimmed.{ending}", seconds=0.9)
    # MP4 and MOV say what to hide; the others begin with the key frame.
    first = 27 if ending in ("mp4", "mov") else 20
    info = probe(path, decoder)
    assert info.num_frames == 60 - first
    assert read_indices(read_frames(path, range(info.num_frames), decoder)) == [*range(first, 60)]
    assert read_index(read_frames(path, [info.num_frames - 1], decoder, info=info)[0]) == 59


def test_stream_that_begins_inside_a_picture_group(tmp_path, decoder):
    whole = write_clip(tmp_path / "whole.ts", frames=60, gop=20, b_frames=2)
    data = whole.read_bytes()
    path = tmp_path / "joined_late.ts"
    path.write_bytes(data[188 * (len(data) // 188 // 4) :])
    info = probe(path, decoder)
    frames = read_indices(read_frames(path, range(info.num_frames), decoder))
    assert frames == list(range(frames[0], 60))
    assert frames[0] in (20, 40)


def test_packets_without_times_are_counted_by_decoding(tmp_path, decoder):
    path = write_clip(tmp_path / "b_frames.avi", codec="libx264", b_frames=2, frames=30)
    info = probe(path, decoder)
    assert info.num_frames == 30
    assert info.fps == pytest.approx(30)
    assert np.allclose(info.times, np.arange(30) / 30)
    wanted = [29, 3, 4, 0]
    if decoder == "pyav":
        assert read_indices(read_frames(path, wanted, "pyav")) == wanted
    else:
        with pytest.raises(DecodeError, match="time stamps are missing"):
            read_frames(path, wanted, decoder)
    assert read_indices(read_frames(path, wanted)) == wanted  # auto goes on to PyAV


def test_clock_that_starts_anew_keeps_order_and_times(tmp_path):
    first = write_clip(tmp_path / "a.ts", frames=20, b_frames=2)
    again = write_clip(tmp_path / "b.ts", frames=20, b_frames=2, first_index=20)
    path = tmp_path / "joined.ts"
    path.write_bytes(first.read_bytes() + again.read_bytes())
    info = probe(path)
    assert info.num_frames == 40
    assert read_indices(read_frames(path, range(40))) == list(range(40))
    assert np.all(np.diff(info.times) > 0)
    assert info.times[-1] == pytest.approx(39 / 30, abs=0.02)
    assert info.fps == pytest.approx(30, rel=0.02)


def test_hours_between_two_frames_are_not_waited_for(tmp_path):
    times = [i / 30 for i in range(10)] + [36_000 + i / 30 for i in range(10)]
    path = write_clip(tmp_path / "jump.ts", frames=20, times=times)
    info = probe(path)
    assert info.duration < 2
    assert info.fps == pytest.approx(30, rel=0.02)
    # In a container whose clock does not start anew, the gap is what the file says.
    times = [i / 30 for i in range(10)] + [600 + i / 30 for i in range(10)]
    still = probe(write_clip(tmp_path / "still.mp4", frames=20, times=times))
    assert still.times[10] == pytest.approx(600)


def test_size_that_changes_in_mid_stream(tmp_path, decoder):
    first = write_clip(tmp_path / "a.ts", frames=12, size=(96, 64))
    then = write_clip(tmp_path / "b.ts", frames=12, size=(160, 128), start=0.4, first_index=12)
    path = tmp_path / "joined.ts"
    path.write_bytes(first.read_bytes() + then.read_bytes())
    assert not probe(path).index.sequential  # one clock: only the size changes
    assert read_indices(read_frames(path, [0, 5], decoder)) == [0, 5]
    if decoder == "torchcodec":
        with pytest.raises(DecodeError):
            read_frames(path, [0, 20], decoder)
    else:
        frames = read_frames(path, [0, 20], decoder)
        assert frames.shape == (2, 3, 64, 96)
        assert read_indices(frames) == [0, 20]
    assert read_indices(read_frames(path, [20, 0])) == [20, 0]


# ---- which stream ----


def test_cover_picture_is_not_the_video(tmp_path, decoder):
    cover = write_clip(
        tmp_path / "c.mkv", frames=1, codec="mjpeg", pix_fmt="yuvj420p", first_index=999
    )
    video = write_clip(tmp_path / "v.mp4", frames=20, size=(64, 48))
    path = write_two_streams(tmp_path / "both.mkv", first=cover, second=video)
    info = probe(path, decoder)
    assert (info.num_frames, info.width, info.height) == (20, 64, 48)
    assert read_indices(read_frames(path, [0, 19], decoder)) == [0, 19]


def test_first_of_two_video_streams(tmp_path, decoder):
    small = write_clip(tmp_path / "a.mp4", frames=20, size=(64, 48))
    large = write_clip(tmp_path / "b.mp4", frames=30, size=(160, 128), first_index=100)
    path = write_two_streams(tmp_path / "both.mp4", first=small, second=large)
    info = probe(path, decoder)
    assert (info.num_frames, info.width, info.height) == (20, 64, 48)
    assert read_indices(read_frames(path, [19, 0], decoder)) == [19, 0]


# ---- what probe says ----


def test_probe_counts_rates_and_times(tmp_path, decoder):
    times = [0, 0.04, 0.1, 0.5, 0.6, 2.0]
    path = write_clip(tmp_path / "v.mp4", frames=6, times=times, start=1.5, rotation=90)
    info = probe(path, decoder)
    assert info.path == str(path)
    assert (info.num_frames, info.width, info.height, info.rotation) == (6, 96, 64, 90)
    assert (info.codec, info.decoder) == ("h264", decoder)
    assert np.allclose(info.times, times, atol=1e-3)
    assert info.fps == pytest.approx(5 / 2.0)
    assert info.duration == pytest.approx(6 / info.fps)


def test_exact_rate_where_the_times_are_rounded(tmp_path):
    path = write_clip(tmp_path / "ntsc.mkv", fps=30 / 1.001)
    assert probe(path).fps == pytest.approx(30 / 1.001, abs=1e-9)


# ---- indices ----


def test_order_repeats_and_kinds_of_indices(tmp_path, decoder):
    path = write_clip(tmp_path / "v.mp4", b_frames=2)
    wanted = [60, 3, 3, 17, 0, 60]
    for indices in (wanted, np.array(wanted), torch.tensor(wanted), np.array(wanted, np.uint8)):
        frames = read_frames(path, indices, decoder)
        assert (frames.dtype, frames.shape) == (torch.uint8, (6, 3, 64, 96))
        assert read_indices(frames) == wanted
    assert read_frames(path, [], decoder).shape == (0, 3, 64, 96)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 64], "frame 64 of .*; it has 64 frames, so 0 to 63 are allowed"),
        ([-1], "frame -1 of .*0 to 63"),
    ],
)
def test_index_out_of_range(tmp_path, indices, message):
    path = write_clip(tmp_path / "v.mp4")
    with pytest.raises(FrameIndexError, match=message) as caught:
        read_frames(path, indices)
    assert isinstance(caught.value, (IndexError, UserError))


@pytest.mark.parametrize("indices", [[0.5], [[1, 2]], [True], ["a"]])
def test_indices_of_another_kind(tmp_path, indices):
    path = write_clip(tmp_path / "v.mp4", frames=4)
    with pytest.raises(UserError, match="flat list of whole numbers"):
        read_frames(path, indices)


def test_reader_serves_many_reads(tmp_path, decoder):
    path = write_clip(tmp_path / "v.mp4", b_frames=2)
    with VideoReader(path, decoder) as video:
        for start in (40, 0, 20, 63, 10):
            wanted = list(range(start, min(start + 12, 64), 3))
            assert read_indices(video.read(wanted)) == wanted


# ---- only what is needed ----


def test_each_wanted_frame_is_converted_once(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "v.mp4", b_frames=2)
    converted = []
    write = pyav_reader.RgbConverter.write
    monkeypatch.setattr(
        pyav_reader.RgbConverter,
        "write",
        lambda self, frame, row: (converted.append(frame.pts), write(self, frame, row))[1],
    )
    read_frames(path, [50, 3, 50, 3, 3], "pyav")
    assert len(converted) == 2


def test_runs_start_at_the_key_frame_before_and_skip_groups_between(tmp_path):
    path = write_clip(tmp_path / "v.mp4", frames=240, gop=40)
    reader = pyav_reader.PyavReader(VideoFile(str(path)), probe(path).index)
    runs = reader._plan(np.array([3, 5, 90, 239]))
    assert [(run.key, run.last) for run in runs] == [(0, 5), (80, 90), (200, 239)]


def test_packets_between_two_groups_are_not_decoded(tmp_path):
    path = write_clip(tmp_path / "v.mp4", frames=64, gop=4)
    index = probe(path).index
    (run,) = pyav_reader.PyavReader(VideoFile(str(path)), index)._plan(np.array([0, 9, 17]))
    assert run.unneeded == {*index.pts[1:8].tolist(), *index.pts[10:16].tolist()}
    assert read_indices(read_frames(path, [0, 9, 17, 63], "pyav")) == [0, 9, 17, 63]


def _spoil(path, first: int, last: int):
    """Zero the data of packets `first` to `last` (in decode order) of an MP4 file."""
    import av

    with av.open(str(path)) as file:
        packets = [(p.pos, p.size) for p in file.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for position, size in packets[first : last + 1]:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)


def test_damage_that_is_not_on_the_way_does_not_matter(tmp_path, decoder):
    path = write_clip(tmp_path / "v.mp4", frames=120, gop=20)
    _spoil(path, 45, 59)
    wanted = [7, 41, 70, 100]
    try:
        frames = read_frames(path, wanted, decoder)
    except DecodeError:
        # decord's thread decodes ahead of what it is asked for, and may meet the damage first
        assert decoder == "decord"
    else:
        assert read_indices(frames) == wanted


def test_damage_on_the_way_is_an_error(tmp_path, decoder):
    path = write_clip(tmp_path / "v.mp4", frames=60, gop=20)
    _spoil(path, 45, 48)
    with pytest.raises(DecodeError, match=r"v\.mp4: .*") as caught:
        read_frames(path, [30, 47, 59], decoder)
    assert caught.value.path == str(path)


# ---- files that are no videos ----

TEXTS = {
    "page.mp4": ("<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "pointer.mp4": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "Git LFS pointer.*git lfs pull",
    ),
    "notes.mp4": ("nothing to see here\n" * 50, "text file"),
    "list.m3u8": ("#EXTM3U\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n", "playlist"),
    "list.mp4": ("#EXTM3U\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n", "playlist"),
    "list.ffconcat": ("ffconcat version 1.0\nfile '{video}'\n", "playlist"),
    "list.sdp": ("v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n", "playlist"),
    "list.mpd": ("<?xml version='1.0'?><MPD><BaseURL>{video}</BaseURL></MPD>", "playlist"),
    # An ID3 tag in front, which FFmpeg steps over when it guesses what a file is.
    "tagged.m3u8": ("ID3\3\0\0\0\0\0\0#EXTM3U\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n", "not a"),
    "tagged.mp4": ("ID3\3\0\0\0\0\0\0#EXTM3U\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n", "not a"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_and_playlists_are_refused(tmp_path, decoder, name):
    video = write_clip(tmp_path / "secret.mp4", frames=4)
    text, reason = TEXTS[name]
    path = tmp_path / name
    path.write_text(text.replace("{video}", str(video)))
    with pytest.raises(DecodeError, match=reason) as caught:
        read_frames(path, [0], decoder)
    assert str(caught.value) == f"{path}: {caught.value.reason}"


def test_picture_sequences_are_not_gathered(tmp_path, decoder):
    for i in range(3):
        write_clip(
            tmp_path / f"p{i}.jpg", frames=1, codec="mjpeg", pix_fmt="yuvj420p", format="image2"
        )
    pattern = tmp_path / "p%d.jpg"
    pattern.write_bytes((tmp_path / "p0.jpg").read_bytes())
    with pytest.raises(DecodeError):
        read_frames(pattern, [0], decoder)


def test_reasons_for_what_is_no_file(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    cut = write_clip(tmp_path / "cut.mp4", frames=8)
    data = cut.read_bytes()
    cut.write_bytes(data[: data.index(b"moov") - 4])  # the index of an MP4 comes last
    write_audio_only(tmp_path / "sound.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, reason in {
        "missing.mp4": "no such file",
        "empty.mp4": "empty",
        "noise.mp4": "not a video file",
        "cut.mp4": "damaged or unfinished MP4",
        "sound.mp4": "no video stream .only audio",
        "pipe.mp4": "a pipe or a device",
        "": "a folder",
    }.items():
        with pytest.raises(DecodeError, match=reason):
            probe(tmp_path / name)
    with pytest.raises(DecodeError, match=r"begin with ftp:// are not opened; allowed are s3://"):
        probe("ftp://example.org/v.mp4")
    with pytest.raises(DecodeError, match="null byte"):
        probe("a\0b.mp4")
    with pytest.raises(UserError, match="str or Path"):
        probe(b"v.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(tmp_path):
    path = write_clip(tmp_path / "v.mp4", frames=4)
    path.chmod(0)
    with pytest.raises(DecodeError, match="permission denied"):
        probe(path)


@pytest.mark.parametrize("name", ["-i.mp4", "file:x.mp4", "concat:a.mp4", "pipe:0"])
def test_names_that_look_like_something_else(tmp_path, monkeypatch, decoder, name):
    write_clip(tmp_path / "v.mp4", frames=4).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert read_indices(read_frames(name, [3, 0], decoder)) == [3, 0]


def test_errors_travel_between_processes(tmp_path):
    with pytest.raises(DecodeError) as caught:
        probe(tmp_path)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.path, copy.reason) == (
        str(caught.value),
        caught.value.path,
        caught.value.reason,
    )
    assert str(DecodeError("the whole text")) == "the whole text"


# ---- limits ----


def test_pictures_beyond_the_limit(tmp_path, monkeypatch, decoder):
    path = write_clip(tmp_path / "v.mp4", frames=4, size=(128, 96))
    monkeypatch.setattr(limits, "MAX_PIXELS", 128 * 96 - 1)
    with pytest.raises(DecodeError, match="128x96, above the limit of 12,287 pixels"):
        read_frames(path, [0], decoder)


def test_result_beyond_the_limit(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "v.mp4", frames=4, size=(64, 32))
    monkeypatch.setattr(decode, "MAX_OUTPUT_BYTES", 2 * 3 * 64 * 32)
    assert len(read_frames(path, [0, 1])) == 2
    with pytest.raises(DecodeError, match=r"3 frames of 64x32 .*at most 2"):
        read_frames(path, [0, 1, 1])


def test_time_limit(tmp_path, decoder):
    path = write_clip(tmp_path / "v.mp4", frames=300, size=(64, 32))
    info = probe(path)
    with pytest.raises(DecodeError, match=r"not decoded within 1e-06 s; a larger time_limit"):
        read_frames(path, range(300), decoder, info=info, time_limit=1e-6)
    with pytest.raises(DecodeError, match="not decoded"):
        probe(path, decoder, time_limit=1e-6)


def test_copies_in_memory_have_a_limit(tmp_path, monkeypatch, decoder):
    path = write_clip(tmp_path / "v.ts", frames=20)
    monkeypatch.setattr(remux, "MAX_BYTES", 1000)
    if decoder == "pyav":
        assert read_indices(read_frames(path, [19], decoder)) == [19]
    else:
        with pytest.raises(DecodeError, match="copied into memory"):
            read_frames(path, [19], decoder)


def test_what_cannot_be_stopped_is_done_in_portions(tmp_path, monkeypatch, decoder):
    path = write_clip(tmp_path / "v.mp4", frames=120, gop=60, size=(64, 32))
    index = probe(path).index
    assert index.packets_to_decode(np.array([0, 3, 59, 60, 119])).tolist() == [1, 3, 56, 1, 59]
    monkeypatch.setattr(portions, "LARGEST", 40 * 64 * 32)
    wanted = [0, 20, 39, 60, 90, 119]
    parts = list(portions.portions(str(path), index, np.array(wanted), decoder))
    assert [part.tolist() for part in parts] == [[0, 20, 39], [60, 90], [119]]
    assert read_indices(read_frames(path, wanted, decoder)) == wanted
    if decoder == "pyav":  # it looks at the clock after every packet
        assert read_indices(read_frames(path, [59], decoder)) == [59]
    else:
        with pytest.raises(DecodeError, match=f"59 is too far from a key frame for {decoder}"):
            read_frames(path, [59], decoder)


# ---- which decoder ----


def test_unknown_decoder(tmp_path):
    with pytest.raises(UserError, match="decoder='opencv': choose one of auto, torchcodec, pyav"):
        probe(tmp_path / "v.mp4", "opencv")


@pytest.fixture
def without_torchcodec(monkeypatch):
    for module in ("torchcodec", "torchcodec.decoders"):  # its import fails
        monkeypatch.setitem(sys.modules, module, None)
    decoders.decoder_failure.cache_clear()
    yield
    decoders.decoder_failure.cache_clear()


@pytest.mark.usefixtures("without_torchcodec")
def test_missing_decoder_is_named_skipped_and_refused(tmp_path, caplog, monkeypatch):
    path = write_clip(tmp_path / "v.mp4", frames=4)
    assert available_decoders()["torchcodec"].startswith("cannot be imported")
    assert available_decoders()["pyav"] is None
    with caplog.at_level(logging.INFO, "hiera_video"):
        assert probe(path).decoder == "pyav"
        read_frames(path, [0])
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "decoding videos with pyav"
    monkeypatch.setattr(decoders, "SMALL_PICTURE", 0)  # torchcodec would be faster
    caplog.clear()
    with caplog.at_level(logging.INFO, "hiera_video"):
        assert probe(path).decoder == "pyav"
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("decoding videos with pyav (torchcodec cannot be imported")
    with pytest.raises(UserError, match=r"'torchcodec' does not work here.*use one of auto, pyav"):
        probe(path, "torchcodec")


def test_a_torchcodec_that_gives_other_frames_is_not_used(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "v.mp4", frames=4)
    version = importlib.metadata.version
    for installed, old in (
        ("0.7.0+cpu", True),
        ("0.14.0", True),
        ("0.15.0", False),
        ("1.2", False),
    ):
        monkeypatch.setattr(
            importlib.metadata,
            "version",
            lambda name, v=installed: v if name == "torchcodec" else version(name),
        )
        decoders.decoder_failure.cache_clear()
        try:
            reason = available_decoders()["torchcodec"]
            assert str(reason).startswith(f"is too old ({installed}; before 0.15") == old
            if old:
                assert probe(path).decoder == "pyav"
                with pytest.raises(UserError, match=r"it is too old \(0.*use one of auto, pyav"):
                    probe(path, "torchcodec")
        finally:
            decoders.decoder_failure.cache_clear()


def test_library_that_loads_but_does_not_decode(tmp_path, monkeypatch):
    def fail(name):
        raise RuntimeError("Could not load libtorchcodec: libavutil.so.59 not found\nmore lines")

    monkeypatch.setattr(decoders, "_decode_sample", fail)
    decoders.decoder_failure.cache_clear()
    try:
        reasons = available_decoders()
        assert reasons["pyav"] is None
        if not str(reasons["torchcodec"]).startswith(("cannot be imported", "is too old")):
            assert "libavutil.so.59 not found" in reasons["torchcodec"]
            assert "more lines" not in reasons["torchcodec"]
    finally:
        decoders.decoder_failure.cache_clear()


def test_picked_decoder_is_announced_once(tmp_path, caplog, decoder):
    path = write_clip(tmp_path / "v.mp4", frames=4)
    with caplog.at_level(logging.INFO, "hiera_video"):
        for _ in range(3):
            read_frames(path, [0], decoder)
    assert [r.getMessage() for r in caplog.records] == [f"decoding videos with {decoder}"]


@pytest.fixture
def with_torchcodec():
    if reason := available_decoders()["torchcodec"]:
        pytest.skip(f"torchcodec {reason}")


@pytest.mark.usefixtures("with_torchcodec")
def test_auto_takes_the_decoder_that_is_faster_for_the_file(tmp_path, monkeypatch, caplog):
    small = write_clip(tmp_path / "v.mp4", frames=4)
    hevc = write_clip(tmp_path / "hevc.mp4", frames=4, codec="libx265")
    copied = write_clip(tmp_path / "v.ts", frames=4)
    with caplog.at_level(logging.INFO, "hiera_video"):
        assert [probe(path).decoder for path in (small, hevc)] == ["pyav", "torchcodec"]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["decoding videos with pyav", "decoding videos with torchcodec"]
    monkeypatch.setattr(decoders, "SMALL_PICTURE", 0)
    assert [probe(path).decoder for path in (small, copied)] == ["torchcodec", "pyav"]
    assert probe(small, "pyav").decoder == "pyav"


@pytest.mark.usefixtures("with_torchcodec")
def test_what_pyav_cannot_decode_is_given_to_torchcodec_and_not_to_decord(tmp_path, monkeypatch):
    def fail(self, wanted, size, deadline):
        raise DecodeError(self.path, "pyav: no luck")

    path = write_clip(tmp_path / "v.mp4", frames=10)
    monkeypatch.setattr(decode.PyavReader, "parts", fail)
    with VideoReader(path) as video:
        assert video.info.decoder == "pyav"
        assert read_indices(video.read([7, 2])) == [7, 2]
        assert video.info.decoder == "torchcodec"
    assert decoders.after_failure(("pyav", "torchcodec", "decord")) == ("torchcodec",)
    assert decoders.after_failure(("pyav", "decord")) == ()
    assert decoders.after_failure(("torchcodec", "pyav", "decord")) == ("pyav", "decord")


@pytest.mark.usefixtures("with_torchcodec")
def test_auto_goes_on_to_the_next_decoder(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(decoders, "SMALL_PICTURE", 0)  # torchcodec first

    def fail(self, wanted, size, deadline):
        raise DecodeError(self.path, "torchcodec: no luck")

    path = write_clip(tmp_path / "v.mp4", frames=10)
    monkeypatch.setattr(decode.TorchcodecReader, "parts", fail)
    with caplog.at_level(logging.INFO, "hiera_video"), VideoReader(path) as video:
        assert read_indices(video.read([7, 2])) == [7, 2]
        assert video.info.decoder == "pyav"
        read_frames(path, [5])  # the same reason again: said once
    said = [record.getMessage() for record in caplog.records]
    assert said[1:] == [f"{path}: torchcodec: no luck (decoding such files with pyav)"]
    with pytest.raises(DecodeError, match="no luck"):
        read_frames(path, [7], "torchcodec")


# ---- one open, one index ----


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_file_is_opened_once_for_the_scan_and_all_reads(tmp_path, monkeypatch, ending):
    path = write_clip(tmp_path / f"v.{ending}", b_frames=2)
    opened = []
    monkeypatch.setattr(
        container,
        "open_container",
        lambda *args, open_=container.open_container: (opened.append(args), open_(*args))[1],
    )
    with VideoReader(path, "pyav") as video:
        for wanted in ([50, 53], [3], [63], [0, 20]):
            assert read_indices(video.read(wanted)) == wanted
    assert len(opened) == 1


def with_own_scan_and_with_our_index(monkeypatch, path, wanted):
    """What torchcodec gives, each way: frames, or a DecodeError."""
    results = []
    for limit in (1 << 60, -1):
        monkeypatch.setattr(torchcodec_reader, "LARGE_PACKETS", limit)
        try:
            results.append(read_frames(path, wanted, "torchcodec"))
        except DecodeError as error:
            results.append(error)
    return results


@pytest.mark.usefixtures("with_torchcodec")
@pytest.mark.parametrize("name", CLIPS)
def test_torchcodec_gives_the_same_frames_without_its_own_scan(tmp_path, monkeypatch, name):
    path = write_clip(tmp_path / name, **CLIPS[name])
    count = CLIPS[name].get("frames", 64)
    wanted = sorted({count - 1, count // 2, count // 3, 1 % count}, reverse=True)
    scanned, handed = with_own_scan_and_with_our_index(monkeypatch, path, wanted)
    assert torch.equal(scanned, handed)


@pytest.mark.usefixtures("with_torchcodec")
def test_shared_files_come_the_same_without_torchcodecs_own_scan(shared_data, monkeypatch):
    """The odd and the hostile ones: no frame differs, and nothing that was read is refused."""
    compared = 0
    for path in sorted(shared_data.glob("clips/*.*")) + sorted(shared_data.glob("hostile/*.*")):
        try:
            info = probe(path)
        except DecodeError:
            continue
        last = info.num_frames - 1
        wanted = sorted({last // 3, last // 2, min(last // 2 + 4, last)}, reverse=True)
        scanned, handed = with_own_scan_and_with_our_index(monkeypatch, path, wanted)
        if isinstance(scanned, torch.Tensor):
            assert torch.equal(scanned, handed), path.name
            compared += 1
    assert compared > 30


# ---- info handed on ----


def test_info_spares_the_scan(tmp_path, monkeypatch, decoder):
    path = write_clip(tmp_path / "v.mp4", b_frames=2)
    info = pickle.loads(pickle.dumps(probe(path)))
    monkeypatch.setattr(decode, "describe", None)
    assert read_indices(read_frames(path, [40, 4], decoder, info=info)) == [40, 4]


def test_info_of_another_file(tmp_path):
    info = probe(write_clip(tmp_path / "a.mp4", frames=4))
    other = write_clip(tmp_path / "b.mp4", frames=4)
    with pytest.raises(UserError, match=r"info is of .*a\.mp4"):
        read_frames(other, [0], info=info)


def test_info_of_a_file_since_replaced(tmp_path):
    path = write_clip(tmp_path / "v.mp4", frames=30, gop=30)
    info = probe(path)
    write_clip(path, frames=10, gop=3, first_index=500)
    os.utime(path, (time.time() + 5, time.time() + 5))
    assert read_indices(read_frames(path, [9], info=info)) == [509]
    with pytest.raises(FrameIndexError, match="10 frames"):
        read_frames(path, [20], info=info)


# ---- inside ----


def test_starting_points_of_h264():
    idr, slice_, sps = b"\x65\x88", b"\x41\x9a", b"\x67\x42"
    at_once = b"\x06\x05\x01\x00\x06\x01\xc4\x80"  # another message first, then recovery point 0
    later = b"\x06\x06\x01\x2c\x80"

    def annex_b(*units):
        return b"".join(b"\0\0\0\1" + unit for unit in units)

    def mp4(*units):
        return b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)

    avcc = b"\x01\x42\x00\x1e\xff"
    for packet, extradata in ((annex_b, b""), (mp4, avcc)):
        assert h264.starting_point(packet(sps, idr), extradata) == "idr"
        assert h264.starting_point(packet(at_once, slice_), extradata) == "recovery"
        assert h264.starting_point(packet(later, slice_), extradata) is None
        assert h264.starting_point(packet(slice_), extradata) is None
    for garbage in (b"", b"\0", b"\0\0\1", b"\xff" * 40, b"\x06\x06", avcc, mp4(b"\x06\xff\xff")):
        for extradata in (None, b"", b"\x01", avcc):
            assert h264.starting_point(garbage, extradata) in (None, "idr", "recovery")


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_no_threads_are_left_behind(tmp_path):
    """Threads of FFmpeg alive at a fork hang the child."""
    path = write_clip(tmp_path / "v.mp4", b_frames=2)
    info = probe(path)
    before = len(os.listdir("/proc/self/task"))
    with VideoReader(path, "pyav", info=info) as video:
        video.read(range(0, 64, 4))
        assert len(os.listdir("/proc/self/task")) <= before


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    return done.stdout


def test_reading_leaves_the_environment_as_it_was(tmp_path, decoder):
    """What one process sets there, each process that it starts inherits.

    decord takes its limits from there when it is loaded: one that was set after loading did nothing
    in this process, and made those of a loader refuse the last frames of whole files.
    """
    path = write_clip(tmp_path / "v.mp4", frames=60)
    before = dict(os.environ)
    wanted = list(range(0, 60, 4))
    assert read_indices(read_frames(path, wanted, decoder)) == wanted
    assert dict(os.environ) == before
    code = f"""
        from hiera_video.video.decode import read_frames
        print(read_frames({str(path)!r}, {wanted}, {decoder!r}).shape[0])
    """
    assert _python(code).split() == [str(len(wanted))]


# ---- the shared files ----

NOT_BY_DECORD = {"derived_av1_pancake.mp4"}  # its FFmpeg of 2020 has no AV1 decoder
COVER = "derived_cover_first.mkv"  # the manifest counts the cover picture


def _shared_clips(folder):
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def test_shared_clips_are_the_same_in_all_decoders(shared_data):
    clips = shared_data / "clips"
    working = [name for name in DECODERS if available_decoders()[name] is None]
    for name, row in _shared_clips(clips).items():
        if name == "derived_audio_only.mp4":
            with pytest.raises(DecodeError, match="no video stream"):
                probe(clips / name)
            continue
        infos = {decoder: probe(clips / name, decoder) for decoder in working}
        info = infos["pyav"]
        if row["pyav_frames"] and name != COVER:
            assert info.num_frames == int(row["pyav_frames"]), name
        if row["rotation"]:
            assert info.rotation == int(row["rotation"]) % 360, name
        last = info.num_frames - 1
        wanted = [last // 3 + 1 if last else 0, last // 3, 0, last // 3]
        if info.width * info.height < 500_000:
            wanted.append(last)
        reference = read_frames(clips / name, wanted, "pyav", info=info)
        assert reference.shape == (len(wanted), 3, info.height, info.width)
        for decoder in working:
            other = infos[decoder]
            assert (other.num_frames, other.fps) == (info.num_frames, info.fps), name
            assert np.array_equal(other.times, info.times)
            if decoder == "decord" and name in NOT_BY_DECORD:
                with pytest.raises(DecodeError, match="decord"):
                    read_frames(clips / name, wanted, decoder, info=info)
                continue
            frames = read_frames(clips / name, wanted, decoder, info=info)
            mean, largest = differences(frames, reference)
            filtered = decoder == "decord" and "hevc10" in name
            assert mean <= (1.0 if filtered else SAME_PIXELS[0]), (name, decoder, mean)
            assert largest <= (32 if filtered else SAME_PIXELS[1]), (name, decoder, largest)


# What each hostile file must come to by "auto": frames read, or a part of the reason.
HOSTILE = {
    "all_pts_zero.mp4": "no frame can be decoded",
    "bitflips_heavy.mp4": "damaged",
    "bomb_16000x16000_2frames.mkv": "16000x16000, above the limit",
    "claims_0x0.mp4": 16,
    "claims_65535x65535.mp4": 16,
    "concat_script.ffconcat": "playlist",
    "html_renamed.mp4": "web page",
    "lfs_pointer.mp4": "Git LFS pointer",
    "mdat_all_zero.mp4": "no frame can be decoded",
    "moov_missing.mp4": "damaged or unfinished MP4",
    "mp4_named.avi": 16,
    "negative_start.mkv": 16,
    "playlist_local_file.m3u8": "playlist",
    "real_decord_corrupted.mp4": "damaged",
    "res_change_midstream.ts": 16,
    "stsz_count_2e9.mp4": "damaged or unfinished MP4",
    "text_renamed.mp4": "text file",
    "thin_2x2000.mp4": 3,
    "timescale_0.mp4": 1,
    "timestamp_jump.ts": 13,
    "truncated_50.webm": 10,
    "truncated_70.mkv": 16,
    "truncated_faststart_30.mp4": 16,
    "wide_4000x2.mp4": 3,
    "zero_byte.mp4": "empty",
}


def test_hostile_files_do_no_harm(shared_data):
    """In one process of its own: neither crash nor hang, nor 300 MiB more than the imports.

    Pages of libraries are left out: which of them are in memory when is the system's choice.
    """
    code = f"""
        import pathlib, torch
        from hiera_video.errors import DecodeError
        from hiera_video.video.decode import DECODERS, available_decoders
        from hiera_video.video.decode import probe, read_frames
        available_decoders()
        def peak():  # not getrusage's, which begins with the peak of the process that started it
            status = pathlib.Path("/proc/self/status").read_text()
            kib = [int(status.split(key)[1].split()[0]) for key in ("VmHWM:", "RssFile:")]
            return (kib[0] - kib[1]) >> 10
        start = peak()
        for path in sorted(pathlib.Path({str(shared_data / "hostile")!r}).iterdir()):
            for decoder in ("auto", *DECODERS):
                if decoder != "auto" and available_decoders()[decoder]:
                    continue
                try:
                    info = probe(path, decoder, time_limit=30)
                    wanted = range(0, min(64, info.num_frames), 4)
                    frames = read_frames(path, wanted, decoder, time_limit=30)
                    assert frames.shape == (len(wanted), 3, info.height, info.width)
                    result = str(len(frames))
                except DecodeError as error:
                    assert error.path == str(path)
                    result = error.reason
                print(path.name, decoder, peak() - start, result, sep="\\t", flush=True)
    """
    results = {}
    for line in _python(code).splitlines():
        name, decoder, mebibytes, result = line.split("\t")
        assert int(mebibytes) < 300, line
        results[name, decoder] = result
    assert {name for name, _ in results} >= set(HOSTILE)
    for name, expected in HOSTILE.items():
        assert str(expected) in results[name, "auto"], (name, results[name, "auto"])


def test_frames_of_damaged_files_are_the_true_ones(shared_data):
    """A file whose end is missing gives the same pictures as the whole file, as far as it goes."""
    whole = shared_data / "clips" / "mmaction_demo_arm_wrestling.mp4"
    wanted = list(range(0, 64, 16))
    expected = read_frames(whole, wanted, "pyav")
    for name in ("truncated_faststart_30.mp4", "claims_0x0.mp4", "mp4_named.avi"):
        got = read_frames(shared_data / "hostile" / name, wanted)
        assert differences(got, expected)[0] <= SAME_PIXELS[0]


# ---- parts ----


@pytest.fixture
def fed(monkeypatch):
    """The packets that PyAV's reader takes from files, by their time."""
    times = []
    demux = pyav_reader.demux

    def spy(container, stream):
        for packet in demux(container, stream):
            times.append(packet.pts)
            yield packet

    monkeypatch.setattr(pyav_reader, "demux", spy)
    return times


@pytest.mark.parametrize("name", ["plain.mp4", "one_key_frame.mp4", "mpeg4.avi", "open_groups.ts"])
def test_parts_are_what_one_read_gives(tmp_path, decoder, name):
    path = write_clip(tmp_path / name, **CLIPS[name])
    with VideoReader(path, decoder) as video:
        wanted = np.array([0, 1, 5, 6, 7, 20, 21, 22, 29])
        whole = video.read(wanted)
        for size in (1, 4, 100):
            parts = list(video.parts(wanted, size))
            assert [len(part) for part, _ in parts] == [
                len(wanted[i : i + size]) for i in range(0, len(wanted), size)
            ]
            assert np.array_equal(np.concatenate([part for part, _ in parts]), wanted)
            assert torch.equal(torch.cat([frames for _, frames in parts]), whole)


def test_small_parts_decode_no_packet_twice(tmp_path, fed):
    path = write_clip(tmp_path / "a.mp4", b_frames=3, gop=600)
    with VideoReader(path, "pyav") as video:
        wanted = np.arange(2, 60, 3)
        list(video.parts(wanted, len(wanted)))
        in_one = list(fed)
        fed.clear()
        list(video.parts(wanted, 1))
    assert fed == in_one
    assert len(set(fed)) == len(fed)


def test_parts_refuse_what_is_not_ascending(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=5)
    with VideoReader(path) as video:
        for wanted, size in (([1, 1], 2), ([2, 1], 2), ([1, 2], 0)):
            with pytest.raises(ValueError, match="ascending"):
                next(video.parts(np.array(wanted), size))
        with pytest.raises(FrameIndexError, match="frame 5"):
            next(video.parts(np.array([5]), 1))


def test_a_decoder_that_fails_between_two_parts_is_followed_by_the_next(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", frames=20)
    read = pyav_reader.PyavReader.parts

    def fails_later(self, wanted, size, deadline):
        yield next(read(self, wanted, size, deadline))
        raise DecodeError(self.path, "no more")

    with VideoReader(path, "pyav") as video:
        expected = video.read(range(20))
        monkeypatch.setattr(pyav_reader.PyavReader, "parts", fails_later)
        with pytest.raises(DecodeError, match="no more"):
            list(video.parts(np.arange(20), 5))
    if available_decoders()["torchcodec"]:
        pytest.skip("needs torchcodec")
    with VideoReader(path) as video:
        video._decoders = ("pyav", "torchcodec")
        parts = list(video.parts(np.arange(20), 5))
        assert video.info.decoder == "torchcodec"
    assert [part[0] for part, _ in parts] == [0, 5, 10, 15]
    assert differences(torch.cat([frames for _, frames in parts]), expected) <= SAME_PIXELS
