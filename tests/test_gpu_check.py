"""`make gpu-check`: what it does without a card, what it runs, and how it reports."""

import importlib.util
import json
import shlex
import sys

import pytest
import torch

from hiera_video import files
from hiera_video.benchmarks import gpu_checks
from hiera_video.benchmarks.gpu_checks import CHECKS, NotHere, Place
from hiera_video.commands import benchmark

CPU = Place(torch.device("cpu"), small=True)
QUICK = ("many units", "large batch")
ON_A_CPU = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in CHECKS
    if "step" not in name or name.endswith("tiny")
]


def load(repository, name):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, repository / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu_check(repository):
    return load(repository, "gpu_check")


def seen(out):
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def test_without_a_card_nothing_is_claimed(gpu_check, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--out", str(tmp_path / "report")]) == 0
    assert capsys.readouterr().out == "no CUDA device: nothing was checked\n"
    assert not list(tmp_path.iterdir())


def test_its_benchmarks_are_command_lines_of_the_benchmark(gpu_check):
    asked = {t: benchmark.parse(shlex.split(words)) for t, words in gpu_check.BENCHMARKS.items()}
    assert {args.command for args in asked.values()} == {"model", "pretrain", "ladder"}
    assert all(args.device == "cuda" for args in asked.values())
    assert asked["ladder L"].size == "large"
    with pytest.raises(SystemExit):
        benchmark.parse(["model", "--no-such-option"])


def fail(text):
    raise ValueError(text)


def not_here(text):
    raise NotHere(text)


def test_each_check_ends_as_one_line(gpu_check, monkeypatch, capsys):
    checks = {
        "good": lambda place: "well",
        "absent": lambda place: not_here("no library"),
        "lacking": lambda place: __import__("no_such_module"),
        "bad": lambda place: fail("wrong\nand more"),
    }
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    assert gpu_check.run_checks(list(checks), CPU) == 0
    rows = seen(capsys.readouterr().out)
    assert [(row["name"], row["state"], row["seen"]) for row in rows] == [
        ("good", "holds", "well"),
        ("absent", "not tried", "no library"),
        ("lacking", "not tried", "needs no_such_module, which is not installed"),
        ("bad", "FAILED", "ValueError: wrong"),
    ]


def test_a_child_runs_the_checks_and_one_that_dies_costs_one_check(gpu_check, monkeypatch):
    (outcome,) = gpu_check.from_child(["many units"], "cpu", 300)
    assert (outcome.name, outcome.state) == ("many units", "holds")
    monkeypatch.setattr(gpu_check, "__file__", "/no/such/file.py")
    (outcome,) = gpu_check.from_child(["many units", "demo"], "cpu", 300)
    assert (outcome.name, outcome.state) == ("many units", "FAILED")
    assert "exit code 2" in outcome.seen


def test_checks_go_on_after_one_that_failed_until_the_time_is_up(gpu_check, monkeypatch):
    given, now = [], [0.0]

    def from_child(names, device, seconds):
        given.append((list(names), seconds))
        now[0] += 50
        return [gpu_check.Outcome(names[0], gpu_check.FAILED, "bad")]

    monkeypatch.setattr(gpu_check, "from_child", from_child)
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: now[0])
    outcomes = gpu_check.check_all(["a", "b", "c"], "cuda", end=110)
    assert given == [(["a", "b", "c"], 110), (["b", "c"], 60)]
    assert [(o.name, o.state) for o in outcomes] == [
        ("a", "FAILED"),
        ("b", "FAILED"),
        ("c", "not tried"),
    ]


@pytest.mark.parametrize(("state", "code"), [("holds", 0), ("not tried", 0), ("FAILED", 1)])
def test_the_report_has_conditions_checks_and_tables(
    gpu_check, tmp_path, monkeypatch, capsys, state, code
):
    def check_all(names, device, *, end):
        return [gpu_check.Outcome(names[0], state, "a | b\nc", 1.5)]

    def run(command, **settings):
        files.write_text(command[command.index("--markdown") + 1], "| of peak |\n")
        return gpu_check.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "check_all", check_all)
    monkeypatch.setattr(gpu_check.subprocess, "run", run)
    monkeypatch.setattr(gpu_check.machine, "machine_facts", lambda device: {"device": "a card"})
    assert gpu_check.main(["--out", str(tmp_path)]) == code
    text = (tmp_path / "report.md").read_text()
    assert str(tmp_path / "report.md") in capsys.readouterr().out
    assert "device a card" in text
    assert f"| {next(iter(CHECKS))} | {state} | 1.5 | a / b c |" in text
    assert text.count("| of peak |") == len(gpu_check.BENCHMARKS)


def test_a_benchmark_that_fails_is_reported(gpu_check, tmp_path, monkeypatch):
    def run(command, **settings):
        return gpu_check.subprocess.CompletedProcess(command, 1, "", "error: no memory")

    monkeypatch.setattr(gpu_check.subprocess, "run", run)
    end = gpu_check.time.monotonic() + 100
    outcome, text = gpu_check.measure("ladder L", "ladder", tmp_path, end)
    assert (outcome.state, outcome.seen) == ("FAILED", "exit code 1: error: no memory")
    assert "Not complete: exit code 1" in text
    outcome, _ = gpu_check.measure("ladder L", "ladder", tmp_path, 0.0)
    assert (outcome.state, outcome.seen) == ("not tried", "the time was up")


@pytest.mark.parametrize("name", ON_A_CPU)
def test_the_checks_themselves_work(name):
    """On a CPU with small models: this tests the checks."""
    assert CHECKS[name](CPU)


def test_a_wrong_attention_is_found(monkeypatch):
    monkeypatch.setattr(gpu_checks.layers, "attend", lambda q, k, v: (q + k + v) * 0.1)
    with pytest.raises(AssertionError, match="differs from plain products"):
        gpu_checks.many_units(CPU)


def test_wrong_code_is_not_at_parity(monkeypatch):
    attend = gpu_checks.layers.attend
    monkeypatch.setattr(gpu_checks.layers, "attend", lambda q, k, v: attend(q, k, v) * 1.1)
    with pytest.raises(AssertionError, match="from the published code"):
        gpu_checks.parity(CPU, "hiera_base_16x224")


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name):
    try:
        assert CHECKS[name](Place(torch.device("cuda")))
    except NotHere as reason:
        pytest.skip(str(reason))
