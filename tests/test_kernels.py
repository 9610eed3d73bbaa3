"""Kernels by measurement: what is chosen, kept and respected; never which one is faster."""

import json
import os

import pytest
import torch
import torch.nn.functional as F
from randomness import redraw
from torch.nn.attention import SDPBackend, sdpa_kernel

from hiera_video import build_model
from hiera_video.files import read_measured
from hiera_video.models import kernels
from hiera_video.models.kernels import PRODUCT, USUAL, Layer

pytestmark = pytest.mark.numbers

LAYER = Layer("attention", ((3, 1, 8, 4), (3, 1, 8, 4)), torch.float32, -1, False)


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """A cache folder and a memory of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "_known", {})


@pytest.fixture
def measured_here(monkeypatch):
    """Measure on the CPU too: what a GPU does, but for the times."""
    monkeypatch.setattr(kernels, "MEASURED_ON", {"cpu"})


def cache(tmp_path):
    return tmp_path / "hiera_video" / "kernels.json"


# ---- the stem as a product --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [((50,), (5,), (3,)), ((20, 22), (7, 7), (4, 4)), ((6, 20, 22), (3, 7, 7), (2, 4, 4))],
)
def test_a_product_is_the_convolution(size, kernel, stride):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, *size, generator=generator)
    filters = torch.randn(8, 3, *kernel, generator=generator).requires_grad_()
    bias = torch.randn(8, generator=generator)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
    found = []
    for out in (
        convolve(pixels, filters, bias, stride),
        kernels.as_product(pixels, filters, bias, stride),
    ):
        (gradient,) = torch.autograd.grad(out.square().mean(), filters)
        found.append((out, gradient))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-4)


def test_under_autocast_a_product_computes_in_its_format():
    pixels, filters = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    exact = F.conv2d(pixels, filters, None, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = kernels.as_product(pixels, filters, None, (2, 2))
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() < 2**-7 * exact.abs().max()


@pytest.mark.parametrize("name", ["hiera_tiny_16x224", "mae_hiera_tiny_16x224"])
@pytest.mark.parametrize("way", ["plain", "compiled"])
def test_a_model_computes_the_same_whatever_is_chosen(name, way, measured_here, monkeypatch):
    """The other kernel of every layer, in training, whole images and masked ones."""
    decoder = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    sizes = {"input_size": (4, 64, 64), "embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)}
    model = build_model(name, **sizes, **(decoder if name.startswith("mae") else {}))
    redraw(model).train()
    clips = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    known = {}
    if name.startswith("mae"):
        known = {"keep": model.random_keep(2, 0.5, torch.Generator().manual_seed(0)), "kept": 4}
    asked = []

    def answer(layer, candidates):
        asked.append(layer)
        return other if layer.kind == "attention" else (PRODUCT if other != USUAL else USUAL)

    monkeypatch.setattr(kernels, "remembered", answer)
    found = []
    for other in (USUAL, "flash"):
        torch._dynamo.reset()
        run = model
        if way == "compiled" and other != USUAL:
            run = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
        model.zero_grad()
        out = run(clips, **known)
        loss = out.loss if known else out.square().mean()
        loss.backward()
        stem = next(p for n, p in model.named_parameters() if n.endswith("patch_embed.proj.weight"))
        found.append((loss.item(), stem.grad.clone()))
    assert {layer.kind for layer in asked} == {"attention", "stem"}
    assert all(layer.trained for layer in asked)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)


# ---- what is asked ----------------------------------------------------------------------------


def test_nothing_is_measured_on_a_cpu(monkeypatch):
    monkeypatch.setattr(kernels, "remembered", lambda *_: pytest.fail("measured"))
    q = torch.randn(2, 1, 4, 8)
    kernels.attention(q, q, q)
    assert not kernels.is_stem_a_product(torch.zeros(1, 3, 8, 8), torch.zeros(4, 3, 3, 3), (2, 2))


def test_kernels_that_the_caller_has_chosen_stay(measured_here, monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "remembered", lambda layer, _: asked.append(layer) or USUAL)
    q = torch.randn(2, 1, 4, 8)
    with sdpa_kernel(SDPBackend.MATH):
        kernels.attention(q, q, q)
    assert not asked
    kernels.attention(q, q, q)
    assert [layer.trained for layer in asked] == [False]
    kernels.attention(q.requires_grad_(), q, q)
    assert [layer.trained for layer in asked] == [False, True]
    kernels.attention(q, q, q, torch.zeros(2, 1, 4, 4))  # a bias: only some kernels take one
    assert len(asked) == 2


@pytest.mark.parametrize(("most", "expected"), [(1 << 20, [1, 2, 8, 8, 16]), (64, [1, 2, 2, 2, 2])])
def test_batches_are_measured_as_powers_of_two(measured_here, monkeypatch, most, expected):
    asked = []
    monkeypatch.setattr(kernels, "remembered", lambda layer, _: asked.append(layer) or USUAL)
    monkeypatch.setattr(kernels, "_ELEMENTS", most)
    for batch in (1, 2, 5, 8, 9):
        kernels.attention(*[torch.randn(batch, 1, 4, 8)] * 3)
    assert [layer.shapes[0][0] for layer in asked] == expected


def test_a_training_step_keeps_no_huge_matrix(measured_here, monkeypatch):
    monkeypatch.setattr(kernels, "remembered", lambda *_: PRODUCT)
    pixels, filters = torch.zeros(1, 3, 8, 8), torch.zeros(4, 3, 3, 3, requires_grad=True)
    assert kernels.is_stem_a_product(pixels, filters, (2, 2))
    monkeypatch.setattr(kernels, "_MATRIX_BYTES", 100)
    assert not kernels.is_stem_a_product(pixels, filters, (2, 2))
    with torch.no_grad():
        assert kernels.is_stem_a_product(pixels, filters, (2, 2))


@pytest.mark.parametrize("trained", [False, True])
def test_a_real_measurement_ends_with_a_kernel_that_works(measured_here, trained):
    q = torch.randn(6, 2, 16, 8, requires_grad=trained)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = kernels.attention(q, q, q)
    exact = F.scaled_dot_product_attention(q, q, q)
    torch.testing.assert_close(out.float(), exact, atol=2e-2, rtol=2e-2)
    pixels, filters = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=trained)
    kernels.is_stem_a_product(pixels, filters, (2, 2))
    lines = kernels.choices()
    assert len(lines) == 2
    assert all(line.startswith(f"cpu, torch {torch.__version__}") for line in lines)


def test_measuring_draws_from_no_generator_of_the_run(measured_here):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    kernels.attention(*[torch.randn(2, 1, 4, 8, generator=torch.Generator())] * 3)
    assert torch.equal(torch.get_rng_state(), before)


# ---- the fastest ------------------------------------------------------------------------------


def test_the_fastest_that_works_and_the_usual_one_unless_it_is_beaten(monkeypatch):
    seconds = {}
    monkeypatch.setattr(kernels, "_seconds", lambda call, device: seconds[call()])

    def choose(**times):
        seconds.clear()
        seconds.update(times)
        return kernels.fastest({n: lambda n=n: n for n in times}, torch.device("cpu"))

    assert choose(usual=2.0, flash=1.0, cudnn=1.5) == "flash"
    assert choose(usual=1.02, flash=1.0) == "usual"
    assert choose(usual=1.0, flash=2.0) == "usual"

    def broken():
        raise RuntimeError("no kernel")

    seconds.update(usual=2.0)
    assert kernels.fastest({"usual": lambda: "usual", "x": broken}, torch.device("cpu")) == "usual"
    assert kernels.fastest({"usual": broken}, torch.device("cpu")) == "usual"


# ---- the file ---------------------------------------------------------------------------------


def calls(name, monkeypatch):
    """What `fastest` says, and how often it was asked."""
    asked = []
    monkeypatch.setattr(kernels, "fastest", lambda *_: asked.append(1) or name)
    return asked


def test_a_choice_is_measured_once_and_kept_for_other_processes(tmp_path, monkeypatch):
    asked = calls("flash", monkeypatch)
    for _ in range(3):
        assert kernels.remembered(LAYER, lambda layer: {}) == "flash"
    kernels._known.clear()  # as in another process
    assert kernels.remembered(LAYER, lambda layer: {}) == "flash"
    assert len(asked) == 1
    ((key, value),) = json.loads(cache(tmp_path).read_text()).items()
    assert value == "flash"
    for part in ("cpu", torch.__version__, "attention", "3x1x8x4", "float32", "infer"):
        assert part in key


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}', "\x00\xff"])
def test_a_damaged_file_is_measured_again_and_replaced(tmp_path, monkeypatch, content):
    cache(tmp_path).parent.mkdir()
    cache(tmp_path).write_bytes(content.encode("latin-1"))
    asked = calls("cudnn", monkeypatch)
    assert kernels.remembered(LAYER, lambda layer: {}) == "cudnn"
    assert len(asked) == 1
    assert read_measured(cache(tmp_path), str) == {LAYER.key(): "cudnn"}


def test_an_unknown_kernel_in_the_file_is_the_usual_one(tmp_path):
    kernels.store_choice(cache(tmp_path), LAYER.key(), "of tomorrow")
    assert kernels.remembered(LAYER, lambda layer: {}) == USUAL


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    calls("flash", monkeypatch)
    assert kernels.remembered(LAYER, lambda layer: {}) == "flash"
    assert os.listdir(tmp_path) == ["file"]


def test_too_little_memory_to_measure_is_no_error():
    def candidates(layer):
        raise torch.OutOfMemoryError("no")

    assert kernels.remembered(LAYER, candidates) == USUAL


def test_the_compiler_takes_a_choice_of_kernel_as_constant():
    """`constant_in_graphs` does what the function of this PyTorch does, without its imports."""

    def ours():
        return 0

    def official():
        return 0

    kernels.constant_in_graphs(ours)
    torch.compiler.assume_constant_result(official)
    assert vars(ours) == vars(official) != {}
    for choice in (kernels.attention_kernel, kernels.stem_kernel):
        assert vars(choice) == vars(official)
