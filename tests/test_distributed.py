"""Processes under torchrun: real ones, over gloo."""

import json
import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from conftest import REPOSITORY
from torch.distributed import HashStore

from hiera_video.engine import distributed, sharding
from hiera_video.errors import UserError


def torchrun(code, processes, tmp_path):
    """Run `code` in several processes; whatever each wrote to `out(...)`, by rank."""
    script = tmp_path / "script.py"
    head = """
        import json, sys, torch
        from pathlib import Path
        from hiera_video.engine import distributed
        def out(thing):
            Path(f"{sys.argv[1]}/rank{world.rank}.json").write_text(json.dumps(thing))
        with distributed.init("cpu") as world:
    """
    body = textwrap.indent(textwrap.dedent(code), "    ")
    script.write_text(textwrap.dedent(head) + body)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        + [f"--nproc-per-node={processes}", str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(f.read_text()) for f in sorted(tmp_path.glob("rank*.json"))]


def test_alone_everything_is_quiet(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = distributed.init("cpu")
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert world.all_reduce(torch.ones(2)).tolist() == [1, 1]
    assert world.all_gather("a") == ["a"]
    assert world.broadcast(3) == 3
    assert world.run_on_main(lambda x: x + 1, 2) == 3
    model = torch.nn.Linear(1, 1)
    assert sharding.parallel(model, world) is model
    world.barrier()
    world.barrier_or_stop("here", lambda: False)
    assert [world.any_stopped(asked) for asked in (False, True)] == [False, True]
    world.close()


def test_three_processes_agree_and_leave_together(tmp_path):
    """Sums, gathers and words of the main process."""
    results = torchrun(
        """
        total = world.all_reduce(torch.tensor([1.0, world.rank])).tolist()
        told = world.broadcast({"rank": world.rank})
        main = world.run_on_main(lambda: world.rank * 10 + 5)
        out([world.size, total, world.all_gather(world.rank), told, main, world.is_main])
        world.close(); world.close()
        """,
        3,
        tmp_path,
    )
    for rank, result in enumerate(results):
        assert result == [3, [3.0, 3.0], [0, 1, 2], {"rank": 0}, 5, rank == 0]


def test_what_one_process_has_read_all_have(tmp_path):
    """In several pieces; tensors keep their formats, and the others' content does not matter."""
    results = torchrun(
        """
        from hiera_video.engine import broadcast
        broadcast.CHUNK = 1000
        torch.manual_seed(world.rank)
        content = {
            "model_state": {"a": torch.randn(100, 7), "b": torch.ones(3, dtype=torch.bfloat16)},
            "step": 5 + world.rank, "classes": ["x", "y"], "optimizer_state": {"state": {0: {}}},
        }
        found = broadcast.broadcast_content(world, content)
        torch.manual_seed(0)
        out([
            torch.equal(found["model_state"]["a"], torch.randn(100, 7)),
            str(found["model_state"]["b"].dtype), found["step"], found["classes"],
            found["optimizer_state"] == {"state": {0: {}}},
        ])
        """,
        2,
        tmp_path,
    )
    assert results == [[True, "torch.bfloat16", 5, ["x", "y"], True]] * 2


def test_what_one_process_says_the_others_look_up_without_waiting(tmp_path):
    """A stop releases those who wait for a process that will not come."""
    results = torchrun(
        """
        found = [world.any_stopped(False)]
        world.barrier_or_stop("all of us", lambda: False)
        world.barrier()
        if world.rank == 1:
            found.append(world.any_stopped(True))
        world.barrier()
        if world.rank == 0:
            world.barrier_or_stop("nor here", lambda: False)
            found.append(world.any_stopped(False))
        out(found)
        """,
        2,
        tmp_path,
    )
    assert results == [[False, True], [False, True]]


def test_half_set_variables_and_missing_devices(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match=r"RANK, LOCAL_RANK.*torchrun"):
        distributed.init("cpu")
    with pytest.raises(UserError, match="auto, cpu"):
        distributed.pick_device("tpu7")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.pick_device("cuda", local_rank=1) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="3 processes on this machine want a GPU each and it has 2"):
        distributed.pick_device("auto", local_rank=2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # srun --gpus-per-task=1
    assert distributed.pick_device("cuda", local_rank=5) == torch.device("cuda", 0)
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match="'cuda:1' names one GPU, and 2 processes need one each"):
        distributed.init("cuda:1")
    with pytest.raises(UserError, match=r"'mpi'.*nccl, gloo"):
        distributed.init("cpu", "mpi")
    with pytest.raises(UserError, match="use gloo"):
        distributed.pick_backend("nccl", torch.device("cpu"))
    assert distributed.pick_backend("auto", torch.device("cpu")) == "gloo"
    assert distributed.pick_backend("auto", torch.device("cuda", 1)) == "nccl"


def test_processes_that_share_a_gpu_are_named_and_all_of_them_end():
    """One card for all, as number 0 of each, is told apart from a card for each."""

    def outcomes(gpus):
        store, found = HashStore(), {}

        def ask(rank):
            try:
                distributed.require_own_gpus(store, gpus[rank], rank=rank, size=len(gpus))
                found[rank] = ""
            except UserError as error:
                found[rank] = str(error)

        threads = [threading.Thread(target=ask, args=(rank,)) for rank in range(len(gpus))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return [found[rank] for rank in range(len(gpus))]

    assert outcomes(["a, H100, 1", "a, H100, 2", "b, H100, 1"]) == ["", "", ""]
    said = outcomes(["a, H100, 1", "a, H100, 2", "a, H100, 2"])
    assert len(set(said)) == 1
    assert said[0].startswith("processes 1, 2 were given the same GPU (a, H100, 2)")


@pytest.mark.parametrize(
    ("wanted", "device", "cores", "processes", "expected"),
    [
        (0, "cuda", 64, 1, 0),
        (5, "cpu", 2, 1, 5),
        (-1, "cpu", 1, 1, 1),
        (-1, "cpu", 64, 1, 2),  # the model needs the others
        (-1, "cuda", 1, 1, 1),
        (-1, "cuda", 12, 1, 11),
        (-1, "cuda", 128, 1, 16),
        (-1, "cuda", 96, 8, 11),
        (-1, "cuda", 4, 8, 1),
    ],
)
def test_workers_follow_the_cores(monkeypatch, wanted, device, cores, processes, expected):
    monkeypatch.setattr(distributed, "usable_cores", lambda: cores)
    world = distributed.World(device=torch.device(device), local_size=processes)
    assert world.loader_workers(wanted) == expected
