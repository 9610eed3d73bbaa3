"""Export a trained model as a file for another runtime.

    hiera-video export --weights best.pyth --format onnx --out m.onnx
    hiera-video export --weights camera_motion --format openvino --dtype bf16 --out m_openvino
    hiera-video export --weights best.pyth --format onnx --dtype int8 --calibrate videos/ \\
        --out m.onnx
    hiera-video export --weights best.pyth --format torch_export --batch 1 --out m.pt2

The file holds its class names, sampling, normalisation and licence, and goes wherever --weights is
taken. Before it gets its name it is run in a process of its own and compared with the model on
generated clips: in fp32 logits differ by 1e-4 of the largest at most, in other formats of numbers
the highest class agrees for 90 % of the clips. Input: RGB / 255, minus mean, over std, float32
[batch, 3, frames, height, width], named clips; output: logits [batch, classes].

Exit codes: 0 written; 1 it is not the model (nothing is written), or cannot be written; 2 wrong
use; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hiera_video import cli
from hiera_video.commands import usage
from hiera_video.errors import UserError

FORMATS = ("onnx", "openvino", "torch_export", "torchscript")
DTYPES = ("fp32", "fp16", "bf16", "int8")


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video export") -> int:
    """Run one command line; returns the exit code."""
    args = _arguments(prog).parse_args(argv)
    # Imported here: torch takes seconds to import, and --help need not wait.
    cli.import_torch()
    from hiera_video.export.export import ExportSettings, check_out, export, with_licence

    settings = ExportSettings(
        format=args.format,
        out=args.out,
        dtype=args.dtype,
        batch=_batch(args.batch),
        calibrate=args.calibrate or (),
        clips=args.clips,
    )
    check_out(settings)
    from hiera_video.classifier import load_classifier
    from hiera_video.runtimes.load import exported_kind

    if exported_kind(args.weights) is not None:
        raise UserError(f"--weights {args.weights} is exported already; name the checkpoint")
    found = load_classifier(
        args.model, args.weights, args.labels, spec=None, model_kwargs={}, warn=_warn
    )
    done = export(with_licence(found, args.licence), settings, _say)
    facts = done.facts
    batch = "any batch" if facts.batch is None else f"batches of {facts.batch}"
    licence = facts.licence or "unknown (--licence TEXT says it)"
    _say(f"wrote {done.path} ({done.size / 1e6:.1f} MB): {facts.model}, {facts.dtype}, {batch}")
    _say(f"{len(facts.classes)} classes, clips {facts.spec.in_words()}, licence {licence}")
    return cli.DONE


def _arguments(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=usage(__doc__, "export", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--weights", required=True, metavar="W", help="checkpoint file, address, published name")
    add("--format", required=True, metavar="F", help=", ".join(FORMATS))
    add("--out", required=True, metavar="FILE", help="file to write; openvino: folder, or X.xml")
    add("--dtype", default="fp32", metavar="D", help=f"{', '.join(DTYPES)} (default: fp32)")
    add("--batch", default="dynamic", metavar="N", help="clips in each call (default: dynamic)")
    add(
        "--calibrate",
        nargs="+",
        metavar="PATH",
        help="int8: videos to measure ranges on (default: generated clips)",
    )
    add("--clips", type=int, default=0, metavar="N", help="clips to compare on (8; 32 below fp32)")
    add("--model", metavar="NAME", help="the model, where the weights do not say it")
    add("--labels", metavar="FILE", help="class names, one a line, or the name of a known list")
    add("--licence", default="", metavar="TEXT", help="of the weights, where it is not known")
    cli.add_import_argument(parser)
    return parser


def _batch(text: str) -> int | None:
    """Read --batch; None for "dynamic"."""
    if text == "dynamic":
        return None
    if not text.isdigit():
        raise UserError(f"--batch {text!r}; choose dynamic, or a number from 1")
    return int(text)


def _say(line: str) -> None:
    print(cli.printable(line), flush=True)


def _warn(line: str) -> None:
    print(cli.printable(line), file=sys.stderr, flush=True)
