"""The flags of `predict --stream`: what they may be combined with, and lines of JSON out."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from hiera_video.cli import DONE, import_torch
from hiera_video.errors import UserError

_OTHER_OUTPUTS = {
    "csv": "a stream is written as JSON lines on standard output",
    "video": "a stream has no end to write a video to",
    "html": "a stream has no end to write a page at",
    "copy": "a stream has no end to write a page at",
    "explain": "a stream cannot be read again",
}
"""Options that a stream does not have, and why. `--json` says what is written in any case."""


def add_stream_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--stream` and `--stream-timeout`."""
    parser.add_argument(
        "--stream",
        metavar="STREAM",
        help="label what comes from camera:N, an rtsp(s):// or http(s):// address, a file that "
        "grows, or - (standard input), and print a line of JSON for each window",
    )
    parser.add_argument(
        "--stream-timeout",
        type=float,
        metavar="SECONDS",
        help="a stream that is silent for so long is given up, a file complete (default: 10)",
    )


def check_stream_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for a combination that is not possible."""
    if args.stream is None:
        if args.stream_timeout is not None:
            raise UserError("--stream-timeout is for --stream only")
        return
    if args.paths:
        raise UserError(
            f"--stream and {args.paths[0]!r}: a stream is labelled alone; start a second command"
        )
    for name, reason in _OTHER_OUTPUTS.items():
        if getattr(args, name, None):
            raise UserError(f"--{name} does not go with --stream: {reason}")
    if args.decoder not in (None, "auto", "pyav"):
        raise UserError(f"--decoder {args.decoder}: streams are decoded with pyav")


def label_the_stream(
    args: argparse.Namespace, choices: Mapping[str, Any], views: tuple[int, int]
) -> int:
    """Print a line of JSON for each window of the stream; return the exit code.

    choices: the keyword arguments of `Predictor.load`.
    """
    from hiera_video.streaming.label import TIMEOUT, check_timeout, label_stream, stream_process
    from hiera_video.streaming.sources import parse_source
    from hiera_video.video.sampling import check_window

    source = parse_source(args.stream)
    timeout = TIMEOUT if args.stream_timeout is None else args.stream_timeout
    check_timeout(timeout)
    if args.timeline is not None:
        check_window(args.timeline)
    # The process starts first: it imports its libraries while the model is loaded.
    with stream_process() as process:
        import_torch()
        from hiera_video.predict import Predictor

        # What a library prints while the model is loaded must not end up in the JSON.
        with contextlib.redirect_stdout(sys.stderr):
            predictor = Predictor.load(**{**choices, "decoder": "pyav"}, views=views)
        labelled = label_stream(
            predictor,
            source,
            process,
            seconds=args.timeline,
            timeout=timeout,
            top_k=args.top_k,
        )
        for window in labelled:
            _write_line(window.to_dict())
    return DONE


def _write_line(content: Mapping[str, Any]) -> None:
    """Write one object in one piece: an interruption leaves whole lines."""
    # ASCII, so that it is valid JSON whatever the terminal's encoding is.
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()
