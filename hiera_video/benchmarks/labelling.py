"""The predictor of `hiera-video predict`, with the time that decoding and the model take.

Imports no more than the demo does, so that its cold start can be timed.
"""

from __future__ import annotations

import argparse
from typing import Any

from hiera_video.benchmarks.measure import wait_for
from hiera_video.benchmarks.stopwatch import Stopwatch
from hiera_video.data.views import parse_views
from hiera_video.predict import Predictor
from hiera_video.video.guarded_pool import GuardedPool


def load(args: argparse.Namespace, process: Any) -> Predictor:
    """The predictor that `hiera-video predict` would make of these arguments."""
    return Predictor.load(
        model=args.model,
        weights=args.weights,
        labels=args.labels,
        views=parse_views(args.views),
        device=args.device,
        dtype=args.dtype,
        batch_size=args.batch_size,
        decoder=args.decoder,
        process=process,
        warn=lambda line: None,
    )


class TimedProcess:
    """The process that reads videos, with the time that the caller waits for it."""

    def __init__(self, process: GuardedPool, watch: Stopwatch) -> None:
        self._process, self._watch = process, watch

    def call(self, item: Any) -> Any:
        """See `GuardedPool.call`."""
        with self._watch("decode"):
            return self._process.call(item)


def time_forward(predictor: Predictor, watch: Stopwatch) -> None:
    """Time the model's forward pass, the work of its device included."""
    forward, device = predictor.model.forward, predictor.device

    def timed(*args: Any, **kwargs: Any) -> Any:
        with watch("forward"):
            out = forward(*args, **kwargs)
            wait_for(device)
        return out

    predictor.model.forward = timed
