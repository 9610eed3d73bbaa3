"""Atomic writes: on a full disk, killed between any two steps, by two writers at a time."""

import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from hiera_video import files
from hiera_video.errors import RunFailed

OLD, NEW = b"old " * 5_000, b"new " * 50_000
ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


def python(code, *arguments, before=()):
    """Run code in a child process with this package; returns what it printed."""
    done = subprocess.run(
        [*before, sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(files_root()), *sys.path])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_root():
    return Path(files.__file__).resolve().parent.parent


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- what comes to stand there ------------------------------------------------------------------


def test_a_file_appears_whole_when_the_block_ends(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(OLD)
    with files.atomic_write(path) as file:
        file.write(NEW)
        file.flush()
        assert path.read_bytes() == OLD
        (hidden,) = [name for name in names(tmp_path) if name != "x.json"]
        assert hidden.startswith(".x.json.")
    assert path.read_bytes() == NEW
    assert names(tmp_path) == ["x.json"]


def test_text_is_written_as_it_is_given(tmp_path):
    files.write_text(tmp_path / "x", "a\nb\r\nü\n")
    assert (tmp_path / "x").read_bytes() == "a\nb\r\nü\n".encode()
    files.write_text(tmp_path / "x", "\udcff.mp4", errors="surrogateescape")
    assert (tmp_path / "x").read_bytes() == b"\xff.mp4"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, UnicodeEncodeError])
