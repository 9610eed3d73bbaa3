"""Learning rates step by step, parameter groups by name, EMA and clipping against arithmetic."""

import math

import pytest
import torch
from torch import nn

from hiera_video.config import SolverConfig
from hiera_video.engine import optim
from hiera_video.errors import UserError

pytestmark = pytest.mark.numbers


class Layered(nn.Module):
    """Three blocks, numbered as Hiera numbers its own."""

    num_layers = 4

    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 2))
        self.patch_embed = nn.Linear(2, 2)
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 3)

    def no_weight_decay(self):
        return {"pos_embed"}

    def layer_id(self, name):
        if name.startswith(("pos_embed", "patch_embed")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else self.num_layers


def found(model, groups):
    """name -> (lr_scale, weight_decay)"""
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}


def lr_at(step, **settings):
    return optim.lr_at(step, optim.LRSchedule(**settings))


def test_warm_up_then_cosine_written_out():
    lrs = [
        lr_at(
            s,
            base_lr=1.0,
            total_steps=8,
            warmup_steps=4,
            warmup_start_lr=0.2,
            cosine_after_warmup=True,
        )
        for s in range(8)
    ]
    rest = [(math.cos(math.pi * k / 4) + 1) / 2 for k in range(4)]
    assert lrs == pytest.approx([0.2, 0.4, 0.6, 0.8, *rest])
    assert rest[0] == 1


def test_without_cosine_after_warmup_the_curve_spans_the_run():
    settings = {"base_lr": 2.0, "total_steps": 10, "warmup_steps": 5, "end_lr": 0.5}
    top = lr_at(5, **settings)
    assert top == pytest.approx(0.5 + 1.5 * 0.5)  # half-way down the cosine already
    assert lr_at(0, **settings) == 0
    assert lr_at(4, **settings) == pytest.approx(top * 4 / 5)
    assert lr_at(10, **settings) == pytest.approx(0.5)


def test_no_warm_up_starts_at_the_base():
    assert lr_at(0, base_lr=0.3, total_steps=5) == pytest.approx(0.3)
    assert lr_at(0, base_lr=0.3, total_steps=1) == pytest.approx(0.3)


def test_fractional_warm_up_is_continuous():
    settings = {"base_lr": 1.0, "total_steps": 100, "warmup_steps": 7.5}
    assert abs(lr_at(7, **settings) - lr_at(8, **settings)) < 0.1


# ---- parameter groups ---------------------------------------------------------------------------


def test_layer_decay_and_exemptions_name_by_name():
    model = Layered()
    groups = optim.parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    by_name = found(model, groups)
    assert by_name["pos_embed"] == (0.5**4, 0.0)
    assert by_name["patch_embed.weight"] == (0.5**4, 0.05)
    assert by_name["patch_embed.bias"] == (0.5**4, 0.0)
    assert by_name["blocks.0.weight"] == (0.5**3, 0.05)
    assert by_name["blocks.2.weight"] == (0.5, 0.05)  # the last block already gets one factor
    assert by_name["norm.weight"] == (1.0, 0.0)
    assert by_name["head.weight"] == (1.0, 0.05)
    assert by_name["head.bias"] == (1.0, 0.0)
    assert len(by_name) == len(list(model.parameters()))


def test_without_layer_decay_there_are_two_groups():
    model = Layered()
    groups = optim.parameter_groups(model, weight_decay=0.1)
    assert sorted(g["weight_decay"] for g in groups) == [0.0, 0.1]
    assert {g["lr_scale"] for g in groups} == {1.0}


def test_frozen_parameters_are_left_out():
    model = Layered()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    groups = optim.parameter_groups(model, weight_decay=0.1, layer_decay=0.5)
    assert set(found(model, groups)) == {"head.weight", "head.bias"}


def test_bad_layer_decay_and_models_without_layers():
    with pytest.raises(UserError, match=r"LAYER_DECAY 1\.5"):
        optim.parameter_groups(Layered(), weight_decay=0, layer_decay=1.5)
    with pytest.raises(UserError, match=r"set SOLVER\.LAYER_DECAY 1.0"):
        optim.parameter_groups(nn.Linear(2, 2), weight_decay=0, layer_decay=0.9)


def test_an_exempt_name_that_does_not_exist_is_found():
    class Wrong(Layered):
        def no_weight_decay(self):
            return {"pos_embed_decoder"}

    with pytest.raises(ValueError, match="pos_embed_decoder"):
        optim.parameter_groups(Wrong(), weight_decay=0.1)


