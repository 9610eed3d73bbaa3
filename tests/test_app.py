"""The app: a real server, a real browser, and what strangers may not do."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from browser import launched
from clips import write_clip
from conftest import REPOSITORY
from PIL import Image
from randomness import redraw
from test_predict import CLASSES, NAME, SPEC, TINY, write_checkpoint

from hiera_video import build_model
from hiera_video.app import check as app_check
from hiera_video.app import interface
from hiera_video.app import server as app_server
from hiera_video.app.choices import MEGABYTES, choices, chosen, first_choice, given_choice
from hiera_video.app.guard import AROUND_A_FILE, HEADERS, JOB, UPLOAD, Guard
from hiera_video.app.labeller import Labeller, Settings, Wanted
from hiera_video.app.reconstruct import Reconstructor
from hiera_video.app.results import texts
from hiera_video.app.server import Place, is_loopback, listening, own_folder
from hiera_video.commands import app as command
from hiera_video.errors import RunFailed, UserError
from hiera_video.models.cost import cost_of
from hiera_video.models.weights.download import cached_path
from hiera_video.models.weights.published import PUBLISHED
from hiera_video.video.decoding_process import decoding_process

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio")

HOSTILE_CLASSES = [
    "<img src=x onerror=alert(1)>",
    "${alert(2)} {{ value }}",
    '"><script>alert(3)</script>',
    "\u202eflipped",
    "long " * 60,
]
HOSTILE = HOSTILE_CLASSES[: len(CLASSES)]
MAE = {**TINY, "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}


def write_autoencoder(path):
    """A tiny masked autoencoder, as the trainer writes it."""
    kwargs = {k: list(v) if isinstance(v, tuple) else v for k, v in MAE.items()}
    kwargs.pop("num_classes", None)
    model = redraw(build_model(f"mae_{NAME}", **kwargs))
    stored = {"name": f"mae_{NAME}", "kwargs": kwargs}
    return write_checkpoint(path, model, stored=stored, classes=None)


# ---- a server -----------------------------------------------------------------------------------


class Asked:
    """A proxy that answers nobody and counts who asks: what a program fetches comes by here."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.count = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.count += 1
            connection.close()

    @property
    def environment(self):
        proxy = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        return dict.fromkeys(names, proxy) | {"no_proxy": "127.0.0.1,localhost"}


