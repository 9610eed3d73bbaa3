"""Tell the truth about a data set before training: every file is opened and decoded to its end.

    python tools/audit_data.py videos/
    python tools/audit_data.py train.csv val.csv --json audit.json
    python tools/audit_data.py --cfg configs/K400/hiera_b_16x4.yaml --write cleaned/
    python tools/audit_data.py videos/ --opts DATA.NUM_FRAMES 32 DATA.CLASS_NAMES names.txt

What a file showed is remembered by its path, size and time: the same command again costs one look
at each file's date, and one that was interrupted goes on where it stopped. Exit codes: 0 all clean
(remarks do not count, unless --strict); 1 something is wrong; 2 wrong use; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, too

from hiera_video import cli
from hiera_video.config import Config
from hiera_video.config.command_line import SettingsParser, add_config_arguments, config_from_args
from hiera_video.errors import UserError
from hiera_video.preparation.audit import report as audit_report
from hiera_video.preparation.audit.audit import Audit, audit
from hiera_video.preparation.audit.lists import read_parts
from hiera_video.preparation.audit.cache import AuditMemory, default_memory_file
from hiera_video.preparation.audit.findings import Findings


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    args = arguments().parse_args(argv)
    cfg = config_from_args(args)
    paths = args.paths or [cfg.data.path_to_data_dir]
    if not paths[0]:
        raise UserError("name what to audit: a folder, a list, or --cfg FILE with DATA settings")
    check_outputs(args, paths)
    findings = Findings()
    parts, notes = read_parts(
        paths,
        settings=list_settings(cfg, configured=bool(args.cfg)),
        as_configured=bool(args.cfg),
        findings=findings,
    )
    file = None if args.memory == "none" else Path(args.memory or default_memory_file())
    with AuditMemory(file, warn, afresh=args.afresh) as memory, Line() as line:
        try:
            result = audit(
                parts,
                findings,
                memory,
                spec=cfg.data.clip_spec(training=True),
                quick=args.quick,
                workers=args.workers,
                time_limit=args.time_limit,
                decoder=cfg.data.decoding_backend,
                loader_workers=cfg.data_loader.num_workers,
                progress=line.show,
            )
        except KeyboardInterrupt:
            line.end()
            if file is not None:
                warn("what was learnt so far is remembered; the same command goes on from there")
            raise
    return report(result, notes, args)


def report(result: Audit, notes: Sequence[str], args: argparse.Namespace) -> int:
    """Print and write what was asked for; the exit code."""
    if hasattr(sys.stdout, "reconfigure"):
        # A name that the terminal cannot show is shown escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    for line in audit_report.table(result, notes, args.most or None):
        print(printable(line))
    if args.json:
        audit_report.write_json(result, notes, Path(args.json))
        print(f"wrote {args.json}")
    if args.write:
        for said in audit_report.write_lists(result, Path(args.write)):
            print(printable(said))
    wrong = result.findings.problems + (result.findings.remarks if args.strict else 0)
    return cli.FAILED if wrong else cli.DONE


def list_settings(cfg: Config, *, configured: bool) -> dict[str, Any]:
    """How lists are read, as the DATA settings say. Without --cfg, labels may be absent."""
    dataset = "folder" if cfg.train.dataset == "synthetic" else cfg.train.dataset
    plain = not configured and cfg.data.format == "auto"
    return {
        "format": "auto" if plain else dataset if cfg.data.format == "auto" else cfg.data.format,
        "class_names": cfg.data.class_names,
        "path_prefix": cfg.data.path_prefix,
        "separator": cfg.data.path_label_separator or None,
        "num_classes": cfg.model.num_classes or None,
        "multi_label": cfg.data.multi_label,
        "need_labels": configured and cfg.task == "classify",
        "fold": cfg.data.split,
        "val_fraction": cfg.data.val_fraction,
        "group_by": cfg.data.group_by,
        "seed": cfg.rng_seed,
    }


def check_outputs(args: argparse.Namespace, paths: Sequence[str]) -> None:
    """Refuse now what could not be written after hours, or would replace what is read."""
    for target in filter(None, (args.json, args.write)):
        folder = Path(target).absolute().parent
        if not folder.is_dir():
            raise UserError(f"{target} cannot be written: there is no folder {folder}")
        if not os.access(folder, os.W_OK):
            raise UserError(f"{target} cannot be written: no permission to write into {folder}")
    if args.json and Path(args.json).is_dir():
        raise UserError(f"--json {args.json} is a folder; name a file")
    if args.write and Path(args.write).is_file() and not audit_report.is_list(Path(args.write)):
        raise UserError(f"--write {args.write} is a file; name a folder, or a .csv for one list")
    for path in paths:
        if args.write and Path(args.write).resolve() in (
            Path(path).resolve(),
            Path(path).resolve().parent,
        ):
            raise UserError(
                f"--write {args.write} would replace the lists that are read; name another folder"
            )


def arguments() -> SettingsParser:
    """What the command line takes."""
    parser = SettingsParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="a folder of videos, or one or more lists")
    add_config_arguments(parser, required=False)
    add("--json", metavar="FILE", help="also write everything as JSON")
    add("--write", metavar="FOLDER", help="also write lists without what is wrong, for training")
    add("--quick", action="store_true", help="open each file, do not decode it to its end")
    add("--strict", action="store_true", help="remarks count as well: exit 1 for them")
    add("--workers", type=_number(1), default=_cores(), metavar="N", help="default: one a core")
    add("--time-limit", type=float, default=120.0, metavar="S", help="seconds a file (120)")
    add(
        "--most",
        type=_number(0),
        default=50,
        metavar="N",
        help="problems shown of a kind, and half as many remarks (50; 0: all)",
    )
    add("--memory", metavar="FILE", help="where results are remembered; none: nowhere")
    add("--afresh", action="store_true", help="look at every file, remembered or not")
    return parser


def _number(least: int):
    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least}")
        return int(text)

    return parse


def _cores() -> int:
    """Of this machine that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def warn(text: str) -> None:
    print(f"note: {printable(text)}", file=sys.stderr)


def printable(text: str) -> str:
    """Without control characters, which names can hold and terminals obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Line:
    """Progress on stderr: a line that overwrites itself; not on a terminal, one now and then."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def show(self, what: str, done: int, total: int) -> None:
        """`done` of `total`; total 0 ends the line."""
        now = time.monotonic()
        if not total:
            self.end()
            self._began = now
            return
        if now - self._said < (0.2 if self._on_terminal else 30.0):
            return
        self._said = now
        left = (now - self._began) / done * (total - done)
        text = f"{done:,}/{total:,} {what}, {audit_report.duration(left)} to go"
        if self._on_terminal:
            print(f"\r{text:<70}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._on_terminal:
            print(f"\r{'':<70}\r", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
