"""Processes that srun started find each other by Slurm's variables, and only those."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
import tiny_runs as tiny
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import HashStore

from hiera_video.engine import launch
from hiera_video.engine.attempt import name_of_attempt
from hiera_video.engine.launch import find_launch, port_of
from hiera_video.engine.slurm_names import hosts, tasks_on_nodes
from hiera_video.errors import RunFailed, UserError

SRUN = {
    "SLURM_JOB_ID": "4021",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "11",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_TASKS_PER_NODE": "4(x2),3",
    "SLURM_JOB_NODELIST": "node[001-003]-ib",
}
"""What srun sets for one of eleven tasks on three machines."""


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node1", ["node1"]),
        ("node[001-004,7]-ib", [f"node{n}-ib" for n in ("001", "002", "003", "004", "7")]),
        ("a[1-2],b,c[08-10]", ["a1", "a2", "b", "c08", "c09", "c10"]),
        ("rack[0-1]n[1-2].x.org", ["rack0n1.x.org", "rack0n2.x.org", "rack1n1.x.org",
                                   "rack1n2.x.org"]),
        ("[1-2]", ["1", "2"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
    ],
)  # fmt: skip
def test_lists_of_machines(text, expected):
    assert hosts(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ",", "a,", ",a", "a,,b", "n[1-2", "n1]", "n[]", "n[2-1]", "n[1-x]", "n[1,]", "n[[1]]",
     "n[1-999999999999]", "[1-1000][1-1000][1-1000]"],
)  # fmt: skip
def test_what_is_no_list_of_machines(text):
    with pytest.raises(ValueError, match=r"machine|range of numbers"):
        hosts(text)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z][a-z.-]{0,4}", fullmatch=True),
            st.lists(st.tuples(st.integers(0, 40), st.integers(0, 4)), min_size=0, max_size=3),
            st.integers(1, 4),
            st.sampled_from(["", "-ib", ".a"]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_is_compressed_is_expanded(groups):
    """Written as Slurm does it from names that are known."""
    written, expected = [], []
    for prefix, ranges, width, suffix in groups:
        parts = [f"{a:0{width}d}-{a + n:0{width}d}" if n else f"{a:0{width}d}" for a, n in ranges]
        written.append(prefix + (f"[{','.join(parts)}]" if parts else "") + suffix)
        numbers = [f"{a + i:0{width}d}" for a, n in ranges for i in range(n + 1)] or [""]
        expected += [f"{prefix}{number}{suffix}" for number in numbers]
    assert hosts(",".join(written)) == expected


@given(st.text(alphabet="n1-,[] x", max_size=12))
def test_no_text_does_more_than_be_refused(text):
    try:
        assert all(hosts(text))
    except ValueError:
        return


def test_tasks_of_machines():
    assert tasks_on_nodes("4(x2),3") == [4, 4, 3]
    assert tasks_on_nodes("1") == [1]
    for wrong in ("", "4(x2", "4,", "x", "4(x99999999)"):
        with pytest.raises(ValueError, match="number of tasks"):
            tasks_on_nodes(wrong)


# ---- variables ----------------------------------------------------------------------------------


def test_a_task_of_srun_knows_its_place():
    found = find_launch(SRUN)
    assert (found.rank, found.size, found.local_rank, found.local_size) == (9, 11, 1, 3)
    assert (found.address, found.port) == ("node001-ib", 10_000 + 4021)
    assert found.note == (
        "Slurm step 4021.0: process 9 of 11, 3 on this machine; they meet at node001-ib:14021"
    )


def test_on_one_machine_its_name_is_not_needed():
    found = find_launch({**SRUN, "SLURM_JOB_NODELIST": "node7", "SLURM_TASKS_PER_NODE": "11",
                         "SLURM_NODEID": "0"})  # fmt: skip
    assert (found.address, found.local_size) == ("127.0.0.1", 11)


def test_a_step_has_its_own_machines_and_tasks():
    found = find_launch(
        SRUN
        | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_NODEID": "1"}
        | {"SLURM_STEP_NODELIST": "node[002-003]-ib", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    )
    assert (found.rank, found.size, found.local_size) == (1, 2, 1)
    assert found.address == "node002-ib"


def test_without_tasks_of_each_machine_they_are_even():
    few = {name: value for name, value in SRUN.items() if name != "SLURM_TASKS_PER_NODE"}
    assert find_launch(few).local_size == 4
    assert find_launch({**few, "SLURM_NTASKS_PER_NODE": "5"}).local_size == 5


def test_an_address_that_the_user_sets_wins():
    found = find_launch({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert (found.address, found.port) == ("10.0.0.1", 29500)


def test_torchrun_wins():
    """It may run inside a task of srun."""
    torchrun = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "MASTER_ADDR": "x", "MASTER_PORT": 7}
    found = find_launch({**SRUN, **{name: str(value) for name, value in torchrun.items()}})
    assert (found.rank, found.size, found.address, found.note) == (1, 2, "x", "")
    assert find_launch({**SRUN, "WORLD_SIZE": "1"}) == launch.Launch()


@pytest.mark.parametrize(
    "changed",
    [
        {"SLURM_STEP_ID": None},  # the script of sbatch
        {"SLURM_STEP_ID": "4294967291"},  # the same, of some versions
        {"SLURM_STEP_ID": "4294967290"},  # the shell of salloc
        {"SLURM_STEP_ID": "batch"},
        {"SLURM_PROCID": None},
    ],
)
def test_where_srun_did_not_start_it_it_waits_for_nobody(changed):
    variables = {**SRUN, "SLURM_PROCID": "0", **changed}
    found = find_launch({name: value for name, value in variables.items() if value})
    assert found.size == 1
    assert found.note == (
        "Slurm job 4021 has 11 tasks, and this process is none of them: it was started without "
        "srun, so it runs alone (for 11: srun hiera-video train ...)"
    )


def test_one_task_is_alone_and_says_nothing():
    assert find_launch({**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) == launch.Launch()
    assert find_launch({}) == launch.Launch()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"SLURM_PROCID": "x"}, "variable SLURM_PROCID is 'x'; it must be a number"),
        ({"SLURM_PROCID": "11"}, "SLURM_PROCID is 11 of 11 tasks"),
        ({"SLURM_JOB_NODELIST": "n[1"}, "make no sense: 'n.1' is not a list of machines"),
        ({"SLURM_TASKS_PER_NODE": "4x"}, "'4x' is not a number of tasks"),
    ],
)
def test_variables_that_make_no_sense_are_refused(changed, said):
    with pytest.raises(UserError, match=said):
        find_launch({**SRUN, **changed})


def test_jobs_and_steps_meet_at_different_ports():
    ports = [port_of(job, step) for job in range(7000, 7500) for step in range(2)]
    assert len(set(ports)) == len(ports)
    assert all(10_000 <= port < 30_000 for port in (port_of(2**31, 500), port_of(0, 0), *ports))


# ---- attempts -----------------------------------------------------------------------------------


def meet(store, size, delay=lambda rank: 0.0):
    """The names that `size` processes agree on, by rank."""
    found = {}

    def come(rank):
        time.sleep(delay(rank))
        found[rank] = name_of_attempt(store, rank, size, timedelta(seconds=60))

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return [found[rank] for rank in range(size)]


def test_each_attempt_in_one_store_has_a_name_of_its_own():
    """With other numbers of processes, whoever comes first, and after an attempt of which only a
    part had come."""
    store, names = HashStore(), set()
    for late, size in itertools.product(range(2), (3, 2)):
        found = meet(store, size, lambda rank, late=late: 0.2 * (rank == late))
        assert len(set(found)) == 1
        assert found[0] not in names
        names.add(found[0])
        with pytest.raises(RunFailed, match="waited in vain for ranks 1, 2 to start"):
            name_of_attempt(store, 0, 3, timedelta(seconds=0.1))
        with pytest.raises(RunFailed, match="rank 1 waited in vain for rank 0"):
            name_of_attempt(store, 1, 3, timedelta(seconds=0.1))


# ---- processes ----------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
from hiera_video import cli
from hiera_video.engine import distributed

def main(argv):
    with distributed.init("cpu") as world:
        total = world.all_reduce(torch.tensor([1.0, world.rank])).tolist()
        print(world.rank, world.size, world.local_rank, world.local_size, total)

cli.run(main)
"""


def srun(script, count, job, **more):
    """Start a script as srun does; the processes by rank."""
    environment = {n: v for n, v in tiny.environment().items() if not n.startswith("SLURM_")}
    return [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={
                **environment,
                **{"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(count)},
                **{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"},
                **{"SLURM_TASKS_PER_NODE": str(count), "SLURM_JOB_NODELIST": "here"},
                **more,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def test_two_jobs_of_srun_on_one_machine_do_not_meet(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    job = 10_000 + os.getpid() % 5000
    for processes in [srun(tmp_path / "script.py", 2, job + number) for number in range(2)]:
        for rank, process in enumerate(processes):
            said, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            assert said == f"{rank} 2 {rank} 2 [2.0, 1.0]\n"
            assert ("Slurm step" in errors) == (rank == 0)


def test_a_batch_script_without_srun_runs_alone(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (process,) = srun(tmp_path / "script.py", 1, 5, SLURM_STEP_ID="", SLURM_NTASKS="8")
    said, errors = process.communicate(timeout=120)
    assert said == "0 1 0 1 [1.0, 0.0]\n"
    assert "Slurm job 5 has 8 tasks, and this process is none of them" in errors
