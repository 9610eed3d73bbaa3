"""The calls that are timed: a registered model, or the same model of another library, one setting.

A `Case` says what is called and how; a `CaseBuilder` builds it, with the weights and the input that
cases of one name share, and makes candidates of the cases.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hiera_video.benchmarks.machine import PURE
from hiera_video.benchmarks.measure import Candidate, CannotMeasure
from hiera_video.config import SolverConfig
from hiera_video.engine import optim
from hiera_video.errors import UserError, kind_and_line
from hiera_video.models import build_model
from hiera_video.models.contract import Autoencoder, VideoModel
from hiera_video.models.hiera import SIZES, VIDEO
from hiera_video.scoring import choose_dtype

OURS = "hiera_video"
REFERENCE = "hiera-transformer"
TIMM = "timm"
LEARNING_RATE = 1e-6
"""Of timed optimizer steps: small, as their gradients come from noise."""


@dataclass(frozen=True)
class Case:
    """What is called, and how. Plain values only, so that another process can build it too."""

    name: str
    implementation: str = OURS
    mode: str = "forward"
    """ "forward": evaluation, no gradients. "train": forward and backward."""
    dtype: str = "fp32"
    """fp32; bf16, fp16: autocast; bf16-pure, fp16-pure: the weights too (forward only)."""
    attention: str = "fused"
    """ "explicit": scores, softmax and values as separate products, as the paper's code had it."""
    compiled: str = ""
    """Mode of `torch.compile`; "" is eager."""
    batch: int = 1
    """Clips; a `Comparison` accepts "best" too, and finds that batch before it builds the case."""
    input_size: tuple[int, ...] | None = None
    """None: the model's own."""
    mask_ratio: float | None = None
    decode_ratio: float | None = None
    optimizer: bool = False
    """Whether a training step ends with one of AdamW, fused."""

    def overrides(self) -> dict[str, Any]:
        """Arguments of the builder."""
        settings = ("input_size", "mask_ratio", "decode_ratio")
        return {key: getattr(self, key) for key in settings if getattr(self, key) is not None}

    def facts(self) -> dict[str, Any]:
        """Columns of its row."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}

    @property
    def weights_key(self) -> tuple:
        """Cases with the same key can share one module."""
        pure = self.dtype if self.dtype.endswith(PURE) else ""
        return (self.name, self.implementation, *sorted(self.overrides().items()), pure)


# ---- building -----------------------------------------------------------------------------------


def build(case: Case) -> nn.Module:
    """The model of a case, with random weights, on the CPU.

    Raises:
        UserError: the library is not installed or has no such model.
    """
    if case.implementation == OURS:
        model = build_model(case.name, **case.overrides())
    elif case.implementation == REFERENCE:
        model = _build_reference(case)
    elif case.implementation == TIMM:
        model = _build_timm(case)
    else:
        raise UserError(f"no implementation {case.implementation!r} of {case.name}")
    return model


def counterparts(name: str) -> list[str]:
    """Other libraries that have the model of this name; prints why one is left out."""
    libraries: list[str] = []
    if not name.removeprefix("mae_").startswith("hiera_"):
        return libraries
    has = {REFERENCE: _reference_builder}
    if not name.startswith("mae_") and not name.endswith("x224"):
        has[TIMM] = _timm_builder  # it has image classifiers only
    for library, builder_of in has.items():
        try:
            builder_of(name)
        except UserError as error:
            print(f"{library}: left out, {error}")
        else:
            libraries.append(library)
    return libraries


def library_of(model: nn.Module) -> str:
    """The library that a model's network comes from, such as "torchvision"."""
    network = getattr(model, "network", model)
    return type(network).__module__.split(".")[0]


class ReferenceAutoencoder(nn.Module):
    """hiera-transformer's autoencoder called as ours: keep masks in, a loss out."""

    network: Any

    def __init__(self, network: nn.Module, *, mask_ratio: float) -> None:
        super().__init__()
        self.network, self.mask_ratio = network, mask_ratio

    def forward(self, clips: Tensor, keep: Tensor | None = None) -> SimpleNamespace:
        """Clips [B, C, ...] and keep bool [B, U] (None: draws one) -> `loss`."""
        return SimpleNamespace(loss=self.network(clips, self.mask_ratio, mask=keep)[0])

    def no_weight_decay(self) -> set[str]:
        """As published."""
        return {f"network.{name}" for name in self.network.no_weight_decay()}


