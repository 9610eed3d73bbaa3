"""Data sets labelled by many processes: every row once, whoever is killed when."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
import torch
from clips import write_clip
from conftest import REPOSITORY
from scale_parts import make_quick, outcome
from test_predict import SPEC, write_checkpoint

from hiera_video import Predictor
from hiera_video.commands import label_dataset as command
from hiera_video.errors import DataError, RunFailed, UserError
from hiera_video.features.describe import Describer
from hiera_video.features.encoder import EncoderOptions, load_encoder
from hiera_video.files import sha256_of
from hiera_video.scale import run, worker
from hiera_video.scale.blocks import JobFolder
from hiera_video.scale.cluster import Actors, choose_actors
from hiera_video.scale.job import Job, Settings, part_sizes, require_same, settings_again
from hiera_video.scale.labelling import make_labeller
from hiera_video.scale.outcome import Equipment
from hiera_video.scale.rows import Fingerprint, Row, Rows, folder_of_paths, in_parts, read_rows
from hiera_video.scale.worker import BlockWorker, Done
from hiera_video.video.decoding_process import decoding_process

pq = pytest.importorskip("pyarrow.parquet")

SETTINGS = Settings(
    task="labels",
    model="hiera_base_16x224",
    weights="tiny.pyth",
    weights_sha256="a" * 64,
    views=(2, 1),
    computed_in="fp32",
    decoder="auto",
    top_k=3,
)


def job_of(rows, **changes):
    content = {"block_rows": 4, "part_rows": 16, "fingerprint": "f" * 64, "root": "/"}
    content.update(settings=SETTINGS, source="list.txt", asked={}, rows=rows)
    return Job(**{**content, **changes})


def begun(path, names, **changes):
    """The folder of a new job of files of these names, as the command begins it."""
    folder, job = JobFolder(path), job_of(len(names), **changes)
    path.mkdir()
    rows = Rows([name.encode() for name in names], [None] * len(names), [None] * len(names))
    for part, some in enumerate(in_parts([rows], job.part_rows)):
        folder.write_input(part, some)
    job.write(folder.job_file)
    return folder, folder.job()


def here(folder, maker="make_quick"):
    """What Ray does, without it: one worker does task after task."""

    def work(tasks):
        one = BlockWorker(str(folder.path), Equipment(maker=f"scale_parts:{maker}"))
        for task in tasks:
            yield from one(task)

    return work


def run_here(folder, job, work=None):
    done = []
    run.run_job(folder, job, work or here(folder), {"versions": {}}, done.append, 2)
    return done


def names_of(count):
    return [f"clips/{number}.mp4" for number in range(count)]


# ---- rows of an input ---------------------------------------------------------------------------


def rows_of(source):
    paths, starts, ends = [], [], []
    for rows in read_rows(str(source)):
        paths += [os.fsdecode(path) for path in rows.paths]
        starts += rows.starts
        ends += rows.ends
    return list(zip(paths, starts, ends, strict=True))


def test_inputs_of_every_kind(tmp_path, monkeypatch):
    import pyarrow

    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.mp4", "a.mp4", "deep/c.mkv", "notes.txt"):
        (tmp_path / "in" / name).write_text("")
    monkeypatch.chdir(tmp_path)
    assert [path for path, _, _ in rows_of("in")] == ["in/a.mp4", "in/b.mp4", "in/deep/c.mkv"]
    assert [path for path, _, _ in rows_of("in/*.mp4")] == ["in/a.mp4", "in/b.mp4"]
    assert rows_of("in/b.mp4") == [("in/b.mp4", None, None)]
    listed = tmp_path / "in" / "list.txt"
    listed.write_bytes(b"b.mp4\r\n\nname \xff.mp4\nb.mp4\n")
    assert [path for path, _, _ in rows_of(listed)] == ["b.mp4", "name \udcff.mp4", "b.mp4"]
    (tmp_path / "t.csv").write_text("label,end,path\nx,2.5,a.mp4\nx,,007\n")
    assert rows_of("t.csv") == [("a.mp4", None, 2.5), ("007", None, None)]
    table = {"path": ["a.mp4", "b.mp4"], "start": [0, 1], "end": [1.5, float("nan")]}
    pq.write_table(pyarrow.table(table), "t.parquet")
    assert rows_of("t.parquet") == [("a.mp4", 0.0, 1.5), ("b.mp4", 1.0, None)]
    assert folder_of_paths("in/list.txt") == str(tmp_path / "in")
    assert folder_of_paths("in") == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "file\na.mp4\n", "has no column path; it has file"),
        ("t.csv", "path,start,end\na.mp4,3,2\n", "a part from 3 s to 2 s; start is before end"),
        ("t.csv", "path,start\na.mp4,soon\n", "cannot be read as a table"),
        ("t.csv", "path,start\n,1\n", "a row has no path"),
        ("t.csv", "", "has no rows"),
        ("t.txt", "\n\n", "has no rows"),
        ("t.parquet", "PAR1", "cannot be read as a table"),
    ],
)
def test_wrong_inputs_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / name)


def test_a_fingerprint_sees_every_change():
    def text(*some):
        found = Fingerprint()
        for rows in some:
            found.add(rows)
        return found.text()

    first = Rows([b"ab", b"c"], [None, None], [None, None])
    others = [
        Rows([b"a", b"bc"], [None, None], [None, None]),
        Rows([b"c", b"ab"], [None, None], [None, None]),
        Rows([b"ab", b"c"], [None, 1.0], [None, None]),
        Rows([b"ab", b"c"], [None, None], [None, 1.0]),
        Rows([b"ab"], [None], [None]),
    ]
    assert text(first) == text(Rows(*map(list, first)))
    assert len({text(rows) for rows in (first, *others)}) == 6


# ---- blocks and parts ---------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4, 5, 16, 17, 100])
def test_every_row_is_of_one_block_and_one_part(rows):
    job = job_of(rows)
    by_block = [number for block in range(job.blocks) for number in job.rows_of(block)]
    assert by_block == list(range(rows))
    by_part = [block for part in range(job.parts) for block in job.blocks_of(part)]
    assert by_part == list(range(job.blocks))
    for part in range(job.parts):
        assert {job.part_of(block) for block in job.blocks_of(part)} == {part}


def test_a_kill_costs_less_than_a_hundredth():
    """Of all that is in work, with as many actors; and ten million rows are not a million files."""
    for rows, actors in ((10_000, 2), (10_000, 64), (1_000_000, 64)):
        block, part = part_sizes(rows, actors, 0)
        assert block * actors <= max(rows / 100, actors)
        assert part % block == 0
    assert part_sizes(10_000_000, 64, 0) == (256, 65_536)
    block, part = part_sizes(10_000_000, 64, 1000)
    assert part * 4 * 1000 <= 64 << 20
    assert part_sizes(3, 64, 1 << 30) == (1, 1)


@pytest.mark.parametrize("actors", [1, 2, 64])
def test_tasks_have_all_blocks_and_are_short_at_the_end(actors):
    blocks = list(range(7, 5000))
    tasks = run.tasks_of(blocks, actors)
    assert [block for task in tasks for block in task] == blocks
    assert [len(task) for task in tasks] == sorted((len(task) for task in tasks), reverse=True)
    assert len(tasks[0]) <= len(blocks) / (4 * actors)
    assert len(tasks[-1]) == 1
    assert len(run.tasks_of(range(1_000_000), 64)) <= run.MOST_TASKS


def test_one_row_comes_out_for_each_that_went_in(tmp_path):
    names = names_of(41)
    names[7], names[20] = "bad.mp4", "name \\ .mp4"
    folder, job = begun(tmp_path / "out", names)
    done = run_here(folder, job)
    assert sum(one.rows for one in done) == 41
    table = pq.read_table(folder.path)
    assert table.column("row").to_pylist() == list(range(41))
    assert table.column("path").to_pylist() == names
    rows = table.to_pylist()
    assert rows[7]["error"] == "cannot be read"
    assert rows[7]["labels"] is None
    assert rows[8]["labels"] == ["label of clips/8.mp4"]
    assert sum(row["error"] is not None for row in rows) == 1
    assert sorted(p.name for p in folder.path.glob("*.parquet")) == [
        f"part-0000{part}.parquet" for part in range(3)
    ]
    metadata = pq.read_schema(folder.part_file(2)).metadata
    about = json.loads(metadata[b"hiera_video"])
    assert about["settings"]["weights_sha256"] == "a" * 64
    assert about["versions"] == {}
    assert not folder.unfinished.exists()
    counts = run.counts_of(folder, job)
    assert (counts.rows, counts.failed, dict(counts.errors)) == (41, 1, {"cannot be read": 1})


def test_what_is_done_is_not_done_again(tmp_path):
    folder, job = begun(tmp_path / "out", names_of(41))
    seen = []

    def stops(tasks):
        for number, done in enumerate(here(folder)(tasks)):
            if number == 6:
                raise KeyboardInterrupt
            seen.append(done.block)
            yield done

    with pytest.raises(KeyboardInterrupt):
        run_here(folder, job, stops)
    left = {block for _, blocks in folder.todo(job) for block in blocks}
    assert folder.part_file(0).exists()
    assert len(left) == job.blocks - 7  # six were told of, and one was written
    folder.forget_all_tries()
    again = run_here(folder, job)
    assert {done.block for done in again} == left
    assert pq.read_table(folder.path).column("row").to_pylist() == list(range(41))
    assert run_here(folder, job, lambda tasks: pytest.fail("nothing was left")) == []


def test_a_task_that_is_given_again_goes_on_where_its_process_ended(tmp_path):
    folder, job = begun(tmp_path / "out", names_of(41))
    first = BlockWorker(str(folder.path), Equipment(maker="scale_parts:make_quick"))
    told = first(range(6))
    assert [next(told).rows for _ in range(3)] == [4, 4, 4]
    second = BlockWorker(str(folder.path), Equipment(maker="scale_parts:make_quick"))
    assert [(done.block, done.rows) for done in second(range(6))] == [
        *((block, 0) for block in range(3)),
        *((block, 4) for block in range(3, 6)),
    ]
    for block in range(4):
        assert folder.is_done(job, block)
    folder.merge(job, 0, {})
    assert not folder.blocks_folder(0).exists()
    assert [done.rows for done in second(range(4))] == [0] * 4, "their part has them"


def test_blocks_of_a_killed_run_beside_their_part_are_no_rows(tmp_path):
    """A process that outlives its command writes a block whose part is finished."""
    folder, job = begun(tmp_path / "out", names_of(41))
    run_here(folder, job)
    table = worker.table_of(job, folder.rows(job, 0), map(outcome, folder.rows(job, 0)))
    folder.write_block(job, 0, table)
    assert pq.read_table(folder.path).num_rows == 41
    folder.clean(job)
    assert not folder.unfinished.exists()
    assert pq.read_table(folder.path).num_rows == 41


def test_a_block_with_other_rows_is_no_part(tmp_path):
    folder, job = begun(tmp_path / "out", names_of(41))
    wrong = worker.table_of(job, folder.rows(job, 1), map(outcome, folder.rows(job, 1)))
    folder.write_block(job, 0, wrong)
    with pytest.raises(RunFailed, match=r"000000\.parquet does not have the rows of its block"):
        run_here(folder, job)
    folder.block_file(job, 0).write_bytes(b"PAR1")
    with pytest.raises(RunFailed, match=r"000000\.parquet is damaged"):
        run_here(folder, job)


def test_actors_that_forget_a_block_are_noticed(tmp_path):
    folder, job = begun(tmp_path / "out", names_of(41))
    with pytest.raises(RunFailed, match="11 blocks came back from no actor"):
        run_here(folder, job, lambda tasks: iter(()))


def test_vectors_are_rows_of_numbers(tmp_path):
    settings = dataclasses.replace(SETTINGS, task="features", top_k=0, stored_as="fp16")
    _, job = begun(tmp_path / "out", names_of(5), settings=settings, length=3)
    one, bad = Row(0, "a", None, None), Row(1, "b", 1.0, 2.0)
    found = [outcome(one)._replace(vector=np.arange(3.0)), outcome(bad)._replace(error="no")]
    rows = worker.table_of(job, [one, bad], found).to_pylist()
    assert rows[0]["vector"] == [0.0, 1.0, 2.0]
    assert np.isnan(rows[1]["vector"]).all()
    assert (rows[1]["start"], rows[1]["end"], rows[1]["error"]) == (1.0, 2.0, "no")


# ---- rows that end their process ----------------------------------------------------------------


def _work_once(path):
    one = BlockWorker(path, Equipment(maker="scale_parts:make_deadly"))
    list(one(range(one.job.blocks)))


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_row_that_ends_its_process_is_one_error_after_few_tries(tmp_path):
    names = names_of(18)
    names[6] = "deadly.mp4"
    folder, job = begun(tmp_path / "out", names)
    context = multiprocessing.get_context("fork")
    ended = 0
    for _ in range(20):
        process = context.Process(target=_work_once, args=(str(folder.path),))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        ended += 1
    assert ended == worker.BLOCK_TRIES + worker.ROW_TRIES
    run_here(folder, job)
    rows = pq.read_table(folder.path).to_pylist()
    assert [row["row"] for row in rows] == list(range(18))
    (failed,) = [row for row in rows if row["error"] is not None]
    assert failed["path"] == "deadly.mp4"
    assert failed["error"] == "the process that worked on it ended, 3 times: out of memory?"


# ---- one job a folder ---------------------------------------------------------------------------


def test_a_folder_is_of_one_command_and_one_job(tmp_path):
    folder = JobFolder(tmp_path / "out")
    with folder.open(), pytest.raises(UserError, match="another command is writing"):
        folder.open()
    (tmp_path / "out" / "thesis.docx").write_text("")
    with pytest.raises(UserError, match="holds other things"):
        folder.open()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_sha256": "b" * 64}, "weights_sha256 aaaaaaaaaaaaaaaa there, bbbbbbbbbbbbbbbb"),
        ({"views": (1, 1)}, r"views \(2, 1\) there, \(1, 1\) here"),
        ({"top_k": 1}, "top_k 3 there, 1 here"),
        ({"computed_in": "bf16"}, "computed_in fp32 there, bf16 here"),
    ],
)
def test_other_settings_are_refused(change, message):
    job = job_of(5)
    require_same(job, dataclasses.replace(SETTINGS, weights="moved.pyth"), (5, "f" * 64), "/")
    with pytest.raises(UserError, match=message) as error:
        require_same(job, dataclasses.replace(SETTINGS, **change), (5, "f" * 64), "/")
    assert "--out" in str(error.value)


@pytest.mark.parametrize(
    ("rows", "text", "root", "message"),
    [
        (6, "f" * 64, "/", "the input has 6 rows and had 5"),
        (5, "e" * 64, "/", "other rows, or another order"),
        (5, "f" * 64, "/x", "paths are relative to /x and were to /"),
    ],
)
def test_another_input_is_refused(rows, text, root, message):
    with pytest.raises(UserError, match=message):
        require_same(job_of(5), SETTINGS, (rows, text), root)


def test_the_same_options_and_weights_need_no_look_into_the_weights(tmp_path):
    weights = tmp_path / "w.pyth"
    weights.write_text("weights")
    settings = dataclasses.replace(SETTINGS, weights_sha256=sha256_of(weights))
    job = job_of(5, settings=settings)
    assert settings_again(job, str(weights), {}) == settings
    assert settings_again(job, str(weights), {"views": "1x1"}) is None
    weights.write_text("others")
    assert settings_again(job, str(weights), {}) is None
    assert settings_again(job, "hiera_base_16x224", {}) is None


# ---- actors -------------------------------------------------------------------------------------


def test_actors_leave_room_by_themselves():
    assert choose_actors(None, None, 0, {"CPU": 2}) == Actors(2, 0.75)
    assert choose_actors(None, None, 0, {"CPU": 1}) == Actors(1, 0.5)
    assert choose_actors(4, None, 0, {"CPU": 64}) == Actors(4, 1.0)
    assert choose_actors(None, None, 0.5, {"CPU": 64, "GPU": 8}) == Actors(16, 1.0, 0.5)
    assert choose_actors(64, 0.01, 0, {"CPU": 2}) == Actors(64, 0.01)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            (2, 1.0, 0),
            r"2 actors of 1 processors take all 2 .* --actors 1, or --cpus-per-actor 0.75",
        ),
        (
            (1, 2.0, 0),
            r"take all 2 that Ray has, and it would wait for ever .*; --cpus-per-actor 1",
        ),
        ((40, None, 0), "at most --actors 6, or --cpus-per-actor 0.037"),
        ((1, None, 1), "Ray sees 0 GPUs"),
        ((0, None, 0), "at least 1"),
        ((1, 0.0, 0), "above 0"),
    ],
)
def test_actors_that_would_wait_for_ever_are_refused(wanted, message):
    with pytest.raises(UserError, match=message):
        choose_actors(*wanted, {"CPU": 2})


def test_more_actors_than_gpus_are_refused():
    with pytest.raises(UserError, match="at most --actors 2"):
        choose_actors(3, None, 1, {"CPU": 64, "GPU": 2})


def test_threads_are_the_cores_of_an_actor(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert Actors(2, 0.75).threads(2) == 1
    assert Actors(2, 1).threads(16) == 8
    assert Actors(4, 0.4).threads(2) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Actors(2, 1).threads(16) == 3


# ---- what is told -------------------------------------------------------------------------------


def test_silence_is_broken(tmp_path, monkeypatch):
    names = names_of(41)
    names[4] = "slow\n.mp4"
    folder, job = begun(tmp_path / "out", names)
    folder.begin(job, 1)
    monkeypatch.setattr(run, "SILENCE", 0.05)
    said = []
    tally = run.Tally()

    def waits_for():
        return run.waiting_for(folder, job, Actors(2, 0.75), 0)

    with run.Watchdog(waits_for, tally, said.append):
        end = time.monotonic() + 20
        while not said and time.monotonic() < end:
            time.sleep(0.01)
    assert said[0].startswith("no row for 0 s; waiting for rows 4 to 7 (slow\\n.mp4, ...)")


def test_the_summary_counts(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(run.time, "monotonic", lambda: next(clock))
    tally = run.Tally()
    for one in (Done(0, 4, "a", 1), Done(1, 0, "b", 0), Done(2, 12, "a", 1), Done(3, 4, "b", 1)):
        tally.add(one)
    assert tally.lines(2, 10.0) == [
        "2.0 rows/s over 10 s with the start, 5.3 after it",
        "2 actors, 2 processes: 4 to 16 rows, skew 1.60 (the most over the mean)",
    ]


# ---- the demo's labels, without Ray -------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder: clips of some lengths and shapes, a file that is no video, and weights."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "in").mkdir()
    for i in range(6):
        size = (96, 64) if i % 2 else (64, 64)
        write_clip(folder / f"in/{i}.mp4", frames=9 + 7 * i, first_index=100 * i, size=size)
    (folder / "in" / "none.mp4").write_text("not a video")
    write_checkpoint(folder / "tiny.pyth")
    return folder


def labeller_of(data, **changes):
    settings = dataclasses.replace(
        SETTINGS,
        weights=str(data / "tiny.pyth"),
        weights_sha256=sha256_of(data / "tiny.pyth"),
        **changes,
    )
    job = job_of(5, settings=settings, root=str(data))
    return make_labeller(job, Equipment(threads=torch.get_num_threads()))


def test_rows_have_the_labels_of_the_demo_bit_for_bit(data):
    label = labeller_of(data)
    names = [f"in/{name}.mp4" for name in (*range(6), "none")]
    parts = [("in/5.mp4", 0.5, 1.0), ("in/5.mp4", 1.0, None), ("in/1.mp4", 9.0, 10.0)]
    rows = [(name, None, None) for name in names] + parts
    found = list(label(Row(i, *row) for i, row in enumerate(rows)))
    with decoding_process() as process:
        predictor = Predictor.load(
            str(data / "tiny.pyth"), views=(2, 1), device="cpu", process=process
        )
        demo = list(predictor.label_files([data / name for name in names], top_k=3))
        windows = list(predictor.timeline(data / "in/5.mp4", 0.5, top_k=3))
    assert [one.labels for one in found[:6]] == [prediction.labels for prediction in demo[:6]]
    assert len({str(one.labels) for one in found[:6]}) == 6
    assert [one.error for one in found[:7]] == [prediction.error for prediction in demo]
    assert found[6].labels is None
    assert found[7].labels == list(windows[1].labels)
    assert found[8].labels == list(windows[2].labels), "to the end"
    assert (
        found[9].error == "no frame begins from 9 s to 10 s; the last one of this video is at 0.5 s"
    )
    assert (found[1].facts.frames, found[1].facts.decoder) == (16, "pyav")
    assert found[1].facts.seconds == pytest.approx(16 / 30)


def test_rows_have_the_vectors_of_features_bit_for_bit(data):
    label = labeller_of(data, task="features", pool="mean", stored_as="fp32")
    names = [f"in/{name}.mp4" for name in (0, "none", 5)]
    found = list(label(Row(i, name, None, None) for i, name in enumerate(names)))
    encoder = load_encoder(str(data / "tiny.pyth"), EncoderOptions(device="cpu"), warn=print)
    describer = Describer(encoder, views=(2, 1))
    for one, name in zip(found[::2], names[::2], strict=True):
        assert np.array_equal(one.vector, describer(data / name).vectors[0])
    assert found[1].vector is None
    assert "video" in found[1].error or "read" in found[1].error


def test_other_weights_on_another_machine_are_refused(data):
    job = job_of(5, settings=dataclasses.replace(SETTINGS, weights=str(data / "tiny.pyth")))
    with pytest.raises(RunFailed, match="are other ones than the job began with"):
        make_labeller(job, Equipment())


def test_poison_files_are_one_row_each(data, shared_data):
    """The hostile set: each file has labels or one error, and the process goes on."""
    names = sorted(p.name for p in (shared_data / "hostile").iterdir() if p.suffix != ".csv")
    assert len(names) > 20
    label = labeller_of(data)
    rows = [Row(i, str(shared_data / "hostile" / name), None, None) for i, name in enumerate(names)]
    found = list(label(iter(rows)))
    assert len(found) == len(rows)
    with decoding_process() as process:
        predictor = Predictor.load(
            str(data / "tiny.pyth"), views=(2, 1), device="cpu", process=process
        )
        demo = list(predictor.label_files([row.path for row in rows], top_k=3))
    assert [one.error for one in found] == [prediction.error for prediction in demo]
    assert [one.labels or [] for one in found] == [prediction.labels for prediction in demo]
    assert sum(one.error is not None for one in found) > 10


# ---- the command, with Ray ----------------------------------------------------------------------


@pytest.fixture
def ray():
    return pytest.importorskip("ray")


def test_the_command_labels_ends_at_once_and_refuses_another_job(data, ray, tmp_path, capsys):
    words = [str(data / "in"), "--weights", str(data / "tiny.pyth"), "--views", "2x1"]
    words += ["--out", str(tmp_path / "labels"), "--top-k", "3", "--actors", "1"]
    assert command.main(words) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"{tmp_path}/labels: 7 rows, 6 labelled, 1 errors"
    assert "skew 1.00" in err
    table = pq.read_table(tmp_path / "labels")
    assert table.column("row").to_pylist() == list(range(7))
    rows = table.to_pylist()
    predictor = Predictor.load(str(data / "tiny.pyth"), views=(2, 1), device="cpu")
    for row in rows[:6]:
        labels = predictor(row["path"], top_k=3).labels
        assert row["labels"] == [label.label for label in labels]
        assert np.allclose(row["scores"], [label.score for label in labels], atol=1e-5)
    about = json.loads(
        pq.read_schema(tmp_path / "labels/part-00000.parquet").metadata[b"hiera_video"]
    )
    assert about["settings"]["weights_sha256"] == sha256_of(data / "tiny.pyth")
    assert about["versions"]["ray"] == ray.__version__

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", lambda **_: pytest.fail("there is nothing to do"))
        assert command.main(words) == 0
        assert capsys.readouterr().out == out
        with pytest.raises(UserError, match="top_k 3 there, 1 here"):
            command.main([*words, "--top-k", "1"])
        with pytest.raises(UserError, match="take all"):
            command.main([*words, "--out", str(tmp_path / "b"), "--cpus-per-actor", "64"])


def test_nothing_to_do_needs_no_torch(data, tmp_path):
    folder, job = begun(tmp_path / "out", names_of(3))
    run_here(folder, job)
    code = (
        "import sys\n"
        "from hiera_video.scale.blocks import JobFolder\n"
        "from hiera_video.scale import run, worker, cluster\n"
        f"folder = JobFolder({str(folder.path)!r})\n"
        "assert run.counts_of(folder, folder.job()).rows == 3\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=with_tests())


def with_tests():
    """The environment in which processes find this checkout and its tests."""
    places = [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "tiny.pyth"], "is a file; name a folder"),
        (["--out", "o", "--layer", "stage2"], "are of --task features"),
        (["--out", "o", "--top-k", "0"], "at least 1"),
        (["--out", "o", "--views", "0x1"], "views '0x1'"),
        (["--out", "o", "--dtype", "fp8"], "choose auto, fp32"),
        (["--out", "o", "--weights", "tinny"], "unknown weights 'tinny'"),
    ],
)
def test_wrong_use_of_the_command(words, message, data, ray, monkeypatch):
    monkeypatch.chdir(data)
    with pytest.raises(UserError, match=message):
        command.main(["in", "--weights", "tiny.pyth", *words])
    assert not (data / "o" / "_job.json").exists()


def test_a_missing_list_and_a_missing_ray_are_told(data, ray, monkeypatch):
    monkeypatch.chdir(data)
    with pytest.raises(UserError, match=r"no such file: none\.csv"):
        command.main(["none.csv", "--weights", "tiny.pyth", "--out", "o"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'hiera_video\[scale\]'"):
        command.main(["in", "--weights", "tiny.pyth", "--out", "o"])


# ---- killed, again and again --------------------------------------------------------------------

KILLS, CLIPS, SEED = 20, 2000, 17


def processes_below(pid):
    """Process ids and command lines of all that a process has started, on Linux."""
    parents, words = {}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat, open(f"/proc/{name}/cmdline") as line:
                parents[int(name)] = int(stat.read().rpartition(")")[2].split()[1])
                words[int(name)] = line.read()
        except OSError:
            continue
    found, fresh = {}, {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh}
        found.update({child: words[child] for child in fresh})
    return found


def actors_of(pid):
    return [
        child for child, line in processes_below(pid).items() if line.startswith("ray::MapWorker")
    ]


@pytest.fixture(scope="module")
def many_clips(tmp_path_factory):
    """Two thousand names for forty clips, and weights of a small model."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "in").mkdir()
    for i in range(40):
        write_clip(folder / f"{i}.mp4", frames=8, first_index=100 * i, size=(64, 64))
    for i in range(CLIPS):
        (folder / f"in/{i:04d}.mp4").hardlink_to(folder / f"{i % 40}.mp4")
    for i in range(0, CLIPS, 500):
        (folder / f"in/{i:04d}.mp4").unlink()
        (folder / f"in/{i:04d}.mp4").write_text("not a video")
    write_checkpoint(folder / "tiny.pyth")
    return folder


