"""One failure for each item that crashes, hangs or eats memory, and values for all the others."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from hiera_video.errors import DecodeError, RunFailed, UserError
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure
from hiera_video.video.limits import is_out_of_memory, limited

MIB = 1 << 20


def act(item):
    """What the children do: `item` is a word and its arguments."""
    word, *rest = item
    if word == "signal":
        os.kill(os.getpid(), rest[0])
    if word == "exit":
        os._exit(rest[0])
    if word == "hang":
        time.sleep(1000)
    if word == "nap":
        time.sleep(rest[0])
    if word == "eat":
        return len(bytearray(rest[0]))
    if word == "unreadable":
        raise DecodeError(rest[0], "is a text file, not a video")
    if word == "misuse":
        raise UserError("no such decoder")
    if word == "odd error":
        raise Unpicklable(1, 2)
    if word == "killed once":  # by somebody else, with no fault of its own
        if not os.path.exists(rest[0]):
            open(rest[0], "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return "read"
    return (word, os.getpid())


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(one)


@pytest.fixture(scope="module")
def pool():
    with GuardedPool(act, workers=2, memory_limit=200 * MIB) as pool:
        yield pool


def reason(pool, *item):
    ((back, outcome),) = pool.map([item])
    assert back == item
    assert isinstance(outcome, WorkerFailure)
    return outcome.reason, outcome.kind


def test_values_come_back_with_their_items_from_other_processes(pool):
    items = [(f"word {i}",) for i in range(20)]
    outcomes = dict(pool.map(items))
    assert {item: value[0] for item, value in outcomes.items()} == {i: i[0] for i in items}
    assert os.getpid() not in {value[1] for value in outcomes.values()}
    assert pool.call(("hello",))[0] == "hello"


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (("signal", signal.SIGSEGV), ("crashed (SIGSEGV)", "crashed")),
        (("signal", signal.SIGABRT), ("crashed (SIGABRT)", "crashed")),
        (("exit", 3), ("crashed (exit code 3)", "crashed")),
        (("eat", 400 * MIB), ("needed more than 200 MiB", "memory")),
        (("unreadable", "a.mp4"), ("is a text file, not a video", "refused")),
        (("signal", signal.SIGKILL), ("its process was killed twice, out of memory?",) * 1),
    ],
    ids=lambda value: str(value[0]),
)
def test_what_ends_a_child_costs_one_item(pool, item, expected):
    assert reason(pool, *item)[: len(expected)] == expected
    assert pool.call(("and on it goes",))[0] == "and on it goes"


def test_bad_items_among_good_ones_are_counted_exactly(pool):
    bad = [("signal", signal.SIGSEGV), ("exit", 1), ("eat", 400 * MIB), ("unreadable", "x")] * 2
    items = [x for pair in zip(bad, [("good", i) for i in range(8)], strict=True) for x in pair]
    outcomes = list(pool.map(items))
    assert len(outcomes) == 16
    lost = [item for item, outcome in outcomes if isinstance(outcome, WorkerFailure)]
    assert sorted(map(str, lost)) == sorted(map(str, bad))


def test_a_hang_is_ended_at_the_limit():
    with GuardedPool(act, time_limit=3) as pool:
        assert reason(pool, "hang") == ("took longer than 3 s", "time")
        with pytest.raises(WorkerFailure, match="longer than 3 s"):
            pool.call(("hang",))
        assert pool.call(("next",))[0] == "next"


def test_the_time_counts_the_work_not_the_waiting():
    with GuardedPool(act, time_limit=3) as pool:
        first = next(outcomes := pool.map([("a",), ("b",)]))
        time.sleep(4)  # the reader of the outcomes is slow, the child is not
        assert [first[1][0], *(value[0] for _, value in outcomes)] == ["a", "b"]


def test_an_item_whose_child_was_killed_from_outside_gets_a_second_chance(pool, tmp_path):
    assert pool.call(("killed once", str(tmp_path / "mark"))) == "read"


def test_exceptions_of_the_function_are_told_from_crashes(pool):
    with pytest.raises(DecodeError) as error:
        pool.call(("unreadable", "a.mp4"))
    assert (error.value.path, error.value.reason) == ("a.mp4", "is a text file, not a video")
    for way in (lambda item: pool.call(item), lambda item: list(pool.map([item]))):
        with pytest.raises(UserError, match="no such decoder"):
            way(("misuse",))
    with pytest.raises(RuntimeError, match="Unpicklable: 1"):
        pool.call(("odd error",))


def test_items_are_taken_when_a_child_is_free(pool):
    taken = itertools.count()
    endless = ((f"{next(taken)}",) for _ in itertools.count())
    outcomes = pool.map(endless)
    for _ in range(5):
        next(outcomes)
    outcomes.close()
    assert next(taken) <= 5 + 2
    assert pool.call(("afterwards",))[0] == "afterwards"  # not an answer of before


def test_nothing_is_left_behind():
    with GuardedPool(act, workers=3) as pool:
        pids = {pool.call(("x",))[1], *(value[1] for _, value in pool.map([("y",)] * 9))}
    assert not pids & {child.pid for child in multiprocessing.active_children()}
    with pytest.raises(ValueError, match="closed"):
        pool.call(("x",))


def test_a_pool_that_cannot_start_says_why():
    with (
        GuardedPool("hiera_video.no_such_module.read") as pool,
        pytest.raises(RunFailed, match=r"cannot start .*: ModuleNotFoundError.*no_such_module"),
    ):
        pool.call(1)


def die():
    os._exit(7)


def test_a_pool_whose_children_end_while_they_start_says_so():
    with (
        GuardedPool(act, prepare=die) as pool,
        pytest.raises(RunFailed, match=r"ends while it starts \(exit code 7\).*__main__"),
    ):
        pool.call(("x",))


ENDS = {
    "at once": "",
    "when a child is ready": "pool.call(('x',))",
    "while a child works": "pool._children or pool._starting.join(); pool.call(('x',)); "
    "[child.give(('nap', 2)) for child in pool._children]",
}
"""What a script does with its pool before it ends."""


@pytest.mark.parametrize("when", ENDS)
@pytest.mark.parametrize(
    ("workers", "by"),
    [
        (1, "exit"),
        (2, "SIGKILL"),
        pytest.param(1, "SIGKILL", marks=pytest.mark.slow),
        pytest.param(2, "exit", marks=pytest.mark.slow),
    ],
)
def test_children_of_a_parent_that_is_gone_end_quietly(tmp_path, when, by, workers):
    """In whatever they are: they start early, and the parent may find that it has no work."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import os, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_guarded_pool import act, GuardedPool
