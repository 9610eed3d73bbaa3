"""Label videos: files, folders and globs in; a table, JSON or CSV out.

    hiera-video predict clip.mp4
    hiera-video predict videos/ --json > labels.json
    hiera-video predict 'videos/**/*.mp4' --csv labels.csv --top-k 1
    hiera-video predict match.mp4 --timeline 5
    hiera-video predict match.mp4 --timeline 5 --video labelled.mp4
    hiera-video predict clip.mp4 --explain
    hiera-video predict videos/ --timeline 5 --html page/
    hiera-video predict clip.mp4 --weights runs/mine/checkpoints/best.pyth
    hiera-video predict --stream rtsp://camera/1 > labels.jsonl
    hiera-video predict -- -name-with-a-dash.mp4

Exit codes: 0 every file is labelled; 1 a file could not be labelled, or a path is missing (the
others are labelled); 2 wrong use, or none of the paths leads to a video;
130 interrupted (what is done is written). With --stream: 0 the stream ended; 1 it cannot be read,
broke off or was silent for too long.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiera_video import __version__
from hiera_video.cli import DONE, FAILED, INTERRUPTED, import_torch, printable
from hiera_video.commands import usage
from hiera_video.commands.stream_flags import (
    add_stream_arguments,
    check_stream_arguments,
    label_the_stream,
)
from hiera_video.commands.terminal import accept_any_text, clock, of_file, say, write
from hiera_video.config.command_line import SettingsParser, add_config_arguments, config_from_args
from hiera_video.errors import DecodeError, RunFailed, UserError
from hiera_video.explanation.places import strip_files
from hiera_video.progress import Progress
from hiera_video.spreadsheet import csv_file, path_cell
from hiera_video.video.decoding_process import decoding_process, processes_for
from hiera_video.video.find import InputFile, expand_paths, is_video_or_playlist
from hiera_video.video.guarded_pool import GuardedPool

if TYPE_CHECKING:
    from hiera_video.config import Config
    from hiera_video.predict import Predictor
    from hiera_video.prediction import Label, Prediction, Window


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video predict") -> int:
    """Label the videos that `argv` names; return the exit code."""
    parser = _parser(prog)
    args = parser.parse_args(argv)
    check_stream_arguments(args)
    if not args.paths and args.stream is None:
        parser.error("the following arguments are required: PATH, or --stream STREAM")
    if args.top_k < 1:
        raise UserError(f"--top-k {args.top_k}: at least 1")
    if args.csv is not None and is_video_or_playlist(args.csv):
        raise UserError(f"--csv {args.csv} is named like a video; name a .csv file")
    cfg = _config(args)
    if args.stream is not None:
        from hiera_video.data.views import parse_views

        return label_the_stream(args, _choices(args, cfg), _views(args, cfg, parse_views))
    files = expand_paths(args.paths)
    if args.video is not None:
        from hiera_video.labelled_video.write import check_copy

        check_copy(args.video, [file for file, _ in files])
    if args.html is not None:
        from hiera_video.label_page.folder import originals

        files = originals(files, args.html)
    elif args.copy:
        raise UserError("--copy is for the page; add --html FOLDER")
    if args.explain:
        _strips(files)  # refuses before the work
    # Videos are read in child processes, so that a file that crashes a decoder cannot end this one.
    # They start first: they import their libraries while the model is loaded.
    with decoding_process(processes_for(len(files) if args.timeline is None else 1)) as process:
        return _label_files(files, args, cfg, process)


def _label_files(
    files: Sequence[InputFile], args: argparse.Namespace, cfg: Config | None, process: GuardedPool
) -> int:
    # Imported here: torch takes seconds to import, and --help and typing errors need not wait.
    import_torch()
    from hiera_video.data.views import parse_views
    from hiera_video.explanation.relevance import require_gradients
    from hiera_video.predict import Predictor
    from hiera_video.video.sampling import check_window

    if args.timeline is not None:
        check_window(args.timeline)
    views = _views(args, cfg, parse_views)
    with _outputs(args, len(files)) as outputs:
        outputs.strips = _strips(files) if args.explain else {}
        # What a library prints while the model is loaded must not end up in the JSON.
        with contextlib.redirect_stdout(sys.stderr), Progress("loading the model"):
            choices = _choices(args, cfg)
            if args.explain:
                choices.setdefault("runtime", _runtime_with_gradients(args))
            predictor = Predictor.load(**choices, views=views, process=process)
            if args.explain:
                require_gradients(predictor.model)
        return _label_all(predictor, files, args, outputs)


def _parser(prog: str) -> SettingsParser:
    parser = SettingsParser(
        prog=prog,
        description=usage(__doc__, "predict", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="files, folders, globs in quotes, addresses")
    add("--json", action="store_true", help="one JSON list on stdout instead of the table")
    add("--csv", metavar="FILE", help="also write a CSV file, one row per label")
    add("--top-k", type=int, default=5, metavar="K", help="labels per video (default: 5)")
    add(
        "--timeline",
        type=float,
        metavar="SECONDS",
        help="also label each window of so many seconds",
    )
    add(
        "--video",
        metavar="FILE",
        help="also write a copy of the video, .mp4, .mov or .mkv, with its labels drawn on it",
    )
    add(
        "--explain",
        action="store_true",
        help="also show what in each video speaks for its first label: as NAME_explained.jpg in "
        "the current folder, in the copy of --video and on the page of --html",
    )
    add("--html", metavar="FOLDER", help="also write pages to look at: FOLDER/index.html")
    add("--copy", action="store_true", help="put copies of the videos into the folder of --html")
    add_stream_arguments(parser)
    add("--views", metavar="KxS", help="clips in time x crops in space (default: 5x3)")
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help="views per forward pass (default: 4, GPU 32)",
    )
    add("--device", default=None, metavar="auto|cpu|cuda", help="default: auto")
    add("--dtype", default="auto", metavar="auto|fp32|fp16|bf16", help="default: auto")
    add("--runtime", metavar="NAME", help="auto, torch, onnx or openvino (default: auto)")
    add("--decoder", metavar="NAME", help="auto, torchcodec, pyav or decord (default: auto)")
    add("--model", metavar="NAME", help="a registered model (default: hiera_base_16x224)")
    add("--weights", metavar="WEIGHTS", help="checkpoint or exported file, address, published name")
    add("--labels", metavar="FILE", help="class names, one a line, or the name of a known list")
    add("--version", action="version", version=f"hiera_video {__version__}")
    add_config_arguments(parser, required=False)
    return parser


def _strips(files: Sequence[InputFile]) -> dict[str, Path]:
    """File -> the picture that --explain writes of it; UserError where that cannot be."""
    names = [file for file, _ in files]
    return dict(zip(names, strip_files(names, Path()), strict=True))


def _runtime_with_gradients(args: argparse.Namespace) -> str:
    """PyTorch, where `auto` could choose a faster one; an exported file decides for itself."""
    from hiera_video.runtimes.load import exported_kind

    given = args.weights or args.model
    return "torch" if given is None or exported_kind(given) is None else "auto"


# ---- settings: the command line, else the config file, else the defaults ----


def _config(args: argparse.Namespace) -> Config | None:
    if args.cfg is None:
        if args.settings:
            raise UserError(
                f"{' '.join(args.settings[:2])}: settings change a config file; name it with "
                "--cfg FILE"
            )
        return None
    cfg = config_from_args(args)
    if cfg.task == "pretrain":
        raise UserError(f"{args.cfg} is for pretraining (TASK: pretrain), which has no labels")
    return cfg


def _views(
    args: argparse.Namespace, cfg: Config | None, parse: Callable[[str], tuple[int, int]]
) -> tuple[int, int]:
    """Return (temporal views, spatial crops)."""
    if args.views is not None:
        return parse(args.views)
    return (cfg.test.num_ensemble_views, cfg.test.num_spatial_crops) if cfg else (5, 3)


def _choices(args: argparse.Namespace, cfg: Config | None) -> dict[str, Any]:
    """Return the keyword arguments of `Predictor.load`, without the views."""
    choices = {
        "model": args.model,
        "weights": args.weights,
        "labels": args.labels,
        "device": args.device,
        "dtype": args.dtype,
        "batch_size": args.batch_size,
        "decoder": args.decoder,
        "runtime": args.runtime,
    }
    if cfg is not None:
        from_cfg = {
            "model": cfg.model.model_name,
            "weights": cfg.test.checkpoint_file_path or None,
            "labels": cfg.data.class_names or None,
            "device": cfg.device,
            "batch_size": cfg.test.batch_size,
            "decoder": cfg.data.decoding_backend,
            "spec": cfg.data.clip_spec(training=False),
            "model_kwargs": cfg.model_arguments(),
            "multi_label": cfg.data.multi_label or None,
        }
        choices = {**from_cfg, **{k: v for k, v in choices.items() if v is not None}}
    # Settings that are not given are left to the checkpoint and to the defaults.
    return {key: value for key, value in choices.items() if value is not None}


# ---- the work ----


def _label_all(
    predictor: Predictor, files: Sequence[InputFile], args: argparse.Namespace, outputs: _Outputs
) -> int:
    failed = 0
    with Progress("labelled", len(files), unit="files" if len(files) > 1 else "") as progress:
        progress.to(0)
        predictions = _predictions(predictor, files, args, outputs, progress)
        for number, (file, _) in enumerate(files):
            try:
                prediction = next(predictions)
            except (_Interrupted, KeyboardInterrupt) as interruption:
                blank = predictor.blank(file, "interrupted")
                outputs.end(getattr(interruption, "prediction", blank))
                say(f"interrupted after {number} of {len(files)} files")
                return INTERRUPTED
            outputs.end(prediction)
            error = prediction.error
            try:
                if error is None and args.video is not None:
                    _write_video(prediction, args, progress)
            except (DecodeError, RunFailed) as failure:
                error = f"--video: {failure}"
            except KeyboardInterrupt:
                say(f"interrupted; {printable(args.video)} is not written")
                return INTERRUPTED
            if error is not None:
                failed += 1
                say(f"error: {printable(file)}: {error}")
    if failed and len(files) > 1:
        print(f"{failed} of {len(files)} files could not be labelled", file=sys.stderr)
    return FAILED if failed else DONE


def _write_video(prediction: Prediction, args: argparse.Namespace, progress: Progress) -> None:
    """Write the copy of --video: with the labels of each window, or with those of the whole."""
    from hiera_video.labelled_video.captions import Caption
    from hiera_video.labelled_video.write import write_labelled_video

    def caption(labels: Sequence[Label], start: float, end: float | None) -> Caption:
        return Caption(start, end, tuple((label.label, label.score) for label in labels))

    windows = [caption(w.labels, w.start, w.end) for w in prediction.timeline or ()]
    progress.begin(os.path.basename(args.video), 1, unit="")
    progress.to(0)
    codec = write_labelled_video(
        prediction.file,
        args.video,
        windows or [caption(prediction.labels, 0.0, None)],
        heat=None if prediction.explanation is None else prediction.explanation.heat,
        decoder=args.decoder or "auto",
        on_progress=progress.to,
    )
    say(f"wrote {printable(args.video)} ({codec})")


class _Interrupted(Exception):
    """Ctrl-C, with what is done of the file that it interrupted."""

    def __init__(self, prediction: Prediction) -> None:
        super().__init__("interrupted")
        self.prediction = prediction


def _predictions(
    predictor: Predictor,
    files: Sequence[InputFile],
    args: argparse.Namespace,
    outputs: _Outputs,
    progress: Progress,
) -> Iterator[Prediction]:
    """Yield the finished prediction of each file, its labels written already; or raise
    _Interrupted."""
    if args.timeline is None and not args.explain and len(files) > 1:
        yield from _many(predictor, files, args, outputs, progress)
        return
    for number, (file, error) in enumerate(files):
        prediction = predictor.blank(file, error)
        try:
            if error is None:
                _label(predictor, prediction, args, outputs, of_file(progress, number, file))
        except DecodeError as failure:
            prediction.error = failure.reason
        except RunFailed as failure:
            prediction.error = str(failure)
        except KeyboardInterrupt:
            prediction.error = "interrupted"
            raise _Interrupted(prediction) from None
        yield prediction


def _many(
    predictor: Predictor,
    files: Sequence[InputFile],
    args: argparse.Namespace,
    outputs: _Outputs,
    progress: Progress,
) -> Iterator[Prediction]:
    """`_predictions` of several files without timelines, which are read ahead."""
    readable = [file for file, error in files if error is None]
    missing = len(files) - len(readable)
    labelled = predictor.label_files(
        readable, top_k=args.top_k, on_progress=lambda done: progress.to(missing + done)
    )
    ended = "not labelled"
    for file, error in files:
        if error is not None:
            yield predictor.blank(file, error)
            continue
        try:
            prediction = next(labelled, None) or predictor.blank(file, ended)
        except RunFailed as failure:  # of the processes that read: none of the rest can be read
            ended = str(failure)
            prediction = predictor.blank(file, ended)
        except KeyboardInterrupt:
            raise _Interrupted(predictor.blank(file, "interrupted")) from None
        if prediction.error is None:
            outputs.labels(prediction)
        yield prediction


def _label(
    predictor: Predictor,
    prediction: Prediction,
    args: argparse.Namespace,
    outputs: _Outputs,
    on_progress: Callable[[float], None],
) -> None:
    """Fill in `prediction`, window by window, so that an interruption keeps what is done."""
    file, top_k = prediction.file, args.top_k
    # With a timeline, most of the work comes after the labels of the whole video.
    part = 1.0 if args.timeline is None and not args.explain else 0.1
    prediction.labels = predictor(
        file, top_k=top_k, on_progress=lambda share: on_progress(part * share)
    ).labels
    outputs.labels(prediction)
    if args.explain:
        whole, part = part, 1.0 if args.timeline is None else 0.3
        prediction.explanation = predictor.explain(
            file, on_progress=lambda share: on_progress(whole + (part - whole) * share)
        )
        outputs.explanation(prediction)
    if args.timeline is None:
        return
    prediction.timeline = []
    windows = predictor.timeline(
        file,
        args.timeline,
        top_k=top_k,
        on_progress=lambda share: on_progress(part + (1 - part) * share),
    )
    for window in windows:
        prediction.timeline.append(window)
        outputs.window(prediction, window)


# ---- what comes out ----


class _Outputs:
    """Writes the results: a table or JSON on stdout, and a CSV file if one is named."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.add_row: Callable[[Sequence[Any]], None] | None = None
        """Adds a row to the CSV file; None without one."""
        self.strips: dict[str, Path] = {}
        """File -> the picture of its explanation."""
        self.add_to_page: Callable[[Prediction], None] | None = None
        """Adds a finished video to the page of --html; None without one."""
        self.finished: list[Prediction] = []
        self.headed = ""
        """The file whose name the table showed last."""

    def labels(self, prediction: Prediction) -> None:
        """Write the labels of a whole video."""
        if not self.as_json:
            self._head(prediction)
            for rank, label in enumerate(prediction.labels, 1):
                write(f"  {rank:3d} {_row(label)}")
        self._rows(prediction, prediction.labels)

    def explanation(self, prediction: Prediction) -> None:
        """Write the picture of what speaks for the label, and where it is."""
        from hiera_video.explanation.strip import write_strip

        assert prediction.explanation is not None
        place = self.strips[prediction.file]
        write_strip(prediction.explanation, place)
        if not self.as_json:
            where, shares = prediction.explanation.lines
            write(f"      explained by {where}")
            write(f"      {shares}; see {printable(str(place))}")

    def window(self, prediction: Prediction, window: Window) -> None:
        """Write one more window of its timeline."""
        if not self.as_json:
            ranked = ", ".join(f"{printable(x.label)} {x.score:.1%}" for x in window.labels)
            write(f"  {clock(window.start)} - {clock(window.end)}  {ranked}")
        self._rows(prediction, window.labels, window.start, window.end)

    def end(self, prediction: Prediction) -> None:
        """Finish a file, and write its error if it has one."""
        self.finished.append(prediction)
        if prediction.error is not None:
            self._error(prediction)
        if self.add_to_page is not None:
            self.add_to_page(prediction)

    def _error(self, prediction: Prediction) -> None:
        if not self.as_json:
            self._head(prediction)
            write(f"      error: {prediction.error}")
        if self.add_row is not None:
            self.add_row([path_cell(prediction.file), "", "", "", "", "", prediction.error])

    def close(self) -> None:
        """Write the JSON, which comes at the end."""
        if self.as_json:
            text = [prediction.to_dict() for prediction in self.finished]
            print(json.dumps(text, indent=2, ensure_ascii=False))

    def _rows(
        self,
        prediction: Prediction,
        labels: Sequence[Label],
        start: float | str = "",
        end: float | str = "",
    ) -> None:
        """Add a row to the CSV file per label; times are empty for the labels of a whole video."""
        if self.add_row is not None:
            for rank, label in enumerate(labels, 1):
                file = path_cell(prediction.file)
                self.add_row([file, rank, label.label, label.score, start, end, ""])

    def _head(self, prediction: Prediction) -> None:
        if self.headed != prediction.file:
            self.headed = prediction.file
            write(printable(prediction.file))


