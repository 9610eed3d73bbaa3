"""Measure boxes with scored actions against annotated ones: frame mAP, as AVA's papers report it.

    hiera-video evaluate-detections --truth ava_val_v2.2.csv --detections detections.csv \\
        --labels ava_action_list_v2.2_for_activitynet_2019.pbtxt \\
        --excluded ava_val_excluded_timestamps_v2.2.csv
    hiera-video evaluate-detections --truth gt.csv --detections det.csv --labels list.pbtxt --json
    hiera-video evaluate-detections --truth gt.csv --detections det.csv --labels list.pbtxt \\
        --picture curves.png --per-class actions.csv

A line of --detections is video,second,x1,y1,x2,y2,action,score, corners in 0..1; --truth has a
person's number, or nothing, instead of the score. Exactly the numbers of the official code: with
--order file those of SlowFast, with --most-per-second 50 those of ActivityNet's script.

Exit codes: 0 measured; 1 a file could not be written; 2 wrong use, or a file that is not as it
should be (the message says in which line); 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hiera_video import cli
from hiera_video.commands import usage
from hiera_video.errors import DataError, UserError, first_few
from hiera_video.progress import Progress

if TYPE_CHECKING:
    from hiera_video.detection.average_precision import FrameMap, RowCounts
    from hiera_video.detection.files import BoxTable, LabelMap
    from hiera_video.detection.precision_curves import ClassRow


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video evaluate-detections") -> int:
    """Run one command line; returns the exit code."""
    args = _arguments(prog).parse_args(argv)
    _check(args)
    # Imported here, so that --help need not wait for numpy.
    from hiera_video.detection.average_precision import MatchingRules, frame_map
    from hiera_video.detection.files import (
        read_annotated_boxes,
        read_excluded,
        read_label_map,
        read_scored_boxes,
    )
    from hiera_video.detection.precision_curves import class_rows, draw_curves, write_per_class

    labels = read_label_map(args.labels)
    excluded = read_excluded(args.excluded) if args.excluded else set()
    with Progress("reading boxes"):
        truth = read_annotated_boxes(args.truth)
        detections = read_scored_boxes(args.detections)
    _check_that_they_belong(args, truth, detections, labels)
    rules = MatchingRules(order=args.order, most_per_second=args.most_per_second)
    with Progress("comparing boxes"):
        found = frame_map(truth, detections, labels, excluded, args.iou, rules)
    if math.isnan(found.mean):
        raise DataError(
            f"{args.truth}: no box of it counts: all its seconds are in {args.excluded}"
        )
    rows = class_rows(found, labels)
    if args.json:
        print(json.dumps(_as_json(found, rows, args), indent=2))
    else:
        for line in _report(found, rows, args):
            print(cli.printable(line))
    if args.per_class:
        write_per_class(args.per_class, found, labels)
    if args.picture:
        draw_curves(found, labels, args.picture)
    return cli.DONE


def _arguments(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=usage(__doc__, "evaluate-detections", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--truth", required=True, metavar="CSV", help="annotated boxes")
    add("--detections", required=True, metavar="CSV", help="boxes with scores")
    add("--labels", required=True, metavar="PBTXT", help="the actions that count")
    add("--excluded", metavar="CSV", help="seconds that are not measured, lines of video,second")
    add("--iou", type=float, default=0.5, metavar="X", help="least overlap (default: 0.5)")
    add(
        "--order",
        default="score",
        choices=("score", "file"),
        help="which of two detections in a second is matched first (default: score)",
    )
    add("--most-per-second", type=int, metavar="N", help="use the N best lines of a second (all)")
    add("--json", action="store_true", help="one JSON document on stdout instead of the table")
    add("--per-class", metavar="CSV", help="write the table of the actions, too")
    add("--picture", metavar="PNG", help="draw precision over recall, too")
    return parser


# ---- what cannot be right -----------------------------------------------------------------------


def _check(args: argparse.Namespace) -> None:
    """Refuse values that make no sense, before anything is read."""
    if not 0 < args.iou <= 1:
        raise UserError(f"--iou {args.iou:g}: above 0 and at most 1; AVA is measured at 0.5")
    if args.most_per_second is not None and args.most_per_second < 1:
        raise UserError(f"--most-per-second {args.most_per_second}: at least 1")
    if args.picture and not args.picture.lower().endswith(".png"):
        raise UserError(f"--picture {args.picture}: a PNG is written; name it ....png")
    read = [args.truth, args.detections, args.labels, args.excluded]
    written = {"--per-class": args.per_class, "--picture": args.picture}
    places = {os.path.realpath(path) for path in read if path}
    for flag, path in written.items():
        if not path:
            continue
        if os.path.realpath(path) in places:
            raise UserError(f"{flag} {path}: would replace a file that is read; name another")
        places.add(os.path.realpath(path))
        folder = os.path.dirname(os.path.realpath(path))
        if not os.path.isdir(folder):
            raise UserError(f"{flag} {path}: there is no folder {folder}; make it first")


def _check_that_they_belong(
    args: argparse.Namespace, truth: BoxTable, detections: BoxTable, labels: LabelMap
) -> None:
    """Refuse files that have nothing in common: the result would be 0, or nothing."""
    actions = set(truth.action.tolist())
    if not actions & set(labels.ids):
        has = first_few([str(action) for action in sorted(actions) if action]) or "none"
        raise DataError(
            f"{args.truth}: no box of it has an action of {args.labels}, whose ids are "
            f"{first_few([str(number) for number in labels.ids], 5)}; its actions are {has}"
        )
    ours, theirs = set(truth.videos), set(detections.videos)
    if theirs and not ours & theirs:
        raise DataError(
            f"{args.detections}: no video of it is in {args.truth}: {min(theirs)!r} there, "
            f"{min(ours)!r} here; names must be the same"
        )


# ---- the report ---------------------------------------------------------------------------------


def _as_json(found: FrameMap, rows: Sequence[ClassRow], args: argparse.Namespace) -> dict[str, Any]:
    return {
        "map": found.mean,
        "iou": args.iou,
        "order": args.order,
        "most_per_second": args.most_per_second,
        "annotated_actions": _annotated(rows),
        "annotated_seconds": found.seconds,
        "truth": dataclasses.asdict(found.truth_rows),
        "detections": dataclasses.asdict(found.detection_rows),
        "per_class": [row._asdict() for row in rows],
    }


def _annotated(rows: Sequence[ClassRow]) -> int:
    return sum(row.average_precision is not None for row in rows)


def _report(found: FrameMap, rows: Sequence[ClassRow], args: argparse.Namespace) -> Iterator[str]:
    yield (
        f"frame mAP {100 * found.mean:.2f} % at IoU {args.iou:g}, the mean over {_annotated(rows)} "
        f"of {len(rows)} actions (those that are annotated), in {found.seconds:,} seconds of videos"
    )
    yield f"annotated boxes: {_counted(found.truth_rows)}"
    yield f"detections:      {_counted(found.detection_rows)}"
    if found.detection_rows.without_truth:
        yield (
            f"                 {found.detection_rows.without_truth:,} of those used are wrong "
            "because nothing that counts is annotated in their second"
        )
    yield ""
    width = min(max(len("action"), *(len(cli.printable(row.action)) for row in rows)), 60)
    yield f"{'id':>4}  {'action':{width}}  {'annotated':>9}  {'detections':>10}  {'right':>9}  AP %"
    for row in rows:
        name = cli.printable(row.action)[:width]
        value = row.average_precision
        shown = "  -" if value is None else f"{100 * value:5.2f}"
        yield (
            f"{row.id:>4}  {name:{width}}  {row.truths:>9,}  {row.detections:>10,}  "
            f"{row.right:>9,}  {shown}"
        )


def _counted(counts: RowCounts) -> str:
    """Say how many lines were used, and why others were not."""
    why = {
        "without action": counts.no_action,
        "of actions that do not count": counts.other_action,
        "in excluded seconds": counts.excluded,
        "beyond the best of their second": counts.beyond_most,
        "without area": counts.no_area,
    }
    left = ", ".join(f"{number:,} {reason}" for reason, number in why.items() if number)
    used = f"{counts.used:,} of {counts.rows:,} lines used"
    return f"{used}; left out: {left}" if left else used
