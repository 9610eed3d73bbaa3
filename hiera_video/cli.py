"""What all command lines share: exit codes, one-line errors, safe output, and `--import`.

Exit codes: 0 done; 1 the run failed; 2 wrong use (argparse's own too); 130 interrupted;
141 the program that reads our output has ended (`... | head`).
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


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main(argv)` and exit; a failure is printed as one line on stderr.

    argv: the words; None for those of the command line.

    Exceptions other than those handled here are bugs and keep their traceback.
    """
    if hasattr(sys.stdout, "reconfigure"):
        # A name that the terminal cannot show, or that is not valid UTF-8, is printed escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main(sys.argv[1:] if argv is None else argv) or DONE
        sys.stdout.flush()  # here, where the error of a closed pipe can still be handled
    except UserError as error:
        code = _print_error(error, WRONG_USE)
    except KeyboardInterrupt:
        code = _print_error("interrupted", INTERRUPTED)
    except BrokenPipeError as error:
        code = READER_GONE if _stdout_has_no_reader() else _print_error(error, FAILED)
    except (RunFailed, DecodeError) as error:
        code = _print_error(error, FAILED)
    except OSError as error:
        code = _print_error(_message_of(error), FAILED)
    if code == READER_GONE or _stdout_fails():
        # Python flushes stdout once more at exit, and would print a traceback if that fails.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if os.environ.get("WORLD_SIZE", "1") != "1":
        _exit_without_shutdown(code)
    sys.exit(code)


def _exit_without_shutdown(code: int) -> NoReturn:
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
    """Escape control characters: a file's name must not control the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _print_error(error: BaseException | str, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


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