def rows_written(out):
    if (out / "part-00000.parquet").exists():
        return CLIPS
    job = JobFolder(out).job()
    return 0 if job is None else job.block_rows * len(list(out.glob("_unfinished/*/*.parquet")))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_ray_kills_of_actors_and_driver_lose_no_row_and_double_none(many_clips, ray, tmp_path):
    """Twenty kills at random moments, of actors and of the command itself."""
    chance, out = random.Random(SEED), tmp_path / "labels"
    counted = tmp_path / "counted"
    words = [str(many_clips / "in"), "--weights", str(many_clips / "tiny.pyth"), "--views", "1x1"]
    words += ["--out", str(out), "--actors", "2", "--import", "counts_labels"]
    command_line = [sys.executable, str(REPOSITORY / "tools/label_dataset.py"), *words]
    env = {**with_tests(), "COUNT_LABELS_IN": str(counted), "OMP_NUM_THREADS": "1"}
    moments = sorted(chance.uniform(0.02, 0.8) * CLIPS for _ in range(KILLS))
    killed = {"actor": 0, "driver": 0}
    driver, log = None, open(tmp_path / "log", "w")  # noqa: SIM115
    began = time.monotonic()
    try:
        for moment in moments:
            victim = "driver" if chance.random() < 0.3 else "actor"
            while True:
                assert time.monotonic() - began < 3000, (tmp_path / "log").read_text()
                if driver is None or driver.poll() is not None:
                    assert driver is None or driver.returncode == -signal.SIGKILL
                    driver = subprocess.Popen(command_line, env=env, stderr=log, stdout=log)
                at_work = actors_of(driver.pid)
                if at_work and rows_written(out) >= moment:
                    break
                time.sleep(0.05)
            killed[victim] += 1
            os.kill(driver.pid if victim == "driver" else chance.choice(at_work), signal.SIGKILL)
            if victim == "driver":
                driver.wait()
        if driver.poll() is not None:
            driver = subprocess.Popen(command_line, env=env, stderr=log, stdout=log)
        assert driver.wait(1200) == 0, (tmp_path / "log").read_text()
    finally:
        log.close()
        if driver is not None and driver.poll() is None:
            driver.kill()
    seconds = time.monotonic() - began
    rows = pq.read_table(out).to_pylist()
    assert [row["row"] for row in rows] == list(range(CLIPS))
    assert [row["path"][-8:] for row in rows] == [f"{i:04d}.mp4" for i in range(CLIPS)]
    assert [row["row"] for row in rows if row["error"] is not None] == list(range(0, CLIPS, 500))
    by_clip = [
        {str(row["scores"]) for row in rows[i::40] if row["error"] is None} for i in range(40)
    ]
    assert [len(scores) for scores in by_clip] == [1] * 40, "the same, whoever was killed"
    again = counted.stat().st_size - CLIPS
    print(f"{killed}, {CLIPS} rows in and out, {again} labelled again, {seconds:.0f} s")
    # each kill costs the blocks that are in work, and rows that are read ahead
    assert again <= KILLS * 2 * (JobFolder(out).job().block_rows + 3)


