"""The benchmark command: turns, arithmetic and reports; never a time."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from hiera_video.benchmarks import machine, measure, options, steps, tables
from hiera_video.benchmarks.measure import Candidate
from hiera_video.benchmarks.tables import Column
from hiera_video.commands import benchmark
from hiera_video.errors import UserError
from hiera_video.registry import MODEL_REGISTRY
from hiera_video.video import decoders

CPU = torch.device("cpu")


def logging(log, name, **settings):
    return Candidate({"name": name}, run=lambda: log.append(name), **settings)


# ---- measuring ------------------------------------------------------------------------------


def test_candidates_take_turns_after_all_are_warm(monkeypatch):
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    log = []
    candidates = [logging(log, name) for name in ("ours", "theirs")]
    measure.interleave(candidates, repeats=3, device=CPU, after_round=lambda: log.append("machine"))
    assert log == ["ours", "theirs", "machine"] * 4
    assert [len(c.seconds) for c in candidates] == [3, 3]
    assert all(c.first_seconds is not None for c in candidates)


def test_short_calls_are_repeated_within_a_measurement(monkeypatch):
    monkeypatch.setattr(measure, "SHORTEST", 1e9)  # nothing is long enough
    log = []
    candidate = logging(log, "quick")
    measure.interleave([candidate], repeats=2, device=CPU)
    assert candidate.calls == measure.MOST_CALLS
    assert len(log) == 2 + 2 * measure.MOST_CALLS  # two to warm up, then each measurement
    assert len(candidate.seconds) == 2


def test_who_runs_out_of_memory_is_out_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    left = [2]

    def fails_in_the_second_round():
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("no")

    log = []
    greedy = Candidate({"name": "greedy"}, run=fails_in_the_second_round)
    modest = logging(log, "modest")
    measure.interleave([greedy, modest], repeats=3, device=CPU)
    assert (len(greedy.seconds), greedy.failed) == (1, "out of memory")
    assert (len(modest.seconds), modest.failed) == (3, "")


def test_a_size_that_a_kernel_cannot_be_launched_for_is_a_remark(monkeypatch):
    monkeypatch.setattr(measure, "SHORTEST", 0.0)

    def fails(text):
        raise RuntimeError(text)

    refused = "CUDA error: invalid configuration argument"
    huge = Candidate({"name": "huge"}, run=lambda: fails(f"{refused}\nmore about it"))
    modest = logging([], "modest")
    measure.interleave([huge, modest], repeats=2, device=CPU)
    assert (huge.failed, len(modest.seconds)) == (refused, 2)
    broken = Candidate({}, run=lambda: fails("CUDA error: an illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure.interleave([broken], repeats=1, device=CPU)


def test_a_row_is_arithmetic_on_the_measurements():
    ours = Candidate({"who": "a"}, run=int, samples=2, gmacs=4.0, seconds=[1.0, 2.0, 4.0])
    row = measure.row_of(ours, peak=8.0)
    assert (row["ms"], row["ms_min"], row["ms_max"], row["repeats"]) == (2000, 1000, 4000, 3)
    assert row["samples_per_s"] == 1.0
    assert (row["gmacs_per_s"], row["of_peak"], row["floor_ms"]) == (2.0, 0.25, 500.0)
    assert row["who"] == "a"


def test_a_ratio_is_of_neighbours_and_per_sample():
    ours = Candidate({}, run=int, samples=2, seconds=[1.0, 2.0, 4.0])
    theirs = Candidate({}, run=int, samples=2, seconds=[3.0, 4.0, 4.0])
    assert measure.ratio_of(ours, theirs) == 2.0  # of 3, 2 and 1
    assert measure.ratio_of(theirs, theirs) == 1.0
    theirs.samples = 8  # four times the work in the same time
    assert measure.ratio_of(ours, theirs) == 0.5
    assert measure.ratio_of(ours, None) is None
    assert measure.ratio_of(ours, Candidate({}, run=int)) is None  # interrupted before its turn


def test_parts_are_medians():
    candidate = Candidate({}, run=int, seconds=[1.0, 1.0, 1.0])
    candidate.part_seconds = [{"stem": 1.0, "rest": 5.0}, {"stem": 3.0, "rest": 4.0}]
    candidate.part_seconds.append({"stem": 2.0, "rest": 6.0})
    assert measure.row_of(candidate)["parts_ms"] == {"stem": 2000.0, "rest": 5000.0}


def test_peak_is_the_best_of_several_shapes_and_looks(monkeypatch):
    monkeypatch.setitem(measure.SHAPES, "cpu", ((8, 4, 2), (16, 16, 16)))
    seconds = iter([1e-6, 4e-6, 2e-6, 1e-6])
    monkeypatch.setattr(measure.Peak, "_best_seconds", lambda *_, **__: next(seconds))
    peak = measure.Peak(CPU, {"fp32": torch.float32})
    peak.update()
    assert peak["fp32"] == pytest.approx(16**3 / 4 / 1e3)
    peak.update()
    assert peak["fp32"] == pytest.approx(16**3 / 1e3)
    assert peak.facts()["float32"]["by_shape"]["8x4x2"] == pytest.approx(64 / 1e3)


def test_peak_skips_shapes_that_would_take_minutes(monkeypatch):
    monkeypatch.setitem(measure.SHAPES, "cpu", ((8, 4, 2), (4096, 4096, 4096)))
    monkeypatch.setattr(measure.Peak, "_best_seconds", lambda *_, **__: 1.0)
    peak = measure.Peak(CPU, {"bf16": torch.bfloat16})
    peak.update()
    assert set(peak.facts()["bfloat16"]["by_shape"]) == {"8x4x2"}


def test_peak_really_multiplies(monkeypatch):
    monkeypatch.setitem(measure.SHAPES, "cpu", ((64, 32, 16),))
    peak = measure.Peak(CPU, {"fp32": torch.float32})
    peak.update(times=1)
    assert peak["fp32"] > 0


# ---- reporting ------------------------------------------------------------------------------

COLUMNS = (Column("name", "name"), Column("ms", "ms", ".1f"), Column("note", "note"))


def outputs(tmp_path):
    return argparse.Namespace(
        json=str(tmp_path / "deep" / "out.json"),
        markdown=str(tmp_path / "out.md"),
        command_line=["hiera-video", "benchmark", "model", "--json", "/a/b.json", "--threads", "1"],
    )


def test_report_prints_and_writes(tmp_path, capsys):
    args = outputs(tmp_path)
    with tables.Report(args, facts={"cpu": "x", "gpu": None}, columns=COLUMNS) as report:
        report.rows += [{"name": "a", "ms": 1.26, "more": [1, 2]}, {"name": "b"}]
        report.notes.append("All is said.")
        report.record["peak"] = 3
    printed = capsys.readouterr().out
    assert printed.splitlines() == ["cpu x", "name  ms", "a     1.3", "b", "All is said."]
    record = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert record["rows"][0]["more"] == [1, 2]
    assert (record["peak"], record["machine"]["cpu"], record["unfinished"]) == (3, "x", None)
    markdown = (tmp_path / "out.md").read_text()
    assert "| name | ms |\n|---|---|\n| a | 1.3 |\n| b |  |\n" in markdown
    assert "All is said." in markdown
    assert "```\nhiera-video benchmark model --threads 1\n```" in markdown


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("b does not exist")])
def test_what_was_measured_survives_an_end_half_way(tmp_path, capsys, error):
    def run():
        with tables.Report(outputs(tmp_path), facts={}, columns=COLUMNS) as report:
            report.rows.append({"name": "a", "ms": 2.0})
            raise error

    with pytest.raises(type(error)):
        run()
    printed = capsys.readouterr().out
    assert "a     2.0" in printed
    assert "so far" in printed
    assert json.loads((tmp_path / "deep" / "out.json").read_text())["unfinished"]


def test_a_published_command_names_no_folder_of_the_writers():
    words = [
        "model",
        "--json",
        "/a/b.json",
        "--batch",
        "2",
        "--png=/c.png",
        "--markdown",
        "x",
        "-h",
    ]
    assert tables.without_outputs(words) == ["model", "--batch", "2", "-h"]


def test_a_format_that_is_emulated_is_left_out_unless_forced(monkeypatch, capsys):
    """Also where it was named: --dtype fp32 bf16 must end on a machine without bfloat16."""
    slow = lambda name, device: (torch.float32, None if name == "fp32" else "slow")  # noqa: E731
    monkeypatch.setattr(machine, "choose_dtype", slow)
    assert list(machine.usable_dtypes([], CPU)) == ["fp32"]
    assert list(machine.usable_dtypes(["fp32", "bf16"], CPU)) == ["fp32"]
    assert capsys.readouterr().out.count("bf16: left out") == 2
    assert list(machine.usable_dtypes(["bf16"], CPU, emulated=True)) == ["bf16"]
    with pytest.raises(UserError, match="--emulated"):
        machine.usable_dtypes(["bf16"], CPU)


def test_facts_name_versions(capsys):
    facts = machine.machine_facts(CPU, ["torchvision", "no-such-package"])
    assert facts["torchvision"]
    assert facts["no-such-package"] is None
    assert facts["threads"] == torch.get_num_threads()


# ---- command line ---------------------------------------------------------------------------


def test_every_subcommand_says_what_it_takes(capsys):
    for name in options.BENCHMARKS:
        with pytest.raises(SystemExit) as stop:
            benchmark.main([name, "--help"])
        assert stop.value.code == 0
        assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_commands_that_are_written_down_are_understood(repository, page):
    text = (repository / page).read_text(encoding="utf-8")
    lines = re.findall(r"^python tools/benchmark\.py (.+)$", text, flags=re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        args = benchmark.parse(shlex.split(line))
        assert args.command == line.split()[0]


def test_the_options_know_what_is_measured():
    """They are written out there, so that --help need not import it."""
    assert tuple(steps.FORWARD) == options.ATTENTION
    assert options.DECODERS == decoders.DECODERS
    assert {f"ladder_{rung}_small_16x224" for rung in options.RUNGS} <= set(MODEL_REGISTRY.names())
    for entry in options.BENCHMARKS.values():
        assert callable(import_module(f"hiera_video.benchmarks.{entry.module}").run)


def test_no_subcommands_help_waits_for_torch(tmp_path):
    code = (
        "import sys\n"
        "from hiera_video.commands import benchmark\n"
        "try: benchmark.main([sys.argv[1], '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'av', 'numpy') if m in sys.modules], file=sys.stderr)"
    )
    for name in options.BENCHMARKS:
        done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True)
        assert done.stderr.strip() == "[]", name


def test_reports_say_how_they_were_started():
    args = benchmark.parse(["model", "--batch", "2"], "python -m hiera_video benchmark")
    started = ["python", "-m", "hiera_video", "benchmark", "model", "--batch", "2"]
    assert args.command_line == started


def test_wrong_numbers_exit_2(capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["model", "--repeats", "0"])
    assert stop.value.code == 2
    assert "at least 1" in capsys.readouterr().err
