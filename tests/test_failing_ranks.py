"""One process of several fails, is killed or gets a signal: all of them end, and rank 0 says why.

The processes are real and nobody ends them from outside, as torchrun would after a while.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import ranks
import run_net
import tiny_runs as tiny
import torch

from hiera_video import cli
from hiera_video.engine import checkpoint, distributed, evaluate, step, watch
from hiera_video.engine import train as training
from hiera_video.engine.signals import Stop
from hiera_video.errors import RunFailed, UserError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


# ---- what happens to a process ------------------------------------------------------------------


def refuse():
    raise UserError("no such folder\nchoose another")


def fail():
    raise RunFailed("the disk is full")


def trip():
    raise ValueError("a bug\nof two lines")


def run_out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")


def crash():
    os.abort()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


GONE = "ended without a word: killed (by the system, most likely out of memory, or by a person)"

OUTCOMES = {
    refuse: (2, "no such folder"),
    fail: (1, "the disk is full"),
    trip: (1, "ValueError: a bug"),
    run_out_of_memory: (1, "OutOfMemoryError: CUDA out of memory"),
    crash: (1, GONE),
    kill: (1, GONE),
    interrupt: (130, "interrupted"),
    terminate: (143, "stopped by SIGTERM"),
}
"""What happens -> exit code of the processes, and the cause that rank 0 names."""

DEATHS = {crash: -signal.SIGABRT, kill: -signal.SIGKILL}


# ---- when it happens ----------------------------------------------------------------------------


def in_all_reduce(world, act):
    """The others wait in a collective for a process that does not come."""
    act()
    world.all_reduce(torch.ones(2))


def in_barrier(world, act):
    act()
    world.barrier()


def in_broadcast(world, act):
    """The others wait for rank 0, which is at work; or it is rank 0 that fails at its work."""

    def work():
        act()
        time.sleep(1000)

    if not world.is_main:
        act()
    world.run_on_main(work)


def in_test(world, act):
    """The others have scored their share and wait with an eye on signals."""
    world.gather_parts(act, name="scores", stopped=lambda: False, explain=lambda error: None)


def at_work(world, act):
    """The others do not wait for it yet."""
    act()
    time.sleep(1000)


def at_the_end(world, act):
    """The others are done."""
    act()


def command(folder, moment, victim, act):
    """What each process does: collectives, then the moment."""
    with distributed.init("cpu") as world:
        world.all_reduce(torch.ones(1000))
        print("a line that is not flushed")
        mine = world.rank == victim
        moment(world, act if mine else lambda: None)


def without_c10d(errors):
    """What a process said, without PyTorch's own threads: of a store that is gone they warn as
    well, before or after."""
    lines = errors.splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"(\[rank\d\]:)?\[W", line))


def assert_all_ended(ended, victim, act):
    """All codes are of the failure; its cause stands in the first line of rank 0, and only there,
    or in all survivors' where rank 0 is dead."""
    code, cause = OUTCOMES[act]
    for rank, process in enumerate(ended):
        dead = rank == victim and act in DEATHS
        assert process.code == (DEATHS[act] if dead else code), ended
        if dead:
            continue
        assert process.output == "a line that is not flushed\n"
        first = without_c10d(process.errors).partition("\n")[0]
        if rank == 0 or (victim == 0 and act in DEATHS):
            named = victim > 0 or act in DEATHS
            who = f"rank {victim}{' ' if act in DEATHS else ': '}" if named else ""
            assert first.startswith(f"error: {who}{cause}"), ended
        else:
            assert process.errors == ""
        if rank == 0:
            assert ("Traceback" in process.errors) == (act in (trip, run_out_of_memory))


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("act", OUTCOMES)
def test_whatever_ends_one_ends_both(tmp_path, act, victim):
    ended = ranks.start(command, 2, tmp_path, in_all_reduce, victim, act).wait()
    assert_all_ended(ended, victim, act)


