"""The options of each subcommand of `hiera-video benchmark`.

Apart from what they measure: that imports torch, for which `--help` need not wait.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

BEST = "best"
"""Value of --batch: the batch is chosen by measurement."""

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
ATTENTION = ("fused", "explicit")
RUNGS = ("r0", "r1", "r2b", "r2c", "r3", "r4", "r5")
"""Steps from MViTv2 to Hiera."""

KINDS = ("train", "augmented", "repeated", "test")
"""train: a random place, crop and flip, as in pretraining. augmented: RandAugment and erasing too,
as in fine-tuning. repeated: as train, with several clips of each video, as masked autoencoders are
pretrained. test: 5 clips x 3 crops of each video."""

LOADED = tuple(kind for kind in KINDS if kind != "repeated")
"""PyTorchVideo's loader has no repeated clips."""

DECODERS = ("torchcodec", "pyav", "decord")
SECONDS = 10
"""Of a generated video, as in Kinetics."""

FRAMES, SIZES, VIDEOS = (8, 16, 32, 64, 128), (128, 224, 320, 448), (10, 100, 1000, 10_000, 100_000)
PICTURES = "runs/benchmark"
"""Folder of pictures, below the current one as the folders of runs are."""

Parser = argparse.ArgumentParser


class Benchmark(NamedTuple):
    """One subcommand."""

    module: str
    """In this package, with `run(args)`."""
    what: str
    """For the overview."""
    add_options: Callable[[Parser], None]


# ---- what several take --------------------------------------------------------------------------


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def batch_size(text: str) -> int | str:
    """A number of clips, or "best", for argparse."""
    return BEST if text == BEST else positive(text)


def add_machine_options(parser: Parser, *, repeats: int = 7) -> None:
    """`--device`, `--threads` and `--repeats`."""
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (auto)")
    add("--threads", type=positive, help="CPU threads (torch's choice)")
    add("--repeats", type=positive, default=repeats, help=f"measurements of each ({repeats})")


def add_output_options(parser: Parser) -> None:
    """`--json FILE` and `--markdown FILE`."""
    add = parser.add_argument
    add("--json", metavar="FILE", help="write everything measured to FILE")
    add("--markdown", metavar="FILE", help="write the table, with its conditions, to FILE")


def add_name_options(parser: Parser, *, usual: str, others: str) -> None:
    """Add the options for which models are measured.

    Args:
        usual: default of --names.
        others: for the help of --others.
    """
    add = parser.add_argument
    add("--names", nargs="+", default=[usual], metavar="NAME")
    add("--others", nargs="*", metavar="NAME", help=f"registered {others}")
    add("--no-others", dest="others", action="store_const", const=[], help="none of those")


def add_model_options(
    parser: Parser, *, attention: Sequence[str], modes: Sequence[str] | None
) -> None:
    """Add the options of every subcommand that runs models.

    Args:
        attention: default of --attention.
        modes: default of --modes; None: the option is left out.
    """
    add = parser.add_argument
    if modes is not None:
        add(
            "--modes",
            "--mode",
            nargs="+",
            choices=("forward", "train"),
            default=list(modes),
            help=f"evaluation, or forward and backward ({' '.join(modes)})",
        )
    add(
        "--batch",
        nargs="+",
        type=batch_size,
        default=[1],
        metavar="N",
        help="clips per call, one or several, or best: doubled until clips/s stops growing (1)",
    )
    add(
        "--dtype",
        nargs="+",
        default=[],
        metavar="DTYPE",
        help="fp32, bf16, fp16 (autocast), bf16-pure, fp16-pure (forward only; the weights too); "
        "default: all with autocast; those that a CPU only emulates are left out",
    )
    add("--emulated", action="store_true", help="measure these, too: a hundred times slower")
    add(
        "--attention",
        nargs="+",
        choices=ATTENTION,
        default=list(attention),
        help=f"fused, or as separate products ({' '.join(attention)})",
    )
    add(
        "--compile",
        nargs="?",
        const="default",
        choices=COMPILE_MODES,
        help="add compiled rows; the mode of torch.compile (default)",
    )
    add("--optimizer", action="store_true", help="end training steps with AdamW's, fused")
    add(
        "--input-size",
        nargs="+",
        type=positive,
        metavar="N",
        help="(frames) height width, instead of the models' own",
    )
    add(
        "--no-memory",
        dest="memory",
        action="store_false",
        help="do not measure peak memory, which on a CPU takes a process for each row",
    )
    add_machine_options(parser)
    add_output_options(parser)


# ---- the subcommands ----------------------------------------------------------------------------


def model_options(parser: Parser) -> None:
    """The options of `model`."""
    add_name_options(
        parser,
        usual="hiera_base_16x224",
        others="models to stand beside each of them, for context (torchvision's MViT and VideoMAE "
        "beside the video Hiera-B)",
    )
    add_model_options(parser, attention=["fused"], modes=["forward", "train"])


