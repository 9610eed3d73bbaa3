"""What a masked autoencoder paints where a clip of a video is hidden from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from hiera_video.classifier import find_checkpoint, usual_spec
from hiera_video.clip_spec import ClipSpec
from hiera_video.data.views import read_views, views_of
from hiera_video.engine.tasks import as_autoencoder, reconstructed
from hiera_video.errors import UserError, WeightsError
from hiera_video.models import MaskedAutoencoder, build_model
from hiera_video.models.weights.key_names import AUTOENCODER
from hiera_video.models.weights.load import load_weights
from hiera_video.pages.moments import jpeg_of
from hiera_video.scoring import choose_device
from hiera_video.video.guarded_pool import GuardedPool
from hiera_video.video.guarded_video import GuardedVideo

LEAST_HIDDEN, MOST_HIDDEN = 0.05, 0.95
"""Shares of a clip that may be hidden."""

_SEED = 0
"""The same places are hidden each time: what differs between two pictures is what was chosen."""


@dataclass(frozen=True)
class Reconstruction:
    """A picture of one clip: rows of frames."""

    jpeg: bytes
    rows: tuple[str, ...]
    """What the rows show, from the top."""
    hidden: int
    """Mask units that the model did not see."""
    units: int
    start: float
    end: float
    """The first and the last frame of the clip; seconds from the first frame of the video."""


class Reconstructor:
    """A masked autoencoder with its weights.

    weights: a published name, or a file that whoever started the app named. warn: called with each
    line that people should read. Raises UserError for weights without a decoder.
    """

    def __init__(self, weights: str, device: str, warn: Callable[[str], None]) -> None:
        name, checkpoint, published = find_checkpoint(None, weights, warn=warn)
        if checkpoint.kind != AUTOENCODER:
            raise UserError(f"{checkpoint.label} has no decoder, so it cannot reconstruct a clip")
        model = build_model(name, **checkpoint.model_kwargs)
        report = load_weights(model, checkpoint)
        if report.missing:
            raise WeightsError(
                f"{checkpoint.label} has no trained values for {', '.join(report.missing[:4])}; "
                "the reconstruction would be random"
            )
        for note in report.notes:
            warn(f"{checkpoint.label}: {note}")
        if published is not None and published.note:
            warn(f"{checkpoint.label}: {published.note}")
        self.device = choose_device(device)
        self.spec: ClipSpec = checkpoint.spec or usual_spec(model, name, checkpoint, warn)
        self.model: nn.Module = model.to(self.device).eval()
        self.name = name
        if isinstance(model, MaskedAutoencoder) and model.target.needs_truth:
            raise UserError(
                f"{checkpoint.label} predicts the {model.target.name}, which is known of "
                "generated clips only; choose weights that predict pixels"
            )

    def __call__(self, path: str, hidden: float, process: GuardedPool) -> Reconstruction:
        """Hide a share of the middle clip of a video, and paint it.

        Raises DecodeError for a file that cannot be decoded.
        """
        with GuardedVideo(path, process) as video:
            views = views_of(video, self.spec, 1)
            clips = read_views(video, views, self.spec, 1).to(self.device)
            times = video.info.times[views[0]]
        keep = as_autoencoder(self.model).random_keep(
            1, hidden, torch.Generator().manual_seed(_SEED)
        )
        panels = reconstructed(
            self.model, clips, keep.to(self.device), mean=self.spec.mean, std=self.spec.std
        )
        pixels = (panels.as_picture() * 255).round().byte()
        return Reconstruction(
            jpeg=jpeg_of(pixels.permute(1, 2, 0).numpy()),
            rows=panels.names,
            hidden=int((~keep).sum()),
            units=keep.shape[1],
            start=float(times[0]),
            end=float(times[-1]),
        )
