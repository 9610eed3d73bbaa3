"""What must hold on a GPU, one function each: `make gpu-check` and `pytest -m gpu` call them.

A check returns what it saw, in a line. It raises AssertionError where something does not hold, and
`NotHere` where it cannot be tried. All of them also run on a CPU with small models: that tests the
checks, not the GPU.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor, nn

from hiera_video.benchmarks import machine
from hiera_video.benchmarks.steps import (
    REFERENCE,
    Case,
    Step,
    add_noise,
    as_autoencoder,
    build,
    build_with_noise,
    copy_weights,
    is_autoencoder,
    model_input_size,
    outcome,
)
from hiera_video.benchmarks.videos import Recipe, make_videos
from hiera_video.config import Config, load_config
from hiera_video.errors import UserError
from hiera_video.models import build_model, kernels, layers
from hiera_video.models.tokens import num_kept

if TYPE_CHECKING:
    from hiera_video.engine.train import TrainingRun

SMALL = (4, 64, 64)
"""Input of the models with which a CPU tries the checks."""


class NotHere(Exception):
    """A check cannot be tried on this machine; the message says why."""


@dataclass(frozen=True)
class Place:
    """Where the checks run."""

    device: torch.device
    small: bool = False
    """Small models: to test the checks on a CPU."""

    def case(self, name: str, **settings: object) -> Case:
        """The model `name`, or a small one of its kind."""
        if self.small:
            kind = "mae_hiera" if name.startswith("mae_") else "hiera"
            name, settings = f"{kind}_tiny_16x224", {**settings, "input_size": SMALL}
        return Case(name, **settings)  # type: ignore[arg-type]


# ---- the same numbers as the published code -----------------------------------------------------

FORMATS = ("fp32", "tf32", "bf16", "fp16")


@contextlib.contextmanager
def products_of(name: str, device: torch.device) -> Iterator[None]:
    """Compute in a format of `FORMATS`: fp32 without TF32, tf32 with it, the others by autocast."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
    try:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def parity(place: Place, name: str) -> str:
    """Ours is as near to the published code in float32 as the published code itself in each format.

    Parameters are drawn anew: with initial ones even wrong code would give equal outputs.
    """
    case = place.case(name)
    ours = build_with_noise(case)
    try:
        theirs = build(replace(case, implementation=REFERENCE))
    except UserError as error:
        raise NotHere(f"{REFERENCE}: {error}") from None
    copy_weights(ours, theirs, REFERENCE)
    size = model_input_size(case, ours)
    clips = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).to(place.device)
    keep = None
    if is_autoencoder(ours):
        keep = (
            as_autoencoder(ours)
            .random_keep(2, generator=torch.Generator().manual_seed(2))
            .to(place.device)
        )
    models = [m.eval().to(place.device) for m in (ours, theirs)]
    exact = _outcome(models[1], clips, keep, "fp32")
    seen = []
    for form in FORMATS:
        mine, other = (_outcome(model, clips, keep, form) for model in models)
        ours_off, allowed = ((x - exact).abs().max().item() for x in (mine, other))
        scale = exact.abs().max().item()
        assert ours_off <= 2 * allowed + 1e-4 * scale, (
            f"{form}: ours is {ours_off / scale:.1e} from the published code in fp32, which is "
            f"itself {allowed / scale:.1e} from it in {form}"
        )
        seen.append(f"{form} {ours_off / scale:.1e} (theirs {allowed / scale:.1e})")
    return f"difference from {REFERENCE} in fp32: {', '.join(seen)}"


@torch.no_grad()
def _outcome(model: nn.Module, clips: Tensor, keep: Tensor | None, form: str) -> Tensor:
    """Probabilities of a classifier, the loss of an autoencoder, in float32."""
    with products_of(form, clips.device):
        out = outcome(model, clips, keep).float()
    if keep is None and hasattr(model, "layout"):  # the published one gives probabilities
        out = out.softmax(-1)
    return out


# ---- more mask units than CUDA's grid -----------------------------------------------------------


