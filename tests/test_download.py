"""Fetching weights: once, whole, with a deadline, and explained where it fails."""

import http.server
import io
import json
import os
import re
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from small_models import saved, tensors, truncated, untouched, video, zip_bytes

from hiera_video import progress
from hiera_video.errors import WeightsError
from hiera_video.models.weights import download, load
from hiera_video.models.weights.download import cached_path, fetch
from hiera_video.models.weights.load import load_pretrained
from hiera_video.models.weights.published import PUBLISHED
from hiera_video.models.weights.resolve import resolve
from hiera_video.web import Redirects, UnsafeRedirect


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty cache, and no proxy between a test and its own server."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(load, "_licences_logged", set())
    return tmp_path / "torch_home" / "hiera_video"


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """A local server whose answers a test sets: path -> function of the request's handler."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = {}
        self.asked = []

    def address(self, path):
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request, client_address):
        pass  # clients of these tests hang up on purpose


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.answers[self.path](self)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def answer(body, *, code=200, length=None, **headers):
    """An answer with this body, announcing `length` bytes (its own unless said otherwise)."""

    def send(handler):
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def then_silence(body, length):
    """The start of an answer, then nothing, for as long as the client stays."""

    def send(handler):
        answer(body, length=length)(handler)
        handler.wfile.flush()
        handler.connection.settimeout(30)
        handler.connection.recv(1)  # returns when the client hangs up

    return send


def assert_explains(error, url):
    """Address, where to put the file, and the two other ways, in one message."""
    text = str(error)
    assert text.startswith(f"cannot download {url}: ")
    assert str(cached_path(url)) in text
    assert "--weights FILE" in text
    assert "TORCH_HOME" in text


def assert_cache_is_clean(folder):
    left = [path.name for path in folder.iterdir()] if folder.exists() else []
    assert [name for name in left if not name.endswith(".lock")] == []


def test_a_file_is_fetched_once_and_then_needs_no_network(server, own_cache, capsys):
    server.answers["/w/x.pth"] = answer(zip_bytes())
    url = server.address("/w/x.pth")
    path = fetch(url)
    assert path == str(cached_path(url))
    assert os.path.dirname(path) == str(own_cache)
    assert Path(path).read_bytes() == zip_bytes()
    assert url in capsys.readouterr().err  # said, as stderr is no terminal here
    server.answers.clear()
    assert fetch(url) == path
    assert server.asked == ["/w/x.pth"]
    checkpoint, row = resolve(url)
    assert torch.equal(checkpoint.state_dict["b"], torch.ones(2, dtype=torch.int64))
    assert row is None


def test_a_terminal_gets_a_progress_bar(server, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "DELAY", 0)
    monkeypatch.setattr(progress, "_REDRAW_SECONDS", 0)
    server.answers["/x.pth"] = answer(zip_bytes())
    name = Path(fetch(server.address("/x.pth"))).name
    assert re.search(rf"downloading {name[:20]}\S* +100% .* MB", terminal.getvalue())


def test_large_files_arrive_whole(server):
    body = saved({"model_state": {"w": torch.arange(800_000.0)}})
    server.answers["/x.pth"] = answer(body)
    assert Path(fetch(server.address("/x.pth"))).read_bytes() == body


def test_redirects_are_followed(server):
    server.answers["/x.pth"] = answer(b"", code=302, Location="/y.pth")
    server.answers["/y.pth"] = answer(zip_bytes())
    assert Path(fetch(server.address("/x.pth"))).read_bytes() == zip_bytes()


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x.pth"])
def test_redirects_out_of_the_web_are_not_followed(place, server, own_cache):
    server.answers["/x.pth"] = answer(b"", code=302, Location=place)
    url = server.address("/x.pth")
    with pytest.raises(WeightsError) as caught:
        fetch(url)
    assert_explains(caught.value, url)
    assert_cache_is_clean(own_cache)


def test_redirects_never_leave_https():
    request = urllib.request.Request("https://host/x.pth")
    with pytest.raises(UnsafeRedirect, match=r"from https to http://host/x\.pth"):
        Redirects().redirect_request(request, None, 302, "", {}, "http://host/x.pth")


@pytest.mark.parametrize(
    ("send", "expected"),
    [
        (answer(b"gone", code=404), "answered 404"),
        (answer(b"", code=503), "answered 503"),
        (answer(b""), "empty"),
        (answer(b"<html>login</html>"), "web page"),
        (answer(zip_bytes(), Content_Type="text/html; charset=utf-8"), "web page"),
        (answer(b"version https://git-lfs.github.com/spec/v1\n"), "LFS"),
        (answer(b"hello, I am text"), "not a checkpoint"),
        (answer(zip_bytes()[:900], length=5000), "broke after 900 of 5,000 bytes"),
        (answer(zip_bytes()[:100], length=5000), "broke after 100 of 5,000|IncompleteRead"),
        (answer(b"", length=5000), "empty|broke|IncompleteRead"),
    ],
)
def test_what_is_not_the_file_never_gets_into_the_cache(send, expected, server, own_cache):
    server.answers["/x.pth"] = send
    url = server.address("/x.pth")
    with pytest.raises(WeightsError, match=expected) as caught:
        fetch(url)
    assert_explains(caught.value, url)
    assert_cache_is_clean(own_cache)


def pickled():
    """A checkpoint in the form of years ago, which many public ones still have."""
    buffer = io.BytesIO()
    torch.save(tensors(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def safetensors(body=bytes(8), end=8, header=None):
    """One tensor of 8 bytes; the file holds `body` of them."""
    row = {"dtype": "F32", "shape": [2], "data_offsets": [0, end]}
    text = json.dumps({"__metadata__": {"a": "b"}, "w": row}).encode() if header is None else header
    return struct.pack("<Q", len(text)) + text + body


def flipped(body):
    """A weight of it is another: one bit, in the middle of the records."""
    at = body.index(torch.arange(6.0).numpy().tobytes()) + 5
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def without_length(body, *, chunked=False, ends=True, **headers):
    """An answer that does not say how long it is: in chunks, or until the connection is closed."""

    def send(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        if chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        handler.send_header("Connection", "close")
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        for part in (body[:700], body[700:]):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
        if chunked and ends:
            handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = True

    return send


@pytest.mark.parametrize(
    ("send", "expected"),
    [
        (without_length(zip_bytes()[:900]), "cut short or damaged"),
        (without_length(zip_bytes()[:900], chunked=True, ends=False), "IncompleteRead"),
        (without_length(zip_bytes()[:900], chunked=True), "cut short or damaged"),
        (without_length(pickled()[:-20]), "cannot be used: .*damaged"),
        (without_length(safetensors(body=bytes(5))), r"has 1\d\d bytes, and should have 1\d\d"),
        (answer(zip_bytes()[:900]), "cut short or damaged"),  # and its length says 900
        (answer(flipped(zip_bytes())), "does not match its checksum"),
        (answer(zip_bytes()[:500] + bytes(100) + zip_bytes()[600:]), "damaged"),
        (answer(safetensors(header=b"{" * 30)), "header of the safetensors file is damaged"),
        (answer(saved(Bomb())), "would run code"),
        (answer(zip_bytes(), code=206, Content_Range="bytes 0-99/5000"), "answered 206"),
        (answer(b"", code=204), "answered 204"),
        (answer(b"\n\n<!DOCTYPE html><p>Sorry", Content_Type="application/zip"), "web page"),
        (answer(b'{"error": "not found"}', Content_Type="application/json"), "not a checkpoint"),
    ],
)
def test_what_cannot_be_read_never_gets_into_the_cache(send, expected, server, own_cache):
    """Lengths are not everything: some servers give none, and proxies cut what they pass on."""
    server.answers["/x.pth"] = send
    url = server.address("/x.pth")
    with pytest.raises(WeightsError, match=expected) as caught:
        fetch(url)
    assert_explains(caught.value, url)
    assert ".tmp" not in str(caught.value)
    assert_cache_is_clean(own_cache)
    server.answers["/x.pth"] = answer(zip_bytes())
    assert Path(fetch(url)).read_bytes() == zip_bytes()


@pytest.mark.parametrize(
    "body", [zip_bytes(), pickled(), safetensors()], ids=["zip", "pickle", "safetensors"]
)
@pytest.mark.parametrize("how", ["length", "closed", "chunked"])
def test_what_can_be_read_gets_there_however_it_was_sent(body, how, server):
    sends = {
        "length": answer(body),
        "closed": without_length(body),
        "chunked": without_length(body, chunked=True),
    }
    server.answers["/x.pth"] = sends[how]
    assert Path(fetch(server.address("/x.pth"))).read_bytes() == body


def test_the_longest_wait_for_an_answer_is_within_fifteen_seconds():
    assert download.ANSWER_SECONDS <= 10  # the rest is for starting Python and importing


def test_a_server_that_accepts_and_never_answers_is_given_up(monkeypatch, own_cache):
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/x.pth"
        with pytest.raises(WeightsError, match=r"no answer within 0\.3 seconds") as caught:
            fetch(url)
    assert_explains(caught.value, url)
    assert_cache_is_clean(own_cache)


def test_a_server_that_sends_headers_and_no_body_is_given_up(server, monkeypatch, own_cache):
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.3)
    server.answers["/x.pth"] = then_silence(b"", 5000)
    with pytest.raises(WeightsError, match="no answer within"):
        fetch(server.address("/x.pth"))
    assert_cache_is_clean(own_cache)


def test_a_download_that_stalls_is_given_up(server, monkeypatch, own_cache):
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    server.answers["/x.pth"] = then_silence(zip_bytes()[:800], 5000)
    with pytest.raises(WeightsError, match=r"nothing came for .* after 800 bytes"):
        fetch(server.address("/x.pth"))
    assert_cache_is_clean(own_cache)


def test_a_refused_port_is_explained():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}/x.pth"
    with pytest.raises(WeightsError, match="refused") as caught:
        fetch(url)
    assert_explains(caught.value, url)


def test_a_name_server_that_never_answers_is_given_up(monkeypatch):
    """The look-up of a name heeds no timeout; the error must come while it still hangs."""
    released = threading.Event()

    def black_hole(*_args, **_kwargs):
        released.wait(60)
        raise socket.gaierror("too late")

    monkeypatch.setattr(socket, "getaddrinfo", black_hole)
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.3)
    row = PUBLISHED["hiera_base_16x224", "mae_k400_ft_k400"]
    model = video(400)
    try:
        with untouched(model), pytest.raises(WeightsError, match="no answer within") as caught:
            load_pretrained(model, "hiera_base_16x224", True)
        assert not released.is_set()
    finally:
        released.set()
    assert_explains(caught.value, row.url)


def test_an_unknown_host_is_explained(monkeypatch):
    def unknown(*_args, **_kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(WeightsError, match="Name or service not known") as caught:
        fetch("https://host.invalid/x.pth")
    assert_explains(caught.value, "https://host.invalid/x.pth")


@pytest.mark.parametrize("url", ["http://", "https:///x.pth", "http://[::1/x", "http://h:x/a.pth"])
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(WeightsError, match="cannot download"):
        fetch(url)


def test_an_interrupt_leaves_nothing_half_done(server, monkeypatch, own_cache):
    server.answers["/x.pth"] = answer(zip_bytes())

    def interrupted(self, received):
        assert any(path.name.startswith(".x-") for path in own_cache.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(download._Transfer, "_read_more", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(server.address("/x.pth"))
    assert_cache_is_clean(own_cache)


FETCH = """
import sys
from hiera_video.models.weights.download import fetch
print("ready", flush=True)
sys.stdin.readline()
print(fetch(sys.argv[1]))
"""


def fetching(url):
    """A process of its own that fetches, once it is told to; with the cache of this test."""
    child = subprocess.Popen(
        [sys.executable, "-c", FETCH, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(download.__file__).parents[3])},
    )
    assert child.stdout.readline() == "ready\n"
    return child


def test_processes_that_want_the_same_file_write_it_once(server, own_cache):
    """They connect together; the first to take its turn writes, the others find the file."""
    body = saved({"model_state": {"w": torch.arange(500_000.0)}})
    arrived, sent = threading.Barrier(3), []

    def send_together(handler):
        arrived.wait(60)  # all of them have found the cache empty
        answer(body)(handler)
        sent.append(handler)  # whole: who finds the file hangs up before

    server.answers["/x.pth"] = send_together
    url = server.address("/x.pth")
    children = [fetching(url) for _ in range(3)]
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    said = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], said
    assert {out for out, _ in said} == {f"{cached_path(url)}\n"}
    assert sum("downloading http" in err for _, err in said) == 1
    assert cached_path(url).read_bytes() == body
    left = [path.name for path in own_cache.iterdir() if not path.name.endswith(".lock")]
    assert left == [cached_path(url).name]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_what_a_killed_process_left_is_no_hindrance(server, own_cache):
    body = saved({"model_state": {"w": torch.arange(500_000.0)}})
    server.answers["/x.pth"] = then_silence(body[:1_000_000], len(body))
    url = server.address("/x.pth")
    child = fetching(url)
    child.stdin.write("\n")
    child.stdin.flush()
    for _ in range(1200):
        if any(part.stat().st_size for part in own_cache.glob(".x-*.tmp")):
            break
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)
    child.kill()
    child.communicate()
    assert list(own_cache.glob(".x-*.tmp"))
    assert not cached_path(url).exists()
    server.answers["/x.pth"] = answer(body)
    assert Path(fetch(url)).read_bytes() == body
    assert not list(own_cache.glob(".x-*.tmp"))


def test_a_cache_without_room_is_explained_before_the_wait(server, monkeypatch, own_cache):
    monkeypatch.setattr(download, "free_bytes", lambda folder: 500)
    server.answers["/x.pth"] = answer(zip_bytes())
    with pytest.raises(WeightsError, match="it has 0 MB, and 0 MB are free") as caught:
        fetch(server.address("/x.pth"))
    assert_explains(caught.value, server.address("/x.pth"))
    assert_cache_is_clean(own_cache)


def test_a_cache_that_cannot_be_written_is_explained(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    server.answers["/x.pth"] = answer(zip_bytes())
    with pytest.raises(WeightsError, match="TORCH_HOME") as caught:
        fetch(server.address("/x.pth"))
    assert_explains(caught.value, server.address("/x.pth"))


def test_a_damaged_file_in_the_cache_says_how_to_be_rid_of_it(own_cache):
    row = PUBLISHED["hiera_base_16x224", "mae_k400"]
    own_cache.mkdir(parents=True)
    (own_cache / row.file_name).write_bytes(truncated())
    with pytest.raises(WeightsError, match=f"damaged.*\n.*{re.escape(row.url)}; delete it"):
        resolve("mae_k400", "hiera_base_16x224")


def test_the_cache_follows_torch_home_then_xdg_then_home(monkeypatch, tmp_path):
    url = PUBLISHED["hiera_base_16x224", "mae_k400_ft_k400"].url
    name = "hiera_video/hiera_base_16x224.pth"
    assert cached_path(url) == tmp_path / "torch_home" / name
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cached_path(url) == tmp_path / "xdg" / "torch" / name
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cached_path(url) == tmp_path / "home" / ".cache" / "torch" / name


def test_files_of_one_name_from_two_addresses_are_two_files(own_cache):
    one, two = cached_path("https://a.org/x/best.pth"), cached_path("https://b.org/x/best.pth")
    assert one != two
    assert {one.parent, two.parent} == {own_cache}
    assert {one.suffix, two.suffix} == {".pth"}


@pytest.mark.parametrize(
    "url",
    [
        "https://a.org/..%2f..%2f..%2fetc%2fpasswd",
        "https://a.org/..",
        "https://a.org/",
        "https://a.org",
        "https://a.org/%00.pth",
        "https://a.org/" + "x" * 5000,
        "https://a.org/.pth?a=/../b",
    ],
)
def test_no_address_leads_out_of_the_cache(url, own_cache):
    path = cached_path(url)
    assert path.parent == own_cache
    assert os.path.normpath(path) == str(path)
    assert len(path.name) < 200