def test_the_optimizer_gives_every_group_its_share():
    model = Layered()
    groups = optim.parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    optimizer = optim.build_optimizer(groups, SolverConfig(betas=(0.9, 0.95)))
    optim.set_lr(optimizer, 0.8)
    assert sorted({g["lr"] for g in optimizer.param_groups}) == pytest.approx(
        [0.05, 0.1, 0.2, 0.4, 0.8]
    )
    assert {g["betas"] for g in optimizer.param_groups} == {(0.9, 0.95)}
    plain = optim.parameter_groups(model, weight_decay=0)
    solver = SolverConfig(optimizing_method="sgd", momentum=0.9, nesterov=True)
    sgd = optim.build_optimizer(plain, solver)
    assert sgd.param_groups[0]["nesterov"]
    with pytest.raises(UserError, match=r"OPTIMIZING_METHOD=lamb must be one of adamw, sgd"):
        SolverConfig(optimizing_method="lamb")


def test_clipping_scales_to_the_norm_and_reports_the_norm_before():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert optim.clip_gradients([weight], None).item() == 5
    assert weight.grad.tolist() == [3, 4]
    assert optim.clip_gradients([weight], 1.0).item() == 5
    assert weight.grad.norm().item() == pytest.approx(1, abs=1e-5)
    assert optim.clip_gradients([weight], 10.0).item() == pytest.approx(1, abs=1e-5)
    assert weight.grad.norm().item() == pytest.approx(1, abs=1e-5)  # never scaled up


def test_ema_follows_the_weights():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = optim.Ema(model, decay=0.75)
    nn.init.ones_(model.weight)
    ema.update(model, step=1000)
    assert ema.state_dict()["weight"].item() == pytest.approx(0.25)
    ema.update(model, step=1001)
    assert ema.state_dict()["weight"].item() == pytest.approx(0.4375)
    other = optim.Ema(model, decay=0.75)
    other.load_state_dict(ema.state_dict())
    assert other.state_dict()["weight"].item() == pytest.approx(0.4375)
    with pytest.raises(UserError, match="another model"):
        other.load_state_dict({"bias": torch.zeros(1)})


def test_ema_of_the_first_steps_forgets_the_random_start():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = optim.Ema(model, decay=0.9999)
    nn.init.ones_(model.weight)
    for step in range(20):
        ema.update(model, step=step)
    assert ema.state_dict()["weight"].item() > 0.99


# ---- from one device to another -----------------------------------------------------------------


def stepped(device, *, fused, steps, restored=None):
    """A model and its optimizer after so many equal steps; begun from a stored state or afresh."""
    torch.manual_seed(0)
    model = Layered().to(device)
    groups = optim.parameter_groups(model, weight_decay=0.1)
    optimizer = optim.build_optimizer(groups, SolverConfig(), fused=fused)
    if restored is not None:
        model.load_state_dict(restored["model"])
        assert optim.restore_state(optimizer, restored["optimizer"]) == []
    optim.set_lr(optimizer, 0.1)
    for _ in range(steps):
        for number, parameter in enumerate(model.parameters(), start=1):
            parameter.grad = torch.full_like(parameter, number / 10)
        optimizer.step()
    return model, optimizer


def stored(model, optimizer, path):
    """What a checkpoint file makes of a state: all of it is on the CPU."""
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return torch.load(path, map_location="cpu")


def devices(optimizer):
    """Where each kind of state is, of all parameters."""
    return {(k, v.device.type) for state in optimizer.state.values() for k, v in state.items()}


STATE = ("step", "exp_avg", "exp_avg_sq")


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_fused_optimizer_goes_on_from_a_plain_one_and_back(tmp_path, before, after):
    content = stored(*stepped("cpu", fused=before, steps=3), tmp_path / "state.pt")
    model, optimizer = stepped("cpu", fused=after, steps=2, restored=content)
    straight, _ = stepped("cpu", fused=False, steps=5)
    torch.testing.assert_close(model.state_dict(), straight.state_dict())
    assert {int(state["step"]) for state in optimizer.state.values()} == {5}
    assert [group["fused"] for group in optimizer.param_groups] == [after] * 2


def test_the_whole_state_goes_to_the_device_of_its_parameter(tmp_path):
    """The step count too, which the fused kernel reads there. A device without numbers will do."""
    content = stored(*stepped("cpu", fused=False, steps=3), tmp_path / "state.pt")
    content["model"] = Layered().to("meta").state_dict()
    _, optimizer = stepped("meta", fused=True, steps=0, restored=content)
    assert devices(optimizer) == {(name, "meta") for name in STATE}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_moves_from_the_cpu_to_a_gpu_and_back(tmp_path):
    content = stored(*stepped("cpu", fused=False, steps=3), tmp_path / "cpu.pt")
    model, optimizer = stepped("cuda", fused=True, steps=2, restored=content)
    assert devices(optimizer) == {(name, "cuda") for name in STATE}
    content = stored(model, optimizer, tmp_path / "gpu.pt")
    model, optimizer = stepped("cpu", fused=False, steps=1, restored=content)
    assert devices(optimizer) == {(name, "cpu") for name in STATE}
    straight, _ = stepped("cpu", fused=False, steps=6)
    torch.testing.assert_close(model.state_dict(), straight.state_dict())
