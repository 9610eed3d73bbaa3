"""From rows to labels or vectors, in one process: files are read ahead in guarded processes.

What is read, how it is scored and in which order numbers are added is the demo's way
(`predict.Predictor.label_read`, `features.encoder.Encoder`): a row has the labels of the demo.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import torch

from hiera_video.classifier import find_checkpoint
from hiera_video.data.transforms.normalize import normalize_clips
from hiera_video.errors import DecodeError, RunFailed
from hiera_video.features.encoder import Encoder, EncoderOptions, load_encoder
from hiera_video.files import sha256_of
from hiera_video.predict import Predictor
from hiera_video.registry import import_user_module
from hiera_video.scale.job import LABELS, Job, Settings
from hiera_video.scale.outcome import Equipment, Outcome
from hiera_video.scale.rows import Row
from hiera_video.storage.addresses import join
from hiera_video.video.decoding_process import decoding_process
from hiera_video.video.guarded_pool import GuardedPool
from hiera_video.video.guarded_video import (
    MOST_BYTES,
    Stretch,
    ViewRequest,
    read_ahead,
    read_in_parts,
)
from hiera_video.video.view_crops import VideoFacts, ViewCrops

Labeller = Callable[[Iterator[Row]], Iterator[Outcome]]
"""Takes rows, and yields what became of each, in their order."""


def make_labeller(job: Job, equipment: Equipment) -> Labeller:
    """Load the model and start the processes that read. Raises what loading raises, and RunFailed
    where the weights are not those of the job."""
    for module in equipment.imports:
        import_user_module(module)
    torch.set_num_threads(equipment.threads)
    process = decoding_process(equipment.readers)  # imports its libraries while the model is loaded
    settings = job.settings
    _, found = weights_of(settings.weights, settings.model)
    if found != settings.weights_sha256:
        raise RunFailed(
            f"the weights {settings.weights} on {socket.gethostname()} are other ones than the job "
            f"began with ({found[:16]}, not {settings.weights_sha256[:16]})"
        )
    if settings.task == LABELS:
        return _Labels(load_predictor(settings, equipment, process), job, process)
    return _Vectors(load_vectors(settings, equipment), job, process)


def _told_already(line: str) -> None:
    """The process that began the job has said it."""


def load_predictor(
    settings: Settings,
    equipment: Equipment,
    process: GuardedPool | None,
    warn: Callable[[str], None] = _told_already,
) -> Predictor:
    """Load the classifier of a job."""
    return Predictor.load(
        settings.model,
        settings.weights,
        settings.labels or None,
        views=settings.views,
        device=equipment.device,
        dtype=settings.computed_in,
        batch_size=equipment.batch_size,
        decoder=settings.decoder,
        process=process,
        runtime="torch",
        warn=warn,
    )


def load_vectors(
    settings: Settings, equipment: Equipment, warn: Callable[[str], None] = _told_already
) -> Encoder:
    """Load the encoder of a job."""
    options = EncoderOptions(
        model=settings.model,
        layer=settings.layer or None,
        pool=settings.pool,
        device=equipment.device,
        dtype=settings.computed_in,
        batch_size=equipment.batch_size or (32 if equipment.device == "cuda" else 4),
    )
    return load_encoder(settings.weights, options, warn=warn)


# ---- reading ------------------------------------------------------------------------------------


def _read(
    rows: Iterator[Row], root: str, request: ViewRequest, process: GuardedPool
) -> Iterator[ViewCrops | DecodeError]:
    """The crops of each row, in their order, or why there are none."""
    stretches = (Stretch(join(root, row.path), row.start, row.end) for row in rows)
    if request.most_bytes <= MOST_BYTES:
        yield from read_ahead(stretches, request, process)
        return
    for stretch in stretches:
        yield read_in_parts(stretch, request, process)


def _facts(crops: ViewCrops | DecodeError) -> VideoFacts | None:
    return crops.facts if isinstance(crops, ViewCrops) else None


class _Labels:
    """Rows -> labels. Batches of a GPU have clips of several rows, those of a CPU of one."""

    def __init__(self, predictor: Predictor, job: Job, process: GuardedPool) -> None:
        self._predictor, self._process, self._job = predictor, process, job
        self._request = ViewRequest(predictor.spec, *predictor.views, predictor.decoder)

    def __call__(self, rows: Iterator[Row]) -> Iterator[Outcome]:
        read = _read(rows, self._job.root, self._request, self._process)
        top_k = self._job.settings.top_k
        with_facts = ((_facts(crops), crops) for crops in read)
        for facts, found in self._predictor.label_read(with_facts, top_k=top_k):
            if isinstance(found, str):
                yield Outcome(facts=facts, error=found)
            else:
                yield Outcome(labels=found, facts=facts)


class _Vectors:
    """Rows -> vectors, in the same way."""

    def __init__(self, encoder: Encoder, job: Job, process: GuardedPool) -> None:
        self._encoder, self._process, self._job = encoder, process, job
        self._request = ViewRequest(encoder.spec, *job.settings.views, job.settings.decoder)
        self._mixed = encoder.device.type == "cuda"

    def __call__(self, rows: Iterator[Row]) -> Iterator[Outcome]:
        waiting: list[ViewCrops | DecodeError] = []
        clips = 0
        for crops in _read(rows, self._job.root, self._request, self._process):
            waiting.append(crops)
            if isinstance(crops, ViewCrops):
                clips += len(crops.place) * len(crops.crops)
            if not self._mixed or clips >= self._encoder.options.batch_size:
                yield from self._outcomes(waiting)
                waiting, clips = [], 0
        yield from self._outcomes(waiting)

    def _outcomes(self, waiting: list[ViewCrops | DecodeError]) -> Iterator[Outcome]:
        """What becomes of some rows, whose clips go through the model together."""
        stacked = [crops.stacked() for crops in waiting if isinstance(crops, ViewCrops)]
        vectors: Iterator[Any] = iter(())
        reason = None
        if stacked:
            try:
                pixels = torch.cat(stacked) if len(stacked) > 1 else stacked[0]
                found = self._encoder(normalize_clips(pixels, self._encoder.spec))
                vectors = iter(found.split([len(clips) for clips in stacked]))
            except RunFailed as error:
                reason = str(error)
        for crops in waiting:
            if isinstance(crops, DecodeError):
                yield Outcome(error=crops.reason)
            elif reason is not None:
                yield Outcome(facts=crops.facts, error=reason)
            else:
                yield self._outcome(next(vectors).mean(dim=0).flatten(), crops.facts)

    def _outcome(self, vector: Any, facts: VideoFacts | None) -> Outcome:
        if self._job.settings.stored_as == "fp16" and not torch.isfinite(vector.half()).all():
            return Outcome(facts=facts, error="the vector does not fit into fp16; store it as fp32")
        return Outcome(vector=vector.numpy(), facts=facts)


def weights_of(weights: str, model: str | None) -> tuple[str, str]:
    """Return (registered name of the model, hash of the file) of the weights that a user names."""
    name, checkpoint, _ = find_checkpoint(model, weights, warn=_told_already)
    return name, sha256_of(checkpoint.path)
