"""Which clips the streams of generated clips can draw: those that fit the grid of their truth."""

from __future__ import annotations

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.synthetic.body_motion.truth import GRID
from hiera_video.errors import UserError


def drawable(frames: int, size: int, *, largest: int | None = None) -> bool:
    """Whether a stream can draw so many frames with sides of `size` pixels, `largest` at most."""
    return frames % 2 == 0 and size % GRID == 0 and (largest is None or size <= largest)


def require_stream_clips(spec: ClipSpec, *, largest: int | None = None) -> None:
    """Raise UserError unless a stream can draw clips like `spec`.

    largest: the largest side in pixels; None for any.
    """
    if drawable(spec.num_frames, spec.crop_size, largest=largest) and not spec.segments:
        return
    limit = "" if largest is None else f" up to {largest}"
    raise UserError(
        f"generated clips have an even number of frames and a side that is a multiple of {GRID}"
        f"{limit}, in steady time: not {spec.num_frames} frames of {spec.crop_size} px"
        f"{' in segments' * spec.segments} (DATA.NUM_FRAMES, DATA.TRAIN_CROP_SIZE)"
    )