def many_units(place: Place) -> str:
    """Attention over more sequences than one call may have, forward and backward."""
    most = layers.MOST_SEQUENCES["cuda"]
    count = 70 if place.small else most + 5_000
    limit = 32 if place.small else most
    generator = torch.Generator(place.device).manual_seed(0)
    dtype = torch.float32 if place.small else torch.bfloat16
    q, k, v = (
        torch.randn(count, 1, 16, 96, generator=generator, device=place.device, dtype=dtype)
        for _ in range(3)
    )
    found = []
    for split in (True, False):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        with mock.patch.dict(layers.MOST_SEQUENCES, {place.device.type: limit}):
            if split:
                out = layers.attend(*inputs)
            else:  # one by one, as sums of products
                scores = (inputs[0] @ inputs[1].transpose(-2, -1)) / math.sqrt(96)
                out = scores.softmax(-1) @ inputs[2]
        out.float().square().sum().backward()
        found.append([out, *(x.grad for x in inputs)])
    worst = max(
        ((a.float() - b.float()).abs().max() / b.float().abs().max()).item()
        for a, b in zip(*found, strict=True)
    )
    assert worst < (1e-4 if place.small else 5e-2), f"differs from plain products by {worst:.1e}"
    return f"{count:,} sequences, forward and backward: {worst:.1e} from plain products"


@torch.no_grad()
def large_batch(place: Place) -> str:
    """A batch of clips with more than 65,535 mask units gives what its halves give."""
    case = place.case("hiera_tiny_16x224")
    model: Any = build_with_noise(case).eval().to(place.device)
    count = 4 if place.small else -(-66_000 // model.num_mask_units)
    generator = torch.Generator(place.device).manual_seed(0)
    size = (count, 3, *model.input_size)
    clips = torch.randn(size, generator=generator, device=place.device)
    limit = {place.device.type: 3 if place.small else layers.MOST_SEQUENCES["cuda"]}
    with products_of("fp32" if place.small else "bf16", place.device):
        with mock.patch.dict(layers.MOST_SEQUENCES, limit):
            whole = model(clips).float()
        halves = torch.cat([model(half) for half in clips.tensor_split(2)]).float()
    worst = ((whole - halves).abs().max() / halves.abs().max()).item()
    assert worst < (1e-4 if place.small else 5e-2), f"differs from its halves by {worst:.1e}"
    return f"{count} clips, {count * model.num_mask_units:,} units: {worst:.1e} from two halves"


# ---- torch.compile ------------------------------------------------------------------------------


def compiled(place: Place, name: str) -> str:
    """torch.compile takes a model whole, and loss and gradients are those of plain code."""
    small: dict[str, Any] = {"stages": (1, 1, 1, 1), "embed_dim": 96, "num_heads": 1}
    if name.startswith("mae_"):
        small["decoder_depth"] = 1
    size = SMALL if place.small else (16, 224, 224)
    torch.manual_seed(0)
    model = add_noise(build_model(name, **small, input_size=size)).train()
    model.to(place.device)
    generator = torch.Generator(place.device).manual_seed(0)
    clips = torch.randn(2, 3, *size, generator=generator, device=place.device)
    arguments, known = [clips], {}
    if is_autoencoder(model):
        masked = as_autoencoder(model)
        arguments.append(masked.random_keep(2).to(place.device))
        known["kept"] = num_kept(masked.num_mask_units, masked.mask_ratio)
    backend = "aot_eager" if place.small else "inductor"
    whole = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    found = []
    for run in (model, whole):
        model.zero_grad()
        torch.manual_seed(1)
        out = run(*arguments, **known)
        loss = out.loss if hasattr(out, "loss") else out.float().square().mean()
        loss.backward()
        gradient = next(p.grad for n, p in model.named_parameters() if "patch_embed" in n)
        assert gradient is not None
        found.append((loss.item(), gradient.clone()))
    (plain, slow), (fast, quick) = found
    worst = ((slow - quick).abs().max() / slow.abs().max()).item()
    assert math.isclose(plain, fast, rel_tol=1e-2), f"loss {fast} compiled, {plain} plain"
    assert worst < 2e-2, f"gradients differ by {worst:.1e}"
    return f"one graph; loss {plain:.4f} and {fast:.4f}, gradients {worst:.1e} apart"


def kernel_choices(place: Place) -> str:
    """Kernels are measured, in a forward pass and a step, and give the usual kernels' numbers."""
    case = place.case("hiera_base_16x224")
    model: Any = build_with_noise(case).to(place.device)
    generator = torch.Generator(place.device).manual_seed(0)
    clips = torch.randn(4, 3, *model.input_size, generator=generator, device=place.device)
    found = []
    for kinds in (set(), {place.device.type}):
        with (
            mock.patch.object(kernels, "MEASURED_ON", kinds),
            mock.patch.object(kernels, "store_choice"),  # of a trial
            products_of("fp32" if place.small else "bf16", place.device),
        ):
            model.zero_grad()
            model.eval()
            with torch.no_grad():
                logits = model(clips).float()
            model.train()(clips).float().square().mean().backward()
        gradient = model.get_parameter("patch_embed.proj.weight").grad
        found.append((logits, gradient.float().clone()))
    worst = max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(*found, strict=True))
    assert worst < (1e-3 if place.small else 1e-1), f"differs from the usual kernels by {worst:.1e}"
    chosen = [line.partition(": ")[2] for line in kernels.choices()]
    assert chosen, "nothing was measured"
    return f"{worst:.1e} from the usual kernels; {'; '.join(chosen)}"


