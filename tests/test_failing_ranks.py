"""One process of several fails, is killed or gets a signal: all of them end, and rank 0 says why.

The processes are real and nobody ends them from outside, as torchrun would after a while.
"""

import os
import signal
import time

import pytest
import ranks
import torch

from hiera_video.engine import distributed
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


def in_c_code(world, act):
    """The others neither wait for each other nor see a signal."""
    act()
    world.all_gather(world.rank)
    torch.ones(1).share_memory_()
    time.sleep(1000)


def command(folder, moment, victim, act):
    """What each process does: five collectives, then the moment."""
    with distributed.init("cpu") as world:
        for _ in range(5):
            world.all_reduce(torch.ones(1000))
        print("a line that is not flushed")
        mine = world.rank == victim
        moment(world, act if mine else lambda: None)
        time.sleep(1000)


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
        first = process.errors.partition("\n")[0]
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


@pytest.mark.parametrize("act", [fail, kill, interrupt])
@pytest.mark.parametrize("victim", [0, 3])
@pytest.mark.parametrize("moment", [in_barrier, in_broadcast, in_test, in_c_code])
def test_whenever_one_of_four_ends_all_end(tmp_path, moment, victim, act):
    ended = ranks.start(command, 4, tmp_path, moment, victim, act).wait()
    assert_all_ended(ended, victim, act)
