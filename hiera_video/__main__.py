"""`hiera-video COMMAND ...`, the same as `python -m hiera_video COMMAND ...`.

    hiera-video predict clip.mp4
    hiera-video train small/finetune_folder DATA.PATH_TO_DATA_DIR videos/
    hiera-video doctor

Exit codes: 0 done; 1 it failed; 2 wrong use; others: `hiera-video COMMAND --help`.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from functools import partial

from hiera_video.commands import COMMANDS, usage

DOCTOR = "check whether this machine is ready, and what to install"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code, or exits with that of the command."""
    name, *words = list(sys.argv[1:] if argv is None else argv) or [""]
    if name in ("", "-h", "--help"):
        print(_overview(), file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name == "--version":
        from hiera_video import __version__

        print(f"hiera_video {__version__}")
        return 0
    if name == "doctor":
        return _doctor(words)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, [*COMMANDS, "doctor"], n=1)
        advice = (
            f"did you mean {near[0]}?" if near else f"allowed are {', '.join(COMMANDS)}, doctor"
        )
        print(f"error: {_prog()} {name}: no such command; {advice}", file=sys.stderr)
        return 2
    from hiera_video import cli

    module = importlib.import_module(f"hiera_video.commands.{COMMANDS[name].module}")
    return cli.run(partial(module.main, prog=f"{_prog()} {name}"), words)


def _prog() -> str:
    """How it was started."""
    return "hiera-video" if not sys.argv[0].endswith("__main__.py") else "python -m hiera_video"


def _overview() -> str:
    width = max(map(len, COMMANDS))
    about = {**{name: command.what for name, command in COMMANDS.items()}, "doctor": DOCTOR}
    lines = [f"  {name:{width}}  {what}" for name, what in about.items()]
    prog = _prog()
    return "\n".join(
        [
            f"usage: {prog} COMMAND ...",
            "",
            "Hiera for video: label, pretrain, fine-tune, test.",
            "",
            *lines,
            "",
            f"{prog} COMMAND --help shows its options, with examples.",
        ]
    )


def _doctor(words: Sequence[str]) -> int:
    """Not by `cli.run`, which imports packages that the doctor may have to report as missing."""
    import argparse

    from hiera_video import doctor

    parser = argparse.ArgumentParser(
        prog=f"{_prog()} doctor",
        description=usage(doctor.__doc__ or "", "doctor", f"{_prog()} doctor"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--measure", action="store_true", help="find the fastest runtime on this machine")
    add("--weights", metavar="W", help="of --measure: checkpoint, address, name (camera_motion)")
    args = parser.parse_args(words)
    if args.weights is not None and not args.measure:
        parser.error("--weights is for --measure; add it")
    if args.measure:
        from hiera_video import cli

        return cli.run(lambda _: doctor.measure(args.weights or "camera_motion"), [])
    try:
        return doctor.main()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def script() -> None:
    """The installed command."""
    sys.exit(main())


if __name__ == "__main__":
    script()
