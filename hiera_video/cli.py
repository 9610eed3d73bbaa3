"""What every command line shares: exit codes, one-line errors, names shown, and `--import`.

Exit codes: 0 done; 1 the run failed; 2 wrong use (argparse's own too); 130 interrupted;
141 the reader of our output went away (`... | head`).
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from hiera_video.errors import DecodeError, RunFailed, UserError
from hiera_video.registry import import_user_module

DONE, FAILED, WRONG_USE, INTERRUPTED, READER_GONE = 0, 1, 2, 130, 141


def run(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Call `main(argv)` and end the process: failures become one line on stderr and an exit code.

    Anything but the failures named here is a bug of ours and keeps its traceback.
    """
    if hasattr(sys.stdout, "reconfigure"):
        # A name that the terminal cannot show, or that is not valid UTF-8, is shown escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main(sys.argv[1:]) or DONE
        sys.stdout.flush()  # here, where a closed pipe can still be answered quietly
    except UserError as error:
        code = _complain(error, WRONG_USE)
    except KeyboardInterrupt:
        code = _complain("interrupted", INTERRUPTED)
    except BrokenPipeError as error:
        code = READER_GONE if _reader_is_gone() else _complain(error, FAILED)
    except (RunFailed, DecodeError) as error:
        code = _complain(error, FAILED)
    except OSError as error:
        code = _complain(_named(error), FAILED)
    if code == READER_GONE or _stdout_fails():
        # Python flushes stdout once more while it ends and would print a traceback of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if os.environ.get("WORLD_SIZE", "1") != "1":
        _leave_at_once(code)
    sys.exit(code)


def _leave_at_once(code: int) -> NoReturn:
    """End one process of several (torchrun) without taking the interpreter apart.

    PyTorch 2.14 keeps a process group alive, threads and all, once DistributedDataParallel used it.
    A process with these was seen to abort at its end, and torchrun called a finished run failed.
    """
    atexit._run_exitfuncs()  # what Python does first: workers are ended, temporary files deleted
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--import MODULE` (repeatable); the module is imported while the line is parsed."""
    parser.add_argument(
        "--import",
        dest="imports",
        action=_ImportModule,
        default=[],
        metavar="MODULE",
        help="import a module of yours first, so that the models and data sets it registers exist",
    )


class _ImportModule(argparse.Action):
    """An action and not a `type`: argparse would swallow the message of a failing `type`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        import_user_module(values)
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values])


def _complain(error: BaseException | str, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _named(error: OSError) -> str:
    """What failed, and where: standard output alone does not name itself (`files.py` does)."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if error.filename is None and (full or _stdout_fails()):
        return f"cannot write to standard output: {error.strerror or error}"
    return str(error)


def _stdout_fails() -> bool:
    """Whether what was printed last is still waiting, and cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    except (ValueError, AttributeError):  # closed, or there is none
        return False
    return False


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe nobody reads; other broken pipes are real failures."""
    if not hasattr(select, "poll"):
        return True
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):
        return True