@contextlib.contextmanager
def _outputs(args: argparse.Namespace, count: int) -> Iterator[_Outputs]:
    """Open the outputs before the work, so that a missing folder is an error at once."""
    accept_any_text(as_json=args.json)
    outputs = _Outputs(as_json=args.json)
    ended = None
    try:
        with (
            _page(args, count) as outputs.add_to_page,
            _csv_file(args.csv) as outputs.add_row,
        ):
            try:
                yield outputs
            except BaseException as error:
                if not outputs.finished:
                    raise
                ended = error  # raised again once the finished files are written
    finally:
        if outputs.finished:
            outputs.close()
    if ended is not None:
        raise ended


def _page(
    args: argparse.Namespace, count: int
) -> contextlib.AbstractContextManager[Callable[[Prediction], None] | None]:
    """Open the page of --html; its value is the function that adds a video."""
    if args.html is None:
        return contextlib.nullcontext()
    from hiera_video.label_page.page import written_page

    return written_page(args.html, count, args.decoder, copy=args.copy)


CSV_COLUMNS = ("file", "rank", "label", "score", "start", "end", "error")


@contextlib.contextmanager
def _csv_file(path: str | None) -> Iterator[Callable[[Sequence[Any]], None] | None]:
    """Open the file of --csv; yield the function that adds a row. It appears at the end, whole."""
    if path is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            add_row = stack.enter_context(csv_file(path, CSV_COLUMNS))
        except RunFailed as error:
            raise UserError(f"--csv: {error}") from None
        yield add_row


def _row(label: Label) -> str:
    bar = f"{'#' * round(20 * label.score):20} " if sys.stdout.isatty() else ""
    return f"{label.score:8.2%}  {bar}{printable(label.label)}"