if __name__ == "__main__":
    pool = GuardedPool(act, workers={workers})
    {ENDS[when]}
    os._exit(0) if {by!r} == "exit" else os.kill(os.getpid(), 9)
"""
    )
    # returns when nobody holds the pipes any more: the children have ended as well
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200)
    assert done.returncode == (0 if by == "exit" else -signal.SIGKILL)
    assert done.stderr == ""


def test_importing_it_loads_neither_torch_nor_a_decoder():
    code = (
        "import hiera_video.video.decoding_process, sys;"
        " print({'torch', 'av', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()"


# ---- the limits themselves ----


def test_limits_hold_inside_and_are_gone_outside():
    code = f"""
from hiera_video.video.limits import is_out_of_memory, limited
import time
try:
    with limited(60, {100 * MIB}):
        small = bytearray({50 * MIB})
        bytearray({200 * MIB})
except MemoryError as error:
    print("refused", is_out_of_memory(error))
print(len(bytearray({200 * MIB})))
with limited(2, {100 * MIB}):
    pass
time.sleep(2.5)
print("alive", flush=True)
with limited(0.2, {100 * MIB}):
    time.sleep(100)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["refused", "True", str(200 * MIB), "alive"]
    assert done.returncode == -signal.SIGALRM


def test_want_of_memory_is_told_from_other_errors():
    assert is_out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
    )
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(DecodeError("a.mp4", "damaged video (Cannot allocate memory)"))


