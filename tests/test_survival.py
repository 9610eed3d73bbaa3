"""Runs that bad things happen to: killed, stopped, on a full disk, on a clock that jumps.

Each test states what must come of it. The runs are children throughout: the same command lines
that users type, and one thread each, because another number would add up in another order.
"""

import contextlib
import itertools
import json
import os
import random
import re
import resource
import signal
import subprocess
import time

import pytest
import tiny_runs as tiny

from hiera_video.engine import checkpoint, evaluate, plots
from hiera_video.engine.distributed import init
from hiera_video.engine.train import Stop

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")

LEARNT = ("model_state", "raw_state", "optimizer_state", "epoch_sums", "step")
"""What two runs must have in common, bit for bit, to be called the same."""

SHORT = (
    *tiny.HEAVY,
    *("SOLVER.MAX_EPOCH", 8, "TRAIN.CHECKPOINT_STEPS", 1, "TRAIN.CHECKPOINT_PERIOD", 100),
    *("TRAIN.EVAL_PERIOD", 0, "TEST.ENABLE", "false"),
)
"""Sixteen steps with a checkpoint after each."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Nine training and three validation videos."""
    return tiny.write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def words(tmp_path_factory, videos):
    """The command line of a run of SHORT into a folder."""
    cfg = tiny.empty(tmp_path_factory.mktemp("cfg"))
    return lambda out, *more: ["--cfg", cfg, *tiny.settings(videos, out, *SHORT, *more)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, words):
    """What SHORT comes to when nothing happens to it."""
    out = tmp_path_factory.mktemp("straight") / "out"
    done = tiny.run_child(*words(out), timeout=1200)
    assert done.returncode == 0, done.stderr
    return out


@contextlib.contextmanager
def started(*words):
    """A run that talks to us; killed at the end if it is still there."""
    child = tiny.start_child(*words)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def wait_for(child, *, steps):
    """Read what a run says until it has taken so many steps; all its lines up to there."""
    lines = []
    for line in child.stdout:
        lines.append(line)
        steps -= line.startswith("epoch ") and "  step " in line
        if not steps:
            return lines
    raise AssertionError("the run ended early:\n" + "".join(lines) + child.stderr.read())


def assert_goes_on_to(straight, out, words):
    """The same command ends the run as if nothing had happened to it."""
    done = tiny.run_child(*words, timeout=1200)
    assert done.returncode == 0, done.stderr
    a, b = tiny.final(straight), tiny.final(out)
    for key in LEARNT:
        assert tiny.same(a.get(key), b.get(key)), key
    assert tiny.losses(straight) == tiny.losses(out)


def assert_all_readable(out):
    files = checkpoint.in_order(out / "checkpoints")
    assert [checkpoint.fault(path) for path in files] == [None] * len(files)


# ---- killed -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_fifty_times_ends_with_the_same_weights(videos, tmp_path):
    """SIGKILL at random moments, with and without a worker, in the middle of a save too."""
    straight, out = tmp_path / "straight", tmp_path / "out"
    extra = (*tiny.HEAVY, "SOLVER.MAX_EPOCH", 250, "TRAIN.CHECKPOINT_STEPS", 5,
             "TRAIN.CHECKPOINT_PERIOD", 1000, "TRAIN.EVAL_PERIOD", 25,
             "TEST.ENABLE", "false")  # fmt: skip
    words = ["--cfg", tiny.empty(tmp_path)]
    done = tiny.run_child(*words, *tiny.settings(videos, straight, *extra), timeout=1200)
    assert done.returncode == 0, done.stderr
    expected = tiny.losses(straight)
    dice, resumed = random.Random(1), 0
    for kill in range(50):
        workers = "DATA_LOADER.NUM_WORKERS", int(kill % 10 == 9)
        with started(*words, *tiny.settings(videos, out, *extra, *workers)) as child:
            lines = wait_for(child, steps=dice.randint(1, 14))
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(dice.uniform(0, 0.3))
            assert child.poll() is None, "the run is too short to be killed fifty times"
            child.kill()
            child.wait()
        resumed += any("going on from" in line for line in lines)
        assert_all_readable(out)
        found = tiny.losses(out)
        assert found == {step: expected[step] for step in found}, f"after kill {kill + 1}"
    assert resumed > 25
    assert max(tiny.losses(out)) >= 50
    done = tiny.run_child(*words, *tiny.settings(videos, out, *extra), timeout=1200)
    assert done.returncode == 0, done.stderr
    for key in LEARNT:
        assert tiny.same(tiny.final(straight).get(key), tiny.final(out).get(key)), key
    assert tiny.losses(out) == expected


def test_a_killed_run_leaves_no_workers(words, tmp_path):
    with started(*words(tmp_path / "out", "DATA_LOADER.NUM_WORKERS", 1)) as child:
        wait_for(child, steps=1)
        family = descendants(child.pid)
        assert len(family) >= 2  # the server that starts workers, and the worker
        child.kill()
        child.wait()
        end = time.monotonic() + 60
        while (left := [pid for pid in family if is_alive(pid)]) and time.monotonic() < end:
            time.sleep(0.1)
    assert not left


def test_a_worker_that_is_killed_is_named_and_replaced(straight, words, tmp_path):
    """Whatever it was doing: the run goes on and learns what it would have learnt."""
    out = tmp_path / "out"
    with started(*words(out, "DATA_LOADER.NUM_WORKERS", 1)) as child:
        wait_for(child, steps=1)
        (worker,) = [pid for pid, depth in descendants(child.pid).items() if depth == 2]
        os.kill(worker, signal.SIGKILL)
        said, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors + said
    assert re.search(r"worker.* SIGKILL|SIGKILL.* worker", said + errors), said + errors
    for key in LEARNT:
        assert tiny.same(tiny.final(straight).get(key), tiny.final(out).get(key)), key
    assert tiny.losses(straight) == tiny.losses(out)