def _reference_builder(name: str) -> Callable[..., nn.Module]:
    """hiera-transformer's class with the paper's sizes.

    Its own builders accept no other `input_size`. Raises UserError where it has no such model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from hiera import Hiera
            from hiera.hiera_mae import MaskedAutoencoderHiera
        except ImportError:
            raise UserError(f"it is not installed (pip install {REFERENCE}==0.1.4)") from None
    size, _, kind = name.removeprefix("mae_").removeprefix("hiera_").rpartition("_")
    if size not in SIZES or kind not in ("224", "16x224"):
        raise UserError(f"it has no {name}")
    settings = {**SIZES[size], **(VIDEO if kind == "16x224" else {})}
    if name.startswith("mae_"):
        return lambda **own: MaskedAutoencoderHiera(**{**settings, "q_pool": 2, **own})
    classes = 400 if kind == "16x224" else 1000
    return lambda **own: Hiera(**{**settings, "num_classes": classes, **own})


def _build_reference(case: Case) -> nn.Module:
    size = {} if case.input_size is None else {"input_size": case.input_size}
    network = _reference_builder(case.name)(**size)
    if not case.name.startswith("mae_"):
        return network
    ratio = case.mask_ratio
    if ratio is None:  # the library's models have none; ours has that of the recipe
        with torch.device("meta"):
            ratio = as_autoencoder(build_model(case.name)).mask_ratio
    return ReferenceAutoencoder(network, mask_ratio=ratio)


def _timm_builder(name: str) -> Callable[..., nn.Module]:
    try:
        import timm
    except ImportError:
        raise UserError("it is not installed (pip install timm)") from None
    if name not in timm.list_models("hiera_*_224"):
        raise UserError(f"it has no {name}")
    return functools.partial(timm.create_model, name, pretrained=False)


def _build_timm(case: Case) -> nn.Module:
    size = {} if case.input_size is None else {"img_size": case.input_size}
    return _timm_builder(case.name)(**size)


def copy_weights(ours: nn.Module, theirs: nn.Module, implementation: str) -> None:
    """Load the weights of our model into that of another library; every tensor must fit."""
    state = ours.state_dict()
    if implementation == TIMM:
        from timm.models.hiera import checkpoint_filter_fn

        state = checkpoint_filter_fn(state, theirs)
    getattr(theirs, "network", theirs).load_state_dict(state, strict=True)


def build_with_noise(case: Case) -> nn.Module:
    """Our model of a case with noise on its weights, the same in every call; see `add_noise`."""
    torch.manual_seed(0)
    return add_noise(build(case))


@torch.no_grad()
def add_noise(model: nn.Module) -> nn.Module:
    """Add noise to every parameter.

    With initial ones (zero biases, tiny heads) even wrong code would give equal outputs.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.add_(noise, alpha=0.1 if parameter.ndim <= 1 else 0.02)
    return model


def check_agreement(
    name: str, ours: nn.Module, theirs: nn.Module, *, implementation: str, clips: Tensor
) -> float:
    """Check that two implementations compute the same; returns their relative difference.

    Losses may differ by 1e-5 of their size, logits by 1e-4 of the largest. Checked on the CPU,
    whatever device is measured: a GPU may round to TF32 in one of them only.

    Raises:
        UserError: if the difference is larger.
    """
    keep = as_autoencoder(ours).random_keep(len(clips)) if is_autoencoder(ours) else None
    with torch.inference_mode():
        mine, other = (outcome(m.eval(), clips, keep) for m in (ours, theirs))
    if keep is None and implementation == REFERENCE:
        mine = mine.softmax(-1)  # its evaluation mode gives probabilities
    error = ((mine - other).abs().max() / other.abs().max()).item()
    if not error <= (1e-4 if keep is None else 1e-5):
        raise UserError(
            f"{name}: ours and {implementation}'s differ by {error:.1e}; nothing to compare"
        )
    return error


def is_autoencoder(model: nn.Module) -> bool:
    """Whether the model draws masks and returns a loss."""
    return hasattr(model, "mask_ratio")


def as_autoencoder(model: nn.Module) -> Autoencoder:
    """The model, for the type checker, where `is_autoencoder` holds or must."""
    return cast(Autoencoder, model)


def outcome(model: nn.Module, clips: Tensor, keep: Tensor | None = None) -> Tensor:
    """Logits of a classifier, the loss of an autoencoder."""
    out = model(clips) if keep is None else model(clips, keep)
    return out.loss if hasattr(out, "loss") else out


# ---- one call -----------------------------------------------------------------------------------


def _forward_fused(model: nn.Module, clips: Tensor) -> Tensor:
    return outcome(model, clips)


