"""Streams are labelled as they come: the newest window, in bounded memory, and nothing else opened.

Windows of one second, and times in which nothing comes of one or two: real processes take them.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections import deque
from fractions import Fraction

import numpy as np
import pytest
import torch
from clips import read_index, write_clip
from test_predict import CLASSES, SPEC, tiny_model, write_checkpoint

from hiera_video import Predictor
from hiera_video.cli import INTERRUPTED, READER_GONE
from hiera_video.clip_spec import ClipSpec
from hiera_video.commands import predict as command
from hiera_video.commands.stream_flags import check_stream_arguments
from hiera_video.errors import DecodeError, RunFailed, UserError
from hiera_video.streaming import child, pictures, sources
from hiera_video.streaming.byte_sources import GrowingFile, WebAddress
from hiera_video.streaming.decoding import StreamClock
from hiera_video.streaming.label import clip_seconds, label_stream, stream_process
from hiera_video.streaming.sources import Source, parse_source
from hiera_video.streaming.windows import Cut, WindowCutter
from hiera_video.video.decode import read_frames
from hiera_video.video.sampling import window_clips

FRAGMENTED = {"movflags": "+frag_keyframe+empty_moov"}
FORMATS = {"mpegts": "v.ts", "matroska": "v.mkv", "mp4": "v.mp4"}


@pytest.fixture(scope="module")
def process():
    with stream_process() as pool:
        yield pool


@pytest.fixture(scope="module")
def predictor():
    return Predictor(
        tiny_model(), spec=SPEC, classes=CLASSES, views=(2, 3), device="cpu", decoder="pyav"
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("streaming") / "tiny.pyth"))


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    """Six seconds, as broadcast."""
    return write_clip(tmp_path_factory.mktemp("streaming") / "v.ts", frames=180)


def labelled(predictor, source, process, **settings):
    source = source if isinstance(source, Source) else parse_source(str(source))
    settings = {"seconds": 1.0, "timeout": 1.0, "top_k": 5, **settings}
    return list(label_stream(predictor, source, process, **settings))


def plain(windows):
    return [(window.start, window.end, list(window.labels)) for window in windows]


def fragmented(path, **settings):
    """An MP4 as it is written into a pipe."""
    import av

    whole = write_clip(path.with_suffix(".whole.mp4"), **settings)
    with av.open(str(whole)) as source, av.open(str(path), "w", options=FRAGMENTED) as target:
        stream = source.streams.video[0]
        twin = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size:
                packet.stream = twin
                target.mux(packet)
    return path


def in_format(folder, name, **settings):
    """The bytes of a clip as a pipe carries them."""
    path = folder / FORMATS[name]
    return (fragmented if name == "mp4" else write_clip)(path, **settings).read_bytes()


# ---- the same labels as --timeline ----


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("v.mp4", {}),
        ("v.mp4", {"b_frames": 2, "fps": 25}),
        ("v.mp4", {"rotation": 90, "size": (97, 65), "pix_fmt": "yuv444p"}),
        ("v.mp4", {"start": 1.5, "audio": True, "fps": Fraction(30000, 1001)}),
        ("v.ts", {"b_frames": 2}),
        ("v.mkv", {"fps": 24}),
        ("v.avi", {"b_frames": 2}),
    ],
)
@pytest.mark.parametrize("seconds", [1.0, 0.3])
def test_a_complete_file_gets_the_labels_of_its_timeline(
    predictor, process, tmp_path, name, changes, seconds
):
    path = write_clip(tmp_path / name, frames=75, **changes)
    windows = labelled(predictor, path, process, seconds=seconds)
    assert plain(windows) == plain(predictor.timeline(path, seconds))
    assert {window.dropped for window in windows} == {0}


def test_a_clip_that_looks_past_its_window_gets_the_same_frames(predictor, process, tmp_path):
    """The window is shorter than the clip, and the whole stream shorter than a clip."""
    spec = ClipSpec(num_frames=4, sampling_rate=8, crop_size=64)
    model = Predictor(tiny_model(), spec=spec, classes=CLASSES, device="cpu", decoder="pyav")
    for frames in (3, 70):
        path = write_clip(tmp_path / "v.mp4", frames=frames)
        found = plain(labelled(model, path, process, seconds=0.2))
        assert found == plain(model.timeline(path, 0.2))


def test_a_real_file_of_each_kind(predictor, process, shared_data):
    kinds = ("fragmented_pancake.mp4", "opengop_pancake.ts", "odd_425x239_444.mp4", "1frame.mp4")
    for kind in kinds:
        path = shared_data / "clips" / f"derived_{kind}"
        found = plain(labelled(predictor, path, process, timeout=0.5))
        assert found == plain(predictor.timeline(path, 1.0)), kind


@pytest.mark.parametrize("seconds", [1.0, 0.25, 0.1])
@pytest.mark.parametrize("segments", [False, True])
def test_windows_are_those_of_the_whole_video(seconds, segments):
    """Frames come one by one; views, times and the frames that are kept agree with the list."""
    spec = ClipSpec(num_frames=4, sampling_rate=6, crop_size=64, segments=segments)
    times = np.arange(100) / 25
    cutter = WindowCutter(Cut(seconds, spec, 3), Fraction(25))
    found = []
    for number, moment in enumerate(times):
        found += cutter.add(float(moment), number)
        assert len(cutter.held) <= 25 * seconds + 2 * 25 * clip_seconds(
            ClipSpec(num_frames=4, sampling_rate=6)
        )
    found += cutter.finish()
    expected = list(window_clips(times, 25, spec, seconds, 3))
    assert [w.views.tolist() for w in found] == [w.views.tolist() for w in expected]
    assert [(w.start, w.end) for w in found] == [(w.start, w.end) for w in expected]
    assert all(number == picture for w in found for number, picture in w.pictures.items())
    assert sum(w.num_frames for w in found) == 100


# ---- a file that grows ----


@pytest.mark.parametrize("name", ["mpegts", "matroska", "mp4"])
def test_a_file_is_labelled_while_it_grows(predictor, process, tmp_path, name):
    data = in_format(tmp_path, name, frames=180)
    growing = tmp_path / "growing"
    growing.write_bytes(data[: len(data) // 3])
    go_on = threading.Event()

    def append():
        go_on.wait(60)
        for start in range(len(data) // 3, len(data), 4096):
            with growing.open("ab") as file:
                file.write(data[start : start + 4096])
            time.sleep(0.02)

    writer = threading.Thread(target=append)
    writer.start()
    found = []
    source = parse_source(str(growing))
    try:
        for window in label_stream(predictor, source, process, seconds=1.0, timeout=2.0):
            found.append(window)
            go_on.set()  # the first label is there before the rest is written
    finally:
        go_on.set()
        writer.join()
    whole = plain(predictor.timeline(tmp_path / FORMATS[name], 1.0))
    assert found[0].end == 1.0
    assert found[-1].end == pytest.approx(6.0, abs=0.01)
    ends = {window.end: list(window.labels) for window in found}
    same = {end: labels[:5] for _, end, labels in whole}
    assert all(ends[end] == same[end] for end in ends if end < 6)
    skipped = 180 - 30 * len(found)
    assert found[-1].dropped == skipped


def test_a_file_that_is_still_copied_is_waited_for(predictor, process, tmp_path):
    """Its index comes last, so its first frame can be read when the copy is complete."""
    whole = write_clip(tmp_path / "whole.mp4", frames=60)
    data, copy = whole.read_bytes(), tmp_path / "copy.mp4"
    copy.write_bytes(data[:2000])

    def append():
        time.sleep(0.5)
        with copy.open("ab") as file:
            file.write(data[2000:])

    writer = threading.Thread(target=append)
    writer.start()
    found = labelled(predictor, copy, process, timeout=2.0)
    writer.join()
    assert plain(found) == plain(predictor.timeline(whole, 1.0))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty, and did not grow for 0.3 s"),
        (b"\0\0\0\x14ftypisom\0\0\0\0isom\0\0\0\0mdat" + bytes(99), "fragmented MP4"),
        (bytes(range(256)) * 400, "not a video of a known kind"),
        (b"#EXTM3U\nhttp://127.0.0.1/a.ts\n", "is a playlist"),
        (b"ffconcat version 1.0\nfile other.mp4\n", "is a playlist"),
        (b"hello", "is a text file"),
    ],
)
def test_what_is_no_video_is_an_error(predictor, process, tmp_path, content, expected):
    path = tmp_path / "v.mp4"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=expected):
        labelled(predictor, path, process, timeout=0.3)


def test_a_file_that_is_cut_short_ends(predictor, process, tmp_path):
    path = write_clip(tmp_path / "v.ts", frames=60)
    source = Source("file", str(path), "v.ts")
    file = GrowingFile(source, 5.0, lambda: None)
    file.read(1 << 20)
    path.write_bytes(b"short")
    with pytest.raises(DecodeError, match="became shorter"):
        file.read(10)


def test_noise_in_the_middle_is_passed_over(predictor, process, long_clip, tmp_path):
    data = bytearray(long_clip.read_bytes())
    for start in range(len(data) // 3, len(data) // 2, 188 * 7):
        data[start + 20 : start + 180] = os.urandom(160)
    path = tmp_path / "noise.ts"
    path.write_bytes(data)
    found = labelled(predictor, path, process)
    assert found[-1].end > 5
    assert all(np.isfinite(label.score) for window in found for label in window.labels)


# ---- times ----


def test_a_clock_that_jumps_goes_on():
    clock = StreamClock(Fraction(1, 10), 10.0, restarts=True)
    ticks = [5, 6, 7, 9000, 9001, 0, 1, None, 3]
    found = [clock.time(tick) for tick in ticks]
    np.testing.assert_allclose(found, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])


def test_the_clock_of_a_file_is_believed():
    clock = StreamClock(Fraction(1, 10), 10.0, restarts=False)
    found = [clock.time(tick) for tick in [5, 6, 306, 305, 307]]
    np.testing.assert_allclose(found, [0, 0.1, 30.1, 30.1, 30.3])


def test_a_stream_whose_clock_restarts_is_labelled_to_its_end(predictor, process, tmp_path):
    one = write_clip(tmp_path / "a.ts", frames=60).read_bytes()
    two = write_clip(tmp_path / "b.ts", frames=60, start=5000, first_index=60).read_bytes()
    path = tmp_path / "both.ts"
    path.write_bytes(one + two + one)
    found = labelled(predictor, path, process)
    assert plain(found) == plain(predictor.timeline(path, 1.0))
    assert found[-1].end == pytest.approx(6, abs=0.1)


def test_a_size_that_changes_is_scaled_to_the_first(predictor, process, tmp_path):
    parts = [
        write_clip(tmp_path / "a.ts", frames=45, size=(96, 64)),
        write_clip(tmp_path / "b.ts", frames=45, size=(128, 96), start=1.5),
    ]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    found = labelled(predictor, path, process)
    assert plain(found) == plain(predictor.timeline(path, 1.0))
    assert len(found) == 3


def test_a_variable_rate(predictor, process, tmp_path):
    times = [0, 0.1, 0.15, 0.9, 1.4, 1.41, 2.5, 9.0, 9.1]
    path = write_clip(tmp_path / "v.mkv", frames=9, times=times)
    found = labelled(predictor, path, process)
    assert [w.start for w in found] == [0, 1, 2, 9]


# ---- memory ----


def test_frames_that_are_too_many_are_cut_early_and_give_the_same(tmp_path, monkeypatch):
    import av

    path = write_clip(tmp_path / "v.mp4", frames=12, size=(320, 240))
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    cropper = pictures.Cropper("v.mp4", frames[0], 64, 3)
    held = deque(pictures.Picture(frame, cropper) for frame in frames)
    before = [picture.crops() for picture in held]
    raw, cut = held[0].num_bytes, cropper.num_bytes
    assert cut < raw
    monkeypatch.setattr(pictures, "HELD_BYTES", 6 * cut + 6 * raw)
    pictures.Room("v.mp4", 1.0).make(held)
    assert [picture.num_bytes for picture in held] == [cut] * 6 + [raw] * 6
    assert all(torch.equal(a, b.crops()) for a, b in zip(before, held, strict=True))
    monkeypatch.setattr(pictures, "HELD_BYTES", 11 * cut)
    with pytest.raises(DecodeError, match="a smaller --timeline"):
        pictures.Room("v.mp4", 1.0).make(held)


def test_crops_are_those_of_a_file(tmp_path):
    import av

    from hiera_video.video.crops import spatial_crops

    path = write_clip(tmp_path / "v.mp4", frames=2, size=(90, 160), rotation=90)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    cropper = pictures.Cropper("v.mp4", frames[0], 64, 3)
    whole = spatial_crops(read_frames(path, [1], "pyav"), 64, 3)
    assert torch.equal(cropper.crops(frames[1]), torch.cat(whole))


# ---- a pipe, in real time ----


@contextlib.contextmanager
def predict_command(*arguments, **settings):
    """`demo/predict.py` in a process of its own."""
    words = [sys.executable, "demo/predict.py", "--device", "cpu", "--views", "1x1"]
    started = subprocess.Popen(
        [*words, *map(str, arguments)],
        **{
            "cwd": str(command.__file__).rsplit("/hiera_video/", 1)[0],
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **settings,
        },
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        for pipe in (started.stdin, started.stdout, started.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def feed(pipe, data, seconds):
    """Write bytes at an even rate, as they come from a camera."""
    parts = max(1, round(seconds * 20))
    step = -(-len(data) // parts)
    with contextlib.suppress(BrokenPipeError, ValueError):
        for start in range(0, len(data), step):
            pipe.write(data[start : start + step])
            pipe.flush()
            time.sleep(seconds / parts)
        pipe.close()


def test_standard_input_is_labelled(weights, tmp_path):
    data = in_format(tmp_path, "mpegts", frames=90)
    words = ("--weights", weights, "--stream", "-", "--timeline", 1, "--top-k", 2)
    with predict_command(*words, stdin=subprocess.PIPE) as started:
        feeder = threading.Thread(target=feed, args=(started.stdin, data, 3.0))
        feeder.start()
        out = started.stdout.read()
        feeder.join()
        error = started.stderr.read().decode()
        assert started.wait(60) == 0, error
    lines = [json.loads(line) for line in out.splitlines()]
    keys = {"stream", "start", "end", "time", "labels", "dropped", "lag"}
    assert all(set(line) == keys and line["stream"] == "-" for line in lines)
    assert all(len(line["labels"]) == 2 and line["lag"] >= 0 for line in lines)
    assert lines[-1]["end"] == pytest.approx(3, abs=0.05)
    # every frame is in a window that was labelled, or counted as dropped
    assert sum(round(30 * (x["end"] - x["start"])) for x in lines) + lines[-1]["dropped"] == 90


def test_ctrl_c_leaves_whole_lines(weights, long_clip):
    words = ("--weights", weights, "--stream", "-", "--timeline", 0.5)
    with predict_command(*words, stdin=subprocess.PIPE) as started:
        threading.Thread(
            target=feed, args=(started.stdin, long_clip.read_bytes(), 60.0), daemon=True
        ).start()
        first = started.stdout.readline()
        started.send_signal(signal.SIGINT)
        rest = started.stdout.read()
        assert started.wait(60) == INTERRUPTED
        error = started.stderr.read().decode()
    assert [json.loads(line) for line in (first + rest).splitlines()]
    assert "Traceback" not in error


def test_a_reader_that_leaves_ends_it_quietly(weights, long_clip):
    words = ("--weights", weights, "--stream", long_clip, "--timeline", 0.1)
    with predict_command(*words) as started:
        json.loads(started.stdout.readline())
        started.stdout.close()
        assert started.wait(60) == READER_GONE
        assert started.stderr.read() == b""


def test_a_pipe_that_falls_silent_is_an_error_after_its_labels(weights, long_clip):
    words = ("--weights", weights, "--stream", "-", "--timeline", 1, "--stream-timeout", 2)
    with predict_command(*words, stdin=subprocess.PIPE) as started:
        started.stdin.write(long_clip.read_bytes())
        started.stdin.flush()  # and never closed
        out = started.stdout.read()
        assert started.wait(60) == 1
        error = started.stderr.read().decode()
    assert [json.loads(line) for line in out.splitlines()]
    assert "error: -: nothing came for 2 s" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("name", FORMATS)
def test_a_named_pipe(predictor, process, tmp_path, name):
    data = in_format(tmp_path, name, frames=90)
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: feed(path.open("wb"), data, 1.5))
    writer.start()
    found = labelled(predictor, path, process, timeout=5.0)
    writer.join()
    assert found[-1].end == pytest.approx(3, abs=0.05)
    whole = {
        window.start: window.labels
        for window in predictor.timeline(path.with_name(FORMATS[name]), 1.0)
    }
    assert all(window.labels == whole[window.start] for window in found)
    assert found[-1].dropped == 90 - 30 * len(found)


# ---- labelling that is slower than the stream ----


class _Slow(torch.nn.Module):
    """A model that waits until `go` is set."""

    def __init__(self, model):
        super().__init__()
        self.model, self.go, self.calls = model, threading.Event(), 0
        self.num_classes, self.input_size = model.num_classes, model.input_size

    def forward(self, clips):
        self.calls += 1
        if self.calls == 1:
            self.go.wait(60)
        return self.model(clips)


def test_windows_that_come_meanwhile_are_dropped_and_the_newest_is_next(process, tmp_path):
    data = write_clip(tmp_path / "v.ts", frames=600, fps=30, gop=10).read_bytes()
    slow = _Slow(tiny_model())
    predictor = Predictor(slow, spec=SPEC, classes=CLASSES, views=(1, 1), device="cpu")
    path = tmp_path / "fifo"
    os.mkfifo(path)

    def write():
        with open(path, "wb") as pipe:
            pipe.write(data[: len(data) // 2])
            pipe.flush()
            pipe.write(data[len(data) // 2 :])  # taken while the model stands still
        slow.go.set()

    writer = threading.Thread(target=write)
    writer.start()
    found = labelled(predictor, path, process, timeout=20.0)
    writer.join()
    numbers = [round(window.start) for window in found]
    assert numbers == sorted(numbers)
    assert len(found) < 20  # those in between were not kept
    assert numbers[-1] == 19  # and the end of the stream is not lost
    assert found[0].lag > 0
    assert found[-1].dropped == 30 * (20 - len(found))


def _memory(process):
    (process_child,) = process._children
    with open(f"/proc/{process_child.process.pid}/status") as status:
        (line,) = [line for line in status if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_while_nobody_asks(predictor, process, tmp_path):
    """A stream of 460 MB of pictures goes through while the labels stand still."""
    data = write_clip(tmp_path / "v.ts", frames=1000, size=(640, 480), gop=50).read_bytes()
    path = tmp_path / "fifo"
    os.mkfifo(path)
    windows = label_stream(predictor, parse_source(str(path)), process, seconds=1.0, timeout=20.0)
    go_on = threading.Event()

    def write():
        with open(path, "wb") as pipe:
            pipe.write(data[: len(data) // 4])
            go_on.wait(60)
            pipe.write(data[len(data) // 4 :])

    writer = threading.Thread(target=write)
    writer.start()
    next(windows)
    before = _memory(process)
    go_on.set()
    writer.join()
    after = _memory(process)
    rest = list(windows)
    assert rest[-1].dropped > 500
    assert after - before < 100  # MB; all frames are 460


# ---- the web ----


class _Web(http.server.BaseHTTPRequestHandler):
    data = b""

    def do_GET(self):
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        self.send_response(200)
        if self.path == "/short":
            self.send_header("Content-Length", str(len(self.data) + 1000))
        self.end_headers()
        with contextlib.suppress(OSError):
            self._send()

    def _send(self):
        if self.path == "/playlist":
            self.wfile.write(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
            return
        if self.path == "/stall":
            self.wfile.write(self.data[: len(self.data) // 2])
            self.wfile.flush()
            self.server.stopped.wait(60)
            return
        if self.path == "/slow":
            feed(self.wfile, self.data, 2.5)
            return
        self.wfile.write(self.data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def web(long_clip):
    _Web.data = long_clip.read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    server.daemon_threads = True
    server.stopped = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stopped.set()
    server.shutdown()
    server.server_close()


def test_a_slow_server(predictor, process, web):
    found = labelled(predictor, f"{web}/slow", process, timeout=2.0)
    assert len(found) >= 3
    assert found[-1].end == pytest.approx(6, abs=0.05)


def test_a_redirect_to_the_web_is_followed(predictor, process, web):
    assert labelled(predictor, f"{web}/to//slow", process, timeout=2.0)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/stall", "nothing came for 1 s; see whether the sender still runs"),
        ("/missing", "the server answers 404"),
        ("/short", "closed the connection too early"),
        ("/playlist", "is a playlist"),
        ("/to/file:///etc/passwd", "is not allowed"),
        ("/to/ftp://127.0.0.1/a.ts", "cannot be read"),
    ],
)
def test_what_a_server_does_wrong_is_an_error(predictor, process, web, path, expected):
    with pytest.raises(DecodeError, match=expected) as caught:
        labelled(predictor, f"{web}{path}", process)
    assert "root:" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_nobody_listens(predictor, process, scheme):
    with pytest.raises(DecodeError, match="refused"):
        labelled(predictor, f"{scheme}://127.0.0.1:9/v", process)


def test_the_password_of_an_address_is_not_shown(process, predictor):
    source = parse_source("http://me:secret@127.0.0.1:9/v")
    assert source.name == "http://***@127.0.0.1:9/v"
    with pytest.raises(DecodeError) as caught:
        labelled(predictor, source, process)
    assert "secret" not in str(caught.value)


def test_a_server_that_never_answers(predictor, process):
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        for scheme in ("http", "rtsp"):
            with pytest.raises(DecodeError, match="nothing came for 1 s"):
                labelled(predictor, f"{scheme}://127.0.0.1:{port}/v", process)


# ---- a network camera ----


class _Camera(socketserver.StreamRequestHandler):
    """A server of RTSP: MPEG-TS in packets of RTP, through the connection of the requests."""

    def handle(self):
        while True:
            lines = [self.rfile.readline().decode().strip()]
            while lines[-1]:
                lines.append(self.rfile.readline().decode().strip())
            word = lines[0].split(" ")[0]
            number = next((x for x in lines if x.lower().startswith("cseq:")), "")
            if not number or word == "TEARDOWN":
                return
            body = b""
            heads = {"OPTIONS": "Public: DESCRIBE, SETUP, PLAY, TEARDOWN"}
            if word == "DESCRIBE":
                body = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\n" + (
                    b"m=video 0 RTP/AVP 33\r\na=control:track1\r\n"
                )
                heads[word] = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}"
            if word == "SETUP":
                self.server.transports.append(next(x for x in lines if x.startswith("Transport")))
                heads[word] = "Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1"
            head = heads.get(word, "Session: 1")
            self.wfile.write(f"RTSP/1.0 200 OK\r\n{number}\r\n{head}\r\n\r\n".encode() + body)
            if word == "PLAY":
                with contextlib.suppress(OSError):
                    self.play()
                return

    def play(self):
        data, size = self.server.data, 7 * 188
        for number, start in enumerate(range(0, len(data), size)):
            stamp = (number * 900).to_bytes(4, "big")
            packet = b"\x80\x21" + (number % 65536).to_bytes(2, "big") + stamp + b"\0\0\0\1"
            packet += data[start : start + size]
            self.wfile.write(b"$\0" + len(packet).to_bytes(2, "big") + packet)
            if number == self.server.stall_at:
                self.server.stopped.wait(60)
            time.sleep(0.005)


@contextlib.contextmanager
def camera(data, stall_at=-1):
    """The server, on a port of its own."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Camera)
    server.daemon_threads = True
    server.data, server.stall_at, server.transports = data, stall_at, []
    server.stopped = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"rtsp://127.0.0.1:{server.server_address[1]}/live"
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()


