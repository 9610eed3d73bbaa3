"""Label the people of videos: who is there, second by second, and what they do.

    hiera-video detect clip.mp4 --weights runs/ava/checkpoints/best.pyth
    hiera-video detect videos/ --weights W --csv people.csv --threshold 0.5
    hiera-video detect clip.mp4 --weights W --video labelled.mp4
    hiera-video detect clip.mp4 --weights W --boxes boxes.csv --json -

People are found once a second by a detector of torchvision, whose public weights are downloaded
once (74 MB). --boxes gives their boxes instead, one a row: video,second,x1,y1,x2,y2 as in AVA's
files, second,x1,y1,x2,y2 for one video, or what --csv wrote. Corners are shares of the picture's
width and height. The weights are those of a model for boxes (TASK detect).

Exit codes: 0 every file is labelled, or has nobody in it; 1 a file could not be labelled, or a path
is missing (the others are labelled); 2 wrong use, or none of the paths leads to a video, or weights
are missing; 130 interrupted (what is done is written).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from hiera_video import __version__
from hiera_video.cli import (
    DONE,
    FAILED,
    INTERRUPTED,
    add_import_argument,
    import_torch,
    printable,
)
from hiera_video.commands import usage
from hiera_video.commands.terminal import accept_any_text, clock, of_file, say, write
from hiera_video.errors import DecodeError, RunFailed, UserError, first_few
from hiera_video.files import atomic_write
from hiera_video.progress import Progress
from hiera_video.spreadsheet import csv_file, path_cell
from hiera_video.video.find import InputFile, expand_paths, is_video_or_playlist

if TYPE_CHECKING:
    from hiera_video.detection.given_boxes import GivenBox, GivenBoxes
    from hiera_video.detection.label_people import PeopleLabeller
    from hiera_video.detection.rows import PersonRow
    from hiera_video.video.guarded_pool import GuardedPool

STANDARD_OUTPUT = "-"


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video detect") -> int:
    """Label the people of the videos that `argv` names; return the exit code."""
    args = _parser(prog).parse_args(argv)
    _check(args)
    files = expand_paths(args.paths)
    if args.video is not None:
        from hiera_video.labelled_video.write import check_copy

        check_copy(args.video, [file for file, _ in files])
    from hiera_video.detection.reading import reading_process

    # Videos are read in a child process, so that a file that crashes a decoder cannot end this one.
    # It starts first: it imports its libraries while the models are loaded.
    with reading_process() as process:
        return _label_files(files, args, process)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=usage(__doc__, "detect", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="video files, folders (searched), globs in quotes")
    add("--weights", metavar="WEIGHTS", help="checkpoint file or address of a model for boxes")
    add("--boxes", metavar="FILE", help="boxes of the people, a CSV file; nobody is looked for")
    add("--pixels", action="store_true", help="the corners of --boxes are pixels, not shares")
    add(
        "--boxes-start",
        type=float,
        metavar="SECONDS",
        help="the second of --boxes at which the video begins (default: 0; AVA's cut files: 900)",
    )
    add("--json", metavar="FILE", help="write JSON, an object a file; - is standard output")
    add("--csv", metavar="FILE", help="also write a CSV file, one row per person and second")
    add(
        "--video",
        metavar="FILE",
        help="also write a copy of the video, .mp4, .mov or .mkv, with boxes and labels on it",
    )
    add("--every", type=float, metavar="SECONDS", help="between key frames (default: 1)")
    add("--top-k", "--topk", type=int, default=5, metavar="K", help="labels of a person (5)")
    add("--threshold", type=float, default=0.0, metavar="P", help="least score of a label (0)")
    add(
        "--person-model",
        metavar="NAME",
        help="torchvision's: fasterrcnn_mobilenet_v3_large_fpn "
        "(default), or fasterrcnn_resnet50_fpn_v2, which finds more and takes ten times as long",
    )
    add("--person-weights", metavar="FILE", help="its weights, where they are not in the cache")
    add("--person-threshold", type=float, metavar="P", help="least score of a person (0.8)")
    add("--offline", action="store_true", help="download nothing; what is not here is an error")
    add("--device", default="auto", metavar="auto|cpu|cuda", help="default: auto")
    add("--dtype", default="auto", metavar="auto|fp32|fp16|bf16", help="default: auto")
    add("--decoder", default="auto", metavar="NAME", help="auto, torchcodec, pyav or decord (auto)")
    add("--model", metavar="NAME", help="a registered model, where the weights do not say theirs")
    add("--labels", metavar="FILE", help="names of the actions, one a line")
    add("--version", action="version", version=f"hiera_video {__version__}")
    add_import_argument(parser)
    return parser


# ---- what is refused before the work ------------------------------------------------------------


def _check(args: argparse.Namespace) -> None:
    """Refuse what is not possible, before anything is loaded."""
    if args.weights is None:
        raise UserError(
            "name the weights of a model for boxes with --weights W; nobody publishes them for "
            "Hiera. hiera-video train quickstart/detect makes small ones, configs/AVA/ has the "
            "recipes for AVA"
        )
    for name in ("csv", "json"):
        path = getattr(args, name)
        if path is not None and is_video_or_playlist(path):
            raise UserError(f"--{name} {path} is named like a video; name a .{name} file")
    only_boxes = {"--pixels": args.pixels, "--boxes-start": args.boxes_start is not None}
    only_search = {
        "--every": args.every is not None,
        "--person-model": args.person_model is not None,
        "--person-weights": args.person_weights is not None,
        "--person-threshold": args.person_threshold is not None,
    }
    if args.boxes is None and any(only_boxes.values()):
        given = next(flag for flag, is_given in only_boxes.items() if is_given)
        raise UserError(f"{given} is about boxes that are given; add --boxes FILE")
    if args.boxes is not None and any(only_search.values()):
        given = next(flag for flag, is_given in only_search.items() if is_given)
        raise UserError(f"{given} is for looking for people, and --boxes gives them; drop one")
    threshold = args.person_threshold
    if threshold is not None and not 0 < threshold <= 1:
        raise UserError(f"--person-threshold {threshold:g}: a score above 0, at most 1")


# ---- the work -----------------------------------------------------------------------------------


def _label_files(files: Sequence[InputFile], args: argparse.Namespace, process: GuardedPool) -> int:
    import_torch()  # here: it takes seconds, and --help and typing errors need not wait
    boxes, chosen = _given_boxes(args, [file for file, error in files if error is None])
    with _outputs(args) as outputs:
        # What a library prints while the models are loaded must not end up in the JSON.
        with contextlib.redirect_stdout(sys.stderr), Progress("loading the models"):
            labeller = _labeller(args, process, outputs)
        return _label_all(_Work(labeller, boxes, chosen, args), files, outputs)


def _given_boxes(
    args: argparse.Namespace, readable: Sequence[str]
) -> tuple[GivenBoxes | None, Mapping[str, Sequence[GivenBox]]]:
    """The boxes of --boxes, and which of them belong to which file."""
    if args.boxes is None:
        return None, {}
    from hiera_video.detection.given_boxes import GivenBoxes

    boxes = GivenBoxes(args.boxes, pixels=args.pixels)
    chosen = boxes.by_file(readable)
    others = [printable(video) for video in boxes.left_over(readable)]
    if others and not any(chosen.values()):
        raise UserError(
            f"{args.boxes} has boxes of {first_few(others, 3)}, and none of "
            f"{first_few([printable(file) for file in readable], 3)}; its first column is the name "
            "of the video, with or without folder and ending"
        )
    if others:
        say(f"note: {args.boxes} also has boxes of {first_few(others, 3)}, not among these files")
    return boxes, chosen


def _labeller(args: argparse.Namespace, process: GuardedPool, outputs: _Outputs) -> PeopleLabeller:
    """Load the models. Imported here: --help and typing errors need not wait for torch."""
    from hiera_video.detection import people
    from hiera_video.detection.label_people import LabelSettings, PeopleLabeller
    from hiera_video.detection.score_people import BoxScorer, ModelChoice
    from hiera_video.models.weights.download import without_network

    settings = LabelSettings(
        1.0 if args.every is None else args.every, args.top_k, args.threshold, args.decoder
    )
    source = people.DetectorSource(
        args.person_model or people.QUICK,
        args.person_weights,
        0.8 if args.person_threshold is None else args.person_threshold,
        say,
    )
    people.check_name(source.name)
    choice = ModelChoice(args.weights, args.model, args.labels, args.device, args.dtype)
    with without_network() if args.offline else contextlib.nullcontext():
        scorer = BoxScorer.load(choice, say)
        detector = None
        if args.boxes is None:
            detector = people.PersonDetector.load(source, scorer.device)
    outputs.facts = {
        "model": scorer.name,
        "weights": scorer.weights,
        "person_model": None if detector is None else detector.name,
    }
    return PeopleLabeller(scorer, detector, process, settings)


@dataclass(frozen=True)
class _Work:
    """What is done with each file."""

    labeller: PeopleLabeller
    boxes: GivenBoxes | None
    chosen: Mapping[str, Sequence[GivenBox]]
    args: argparse.Namespace

    def label(self, result: _Result, on_progress: Callable[[float], None]) -> Iterator[PersonRow]:
        """Yield the rows of one file, and keep them in its result."""
        info = self.labeller.open(result.file)
        given = None
        if self.boxes is not None:
            given = self.boxes.frames(self.chosen[result.file], (info.width, info.height))
        begin = self.args.boxes_start or 0.0
        for row in self.labeller(info, given, begin=begin, on_progress=on_progress):
            result.rows.append(row)
            yield row

    def write_video(self, result: _Result, progress: Progress) -> None:
        """Write the copy of --video."""
        from hiera_video.detection.drawing import drawing_of
        from hiera_video.labelled_video.write import write_drawn_video

        target = self.args.video
        progress.begin(os.path.basename(target), 1, unit="")
        progress.to(0)
        codec = write_drawn_video(
            result.file,
            target,
            drawing_of(result.rows, self.labeller.settings.every),
            decoder=self.args.decoder,
            on_progress=progress.to,
        )
        say(f"wrote {printable(target)} ({codec})")


@dataclass
class _Result:
    """What came out of one file."""

    file: str
    error: str | None = None
    rows: list[PersonRow] = field(default_factory=list)


def _label_all(work: _Work, files: Sequence[InputFile], outputs: _Outputs) -> int:
    failed = 0
    with Progress("labelled", len(files), unit="files" if len(files) > 1 else "") as progress:
        progress.to(0)
        for number, (file, error) in enumerate(files):
            result = _Result(file, error)
            try:
                if error is None:
                    _label(work, result, outputs, of_file(progress, number, file))
            except KeyboardInterrupt:
                result.error = "interrupted"
                outputs.end(result)
                say(f"interrupted after {number} of {len(files)} files")
                return INTERRUPTED
            outputs.end(result)
            error = result.error
            try:
                if error is None and work.args.video is not None:
                    work.write_video(result, progress)
            except (DecodeError, RunFailed) as failure:
                error = f"--video: {failure}"
            except KeyboardInterrupt:
                say(f"interrupted; {printable(work.args.video)} is not written")
                return INTERRUPTED
            if error is not None:
                failed += 1
                say(f"error: {printable(file)}: {error}")
    if failed and len(files) > 1:
        say(f"{failed} of {len(files)} files could not be labelled")
    return FAILED if failed else DONE


def _label(
    work: _Work, result: _Result, outputs: _Outputs, on_progress: Callable[[float], None]
) -> None:
    """Label one file; what goes wrong with it is kept in its result."""
    try:
        for row in work.label(result, on_progress):
            outputs.row(result, row)
    except DecodeError as failure:
        result.error = failure.reason
    except RunFailed as failure:
        result.error = str(failure)


# ---- what comes out -----------------------------------------------------------------------------


class _Outputs:
    """Writes the results: a table or JSON on stdout, and the files that are named."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._table = args.json != STANDARD_OUTPUT
        self._top_k, self._nobody = args.top_k, "nobody is found in it"
        if args.boxes is not None:
            self._nobody = f"{printable(args.boxes)} has no boxes of it"
        self.add_row: Callable[[Sequence[Any]], None] | None = None
        """Adds a row to the CSV file; None without one."""
        self.json_file: IO[str] | None = None
        """Of --json; None: standard output, or none is wanted."""
        self.facts: dict[str, Any] = {}
        """What computed the labels."""
        self.finished: list[_Result] = []
        self._headed = False

    def row(self, result: _Result, row: PersonRow) -> None:
        """Write a person at a key frame."""
        if self._table:
            self._head(result)
            corners = " ".join(f"{value:.2f}" for value in row.corners)
            labels = ", ".join(f"{printable(name)} {score:.1%}" for name, score in row.labels)
            write(f"  {clock(row.second)}  person {row.person:<3d} {corners}  {labels or '-'}")
        if self.add_row is not None:
            pairs = [part for label in row.labels for part in label]
            empty = [""] * (2 * self._top_k - len(pairs))
            sure = "" if row.person_score is None else row.person_score
            place = [path_cell(result.file), row.second, row.person, *row.corners, sure]
            self.add_row([*place, *pairs, *empty, ""])

    def end(self, result: _Result) -> None:
        """Finish a file, and write its error if it has one."""
        self.finished.append(result)
        if self._table and (result.error is not None or not result.rows):
            self._head(result)
            write(f"      {self._nobody if result.error is None else f'error: {result.error}'}")
        if result.error is not None and self.add_row is not None:
            empty = [""] * (7 + 2 * self._top_k)
            self.add_row([path_cell(result.file), *empty, result.error])
        self._headed = False

    def close(self) -> None:
        """Write the JSON, which comes at the end."""
        if self._table and self.json_file is None:
            return
        content = [
            {
                "file": result.file,
                "people": [row.to_dict() for row in result.rows],
                "error": result.error,
                **self.facts,
            }
            for result in self.finished
        ]
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        if self.json_file is not None:
            self.json_file.write(text)
        else:
            print(text, end="")

    def _head(self, result: _Result) -> None:
        if not self._headed:
            self._headed = True
            write(printable(result.file))