def _forward_explicit(model: nn.Module, clips: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return outcome(model, clips)


@contextlib.contextmanager
def _products_of_halves() -> Iterator[None]:
    """Compute the separate products of attention in the number format of the model; PyTorch would
    otherwise compute those of bf16 and fp16 in float32. Not part of what is compiled."""
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


FORWARD = {"fused": _forward_fused, "explicit": _forward_explicit}
"""Two functions instead of one with a flag: torch.compile keeps its code by function, and does not
compile again for another kind of attention."""


class Step:
    """One call of a case, without arguments: a forward pass, or a training step.

    Autoencoders draw their mask in the call, as in training.
    """

    def __init__(self, case: Case, model: nn.Module, clips: Tensor) -> None:
        self.case, self.model, self.clips = case, model, clips
        self.dtype = torch_dtype(case.dtype, clips.device)
        self.autocast = self.dtype != torch.float32 and not case.dtype.endswith(PURE)
        self.forward = FORWARD[case.attention]
        self.labels = torch.arange(clips.shape[0], device=clips.device)
        self.optimizer = build_optimizer(model) if case.optimizer else None
        self.on_part: Callable[[str], None] = lambda part: None
        """Called with "start", with the name of each part that ends in this class, and "end"."""
        if case.compiled:
            self._compile()

    def __call__(self) -> None:
        """Run it; on a GPU, without waiting for the result."""
        if self.case.mode == "train":
            self.train()
        else:
            self.evaluate()

    def evaluate(self) -> None:
        """A forward pass in evaluation mode."""
        self.model.eval()
        with torch.inference_mode(), self._precision():
            self.forward(self.model, self.clips)

    def train(self) -> None:
        """Forward, loss, backward and, if the case has an optimizer, its step."""
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        self.on_part("start")
        with self._precision():
            out = self.forward(self.model, self.clips)
            loss = out if out.ndim == 0 else F.cross_entropy(out.float(), self._labels(out))
        self.on_part("loss")
        loss.backward()
        self.on_part("stem backward")
        if self.optimizer is not None:
            self.optimizer.step()
            self.on_part("optimizer")
        self.on_part("end")

    def _labels(self, logits: Tensor) -> Tensor:
        return self.labels % logits.shape[1]

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        with _products_of_halves():
            if not self.autocast:
                yield
                return
            with torch.autocast(self.clips.device.type, dtype=self.dtype):
                yield

    def _compile(self) -> None:
        # beyond this limit, torch would run uncompiled without a warning
        torch._dynamo.config.recompile_limit = 1000
        torch._dynamo.config.accumulated_recompile_limit = 1000
        mode = self.case.compiled
        compiled = torch.compile(self.forward, dynamic=False, mode=mode)

        def forward(model: nn.Module, clips: Tensor) -> Tensor:
            if clips.is_cuda:
                torch.compiler.cudagraph_mark_step_begin()
            return compiled(model, clips)

        self.forward = forward


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with the settings of pretraining, fused."""
    groups = optim.parameter_groups(model, weight_decay=0.05)
    optimizer = optim.build_optimizer(groups, SolverConfig(betas=(0.9, 0.95)), fused=True)
    optim.set_lr(optimizer, LEARNING_RATE)
    return optimizer


def torch_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype of a name such as "bf16" or "bf16-pure"."""
    return choose_dtype(name.removesuffix(PURE), device)[0]


# ---- counting -----------------------------------------------------------------------------------


def multiply_adds(case: Case) -> float:
    """Multiply-adds of one call on one clip, in 1e9, with attention and backward pass.

    Counted on the meta device, without computing, where the model allows it; otherwise in one real
    call.
    """
    single = replace(case, batch=1, optimizer=False, attention="explicit", compiled="")
    try:
        with torch.device("meta"):
            return _count(single, build(single), torch.device("meta"))
    except (RuntimeError, NotImplementedError):  # it reads values, which meta tensors do not have
        return _count(single, build(single), torch.device("cpu"))


def parameter_count(case: Case) -> int:
    """Parameters of a case's model."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(case).parameters())


def _count(case: Case, model: nn.Module, device: torch.device) -> float:
    clips = torch.zeros(1, 3, *model_input_size(case, model), device=device)
    step = Step(replace(case, dtype="fp32"), model, clips)
    # the counter knows plain products on every device, fused attention only on some
    counters = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=counters) as counter:
        if case.mode == "train":
            step.train()
        else:
            with torch.no_grad():
                step.forward(model.eval(), clips)
    return counter.get_total_flops() / 2e9


def _convolution_backward_flops(
    grad_shape: Sequence[int], x_shape: Sequence[int], w_shape: Sequence[int], *args: Any, **_: Any
) -> int:
    """As many as forward for each gradient; torch's own counter ignores the groups."""
    output_mask = args[-1]
    return 2 * math.prod(grad_shape) * math.prod(w_shape[1:]) * sum(output_mask[:2])


def model_input_size(case: Case, model: nn.Module) -> tuple[int, ...]:
    """The input size of a case; that of another library's model is ours of the same name."""
    if case.input_size is not None:
        return tuple(case.input_size)
    if case.implementation == OURS:
        return _input_size(model)
    with torch.device("meta"):
        return _input_size(build_model(case.name))


def _input_size(model: nn.Module) -> tuple[int, ...]:
    return tuple(cast(VideoModel, model).input_size)


# ---- candidates ---------------------------------------------------------------------------------


class CaseBuilder:
    """Builds cases on one device; cases share modules and inputs where they can.

    Args:
        device: of modules and inputs.
        parts: from a `Step` to a function that returns the seconds of its parts, if it can be
            divided; None: parts are not measured.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        parts: Callable[[Step], Callable[[], dict[str, float]] | None] | None = None,
    ) -> None:
        self.device, self.parts = device, parts
        self._modules: dict[tuple, nn.Module] = {}
        self._clips: dict[tuple, Tensor] = {}
        self._gmacs: dict[Case, float] = {}

    def candidate(self, case: Case) -> Candidate:
        """A case, ready to be timed.

        Raises:
            UserError: it cannot be built, or does not compute what ours computes.
        """
        model = self.module(case)
        clips = self.clips(case)
        if case.dtype.endswith(PURE):
            clips = clips.to(torch_dtype(case.dtype, self.device))
        step = Step(case, model, clips)
        facts = {**case.facts(), "library": library_of(model)}
        candidate = Candidate(
            facts,
            run=_first_call_may_fail(step, facts),
            samples=case.batch,
            gmacs=self.gmacs(case) * case.batch,
        )
        if self.parts is not None and not case.compiled:
            candidate.parts = self.parts(step)
        return candidate

    def module(self, case: Case) -> nn.Module:
        """The model of a case; another library's has our weights and was checked to agree."""
        key = case.weights_key
        if key not in self._modules:
            self._modules[key] = self._new_module(case)
        return self._modules[key]

    def clips(self, case: Case) -> Tensor:
        """Noise [batch, 3, *input_size], the same for all cases of that shape."""
        key = (case.batch, model_input_size(case, self.module(case)))
        if key not in self._clips:
            generator = torch.Generator(self.device).manual_seed(0)
            self._clips[key] = torch.randn(
                key[0], 3, *key[1], generator=generator, device=self.device
            )
        return self._clips[key]

    def forget_clips(self, case: Case) -> None:
        """Free the input of a case that was only tried."""
        self._clips.pop((case.batch, model_input_size(case, self.module(case))), None)

    def gmacs(self, case: Case) -> float:
        """Multiply-adds of one clip, in 1e9.

        Those of our model for other libraries' models too: work beyond them, such as a stem over
        deleted pixels, must not count as throughput.
        """
        key = Case(case.name, mode=case.mode, **case.overrides())
        if key not in self._gmacs:
            self._gmacs[key] = multiply_adds(key)
        return self._gmacs[key]

    def _new_module(self, case: Case) -> nn.Module:
        if case.dtype.endswith(PURE):
            whole = self.module(replace(case, dtype="fp32"))
            return copy.deepcopy(whole).to(torch_dtype(case.dtype, self.device))
        if case.implementation == OURS:
            return build_with_noise(case).to(self.device)
        own = replace(case, implementation=OURS, decode_ratio=None)
        # the check runs on the CPU: on a GPU ours is built again for it, with the same weights
        ours = self.module(own) if self.device.type == "cpu" else build_with_noise(own)
        model = build(case)
        copy_weights(ours, model, case.implementation)
        clips = torch.randn(1, 3, *model_input_size(own, ours))
        check_agreement(case.name, ours, model, implementation=case.implementation, clips=clips)
        return model.to(self.device)


def _first_call_may_fail(step: Step, facts: dict[str, Any]) -> Callable[[], None]:
    """Make the step's first error a note in the table, for other libraries and compiled code.

    Errors of our own code in eager mode are raised. The number of graph breaks is added to `facts`.
    """
    may_fail = bool(step.case.compiled) or facts["library"] != OURS
    done = False

    def first_call() -> None:
        nonlocal done
        if done or not may_fail:
            return step()
        breaks = torch._dynamo.utils.counters["graph_break"] if step.case.compiled else {}
        before = sum(breaks.values())
        try:
            step()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise CannotMeasure(kind_and_line(error)) from error
        done = True
        if step.case.compiled:
            facts["graph_breaks"] = sum(breaks.values()) - before
        return None

    return first_call
