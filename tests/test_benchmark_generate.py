"""The benchmark of generated clips: it draws the stream's own clips; never a time."""

import json

import numpy as np
import pytest

pytest.importorskip("numba")

from hiera_video.benchmarks import generate, generate_clips
from hiera_video.benchmarks.measure import Candidate
from hiera_video.benchmarks.stopwatch import Stopwatch
from hiera_video.commands import benchmark
from hiera_video.data.synthetic.body_motion.clips import ClipSettings, draw_clip
from hiera_video.errors import UserError

SMALL = ClipSettings(frames=4, size=32)


def measured(*words):
    return generate.run(benchmark.parse(["generate", *map(str, words)]))


def test_what_is_timed_by_stage_is_the_clip_of_the_stream():
    watch = Stopwatch()
    for seed in range(3):
        timed = generate_clips.draw_in_stages(seed, SMALL, watch)
        drawn = draw_clip(seed, SMALL)
        assert all(map(np.array_equal, timed, drawn))
    assert set(watch.cpu_seconds) == set(generate.STAGES)


def test_every_process_draws_whole_clips():
    with generate_clips.processes(2, SMALL) as pool:
        candidate = generate_clips.in_processes(pool, 2, 3, SMALL)
        drawn = candidate.run()
    frames, truth = draw_clip(0, SMALL)
    assert drawn == [frames.nbytes + truth.nbytes] * 6
    assert candidate.samples == len(drawn)


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    record, table = tmp_path / "out.json", tmp_path / "out.md"
    words = ["--clips", 2, "--frames", 4, "--size", 32, "--processes", 1, "--repeats", 1]
    assert measured(*words, "--json", record, "--markdown", table) == 0
    written = json.loads(record.read_text())
    assert [row["table"] for row in written["rows"]] == ["stages", "processes"]
    assert written["machine"]["numba"]
    for text in (capsys.readouterr().out, table.read_text()):
        assert "clips/s per core" in text
        assert "per process" in text
        assert "draws 2 clips per process" in text


def test_rows_are_of_one_clip_and_of_all_processes():
    parts = [dict.fromkeys(generate.STAGES, 0.5)] * 3
    facts = {"table": "stages"}
    stages = Candidate(facts, run=int, samples=4, seconds=[8.0, 2.0, 4.0], part_seconds=parts)
    row = generate.row_of(stages)
    assert (row["ms"], row["ms_min"], row["ms_max"]) == (1000, 500, 2000)
    assert (row["scene_ms"], row["cpu_ms"], row["clips_per_core_s"]) == (125, 500, 2)
    facts = {"table": "processes", "processes": 2}
    row = generate.row_of(Candidate(facts, run=int, samples=40, seconds=[1.0, 4.0, 2.0]))
    assert (row["clips_per_s"], row["clips_per_process_s"]) == (20, 10)
    assert row["range"] == "10-40"


@pytest.mark.parametrize("form", [("--frames", 5), ("--size", 50), ("--size", 432)])
def test_clips_that_cannot_be_drawn_are_refused(form):
    with pytest.raises(UserError, match=r"--frames \d+ --size \d+: the frames must be an even"):
        measured(*form)
