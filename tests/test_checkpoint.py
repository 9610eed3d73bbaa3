"""Checkpoints as files: atomic, checked, pruned, exported. Resuming runs is in test_train.py."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import zipfile

import pytest
import torch
from tiny_runs import same
from torch import nn

from hiera_video import files
from hiera_video.engine import checkpoint
from hiera_video.errors import RunFailed, UserError


def state_of(step=1, size=2000):
    return {
        "format": checkpoint.FORMAT,
        "model": {"name": "tiny", "kwargs": {"stages": [1, 1]}},
        "model_state": {"w": torch.arange(float(size)) * step},
        "classes": ["a", "b"],
        "spec": {"num_frames": 4},
        "cfg": "A: 1",
        "data": "0123",
        "epoch": 0,
        "step": step,
        "epoch_sums": [0.5, 4.0],
        "optimizer_state": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []},
        "scaler_state": {},
    }


def test_round_trip_and_order_of_names(tmp_path):
    names = [checkpoint.file_name(*at) for at in [(0, 7), (1, 0), (1, 30), (12, 0)]]
    assert names[1] == "checkpoint_epoch_00001.pyth"
    assert names[2] == "checkpoint_epoch_00001_step_0000030.pyth"
    for i, name in enumerate(reversed(names)):
        size = checkpoint.save(state_of(step=4 - i), tmp_path / name)
        assert size == (tmp_path / name).stat().st_size
    assert [p.name for p in checkpoint.in_order(tmp_path)] == names
    path, state = checkpoint.latest(tmp_path)
    assert path.name == names[3]
    assert torch.equal(state["model_state"]["w"], torch.arange(2000.0) * 4)
    checkpoint.prune(tmp_path, keep=2)
    assert [p.name for p in checkpoint.in_order(tmp_path)] == names[2:]
    checkpoint.prune(tmp_path, keep=0)
    assert len(checkpoint.in_order(tmp_path)) == 2


def test_every_truncation_and_bit_flip_is_found(tmp_path):
    good = tmp_path / "good.pyth"
    checkpoint.save(state_of(), good)
    assert checkpoint.fault(good) is None
    raw = good.read_bytes()
    dice = random.Random(0)
    bad = tmp_path / "bad.pyth"
    for length in [0, 1, 100, len(raw) // 2, len(raw) - 1]:
        bad.write_bytes(raw[:length])
        assert checkpoint.fault(bad), f"a file cut to {length} bytes passed"
    weights = raw.index(torch.arange(2000.0).numpy().tobytes())
    for _ in range(100):
        spoilt = bytearray(raw)
        spoilt[weights + dice.randrange(8000)] ^= 1 << dice.randrange(8)
        bad.write_bytes(spoilt)
        assert "checksum" in checkpoint.fault(bad)


def flips(path, content, bits):
    """(bit, what loading gives) for `content` with one bit at a time turned over; None: refused."""
    for bit in bits:
        spoilt = bytearray(content)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        try:
            yield bit, checkpoint.load(path)
        except UserError:
            yield bit, None


def test_a_bit_that_flips_anywhere_is_refused_or_changes_nothing(tmp_path):
    """Also outside of the records: names, flags, sizes and offsets of the archive."""
    state = state_of(size=20)
    checkpoint.save(state, tmp_path / "good.pyth")
    raw = (tmp_path / "good.pyth").read_bytes()
    found = list(flips(tmp_path / "bad.pyth", raw, range(0, 8 * len(raw), 17)))
    assert [bit for bit, loaded in found if loaded is not None and not same(loaded, state)] == []
    assert 0 < sum(loaded is None for _, loaded in found) < len(found)


def test_a_record_marked_as_a_folder_is_found(tmp_path):
    """torch.load would take memory as it happens to be for the weights, and say nothing."""
    path = tmp_path / "x.pyth"
    checkpoint.save(state_of(), path)
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(b"PK\x01\x02", 0, raw.rindex(b"/data/0"))
    raw[entry + 38] |= 0x10  # external attributes
    path.write_bytes(raw)
    assert "damaged" in checkpoint.fault(path)


def test_records_that_would_grow_while_loading_are_refused(tmp_path):
    plain, packed = tmp_path / "plain.pyth", tmp_path / "packed.pyth"
    checkpoint.save(state_of() | {"x": torch.zeros(1 << 20)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for name in source.namelist():
            out.writestr(name, source.read(name))
    assert packed.stat().st_size * 50 < plain.stat().st_size
    with pytest.raises(UserError, match=r"damaged.*not torch\.save's"):
        checkpoint.load(packed)


def test_a_run_cannot_go_on_from_weights_alone(tmp_path):
    checkpoint.save(state_of(), tmp_path / "run.pyth")
    checkpoint.export(tmp_path / "run.pyth", tmp_path / "out.pyth")
    with pytest.raises(UserError, match=r"no optimizer_state.*CHECKPOINT_EPOCH_RESET at True"):
        checkpoint.load(tmp_path / "out.pyth")
    checkpoint.export(tmp_path / "out.pyth", tmp_path / "again.pyth")


def test_latest_passes_over_what_it_cannot_read_and_says_so(tmp_path):
    old, new = (tmp_path / checkpoint.file_name(e) for e in (1, 2))
    checkpoint.save(state_of(1), old)
    checkpoint.save(state_of(2), new)
    os.truncate(new, new.stat().st_size // 2)
    said = []
    path, state = checkpoint.latest(tmp_path, log=said.append)
    assert path == old
    assert state["step"] == 1
    assert len(said) == 1
    assert new.name in said[0]
    assert "cut short" in said[0]


def test_nothing_readable_is_an_error_and_nothing_at_all_is_none(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    (tmp_path / checkpoint.file_name(1)).write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        checkpoint.latest(tmp_path, log=lambda text: None)


def test_files_of_others_are_refused_with_the_way_out(tmp_path):
    path = tmp_path / "theirs.pyth"
    torch.save({"model_state": {}}, path)
    with pytest.raises(UserError, match=r"TRAIN\.CHECKPOINT_FILE_PATH"):
        checkpoint.load(path)
    with pytest.raises(UserError, match="no such file"):
        checkpoint.load(tmp_path / "none.pyth")

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    torch.save({"format": checkpoint.FORMAT, "x": Bomb()}, path)
    with pytest.raises(UserError, match="cannot read checkpoint"):
        checkpoint.load(path)
    assert not (tmp_path / "exploded").exists()


LIMITED = """
    import json, os, resource, sys
    from hiera_video.engine import checkpoint
    from hiera_video.errors import RunFailed

    os.chdir(sys.argv[1])
    state = {"weights": list(range(1000))}
    whole = checkpoint.save(state, "x.pyth")
    for limit in range(whole - 30, whole + 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            checkpoint.save(state, "x.pyth")
            said = None
        except RunFailed as error:
            said = str(error)
        print(json.dumps([limit, whole, said, checkpoint.fault("x.pyth")]))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs file size limits")
def test_a_write_that_falls_short_is_noticed(tmp_path):
    """The disk is full a few bytes before the end: the system takes the first of them, and says so
    in a number that `torch.save` does not look at."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 31, done.stderr
    for limit, whole, said, fault in rows:
        assert fault is None, f"{whole - limit} bytes short: {fault}"
        assert (said is None) == (limit == whole)


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs file size limits")
def test_a_disk_that_fills_up_while_saving_loses_nothing(tmp_path):
    """The kernel refuses the write half-way, as a full disk does."""
    path = tmp_path / checkpoint.file_name(1)
    checkpoint.save(state_of(1), path)
    before = path.read_bytes()
    code = textwrap.dedent(
        f"""
        import resource, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from pathlib import Path
        from hiera_video.engine import checkpoint
        from hiera_video.errors import RunFailed
        from test_checkpoint import state_of
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoint.save(state_of(2, size=500_000), Path({str(path)!r}))
        except RunFailed as error:
            print(error)
            sys.exit(7)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert "File too large" in done.stdout
    assert "MiB are free" in done.stdout
    assert path.name in done.stdout
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no half-written file stays


def test_a_failing_write_names_its_reason(tmp_path):
    path = tmp_path / "x.pyth"
    path.symlink_to("/dev/full")
    with pytest.raises(RunFailed, match=r"No space left on device.*No checkpoint was written"):
        checkpoint.save(state_of(), path)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_while_saving_over_and_over(tmp_path):
    """Whatever the moment, every file under a final name is whole."""
    code = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from pathlib import Path
        from hiera_video.engine import checkpoint
        from test_checkpoint import state_of
        folder, epoch = Path({str(tmp_path)!r}), 0
        state = state_of(1, size=200_000)
        print("ready", flush=True)
        while True:
            epoch += 1
            checkpoint.save(state, folder / checkpoint.file_name(epoch))
            checkpoint.prune(folder, keep=2)
        """
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(timeout=0.7)
    child.kill()
    child.wait()
    written = checkpoint.in_order(tmp_path)
    assert written
    assert [checkpoint.fault(p) for p in written] == [None] * len(written)
    files.remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(written)


def test_the_best_survives_pruning(tmp_path):
    for epoch in range(1, 5):
        path = tmp_path / checkpoint.file_name(epoch)
        checkpoint.save(state_of(epoch), path)
        if epoch == 2:
            checkpoint.keep_best(path, {"metric": "top1_acc", "value": 50.0, "epoch": 2})
        checkpoint.prune(tmp_path, keep=1)
    assert checkpoint.load(tmp_path / "best.pyth")["step"] == 2
    assert checkpoint.best_record(tmp_path)["value"] == 50.0
    assert [p.name for p in checkpoint.in_order(tmp_path)] == [checkpoint.file_name(4)]
    assert checkpoint.best_record(tmp_path / "none") is None


def test_the_disk_is_asked_before_the_run(tmp_path, monkeypatch):
    model = nn.Linear(1000, 1000, bias=False)
    one = checkpoint.estimated_bytes(model, optimizer_states=2, ema=True)
    assert one == 4 * 1_000_000 * 4
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 5 * one)
    checkpoint.require_space(tmp_path, one=one, keep=3, checkpoints=100)
    checkpoint.require_space(tmp_path, one=one, keep=9, checkpoints=2)
    with pytest.raises(UserError, match="keeps up to 6 checkpoints"):
        checkpoint.require_space(tmp_path, one=one, keep=4, checkpoints=100)


def test_export_keeps_what_inference_needs_and_nothing_else(tmp_path):
    state = state_of() | {"raw_state": {"w": torch.ones(2000)}}
    source = tmp_path / "run.pyth"
    checkpoint.save(state, source)
    checkpoint.export(source, tmp_path / "out.pyth")
    out = torch.load(tmp_path / "out.pyth", weights_only=True)
    assert "optimizer_state" not in out
    assert "raw_state" not in out
    assert torch.equal(out["model_state"]["w"], state["model_state"]["w"])
    assert out["classes"] == ["a", "b"]
    assert out["model"] == state["model"]
    assert out["multi_label"] is False  # of old checkpoints, which do not say
    checkpoint.save(state | {"multi_label": True}, source)
    checkpoint.export(source, tmp_path / "out.pyth")
    assert torch.load(tmp_path / "out.pyth", weights_only=True)["multi_label"] is True