@pytest.mark.parametrize("act", [fail, kill])
@pytest.mark.parametrize("victim", [0, 3])
@pytest.mark.parametrize("moment", [in_barrier, in_broadcast, in_test, at_work, at_the_end])
def test_whenever_one_of_four_ends_all_end(tmp_path, moment, victim, act):
    ended = ranks.start(command, 4, tmp_path, moment, victim, act).wait()
    assert_all_ended(ended, victim, act)


@pytest.mark.parametrize("act", [fail, kill])
def test_on_two_machines_one_ends_both(tmp_path, act):
    ended = ranks.start(command, 2, tmp_path, in_all_reduce, 1, act, machines=2).wait()
    assert_all_ended(ended, 1, act)


def leave_a_child_and_die():
    if os.fork() == 0:
        signal.alarm(150)  # SIGALRM ends it, whatever becomes of the test
        time.sleep(1000)
    kill()


def end_a_child(world, act):
    """SIGTERM to a child that was forked is not meant for this process."""
    child = os.fork()
    if child == 0:
        signal.alarm(150)
        time.sleep(1000)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
    time.sleep(watch.MAIN_SECONDS + 1)


def test_a_forked_child_does_not_hide_a_death(tmp_path):
    ended = ranks.start(command, 2, tmp_path, in_all_reduce, 1, leave_a_child_and_die).wait()
    assert [process.code for process in ended] == [1, -signal.SIGKILL]
    assert ended[0].errors.startswith(f"error: rank 1 {GONE}")


def test_a_signal_to_a_forked_child_is_not_one_to_its_parent(tmp_path):
    ended = ranks.start(command, 2, tmp_path, end_a_child, 1, kill).wait()
    assert [(process.code, process.errors) for process in ended] == [(0, ""), (0, "")]


# ---- before there is a group --------------------------------------------------------------------


def join(folder, act):
    """The second process picks another device, in which it fails."""

    def pick(wanted, local_rank):
        if local_rank == 1:
            act()
        return torch.device("cpu")

    distributed.pick_device = pick
    with distributed.init("cpu"):
        raise AssertionError("the group is complete")


@pytest.mark.parametrize("act", [refuse, trip, kill, terminate])
def test_one_that_ends_before_there_is_a_group_ends_both(tmp_path, act):
    code, cause = OUTCOMES[act]
    first, second = ranks.start(join, 2, tmp_path, act).wait()
    assert (first.code, second.code) == (code, DEATHS.get(act, code))
    assert first.errors.startswith(f"error: rank 1{' ' if act is kill else ': '}{cause}")
    assert second.errors == ""


def wait_alone(folder):
    """The second process does not come."""
    if os.environ["RANK"] == "0":
        (folder / "waits").touch()
        distributed.init("cpu")


def test_one_that_waits_for_the_others_to_come_hears_a_signal(tmp_path):
    started = ranks.start(wait_alone, 2, tmp_path)
    started.wait_for("waits")
    time.sleep(1)  # until it waits
    started.send(0, signal.SIGTERM)
    first, second = started.wait()
    assert (first.code, second.code) == (143, 0)
    assert first.errors == "error: stopped by SIGTERM\n"


# ---- signals to a process that waits ------------------------------------------------------------


def wait_in_vain(folder, waiting, stoppable):
    """One process waits in a collective for the other, which is at work."""
    stop = Stop() if stoppable else contextlib.nullcontext()
    with distributed.init("cpu") as world, stop:
        world.all_reduce(torch.ones(1))
        if world.rank != waiting:
            time.sleep(1000)
        (folder / "waits").touch()
        world.all_reduce(torch.ones(1))


@pytest.mark.parametrize(
    ("waiting", "number", "expected"),
    [
        (0, signal.SIGTERM, (143, "error: stopped by SIGTERM\n")),
        (1, signal.SIGINT, (130, "error: rank 1: interrupted\n")),
    ],
)
def test_a_process_that_waits_leaves_after_a_signal(tmp_path, waiting, number, expected):
    """Where there is nothing to save."""
    started = ranks.start(wait_in_vain, 2, tmp_path, waiting, False)
    started.wait_for("waits")
    started.send(waiting, number)
    first, second = started.wait()
    assert (first.code, first.errors) == expected
    assert (second.code, second.errors) == (expected[0], "")


