"""Exit codes and one-line errors, tested in child processes as a shell script sees them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from clips import write_clip

ROOT = Path(__file__).resolve().parent.parent


def command(body: str) -> list[str]:
    """A command line whose `main(argv)` has this body."""
    code = (
        "import sys, time\n"
        "from hiera_video.cli import run\n"
        "from hiera_video.errors import RunFailed, UserError\n"
        "def main(argv):\n" + textwrap.indent(textwrap.dedent(body), "    ") + "\n"
        "run(main)\n"
    )
    return [sys.executable, "-c", code]


def outcome(body: str, *argv: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [*command(body), *argv], capture_output=True, text=True, cwd=ROOT, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        ("return 0", 0, ""),
        ("pass", 0, ""),
        ("return 1", 1, ""),
        ("raise UserError('no such flag')", 2, "error: no such flag\n"),
        ("raise RunFailed('loss is NaN')", 1, "error: loss is NaN\n"),
        ("raise KeyboardInterrupt", 130, "error: interrupted\n"),
        (
            "from hiera_video.registry import MODEL_REGISTRY; MODEL_REGISTRY.get('x')",
            2,
            "error: unknown model 'x'",
        ),
        (
            "from hiera_video.config import load_config; load_config('nowhere.yaml')",
            2,
            "error: no config file nowhere.yaml",
        ),
        ("open('/no/such/file')", 1, "error: [Errno 2] No such file or directory"),
        ("raise OSError(5, 'Input/output error')", 1, "error: [Errno 5] Input/output error\n"),
        (
            "from hiera_video.errors import DecodeError; raise DecodeError('a.mp4', 'cut off')",
            1,
            "error: a.mp4: cut off\n",
        ),
    ],
)
def test_exit_codes(body, code, error):
    returned, out, err = outcome(body)
    assert (returned, out) == (code, "")
    assert err.startswith(error) if error.endswith("\n") else error in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 1


def test_bugs_keep_their_traceback():
    code, _, err = outcome("return [][0]")
    assert code == 1
    assert "Traceback" in err
    assert "IndexError" in err


def test_the_arguments_arrive():
    assert outcome("print(argv)", "a", "--b") == (0, "['a', '--b']\n", "")


def test_a_reader_that_has_ended_is_not_an_error():
    """... | head: no traceback, no message, the exit code of a broken pipe."""
    body = "for i in range(200_000): print('a line of some length', i)"
    reader = subprocess.Popen(["head", "-n", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    writer = subprocess.Popen(command(body), stdout=reader.stdin, stderr=subprocess.PIPE, cwd=ROOT)
    reader.stdin.close()  # the writer holds the only other end
    with reader, writer:
        err = writer.stderr.read()
    assert (writer.returncode, err) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("body", "unbuffered", "error"),
    [
        ("print('x')", "", "cannot write to standard output: No space left on device"),
        ("print('x')", "1", "cannot write to standard output: No space left on device"),
        ("print('x' * 1_000_000)", "", "cannot write to standard output: No space left on device"),
        ("print('said'); raise RunFailed('loss is NaN')", "", "loss is NaN"),
        ("raise OSError(28, 'No space', 'a.txt')", "", "[Errno 28] No space: 'a.txt'"),
    ],
)
def test_a_full_disk_behind_standard_output_is_named(body, unbuffered, error):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(body),
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert (done.returncode, done.stderr.decode()) == (1, f"error: {error}\n")


def test_a_name_that_cannot_be_shown_is_shown_escaped():
    """A name that the terminal cannot show must not end the run that prints it."""
    done = subprocess.run(
        command(r"print('caf\udce9 \u7b11.mp4')"),
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == rb"caf\udce9 \u7b11.mp4" + b"\n"


def test_a_broken_pipe_elsewhere_is_a_failure():
    """A worker that died must not look like `head`."""
    code, _, err = outcome("raise BrokenPipeError(32, 'Broken pipe')")
    assert code == 1
    assert "Broken pipe" in err


def test_ctrl_c():
    process = subprocess.Popen(
        command("print('ready', flush=True); time.sleep(60)"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "error: interrupted\n")


@pytest.mark.parametrize(("processes", "code"), [("1", -signal.SIGABRT), ("2", 0)])
def test_one_process_of_several_exits_before_threads_can_abort_it(processes, code, monkeypatch):
    """PyTorch's threads sometimes abort during the interpreter's shutdown. What atexit has
    registered is still called, and what was printed is still written."""
    monkeypatch.setenv("WORLD_SIZE", processes)
    body = """
        import atexit, os
        class Late:
            def __del__(self, abort=os.abort):
                abort()
        sys.late = Late()
        atexit.register(print, "workers ended")
        print("done")
    """
    assert outcome(body)[:2] == (code, "done\nworkers ended\n")


def test_import_flag(tmp_path):
    (tmp_path / "first.py").write_text("print('first')\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    code = (
        "import argparse\n"
        "from hiera_video.cli import add_import_argument, run\n"
        "def main(argv):\n"
        "    parser = argparse.ArgumentParser()\n"
        "    add_import_argument(parser)\n"
        "    print(parser.parse_args(argv).imports)\n"
        "run(main)\n"
    )

    def call(*argv):
        done = subprocess.run(
            [sys.executable, "-c", code, *argv],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    assert call() == (0, "[]\n", "")
    assert call("--import", "first", "--import", "json") == (0, "first\n['first', 'json']\n", "")
    returned, _, err = call("--import", "broken")
    assert returned == 2
    assert err.startswith("error: cannot import module 'broken'")
    assert "ZeroDivisionError" in err
    assert "broken.py:1" in err


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP's settings, as torch has it there")
@pytest.mark.parametrize(
    ("environment", "taken"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "77"}, "77"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "0"),
    ],
)
def test_threads_that_wait_do_not_spin_for_long(environment, taken):
    """As the library itself reports it when torch has loaded it."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "GOMP_", "KMP_"))
    }
    done = subprocess.run(
        command("import torch; torch.ones(9)"),
        env={**variables, "OMP_DISPLAY_ENV": "VERBOSE", **environment},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this torch comes with another OpenMP than GNU's")
    assert f"GOMP_SPINCOUNT = '{taken}'" in done.stderr


def test_the_collector_rests_only_while_torch_is_imported():
    """What torch makes stays out of later collections; they go on for what comes after."""
    code = """
import gc, sys
from hiera_video import cli
assert "torch" not in sys.modules
cli.import_torch()
assert gc.isenabled() and gc.get_freeze_count() > 50_000
class Ring: pass
ring = Ring(); ring.self = ring; seen = []
import weakref
weakref.finalize(ring, seen.append, 1); del ring
gc.collect(); assert seen
frozen = gc.get_freeze_count()
cli.import_torch()
assert gc.get_freeze_count() == frozen, "a program that calls commands again and again"
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_labelling_needs_no_compiler():
    """torch._dynamo takes longer to import than all of this package."""
    code = """
import sys
import hiera_video.predict, hiera_video.features.describe, hiera_video.engine.train
slow = {"torch._dynamo", "torch._inductor", "sympy", "triton"} & set(sys.modules)
assert not slow, slow
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_labelling_imports_only_what_it_needs(tmp_path):
    """Each tenth of a second of the start is one that every first user waits for."""
    clip = write_clip(tmp_path / "clip.mp4")
    code = f"""
import sys
from hiera_video.commands import predict
assert predict.main([{str(clip)!r}, "--weights", "camera_motion", "--device", "cpu"]) == 0
from hiera_video import MODEL_REGISTRY
assert "hiera_base_16x224" in MODEL_REGISTRY
ours = ("config.schema", "models.ladder", "models.baselines", "detection", "label_page", "engine")
found = [m for m in sys.modules if m.startswith(tuple(f"hiera_video.{{part}}" for part in ours))]
assert not found, found
assert "hiera_ladder_no_such" not in MODEL_REGISTRY
assert "hiera_video.models.ladder.steps" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