def test_an_error_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x"
    path.write_bytes(OLD)

    def write():
        with files.atomic_write(path, text=True) as file:
            file.write("half")
            if error is UnicodeEncodeError:
                file.write("\udcff")
                file.flush()
            raise error

    with pytest.raises(error):
        write()
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["x"]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX modes")
def test_modes_are_those_of_any_other_file(tmp_path):
    """A new file follows the umask, unlike one of `tempfile`; an existing file keeps its mode."""
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_bytes(OLD)
    old.chmod(0o640)
    before = os.umask(0o027)
    try:
        files.write_text(new, "")
        old.chmod(0o604)
        files.write_text(old, "")
    finally:
        os.umask(before)
    assert stat.S_IMODE(new.stat().st_mode) == 0o640
    assert stat.S_IMODE(old.stat().st_mode) == 0o604


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is protected from root")
def test_a_write_protected_file_is_not_replaced(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(OLD)
    path.chmod(0o444)
    with pytest.raises(RunFailed, match=r"cannot write .*x: it is write-protected"):
        files.write_text(path, "new")
    assert path.read_bytes() == OLD


def test_behind_a_link_the_file_that_it_names_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_bytes(OLD)
    (tmp_path / "link").symlink_to("real/x")
    (tmp_path / "dangling").symlink_to("real/new")
    for name in ("link", "dangling"):
        files.write_text(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "new"
    assert names(tmp_path / "real") == ["new", "x"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_written_to_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    with files.atomic_write(tmp_path / "pipe") as file:
        file.write(NEW)
    reader.join()
    assert read == [NEW]
    assert names(tmp_path) == ["pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="needs /dev/stdout")
def test_standard_output_has_a_name_too():
    assert python("from hiera_video.files import *; write_text('/dev/stdout', 'new')") == "new"


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    name = "ü" * 127 + "x"
    files.write_text(tmp_path / name, "new")
    assert names(tmp_path) == [name]


def test_parts_that_the_system_takes_add_up(tmp_path, monkeypatch):
    """`write` may take a part of the bytes; Linux takes at most 2 GiB."""
    write = files._Raw.write
    monkeypatch.setattr(files._Raw, "write", lambda self, data: write(self, bytes(data[:7001])))
    with files.atomic_write(tmp_path / "x") as file:
        assert file.write(NEW) == len(NEW)
    assert (tmp_path / "x").read_bytes() == NEW


def test_bytes_that_do_not_arrive_are_noticed(tmp_path, monkeypatch):
    """As on a network file system that has accepted them but is full."""
    real = os.fstat

    def half(handle):
        status = list(real(handle))
        status[stat.ST_SIZE] //= 2
        return os.stat_result(status)

    def write():
        with files.atomic_write(tmp_path / "x") as file:
            file.write(NEW)
            monkeypatch.setattr(files.os, "fstat", half)

    (tmp_path / "x").write_bytes(OLD)
    with pytest.raises(RunFailed, match="x: only 100,000 of 200,000 bytes arrived"):
        write()
    assert (tmp_path / "x").read_bytes() == OLD
    assert names(tmp_path) == ["x"]


# ---- errors name the file -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no/such/x", r"no/such/x: there is no folder .*no/such"),
        ("file/x", r"file/x: .*"),
        ("folder", r"folder: it is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path, name, says):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunFailed, match=f"cannot write .*{says}"):
        files.write_text(tmp_path / name, "new")
    assert names(tmp_path) == ["file", "folder"]


def test_a_folder_that_vanishes_or_fills_its_place_meanwhile_is_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with (
        pytest.raises(RunFailed, match=r"cannot write .*a/x: there is no folder"),
        files.atomic_write(tmp_path / "a" / "x"),
    ):
        shutil.rmtree(tmp_path / "a")
    with (
        pytest.raises(RunFailed, match=r"cannot write .*b/x: "),
        files.atomic_write(tmp_path / "b" / "x"),
    ):
        (tmp_path / "b" / "x" / "y").mkdir(parents=True)
    assert names(tmp_path / "b") == ["x"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_device_without_room_is_named():
    with (
        pytest.raises(RunFailed, match=r"^cannot write /dev/full: No space left on device; free"),
        files.atomic_write("/dev/full") as file,
    ):
        file.write(NEW)


def test_errors_of_other_files_are_not_blamed_on_this_one(tmp_path):
    def copy():
        with files.atomic_write(tmp_path / "x") as file:
            file.write(b"half")
            file.write((tmp_path / "other").read_bytes())

    with pytest.raises(FileNotFoundError, match="other"):
        copy()
    assert names(tmp_path) == []


LIMITED = """
    import json, os, resource, sys
    from hiera_video.errors import RunFailed
    from hiera_video.files import atomic_write

    folder, size = sys.argv[1], 20_000
    os.chdir(folder)
    for limit in (0, 1, 8191, 8192, 8193, 12_345, 19_999, 20_000):
        open("x", "wb").write(b"old") if limit > 3 else None
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            with atomic_write("x") as file:
                for _ in range(size // 1000):
                    file.write(bytes(1000))
            said = None
        except RunFailed as error:
            said = str(error)
        there = open("x", "rb").read() if os.path.exists("x") else b""
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        print(json.dumps([limit, said, len(there), os.listdir()]))
"""


@ON_LINUX
def test_a_disk_that_is_full_at_any_byte(tmp_path):
    """A limit of the kernel on the size of a file acts like a full disk."""
    rows = [json.loads(line) for line in python(LIMITED, tmp_path).splitlines()]
    assert len(rows) == 8
    for limit, said, there, left in rows:
        if limit < 20_000:
            assert said.startswith("cannot write x: File too large, ")
            assert "MiB are free there; free some space" in said
            assert there == (3 if limit > 3 else 0)
            assert left == (["x"] if limit > 3 else [])
        else:
            assert (said, there, left) == (None, 20_000, ["x"])


FULL_FOR_A_WHILE = """
    import contextlib, os, resource, sys
    from hiera_video.errors import RunFailed
    from hiera_video.files import atomic_write

    os.chdir(sys.argv[1])
    try:
        with atomic_write("x", text=True) as file:
            for number in range(100):
                limit = 20_000 if 30 < number < 60 else resource.RLIM_INFINITY
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                with contextlib.suppress(OSError):
                    file.write("x" * 1000)
    except RunFailed as error:
        print(error)
"""


@ON_LINUX
def test_a_part_that_failed_is_not_passed_over(tmp_path):
    """A block that goes on after a failed write must not end in a file with a hole."""
    assert python(FULL_FOR_A_WHILE, tmp_path).startswith("cannot write x: File too large")
    assert names(tmp_path) == []


MOUNTED = """
    import json, os, subprocess, sys
    from hiera_video.errors import RunFailed
    from hiera_video.files import atomic_write, write_text

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", sys.argv[1]], check=True)
    os.chdir(sys.argv[1])
    write_text("x", "old")
    try:
        with atomic_write("x") as file:
            file.write(bytes(1 << 20))
    except RunFailed as error:
        print(json.dumps([str(error), open("x").read(), os.listdir()]))
"""


@ON_LINUX
def test_a_disk_that_is_full(tmp_path):
    """A small disk, mounted in a child process and gone with it."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        trial = subprocess.run([*alone, "mount", "-t", "tmpfs", "none", tmp_path], check=False)
        works = trial.returncode == 0
    except OSError:
        works = False
    if not works:
        pytest.skip("this machine lets nobody mount a file system in a namespace")
    said, there, left = json.loads(python(MOUNTED, tmp_path, before=alone))
    assert said == (
        "cannot write x: No space left on device, 0 MiB are free there; free some space, or write "
        "to another disk"
    )
    assert (there, left) == ("old", ["x"])


# ---- killed -------------------------------------------------------------------------------------

KILLED = """
    import json, os, signal, sys
    from hiera_video import files

    folder, job = sys.argv[1:]
    os.chdir(folder)
    old, new = b"old " * 5_000, b"new " * 50_000

    def write():
        if job == "link":
            files.link_or_copy("../new", "x")
            return
        with files.atomic_write("x") as file:
            for part in range(4):
                file.write(new[part * 50_000 : (part + 1) * 50_000])

    def killed(number):
        "Whether a child that dies at this step of writing died; its steps are calls of the system"
        child = os.fork()
        if child == 0:
            left = number
            def step(frame, event, argument):
                nonlocal left
                if event.startswith("c_"):  # before and after each function that is not Python
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
            sys.setprofile(step)
            write()
            sys.setprofile(None)
            os._exit(0)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])

    open("../new", "wb").write(new)
    for before in (old, None):
        number, died = 0, True
        while died:
            if before is None and os.path.exists("x"):
                os.unlink("x")
            elif before is not None:
                open("y", "wb").write(before)
                os.rename("y", "x")
            died = killed(number)
            there = open("x", "rb").read() if os.path.exists("x") else None
            what = "old" if there == before else "new" if there == new else "a part"
            left = len([name for name in os.listdir() if name != "x"])
            write()
            after = os.listdir() if open("x", "rb").read() == new else None
            print(json.dumps([number, died, what, left, after]))
            number += 1
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("job", ["write", "link"])
def test_killed_between_every_two_steps(tmp_path, job):
    """At any moment the file is the complete old or the complete new one, and the next writer
    deletes what is left."""
    (tmp_path / "x").mkdir()
    rows = [json.loads(line) for line in python(KILLED, tmp_path / "x", job).splitlines()]
    ends = [i for i, (_, died, *_) in enumerate(rows) if not died]
    assert len(ends) == 2
    assert ends[1] == len(rows) - 1
    for part in (rows[: ends[0] + 1], rows[ends[0] + 1 :]):
        assert len(part) > 30
        whats = [what for _, _, what, _, _ in part]
        assert whats == sorted(whats, reverse=True)  # old, old, ..., new, new
        assert set(whats) == {"old", "new"}
        assert {left for *_, left, _ in part} == {0, 1}  # some did leave a part beside it
        assert part[-1][3] == 0
        assert all(after == ["x"] for *_, after in part)


# ---- several at once ----------------------------------------------------------------------------

MANY = """
    import sys
    from hiera_video.files import write_text

    for _ in range(40):
        write_text(sys.argv[1], sys.argv[2] * 100_000)
"""


def test_two_writers_never_share_a_file(tmp_path):
    """A reader always finds the complete file of one of them, and neither fails."""
    path = tmp_path / "x"
    path.write_text("a" * 100_000)
    writers = [
        threading.Thread(target=lambda letter=letter: python(MANY, path, letter))
        for letter in "abc"
    ]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        assert len(text) == 100_000
        assert len(set(text)) == 1
        seen.add(text[0])
    for writer in writers:
        writer.join()
    assert seen <= set("abc")
    assert names(tmp_path) == ["x"]


@pytest.mark.skipif(os.name == "nt", reason="needs locks of POSIX")
def test_leftovers_are_deleted_where_nobody_writes_them(tmp_path):
    for name in (".x.0123abcd.tmp", ".x.tmp", ".y.0123abcd.tmp", ".x.swp", "x.tmp", ".x.abc.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".x.89abcdef.tmp").mkdir()
    with files.atomic_write(tmp_path / "x"):
        (alive,) = set(names(tmp_path)) - {
            *(".y.0123abcd.tmp", ".x.swp", "x.tmp", ".x.abc.tmp", ".x.89abcdef.tmp")
        }
        files.write_text(tmp_path / "x", "another writer")
        files.remove_leftovers(tmp_path)
        assert set(names(tmp_path)) == {".x.swp", "x.tmp", ".x.89abcdef.tmp", alive, "x"}
    files.remove_leftovers(tmp_path / "no such folder")


def test_without_locks_only_old_leftovers_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_lock", lambda file: None)
    old, fresh = tmp_path / ".x.00000000.tmp", tmp_path / ".x.11111111.tmp"
    old.touch()
    fresh.touch()
    os.utime(old, (1e9, 1e9))
    files.write_text(tmp_path / "x", "new")
    assert names(tmp_path) == [fresh.name, "x"]


@pytest.mark.skipif(os.name == "nt", reason="needs locks of POSIX")
def test_a_lock_is_held_by_one(tmp_path):
    first = files.hold(tmp_path / ".lock")
    assert files.hold(tmp_path / ".lock") is None
    first.close()
    with files.hold(tmp_path / ".lock") as again:
        assert again is not None


# ---- a second name ------------------------------------------------------------------------------


def test_a_hard_link_or_a_copy(tmp_path, monkeypatch):
    source, best = tmp_path / "a", tmp_path / "best"
    source.write_bytes(NEW)
    best.write_bytes(OLD)
    for _ in range(2):  # the second time they are one file already, which a rename leaves alone
        files.link_or_copy(source, best)
        assert best.samefile(source)
        assert names(tmp_path) == ["a", "best"]

    def refuse(*_):
        raise OSError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    best.unlink()
    files.link_or_copy(source, best)
    assert not best.samefile(source)
    assert best.read_bytes() == NEW
    assert names(tmp_path) == ["a", "best"]


def test_what_another_library_wrote_takes_its_place(tmp_path):
    (tmp_path / "made").write_bytes(NEW)
    files.put_in_place(tmp_path / "made", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == NEW
    with pytest.raises(RunFailed, match=r"cannot write .*no/x: there is no folder"):
        files.put_in_place(tmp_path / "x", tmp_path / "no" / "x")


def test_a_whole_folder_takes_its_place(tmp_path):
    (tmp_path / "making" / "a").mkdir(parents=True)
    (tmp_path / "making" / "a" / "x").write_bytes(NEW)
    files.put_in_place(tmp_path / "making", tmp_path / "made")
    assert names(tmp_path) == ["made"]
    assert (tmp_path / "made" / "a" / "x").read_bytes() == NEW
    (tmp_path / "making").mkdir()
    with pytest.raises(RunFailed, match=r"cannot write .*made"):
        files.put_in_place(tmp_path / "making", tmp_path / "made")


def test_free_space_is_known_before_a_folder_is_made(tmp_path):
    assert files.free_bytes(tmp_path / "not" / "yet") > 0
