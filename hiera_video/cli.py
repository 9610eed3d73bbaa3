"""What all command lines share: exit codes, one-line errors, safe output, and `--import`.

Exit codes: 0 done; 1 the run failed; 2 wrong use (argparse's own too); 130 interrupted;
141 the program that reads our output has ended (`... | head`).
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import gc
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from hiera_video.errors import DecodeError, RunFailed, UserError, hide_secrets
from hiera_video.registry import import_user_module

DONE, FAILED, WRONG_USE, INTERRUPTED, READER_GONE = 0, 1, 2, 130, 141


class Failure(NamedTuple):
    """How a command ends that an exception ends."""

    code: int
    """The exit code."""
    message: str
    """What went wrong; empty where nothing is to be printed."""
    traceback: str = ""
    """Of an error that nobody foresaw; empty for the others."""

    def text(self, who: str = "") -> str:
        """Return what is printed: the cause is in the first line. who: "rank 3: ", or nothing."""
        return f"error: {who}{self.message}\n{self.traceback}" if self.message else ""


def failure_of(error: BaseException) -> Failure:
    """Return how the command ends that `error` ends. Errors not named here are bugs, with their
    traceback."""
    if isinstance(error, UserError):
        return Failure(WRONG_USE, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Failure(INTERRUPTED, "interrupted")
    if isinstance(error, BrokenPipeError) and _stdout_has_no_reader():
        return Failure(READER_GONE, "")
    if isinstance(error, (RunFailed, DecodeError)):
        return Failure(FAILED, str(error))
    if isinstance(error, OSError):
        return Failure(FAILED, _message_of(error))
    if isinstance(error, SystemExit):
        code = error.code or DONE
        return Failure(code, "") if isinstance(code, int) else Failure(FAILED, code)
    lines = str(error).splitlines() or [""]
    trace = "".join(traceback.format_exception(error))
    return Failure(FAILED, f"{type(error).__name__}: {lines[0]}", trace)


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main(argv)` and exit; a failure is printed as one line on stderr.

    argv: the words; None for those of the command line.

    Exceptions that `failure_of` does not know are bugs and keep their traceback.
    """
    spin_briefly()
    if hasattr(sys.stdout, "reconfigure"):
        # A name that the terminal cannot show, or that is not valid UTF-8, is printed escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main(sys.argv[1:] if argv is None else argv) or DONE
        sys.stdout.flush()  # here, where the error of a closed pipe can still be handled
    except (Exception, KeyboardInterrupt) as error:
        failure = failure_of(error)
        if failure.traceback and not _is_one_of_several():
            raise
        code = failure.code
        print(failure.text(), file=sys.stderr, end="", flush=True)
    if code == READER_GONE or _stdout_fails():
        # Python flushes stdout once more at exit, and would print a traceback if that fails.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if _is_one_of_several():
        exit_without_shutdown(code)
    sys.exit(code)


def _is_one_of_several() -> bool:
    """Whether other processes were started with this one; under srun known once it has met them."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def spin_briefly() -> None:
    """Let threads of GNU OpenMP, which PyTorch computes with on Linux, sleep soon while they wait.

    They spin by default, and on a machine that does other work, too, a thread then spins on the
    very core that the other one waits for (docs/benchmarks.md has what that costs). It counts
    where the library is loaded later: call this before torch is imported. What the user has set
    stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def import_torch() -> None:
    """Import torch with the garbage collector at rest, and leave what that makes out of later
    collections.

    It makes some 180,000 objects, and all of them stay. To look through them again and again
    while there are more and more, and once more at the exit, is a third of the time that a short
    command takes. Where torch is here already nothing is done: what else a program has made by then
    must stay collectable.
    """
    if "torch" in sys.modules or not gc.isenabled():
        return
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()


def exit_without_shutdown(code: int) -> NoReturn:
    """Exit one process of several (torchrun) without the interpreter's shutdown.

    In PyTorch 2.14 a process group that DistributedDataParallel has used stays alive with its
    threads. Such processes have aborted at exit, and torchrun reported finished runs as failed.
    """
    atexit._run_exitfuncs()  # as Python does at exit: end workers, delete temporary files
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--import MODULE` (repeatable), which imports the module during parsing."""
    parser.add_argument(
        "--import",
        dest="imports",
        action=_ImportModule,
        default=[],
        metavar="MODULE",
        help="import a module of yours first, so that the models and data sets it registers exist",
    )


class _ImportModule(argparse.Action):
    """An action and not a `type`, because argparse hides the message of a `type` that fails."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        import_user_module(values)
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values])


def printable(text: str) -> str:
    """Escape control characters, since a file's name must not control the terminal, and hide the
    secrets of addresses."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in hide_secrets(text))


def _message_of(error: OSError) -> str:
    """The message of an OSError; one of standard output has no file name, so it is added here."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if error.filename is None and (full or _stdout_fails()):
        return f"cannot write to standard output: {error.strerror or error}"
    return str(error)


def _stdout_fails() -> bool:
    """Whether printed text is still in the buffer and cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    except (ValueError, AttributeError):  # stdout is closed or None
        return False
    return False


def _stdout_has_no_reader() -> bool:
    """Whether standard output is a pipe without a reader; other broken pipes are real failures."""
    if not hasattr(select, "poll"):
        return True
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):
        return True