def test_a_second_ctrl_c_ends_processes_that_cannot_finish_their_step(tmp_path):
    started = ranks.start(wait_in_vain, 2, tmp_path, 0, True)
    started.wait_for("waits")
    started.send(0, signal.SIGINT)
    time.sleep(1)  # or the two would be one to Python
    started.send(0, signal.SIGINT)
    first, second = started.wait()
    assert (first.code, first.errors, second.code) == (130, "error: interrupted\n", 130)


def halt(folder):
    """The second process is stopped, as a debugger does it, and then the third one fails."""
    with distributed.init("cpu") as world:
        world.all_reduce(torch.ones(1))
        if world.rank == 1:
            (folder / "halted").touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        while world.rank == 2 and not (folder / "halted").exists():
            time.sleep(0.02)
        if world.rank == 2:
            time.sleep(1)
            raise RunFailed("the disk is full")
        world.all_reduce(torch.ones(1))


def test_a_halted_process_does_not_hold_the_others_and_leaves_when_it_goes_on(tmp_path):
    started = ranks.start(halt, 3, tmp_path)
    for rank in (0, 2):
        started.processes[rank].join(ranks.LIMIT)
    assert started.processes[1].exitcode is None
    started.send(1, signal.SIGCONT)
    ended = started.wait()
    assert [process.code for process in ended] == [1, 1, 1]
    assert ended[0].errors == "error: rank 2: the disk is full\n"


# ---- in a run -----------------------------------------------------------------------------------


def train(folder, words, moment, victim, act):
    """A run of tools/run_net.py, in which something happens to one process at some point."""
    owner, name = MOMENTS[moment]
    real, calls = getattr(owner, name), itertools.count()

    def acting(*args, **kwargs):
        if os.environ["RANK"] == str(victim) and next(calls) == 1:
            act()
        return real(*args, **kwargs)

    setattr(owner, name, acting)
    return run_net.main(words)


MOMENTS = {
    "a step": (step.Forward, "_backward_part"),
    "an update": (training, "update"),
    "the validation": (evaluate, "clip_scores"),
    "a save": (checkpoint, "save"),
    "the best": (checkpoint, "best_record"),
}
"""What a process is doing -> what it calls then, of which the second call is the moment."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return tiny.write_videos(tmp_path_factory.mktemp("videos"), train=8, val=16)


@pytest.mark.parametrize(
    ("moment", "victim", "act"),
    [
        ("a step", 1, kill),
        ("an update", 1, run_out_of_memory),
        ("the validation", 1, fail),
        ("the validation", 0, kill),
        ("a save", 0, trip),
    ],
)
def test_a_run_ends_with_one_of_its_processes(videos, tmp_path, moment, victim, act):
    more = ("TEST.NUM_ENSEMBLE_VIEWS", 1, "TEST.BATCH_SIZE", 2, "SOLVER.MAX_EPOCH", 3)
    words = tiny.settings(videos, tmp_path / "out", *more)
    words = ["--cfg", str(tiny.empty(tmp_path)), *words]
    ended = ranks.start(train, 2, tmp_path, words, moment, victim, act).wait()
    code, cause = OUTCOMES[act]
    codes = [DEATHS.get(act, code) if rank == victim else code for rank in (0, 1)]
    assert [process.code for process in ended] == codes
    said = without_c10d(ended[1 if victim == 0 and act is kill else 0].errors).splitlines()
    who = f"rank {victim}" if victim or act is kill else ""
    assert said[0].startswith(f"error: {who}"), ended
    explained = "CUDA out of memory. Tried to allocate 2.00 GiB, with 2 clips at a time."
    assert (explained if act is run_out_of_memory else cause) in said[0]
    assert (len(said) > 1) == (act is trip)


def lose_a_worker():
    """As a signal to all processes does it, to those that read videos too."""
    terminate()
    raise RunFailed("a process that read videos was ended by SIGTERM")


def test_what_fails_on_rank_0_because_of_a_signal_ends_the_run_with_its_state_saved(
    videos, tmp_path
):
    """The other process waits for it meanwhile, and must leave with it."""
    words = ["--cfg", str(tiny.empty(tmp_path)), *tiny.settings(videos, tmp_path / "out")]
    ended = ranks.start(train, 2, tmp_path, words, "the best", 0, lose_a_worker).wait()
    assert [(process.code, process.errors) for process in ended] == [(0, ""), (0, "")]
    assert "stopped by SIGTERM after step 4 of 4, which is saved" in ended[0].output
    assert tiny.final(tmp_path / "out")["step"] == 4


SCRIPT = """
import os, signal, torch
from hiera_video.engine import distributed

