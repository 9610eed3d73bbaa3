"""A fresh process that labels one video and prints its seconds by stage as JSON.

    python -m hiera_video.benchmarks.cold_start TIME FILE [--model NAME] [--weights FILE] ...

TIME is when it was started (`time.time()`). The order is that of `hiera-video predict`: the
process that reads videos starts first and imports its libraries meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence

from hiera_video import cli


def main(argv: Sequence[str]) -> int:
    """Label the file and print how long each stage took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("started", type=float)
    parser.add_argument("file")
    add_predictor_arguments(parser)
    args = parser.parse_args(argv)
    marks = [args.started, time.time()]

    # What `hiera-video predict` imports before it parses its options, and is not light.
    from hiera_video.config import command_line  # noqa: F401
    from hiera_video.video.decoding_process import decoding_process

    with decoding_process() as process:
        cli.import_torch()
        from hiera_video.benchmarks.labelling import TimedProcess, load, time_forward
        from hiera_video.benchmarks.stopwatch import Stopwatch

        marks.append(time.time())
        watch = Stopwatch()
        predictor = load(args, TimedProcess(process, watch))
        time_forward(predictor, watch)
        marks.append(time.time())
        label = predictor(args.file, top_k=1).labels[0]
        marks.append(time.time())
    names = ("python", "import", "weights", "video")
    seconds = [later - earlier for earlier, later in itertools.pairwise(marks)]
    stages = dict(zip(names, seconds, strict=True))
    result = {"model": predictor.model_name, "label": str(label)}
    print(json.dumps({**result, "seconds": stages, "parts": dict(watch.seconds)}))
    return 0


def add_predictor_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `hiera-video predict` that decide the speed, under the same names."""
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--labels")
    parser.add_argument("--views", default="5x3")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--decoder", default="auto")


if __name__ == "__main__":
    cli.run(main)
