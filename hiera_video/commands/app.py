"""Label videos in a browser: drop one, or record one with the camera.

    hiera-video app
    hiera-video app --weights runs/mine/checkpoints/best.pyth
    hiera-video app --port 8000 --max-mb 50
    hiera-video app --check

Shows labels, scores over time, what speaks for the label, and of a masked autoencoder what it
paints where the clip is hidden. Runs on this machine alone, and needs no network. Needs Gradio:
pip install 'hiera_video[app]'.

Exit codes: 0 --check found it in order; 1 --check did not; 2 wrong use, or the port is taken;
130 Ctrl-C, which is how it ends; 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hiera_video.cli import DONE, INTERRUPTED
from hiera_video.commands import usage
from hiera_video.errors import UserError
from hiera_video.video.decoding_process import decoding_process

if TYPE_CHECKING:
    from hiera_video.app.choices import Choice
    from hiera_video.app.server import Place
    from hiera_video.video.guarded_pool import GuardedPool

PORT = 7860


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video app") -> int:
    """Run one command line; returns the exit code."""
    args = _arguments(prog).parse_args(argv)
    place = _place(args)
    from hiera_video.app.server import listening, own_folder, require_gradio, sigterm_ends

    require_gradio()
    if not place.closed:
        print(
            f"warning: --host {args.host}: everybody who reaches this machine can use the app; it "
            "has no password and no encryption",
            file=sys.stderr,
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(sigterm_ends())
        try:
            bound = stack.enter_context(contextlib.closing(listening(place)))
            # Videos are read in a child process. It starts first: it imports its libraries while
            # the model is loaded.
            process = stack.enter_context(decoding_process())
            uploads = stack.enter_context(own_folder())
            return _run(args, place, bound, process, uploads)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return INTERRUPTED


def _arguments(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=usage(__doc__, "app", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--weights", metavar="WEIGHTS", help="what is chosen first; as of predict, a file too")
    add("--device", default="auto", metavar="auto|cpu|cuda", help="default: auto")
    add("--views", default="5x3", metavar="KxS", help="clips in time x crops in space (5x3)")
    add("--port", type=int, default=PORT, metavar="N", help=f"default: {PORT}; 0: any free one")
    add("--host", default="127.0.0.1", metavar="HOST", help="another opens the app to others")
    add("--max-mb", type=int, default=200, metavar="N", help="largest upload (default: 200)")
    add("--max-seconds", type=int, default=300, metavar="N", help="longest job (default: 300)")
    add("--queue", type=int, default=8, metavar="N", help="jobs that may wait (default: 8)")
    add("--check", action="store_true", help="start, label a made clip through the page, stop")
    return parser


def _place(args: argparse.Namespace) -> Place:
    from hiera_video.app.server import Place

    if not 0 <= args.port <= 65535:
        raise UserError(f"--port {args.port}: 0 (any that is free) to 65535")
    for name in ("max_mb", "max_seconds", "queue"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1")
    port = 0 if args.check else args.port
    host = "127.0.0.1" if args.check else args.host
    return Place(host, port, args.max_mb * 1_000_000, args.queue)


def _run(
    args: argparse.Namespace,
    place: Place,
    bound: socket.socket,
    process: GuardedPool,
    uploads: str,
) -> int:
    """Load what is needed, serve, and end."""
    # Imported here: torch and Gradio take seconds.
    from hiera_video.app.check import check
    from hiera_video.app.choices import choices, first_choice, given_choice
    from hiera_video.app.interface import page
    from hiera_video.app.labeller import Labeller, Settings
    from hiera_video.app.server import address_of, served_beside, server_of
    from hiera_video.data.views import parse_views

    settings = Settings(args.device, parse_views(args.views), args.max_seconds)
    labeller = Labeller(settings, process, uploads)
    given: str | None = args.weights
    autoencoder = given is not None and labeller.is_autoencoder(given)

    def listed() -> list[Choice]:
        return choices(given=given, autoencoder=autoencoder, downloads=place.closed)

    first = (
        first_choice(listed()) if given is None else given_choice(given, autoencoder=autoencoder)
    )
    labeller.load(first)  # what does not work is said before anybody comes
    server = server_of(page(labeller, listed, first, place.queue), place, uploads)
    address = address_of(bound, place)
    try:
        if args.check:
            with served_beside(server, bound):
                print(check(address, uploads))
            return DONE
        print(f"open {address} in a browser; Ctrl-C stops", flush=True)
        server.run(sockets=[bound])  # until a signal, which it raises again
    finally:
        labeller.stop()
    return DONE
