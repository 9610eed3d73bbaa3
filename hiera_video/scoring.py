"""Class scores of a video from its views: softmax per view, then the mean.

Labelling and testing share this and `data/views.py`, which reads the views. Logits are never
averaged: the published numbers average probabilities, and one view with large logits would outvote
the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import UserError

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp16": torch.float16,
    "float16": torch.float16,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}


def as_they_are(clips: Tensor) -> Tensor:
    """Return the clips: they are float32 and normalised."""
    return clips


@dataclass(frozen=True)
class ScoreSettings:
    """How clips become scores."""

    batch_size: int
    """Most clips per forward pass; any value gives the same scores."""
    dtype: torch.dtype = torch.float32
    """What the forward pass computes in (autocast); softmax and mean are float32 always."""
    multi_label: bool = False
    """Each class is a yes or no of its own: sigmoid in place of softmax."""
    prepare: Callable[[Tensor], Tensor] = as_they_are
    """Makes what the model takes, float32 [B, 3, T, H, W], of clips on the device."""


def view_scores(
    model: nn.Module,
    clips: Tensor,
    settings: ScoreSettings,
    *,
    device: torch.device | str = "cpu",
    on_views: Callable[[int], None] | None = None,
) -> Tensor:
    """Score one video from all its views: float32 [num_classes], on the CPU.

    The mean of `clip_scores` over the views; the arguments are the same.
    """
    return clip_scores(model, clips, settings, device=device, on_views=on_views).mean(dim=0)


@torch.inference_mode()
def clip_scores(
    model: nn.Module,
    clips: Tensor,
    settings: ScoreSettings,
    *,
    device: torch.device | str = "cpu",
    on_views: Callable[[int], None] | None = None,
    queued: Callable[[], None] = lambda: None,
) -> Tensor:
    """Score clips one by one: float32 [V, num_classes], on the CPU.

    Clips with equal pixels (the crops of a square video, the views of a short one) go through the
    model once.

    Args:
        model: in eval mode and on `device`; returns logits [B, num_classes].
        clips: [V, 3, T, H, W], of which `settings.prepare` makes what the model takes. An image
            model (`model.input_size` of two numbers) gets [V, 3, H, W]; T must then be 1.
        settings: batch size, number format, softmax or sigmoid.
        device: where the model is.
        on_views: called after each forward pass with the number of clips that it scored.
        queued: called once all forward passes are queued on the device, before the result is
            copied to the CPU: the time to fetch the next batch.

    Raises ValueError for a model in training mode.
    """
    if model.training:
        raise ValueError("scores need model.eval(): dropout would make them random")
    device = torch.device(device)
    distinct, row_of = distinct_clips(clips)
    rows = []
    for chosen in distinct.split(settings.batch_size):
        batch = clips if len(chosen) == len(clips) else clips[chosen.to(clips.device)]
        rows.append(score_batch(model, batch.to(device, non_blocking=True), settings))
        if on_views is not None:
            rows[-1] = rows[-1].cpu()  # waits, so that the clips are done and not only queued
            on_views(int(torch.isin(distinct[row_of], chosen).sum()))
    queued()
    return torch.cat(rows).cpu()[row_of]


@torch.inference_mode()
def score_batch(model: nn.Module, clips: Tensor, settings: ScoreSettings) -> Tensor:
    """Score clips [B, 3, T, H, W] in one forward pass: float32 [B, num_classes], on their device.

    Nothing waits for a GPU.
    """
    device, dtype = clips.device, settings.dtype
    clips = settings.prepare(clips)
    if takes_images(model):
        clips = clips.squeeze(2)
    with (
        torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
        tf32_products(device),
    ):
        logits: Tensor = model(clips)
    logits = logits.float()
    return logits.sigmoid() if settings.multi_label else logits.softmax(dim=-1)


def distinct_clips(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Find clips with equal pixels: int64 [D], the first clip of each set, and int64 [V], for each
    clip its position among those.

    Sums over all pixels find the candidates cheaply; candidates are then compared whole.
    """
    sums = _sums(clips).tolist()
    firsts: list[int] = []
    row_of = []
    for i, total in enumerate(sums):
        same = (
            row
            for row, first in enumerate(firsts)
            if sums[first] == total and torch.equal(clips[first], clips[i])
        )
        row = next(same, len(firsts))
        if row == len(firsts):
            firsts.append(i)
        row_of.append(row)
    return torch.tensor(firsts), torch.tensor(row_of)