def test_a_network_camera(predictor, process, long_clip):
    with camera(long_clip.read_bytes()) as (server, address):
        found = labelled(predictor, address, process, timeout=3.0)
    assert found[-1].end == pytest.approx(6, abs=0.2)
    whole = {window.start: window.labels for window in predictor.timeline(long_clip, 1.0)}
    assert all(window.labels == whole[window.start] for window in found if window.end == 6.0)
    assert all("TCP" in transport for transport in server.transports)


def test_a_network_camera_that_stands_still(predictor, process, long_clip):
    data = long_clip.read_bytes()
    with (
        camera(data, stall_at=len(data) // (7 * 188) // 2) as (_, address),
        pytest.raises(DecodeError, match="nothing came for 1 s"),
    ):
        labelled(predictor, address, process)


# ---- what may be opened ----


@pytest.mark.parametrize(
    "text",
    [
        "concat:a.ts|b.ts",
        "file:///etc/passwd",
        "file:v.mp4",
        "data:video/mp4;base64,AAAA",
        "udp://127.0.0.1:1234",
        "ftp://host/v.mp4",
        "subfile,,start,0,end,10,,:v.mp4",
        "crypto:v.mp4",
        "HTTPS:v.mp4",
        "http:///v.mp4",
        "rtsp://",
        "rtsp://host:port/",
        "http://host/a b",
        "pipe:0",
        "camera:x",
        "camera:-1",
        "lavfi:testsrc",
        "/dev/null",
        "no such file.ts",
        ".",
        "",
        "a\0b",
    ],
)
def test_everything_else_is_refused(text):
    with pytest.raises(UserError, match=r"allowed are camera:N|not an address"):
        parse_source(text)


def test_a_file_whose_name_looks_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "concat:v.ts", frames=3)
    with pytest.raises(UserError, match=r"\./concat:v\.ts"):
        parse_source("concat:v.ts")
    assert parse_source("./concat:v.ts").kind == "file"