class App:
    """`demo/app.py` in a process of its own, with a home and a folder of its own."""

    def __init__(self, folder, *words, script=True):
        self.folder, self.asked = folder, Asked()
        for name in ("home", "here"):
            (folder / name).mkdir()
        # not below `folder`: the names of sockets in it have 107 letters at most
        self.temporary = Path(tempfile.mkdtemp(prefix="app"))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GRADIO_")}
        environment |= self.asked.environment | {
            "HOME": str(folder / "home"),
            "TMPDIR": str(self.temporary),
            "GRADIO_ALLOWED_PATHS": "/",  # what opens Gradio elsewhere
            "GRADIO_SHARE": "True",
            "OMP_NUM_THREADS": "1",
        }
        start = [str(REPOSITORY / "demo/app.py")] if script else ["-m", "hiera_video", "app"]
        self.process = subprocess.Popen(
            [sys.executable, *start, *map(str, words)],
            cwd=folder / "here",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def address(self):
        """Where it is, once it answers."""
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"{line}\n{self.process.stderr.read()}"
        return found[0]

    def end(self, number):
        """(exit code, what it printed on stderr)."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said

    def left(self):
        """Processes and files that are left of it; those that are about to end may do so."""
        for _ in range(200):
            processes = self._processes()
            if not processes:
                break
            threading.Event().wait(0.1)
        files = [*self.temporary.iterdir(), *(self.folder / "here").iterdir()]
        return processes, files

    def _processes(self):
        """Of the session that it began."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                words = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if words[3] == str(self.process.pid) and words[0] != "Z":
                found.append(stat.parent.name)
        return found

    def kill(self):
        self.asked.socket.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """An app with weights of hostile class names, uploads of 1 MB at most, and a short queue.

    At the end Ctrl-C must leave no process and no file of it.
    """
    if find_spec("gradio") is None:
        pytest.skip("needs gradio")
    folder = tmp_path_factory.mktemp("app")
    weights = write_checkpoint(folder / "secret place.pyth", classes=HOSTILE)
    words = ("--weights", weights, "--port", 0, "--views", "1x1", "--device", "cpu")
    started = App(folder, *words, "--max-mb", 1, "--queue", 3, script=False)
    yield started
    code, said = started.end(signal.SIGINT)
    started.kill()
    assert (code, said.splitlines()[-1]) == (130, "stopped")
    assert "Traceback" not in said
    assert started.left() == ([], [])
    assert started.asked.count == 0, "it asked another host for something"


@pytest.fixture(scope="module")
def address(app):
    return app.address()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return write_clip(folder / "jump & run.mp4", frames=40, fps=10, size=(96, 64))


def ask(address, path, data=None, **headers):
    """(status, body) of a request, as it stands: no path is tidied up first."""
    host, port = re.match(r"http://([^:/]+):(\d+)/", address).groups()
    import http.client

    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("GET" if data is None else "POST", path, body=data, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def upload(address, clip):
    """The path that an upload got."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
    body += clip.read_bytes() + b"\r\n--x--\r\n"
    status, said = ask(address, UPLOAD, body, **{"Content-Type": "multipart/form-data; boundary=x"})
    assert status == 200, said
    return json.loads(said)[0]


def client_of(address):
    from gradio_client import Client

    return Client(address, verbose=False, analytics_enabled=False, download_files=False)


# ---- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    """With a camera that is none."""
    with launched(
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    ) as browser:
        yield browser


@pytest.fixture
def visit(chromium, address):
    """Open the page; at the end, nothing may have been complained of or asked of another host."""
    wrong, contexts = [], []

    def check(request):
        if not request.url.startswith((address, f"blob:{address}", "data:")):
            wrong.append(request.url)

    def complaint(message):
        if message.type == "error":
            wrong.append(message.text)

    def open_page(**options):
        context = chromium.new_context(viewport={"width": 1200, "height": 900}, **options)
        contexts.append(context)
        context.set_default_timeout(90_000)  # several people's tests may share a machine
        page = context.new_page()
        page.on("console", complaint)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", check)
        page.goto(address)
        page.get_by_role("button", name="Label", exact=True).wait_for()
        return page

    open_page.wrong = wrong
    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def drop(page, file):
    page.locator("#video input[type=file]").set_input_files(file)
    page.locator("#video video").wait_for()


def press(page):
    page.get_by_role("button", name="Label", exact=True).click()


def choose(page, name):
    page.get_by_role("combobox", name="Weights").click()
    page.get_by_role("option", name=re.compile(re.escape(name))).click()


def done(page):
    """Wait for the last part of a job: what is not looked at is not in the page."""
    page.get_by_role("tab", name="Why this label").click()
    page.locator("#explanation img").wait_for()
    page.get_by_role("tab", name="Labels").click()


@needs_gradio
def test_a_dropped_clip_is_labelled(visit, clip):
    page = visit()
    choose(page, "camera_motion")
    drop(page, clip)
    page.get_by_label("Seconds per window").fill("1")
    press(page)
    done(page)
    summary = page.locator("#summary").inner_text()
    assert summary.startswith("jump & run.mp4: ")
    assert "Weights camera_motion, hiera_tiny_16x224, 1x1 views" in summary
    rows = page.locator("#labels tbody tr").all_inner_texts()
    assert len(rows) == 5
    scores = [float(re.search(r"([\d.]+) %", row)[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    page.get_by_role("tab", name="Scores over time").click()
    assert page.locator("#timeline .hv-slots rect").count() == 4, "windows of a second"
    assert page.locator("#timeline .hv-bars path").first.get_attribute("d").startswith("M0 100V")
    page.locator("#timeline .hv-slots rect").nth(2).click()
    at = "document.querySelector('#video video').currentTime"
    page.wait_for_function(f"{at} >= 2")
    page.get_by_text("Every window as a table").click()
    page.get_by_role("button", name="Play from 0:01.0").press("Enter")
    page.wait_for_function(f"{at} >= 1 && {at} < 2")
    page.get_by_role("tab", name="Why this label").click()
    why = page.get_by_role("img", name="Frames of the clip")
    assert why.evaluate("image => image.complete && image.naturalWidth") == 1280
    page.get_by_role("tab", name="Reconstruction").click()
    assert page.locator("#painting").inner_text().strip() == (
        "camera_motion has no decoder, so it cannot reconstruct; choose weights that reconstruct"
    )


@needs_gradio
def test_strange_names_are_shown_and_do_nothing(visit, clip, tmp_path):
    name = "<img src=x onerror=alert(4)> ${alert(5)}.mp4"
    shutil.copy(clip, tmp_path / name)
    page = visit()
    first = page.get_by_role("combobox", name="Weights").input_value()
    assert first == "secret place.pyth (labels; given)"
    drop(page, tmp_path / name)
    press(page)
    done(page)
    shown = page.locator("#labels tbody th").all_inner_texts()
    expected = [name.strip() for name in HOSTILE]
    assert sorted(shown) == sorted(label.replace("\u202e", "\\u202e") for label in expected)
    assert page.locator("#summary").inner_text().startswith(f"{name}: ")
    assert page.locator("#labels img, #summary img").count() == 0
    page.get_by_role("tab", name="Scores over time").click()
    assert page.locator("#timeline .hv-row").count() > 0
    assert page.locator("#timeline img").count() == 0
    page.get_by_role("tab", name="Why this label").click()
    assert page.locator("#explanation img").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    assert str(REPOSITORY) not in page.content()


@needs_gradio
def test_what_is_no_video_says_so(visit, tmp_path):
    name = "<img src=x onerror=alert(6)>.mp4"
    (tmp_path / name).write_text("no video")
    page = visit()
    drop(page, tmp_path / name)
    press(page)
    said = page.get_by_test_id("toast-text").filter(has_text=name)
    said.wait_for()
    assert said.inner_text() == f"{name}: is a text file, not a video"
    assert page.locator("#labels tbody").count() == 0


@needs_gradio
def test_nothing_dropped_says_so(visit):
    page = visit()
    press(page)
    page.get_by_text("no video yet: drop one, or record one with the camera").wait_for()


@needs_gradio
def test_too_large_a_file_says_so(visit, tmp_path):
    (tmp_path / "large.mp4").write_bytes(bytes(1_200_000))
    page = visit()
    page.locator("#video input[type=file]").set_input_files(tmp_path / "large.mp4")
    page.get_by_text("maximum allowed size").first.wait_for()
    assert page.locator("#video video").count() == 0
    visit.wrong[:] = [text for text in visit.wrong if "413" not in text]


@needs_gradio
def test_the_camera(visit):
    page = visit(permissions=["camera"])
    choose(page, "camera_motion")
    page.get_by_role("button", name="Capture from camera").click()
    page.get_by_role("button", name="Click to Access Webcam").click()
    page.get_by_role("button", name="start recording").click()
    page.get_by_text("Stop", exact=True).wait_for()
    page.wait_for_timeout(1500)
    page.get_by_text("Stop", exact=True).click()
    page.wait_for_function("document.querySelector('#video video')?.src.includes('file=')")
    press(page)
    done(page)
    assert page.locator("#labels tbody tr").count() == 5


CONTRAST = """selector => {
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const grey = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const element = document.querySelector(selector);
  let under = element;
  while (/, 0\\)$|transparent/.test(getComputedStyle(under).backgroundColor)) {
    if (!under.parentElement) break;
    under = under.parentElement;
  }
  const back = grey(getComputedStyle(under).backgroundColor);
  const text = grey(getComputedStyle(element).color);
  return [(Math.max(back, text) + 0.05) / (Math.min(back, text) + 0.05), back]; }"""


@needs_gradio
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_and_used_without_a_mouse(visit, clip, scheme):
    page = visit(color_scheme=scheme)
    drop(page, clip)
    for selector in (
        ".hv-why",
        "#weights input",
        "button.primary",
        "#weights [data-testid=block-info]",
        "h1",
    ):
        contrast, back = page.evaluate(CONTRAST, selector)
        assert contrast >= 4.5, selector
        assert selector == "button.primary" or (back < 0.2) == (scheme == "dark"), selector
    for label in ("Weights", "Scores over time", "Why this label", "Seconds per window"):
        assert page.get_by_label(label).first.is_enabled()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                """() => { const e = document.activeElement; return e.getAttribute('aria-label')
                || e.labels?.[0]?.innerText.trim() || e.innerText?.trim(); }"""
            )
        )
    assert {"Weights", "Scores over time", "Why this label", "Seconds per window"} <= reached
    assert {"Label", "Labels", "Upload file"} <= reached


# ---- what strangers may not do ------------------------------------------------------------------


@needs_gradio
@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/file=/etc/passwd", f"/gradio_api/file={REPOSITORY}/README.md"),
        *("/gradio_api/file=../../../../etc/passwd", "/gradio_api/file=README.md"),
        *("/static/../../../../../../../etc/passwd", "/assets/%2e%2e/%2e%2e/%2e%2e/routes.py"),
        *("/static/..%2f..%2f..%2f..%2froutes.py", "/gradio_api/file=http://127.0.0.1:1/"),
        *("/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/openapi.json", "/docs"),
        *("/gradio_api/runs", "/monitoring", "/?deep_link=x", "/login"),
    ],
)
def test_no_file_of_the_server_is_reachable(address, path):
    status, body = ask(address, path)
    assert status in (403, 404), body
    assert b"root:" not in body
    assert b"hiera_video" not in body
    assert b"import " not in body


@needs_gradio
def test_an_upload_is_all_that_is_read(address, clip):
    place = upload(address, clip)
    assert ask(address, f"/gradio_api/file={place}") == (200, clip.read_bytes())
    outside = place.rpartition("/")[0] + "/../../../../here/x"
    assert ask(address, f"/gradio_api/file={outside}")[0] == 404


@needs_gradio
@pytest.mark.parametrize(
    "path", [str(REPOSITORY / "hiera_video/bundled/camera_motion.pyth"), "http://127.0.0.1:1/a.mp4"]
)
def test_a_job_names_no_other_file(address, clip, path):
    words = {"Content-Type": "application/json"}

    def join(data):
        body = {"data": data, "fn_index": 0, "session_hash": "abc"}
        return ask(address, JOB, json.dumps(body), **words)

    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    assert join([file, "given", [], 1, 0.9]) == (403, b"that is no uploaded file")
    assert join([None, [{"deep": file}], [], 1, 0.9])[0] == 403
    assert ask(address, JOB, "[" * 100_000, **words)[0] == 400
    assert ask(address, JOB, "[" * 2_000_000, **words)[0] == 413


@needs_gradio
def test_weights_are_chosen_from_the_list(address, clip):
    from gradio_client import handle_file

    client = client_of(address)
    for weights in (str(REPOSITORY / "hiera_video/bundled/camera_motion.pyth"), "", None, 3):
        with pytest.raises(Exception, match="no such weights; choose some of the list"):
            client.predict(handle_file(str(clip)), weights, [], 1, 0.9, api_name="/label")
    with pytest.raises(Exception, match=r"the seconds of a window must be from 0\.1 to 600"):
        client.predict(handle_file(str(clip)), "given", [], 1e9, 0.9, api_name="/label")
    *_, content = client.predict(
        handle_file(str(clip)), "given", ["Scores over time"], 1, 0.9, api_name="/label"
    )
    assert content["weights"] == "secret place.pyth", "its name, not its path"
    assert content["file"] == "jump & run.mp4"
    assert len(content["timeline"]) == 4


@needs_gradio
def test_uploads_are_deleted_after_their_time(clip, monkeypatch):
    monkeypatch.setattr(interface, "KEPT_SECONDS", 1)
    monkeypatch.setattr(interface, "_LOOKED_AT", 0.1)
    listed = choices(given=None, autoencoder=False, downloads=False)
    place = Place()
    with own_folder() as uploads, listening(place) as bound:
        blocks = interface.page(None, lambda: listed, listed[0], place.queue)
        server = app_server.server_of(blocks, place, uploads)
        with app_server.served_beside(server, bound):
            file = Path(upload(app_server.address_of(bound, place), clip))
            assert file.read_bytes() == clip.read_bytes()
            assert Path(uploads) in file.parents
            for _ in range(200):
                if not file.exists():
                    break
                threading.Event().wait(0.1)
            assert not file.exists()
    assert not os.path.exists(uploads)
    assert "GRADIO_TEMP_DIR" not in os.environ


@needs_gradio
def test_a_few_jobs_wait_and_no_more(address, clip):
    file = {"path": upload(address, clip), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file, "given", [], 1, 0.9], "fn_index": 0, "session_hash": "waits"}
    words = {"Content-Type": "application/json"}
    answers = [ask(address, JOB, json.dumps(body), **words) for _ in range(8)]
    statuses = [status for status, _ in answers]
    assert statuses[0] == 200
    assert 3 <= statuses.count(200) <= 7
    assert {status for status in statuses if status != 200} == {503}
    refused = [text for status, text in answers if status == 503]
    assert all(b"Queue is full" in text for text in refused)


@needs_gradio
def test_pages_of_others_may_not_ask(address):
    assert ask(address, "/", Host="evil.example")[0] == 403
    assert ask(address, "/", Origin="http://evil.example")[0] == 403
    assert ask(address, "/", Origin="null")[0] == 403
    assert ask(address, "/", Origin=address.rstrip("/"))[0] == 200
    with urllib.request.urlopen(address) as page:
        for name, value in HEADERS.items():
            assert page.headers[name] == value
        assert b"fonts.googleapis" not in page.read()


# ---- the command --------------------------------------------------------------------------------


@needs_gradio
def test_the_check_uses_the_app_itself(tmp_path):
    started = App(tmp_path, "--check")
    said, complaints = started.process.communicate(timeout=120)
    asked = started.asked.count
    started.kill()
    assert started.process.returncode == 0, complaints
    assert re.fullmatch(
        r"checked: http://127\.0\.0\.1:\d+/ labels a made clip as zoom in \([\d.]+%\), with scores "
        r"over time and why, in [\d.]+ s\n",
        said,
    )
    assert complaints == ""
    assert started.left() == ([], [])
    assert asked == 0, "it asked another host for something"


@needs_gradio
def test_a_check_that_fails_says_why(address, tmp_path, monkeypatch):
    monkeypatch.setattr(app_check, "_MOTION", "no motion")
    monkeypatch.setattr(app_check, "write_clip", lambda path, *_: write_clip(path, frames=20))
    with pytest.raises(RunFailed, match=r"the app calls a clip of 'no motion' '[\w -]+'; [\d.]+%"):
        app_check.check(address, str(tmp_path))
    monkeypatch.setattr(app_check, "write_clip", lambda path, *_: path.write_text("no video"))
    with pytest.raises(RunFailed, match=r"cannot be used: .*is a text file, not a video"):
        app_check.check(address, str(tmp_path))
    with pytest.raises(RunFailed, match="cannot be used: URLError"):
        app_check.check("http://127.0.0.1:1/", str(tmp_path))


def test_a_taken_port_and_wrong_numbers_are_refused(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port} of 127.0.0.1: .*--port"):
            listening(Place(port=port))
    for words in (["--port", "70000"], ["--max-mb", "0"], ["--queue", "0"]):
        with pytest.raises(UserError, match=words[0]):
            command.main(words)
    monkeypatch.setattr(app_server, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'hiera_video\[app\]'"):
        command.main([])


@needs_gradio
def test_wrong_weights_are_refused_before_anybody_comes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such weights file: none\.pyth"):
        command.main(["--weights", "none.pyth", "--port", "0"])
    with pytest.raises(UserError, match="has no trained classifier"):
        command.main(["--weights", "motion", "--port", "0"])


def test_sigterm_ends_it_with_its_code():
    with app_server.sigterm_ends(), pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143


def test_only_this_machine_unless_asked(capsys, monkeypatch):
    assert Place().host == "127.0.0.1"
    assert Place().closed
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.com")))
    monkeypatch.setattr(app_server, "require_gradio", lambda: None)
    monkeypatch.setattr(command, "_run", lambda *_: 0)
    assert command.main(["--port", "0"]) == 0
    assert capsys.readouterr().err == ""
    assert command.main(["--port", "0", "--host", "0.0.0.0"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: --host 0.0.0.0: everybody who reaches this machine can use")


# ---- the list of weights ------------------------------------------------------------------------


def test_the_list_says_where_weights_are(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    listed = choices(given=None, autoencoder=False, downloads=True)
    texts = {choice.key: choice.text for choice in listed}
    assert texts["camera_motion"] == "camera_motion (labels; bundled)"
    name = "hiera_base_16x224.mae_k400_ft_k400"
    assert texts[name] == f"{name} (labels; to download: 204 MB or more)"
    assert texts["mae_hiera_base_16x224.mae_k400"].split(" (")[1].startswith("reconstructs; to")
    assert "x3d_xs.k400" not in texts
    assert first_choice(listed).key == "camera_motion", "nothing is downloaded unasked"
    for row in (PUBLISHED["hiera_base_16x224", "mae_k400_ft_k400"], PUBLISHED["x3d_xs", "k400"]):
        path = cached_path(row.url)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    listed = choices(given=None, autoencoder=False, downloads=False)
    assert [choice.key for choice in listed] == ["camera_motion", name, "x3d_xs.k400"]
    assert listed[1].text == f"{name} (labels; downloaded)"
    assert first_choice(listed).key == name


@pytest.mark.parametrize("model", MEGABYTES)
def test_sizes_are_those_of_the_models(model):
    cost = cost_of(lambda: build_model(model), count=False)
    assert MEGABYTES[model] == round(cost.parameters * 4 / 1e6)


def test_what_was_given_comes_first_and_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for given, key in (
        ("camera_motion", "camera_motion"),
        ("hiera_base_16x224", "hiera_base_16x224.mae_k400_ft_k400"),
        ("x3d_xs.k400", "x3d_xs.k400"),
        ("runs/mine/best.pyth", "given"),
        ("https://user:word@host.example/best.pyth", "given"),
    ):
        listed = choices(given=given, autoencoder=False, downloads=True)
        assert [choice.key for choice in listed].count(key) == 1
        choice = given_choice(given, autoencoder=False)
        assert choice in listed
        assert choice.key == key
    assert choice.text == "best.pyth (labels; given)"
    with pytest.raises(UserError, match="no such weights"):
        chosen(listed, "runs/mine/best.pyth")


# ---- jobs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def process():
    with decoding_process() as process:
        yield process


@pytest.fixture
def labeller(process, tmp_path):
    (tmp_path / "uploads").mkdir()
    return Labeller(Settings("cpu", (1, 1)), process, str(tmp_path / "uploads"))


def job(labeller, upload, **wanted):
    listed = choices(given=None, autoencoder=False, downloads=False)
    wanted = Wanted(**{"weights": "camera_motion", "seconds": 1.0, **wanted})
    return list(labeller.job(listed, upload, wanted, lambda share, what: None))


def test_only_uploads_are_opened(labeller, clip, tmp_path):
    inside = tmp_path / "uploads/a.mp4"
    shutil.copy(clip, inside)
    link = tmp_path / "uploads/link.mp4"
    link.symlink_to(clip)
    for upload in ({"path": str(clip)}, {"path": str(link)}, {"path": str(tmp_path / "uploads")}):
        with pytest.raises(UserError, match="the upload is not there any more"):
            job(labeller, upload)
    for upload in ("a", {}, {"path": 3}, {"path": "a\0b"}, [str(inside)]):
        with pytest.raises(UserError, match="that is no uploaded video"):
            job(labeller, upload)
    found = job(labeller, {"path": str(inside), "orig_name": "b.mp4"})[-1]
    assert found.prediction.file == "b.mp4"
    assert len(found.prediction.timeline) == 4
    assert found.prediction.explanation.label == found.prediction.labels[0].label


def test_a_clip_is_painted_at_the_chosen_ratio(labeller, clip, tmp_path):
    path = str(shutil.copy(clip, tmp_path / "uploads/a.mp4"))
    weights = str(write_autoencoder(tmp_path / "mae.pyth"))
    assert labeller.is_autoencoder(weights)
    assert not labeller.is_autoencoder("camera_motion")
    listed = choices(given=weights, autoencoder=True, downloads=False)
    assert listed[0].text == "mae.pyth (reconstructs; given)"

    def painted(hidden):
        wanted = Wanted("given", hidden=hidden)
        (found,) = labeller.job(listed, {"path": path}, wanted, lambda share, what: None)
        assert found.prediction is None
        assert found.reconstruction.hidden / found.reconstruction.units == hidden
        return found

    few, many = painted(0.25), painted(0.75)
    with Image.open(io.BytesIO(many.reconstruction.jpeg)) as picture:
        side, rows = SPEC.crop_size, len(many.reconstruction.rows)
        assert picture.size == (SPEC.num_frames // 2 * side, rows * side)
        top, seen = (
            np.asarray(picture.convert("L").crop((0, row * side, picture.width, (row + 1) * side)))
            for row in (0, 1)
        )
    changed = np.abs(top.astype(int) - seen) > 40
    assert 0.3 < changed.mean() < 0.76, "what is hidden is grey"
    assert few.reconstruction.jpeg != many.reconstruction.jpeg
    shown = texts(many)
    units = many.reconstruction.units
    assert f"{3 * units // 4} of the {units} parts of the clip" in shown.painting
    assert 'src="data:image/jpeg;base64,' in shown.painting
    why = "mae.pyth names nothing: it is an autoencoder; choose weights that label"
    assert all(why in part for part in (shown.labels, shown.timeline, shown.explanation))
    assert str(tmp_path) not in "".join(shown)
    with pytest.raises(UserError, match=r"the share that is hidden must be from 0\.05 to 0\.95"):
        painted(1.5)


def test_weights_without_a_decoder_are_no_autoencoder():
    with pytest.raises(UserError, match="camera_motion has no decoder, so it cannot reconstruct"):
        Reconstructor("camera_motion", "cpu", print)


def test_a_job_that_takes_too_long_keeps_what_is_done(process, clip, tmp_path, monkeypatch):
    shutil.copy(clip, tmp_path / "a.mp4")
    labeller = Labeller(Settings("cpu", (5, 1), seconds=100.0), process, str(tmp_path))
    upload = {"path": str(tmp_path / "a.mp4")}
    listed = choices(given=None, autoencoder=False, downloads=False)
    now = [0.0]
    monkeypatch.setattr("hiera_video.app.labeller.time.monotonic", lambda: now[0])

    def late(share, what):
        now[0] = 101.0 if what == "labelling window by window" and share > 0.4 else now[0]

    wanted = Wanted("camera_motion", seconds=1.0)
    found = list(labeller.job(listed, upload, wanted, late))[-1]
    assert len(found.prediction.labels) == 5
    assert len(found.prediction.timeline) == 3
    assert found.timeline == "the time of the job ended after 3.0 s of it"
    assert found.explanation == "the time of the job ended before it"

    def at_once(share, what):
        now[0] += 101.0

    with pytest.raises(UserError, match=r"a\.mp4 took longer than 100 s; .*--max-seconds"):
        list(labeller.job(listed, upload, wanted, at_once))
    labeller.stop()
    with pytest.raises(UserError, match="the app is being stopped"):
        job(labeller, upload)


# ---- the guard ----------------------------------------------------------------------------------


def answered(guard, method="GET", path="/", body=b"", **headers):
    """Status of a request; 200 where the guarded application got it."""
    sent = []
    given = {"host": "127.0.0.1:1", "content-length": str(len(body)), **headers}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in given.items()],
    }
    parts = [
        {"type": "http.request", "body": body[:5], "more_body": True},
        {"type": "http.request", "body": body[5:]},
    ]

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    with pytest.raises(StopIteration):  # nothing in it waits; a loop may run here already
        guard(scope, receive, send).send(None)
    assert dict(sent[0]["headers"])[b"x-content-type-options"] == b"nosniff"
    return sent[0]["status"], sent[1]["body"]


async def echo(scope, receive, send):
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def test_the_guard_bounds_uploads(tmp_path):
    guard = Guard(echo, uploads=str(tmp_path), most_bytes=1000, hosts=None)
    assert answered(guard, "POST", UPLOAD, b"x" * 1000) == (200, b"x" * 1000)
    status, said = answered(guard, "POST", UPLOAD, b"x", content_length=str(1001 + AROUND_A_FILE))
    assert status == 413
    assert said == b"the file is larger than the 0.001 MB that are allowed (--max-mb)"
    assert answered(guard, "POST", UPLOAD, b"x", content_length="")[0] == 411
    for number in range(10):
        (tmp_path / str(number)).write_bytes(bytes(1000))
    assert answered(guard, "POST", UPLOAD, b"x")[0] == 507
    assert answered(guard, "PUT", UPLOAD, b"x")[0] == 404


def test_the_guard_hands_on_whole_jobs(tmp_path):
    guard = Guard(echo, uploads=str(tmp_path), most_bytes=1000, hosts=("127.0.0.1",))
    (tmp_path / "a.mp4").touch()
    body = json.dumps({"data": [{"path": str(tmp_path / "a.mp4")}]}).encode()
    assert answered(guard, "POST", JOB, body) == (200, body)
    (tmp_path / "b.mp4").symlink_to("/etc/passwd")
    for path in (str(tmp_path / "b.mp4"), str(tmp_path), f"{tmp_path}/../x", "a\0", None, 3):
        body = json.dumps({"data": {"path": path}}).encode()
        assert answered(guard, "POST", JOB, body)[0] == 403, path
    assert answered(guard, host="127.0.0.1")[0] == 200
    assert answered(guard, host="localhost")[0] == 403
