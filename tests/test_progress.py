"""Progress on a real terminal, and nothing elsewhere."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

import pytest
from clips import write_clip
from conftest import REPOSITORY
from test_predict import write_checkpoint

from hiera_video import progress
from hiera_video.progress import Progress, duration

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm"}


class Terminal:
    """A program on a terminal of its own; what it prints there, and what into a pipe."""

    def __init__(self, code, *, columns=100, stdout=None, cwd=None, environment=ENVIRONMENT):
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=theirs,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
            cwd=cwd,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self.raw = b""

    def read(self, until=None):
        """Everything, or up to a text."""
        while until is None or until.encode() not in self.raw:
            try:
                piece = os.read(self.ours, 65536)
            except OSError:  # nobody has the other end any more
                break
            if not piece:
                break
            self.raw += piece
        return self.raw.decode()

    def end(self):
        """What was printed, and the exit code."""
        text = self.read()
        code = self.process.wait(timeout=60)
        os.close(self.ours)
        return text, code


def on_terminal(code, **options):
    return Terminal(code, **options).end()


def screen(text):
    """The lines that are left on the terminal in the end: what was overwritten is gone."""
    lines, row, column = [[]], 0, 0
    for piece in re.findall(r"\x1b\[A|\x1b\[K|[\s\S]", text):
        if piece == "\n":
            row, column = row + 1, column
            lines += [[] for _ in range(row + 1 - len(lines))]
        elif piece == "\r":
            column = 0
        elif piece == "\x1b[K":
            del lines[row][column:]
        elif piece == "\x1b[A":
            row -= 1
        else:
            line = lines[row]
            line += [" "] * (column + 1 - len(line))
            line[column] = piece
            column += 1
    shown = ["".join(line).rstrip() for line in lines]
    return shown[:-1] if not shown[-1] else shown


def drawn(text):
    """The lines of progress that were there at some time."""
    return [piece.strip() for piece in re.split(r"[\r\n]", text) if piece.strip()]


AT_ONCE = "from hiera_video import progress; progress.DELAY = progress._REDRAW_SECONDS = 0;"
"""Each report is drawn: no test has to wait."""

JOB = """
import sys
from hiera_video.progress import Progress
with Progress("described", {total}, unit="videos", ticking=False) as shown:
    for done in range(4):
        shown.to(done)
        if done == 1:
            print("a result")
        if done == 2:
            print("an error", file=sys.stderr)