@contextlib.contextmanager
def _outputs(args: argparse.Namespace) -> Iterator[_Outputs]:
    """Open the outputs before the work, so that a missing folder is an error at once."""
    accept_any_text(as_json=args.json == STANDARD_OUTPUT)
    outputs = _Outputs(args)
    ended = None
    with contextlib.ExitStack() as stack:
        try:
            outputs.add_row = _opened(
                "--csv", stack, args.csv, lambda path: csv_file(path, columns(args.top_k))
            )
            if args.json != STANDARD_OUTPUT:
                outputs.json_file = _opened("--json", stack, args.json, _json_file)
        except RunFailed as error:
            raise UserError(str(error)) from None
        try:
            yield outputs
        except BaseException as error:
            if not outputs.finished:
                raise
            ended = error  # raised again once the finished files are written
        outputs.close()
    if ended is not None:
        raise ended


def _opened(
    flag: str,
    stack: contextlib.ExitStack,
    path: str | None,
    opened: Callable[[str], contextlib.AbstractContextManager[Any]],
) -> Any:
    """Open an output; None where it is not wanted. UserError where it cannot be opened."""
    if path is None:
        return None
    try:
        return stack.enter_context(opened(path))
    except RunFailed as error:
        raise UserError(f"{flag}: {error}") from None


def _json_file(path: str) -> contextlib.AbstractContextManager[IO[str]]:
    return atomic_write(path, text=True, errors="backslashreplace")


def columns(top_k: int) -> list[str]:
    """Return the columns of --csv."""
    labels = [f"{name}{rank}" for rank in range(1, top_k + 1) for name in ("label", "score")]
    return ["file", "second", "person", "x1", "y1", "x2", "y2", "person_score", *labels, "error"]
