"""The life of a fresh process that labels one video, in seconds by stage, as JSON on stdout.

    python -m benchmarks.cold_start TIME FILE [--model NAME] [--weights FILE] ...

TIME is when it was started (`time.time()`). The order of things is that of demo/predict.py: the
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
    """Label the file, say how long each stage took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("started", type=float)
    parser.add_argument("file")
    add_predictor_arguments(parser)
    args = parser.parse_args(argv)
    marks = [args.started, time.time()]

    # What demo/predict.py imports before it knows what is asked.
    from hiera_video.config import Config  # noqa: F401
    from hiera_video.video.decoding_process import decoding_process

    with decoding_process() as process:
        from benchmarks.labelling import WatchedProcess, load, watch_forward
        from benchmarks.stopwatch import Stopwatch

        marks.append(time.time())
        watch = Stopwatch()
        predictor = load(args, WatchedProcess(process, watch))
        watch_forward(predictor, watch)
        marks.append(time.time())
        label = predictor(args.file, top_k=1).labels[0]
        marks.append(time.time())
    names = ("python", "import", "weights", "video")
    seconds = [later - earlier for earlier, later in itertools.pairwise(marks)]
    stages = dict(zip(names, seconds, strict=True))
    found = {"model": predictor.model_name, "label": str(label)}
    print(json.dumps({**found, "seconds": stages, "parts": dict(watch.seconds)}))
    return 0


def add_predictor_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of demo/predict.py that matter here, under its names."""
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
