"""Check whether this machine is ready, and what to install.

    hiera-video doctor
    hiera-video doctor > report.txt       to send with a question
    hiera-video doctor --measure          which runtime is the fastest here
    hiera-video doctor --measure --weights best.pyth

    ok    works
    warn  not required, or slower; the report says what would help
    FAIL  required, and missing or broken

Exit codes: 0 everything required works; 1 something required does not; 2 wrong use.

Every check runs in a child process with a time limit, so that a library that crashes or hangs
becomes one line of the report. Nothing is downloaded, and no files are left behind. At the top only
the standard library is imported, because the doctor must run when everything else is missing.

--measure checks nothing. It times one clip in PyTorch, ONNX Runtime and OpenVINO, where they are
installed, and remembers the result in the cache: labelling such weights on this machine then takes
the fastest, unless --runtime names another. Weights are exported for it once, into the cache.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Literal

import hiera_video
from hiera_video.errors import UserError, first_line, kind_and_line
from hiera_video.files import free_bytes
from hiera_video.video.processes import usable_cores

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the report, and advice."""

    level: str
    """OK, WARN or FAIL."""
    text: str
    advice: str = ""
    broken: tuple[str, ...] = ()
    """Modules that cannot be imported; checks that need them are skipped."""


@dataclass(frozen=True)
class Check:
    """One section of the report."""

    title: str
    """Heading; empty to continue the section before."""
    run: Callable[[], list[Finding]]
    needs: tuple[str, ...] = ()
    """Modules without which the check is skipped; an earlier check has reported them."""
    broken_by_crash: tuple[str, ...] = ()
    """Modules that count as broken if this check crashes."""
    subject: str = ""
    """What has crashed, if the title does not say it."""
    seconds: float = 120.0
    """Time limit, after which the child process is killed."""


def main(checks: Sequence[Check] | None = None) -> int:
    """Print the report; returns 0 if everything required works, else 1."""
    print(f"hiera_video {hiera_video.__version__} in {Path(hiera_video.__file__).parent}")
    findings: list[Finding] = []
    unusable: set[str] = set()
    for check in CHECKS if checks is None else checks:
        if check.title:
            print(f"\n{check.title}", flush=True)
        for finding in _run(check, unusable):
            findings.append(finding)
            unusable.update(finding.broken)
            _show(finding)
    failed, warned = (sum(f.level == level for f in findings) for level in (FAIL, WARN))
    print()
    if failed:
        print(f"{failed} failed, {_warnings(warned)}: see -> above")
        return 1
    print("everything required works" + (f", {_warnings(warned)}: see -> above" if warned else ""))
    return 0


def measure(weights: str) -> int:
    """Find the fastest runtime for weights on this machine; returns the exit code."""
    from hiera_video.export.timing import measure_runtimes

    return measure_runtimes(weights, functools.partial(print, flush=True))


def _warnings(count: int) -> str:
    return f"{count} warning" if count == 1 else f"{count} warnings"


def _show(finding: Finding) -> None:
    print(f"  {finding.level:4}  {finding.text}")
    for line in finding.advice.splitlines():
        print(f"        -> {line}")
    sys.stdout.flush()


# ---- one check in a child process ---------------------------------------------------------------


def _run(check: Check, unusable: set[str]) -> list[Finding]:
    missing = sorted(unusable & set(check.needs))
    if missing:
        return [Finding(FAIL, f"skipped, needs {', '.join(missing)}")]
    if "torch" in check.needs:
        importlib.import_module("torch")  # once, for all child processes
    outcome, output = _in_child(check.run, check.seconds)
    if isinstance(outcome, list):
        return outcome
    last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")
    printed = f"; last output: {last[:200]}" if last else ""
    subject = f"{check.subject} " if check.subject else ""
    return [Finding(FAIL, f"{subject}{outcome}{printed}", broken=check.broken_by_crash)]


def _in_child(work: Callable[[], object], seconds: float) -> tuple[object, str]:
    """Call `work` in a child process.

    Returns (its result, or a sentence on why there is none; everything that it printed).
    """
    # Forked, not spawned: the child need not import again what the parent has imported. This is
    # safe because the parent has neither threads nor CUDA.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        child = context.Process(target=_child, args=(work, sender, output.fileno()))
        sys.stdout.flush()
        child.start()
        sender.close()
        try:
            outcome = receiver.recv() if receiver.poll(seconds) else f"no answer in {seconds:g} s"
        except EOFError:  # the child has ended without a result
            child.join()
            outcome = f"crashed ({_signal_or_exit_code(child.exitcode)})"
        child.kill()  # the result is here, and libraries may hang at exit
        child.join()
        return outcome, _contents(output)


def _child(work: Callable[[], object], sender: Connection, output: int) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        sender.send(work())
    except Exception as error:
        sender.send(kind_and_line(error))


