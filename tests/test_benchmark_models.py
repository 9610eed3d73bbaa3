"""`benchmark.py model`, `ladder`, `pretrain`: real runs on tiny models; never a time."""

import argparse
import contextlib
import functools
import json
import math
import sys
import warnings

import pytest
import torch
from randomness import redraw
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hiera_video import build_model
from hiera_video.benchmarks import (
    compare,
    ladder,
    loss_comparison,
    machine,
    measure,
    memory,
    models,
    options,
    parts,
    pretrain,
    steps,
    tables,
)
from hiera_video.benchmarks.compare import Comparison
from hiera_video.benchmarks.measure import Candidate, CannotMeasure
from hiera_video.benchmarks.steps import OURS, REFERENCE, TIMM, Case, CaseBuilder
from hiera_video.commands import benchmark
from hiera_video.errors import UserError
from hiera_video.models.hiera import SIZES
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.registry import MODEL_REGISTRY

CPU = torch.device("cpu")
SMALL = {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)}


@pytest.fixture
def tiny(monkeypatch):
    """Every Hiera and every rung is tiny, in whoever's code; calls are not repeated."""
    for size in SIZES:
        monkeypatch.setitem(SIZES, size, SMALL)
    decoder = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2}
    for cls, build in ((MaskedAutoencoder, "__kwdefaults__"), (reference_class(), "__defaults__")):
        if cls is not None:
            defaults = small_defaults(cls.__init__, decoder)
            monkeypatch.setattr(cls.__init__, build, defaults)
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    monkeypatch.setitem(measure.SHAPES, "cpu", ((64, 64, 64),))


def reference_class():
    """hiera-transformer's autoencoder, where it is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from hiera.hiera_mae import MaskedAutoencoderHiera
        except ImportError:
            return None
    return MaskedAutoencoderHiera


def small_defaults(function, wanted):
    """A function's defaults, keyword-only or not, with some replaced."""
    if function.__kwdefaults__:
        return {**function.__kwdefaults__, **wanted}
    names = function.__code__.co_varnames[1 : function.__code__.co_argcount]
    pairs = zip(names, function.__defaults__, strict=True)
    return tuple(wanted.get(name, value) for name, value in pairs)


def parse(module, *words):
    """A subcommand's arguments, as the command reads them."""
    name = "model" if module is models else module.__name__.rpartition(".")[2]
    return benchmark.parse([name, *words])


def run(module, tmp_path, *words):
    """Run a subcommand in this process; what it wrote as JSON."""
    record = tmp_path / "out.json"
    args = parse(module, *words, "--repeats", "2", "--dtype", "fp32", "--json", str(record))
    assert module.run(args) == 0
    return json.loads(record.read_text())


# ---- model ----------------------------------------------------------------------------------


def test_model_beside_every_library_that_has_it(tiny, tmp_path, monkeypatch, capsys):
    pytest.importorskip("hiera")
    timm = pytest.importorskip("timm")
    create = functools.partial(timm.create_model, **SMALL)
    monkeypatch.setattr(timm, "create_model", create)
    words = ["--names", "hiera_tiny_224", "--no-memory", "--input-size", "64", "64"]
    record = run(models, tmp_path, *words, "--attention", "fused", "explicit", "--batch", "1", "2")
    rows = record["rows"]
    assert len(rows) == 3 * 2 * 2 * 2  # libraries, modes, kinds of attention, batches
    assert {row["implementation"] for row in rows} == {OURS, REFERENCE, TIMM}
    assert all(row["ms"] > 0 and row["ratio"] > 0 and row["ratio_timm"] > 0 for row in rows)
    assert all(row["ratio"] == 1 for row in rows if row["implementation"] == REFERENCE)
    by_mode = {(row["mode"], row["batch"]): row["gmacs"] for row in rows}
    assert by_mode["forward", 2] == 2 * by_mode["forward", 1]
    assert 2.5 * by_mode["forward", 1] < by_mode["train", 1] < 3 * by_mode["forward", 1]
    assert record["peak"]["float32"]["gmacs_per_s"] > 0
    printed = capsys.readouterr().out
    assert "x ref" in printed
    assert "explicit" in printed