def test_a_camera_that_is_not_there():
    with pytest.raises(UserError, match=r"camera:999.*ffmpeg -f FORMAT"):
        parse_source("camera:999")


def test_a_camera_is_opened_as_one(predictor, process, tmp_path):
    """No machine of the tests has a camera: a file in its place shows that FFmpeg's device opens
    it, and not the reader of files."""
    path = write_clip(tmp_path / "video0", frames=10, format="mpegts")
    with pytest.raises(DecodeError, match="cannot be opened"):
        labelled(predictor, Source("camera", str(path), "camera:0"), process)


def test_standard_input_that_is_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sources.sys, "stdin", Terminal())
    with pytest.raises(UserError, match="is a terminal"):
        parse_source("-")


def test_the_webs_own_reader_opens_nothing_else(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with pytest.raises(DecodeError, match="unknown url type"):
        WebAddress(Source("http", f"file://{secret}", "x"), 1.0, lambda: None)


# ---- the process that reads ----


@pytest.mark.parametrize(
    ("number", "error", "expected"),
    [
        (signal.SIGKILL, RunFailed, "start it again"),
        (signal.SIGSEGV, DecodeError, r"crashed \(SIGSEGV\); start the same command again"),
    ],
)
def test_a_process_that_ends_is_an_error(predictor, process, long_clip, number, error, expected):
    windows = label_stream(predictor, parse_source(str(long_clip)), process, seconds=0.5)
    next(windows)
    os.kill(process._children[0].process.pid, number)
    with pytest.raises(error, match=expected):
        list(windows)


def test_a_decoder_that_never_ends_is_given_up(monkeypatch, long_clip):
    """In this process, with no grace."""
    ended = threading.Event()
    monkeypatch.setattr(child, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(child, "_GRACE", 0.0)
    monkeypatch.setattr(child, "open_stream", lambda *_: ended.wait(60))
    source = Source("rtsp", "rtsp://host/", "rtsp://host/")
    child.serve(child.StreamRequest(source, Cut(1.0, SPEC, 1), 1, timeout=0.3))
    answers = (child.serve(None) for _ in range(1000))
    with pytest.raises(DecodeError, match=r"nothing came for 0\.3 s"):
        list(answers)
    ended.set()


def test_a_stream_that_is_left_ends(long_clip):
    """In this process: the thread that waits for its window to be taken."""
    source = parse_source(str(long_clip))
    request = child.StreamRequest(source, Cut(0.2, SPEC, 1), 1, timeout=0.5)
    child.serve(request)
    assert child.serve(None) is not True
    (left,) = [thread for thread in threading.enumerate() if thread.name == "decodes"]
    child.serve(request)
    left.join(60)
    assert not left.is_alive()
    answers = iter(lambda: child.serve(None), False)
    assert len([window for window in answers if window is not True]) == 30


# ---- the command line ----


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["clip.mp4"], "a stream is labelled alone"),
        (["--csv", "a.csv"], "--csv does not go with --stream"),
        (["--video", "a.mp4"], "--video does not go with --stream"),
        (["--html", "page"], "--html does not go with --stream"),
        (["--explain"], "--explain does not go with --stream"),
        (["--decoder", "decord"], "decoded with pyav"),
        (["--stream-timeout", "0"], "seconds above 0"),
        (["--timeline", "-1"], "give above 0"),
        (["--top-k", "0"], "at least 1"),
        (["--views", "5x2"], "views '5x2'"),
    ],
)
def test_what_does_not_fit_a_stream_is_refused(long_clip, words, expected):
    with pytest.raises(UserError, match=expected):
        command.main(["--stream", str(long_clip), *words])


