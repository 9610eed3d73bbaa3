"""Describe videos by vectors of a frozen model, for search, quick classifiers and other tools.

    hiera-video features videos/ --weights camera_motion --out features.parquet
    hiera-video features videos/ --weights best.pyth --layer stage3 --pool mean_max --out f.parquet
    hiera-video features match.mp4 --weights best.pyth --every 0.5 --out match.parquet
    hiera-video features videos/ --weights best.pyth --every 0.5 --format npy --out matrices/

A table (Parquet, with pip install pyarrow) has one row a video, or a window with --every: path,
start, end, vector, error. With --format npy, --out is a folder with one matrix [windows, channels]
a video. The same command again goes on where it was stopped, adds new videos, and tries again those
that failed. With other settings it is refused.

Exit codes: 0 every video is described; 1 one could not be (the others are); 2 wrong use, or none of
the paths leads to a video; 130 interrupted (what is done is kept).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hiera_video import cli
from hiera_video.commands import usage
from hiera_video.errors import DecodeError, RunFailed, UserError
from hiera_video.progress import LOG_SECONDS, Progress
from hiera_video.video.decoding_process import decoding_process
from hiera_video.video.find import InputFile, expand_paths
from hiera_video.video.guarded_pool import GuardedPool

if TYPE_CHECKING:
    from hiera_video.features.describe import Describer
    from hiera_video.features.matrices import MatrixWriter
    from hiera_video.features.table import TableWriter

    Writer = TableWriter | MatrixWriter


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video features") -> int:
    """Run one command line; returns the exit code."""
    args = _arguments(prog).parse_args(argv)
    _check_out(args)
    files = expand_paths(args.paths)
    if args.format == "parquet":
        _require_pyarrow()
    # Videos are read in a child process, so that a file that crashes a decoder cannot end this one.
    # It starts first: it imports its libraries while the model is loaded.
    with decoding_process() as process:
        # What a library prints while the model is loaded is no result.
        with contextlib.redirect_stdout(sys.stderr), Progress("loading the model"):
            describer = _describer(args, process)
        with _writer(describer, files, args) as writer:
            return _describe_all(describer, files, writer, args.out)


def _arguments(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=usage(__doc__, "features", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="VIDEOS",
        help="video files, folders, globs in quotes, addresses",
    )
    add("--weights", required=True, metavar="W", help="checkpoint file, address, published name")
    add("--out", required=True, metavar="FILE", help="the table, or the folder of matrices")
    add("--model", metavar="NAME", help="a registered model (default: what the weights are for)")
    add(
        "--layer",
        metavar="NAME",
        help="head (what the last layer takes), stage1 to stage4 (default: head, or the last "
        "stage of weights without a trained head)",
    )
    add(
        "--pool",
        default="mean",
        metavar="mean|mean_max|tokens",
        help="how the tokens of a clip become a vector (default: mean)",
    )
    add("--views", metavar="KxS", help="clips in time x crops in space (default: 2x1; tokens: 1x1)")
    add("--every", type=float, metavar="SECONDS", help="a vector for each window this long")
    add("--format", default="parquet", choices=("parquet", "npy"), help="default: parquet")
    add("--store", default="fp32", choices=("fp32", "fp16"), help="numbers in the file (fp32)")
    add("--afresh", action="store_true", help="start over, whatever is in --out")
    add("--batch-size", type=int, default=4, metavar="N", help="most clips per forward pass (4)")
    add("--device", default="auto", metavar="auto|cpu|cuda", help="default: auto")
    add("--dtype", default="auto", metavar="auto|fp32|fp16|bf16", help="default: auto")
    add("--decoder", default="auto", metavar="NAME", help="auto, torchcodec, pyav or decord (auto)")
    cli.add_import_argument(parser)
    return parser


def _check_out(args: argparse.Namespace) -> None:
    """Refuse outputs that could not be written hours later."""
    folder = os.path.dirname(os.path.abspath(args.out))
    if not os.path.isdir(folder):
        raise UserError(f"--out {args.out} cannot be written: there is no folder {folder}")
    if args.format == "parquet" and os.path.isdir(args.out):
        raise UserError(f"--out {args.out} is a folder; name a file, such as features.parquet")
    if args.format == "npy" and os.path.isfile(args.out):
        raise UserError(f"--out {args.out} is a file; with --format npy it is a folder")
    if args.format == "npy" and args.pool == "tokens":
        raise UserError("--format npy has one vector a window; use --pool mean, or a table")


def _require_pyarrow() -> None:
    from hiera_video.features.parquet import parquet

    parquet()


def _describer(args: argparse.Namespace, process: GuardedPool) -> Describer:
    # Imported here: torch takes seconds to import, and --help and typing errors need not wait.
    cli.import_torch()
    from hiera_video.data.views import parse_views
    from hiera_video.features.describe import Describer
    from hiera_video.features.encoder import EncoderOptions, load_encoder

    options = EncoderOptions(
        model=args.model,
        layer=args.layer,
        pool=args.pool,
        device=args.device,
        dtype=args.dtype,
        batch_size=args.batch_size,
    )
    views = parse_views(args.views or ("1x1" if args.pool == "tokens" else "2x1"))
    encoder = load_encoder(args.weights, options, warn=_warn)
    return Describer(encoder, views=views, every=args.every, process=process, decoder=args.decoder)


def _writer(describer: Describer, files: Sequence[InputFile], args: argparse.Namespace) -> Writer:
    from hiera_video.features.matrices import MatrixWriter, common_folder
    from hiera_video.features.table import TableWriter

    if args.format == "parquet":
        return TableWriter(args.out, describer.settings(args.store), afresh=args.afresh)
    videos = [file.path for file in files if file.error is None]
    settings = describer.settings(args.store, root=common_folder(videos))
    return MatrixWriter(args.out, settings, videos, afresh=args.afresh)


def _describe_all(
    describer: Describer, files: Sequence[InputFile], writer: Writer, out: str
) -> int:
    """Describe what is not described yet; returns the exit code."""
    waiting = [file for file in files if file.error is not None or not writer.is_done(file.path)]
    there = len(files) - len(waiting)
    if there:
        _warn(f"note: {there} of {len(files)} videos are in {out} already")
    failed = done = 0
    try:
        with Progress("described", len(waiting), unit="videos", log_every=LOG_SECONDS) as progress:
            for done, (path, error) in enumerate(waiting):
                progress.to(done)
                if error is None:
                    error = _describe(describer, path, writer, _part(progress, done))
                else:
                    writer.add_error(path, error)
                if error is not None:
                    failed += 1
                    _warn(f"error: {cli.printable(path)}: {error}")
    except KeyboardInterrupt:
        _warn(
            f"interrupted after {there + done} of {len(files)} videos; the same command goes on "
            "from there"
        )
        return cli.INTERRUPTED
    writer.finish()
    shape = "x".join(map(str, describer.encoder.shape))
    print(
        f"wrote {out}: {len(files) - failed} videos, {describer.encoder.layer}, "
        f"{describer.encoder.options.pool}, {shape} numbers each"
    )
    if failed:
        _warn(f"{failed} of {len(files)} files could not be described")
    return cli.FAILED if failed else cli.DONE


def _part(progress: Progress, done: int) -> Callable[[float], None]:
    """Return what shows how far a long video is."""
    return lambda share: progress.to(done + share)


def _describe(
    describer: Describer, path: str, writer: Writer, on_progress: Callable[[float], None]
) -> str | None:
    """Describe one video; returns why it could not be, None if it is."""
    try:
        described = describer(path, on_progress)
        writer.add(path, described)
        return None
    except DecodeError as failure:
        error = failure.reason
    except RunFailed as failure:
        error = str(failure)
    writer.add_error(path, error)
    return error


def _warn(line: str) -> None:
    print(line, file=sys.stderr)
