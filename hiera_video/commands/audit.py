"""Audit a data set before training: every file is opened and decoded to its end.

    hiera-video audit videos/
    hiera-video audit train.csv val.csv --json audit.json
    hiera-video audit --cfg configs/K400/hiera_b_16x4.yaml --write cleaned/
    hiera-video audit videos/ --opts DATA.NUM_FRAMES 32 DATA.CLASS_NAMES names.txt

Results are cached by path, size and modification time: the same command again opens only files that
changed, and an interrupted one goes on where it stopped. Exit codes: 0 no problems (remarks do not
count, unless --strict); 1 problems found; 2 wrong use; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiera_video import cli
from hiera_video.commands import usage
from hiera_video.config import Config
from hiera_video.config.command_line import SettingsParser, add_config_arguments, config_from_args
from hiera_video.config.generated import GENERATED_SETS
from hiera_video.errors import UserError
from hiera_video.progress import LOG_SECONDS, Progress
from hiera_video.video.processes import usable_cores

if TYPE_CHECKING:
    from hiera_video.preparation.audit.result import AuditResult


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video audit") -> int:
    """Run one command line. Returns the exit code."""
    args = arguments(prog).parse_args(argv)

    # Imported here, so that --help need not wait for numpy and the readers.
    from hiera_video.preparation.audit.audit import audit
    from hiera_video.preparation.audit.cache import AuditCache, default_cache_file
    from hiera_video.preparation.audit.findings import Findings
    from hiera_video.preparation.audit.lists import read_splits
    from hiera_video.preparation.audit.result import AuditOptions

    cfg = config_from_args(args)
    paths = args.paths or [cfg.data.path_to_data_dir]
    if not paths[0]:
        raise UserError("name what to audit: a folder, a list, or --cfg FILE with DATA settings")
    check_outputs(args, paths)
    findings = Findings()
    splits, notes = read_splits(
        paths,
        settings=list_settings(cfg, configured=bool(args.cfg)),
        as_configured=bool(args.cfg),
        findings=findings,
    )
    options = AuditOptions(
        clip=cfg.data.clip_spec(training=True),
        quick=args.quick,
        workers=args.workers,
        time_limit=args.time_limit,
        decoder=cfg.data.decoding_backend,
        loader_workers=cfg.data_loader.num_workers,
    )
    file = None if args.memory == "none" else Path(args.memory or default_cache_file())
    shown = Progress("", unit="files", log_every=LOG_SECONDS)

    def progress(what: str, done: int, total: int) -> None:
        if not total or what != shown.what:
            shown.begin(what, total)
        shown.report(done, total)

    with AuditCache(file, warn, afresh=args.afresh) as cache, shown:
        try:
            result = audit(splits, findings, cache, options, progress=progress)
        except KeyboardInterrupt:
            if file is not None:
                warn("the results so far are cached; the same command goes on from there")
            raise
    return report(result, notes, args)


def report(result: AuditResult, notes: Sequence[str], args: argparse.Namespace) -> int:
    """Print the report and write the files that were asked for. Returns the exit code."""
    from hiera_video.preparation.audit import report as audit_report
    from hiera_video.preparation.audit.cleaned_lists import write_lists

    if hasattr(sys.stdout, "reconfigure"):
        # A name that the terminal cannot show is shown escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    for line in audit_report.table(result, notes, args.most or None):
        print(cli.printable(line))
    if args.json:
        audit_report.write_json(result, notes, Path(args.json))
        print(f"wrote {args.json}")
    if args.write:
        for line in write_lists(result, Path(args.write)):
            print(cli.printable(line))
    failures = result.findings.problems + (result.findings.remarks if args.strict else 0)
    return cli.FAILED if failures else cli.DONE


def list_settings(cfg: Config, *, configured: bool) -> dict[str, Any]:
    """Return the arguments of `read_manifest` from a config. Without --cfg, labels are optional.

    Raises UserError for clips with boxes.
    """
    if cfg.task == "detect":
        raise UserError(
            "the lists of TASK detect hold boxes, which a run checks itself before it trains "
            "(--dry-run 1 does that too); without --cfg the audit checks its folder of videos"
        )
    dataset = "folder" if cfg.train.dataset in GENERATED_SETS else cfg.train.dataset
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
    """Refuse outputs that could not be written hours later, or would replace the input lists."""
    from hiera_video.preparation.audit.cleaned_lists import is_list

    for target in filter(None, (args.json, args.write)):
        folder = Path(target).absolute().parent
        if not folder.is_dir():
            raise UserError(f"{target} cannot be written: there is no folder {folder}")
        if not os.access(folder, os.W_OK):
            raise UserError(f"{target} cannot be written: no permission to write into {folder}")
    if args.json and Path(args.json).is_dir():
        raise UserError(f"--json {args.json} is a folder; name a file")
    if args.write and Path(args.write).is_file() and not is_list(Path(args.write)):
        raise UserError(f"--write {args.write} is a file; name a folder, or a .csv for one list")
    for path in paths:
        if args.write and Path(args.write).resolve() in (
            Path(path).resolve(),
            Path(path).resolve().parent,
        ):
            raise UserError(
                f"--write {args.write} would replace the lists that are read; name another folder"
            )


def arguments(prog: str) -> SettingsParser:
    """Return the parser of the command line."""
    parser = SettingsParser(
        prog=prog,
        description=usage(__doc__, "audit", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="a folder of videos, or one or more lists")
    add_config_arguments(parser, required=False)
    add("--json", metavar="FILE", help="also write the whole report as JSON")
    add(
        "--write",
        metavar="FOLDER",
        help="also write lists for training, without the unusable videos",
    )
    add("--quick", action="store_true", help="open each file, but do not decode it to its end")
    add("--strict", action="store_true", help="exit with 1 for remarks, too")
    add(
        "--workers",
        type=_number(1),
        default=usable_cores(),
        metavar="N",
        help="processes (default: one per CPU core)",
    )
    add("--time-limit", type=float, default=120.0, metavar="S", help="seconds per file (120)")
    add(
        "--most",
        type=_number(0),
        default=50,
        metavar="N",
        help="how many problems of a kind to show, and half as many remarks (50; 0: all)",
    )
    add("--memory", metavar="FILE", help="file of the cached results (none: no cache)")
    add("--afresh", action="store_true", help="examine every file, cached or not")
    return parser


def _number(least: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `least`."""

    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least}")
        return int(text)

    return parse


def warn(text: str) -> None:
    """Print a note on stderr."""
    print(f"note: {cli.printable(text)}", file=sys.stderr)