def test_json_says_what_is_written_in_any_case():
    check_stream_arguments(command._parser("predict").parse_args(["--stream", "a.ts", "--json"]))


def test_the_timeout_alone_is_refused():
    with pytest.raises(UserError, match="for --stream only"):
        command.main(["clip.mp4", "--stream-timeout", "3"])


def test_nothing_to_label_is_wrong_use(capsys):
    with pytest.raises(SystemExit) as end:
        command.main([])
    assert end.value.code == 2
    assert "required: PATH, or --stream STREAM" in capsys.readouterr().err


def test_the_usual_window_is_the_models_clip():
    assert clip_seconds(SPEC) == pytest.approx(8 / 30)
    with pytest.raises(UserError, match="--timeline SECONDS"):
        clip_seconds(ClipSpec(num_frames=8, crop_size=64, segments=True))


def test_the_first_frame_of_a_window_is_where_it_says(tmp_path):
    """The codes in the pictures, from bytes to crops."""
    import av

    path = write_clip(tmp_path / "v.ts", frames=60, size=(64, 64))
    cutter = WindowCutter(Cut(1.0, ClipSpec(num_frames=2, crop_size=64), 1), Fraction(30))
    shown = []
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            cropper = pictures.Cropper("v.ts", frame, 64, 3)
            shown += cutter.add(number / 30, pictures.Picture(frame, cropper))
    shown += cutter.finish()
    for window in shown:
        codes = [read_index(p.crops()[0]) for p in window.pictures.values()]
        assert codes == sorted(window.pictures)
