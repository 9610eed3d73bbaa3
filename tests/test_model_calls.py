"""Models as tools and strangers call them: by position, traced twice, with inputs of every kind."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from onnx.reference import ReferenceEvaluator
from randomness import redraw, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

from hiera_video import build_model, create_hiera
from hiera_video.errors import UserError

SMALL = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
VIDEO = {**SMALL, "input_size": (4, 64, 64)}
IMAGE = {**SMALL, "input_size": (64, 64)}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}

CLASSIFIERS = {
    "hiera_tiny_16x224": VIDEO,
    "hiera_tiny_224": IMAGE,
    "ladder_r0_small_16x224": VIDEO,
    "ladder_r1_small_16x224": VIDEO,
    "ladder_r2b_small_16x224": VIDEO,
    "ladder_r3_small_224": IMAGE,
}
AUTOENCODERS = {
    "mae_hiera_tiny_16x224": {**VIDEO, **DECODER},
    "mae_hiera_tiny_224": {**IMAGE, **DECODER},
    "mae_ladder_r1_small_16x224": {**VIDEO, **DECODER},
}
MODELS = {**CLASSIFIERS, **AUTOENCODERS}


def made(name, **overrides):
    """A small model with parameters at random, and two clips for it."""
    arguments = {**MODELS[name], **overrides}
    if name in CLASSIFIERS:
        arguments["num_classes"] = 5
    model = redraw(build_model(name, **arguments))
    generator = torch.Generator().manual_seed(3)
    return model, torch.randn(2, 3, *model.input_size, generator=generator)


# ---- by position, and traced --------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_argument_may_come_by_position(name):
    """The classic ONNX exporter fills in all arguments of `forward` by their place."""
    model, clips = made(name)
    model.eval()
    keep, kept = arguments_of_a_call(name, model)
    with torch.no_grad():
        by_place, by_name = model(clips, keep, kept), model(clips, keep=keep)
    if name in AUTOENCODERS:
        by_place, by_name = by_place.pred, by_name.pred
    assert torch.equal(by_place, by_name)


def arguments_of_a_call(name, model):
    """Mask and number of kept units for two clips; None for a model without mask units."""
    if "_r0_" in name:
        return None, None
    encoder = getattr(model, "encoder", model)
    keep = encoder.random_keep(2, 0.5, torch.Generator().manual_seed(1))
    return keep, int(keep[0].sum())


@pytest.mark.parametrize("name", MODELS)
def test_a_profiler_gives_the_arguments_by_position(name):
    """fvcore traces the model with a tuple of inputs and counts what the trace computes."""
    model, clips = made(name)
    keep, kept = arguments_of_a_call(name, model.eval())
    inputs = (clips,) if keep is None else (clips, keep)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the number of kept units becomes a constant
        counter = FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False)
        masked = counter.uncalled_modules_warnings(False).total()
    assert masked > 0
    with torch.profiler.profile() as profile, torch.no_grad():
        model(clips, keep, kept)
    assert any("linear" in event.key for event in profile.key_averages())


@pytest.mark.parametrize(
    "name", ["hiera_tiny_16x224", "mae_hiera_tiny_16x224", "ladder_r1_small_16x224"]
)
def test_an_exported_program_takes_the_arguments_by_position(name):
    model, clips = made(name)
    keep, kept = arguments_of_a_call(name, model.eval())
    program = torch.export.export(model, (clips, keep, kept))
    with torch.no_grad():
        exported, expected = program.module()(clips, keep, kept), model(clips, keep, kept)
    if name in AUTOENCODERS:
        exported, expected = exported.pred, expected.pred
    assert relative_error(exported, expected) < 1e-5


@pytest.mark.parametrize("kind", ["baseline", "create_hiera", "videomae"])
def test_other_models_are_traced_and_called_by_position(kind):
    model = KINDS[kind]().eval()
    clips = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(5))
    if kind == "videomae":
        keep = model.random_keep(2, 0.5, torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert torch.equal(model(clips, keep).pred, model(clips, keep=keep).pred)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, clips, check_trace=False)
    with torch.no_grad():
        assert relative_error(traced(clips), model(clips)) < 1e-5


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_trace_passes_its_own_check(name):
    """`torch.jit.trace` traces again, without gradients, and compares the two graphs."""
    model, clips = made(name)
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and shapes become constants
        traced = torch.jit.trace(model, clips)
    other = torch.randn(clips.shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert relative_error(traced(other), model(other)) < 1e-5


@pytest.mark.parametrize("name", ["hiera_tiny_16x224", "ladder_r0_small_16x224"])
def test_the_classic_onnx_exporter_gives_the_same_logits(name, tmp_path):
    model, clips = made(name)
    model.eval()
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (clips,), str(path), dynamo=False)
    onnx.checker.check_model(str(path))
    graph = ReferenceEvaluator(str(path))
    (logits,) = graph.run(None, {graph.input_names[0]: clips.numpy()})
    with torch.no_grad():
        assert relative_error(torch.from_numpy(logits), model(clips)) < 1e-4


# ---- inputs that no model can take --------------------------------------------------------------

WRONG = {
    "bytes": (lambda x: (x * 20).to(torch.uint8), r"torch\.uint8.*normalised floats.*mean.*std"),
    "whole numbers": (lambda x: x.long(), r"torch\.int64.*normalised floats"),
    "no clips": (lambda x: x[:0], r"\(0, 3, .*no clips; at least 1"),
    "double precision": (lambda x: x.double(), r"torch\.float64.*to\(torch\.float32\)"),
    "half precision": (lambda x: x.half(), r"torch\.float16.*autocast"),
    "another device": (lambda x: x.to("meta"), r"on meta and the model is on cpu.*to\('cpu'\)"),
    "an array": (lambda x: np.asarray(x), r"ndarray; a model takes a torch\.Tensor"),
    "nothing": (lambda x: None, r"NoneType; a model takes a torch\.Tensor"),
    "another size": (lambda x: x[..., :32], r"takes \[B, 3, .*64( or more)?, 64"),
    "too few dimensions": (lambda x: x[0], r"takes \[B, 3, .*64( or more)?, 64"),
}


def baseline():
    """Another library's network."""
    return build_model("x3d_xs", num_classes=5, input_size=(4, 64, 64))