def _contents(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _signal_or_exit_code(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


# ---- Python and packages ------------------------------------------------------------------------

PYTHON = ((3, 10), (3, 12))
"""Oldest and newest version that the package is tested with."""

REQUIRED = {
    "torch": ("torch", "2.8"),
    "torchvision": ("torchvision", "0.23"),
    "numpy": ("numpy", "1.26"),
    "av": ("av", "17.1"),
    "pytorchvideo": ("pytorchvideo", "0.1.5"),
    "fvcore": ("fvcore", "0.1.5"),
    "iopath": ("iopath", "0.1.10"),
    "pillow": ("PIL", "10.1"),
    "PyYAML": ("yaml", "6.0.1"),
    "simplejson": ("simplejson", "3.19.1"),
    "matplotlib": ("matplotlib", "3.8"),
    "tqdm": ("tqdm", "4.66"),
    "jinja2": ("jinja2", "3.1.6"),
}
"""Distribution -> (module, least version), as in setup.py."""

OPTIONAL = {
    "pyarrow": "writes and reads tables of features",
    "ray": "labels data sets, hiera-video label-dataset",
    "scikit-learn": "fits the probes and places the maps of hiera-video search",
    "umap-learn": "places maps of videos, --map-method umap",
    "safetensors": "reads .safetensors weights",
    "tensorboard": "TENSORBOARD.ENABLE writes for it",
    "transformers": "has VideoMAE, the videomae_* models",
    "onnxruntime": "runs exported .onnx files, --runtime onnx",
    "openvino": "runs exported models, --runtime openvino",
    "gradio": "serves hiera-video app",
}


def packages() -> list[Finding]:
    """Check the Python version, and import every required package."""
    findings = [_python()]
    working = []
    for name, (module, least) in REQUIRED.items():
        finding = _package(name, module, least)
        if finding.level == OK:
            working.append(finding.text)
        else:
            findings.append(finding)
    if working:
        findings.insert(1, Finding(OK, ", ".join(working)))
    for name, what in OPTIONAL.items():
        version = _version(name)
        findings.append(
            Finding(OK, f"{name} {version} (optional)")
            if version
            else Finding(OK, f"no {name} (optional: {what})")
        )
    return findings


def _python() -> Finding:
    oldest, newest = PYTHON
    version = sys.version_info[:2]
    text = f"Python {sys.version.split()[0]} ({sys.executable})"
    allowed = f"{oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}"
    if oldest <= version <= newest:
        return Finding(OK, text)
    return Finding(FAIL, text, f"use Python {allowed}: a new environment of one of them")


def _package(name: str, module: str, least: str) -> Finding:
    version = _version(name)
    wanted = f'pip install "{name}>={least}"' if least else f"pip install {name}"
    if name == "pytorchvideo":
        wanted = "pip install pytorchvideo==0.1.5"
    try:
        _import(module)
    except Exception as error:  # a library that does not load can raise anything
        if version is None:
            return Finding(FAIL, f"{name} is missing", wanted, broken=(module,))
        advice = "" if isinstance(error, UserError) else f"install it again: {wanted}"
        text = f"{name} {version} does not import: {first_line(error)}"
        return Finding(FAIL, text, advice, broken=(module,))
    if version is not None and _numbers(version) < _numbers(least):
        return Finding(FAIL, f"{name} {version} is too old: at least {least} is required", wanted)
    return Finding(OK, f"{name} {version or '?'}")


def _import(module: str) -> None:
    from hiera_video import compat

    if module == "torchvision":
        compat.ensure_torchvision()
    elif module == "pytorchvideo":
        compat.ensure_pytorchvideo()
    else:
        importlib.import_module(module)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Parse a version: (2, 14, 1) for "2.14.1+cpu"."""
    release = re.sub(r"[^\d.].*", "", version)
    return tuple(int(part) for part in release.split(".") if part)


# ---- decoders -----------------------------------------------------------------------------------

_FRAMES, _WANTED = 12, (0, 7, 11)
_CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4")


def decoder(name: str) -> list[Finding]:
    """Decode a clip that is made here with one library; PyAV is required, the others are not."""
    from hiera_video.video.decode import read_frames
    from hiera_video.video.decoders import available_decoders

    needed = name == "pyav"
    reason = available_decoders()[name]
    if reason is not None:
        return [Finding(FAIL if needed else WARN, f"{name} {reason}", _decoder_advice(name))]
    with tempfile.TemporaryDirectory(prefix="hiera_video_doctor_") as folder:
        clip = _write_clip(Path(folder) / "clip.mp4")
        frames = read_frames(clip, _WANTED, decoder=name)
    means = frames.float().mean(dim=(1, 2, 3)).tolist()
    wrong = [i for i, mean in zip(_WANTED, means, strict=True) if abs(mean - _grey(i)) > 5]
    version = _version({"pyav": "av"}.get(name, name)) or "?"
    if wrong:
        text = f"{name} {version} returns wrong frames (frame {wrong[0]} of a test clip)"
        advice = "" if needed else f"pip uninstall {name}: it is used for files that it can decode"
        return [Finding(FAIL, text, advice), *(_codecs() if needed else [])]
    return [
        Finding(OK, f"{name} {version} decodes {len(_WANTED)} frames of a test clip"),
        *(_codecs() if needed else []),
    ]


def _grey(index: int) -> int:
    return 40 + 15 * index


def _write_clip(path: Path) -> Path:
    """Write a clip in which every frame has one grey, each brighter than the one before."""
    import av
    import numpy as np

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(_FRAMES):
            picture = np.full((64, 64, 3), _grey(i), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def _codecs() -> list[Finding]:
    """Warn about common codecs that PyAV's FFmpeg lacks."""
    import av

    def has(codec: str, mode: Literal["r", "w"]) -> bool:
        try:
            av.codec.Codec(codec, mode)
        except av.codec.codec.UnknownCodecError:
            return False
        return True

    missing = [codec for codec in _CODECS if not has(codec, "r")]
    advice = 'the wheels have them all: pip install --force-reinstall "av>=17.1"'
    findings = []
    if missing:
        findings.append(Finding(WARN, f"PyAV cannot decode {', '.join(missing)}", advice))
    if not has("libx264", "w"):
        text = "PyAV cannot write H.264: no generated sets, no hiera-video prepare --transcode"
        findings.append(Finding(WARN, text, advice))
    return findings


def _decoder_advice(name: str) -> str:
    if name == "pyav":
        return 'pip install "av>=17.1"'
    if _version(name) is None:
        least = {"torchcodec": "0.15", "decord": "0.6"}[name]
        ffmpeg = " and FFmpeg: apt-get install ffmpeg" if name == "torchcodec" else ""
        return f'not required, PyAV is enough; to install it: pip install "{name}>={least}"{ffmpeg}'
    if name == "torchcodec":
        return (
            "not required, PyAV is enough; it needs torchcodec 0.15 or newer, torch 2.11 or newer, "
            "and the system's FFmpeg (apt-get install ffmpeg)"
        )
    return "not required, PyAV is enough"


# ---- the machine --------------------------------------------------------------------------------

LEAST_SHARED_MEMORY = 512 << 20
"""Loader workers pass batches through /dev/shm: a few, of clips of 16 x 224 x 224 x 3 floats."""


def machine() -> list[Finding]:
    """Report CPU cores, memory, shared memory and GPUs."""
    cores = usable_cores()
    total, free = _memory()
    findings = [Finding(OK, f"{cores} CPU cores, {_gib(free)} of {_gib(total)} of memory free")]
    with contextlib.suppress(OSError):
        shared = shutil.disk_usage("/dev/shm")
        if shared.free < LEAST_SHARED_MEMORY:
            text = f"/dev/shm has {_gib(shared.free)} free: loader workers may die of a bus error"
            advice = "docker run --shm-size 8g (or --ipc host), or DATA_LOADER.NUM_WORKERS 0"
            findings.append(Finding(WARN, text, advice))
        else:
            findings.append(Finding(OK, f"/dev/shm, {_gib(shared.free)} free"))
    return findings + _cuda()


def _memory() -> tuple[int, int]:
    """(total, free) bytes of memory; of the container if it has a limit."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = page * os.sysconf("SC_AVPHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        free = int(available[1]) * 1024 if available else free
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit < total:
            total, free = limit, min(free, max(0, limit - used))
    return total, free


def _cuda() -> list[Finding]:
    import torch

    built = torch.version.cuda
    has_gpu = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None
    if not torch.cuda.is_available():
        if built is None and has_gpu:
            text = f"there is an NVIDIA GPU, but torch {torch.__version__} is built for CPUs"
            advice = "install torch and torchvision for CUDA: https://pytorch.org/get-started"
            return [Finding(WARN, text, advice)]
        if has_gpu:
            text = f"there is an NVIDIA GPU, but torch (CUDA {built}) cannot use it"
            advice = "check nvidia-smi: the driver must be new enough for that CUDA version"
            return [Finding(WARN, text, advice)]
        return [Finding(OK, "no CUDA: runs on the CPU, which is slow for training")]
    findings = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: MIXED_PRECISION fp16"
        text = f"CUDA {built}, GPU {i}: {torch.cuda.get_device_name(i)}, "
        text += f"{_gib(free)} of {_gib(total)} free, {bf16}"
        findings.append(Finding(OK, text))
    return findings


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


# ---- one forward --------------------------------------------------------------------------------

MODEL = "hiera_tiny_16x224"
"""The smallest video classifier."""


def forward() -> list[Finding]:
    """Run the smallest model on one random clip, on the CPU and on the GPU if there is one."""
    import torch

    from hiera_video import build_model

    torch.manual_seed(0)
    model = build_model(MODEL).eval()
    clip = torch.randn(1, 3, 16, 224, 224)
    findings: list[Finding] = []
    reference = None
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        model, clip = model.to(device), clip.to(device)
        start = time.perf_counter()
        with torch.inference_mode():
            logits = model(clip).float().cpu()
        seconds = time.perf_counter() - start
        if tuple(logits.shape) != (1, 400) or not torch.isfinite(logits).all():
            return [
                *findings,
                Finding(FAIL, f"{MODEL} on {device} does not return finite (1, 400) logits"),
            ]
        if reference is not None and not torch.allclose(logits, reference, rtol=0.05, atol=0.05):
            off = (logits - reference).abs().max().item()
            text = f"{MODEL} on {device} differs from the CPU by {off:.3g}"
            return [*findings, Finding(FAIL, text, "the driver or torch's CUDA build is broken")]
        reference = logits
        how = "the first call" if device == "cuda" else f"threads: {torch.get_num_threads()}"
        findings.append(Finding(OK, f"{MODEL} on {device}: {seconds:.1f} s per clip ({how})"))
    return findings


# ---- folders and weights ------------------------------------------------------------------------

LEAST_FREE = 2 << 30
"""A run keeps a few checkpoints of about 600 MB each (Hiera-B with its optimizer)."""


def folders() -> list[Finding]:
    """Check that the folders that are written to are writable and have free space."""
    from hiera_video.models.weights.download import cache_folder

    return [
        _folder(cache_folder(), "downloaded weights (TORCH_HOME)"),
        _folder(Path(tempfile.gettempdir()), "temporary files (TMPDIR)"),
        _folder(Path.cwd(), "this folder, where runs/ goes (OUTPUT_DIR)"),
    ]


def _folder(folder: Path, what: str) -> Finding:
    existing = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    text = f"{what}: {folder}" + ("" if folder.is_dir() else ", created when first needed")
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = free_bytes(existing)
    except OSError as error:
        return Finding(WARN, f"{text}: not writable ({error.strerror})", "choose another folder")
    if free < LEAST_FREE:
        return Finding(
            WARN, f"{text}: only {_gib(free)} free", "free some space, or choose another"
        )
    return Finding(OK, f"{text}, {_gib(free)} free")


DEFAULT = ("hiera_base_16x224", "mae_k400_ft_k400")
"""The weights that the demo and configs/finetune_folder.yaml start from."""


def weights() -> list[Finding]:
    """Report which published weights are in the cache and complete."""
    from hiera_video.models.weights.download import cached_path
    from hiera_video.models.weights.published import PUBLISHED

    findings, complete = [], []
    for row in PUBLISHED.values():
        path = cached_path(row.url)
        if not path.is_file():
            continue
        problem = _not_weights(path)
        if problem is None:
            complete.append(str(row))
        else:
            advice = f"delete it, then it is downloaded again: {path}"
            findings.append(Finding(WARN, f"{row} is damaged: {problem}", advice))
    if complete:
        findings.append(Finding(OK, f"cached: {', '.join(complete)}"))
    row = PUBLISHED[DEFAULT]
    path = cached_path(row.url)
    if not path.is_file():
        text = f"not cached: {row}, from which the demo and fine-tuning start"
        advice = f"downloaded when first needed; without a network, copy {row.url}\nto {path}"
        findings.append(Finding(WARN, text, advice))
    return findings


def _not_weights(path: Path) -> str | None:
    """Why a cached file is not a checkpoint, judging by both of its ends; None if it may be one."""
    from hiera_video.models.weights.file import not_a_checkpoint

    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(512)
        file.seek(max(0, size - (1 << 16)))
        end = file.read()
    if start.startswith(b"PK\x03\x04") and b"PK\x05\x06" not in end:
        return "its end is missing"  # a zip file ends with its table of contents
    return not_a_checkpoint(start, size)


def _decoder_checks() -> Iterator[Check]:
    for number, name in enumerate(("torchcodec", "pyav", "decord")):
        title = "Decoders, in the order they are tried" if number == 0 else ""
        needs = ("torch", "av", "fvcore")
        yield Check(title, functools.partial(decoder, name), needs=needs, subject=name)


CHECKS = (
    Check("Python and packages", packages, broken_by_crash=tuple(m for m, _ in REQUIRED.values())),
    *_decoder_checks(),
    Check("Machine", machine, needs=("torch",)),
    Check("One forward", forward, needs=("torch", "fvcore"), seconds=300),
    Check("Folders", folders, needs=("torch", "iopath")),
    Check("Published weights", weights, needs=("torch", "iopath")),
)