# ---- steps and their memory ---------------------------------------------------------------------

SIZES = ("tiny", "small", "base", "base_plus", "large", "huge")


def step(place: Place, name: str) -> str:
    """Two whole training steps of a model in bf16, with AdamW: a finite loss, and peak memory."""
    case = place.case(name, mode="train", dtype="bf16", batch=2, optimizer=True)
    try:
        with place.device:
            model = build(case)
        clips = torch.randn(case.batch, 3, *model_input_size(case, model), device=place.device)
        if place.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place.device)
        call = Step(replace(case, dtype="fp32") if place.small else case, model, clips)
        call()
        call()
        total = sum(p.detach().double().sum() for p in model.parameters())
        assert math.isfinite(float(total)), "parameters are not finite after two steps"
    except torch.OutOfMemoryError as error:
        raise NotHere(f"does not fit: {str(error).splitlines()[0][:80]}") from None
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    text = f"{parameters:.0f} M parameters, {case.batch} clips"
    if place.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(place.device) / 2**20
        text += f", peak {peak:,.0f} MiB"
        del model, clips, call, total
        torch.cuda.empty_cache()
    return text


# ---- runs ---------------------------------------------------------------------------------------

RUN = {
    "TASK": "pretrain",
    "MODEL.MODEL_NAME": "mae_hiera_tiny_16x224",
    "MODEL.KWARGS": "{embed_dim: 16, num_heads: 1, stages: [1, 1, 1, 1]}",
    "HIERA.DECODER_EMBED_DIM": 16,
    "HIERA.DECODER_DEPTH": 1,
    "HIERA.DECODER_NUM_HEADS": 2,
    "AUG.MASK_RATIO": 0.5,
    "TRAIN.DATASET": "camera_flow",
    "TRAIN.BATCH_SIZE": 4,
    "TRAIN.COMPILE": "false",
    "TRAIN.EMA_DECAY": 0.9,
    "TEST.ENABLE": "false",
    "DATA.NUM_FRAMES": 4,
    "DATA.TRAIN_CROP_SIZE": 64,
    "DATA.TEST_CROP_SIZE": 64,
    "DATA.RANDOM_FLIP": "false",
    "DATA_LOADER.NUM_WORKERS": 0,
    "SYNTHETIC.NUM_TRAIN": 64,
    "SOLVER.MAX_STEPS": 6,
    "SOLVER.WARMUP_EPOCHS": 0,
    "LOG_PERIOD": 1,
}
"""Settings of a run of a few seconds on generated clips."""


def run_settings(folder: Path, device: torch.device, **more: object) -> Config:
    """The settings of a run into `folder`; more: keys with __ in place of the dot."""
    words = {**RUN, "OUTPUT_DIR": folder, "DEVICE": device.type}
    words |= {key.replace("__", "."): value for key, value in more.items()}
    return load_config(None, [str(word) for pair in words.items() for word in pair])


def _train(
    cfg: Config, before_step: Callable[[TrainingRun], contextlib.AbstractContextManager]
) -> None:
    """Train as `cfg` says; `before_step` is entered around every step."""
    # Here, so that a machine without what runs need (records, pictures) tries the other checks.
    from hiera_video.engine import distributed, train
    from hiera_video.engine.signals import Stop

    take_step = train.TrainingRun.take_step

    def watched(run: TrainingRun, *args: object) -> None:
        with before_step(run):
            take_step(run, *args)  # type: ignore[arg-type]

    with mock.patch.object(train.TrainingRun, "take_step", watched):
        code = train.train(cfg, distributed.init(cfg.device), Stop())
    assert code == 0, f"the run ended with exit code {code}"