def pretraining_of_another_library():
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return build_model("mae_videomae_base_16x224", input_size=(4, 64, 64), library=sizes)


def in_pytorchvideos_manner():
    return create_hiera(stage_depths=(1, 1, 1, 1), stem_dim_out=8, spatial_size=64, temporal_size=4)


KINDS = {
    "classifier": lambda: made("hiera_tiny_16x224")[0],
    "image classifier": lambda: made("hiera_tiny_224")[0],
    "autoencoder": lambda: made("mae_hiera_tiny_16x224")[0],
    "mvit": lambda: made("ladder_r0_small_16x224")[0],
    "baseline": baseline,
    "create_hiera": in_pytorchvideos_manner,
    "videomae": pretraining_of_another_library,
}


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_no_model_can_take_are_refused_in_words(kind):
    model = KINDS[kind]().eval()
    frames = () if kind == "image classifier" else (4,)
    clips = torch.randn(2, 3, *frames, 64, 64)
    model(clips)  # this it takes
    for spoil, message in WRONG.values():
        with pytest.raises(UserError, match=message):
            model(spoil(clips))


def test_other_float_formats_are_taken_where_they_fit():
    model, clips = made("hiera_tiny_16x224")
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(clips.bfloat16()).shape == (2, 5)
        with pytest.raises(UserError, match=r"torch\.float64"):
            model(clips.double())
    with torch.no_grad():
        assert model.double()(clips.double()).dtype == torch.float64


# ---- what convolutions are given ----------------------------------------------------------------


class ConvolutionInputs(TorchDispatchMode):
    """Notes the strides of every convolution's input."""

    def __init__(self):
        super().__init__()
        self.inputs = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.inputs.append((tuple(args[0].shape), args[0].stride(), args[0].is_contiguous()))
        return function(*args, **(kwargs or {}))


def loss_of(model, clips):
    if hasattr(model, "encoder"):
        keep = model.random_keep(2, 0.5, torch.Generator().manual_seed(1))
        return model(clips, keep).loss
    return model(clips).square().mean()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_convolutions_are_given_contiguous_pictures(name, precision):
    model, clips = made(name)
    gaps = torch.zeros(*clips.shape[:-1], 2 * clips.shape[-1])[..., ::2]
    gaps.copy_(clips)  # the same clips as a view with gaps
    for given in (clips, gaps):
        with (
            torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32),
            ConvolutionInputs() as seen,
        ):
            loss_of(model, given)
        assert seen.inputs
        views = [found for found in seen.inputs if not found[2]]
        assert not views


@pytest.mark.parametrize("name", MODELS)
def test_weight_gradients_in_bfloat16_are_those_of_double_precision_but_for_rounding(name):
    model, clips = made(name)
    exact, _ = made(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, clips)
    loss.backward()
    loss_of(exact.double(), clips.double()).backward()
    wanted = dict(exact.named_parameters())
    filters = [n for n, p in model.named_parameters() if p.dim() > 2 and "pos_embed" not in n]
    assert filters
    for filter_name in filters:
        ours, theirs = (
            g.grad.double() for g in (model.get_parameter(filter_name), wanted[filter_name])
        )
        # a wrong gradient is unrelated to the right one; rounding leaves the direction
        cosine = torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
        assert cosine > 0.8, filter_name
        assert 0.7 < (ours.norm() / theirs.norm()) < 1.4, filter_name