def test_models_of_comparable_size_stand_beside_hiera_b(monkeypatch, capsys):
    args = parse(models)
    monkeypatch.setattr(models, "is_buildable", lambda name, size: name != "videomae_base_16x224")
    monkeypatch.setattr(steps, "counterparts", lambda name: [REFERENCE])
    cases = models.cases_of("hiera_base_16x224", args, ["fp32"])
    assert [(c.name, c.implementation, c.mode) for c in cases[:3]] == [
        ("hiera_base_16x224", OURS, "forward"),
        ("hiera_base_16x224", REFERENCE, "forward"),
        ("torchvision_mvit_v2_s", OURS, "forward"),
    ]
    assert {c.mode for c in cases[3:]} == {"train"}
    alone = parse(models, "--no-others")
    assert len(models.cases_of("hiera_base_16x224", alone, ["fp32"])) == 4


def test_what_is_not_there_is_skipped_in_a_line(monkeypatch, capsys):
    assert not models.is_buildable("no_such_model", None)
    assert not models.is_buildable("hiera_tiny_16x224", (4, 60, 64))
    monkeypatch.setitem(sys.modules, "hiera", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    assert steps.counterparts("hiera_tiny_224") == []
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == [
        "no_such_model",
        "hiera_tiny_16x224",
        REFERENCE,
        TIMM,
    ]
    assert steps.counterparts("ladder_r5_small_224") == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--names", "hiera_bse_224"], "hiera_base_224"),
        (["--others", "videomae_bse_16x224"], "videomae_base_16x224"),
        (["--dtype", "fp7"], "fp7"),
        (["--batch", "best", "2"], "best alone"),
        (["--input-size", "64"], "height width"),
    ],
)
def test_wrong_use_of_model_is_named(words, complaint):
    with pytest.raises(UserError, match=complaint):
        models.run(parse(models, *words))


def test_an_interrupt_keeps_the_rows_measured_so_far(tiny, tmp_path, monkeypatch, capsys):
    really, left = measure.measure, [3]

    def interrupted_in_the_third_round(candidate, device):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        really(candidate, device)

    monkeypatch.setattr(measure, "measure", interrupted_in_the_third_round)
    peak = {"a": 1.0}
    monkeypatch.setattr(
        measure.Peak, "update", lambda self, **_: self.by_shape[torch.float32].update(peak)
    )
    words = ["--names", "hiera_tiny_16x224", "--input-size", "4", "64", "64", "--modes", "forward"]
    with pytest.raises(KeyboardInterrupt):
        run(models, tmp_path, *words)
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["unfinished"] == "KeyboardInterrupt"
    assert sum(row["repeats"] for row in record["rows"]) == 3
    assert "hiera_tiny_16x224" in capsys.readouterr().out


# ---- what is compared -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hiera_tiny_224", "hiera_tiny_16x224", "mae_hiera_tiny_16x224"])
def test_counterparts_get_our_weights_and_agree(tiny, monkeypatch, name):
    pytest.importorskip("hiera")
    timm = pytest.importorskip("timm")
    create = functools.partial(timm.create_model, **SMALL)
    monkeypatch.setattr(timm, "create_model", create)
    size = (64, 64) if name.endswith("_224") else (4, 64, 64)
    ratio = 0.5 if name.startswith("mae_") else None
    builder = CaseBuilder(CPU)
    for library in steps.counterparts(name):
        builder.module(Case(name, library, input_size=size, mask_ratio=ratio))