def parents():
    """Process id -> parent's, of every process of the machine that is not dead already."""
    found = {}
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            number = int(name)
            with open(f"/proc/{number}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                found[number] = int(parent)
    return found


def descendants(ancestor):
    """Process id -> how many generations it is below `ancestor`.

    All of it from one look at the machine: a look for each process took seconds beside other tests,
    in which a short run ended before its worker was killed.
    """
    table, found = parents(), {}
    for pid in table:
        at, steps = pid, 0
        while at in table and at != ancestor:
            at, steps = table[at], steps + 1
        if steps and at == ancestor:
            found[pid] = steps
    return found


def is_alive(pid):
    return pid in parents()


# ---- asked to stop ------------------------------------------------------------------------------


def test_sigterm_saves_and_exits_0_and_goes_on_bit_for_bit(straight, words, tmp_path):
    out = tmp_path / "out"
    rare = words(out, "TRAIN.CHECKPOINT_STEPS", 0)  # nothing is saved but for the signal
    with started(*rare) as child:
        wait_for(child, steps=3)
        child.terminate()
        said, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors
    assert "stopped by SIGTERM" in said
    assert 3 <= tiny.final(out)["step"] < 16
    assert_goes_on_to(straight, out, rare)


# ---- no room ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_keeps_the_old_checkpoints(straight, words, small_disk):
    """The run ends with 1 and says so; once there is room, the same command goes on."""
    out = small_disk / "out"
    with started(*words(out)) as child:
        wait_for(child, steps=3)
        with open(small_disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(4096)):
                pass
        said, errors = child.communicate(timeout=600)
    assert_ended_on_a_full_disk(child, said, errors, "No space left on device")
    assert_all_readable(out)
    assert tiny.final(out)["step"] >= 2
    (small_disk / "filler").unlink()
    assert_goes_on_to(straight, out, words(out))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process: Linux")
def test_a_file_that_may_not_grow_keeps_the_old_checkpoints(straight, words, tmp_path):
    """As a quota does it: the same outcome as on a full disk."""
    out = tmp_path / "out"
    with started(*words(out)) as child:
        wait_for(child, steps=3)
        one = checkpoint.in_order(out / "checkpoints")[-1].stat().st_size
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (one // 2, one // 2))
        said, errors = child.communicate(timeout=600)
    assert_ended_on_a_full_disk(child, said, errors, "File too large")
    assert_all_readable(out)
    assert tiny.final(out)["step"] >= 2
    assert_goes_on_to(straight, out, words(out))


def assert_ended_on_a_full_disk(child, said, errors, reason):
    assert child.returncode == 1, errors + said
    assert errors.startswith("error: cannot write "), errors
    assert reason in errors
    assert "Traceback" not in errors


# ---- folders ------------------------------------------------------------------------------------


def test_a_read_only_folder_is_refused_before_the_first_step(words, tmp_path, request):
    folder = tmp_path / "out"
    folder.mkdir()
    if os.geteuid() == 0:  # whom permissions do not stop
        folder = request.getfixturevalue("small_disk")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    else:
        folder.chmod(0o500)
    done = tiny.run_child(*words(folder), timeout=1200)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: cannot write to OUTPUT_DIR {folder}")
    assert "OUTPUT_DIR runs/my_run" in done.stderr
    assert "  step " not in done.stdout


def test_a_folder_that_goes_away_ends_the_run(words, tmp_path):
    out = tmp_path / "out"
    with started(*words(out)) as child:
        wait_for(child, steps=2)
        out.rename(tmp_path / "elsewhere")
        said, errors = child.communicate(timeout=600)
    assert child.returncode == 1, errors + said
    assert f"error: cannot write {out}" in errors
    assert "Traceback" not in errors
    assert_all_readable(tmp_path / "elsewhere")


# ---- clocks -------------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_nothing(videos, tmp_path, monkeypatch):
    """Neither the time of day nor the age of files decides what a run goes on from."""
    monkeypatch.setattr(plots, "draw_curves", lambda folder: None)
    kept = ("TRAIN.KEEP_CHECKPOINTS", 0, "TRAIN.EVAL_PERIOD", 0)
    whole, half, out = (tmp_path / name for name in ("whole", "half", "out"))
    tiny.run(tiny.config(videos, whole, *kept, "SOLVER.MAX_EPOCH", 4))
    tiny.run(tiny.config(videos, half, *kept, "SOLVER.MAX_EPOCH", 4))
    files = checkpoint.in_order(half / "checkpoints")
    files.pop().unlink()
    for age, path in enumerate(files):  # the newest step is the oldest file
        os.utime(path, (10**9 - age * 10**6, 10**9 - age * 10**6))
    os.utime(files[0], (2**33, 2**33))  # and the first one is of the year 2242
    half.rename(out)
    jumps = itertools.cycle([0.0, 4e9, -1e9, 1.7e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    cfg = tiny.config(videos, out, *kept, "SOLVER.MAX_EPOCH", 4)
    assert tiny.run(cfg) == 0
    evaluate.test(cfg, init("cpu"), Stop())
    assert 0 <= json.loads((out / "results.json").read_text())["seconds"] < 1000
    assert tiny.same(tiny.final(whole)["model_state"], tiny.final(out)["model_state"])
    assert tiny.losses(whole) == tiny.losses(out)
