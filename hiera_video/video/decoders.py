"""Which decoding libraries work on this machine, and in which order a file is given to them."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import io
import logging
import re

import numpy as np

from hiera_video.errors import DecodeError, UserError
from hiera_video.storage.addresses import is_stored
from hiera_video.video.container import error_reason
from hiera_video.video.info import FrameIndex, VideoInfo
from hiera_video.video.limits import imports_allowed
from hiera_video.video.readers.torchcodec import needs_copy, open_decoder

DECODERS = ("torchcodec", "pyav", "decord")
"""The decoders, in the order in which "auto" tries them (see `order_for`)."""

LEAST_TORCHCODEC = (0, 15)
"""0.14 loses frames of files that were cut without encoding; 0.7, the last that works with torch
2.8, also gives other pixels for 10-bit video and for pictures of odd size."""

_MODULES = {"torchcodec": "torchcodec.decoders", "pyav": "av", "decord": "decord"}

SMALL_PICTURE = 1280 * 720
"""Pixels up to which PyAV is usually faster than torchcodec."""

_TORCHCODEC_CODECS = {"hevc", "av1"}

logger = logging.getLogger("hiera_video")


# ---- which work ----


def available_decoders() -> dict[str, str | None]:
    """Each of DECODERS with the reason it does not work on this machine; None where it works.

    Takes seconds at the first call: torchcodec is slow to import.
    """
    return {name: decoder_failure(name) for name in DECODERS}


@functools.cache
def decoder_failure(name: str) -> str | None:
    """Why this one of DECODERS does not work on this machine; None where it works.

    Working means having decoded a frame: torchcodec imports without the FFmpeg libraries it needs.
    """
    if name == "torchcodec" and (version := _too_old_torchcodec()):
        least = ".".join(map(str, LEAST_TORCHCODEC))
        return f"is too old ({version}; before {least} it gives other frames for some files)"
    try:
        with imports_allowed():
            importlib.import_module(_MODULES[name])
    except Exception as error:  # also OSError, RuntimeError: libraries that do not load
        return f"cannot be imported ({error_reason(error)})"
    if name == "pyav":
        return None
    try:
        _decode_sample(name)
    except Exception as error:
        return f"imports, but does not decode ({error_reason(error)})"
    return None


def _too_old_torchcodec() -> str | None:
    """The installed version, if it is too old; read without importing it, which can crash."""
    try:
        version = importlib.metadata.version("torchcodec")
    except importlib.metadata.PackageNotFoundError:
        return None
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return version if numbers < LEAST_TORCHCODEC else None


def _decode_sample(name: str) -> None:
    """Decode one grey frame that is encoded here."""
    import av

    sample = io.BytesIO()
    with av.open(sample, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if name == "torchcodec":
        open_decoder(sample.getvalue()).get_frame_at(0)
    else:
        import decord

        sample.seek(0)
        decord.VideoReader(sample, ctx=decord.cpu(0))[0].asnumpy()


# ---- which to use ----


def choose_decoders(decoder: str) -> tuple[str, ...]:
    """The decoders that `decoder` stands for: itself, or for "auto" all, working or not.

    Raises UserError for one that does not exist or not work, and where PyAV does not work, which
    opens the files for all of them.
    """
    if decoder not in ("auto", *DECODERS):
        raise UserError(f"decoder={decoder!r}: choose one of auto, {', '.join(DECODERS)}")
    if failure := decoder_failure("pyav"):
        raise UserError(f"PyAV is needed to open videos: {failure}; pip install av")
    if decoder == "auto":
        return DECODERS
    if failure := decoder_failure(decoder):
        works = [name for name in DECODERS if decoder_failure(name) is None]
        raise UserError(
            f"decoder={decoder!r} does not work here: it {failure}; "
            f"use one of auto, {', '.join(works)}"
        )
    return (decoder,)


def order_for(decoders: tuple[str, ...], info: VideoInfo, index: FrameIndex) -> tuple[str, ...]:
    """`decoders` in the order in which a file is given to them: the fastest for it first.

    The first of them works. The others are not tried before they are needed: torchcodec takes
    seconds to import. Logs once per process which is used, and which would be faster but fails.
    """
    if "pyav" in decoders and _pyav_is_faster(info, index):
        decoders = ("pyav", *(name for name in decoders if name != "pyav"))
    failures: list[str] = []
    for first, name in enumerate(decoders):
        failure = decoder_failure(name)
        if failure is None:
            _announce(name, "; ".join(failures))
            return decoders[first:]
        failures.append(f"{name} {failure}")
    raise UserError(f"no decoder works here: {'; '.join(failures)}")


def _pyav_is_faster(info: VideoInfo, index: FrameIndex) -> bool:
    """Whether PyAV reads clips of this file sooner than torchcodec would.

    Measured on one core, opening included: PyAV goes on with the file that was scanned, and skips
    B-frames that are not wanted. That wins by a tenth to a half up to 720 lines. On larger
    pictures torchcodec saves a copy of each frame; with HEVC and AV1 neither wins everywhere.
    """
    if is_stored(info.path):
        return True  # it reads the fewest bytes
    if index.sequential or needs_copy(index):
        return True  # torchcodec reads these from a copy in memory, or not at all
    is_small = info.width * info.height <= SMALL_PICTURE
    return is_small and info.codec not in _TORCHCODEC_CODECS


def after_failure(decoders: tuple[str, ...]) -> tuple[str, ...]:
    """The decoders to try after the first of `decoders` failed: those that work here.

    PyAV is the reference: what it cannot decode, decord would only guess at.
    """
    failed, *others = decoders
    trusted = [name for name in others if (failed, name) != ("pyav", "decord")]
    return tuple(name for name in trusted if decoder_failure(name) is None)


@functools.cache
def _announce(names: str, missing: str) -> None:
    logger.info("decoding videos with %s%s", names, f" ({missing})" if missing else "")


def announce_fallback(error: DecodeError, name: str) -> None:
    """Log that `name` is tried next: each reason once per process, others for debugging only."""
    level = logging.DEBUG if error.reason in _fallback_reasons else logging.INFO
    _fallback_reasons.add(error.reason)
    logger.log(level, "%s (decoding such files with %s)", error, name)


_fallback_reasons: set[str] = set()