@pytest.fixture
def cluster_with_token(ray, tmp_path):
    """A cluster on this machine, with a GPU that it only claims: (environment, address of a
    client)."""
    home = tmp_path / "home"
    home.mkdir()
    port, client_port = free_port(), free_port()
    env = {**with_tests(), "HOME": str(home), "RAY_AUTH_MODE": "token"}
    env |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    env.pop("RAY_ADDRESS", None)
    script = [sys.executable, "-m", "ray.scripts.scripts"]
    start = [*script, "start", "--head", "--num-cpus", "2", "--num-gpus", "1", "--block"]
    start += ["--include-dashboard", "false", "--port", str(port)]
    start += ["--ray-client-server-port", str(client_port), "--object-store-memory", "100000000"]
    start += ["--temp-dir", tempfile.mkdtemp(prefix="ray")]  # sockets have short names
    subprocess.run([*script, "get-auth-token", "--generate"], env=env, check=True)
    with open(tmp_path / "cluster.log", "w") as log:
        head = subprocess.Popen(start, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: "runtime started" in (tmp_path / "cluster.log").read_text(), head)
        yield env, f"127.0.0.1:{port}", f"ray://127.0.0.1:{client_port}"
    finally:
        for child in [head.pid, *processes_below(head.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def free_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def wait_for(ready, process):
    began = time.monotonic()
    while not ready():
        assert process.poll() is None, "the cluster ended"
        assert time.monotonic() - began < 120, "the cluster did not start"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_ray_clusters_are_joined_by_address_and_as_a_client(data, cluster_with_token, tmp_path):
    """With their token, from inside and through ray://; without it the error says so."""
    env, address, client = cluster_with_token
    words = [sys.executable, str(REPOSITORY / "tools/label_dataset.py"), str(data / "in")]
    words += ["--weights", str(data / "tiny.pyth"), "--views", "1x1", "--actors", "1"]
    tables = []

    def label(out, *more, **changed):
        return subprocess.run(
            [*words, "--out", str(tmp_path / out), *more],
            env={**env, **changed},
            capture_output=True,
            text=True,
            timeout=400,
        )

    ways = {"inside": address}
    if importlib.util.find_spec("grpc") is not None:
        ways["client"] = client
    for name, way in ways.items():
        done = label(name, "--address", way)
        assert done.returncode == 0, done.stderr
        tables.append(pq.read_table(tmp_path / name).drop(["seconds"]).to_pylist())
    assert len(tables[0]) == len(list((data / "in").iterdir()))
    assert all(rows == tables[0] for rows in tables)

    none = label("none", "--address", address, RAY_AUTH_MODE="disabled")
    assert none.returncode == 1
    assert "it asks for a token: set RAY_AUTH_MODE=token" in none.stderr

    gpu = label("gpu", "--address", address, "--gpus-per-actor", "1")
    assert gpu.returncode == 1
    assert "an actor cannot work: device 'cuda' is not available" in gpu.stderr
    assert "emulated" not in gpu.stderr, "what the actors compute in is not tried here"


def test_a_failure_of_ray_before_the_first_block_is_tried_again(ray, monkeypatch, tmp_path):
    """In the first job of a cluster Ray Data may cancel a helper of its own."""
    calls = []

    def blocks(*work):
        calls.append(work)
        if len(calls) < 2:
            raise RuntimeError("The actor never ran - it was cancelled")
        yield Done(0, 4, "here", 0.1)
        raise RuntimeError("lost")

    monkeypatch.setattr(run, "_blocks", blocks)
    monkeypatch.setattr(run.time, "sleep", lambda seconds: None)
    found = run.ray_blocks(JobFolder(tmp_path), [[0]], Actors(1, 0.5), Equipment())
    assert next(found).rows == 4
    with pytest.raises(RunFailed, match="Ray gave up: lost"):
        next(found)
    assert len(calls) == 2


@pytest.mark.parametrize("kind", ["UserError", "RunFailed"])
def test_what_an_actor_says_is_the_error(kind):
    error = RuntimeError(f"ray::_Actor()\nhiera_video.errors.{kind}: no such device\nlast line")
    found = run._explained(error)
    assert str(found).startswith("an actor cannot work: no such device; what is done is kept")
    assert not isinstance(found, run.RayGaveUp), "it is not tried again"


@pytest.mark.slow
def test_ray_says_why_an_actor_cannot_start(ray, tmp_path, monkeypatch):
    folder, job = begun(tmp_path / "out", names_of(41))
    monkeypatch.setenv("PYTHONPATH", with_tests()["PYTHONPATH"])
    from hiera_video.scale.cluster import cluster

    equipment = Equipment(maker="scale_parts:make_failing")

    def work(tasks):
        return run.ray_blocks(folder, tasks, Actors(1, 0.5), equipment)

    with cluster(None), pytest.raises(RunFailed, match="the model does not fit into the memory"):
        run_here(folder, job, work)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ray_restarts_actors_that_a_row_ends_and_ctrl_c_goes_on(ray, tmp_path, monkeypatch):
    names = names_of(60)
    names[33] = "deadly.mp4"
    folder, job = begun(tmp_path / "out", names)
    monkeypatch.setenv("PYTHONPATH", with_tests()["PYTHONPATH"])
    from hiera_video.scale.cluster import cluster

    equipment = Equipment(maker="scale_parts:make_deadly")

    def work(tasks):
        return run.ray_blocks(folder, tasks, Actors(2, 0.5), equipment)

    with cluster(None):
        run_here(folder, job, work)
    rows = pq.read_table(folder.path).to_pylist()
    assert [row["row"] for row in rows] == list(range(60))
    assert [row["row"] for row in rows if row["error"]] == [33]
    assert SPEC.num_frames
    assert make_quick


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_ray_ends_on_ctrl_c_and_says_how_far_it_is(many_clips, ray, tmp_path):
    out, log = tmp_path / "labels", tmp_path / "log"
    words = [str(many_clips / "in"), "--weights", str(many_clips / "tiny.pyth"), "--views", "1x1"]
    words += ["--out", str(out), "--actors", "1", "--import", "counts_labels"]
    command_line = [sys.executable, str(REPOSITORY / "tools/label_dataset.py"), *words]
    env = {**with_tests(), "COUNT_LABELS_IN": str(tmp_path / "counted")}
    with open(log, "w") as file:
        driver = subprocess.Popen(command_line, env=env, stderr=file, stdout=file)
        try:
            end = time.monotonic() + 600
            while rows_written(out) < 40 and time.monotonic() < end:
                time.sleep(0.1)
            below = processes_below(driver.pid)
            os.kill(driver.pid, signal.SIGINT)
            assert driver.wait(120) == 130, log.read_text()
        finally:
            driver.kill()
    assert "interrupted after" in log.read_text()
    assert "the same command goes on from there" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not list(out.glob("_unfinished/*/*.try*")), "the user ended them, and no row did"
    end = time.monotonic() + 60
    while any(map(is_running, below)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [words for pid, words in below.items() if is_running(pid)]


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