def test_models_that_disagree_are_not_compared():
    sizes = {"input_size": (64, 64), **SMALL, "num_classes": 5}
    ours = redraw(build_model("hiera_tiny_224", **sizes))
    theirs = redraw(build_model("hiera_tiny_224", **sizes), seed=1)
    with pytest.raises(UserError, match="differ"):
        steps.check_agreement(
            "m", ours, theirs, implementation="x", clips=torch.randn(1, 3, 64, 64)
        )


def test_a_model_of_nan_does_not_agree():
    ours = build_model("hiera_tiny_224", input_size=(64, 64), **SMALL)
    with torch.no_grad():
        ours.norm.weight.fill_(math.nan)
    with pytest.raises(UserError, match="differ"):
        steps.check_agreement("m", ours, ours, implementation="x", clips=torch.randn(1, 3, 64, 64))


def test_noise_leaves_no_parameter_at_its_start():
    model = build_model("hiera_tiny_224", input_size=(64, 64), **SMALL)
    before = {name: p.clone() for name, p in model.named_parameters()}
    steps.add_noise(model)
    assert not any(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("name", ["hiera_tiny_16x224", "mae_hiera_tiny_16x224"])
@pytest.mark.parametrize("attention", ["fused", "explicit"])
def test_a_training_step_reaches_every_parameter(tiny, name, attention):
    case = Case(name, mode="train", attention=attention, input_size=(4, 64, 64), optimizer=True)
    builder = CaseBuilder(CPU)
    before = {key: t.clone() for key, t in builder.module(case).state_dict().items()}
    builder.candidate(case).run()
    model = builder.module(case)
    assert all(p.grad is not None for p in model.parameters())
    assert all(not torch.equal(before[key], t) for key, t in model.state_dict().items())


def test_explicit_attention_has_no_fused_kernel(tiny):
    builder = CaseBuilder(CPU)
    called = {}
    for attention in steps.FORWARD:
        case = Case("hiera_tiny_224", input_size=(64, 64), attention=attention)
        run = builder.candidate(case).run
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run()
        called[attention] = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in called["fused"]
    assert not any("flash" in key for key in called["explicit"])
    assert "aten::_scaled_dot_product_attention_math" in called["explicit"]


class Products(TorchDispatchMode):
    """Collects the number formats of batched matrix products."""

    def __init__(self):
        super().__init__()
        self.formats = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func == torch.ops.aten.bmm.default:
            self.formats.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_explicit_attention_multiplies_in_the_format_of_its_row(tiny, dtype, expected):
    """PyTorch's own choice for halves is float32: it would be another measurement."""
    case = Case(
        "hiera_tiny_224", input_size=(64, 64), attention="explicit", dtype=dtype, mode="train"
    )
    step = CaseBuilder(CPU).candidate(case).run
    with Products() as products:
        step()
    assert products.formats == {expected}
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # as it was


def test_autocast_and_pure_differ_in_the_weights(tiny):
    builder = CaseBuilder(CPU)
    seen = {}
    for dtype in ("fp32", "bf16", "bf16-pure"):
        case = Case("hiera_tiny_224", input_size=(64, 64), dtype=dtype)
        candidate = builder.candidate(case)
        head = builder.module(case).head
        hook = head.register_forward_hook(
            lambda m, x, out, d=dtype: seen.update({d: (m.projection.weight.dtype, out.dtype)})
        )
        candidate.run()
        hook.remove()
    assert seen == {
        "fp32": (torch.float32, torch.float32),
        "bf16": (torch.float32, torch.bfloat16),
        "bf16-pure": (torch.bfloat16, torch.bfloat16),
    }


def test_counts_are_the_papers():
    assert steps.multiply_adds(Case("hiera_tiny_224")) == pytest.approx(4.90, abs=0.005)
    assert steps.multiply_adds(Case("ladder_r0_small_224")) == pytest.approx(6.96, abs=0.005)
    assert steps.parameter_count(Case("hiera_base_16x224")) == 51_092_560


def test_backward_counts_know_about_groups(tiny):
    """R0's depthwise convolutions: a gradient costs what forward costs; the clips have none."""
    forward, train = (
        steps.multiply_adds(Case("ladder_r0_small_16x224", mode=mode, input_size=(4, 64, 64)))
        for mode in ("forward", "train")
    )
    stem = 16 * (2 * 16 * 16) * 3 * 3 * 7 * 7 / 1e9
    assert train == pytest.approx(3 * forward - stem, rel=1e-6)


def test_values_that_meta_tensors_lack_are_counted_for_real(tiny, monkeypatch):
    case = Case("mae_hiera_tiny_16x224", mode="train", input_size=(4, 64, 64), mask_ratio=0.5)
    known = steps.multiply_adds(case)
    really = steps._count
    devices = []

    def looks_at_values(case, model, device):
        devices.append(device.type)
        if device.type == "meta":
            torch.empty(1, device="meta").item()
        return really(case, model, device)

    monkeypatch.setattr(steps, "_count", looks_at_values)
    assert steps.multiply_adds(case) == pytest.approx(known)
    assert devices == ["meta", "cpu"]


# ---- what cannot be done ---------------------------------------------------------------------


class Broken(nn.Module):
    """A network of nobody's library."""

    def forward(self, clips):
        raise ValueError("no half precision\nand more")


def test_a_library_that_cannot_is_a_remark_and_ours_is_a_bug(tiny):
    case = Case("hiera_tiny_224")
    step = steps.Step(case, Broken(), torch.zeros(1, 3, 8, 8))
    foreign = steps._first_call_may_fail(step, {"library": "timm"})
    with pytest.raises(CannotMeasure, match=r"ValueError: no half precision$"):
        foreign()
    with pytest.raises(ValueError, match="half"):
        steps._first_call_may_fail(step, {"library": OURS})()


def test_who_gives_up_has_a_row_that_says_why():
    gone = Candidate({"name": "x", "dtype": "fp32"}, run=int)

    def gives_up():
        raise CannotMeasure("cannot")

    gone.run = gives_up
    measure.interleave([gone], repeats=2, device=CPU)
    row = measure.row_of(gone)
    assert row["failed"] == "cannot"
    assert tables.spread(row) == "cannot"


# ---- batches --------------------------------------------------------------------------------


def sweeping(monkeypatch, rates, *, most=math.inf):
    """A comparison whose batches have made-up rates; None: out of memory."""
    args = argparse.Namespace(batch=["best"], imports=[], repeats=1, memory=False)
    comparison = Comparison(CaseBuilder(CPU), args, None)
    monkeypatch.setattr(Comparison, "_rate", lambda self, case: rates.get(case.batch))
    monkeypatch.setattr(Comparison, "_fits", lambda self, case: lambda batch: batch <= most)
    return comparison


@pytest.mark.parametrize(
    ("rates", "most", "best", "tried"),
    [
        ({1: 1.0, 2: 2.0, 4: 1.9, 8: 2.01, 16: 9.0}, math.inf, 8, [1, 2, 4, 8]),
        ({1: 1.0, 2: 0.9, 4: 2.0, 8: 3.0}, math.inf, 8, [1, 2, 4, 8]),  # 16 is out of memory
        ({1: 1.0, 2: 2.0, 4: 3.0}, 2, 2, [1, 2]),  # predicted not to fit
        ({}, math.inf, 1, []),
    ],
)
def test_batches_grow_while_they_pay(monkeypatch, rates, most, best, tried):
    comparison = sweeping(monkeypatch, rates, most=most)
    case, trail = comparison._with_best_batch(Case("m", batch="best"))
    assert case.batch == best
    assert [step["batch"] for step in trail] == tried


def test_a_compiled_model_takes_the_batch_of_the_plain_one(monkeypatch):
    comparison = sweeping(monkeypatch, {1: 1.0, 2: 2.0})
    comparison._with_best_batch(Case("m", batch="best"))
    monkeypatch.setattr(Comparison, "_sweep", None)
    case, _ = comparison._with_best_batch(Case("m", batch="best", compiled="default"))
    assert (case.batch, case.compiled) == (2, "default")


def test_on_a_cpu_memory_is_foretold(monkeypatch):
    comparison = Comparison(CaseBuilder(CPU), argparse.Namespace(batch=["best"], imports=[]), None)
    one = memory.Memory(peak=300, before=100)
    monkeypatch.setattr(memory, "cpu_memory", lambda case, imports: one)
    monkeypatch.setattr(memory, "available", lambda: 1000 / compare.SHARE_OF_MEMORY)
    fits = comparison._fits(Case("m"))
    assert [fits(batch) for batch in (1, 4, 8)] == [True, True, False]  # 300, 900, 1700 bytes


def test_a_real_sweep(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "cpu_memory", lambda case, imports: memory.Memory(2, 1))
    monkeypatch.setattr(compare, "MOST_CLIPS", 2)
    words = ["--names", "hiera_tiny_16x224", "--input-size", "4", "64", "64", "--modes", "forward"]
    rows = run(models, tmp_path, *words, "--batch", "best")["rows"]
    assert rows[0]["batch"] in (1, 2)
    assert [tried["batch"] for tried in rows[0]["sweep"]] == [1, 2]
    assert rows[0]["peak_memory"] == 2


# ---- memory ---------------------------------------------------------------------------------


@pytest.mark.skipif(not memory.STATUS.is_file(), reason="no /proc")
def test_memory_of_a_step_in_a_process_of_its_own():
    case = Case("hiera_tiny_16x224", mode="train", input_size=(4, 64, 64), batch=4)
    found = memory.cpu_memory(case)
    weights = 4 * steps.parameter_count(case)
    assert 0.95 * weights < found.before < 2 * weights
    assert found.peak > found.before + weights  # gradients, and what lies between
    assert found.of_batch(1) == found.peak


def test_a_child_that_is_killed_or_fails_is_a_remark(monkeypatch):
    ends = {-9: "out of memory", -15: "ended", 1: "RuntimeError: it broke"}
    for code, said in ends.items():
        done = argparse.Namespace(returncode=code, stdout="", stderr="x\nRuntimeError: it broke\n")
        monkeypatch.setattr(memory.subprocess, "run", lambda *_, d=done, **__: d)
        with pytest.raises(CannotMeasure, match=said):
            memory.cpu_memory(Case("hiera_tiny_224"))


# ---- a GPU's calls, without one ---------------------------------------------------------------


class FakeGpu:
    """What the measuring asks of torch.cuda, logged; two events are always 6 ms apart."""

    def __init__(self, monkeypatch):
        self.log = []
        outer = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                outer.log.append("event")

            def synchronize(self):
                outer.log.append("wait")

            def elapsed_time(self, other):
                return 6.0

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.log.append("wait"))
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())