with distributed.init("cpu") as world:
    world.all_reduce(torch.ones(1))
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    world.all_reduce(torch.ones(1))
"""


@pytest.mark.parametrize("machines", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_torchrun_does_not_hide_the_cause(tmp_path, machines):
    """It sends SIGTERM to the others as soon as it sees that one has died."""
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={2 // machines}"),
        *(f"--nnodes={machines}", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"),
        *("--max-restarts=0", str(tmp_path / "script.py")),
    ]
    agents = [
        subprocess.Popen(command, env=tiny.environment(), stderr=subprocess.PIPE, text=True)
        for _ in range(machines)
    ]
    said = "".join(agent.communicate(timeout=300)[1] for agent in agents)
    assert all(agent.returncode == 1 for agent in agents), said
    causes = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(causes) == 1, said
    assert causes[0].startswith(f"error: rank 1 {GONE}")


# ---- which failure is the cause -----------------------------------------------------------------


def connected(count):
    """Rank 0's side of a run, the first `count - 1` other ranks of which have joined."""
    hub = watch.Hub(3, one_machine=True)
    token = json.loads(hub.address(["here"]))["token"]
    links = [watch.Link(socket.socket()) for _ in range(count)]
    for rank, link in enumerate(links, start=1):
        assert hub.hear(link, {"rank": rank, "token": token})
    return hub, links


def later(hub, own):
    return hub.decide(own, time.monotonic() + 1)


def failed(rank, *failure):
    own = watch.Own()
    own.report = watch.Report(rank, cli.Failure(*failure), time.monotonic())
    return own


def test_the_first_failure_is_the_cause_and_a_death_comes_before_what_it_led_to():
    hub, (one, two) = connected(2)
    hub.hear(two, {"failed": [1, "the disk is full", ""]})
    hub.hear(one, {"failed": [2, "no such folder", ""]})
    assert hub.decide(watch.Own(), time.monotonic()) is None  # a death may explain it
    assert later(hub, watch.Own()) == (1, "error: rank 2: the disk is full\n")
    assert later(hub, failed(0, 2, "something else", "")).text.startswith("error: rank 2: the disk")
    hub, (one, two) = connected(2)
    hub.hear(two, {"failed": [1, "RuntimeError: connection closed by peer", "Traceback"]})
    hub.lost(one)
    assert later(hub, watch.Own()).text.startswith("error: rank 1 ended without a word")


def test_what_fails_everywhere_is_said_of_no_rank():
    hub, (one, _) = connected(2)
    hub.hear(one, {"failed": [2, "no such folder", ""]})
    assert later(hub, failed(0, 2, "no such folder", "")) == (2, "error: no such folder\n")


def test_a_signal_before_all_have_joined_names_who_has_not():
    """torchrun sends it when a process has died: one that had not joined could not be missed."""
    hub, _ = connected(1)
    said = later(hub, failed(0, 143, "stopped by SIGTERM", "")).text
    assert said == "error: stopped by SIGTERM; rank 2 had not joined the run yet\n"
    hub, _ = connected(1)
    said = later(hub, failed(0, 2, "no such folder", "")).text
    assert said == "error: no such folder\n"


def test_a_stranger_who_connects_is_sent_away():
    hub, _ = connected(0)
    link = watch.Link(socket.socket())
    assert not hub.hear(link, {"rank": 1, "token": "guessed"})
    hub.lost(link)
    assert later(hub, watch.Own()) is None