def ladder_options(parser: Parser) -> None:
    """The options of `ladder`."""
    add = parser.add_argument
    add("--size", choices=("small", "base", "large"), default="small")
    add("--input", choices=("image", "video"), default="video")
    add("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS), help="some of them only")
    add(
        "--png",
        metavar="FILE",
        help=f"the picture ({PICTURES}/ladder_SIZE_INPUT.png; an empty name for none)",
    )
    add_model_options(parser, attention=["fused", "explicit"], modes=["forward"])
    parser.set_defaults(repeats=5)


def pretrain_options(parser: Parser) -> None:
    """The options of `pretrain`."""
    add_name_options(
        parser,
        usual="mae_hiera_base_16x224",
        others="autoencoders to stand beside each of them (VideoMAE beside the video Hiera-B)",
    )
    add = parser.add_argument
    add(
        "--mask-ratio",
        nargs="+",
        type=float,
        metavar="R",
        help="shares of the mask units deleted (the model's own)",
    )
    add(
        "--decode-ratio",
        nargs="+",
        type=float,
        default=[1.0, 0.25],
        metavar="R",
        help="shares of the deleted units that ours decodes; below 1 is beyond the paper (1 0.25)",
    )
    add(
        "--compare-loss",
        type=positive,
        metavar="STEPS",
        help="train a tiny autoencoder on generated clips for so many steps, once for each "
        "--decode-ratio, and print the loss on held-out clips; nothing else is measured",
    )
    add("--seeds", type=positive, default=2, help="runs of each for --compare-loss (2)")
    picture = f"the picture ({PICTURES}/pretrain.png; an empty name for none)"
    add("--png", metavar="FILE", help=picture)
    add_model_options(parser, attention=["fused"], modes=None)
    parser.set_defaults(repeats=5)


def data_options(parser: Parser) -> None:
    """The options of `data`."""
    add = parser.add_argument
    add("--videos", metavar="FOLDER", help="measure with these (generated: 10 s, 340x256, H.264)")
    add("--clips", type=positive, default=4, help="videos to generate or read (4)")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of clips (all)")
    add("--decoders", nargs="+", choices=DECODERS, help="all that work here")
    add("--frames", type=positive, default=16, help="of a clip (16)")
    add("--rate", type=positive, default=4, help="distance of its frames at 30 fps (4)")
    add("--crop", type=positive, default=224, help="side of its pictures (224)")
    add("--known", action="store_true", help="files were read before: they are not scanned again")
    add("--length", type=float, default=SECONDS, help=f"seconds of a generated video ({SECONDS})")
    add("--gop", type=positive, help="its frames from key frame to key frame (encoder's)")
    add("--loaders", nargs="*", choices=LOADED, default=["augmented", "test"], help="whole loaders")
    add("--workers", nargs="+", type=positive, help="of loaders (1, 2, 4, ... cores)")
    add("--seconds", type=float, default=3.0, help="for which each loader is timed (3)")
    add("--feeds", type=float, metavar="CLIPS_PER_S", help="what a model takes: cores for that")
    add("--model", metavar="NAME", help="the same, of this model's training step, timed here")
    add("--batch", type=positive, default=8, help="clips of that step (8)")
    add("--dtype", help="of that step (bf16 on a GPU, fp32 on a CPU)")
    add_machine_options(parser, repeats=5)
    add_output_options(parser)


def generate_options(parser: Parser) -> None:
    """The options of `generate`."""
    add = parser.add_argument
    add("--clips", type=positive, default=100, help="of a measurement, per process (100)")
    add("--frames", type=positive, default=8, help="of a clip, an even number (8)")
    add("--size", type=positive, default=64, help="side of its pictures (64)")
    add("--processes", nargs="+", type=positive, help="numbers of them (1, 2, ... cores)")
    add("--repeats", type=positive, default=7, help="measurements of each (7)")
    add_output_options(parser)


def growth_options(parser: Parser) -> None:
    """The options of `growth`."""
    add = parser.add_argument
    add("--model", default="hiera_tiny_16x224", metavar="NAME", help="(hiera_tiny_16x224)")
    for name, usual, what in (
        ("--frames", FRAMES, "of a clip"),
        ("--sizes", SIZES, "of pictures"),
        ("--videos", VIDEOS, "of a list"),
    ):
        which = f"{what} ({usual[0]} ... {usual[-1]}); without a number: leave them out"
        add(name, nargs="*", type=positive, default=list(usual), help=which)
    add("--no-memory", action="store_true", help="do not measure the memory of the model")
    add_machine_options(parser, repeats=5)
    add_output_options(parser)


def predict_options(parser: Parser) -> None:
    """The options of `predict`."""
    add = parser.add_argument
    add("--videos", metavar="FOLDER", help="measure with these (generated: sizes and codecs)")
    add("--model", metavar="NAME", help="with --weights (both: the bundled model and a base one)")
    add("--weights", help="file, published name, or random")
    add("--views", nargs="+", default=["5x3"], metavar="KxS", help="clips x crops (5x3)")
    add("--batch-size", type=positive, default=4, help="views per forward pass (4)")
    add("--dtype", default="auto", help="auto, fp32, fp16, bf16 (auto)")
    add("--decoders", nargs="+", choices=("auto", *DECODERS), default=["auto"], help="(auto)")
    add("--no-cold", action="store_true", help="leave the cold starts out")
    add_machine_options(parser, repeats=5)
    add_output_options(parser)


BENCHMARKS = {
    "model": Benchmark(
        "models", "registered models beside other implementations of them", model_options
    ),
    "ladder": Benchmark(
        "ladder",
        "the steps from MViTv2 to Hiera, beside the paper's, with a picture",
        ladder_options,
    ),
    "pretrain": Benchmark(
        "pretrain",
        "one step of masked autoencoding, by part, beside other libraries'",
        pretrain_options,
    ),
    "data": Benchmark(
        "data",
        "decoding, augmenting and loading, by stage and core, beside PyTorchVideo",
        data_options,
    ),
    "generate": Benchmark(
        "generate",
        "drawing clips of body motion, by stage and number of processes",
        generate_options,
    ),
    "growth": Benchmark(
        "growth",
        "time and memory against frames, size and videos, with the exponent",
        growth_options,
    ),
    "predict": Benchmark(
        "predict",
        "files to labels: cold start, file after file, and where the time goes",
        predict_options,
    ),
}
"""Subcommand -> what it measures."""
