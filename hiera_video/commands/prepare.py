"""Make manifests for training from a folder of videos or the official lists of a public set.

    hiera-video prepare folder videos/ --out manifests
    hiera-video prepare folder videos/ --out manifests --group-by source
    hiera-video prepare folder videos/ --out manifests --group-by '(.+)_[0-9]+[.]mp4'
    hiera-video prepare kinetics kinetics400/ --videos kinetics400/videos --out manifests
    hiera-video prepare ssv2 labels/ --videos 20bn-something-something-v2 --out manifests
    hiera-video prepare ucf101 ucfTrainTestlist/ --videos UCF-101 --fold 1 --out manifests
    hiera-video prepare hmdb51 testTrainMulti_7030_splits/ --videos hmdb51 --out manifests

Writes train.csv, val.csv (and test.csv if there is one), the class names and the videos left out,
with the reason, and prints the command that trains on them. Videos cut from one source belong in
one split: --group-by names the source, by a column of labels.csv or by a pattern with a group in
brackets. The same input gives the same files.

--transcode FOLDER also makes small copies (short side 320, H.264) and lists those. After an
interruption, the same command continues.

Exit codes: 0 done (videos left out are counted and listed); 1 the work failed; 2 wrong use; 130
interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hiera_video import cli
from hiera_video.commands import usage
from hiera_video.config.recipes import CHECKOUT

if TYPE_CHECKING:
    from hiera_video.preparation.prepare import Prepared


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video prepare") -> int:
    """Run one command line. Returns the exit code."""
    args = arguments(prog).parse_args(argv)

    # Imported here, so that --help need not wait for numpy and the readers.
    from hiera_video.preparation import manifest_files, prepare

    manifest_files.check_out(args.out)
    options = prepare.SplitOptions(
        videos=args.videos,
        group_by=args.group_by,
        fold=args.fold,
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
        seed=args.seed,
    )
    prepared = prepare.gather(args.layout, args.path, options)
    prepare.leave_out_missing(prepared)
    if args.transcode is not None:
        transcode(prepared, args)
    manifest_files.write(prepared, args.out, settings=_settings(args))
    print(f"wrote {args.out}")
    for line in manifest_files.summary(prepared):
        print(f"  {line}")
    print("\ntrain on it:")
    print(f"  {training_command(args.out, prepared.root, prog)}")
    return cli.DONE


LAYOUT_HELP = {
    "folder": "CLASS/video.mp4, or below train/ and val/, or a labels.csv beside the videos",
    "kinetics": "the official csv (label, youtube_id, time_start, ...), or 'path label' lists",
    "ssv2": "Something-Something v2: labels.json, train.json, validation.json",
    "ucf101": "trainlist01.txt, testlist01.txt, classInd.txt",
    "hmdb51": "CLASS_test_split1.txt for each class",
}


def arguments(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=usage(__doc__, "prepare", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    layouts = parser.add_subparsers(dest="layout", required=True, metavar="LAYOUT")
    for name, text in LAYOUT_HELP.items():
        layout = layouts.add_parser(name, help=text, description=text)
        add = layout.add_argument
        add("path", metavar="PATH", help="the videos" if name == "folder" else "the lists")
        add("--out", required=True, metavar="FOLDER", help="folder for the manifests")
        add(
            "--group-by",
            default="",
            metavar="WHAT",
            help="column of labels.csv, or regular expression whose first group in the path is the "
            "source of a video; the videos of one source stay in one split",
        )
        if name == "folder":
            _add_folder_options(layout)
        else:
            _add_list_options(layout, name)
        add(
            "--val-fraction",
            type=float,
            metavar="FRACTION",
            help="held out for validation (default: 0.2 for data without a split); if the data has "
            "a split, taken from its training list, and its held-out list becomes the test list",
        )
        add("--seed", type=int, default=0, help="of the held-out fractions (default: 0)")
        _add_transcode(layout)
    return parser


def _add_folder_options(layout: argparse.ArgumentParser) -> None:
    layout.set_defaults(videos="")
    add = layout.add_argument
    add(
        "--format",
        dest="layout",
        choices=("folder", "class_folders", "group_folders"),
        default="folder",
        help="class_folders: CLASS/.../video.mp4, the upper folders are the classes; "
        "group_folders: GROUP/CLASS/video.mp4, the inner ones (default: whichever it is)",
    )
    add("--fold", type=int, metavar="N", help="of labels.csv, held out (default: its first)")
    add(
        "--test-fraction",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="held out for testing, for data without a split (default: none)",
    )


def _add_list_options(layout: argparse.ArgumentParser, name: str) -> None:
    layout.set_defaults(test_fraction=0.0)
    layout.add_argument("--videos", default="", metavar="FOLDER", help="where the videos are")
    if name in ("ucf101", "hmdb51"):
        layout.add_argument(
            "--fold", type=int, metavar="N", help="official split, 1 to 3 (default: 1)"
        )
    else:
        layout.set_defaults(fold=None)


def _add_transcode(layout: argparse.ArgumentParser) -> None:
    add = layout.add_argument_group("small copies").add_argument
    add("--transcode", metavar="FOLDER", help="make small H.264 copies there, and list those")
    add("--short-side", type=int, default=320, metavar="PIXELS", help="(default: 320)")
    add("--crf", type=int, default=23, help="x264 quality, 0 to 51, lower is better (default: 23)")
    add("--workers", type=int, metavar="N", help="processes (default: one per CPU core)")
    add(
        "--time-limit",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="for one video (default: 1800)",
    )


def transcode(prepared: Prepared, args: argparse.Namespace) -> None:
    """Make the copies, and list them instead of the videos."""
    from hiera_video.preparation import prepare
    from hiera_video.preparation import transcode as copies
    from hiera_video.progress import LOG_SECONDS, Progress

    options = copies.TranscodeOptions(
        short_side=args.short_side,
        crf=args.crf,
        workers=args.workers,
        time_limit=args.time_limit,
    )
    paths = [video.path for videos in prepared.splits.values() for video in videos]
    with Progress("", unit="videos", log_every=LOG_SECONDS) as shown:

        def progress(done: int, failed: int, total: int) -> None:
            if not shown.what and not shown.on_terminal:
                print(f"transcoding {total - done:,} of {total:,} videos", file=sys.stderr)
            shown.what = f"transcoded, {failed:,} failed" if failed else "transcoded"
            shown.report(done, total)

        try:
            result = copies.transcode(paths, prepared.root, args.transcode, options, progress)
        except KeyboardInterrupt:
            print("the copies made so far stay; the same command continues", file=sys.stderr)
            raise
    print(
        f"{args.transcode}: {len(result.made):,} copies of short side {args.short_side} at most "
        f"({result.kept:,} of them from before), {len(result.failed):,} failed"
    )
    for path, reason in list(result.failed.items())[:10]:
        print(f"  failed: {path}: {reason}")
    prepare.use_copies(prepared, args.transcode, result.made, result.failed)


def training_command(out: str, root: str, prog: str) -> str:
    """Return the shell command that trains on the manifests in `out`, started as this one was."""
    recipe = ["finetune_folder"]
    start = [*prog.split()[:-1], "train"]
    if prog.endswith(".py"):
        near = Path("") if Path.cwd() == CHECKOUT.parent else CHECKOUT.parent
        start = ["python", str(near / "tools" / "run_net.py")]
        recipe = ["--cfg", str(near / "configs" / "finetune_folder.yaml")]
    words = [*start, *recipe, "DATA.PATH_TO_DATA_DIR", out, "DATA.PATH_PREFIX", root]
    return shlex.join(words)


def _settings(args: argparse.Namespace) -> dict[str, object]:
    """Return the options that change the result, for prepare.json."""
    left = ("out", "workers", "time_limit")
    return {name: value for name, value in sorted(vars(args).items()) if name not in left}
