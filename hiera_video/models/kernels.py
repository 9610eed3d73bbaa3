"""Which of several kernels computes a layer: the fastest for its shape, measured on this machine.

On a GPU, PyTorch has several kernels for attention (flash, memory-efficient, cuDNN), and the stem
is a convolution or a matrix product. Which one is fastest depends on shape, number format and card.
The first call of a shape times them, in milliseconds, and the result is kept in `kernels.json` in
the cache folder.

Kernels differ in rounding only. Nothing is measured on a CPU, while a model is exported, and where
deterministic algorithms are asked for.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hiera_video import files
from hiera_video.errors import RunFailed

P = ParamSpec("P")
R = TypeVar("R")

MEASURED_ON = {"cuda"}
"""Kinds of devices whose kernels are measured."""

USUAL = "usual"
"""The kernel that PyTorch takes by itself."""

GAIN = 1.03
"""How much faster than the usual kernel another one must be."""

ATTENTION = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}

_ELEMENTS = 1 << 24
"""Most elements of a tensor that is measured with: larger batches behave like this one."""

_MATRIX_BYTES = 1 << 30
"""Largest matrix of pixels that a training step may keep for its backward pass."""


@dataclass(frozen=True)
class Layer:
    """What is computed, without its values: the key of a measurement."""

    kind: str
    """ "attention" or "stem"."""
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    """Number format that it computes in."""
    device: int
    """Number of the GPU; -1 for a CPU."""
    trained: bool
    """Whether the backward pass follows."""

    @property
    def where(self) -> torch.device:
        """The device."""
        return torch.device("cpu") if self.device < 0 else torch.device("cuda", self.device)

    def key(self) -> str:
        """Its name in the file: the machine, the versions, then the layer."""
        sizes = " ".join("x".join(map(str, shape)) for shape in self.shapes)
        way = "train" if self.trained else "infer"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{_machine(self.device)}: {self.kind} {sizes} {dtype} {way}"


@functools.lru_cache(maxsize=16)
def _machine(device: int) -> str:
    card = "cpu" if device < 0 else torch.cuda.get_device_name(device)
    cudnn = torch.backends.cudnn.version() if device >= 0 else None
    return f"{card}, torch {torch.__version__}, cudnn {cudnn}"


def _is_measured(tensor: Tensor) -> bool:
    return tensor.device.type in MEASURED_ON and not torch.compiler.is_exporting()


def _device_of(tensor: Tensor) -> int:
    return -1 if tensor.device.index is None else tensor.device.index


def _rounded(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape to measure with: its first dimension becomes the next power of two, so that a smaller
    last batch is seldom a new shape, and is cut where there are too many elements."""
    most = max(1, _ELEMENTS // max(1, math.prod(shape[1:])))
    return (min(1 << (shape[0] - 1).bit_length(), most), *shape[1:])


def constant_in_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Have torch.compile call a function once and keep its result.

    What `torch.compiler.assume_constant_result` does; but that one imports the whole compiler, a
    second and more of every start.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


# ---- attention ----------------------------------------------------------------------------------


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.scaled_dot_product_attention` by the fastest kernel for these shapes."""
    name = USUAL
    if bias is None and _is_measured(q):
        trained = torch.is_grad_enabled() and q.requires_grad
        name = attention_kernel(
            tuple(q.shape), tuple(k.shape), computed_in(q), _device_of(q), trained=trained
        )
    if name == USUAL:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    with sdpa_kernel(ATTENTION[name]):
        return F.scaled_dot_product_attention(q, k, v)


@constant_in_graphs
def attention_kernel(
    q: tuple[int, ...], k: tuple[int, ...], dtype: torch.dtype, device: int, *, trained: bool
) -> str:
    """Name the kernel for queries [B', h, Nq, d] and keys [B', h, Nk, d]: `USUAL`, or one of
    ATTENTION. `USUAL` wherever the caller has chosen kernels (`sdpa_kernel`)."""
    chosen = not (
        torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    )
    if chosen or torch.are_deterministic_algorithms_enabled():
        return USUAL
    batch = min(_rounded(q)[0], _rounded(k)[0])
    layer = Layer("attention", ((batch, *q[1:]), (batch, *k[1:])), dtype, device, trained)
    return remembered(layer, _attention_candidates)


def _attention_candidates(layer: Layer) -> dict[str, Callable[[], object]]:
    """Calls that attend with random numbers, by the name of their kernel."""
    q_shape, k_shape = layer.shapes
    generator = torch.Generator(layer.where).manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        batch, heads, tokens, width = shape  # in memory as a projection leaves them
        size = (batch, tokens, heads, width)
        numbers = torch.randn(size, generator=generator, device=layer.where).to(layer.dtype)
        return numbers.requires_grad_(layer.trained).transpose(1, 2)

    q, k, v = draw(q_shape), draw(k_shape), draw(k_shape)
    gradient = draw(q_shape).detach()

    def call(name: str) -> None:
        kernel = contextlib.nullcontext() if name == USUAL else sdpa_kernel(ATTENTION[name])
        with kernel:
            out = F.scaled_dot_product_attention(q, k, v)
            if layer.trained:
                torch.autograd.grad(out, (q, k, v), gradient)

    return {name: functools.partial(call, name) for name in (USUAL, *ATTENTION)}


# ---- stem ---------------------------------------------------------------------------------------

PRODUCT = "product"
"""The stem's convolution as one matrix product."""


def is_stem_a_product(pixels: Tensor, filters: Tensor, stride: Sequence[int]) -> bool:
    """Whether the stem is faster as a matrix product: pixels [B, C_in, ...], filters [C_out, C_in,
    *kernel]."""
    if not _is_measured(pixels):
        return False
    trained = torch.is_grad_enabled() and filters.requires_grad
    shapes = (tuple(pixels.shape), tuple(filters.shape), tuple(stride))
    dtype, device = computed_in(pixels), _device_of(pixels)
    return stem_kernel(shapes, dtype, device, trained=trained) == PRODUCT


@constant_in_graphs
def stem_kernel(
    shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, device: int, *, trained: bool
) -> str:
    """Name the kernel for pixels, filters and stride of these shapes: `USUAL` or `PRODUCT`."""
    if torch.are_deterministic_algorithms_enabled():
        return USUAL
    pixels, filters, stride = shapes
    cells = [
        (size - side) // step + 1
        for size, side, step in zip(pixels[2:], filters[2:], stride, strict=True)
    ]
    matrix = pixels[0] * math.prod(cells) * math.prod(filters[1:]) * dtype.itemsize
    if trained and matrix > _MATRIX_BYTES:
        return USUAL
    layer = Layer("stem", (_rounded(pixels), filters, stride), dtype, device, trained)
    return remembered(layer, _stem_candidates)


def _stem_candidates(layer: Layer) -> dict[str, Callable[[], object]]:
    pixel_shape, filter_shape, stride = layer.shapes
    generator = torch.Generator(layer.where).manual_seed(0)
    pixels, filters = (
        torch.randn(shape, generator=generator, device=layer.where).to(layer.dtype)
        for shape in (pixel_shape, filter_shape)
    )
    filters.requires_grad_(layer.trained)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]

    def call(function: Callable[[], Tensor]) -> None:
        out = function()
        if layer.trained:
            torch.autograd.grad(out, filters, torch.ones_like(out))

    ways = {
        USUAL: functools.partial(convolve, pixels, filters, None, stride),
        PRODUCT: functools.partial(as_product, pixels, filters, None, stride),
    }
    return {name: functools.partial(call, way) for name, way in ways.items()}


def as_product(
    pixels: Tensor, filters: Tensor, bias: Tensor | None, stride: Sequence[int]
) -> Tensor:
    """A convolution without padding as one matrix product: [B, C_in, ...] -> [B, C_out, ...].

    The same sums as the convolution in another order: equal but for the rounding of the number
    format. The windows are written out, [B * cells, C_in * kernel].
    """
    dims = filters.ndim - 2
    windows = pixels.to(computed_in(pixels))
    for d in range(dims):
        windows = windows.unfold(2 + d, filters.shape[2 + d], stride[d])
    rows = windows.movedim(1, 1 + dims).flatten(1 + dims)  # [B, *cells, C_in * kernel]
    return F.linear(rows, filters.flatten(1), bias).movedim(-1, 1)


def computed_in(tensor: Tensor) -> torch.dtype:
    """The number format of products of this tensor: its own, or that of autocast."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


# ---- measuring ----------------------------------------------------------------------------------

_known: dict[Layer, str] = {}
"""What this process has measured or read."""


def remembered(
    layer: Layer, candidates: Callable[[Layer], Mapping[str, Callable[[], object]]]
) -> str:
    """Return the fastest kernel for a layer, from memory, the file or a measurement."""
    if layer not in _known:
        key, path = layer.key(), files.cache_file("kernels.json")
        stored = files.read_measured(path, str).get(key)
        if stored is None:
            if layer.device >= 0 and torch.cuda.is_current_stream_capturing():
                return USUAL  # a CUDA graph is being recorded, in which nothing can be timed
            stored = _measured(layer, candidates)
            store_choice(path, key, stored)
        _known[layer] = stored if stored in (USUAL, PRODUCT, *ATTENTION) else USUAL
    return _known[layer]


def _measured(
    layer: Layer, candidates: Callable[[Layer], Mapping[str, Callable[[], object]]]
) -> str:
    """Measure; `USUAL` where there is no memory to do so."""
    gradients = torch.enable_grad() if layer.trained else torch.no_grad()
    with (
        warnings.catch_warnings(),
        torch.inference_mode(False),
        gradients,
        torch.autocast(layer.where.type, enabled=False),
    ):
        warnings.simplefilter("ignore")  # each kernel that cannot be used says why
        try:
            return fastest(candidates(layer), layer.where)
        except torch.OutOfMemoryError:
            return USUAL


def fastest(candidates: Mapping[str, Callable[[], object]], device: torch.device) -> str:
    """Time the calls in turns; return the fastest that works, the first unless one is faster by
    `GAIN`."""
    usable: dict[str, float] = {}
    for name, call in candidates.items():
        try:
            call()
            _seconds(call, device)
        except RuntimeError:  # not for this shape, this format or this card; or out of memory
            continue
        usable[name] = math.inf
    for _ in range(3):
        for name in usable:
            usable[name] = min(usable[name], _seconds(candidates[name], device))
    first = next(iter(candidates))
    if not usable:
        return first
    best = min(usable, key=lambda name: usable[name])
    if first in usable and usable[first] < GAIN * usable[best]:
        return first
    return best


def _seconds(call: Callable[[], object], device: torch.device, times: int = 5) -> float:
    """Seconds of a call, waiting for the device before and after."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        call()
    _wait(device)
    return (time.perf_counter() - began) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- the file -----------------------------------------------------------------------------------


def store_choice(path: Path, key: str, value: str) -> None:
    """Add a measurement to the file. If it cannot be written, the next process measures again."""
    with contextlib.suppress(RunFailed):
        files.add_measured(path, key, value)


def choices() -> list[str]:
    """List what this process uses: one line for each layer that was measured."""
    return [f"{layer.key()}: {name}" for layer, name in itertools.islice(_known.items(), 1000)]