def test_on_a_gpu_calls_are_queued_between_two_events(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    seconds = measure.seconds_per_call(
        lambda: gpu.log.append("call"), device=torch.device("cuda"), calls=3
    )
    assert gpu.log == ["wait", "event", "call", "call", "call", "event", "wait"]
    assert seconds == pytest.approx(0.002)


def test_on_a_gpu_the_first_call_of_a_turn_does_not_count(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    candidate = Candidate({}, run=lambda: gpu.log.append("call"), calls=2)
    measure.measure(candidate, torch.device("cuda"))
    assert gpu.log.count("call") == 3
    assert gpu.log[0] == "call"
    assert candidate.seconds == [pytest.approx(0.003)]


def test_gpu_memory_leaves_out_the_others(monkeypatch):
    FakeGpu(monkeypatch)
    module = nn.Linear(10, 10)  # 440 bytes
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    idle, device = Candidate({}, run=int), torch.device("cuda")
    assert memory.gpu_memory(idle, module, device) == memory.Memory(peak=2440, before=440)
    with_averages = memory.gpu_memory(idle, module, device, optimizer=True)
    assert with_averages == memory.Memory(peak=3320, before=1320)


# ---- ladder ---------------------------------------------------------------------------------


def test_ladder_has_all_rungs_and_a_picture(tiny, tmp_path, capsys):
    words = ["--size", "small", "--input", "image", "--input-size", "64", "64", "--no-memory"]
    picture = tmp_path / "ladder.png"
    record = run(ladder, tmp_path, *words, "--png", str(picture))
    rows = record["rows"]
    rungs = ["R0", "R1", "R2b", "R2c", "R3", "R4", "R5"]
    assert [row["rung"] for row in rows] == rungs * 2
    assert [row["attention"] for row in rows] == ["fused"] * 7 + ["explicit"] * 7
    assert rows[0]["step"] is None
    assert all(row["step"] > 0 and row["ratio"] > 0 for row in rows[1:7])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "R5 over R0 (forward, fp32, explicit attention)" in capsys.readouterr().out


def test_the_papers_steps_are_its_table():
    image = ladder.Rows("large", "image").names()
    steps_ = [ladder.paper_ratios("image", rung, image)["paper_step"] for rung in options.RUNGS]
    expected = [1.152, 0.394, 3.095, 1.196, 1.012, 1.420]
    assert steps_[0] is None
    assert steps_[1:] == pytest.approx(expected, abs=0.001)
    video = ladder.Rows("large", "video").names()
    last = ladder.paper_ratios("video", "r5", video)
    assert (last["paper_step"], last["paper_ratio"]) == pytest.approx((1.369, 1.990), abs=0.001)
    # the paper did not run R0 with the later rungs' strides
    assert ladder.paper_ratios("video", "r1", video)["paper_step"] is None


def test_the_released_model_stands_where_it_is_registered():
    assert ladder.Rows("large", "video").names()["released"] == "mvitv2_large_16x224"
    assert "released" not in ladder.Rows("large", "image").names()
    for size in ("small", "base", "large"):
        for kind in ("image", "video"):
            assert all(n in MODEL_REGISTRY for n in ladder.Rows(size, kind).names().values())


def test_a_ladder_without_some_rungs_steps_over_them(tiny, tmp_path):
    words = ["--input", "image", "--input-size", "64", "64", "--no-memory", "--png", ""]
    words += ["--rungs", "r5", "r0", "r3", "--attention", "fused", "--mode", "train"]
    rows = run(ladder, tmp_path, *words)["rows"]
    assert [row["rung"] for row in rows] == ["R0", "R3", "R5"]
    assert all(row["mode"] == "train" and "paper_step" in row for row in rows)
    assert rows[1]["step"] == rows[1]["ratio"]  # the rung before is R0


def test_no_picture_without_r0(tmp_path):
    args = parse(ladder, "--input", "image")
    rows = [{"rung": "R3", "ratio": None}]
    assert ladder.draw(tmp_path / "x.png", rows, args, {}).startswith("no picture")
    assert not list(tmp_path.iterdir())


# ---- pretrain -------------------------------------------------------------------------------


def test_pretraining_is_cut_into_parts(tiny, tmp_path, capsys):
    pytest.importorskip("hiera")
    words = ["--names", "mae_hiera_tiny_16x224", "--input-size", "4", "64", "64", "--optimizer"]
    words += ["--mask-ratio", "0.5", "0.25", "--no-memory"]
    picture = tmp_path / "parts.png"
    record = run(pretrain, tmp_path, *words, "--png", str(picture))
    rows = record["rows"]
    what = [(row["implementation"], row["mask_ratio"], row.get("decode_ratio")) for row in rows]
    assert what == [
        (library, mask, decode)
        for mask in (0.5, 0.25)
        for library, decode in ((OURS, 1.0), (OURS, 0.25), (REFERENCE, None))
    ]
    for row in rows:
        assert list(row["parts_ms"]) == list(parts.PARTS)
        assert all(ms > 0 for ms in row["parts_ms"].values())
        assert row["ratio"] > 0
    assert rows[0]["gmacs"] > rows[1]["gmacs"]  # fewer tokens are decoded
    assert rows[0]["gmacs"] == rows[2]["gmacs"]  # the reference's merit is what ours has to do
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "decoder back" in capsys.readouterr().out


def test_parts_of_videomae(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    library = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    library |= {"num_attention_heads": 2, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1}
    library |= {"decoder_intermediate_size": 32, "decoder_num_attention_heads": 2}
    model = build_model("mae_videomae_base_16x224", input_size=(4, 64, 64), library=library)
    step = steps.Step(Case("mae_videomae", mode="train"), model, torch.randn(1, 3, 4, 64, 64))
    seconds = parts.marks_of(step)
    step()
    step()
    assert list(seconds()) == list(parts.PARTS[:-1])  # without the optimizer


def test_steps_that_share_a_module_keep_their_marks_apart(tiny):
    builder = CaseBuilder(CPU, parts=parts.marks_of)
    case = Case("mae_hiera_tiny_16x224", mode="train", input_size=(4, 64, 64), mask_ratio=0.5)
    first, second = builder.candidate(case), builder.candidate(case)
    first.run()
    before = first.parts()
    second.run()
    assert first.parts() == before
    assert set(second.parts()) == set(before)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--names", "hiera_base_16x224"], "not a masked autoencoder"),
        (["--mask-ratio", "1.5"], "--mask-ratio 1.5"),
        (["--decode-ratio", "0"], "--decode-ratio 0"),
    ],
)
def test_wrong_use_of_pretrain_is_named(words, complaint):
    with pytest.raises(UserError, match=complaint):
        pretrain.run(parse(pretrain, *words))


def test_losses_are_compared_from_the_same_start(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loss_comparison, "TRAINING_CLIPS", 4)
    monkeypatch.setattr(loss_comparison, "HELD_OUT_CLIPS", 3)
    words = ["--compare-loss", "2", "--seeds", "2", "--input-size", "4", "64", "64"]
    rows = run(pretrain, tmp_path, *words, "--decode-ratio", "0.5")["rows"]
    assert [(row["decode_ratio"], row["seed"]) for row in rows] == [
        (1.0, 0),
        (0.5, 0),
        (1.0, 1),
        (0.5, 1),
    ]
    assert rows[0]["loss_before"] == rows[1]["loss_before"] != rows[2]["loss_before"]
    assert len({row["loss_after"] for row in rows}) == 4
    assert rows[1]["loss_ratio"] == rows[1]["loss_after"] / rows[0]["loss_after"]
    assert "held-out" in capsys.readouterr().out


def test_the_held_out_loss_is_of_all_deleted_tokens(tiny):
    torch.manual_seed(0)
    settings = {"input_size": (4, 64, 64), "mask_ratio": 0.5}
    model = build_model("mae_hiera_tiny_16x224", decode_ratio=0.25, **settings)
    clips = torch.randn(3, 3, 4, 64, 64)
    once = loss_comparison.held_out_loss(model, clips)
    assert loss_comparison.held_out_loss(model, clips) == once
    model.decode_ratio = 1.0
    assert loss_comparison.held_out_loss(model, clips) == once


# ---- settings -------------------------------------------------------------------------------


def test_pure_formats_are_for_forward_only(capsys):
    args = parse(models, "--compile", "max-autotune", "--optimizer")
    found = compare.settings(args, ["fp16-pure"], ["forward", "train"])
    assert [(s["mode"], s["compiled"], s["optimizer"]) for s in found] == [
        ("forward", "", False),
        ("forward", "max-autotune", False),
    ]
    assert "fp16-pure: left out in training" in capsys.readouterr().out
    assert machine.usable_dtypes(["fp32-pure"], CPU) == {"fp32-pure": torch.float32}