def _sums(clips: Tensor) -> Tensor:
    """A number for each clip [V, ...], the same for equal pixels: [V]."""
    # In the order of their memory: another one would cost a copy.
    order = sorted(range(1, clips.ndim), key=clips.stride, reverse=True)
    rows = clips.permute(0, *order).flatten(1)
    if rows.dtype == torch.uint8 and rows.shape[1] % 8 == 0 and rows.is_contiguous():
        rows = rows.view(torch.int64)  # eight pixels at once: a hundredth of the time
    return rows.sum(dim=1)


def takes_images(model: nn.Module) -> bool:
    """Return whether the model takes frames [B, 3, H, W] and not clips [B, 3, T, H, W]."""
    return len(getattr(model, "input_size", (0, 0, 0))) == 2


def require_fitting_clips(model: nn.Module, spec: ClipSpec) -> None:
    """Raise UserError where the model takes clips of another size than the sampling makes."""
    size = tuple(getattr(model, "input_size", ()))
    clip = (spec.num_frames, spec.crop_size, spec.crop_size)
    wanted = (1, *size) if takes_images(model) else size
    fits = wanted == clip
    if takes_any_crop(model):
        fits = wanted[0] == clip[0] and clip[1] >= max(wanted[1:])
    if size and not fits:
        larger = " or larger pictures" if takes_any_crop(model) else ""
        raise UserError(
            f"the model takes clips of {_by(wanted)} (frames x height x width){larger}, "
            f"the sampling makes {_by(clip)}"
        )


def takes_any_crop(model: nn.Module) -> bool:
    """Return whether the model takes larger frames than `input_size`, as convolutional ones do."""
    return getattr(model, "any_crop", False)


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def choose_device(name: str | torch.device) -> torch.device:
    """Return the device of a name: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1".

    Raises UserError for another name, or a GPU that is not there.
    """
    name = str(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number.isdigit() or name == "cuda"):
        raise UserError(f"device {name!r}; choose auto, cpu, cuda or one GPU by number, cuda:0")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = "no NVIDIA GPU is visible" if built else "this PyTorch is built without CUDA"
        raise UserError(f"device {name!r} is not available: {reason}; use --device cpu, or auto")
    if number and int(number) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UserError(f"device {name!r} is not available: GPUs 0 to {last}")
    return torch.device(name)


def choose_dtype(name: str | torch.dtype, device: torch.device) -> tuple[torch.dtype, str | None]:
    """Return the number format of a name, and a warning where it will be slow on this CPU.

    "auto" is float32 on a CPU; on a GPU it is bfloat16 if the GPU has it, else float16.
    Raises UserError for a format that is not in `DTYPES`.
    """
    name = next((short for short, known in DTYPES.items() if known == name), name)
    if name == "auto":
        if device.type != "cuda":
            return torch.float32, None
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16 if native else torch.float16), None
    if name not in DTYPES:
        raise UserError(f"dtype {str(name)!r}; choose auto, fp32, fp16 or bf16")
    dtype = DTYPES[name]
    if device.type == "cpu" and not native_on_cpu(dtype):
        return dtype, f"{name} is emulated on this CPU and will be very slow; fp32 is faster"
    return dtype, None


@contextlib.contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Let products of float32 on a GPU round their factors to TF32 (10 bits) inside the block.

    Eight times as fast on an A100, and as exact as float16: for what autocast leaves in float32,
    and for fp32. The environment variable NVIDIA_TF32_OVERRIDE=0 turns TF32 off.
    """
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def native_on_cpu(dtype: torch.dtype) -> bool:
    """Return whether this CPU has instructions for a number format; if not, it is emulated."""
    probes = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    if dtype not in probes:
        return True
    probe = getattr(torch.ops.mkldnn, probes[dtype], None)
    return bool(probe()) if probe is not None else False