print("the end")
"""
KNOWN, UNKNOWN = JOB.format(total=4), JOB.format(total=None)


def test_a_line_has_count_rate_and_time_left():
    text, code = on_terminal(AT_ONCE + KNOWN)
    lines = drawn(text)
    assert code == 0
    assert lines[0] == "described    0% |                    | 0/4 videos"
    last = next(line for line in reversed(lines) if line.startswith("described"))
    assert re.fullmatch(
        r"described   75% \|█{15} {5}\| 3/4 videos  [\d.,e+]+ videos/s  00:00 left", last
    )
    assert screen(text) == ["a result", "an error", "the end"], "and then it is gone"


def test_without_a_total_there_are_count_and_rate():
    text, _ = on_terminal(AT_ONCE + UNKNOWN)
    last = next(line for line in reversed(drawn(text)) if line.startswith("described"))
    assert re.fullmatch(r"described  3 videos  [\d.,e+]+ videos/s", last)
    assert screen(text) == ["a result", "an error", "the end"]


def test_a_short_job_shows_nothing():
    text, _ = on_terminal(KNOWN)
    assert text == "a result\r\nan error\r\nthe end\r\n"


def test_a_long_job_shows_itself_though_it_reports_nothing():
    code = (
        "import time; from hiera_video import progress\n"
        "progress.DELAY = progress._REDRAW_SECONDS = 0.05\n"
        "with progress.Progress('writing onnx'): time.sleep(0.6)\n"
    )
    text, _ = on_terminal(code)
    assert "writing onnx  00:00" in drawn(text)
    assert screen(text) == []


@pytest.mark.parametrize("code", [KNOWN, AT_ONCE + KNOWN, AT_ONCE + UNKNOWN])
def test_elsewhere_it_is_not_there(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT, check=True
    )
    assert (done.stdout, done.stderr) == (b"a result\nthe end\n", b"an error\n")


def test_a_result_in_a_file_is_left_alone(tmp_path):
    with open(tmp_path / "out", "wb") as out:
        text, _ = on_terminal(AT_ONCE + KNOWN, stdout=out)
    assert (tmp_path / "out").read_bytes() == b"a result\nthe end\n"
    assert screen(text) == ["an error"]
    assert "described" in text


def test_only_the_first_of_several_processes_shows_it():
    for rank, shows in (("0", True), ("1", False)):
        text, _ = on_terminal(AT_ONCE + KNOWN, environment={**ENVIRONMENT, "RANK": rank})
        assert ("described" in text) == shows


def test_work_within_work_has_the_line_while_it_lasts():
    code = AT_ONCE + (
        "Progress = progress.Progress\n"
        "with Progress('outer', 2, unit='files', ticking=False) as outer:\n"
        "    outer.to(0)\n"
        "    with Progress('inner', 2, unit='B', ticking=False) as inner:\n"
        "        inner.to(1)\n"
        "        outer.to(1)\n"
        "        print('between')\n"
        "    outer.to(2)\n"
    )
    text, _ = on_terminal(code)
    names = [line.split()[0] for line in drawn(text)]
    assert [name for k, name in enumerate(names) if name not in names[k - 1 : k]] == [
        *("outer", "inner", "between", "outer"),
    ]
    assert screen(text) == ["between"]


@pytest.mark.parametrize("columns", [30, 0], ids=["narrow", "unknown"])
def test_it_never_wraps(columns):
    long = AT_ONCE + KNOWN.replace("described", "x" * 300)
    text, _ = on_terminal(long, columns=columns)
    most = (columns or 80) - 1
    assert any(line.startswith("x" * 20) for line in drawn(text))
    assert max(map(len, drawn(text))) <= most
    assert screen(text) == ["a result", "an error", "the end"]


def test_a_strangers_name_does_not_control_the_terminal():
    text, _ = on_terminal(AT_ONCE + KNOWN.replace("described", r"a\x1b[31m{total}"))
    assert "\x1b[31m" not in text
    assert r"a\x1b[31m{total}" in text


def test_ctrl_c_leaves_a_clean_line():
    code = AT_ONCE + (
        "import time\nfrom hiera_video import cli\n"
        "def main(argv):\n"
        "    with progress.Progress('described', 9, unit='videos') as shown:\n"
        "        shown.to(3); time.sleep(60)\n"
        "cli.run(main, [])\n"
    )
    terminal = Terminal(code)
    terminal.read(until="3/9 videos")
    os.kill(terminal.process.pid, signal.SIGINT)
    text, code = terminal.end()
    assert code == 130
    assert screen(text) == ["error: interrupted"]


def test_a_forked_process_prints_by_itself():
    code = AT_ONCE + (
        "import os\n"
        "with progress.Progress('described', 9, unit='videos', ticking=False) as shown:\n"
        "    shown.to(3)\n"
        "    with progress._lock:\n"  # as if the thread was drawing
        "        child = os.fork()\n"
        "        if not child:\n"
        "            print('from the child', flush=True); os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
    )
    text, code = on_terminal(code)
    assert code == 0
    assert "from the child" in text


def test_what_ends_no_line_is_printed_in_the_end():
    code = AT_ONCE + (
        "import sys\n"
        "with progress.Progress('described', 9, unit='videos', ticking=False) as shown:\n"
        "    sys.stdout.write('half'); sys.stdout.flush(); shown.to(3)\n"
        "print(' and half')\n"
    )
    text, _ = on_terminal(code)
    assert screen(text) == ["half and half"]


# ---- in a log -----------------------------------------------------------------------------------


@pytest.fixture
def now(monkeypatch):
    """A clock that is set by hand."""
    hands = [100.0]
    monkeypatch.setattr(progress, "_clock", lambda: hands[0])
    return hands


def test_a_log_has_a_line_now_and_then_where_it_is_asked_for(capsys, now):
    with Progress("transcoded", 400, unit="videos", log_every=30) as shown:
        assert not shown.on_terminal
        for done in range(100, 200):  # 100 were done before
            shown.to(done)
            now[0] += 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "transcoded  130/400 videos  1 videos/s  04:30 left",
        "transcoded  160/400 videos  1 videos/s  04:00 left",
        "transcoded  190/400 videos  1 videos/s  03:30 left",
    ]


def test_words(now):
    shown = Progress("downloading", 300e6, unit="B")
    shown.add(0)
    now[0] += 60
    shown.add(60e6)
    assert shown.facts() == "60.0/300.0 MB  1.0 MB/s  04:00 left"
    shown.begin("labelled", 20_000, unit="files")
    assert shown.facts() == "0/20,000 files"
    shown.to(0)
    now[0] += 7200
    shown.to(36)
    assert shown.facts() == "36/20,000 files  0.3 files/min  1109:06:40 left"
    shown.begin("exporting", unit="")
    now[0] += 65
    assert shown.facts() == "01:05"
    assert [duration(s) for s in (2.345, 61, 97_200)] == ["2.3 s", "0:01:01", "1 day, 3:00:00"]


# ---- the commands -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("progress")
    for name in ("a", "b", "c"):
        write_clip(folder / f"{name}.mp4", frames=30, first_index=ord(name))
    (folder / "bad.mp4").write_text("no video")
    write_checkpoint(folder / "tiny.pyth")
    return folder


def command(words):
    start = "from hiera_video.__main__ import script; import sys"
    return f"{AT_ONCE} {start}; sys.argv[1:] = {words!r}; script()"


PREDICT = ["predict", ".", "--weights", "tiny.pyth", "--device", "cpu", "--views", "1x1", "--json"]


def test_predict_shows_it_on_a_terminal_and_nowhere_else(videos):
    text, code = on_terminal(command(PREDICT), cwd=videos)
    assert code == 1
    last = [line for line in drawn(text) if line.startswith("labelled")][-1]
    assert re.search(r"4/4 files  [\d.]+ files/(s|min)  \d\d:\d\d left", last)
    left = screen(text)
    assert not [line for line in left if "labelled  " in line], "nothing of it is left"
    assert [line for line in left if line.startswith("error: ./bad.mp4: ")]
    words = [sys.executable, "-c", command(PREDICT)]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, cwd=videos)
    assert done.returncode == 1
    assert [row["file"] for row in json.loads(done.stdout)]
    assert not re.search(r"labelled  |looking for|\r", done.stderr)


def test_features_and_a_map_show_it(videos):
    pytest.importorskip("pyarrow")
    words = ["features", ".", "--weights", "tiny.pyth", "--out", "f.parquet", "--device", "cpu"]
    text, code = on_terminal(command(words), cwd=videos)
    assert code == 1, "one is no video"
    assert [line for line in drawn(text) if re.match(r"described .* 3/4 videos", line)]
    text, code = on_terminal(command(["search", "f.parquet", "--map", "map"]), cwd=videos)
    assert code == 0
    assert [line for line in drawn(text) if re.match(r"pictures read .* 2/3 videos", line)]
    assert screen(text)[-1] == "wrote map/index.html"