def test_limits_inside_limits_give_back_what_was_before():
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with limited(100, 1 << 30):
        held = resource.getrlimit(resource.RLIMIT_AS)
        with limited(100, 2 << 30):
            assert resource.getrlimit(resource.RLIMIT_AS)[0] <= held[0]
        assert resource.getrlimit(resource.RLIMIT_AS) == held
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are Linux's")
def test_the_limit_on_memory_is_lifted_for_imports_and_holds_again_afterwards():
    script = """
        import mmap
        from hiera_video.video.limits import imports_allowed, limited

        def takes(size):
            try:
                return mmap.mmap(-1, size)
            except (OSError, ValueError, MemoryError):
                return None

        with limited(60, 64 << 20):
            print(takes(256 << 20) is None)
            with imports_allowed():
                held = takes(256 << 20)
                print(held is not None)
            print(takes(256 << 20) is None, takes(16 << 20) is not None)
        print(takes(1 << 30) is not None)
        with imports_allowed():
            print(takes(1 << 30) is not None)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 6, done.stderr


# ---- in order, ahead of their use ----


def test_outcomes_come_in_the_order_of_the_items(pool):
    words = [("nap", 0.4), ("a",), ("unreadable", "x.mp4"), ("signal", signal.SIGSEGV), ("b",)]
    outcomes = list(pool.ordered(words, ahead=3))
    assert [item for item, _ in outcomes] == words
    values = [outcome for _, outcome in outcomes]
    assert [values[1][0], values[4][0]] == ["a", "b"]
    assert [(v.reason, v.kind) for v in values[2:4]] == [
        ("is a text file, not a video", "refused"),
        ("crashed (SIGSEGV)", "crashed"),
    ]
    with pytest.raises(UserError, match="no such decoder"):
        list(pool.ordered([("a",), ("misuse",)], ahead=2))
    assert pool.call(("and on it goes",))[0] == "and on it goes"


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_no_more_than_so_many_are_begun_ahead(pool, ahead):
    begun, yielded = [], 0

    def items():
        for number in range(8):
            begun.append(number)
            # the first takes long: the others may not pile up behind it
            yield ("nap", 0.5 if number == 0 else 0.0)

    for _ in pool.ordered(items(), ahead=ahead):
        assert len(begun) <= yielded + ahead + 1
        yielded += 1
    assert yielded == 8


def test_children_work_while_the_caller_uses_an_outcome():
    with GuardedPool(act) as pool:
        outcomes = pool.ordered([("a",), ("b",), ("c",)], ahead=2)
        next(outcomes)
        (child,) = pool._children
        assert child.item == ("b",)  # handed out before the first was yielded
        assert [value[0] for _, value in outcomes] == ["b", "c"]


def test_a_caller_who_leaves_early_leaves_the_pool_usable(pool):
    for _ in pool.ordered([("nap", 0.1)] * 6, ahead=3):
        break
    assert pool.call(("next",))[0] == "next"


def test_a_place_for_sockets_with_too_long_a_name_is_an_error_in_one_line(tmp_path):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    code = """
    from hiera_video.video.guarded_pool import GuardedPool
    with GuardedPool("hiera_video.video.guarded_video.serve") as pool:
        pool.call(("open", "clip.mp4", "auto"))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stderr.count("Traceback") == 1, "of this script, which catches nothing"
    assert done.stderr.splitlines()[-1].endswith(
        "cannot start a worker process to read videos in: AF_UNIX path too long; set TMPDIR to a "
        "folder with a shorter name"
    )
