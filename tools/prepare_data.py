"""Manifests for training from a folder of videos, or from the official lists of a public set.

    python tools/prepare_data.py folder videos/ --out manifests
    python tools/prepare_data.py folder videos/ --out manifests --group-by source
    python tools/prepare_data.py folder videos/ --out manifests --group-by '(.+)_[0-9]+[.]mp4'
    python tools/prepare_data.py kinetics kinetics400/ --videos kinetics400/videos --out manifests
    python tools/prepare_data.py ssv2 labels/ --videos 20bn-something-something-v2 --out manifests
    python tools/prepare_data.py ucf101 ucfTrainTestlist/ --videos UCF-101 --fold 1 --out manifests
    python tools/prepare_data.py hmdb51 testTrainMulti_7030_splits/ --videos hmdb51 --out manifests

Writes train.csv, val.csv (and test.csv where there is one), the names of the classes, the videos
that had to be left out and why, and prints the command that trains on them. Videos cut from one
source belong in one split: --group-by says what tells the source of a video, a column of
labels.csv or a pattern with a group in brackets. The same input gives the same files.

--transcode FOLDER also makes small copies, short side 320, H.264, and lists those. Interrupted, the
same command goes on where it was.

Exit codes: 0 done (videos left out are counted and listed); 1 the work failed; 2 wrong use; 130
interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, too

from hiera_video import cli

if TYPE_CHECKING:
    from hiera_video.preparation.prepare import Prepared

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    args = arguments().parse_args(argv)

    # Imported here: numpy and the readers take time that --help need not wait for.
    from hiera_video.preparation import prepare

    prepare.check_out(args.out)
    prepared = prepare.gather(
        args.layout,
        args.path,
        videos=args.videos,
        group_by=args.group_by,
        fold=args.fold,
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
        seed=args.seed,
    )
    prepare.leave_out_missing(prepared)
    if args.transcode is not None:
        transcode(prepared, args)
    prepare.write(prepared, args.out, settings=_settings(args))
    print(f"wrote {args.out}")
    for line in prepare.summary(prepared):
        print(f"  {line}")
    print("\ntrain on it:")
    print(f"  {training_command(args.out, prepared.root)}")
    return cli.DONE


def arguments() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    layouts = parser.add_subparsers(dest="layout", required=True, metavar="LAYOUT")
    for name, what in {
        "folder": "CLASS/video.mp4, or below train/ and val/, or a labels.csv beside the videos",
        "kinetics": "the official csv (label, youtube_id, time_start, ...), or 'path label' lists",
        "ssv2": "Something-Something v2: labels.json, train.json, validation.json",
        "ucf101": "trainlist01.txt, testlist01.txt, classInd.txt",
        "hmdb51": "CLASS_test_split1.txt for each class",
    }.items():
        layout = layouts.add_parser(name, help=what, description=what)
        add = layout.add_argument
        add("path", metavar="PATH", help="the videos" if name == "folder" else "the lists")
        add("--out", required=True, metavar="FOLDER", help="for the manifests")
        add(
            "--group-by",
            default="",
            metavar="WHAT",
            help="column of labels.csv, or regular expression whose first group in the path is the "
            "source of a video; no source is in two splits",
        )
        if name == "folder":
            layout.set_defaults(videos="")
            add(
                "--format",
                dest="layout",
                choices=("folder", "class_folders", "group_folders"),
                default="folder",
                help="class_folders: CLASS/.../video.mp4, the upper folders are the classes; "
                "group_folders: GROUP/CLASS/video.mp4, the inner ones (default: whichever it is)",
            )
            add(
                "--fold", type=int, metavar="N", help="of labels.csv, held out (default: its first)"
            )
            add(
                "--test-fraction",
                type=float,
                default=0.0,
                metavar="SHARE",
                help="held out for testing, where the data has no split (default: none)",
            )
        else:
            layout.set_defaults(test_fraction=0.0)
            add("--videos", default="", metavar="FOLDER", help="where the videos are")
            if name in ("ucf101", "hmdb51"):
                add("--fold", type=int, metavar="N", help="official split, 1 to 3 (default: 1)")
            else:
                layout.set_defaults(fold=None)
        add(
            "--val-fraction",
            type=float,
            metavar="SHARE",
            help="held out for validation (default: 0.2 where the data has no split); where it has "
            "one, taken out of its training list, and its held-out list becomes the test list",
        )
        add("--seed", type=int, default=0, help="of the shares held out (default: 0)")
        _add_transcode(layout)
    return parser


def _add_transcode(layout: argparse.ArgumentParser) -> None:
    add = layout.add_argument_group("small copies").add_argument
    add("--transcode", metavar="FOLDER", help="make small H.264 copies there, and list those")
    add("--short-side", type=int, default=320, metavar="PIXELS", help="(default: 320)")
    add("--crf", type=int, default=23, help="x264 quality, 0 to 51, lower is better (default: 23)")
    add("--workers", type=int, metavar="N", help="processes (default: one a CPU core)")
    add(
        "--time-limit",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="for one video (default: 1800)",
    )


def transcode(prepared: Prepared, args: argparse.Namespace) -> None:
    """Make the copies, and have `prepared` name them."""
    from hiera_video.preparation import prepare
    from hiera_video.preparation import transcode as copies

    paths = [video.path for videos in prepared.splits.values() for video in videos]
    try:
        with _Progress() as progress:
            done = copies.transcode(
                paths,
                root=prepared.root,
                folder=args.transcode,
                short_side=args.short_side,
                crf=args.crf,
                workers=args.workers,
                time_limit=args.time_limit,
                progress=progress,
            )
    except KeyboardInterrupt:
        print("the copies made so far stay; the same command goes on from there", file=sys.stderr)
        raise
    print(
        f"{args.transcode}: {len(done.made):,} copies of short side {args.short_side} at most "
        f"({done.kept:,} of them from before), {len(done.failed):,} failed"
    )
    for path, reason in list(done.failed.items())[:10]:
        print(f"  failed: {path}: {reason}")
    prepare.use_copies(prepared, args.transcode, done.made, done.failed)


class _Progress:
    """A bar on a terminal; elsewhere a line now and then."""

    EVERY = 30.0
    """Seconds between two lines."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = self._last = clock()
        self._first: int | None = None
        self._bar = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, failed: int, total: int) -> None:
        if sys.stderr.isatty():
            self._draw(done, failed, total)
            return
        now = self._clock()
        if self._first is None:
            self._first = done  # there from before: no measure of the speed
            print(f"transcoding {total - done:,} of {total:,} videos", file=sys.stderr)
        elif now - self._last >= self.EVERY:
            self._last = now
            rate = (done - self._first) / (now - self._start)
            left = f", {(total - done) / rate / 60:.0f} minutes left" if rate else ""
            print(f"{done:,}/{total:,}, {failed:,} failed{left}", file=sys.stderr, flush=True)

    def _draw(self, done: int, failed: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=" videos", file=sys.stderr)
        self._bar.set_postfix_str(f"{failed} failed", refresh=False)
        self._bar.update(done - self._bar.n)


def training_command(out: str, root: str) -> str:
    """One line for a shell that trains on the manifests in `out`."""
    near = Path("") if Path.cwd() == ROOT else ROOT
    words = ["python", str(near / "tools" / "run_net.py")]
    words += ["--cfg", str(near / "configs" / "finetune_folder.yaml")]
    words += ["DATA.PATH_TO_DATA_DIR", out, "DATA.PATH_PREFIX", root]
    return shlex.join(words)


def _settings(args: argparse.Namespace) -> dict[str, object]:
    """What the record keeps of the command line: what changes the result."""
    left = ("out", "workers", "time_limit")
    return {name: value for name, value in sorted(vars(args).items()) if name not in left}


if __name__ == "__main__":
    cli.run(main)
