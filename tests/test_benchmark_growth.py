"""The table of growth: its exponents, and that no task on lists grows faster than the list."""

import json

import pytest

from hiera_video.benchmarks import growth
from hiera_video.commands import benchmark


def measured(*words):
    return growth.run(benchmark.parse(["growth", *map(str, words)]))


def test_exponents_of_known_costs():
    values = [8, 16, 32, 64]
    for power in (0, 1, 2, 0.5):
        costs = [3 * value**power for value in values]
        assert growth.exponent(values, costs) == pytest.approx(power, abs=1e-9)


def test_a_row_holds_what_each_value_cost(monkeypatch):
    spent = iter([1.0, 1.1, 0.9, 4.0, 4.4, 3.6])
    monkeypatch.setattr(growth, "cpu_seconds", lambda call: call() or next(spent))
    called = []
    task = growth.Growing(
        "size", "a", [10, 20], lambda v: lambda: called.append(v), lambda v: v * v
    )
    row = growth.row_of(task, repeats=3)
    assert row["ms"] == [1000.0, 4000.0]
    assert row["memory_bytes"] == [100, 400]
    assert row["exponent"] == row["last_exponent"] == row["memory_exponent"] == pytest.approx(2)
    assert called == [10] * 4 + [20] * 4


def test_memory_that_is_not_measured_has_no_exponent():
    task = growth.Growing("size", "a", [1, 2], lambda v: lambda: None, lambda v: None)
    row = growth.row_of(task, repeats=1)
    assert (row["memory_exponent"], row["memory_text"]) == (None, None)


def test_traced_memory_is_that_of_the_call():
    kept = bytearray(1 << 20)
    assert growth.traced(lambda: bytearray(3 << 20)) == pytest.approx(3 << 20, rel=0.01)
    assert len(kept) == 1 << 20


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    record, table = tmp_path / "out.json", tmp_path / "out.md"
    words = ["--frames", "--sizes", "--videos", 10, 20, "--repeats", 1, "--no-memory"]
    assert measured(*words, "--json", record, "--markdown", table) == 0
    rows = json.loads(record.read_text())["rows"]
    assert [row["quantity"] for row in rows] == ["videos"] * 4
    assert all(len(row["ms"]) == len(row["values"]) == 2 for row in rows)
    for text in (capsys.readouterr().out, table.read_text()):
        assert "first batch of an epoch" in text
        assert "10 20" in text


def test_memory_of_a_list_does_not_grow_faster_than_the_list(tmp_path):
    """What does not depend on the machine: bytes, not seconds."""
    tasks = {task.task: task for task in growth.of_videos([1000, 10_000], tmp_path)}
    for name, most in (
        ("read the list", 1.1),
        ("first batch of an epoch", 1.1),
        ("first batch of a test", 0.1),
    ):
        task = tasks[name]
        held = [growth.traced(task.call(value)) for value in task.values]
        assert growth.exponent(task.values, held) <= most, name