def resume(place: Place) -> str:
    """A run that goes from the CPU to the GPU and back learns what one on the CPU learns."""
    from hiera_video.engine import checkpoint

    cpu = torch.device("cpu")

    def stopping_at(last: int) -> Callable[[TrainingRun], contextlib.AbstractContextManager]:
        def before_step(run: TrainingRun) -> contextlib.AbstractContextManager:
            if run.state.step + 1 == last:
                run.stop.signal = signal.SIGTERM
            return contextlib.nullcontext()

        return before_step

    with TemporaryDirectory(prefix="gpu_check_") as folder:
        moved, still = Path(folder) / "moved", Path(folder) / "still"
        for device, last in ((cpu, 2), (place.device, 4), (cpu, 7)):
            _train(run_settings(moved, device), stopping_at(last))
        _train(run_settings(still, cpu), stopping_at(7))
        found = [_losses(out) for out in (moved, still)]
        newest = checkpoint.latest(moved / "checkpoints")
    assert newest is not None, "the moved run wrote no checkpoint"
    assert newest[1]["step"] == 6, f"the moved run ended after step {newest[1]['step']} of 6"
    assert found[0].keys() == found[1].keys() == set(range(1, 7)), f"steps {sorted(found[0])}"
    worst = max(abs(found[0][s] - found[1][s]) / abs(found[1][s]) for s in found[0])
    assert worst < 2e-2, f"losses differ by {worst:.1e} from those of a run on the CPU"
    return f"cpu, {place.device.type}, cpu: losses {worst:.1e} from a run on the CPU"


def _losses(out: Path) -> dict[int, float]:
    from hiera_video.engine.records import read_metrics

    return {r["step"]: r["loss"] for r in read_metrics(out) if r["_type"] == "train_iter_"}


@contextlib.contextmanager
def waiting_is_an_error(device: torch.device) -> Iterator[None]:
    """Raise where the CPU waits for the GPU inside the block; does nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def no_waiting(place: Place) -> str:
    """A training step queues its work and waits for nothing, after the first two."""
    taken = []

    def before_step(run: TrainingRun) -> contextlib.AbstractContextManager:
        taken.append(run.state.step)
        strict = len(taken) > 2
        return waiting_is_an_error(place.device) if strict else contextlib.nullcontext()

    with TemporaryDirectory(prefix="gpu_check_") as folder:
        cfg = run_settings(Path(folder), place.device, TRAIN__GRAD_ACCUM=2)
        _train(cfg, before_step)
    return f"{len(taken) - 2} steps without waiting"


# ---- the demo -----------------------------------------------------------------------------------


def demo(place: Place) -> str:
    """`hiera-video predict` labels on the GPU as on the CPU: several files, and one that is bad."""
    recipes = [Recipe(f"clip {i}", 160, 120, seed=i, seconds=1) for i in range(3)]
    with TemporaryDirectory(prefix="gpu_check_") as folder:
        make_videos(folder, recipes)
        (Path(folder) / "clip 1a bad.mp4").write_bytes(b"not a video")
        found = [_labels(folder, device) for device in ("cpu", place.device.type)]
    assert [x["file"] for x in found[0]] == [x["file"] for x in found[1]]
    worst, labelled = 0.0, 0
    for here, there in zip(*found, strict=True):
        assert (here["error"] is None) == (there["error"] is None), there["file"]
        if here["error"] is not None:
            continue
        scores = [{x["label"]: x["score"] for x in r["labels"]} for r in (here, there)]
        assert scores[0].keys() == scores[1].keys()
        worst = max(worst, *(abs(scores[0][name] - scores[1][name]) for name in scores[0]))
        labelled += 1
    assert labelled == len(recipes), f"{labelled} of {len(recipes)} clips were labelled"
    assert worst < 2e-2, f"scores differ by {worst:.1e} from those of the CPU"
    return f"{labelled} clips and one bad file: scores {worst:.1e} from those of the CPU"


def _labels(folder: str, device: str) -> list[dict]:
    """What --json prints for the videos of a folder."""
    words = [sys.executable, "-m", "hiera_video", "predict", folder, "--weights", "camera_motion"]
    words += ["--device", device, "--dtype", "fp32", "--views", "2x3", "--top-k", "99", "--json"]
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        env=machine.child_environment(),
    )
    assert done.returncode == 1, f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    return json.loads(done.stdout)


# ---- all of them --------------------------------------------------------------------------------

CHECKS: dict[str, Callable[[Place], str]] = {
    "parity, video": functools.partial(parity, name="hiera_base_16x224"),
    "parity, MAE": functools.partial(parity, name="mae_hiera_base_16x224"),
    "many units": many_units,
    "large batch": large_batch,
    "kernels": kernel_choices,
    "no waiting": no_waiting,
    "resume": resume,
    "demo": demo,
    "compile, video": functools.partial(compiled, name="hiera_tiny_16x224"),
    "compile, MAE": functools.partial(compiled, name="mae_hiera_tiny_16x224"),
    **{f"step, {size}": functools.partial(step, name=f"hiera_{size}_16x224") for size in SIZES},
    **{
        f"MAE step, {size}": functools.partial(step, name=f"mae_hiera_{size}_16x224")
        for size in SIZES
    },
}
"""Name -> check, in the order of their value."""
