"""Export a classifier: write the file, compare it with the model, and only then give it its name.

Nothing is left of a file that is not the model.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hiera_video import __version__
from hiera_video.classifier import Classifier
from hiera_video.errors import RunFailed, UserError
from hiera_video.export.clips import (
    CALIBRATED_FROM,
    COMPARED_FROM,
    generated_clips,
    video_clips,
)
from hiera_video.export.formats import FORMATS
from hiera_video.export.parity import Parity, compare, logits_of, logits_of_file
from hiera_video.files import explained, put_in_place
from hiera_video.progress import Progress
from hiera_video.runtimes.facts import DTYPES, Facts
from hiera_video.runtimes.libraries import require
from hiera_video.scoring import native_on_cpu, takes_images

CALIBRATED_ON = 32
"""Clips that the ranges of int8 are measured on."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class ExportSettings:
    """What is to be written. Raises UserError for what cannot be."""

    format: str
    """One of `FORMATS`."""
    out: str
    """The file; for OpenVINO a folder, or a file X.xml."""
    dtype: str = "fp32"
    batch: int | None = None
    """Clips in each call; None: any number."""
    calibrate: Sequence[str] = ()
    """int8: videos to measure ranges on; empty: generated clips."""
    clips: int = 0
    """Clips to compare on; 0: 8 for fp32, 32 for other dtypes."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError(f"--format {self.format!r}; choose {', '.join(FORMATS)}")
        chosen = FORMATS[self.format]
        if self.dtype not in DTYPES:
            raise UserError(f"--dtype {self.dtype!r}; choose {', '.join(DTYPES)}")
        if self.dtype not in chosen.dtypes:
            raise UserError(
                f"--format {self.format} has no {self.dtype}: {chosen.why_not}; it has "
                f"{', '.join(chosen.dtypes)}"
            )
        if self.batch is not None and self.batch < 1:
            raise UserError(f"--batch {self.batch}; choose dynamic, or a number from 1")
        if self.clips and self.clips < 2:
            raise UserError(f"--clips {self.clips}; at least 2 clips are needed to compare")
        if self.calibrate and self.dtype != "int8":
            raise UserError("--calibrate is for --dtype int8; drop one of the two")
        if chosen.main_file and Path(self.out).suffix not in ("", ".xml"):
            raise UserError(f"--out {self.out}: name a folder or a file X.xml for OpenVINO")
        extra = ("nncf",) if (self.format, self.dtype) == ("openvino", "int8") else ()
        require((*chosen.libraries, *extra), f"--format {self.format} --dtype {self.dtype}")

    @property
    def compared(self) -> int:
        """Clips to compare on."""
        return self.clips or (8 if self.dtype == "fp32" else 32)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    """The file, or the folder."""
    size: int
    """Bytes."""
    facts: Facts
    parity: Parity


def export(found: Classifier, settings: ExportSettings, say: Say) -> Exported:
    """Write a classifier as a file of another runtime, with its parity proved.

    Args:
        found: the model, in float32, and what is known about it. It is moved to the CPU.
        settings: what to write.
        say: called with each line that the user should read.

    Raises:
        UserError: the clips for calibration cannot be read.
        RunFailed: the exporter cannot write this model, the file does not run, its outputs are not
            the model's, or it cannot be written. There is no new file then.
    """
    model = found.model.to("cpu", torch.float32).eval()
    calibration, source = _calibration(found, settings, say)
    facts = _facts(found, settings, calibrated_on=source)
    clips = _as_taken(found, generated_clips(found.spec, settings.compared, COMPARED_FROM))
    form = FORMATS[settings.format]
    if settings.dtype == "bf16" and not native_on_cpu(torch.bfloat16):
        say("this CPU has no bf16: it emulates it or computes in float32, which parity then shows")
    with _workplace(settings.out) as folder:
        file = folder / _main_name(settings)
        try:
            with Progress(f"writing {settings.format}"):
                form.write(model, facts, file, calibration)
        except UserError:
            raise
        except Exception as error:  # exporters raise errors of many types, with pages of text
            raise RunFailed(f"{settings.format} cannot take this model: {_first(error)}") from error
        with Progress(f"comparing {len(clips)} clips with the model"):
            parity = compare(logits_of(model, clips), logits_of_file(file, form.runtime, clips))
        say(f"parity in {form.runtime}, {settings.dtype}, {parity.in_words()}")
        failure = parity.failure(settings.dtype)
        if failure is not None:
            raise RunFailed(f"parity failed: {failure}; {settings.out} is not written")
        size = _move(folder, file, Path(settings.out), as_folder=_is_folder(settings))
    return Exported(Path(settings.out), size, facts, parity)


# ---- what the file says, and is tried on --------------------------------------------------------


def _facts(found: Classifier, settings: ExportSettings, *, calibrated_on: str) -> Facts:
    return Facts(
        kind=settings.format,
        model=found.name,
        weights=os.path.basename(found.weights),  # not where it lies on this machine
        classes=tuple(found.classes),
        spec=found.spec,
        clip_shape=found.clip_shape,
        batch=settings.batch,
        dtype=settings.dtype,
        multi_label=found.multi_label,
        licence=found.licence,
        calibrated_on=calibrated_on,
        version=__version__,
    )


def _as_taken(found: Classifier, clips: Tensor) -> Tensor:
    """Clips [N, 3, T, H, W] as the model takes them: [N, 3, H, W] for an image model."""
    return clips.squeeze(2) if takes_images(found.model) else clips


def _calibration(found: Classifier, settings: ExportSettings, say: Say) -> tuple[list[Tensor], str]:
    """Batches to measure the ranges of int8 on, and what they are; none for other dtypes."""
    if settings.dtype != "int8":
        return [], ""
    if settings.calibrate:
        clips = video_clips(settings.calibrate, found.spec, CALIBRATED_ON, say)
        source = f"{len(clips)} clips of given videos"
    else:
        clips = generated_clips(found.spec, CALIBRATED_ON, CALIBRATED_FROM)
        source = f"{len(clips)} generated clips"
        say(
            f"int8 ranges are measured on {source} of moving cameras; clips like those that the "
            "model will see give better ones: --calibrate VIDEOS"
        )
    size = settings.batch or 1
    short = -len(clips) % size
    clips = _as_taken(found, torch.cat([clips, clips[-1:].expand(short, *clips.shape[1:])]))
    return list(clips.split(size)), source


def _first(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


# ---- files --------------------------------------------------------------------------------------


def check_out(settings: ExportSettings) -> None:
    """Raise UserError for an output that could not be written at the end."""
    out = Path(settings.out)
    parent = out.absolute().parent
    if not parent.is_dir():
        raise UserError(f"--out {settings.out}: there is no folder {parent}")
    if not os.access(parent, os.W_OK):
        raise UserError(f"--out {settings.out}: no permission to write into {parent}")
    if _is_folder(settings) and out.exists() and not out.is_dir():
        raise UserError(f"--out {settings.out} is a file; name a folder, or a file X.xml")
    if not _is_folder(settings) and out.is_dir():
        raise UserError(f"--out {settings.out} is a folder; name a file")


def _is_folder(settings: ExportSettings) -> bool:
    """Whether --out names a folder."""
    return bool(FORMATS[settings.format].main_file) and not Path(settings.out).suffix


def _main_name(settings: ExportSettings) -> str:
    main = FORMATS[settings.format].main_file
    return main if _is_folder(settings) else Path(settings.out).name


@contextmanager
def _workplace(out: str) -> Iterator[Path]:
    """A temporary folder beside the output, from which files can be renamed."""
    place = Path(out).absolute()
    with explained(out):
        folder = tempfile.mkdtemp(prefix=f".{place.name[:100]}.", suffix=".tmp", dir=place.parent)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, main: Path, out: Path, *, as_folder: bool) -> int:
    """Move the written files into place, the one that names the others last; returns their size."""
    target = out if as_folder else out.parent
    with explained(out):
        target.mkdir(exist_ok=True)
        written = sorted(folder.iterdir(), key=lambda file: file == main)
        size = sum(file.stat().st_size for file in written)
    for file in written:
        put_in_place(file, target / file.name)
    return size


def with_licence(found: Classifier, licence: str) -> Classifier:
    """Return the classifier with a licence that the user gave, if one was given."""
    return replace(found, licence=licence) if licence else found
