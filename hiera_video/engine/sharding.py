"""A model whose parameters are sharded over the processes (FSDP2, TRAIN.SHARDING fsdp).

Each process keeps its part of every parameter, of its gradient, of the optimizer's state and of the
averaged weights. A block's parameters are gathered when it computes and dropped afterwards. All of
this hangs on the model and its tensors (`is_sharded`, DTensor): the steps of a run read the same
with and without it, through the functions of this file.

Matrix products get their number format from autocast, as without sharding, and not from FSDP's
MixedPrecisionPolicy: that would round the norms and the position embeddings as well.

Every forward pass needs all processes. In training they take the same number of steps. Elsewhere
(validation, features) the shares differ, so each pass without gradients is announced to the others,
and a process that has no more to do joins in until all are done: see `attend`.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from hiera_video.engine.distributed import World
from hiera_video.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

METHODS = ("forward_features",)
"""What is called on a model besides itself: its parameters are gathered for these too."""

WITHOUT_COMPILE = (
    "note: TRAIN.SHARDING fsdp runs without torch.compile: it gathers and drops parameters around "
    "every block, which no compiled graph can span, and CUDA graphs need them to stay in place"
)


def note_of(sharding: str, world: World) -> list[str]:
    """Return a note where TRAIN.SHARDING does nothing."""
    if sharding == "none" or world.size > 1:
        return []
    return ["TRAIN.SHARDING fsdp shards over several processes; this one trains the whole model"]


# ---- the model ----------------------------------------------------------------------------------


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the parts of a model that compute one after another, inner ones before outer ones.

    Those are the members of its lists and sequences that have several layers. They are the blocks
    of an encoder and of a decoder in every model of this package and in those of other libraries.
    """
    found: dict[nn.Module, None] = {}
    for module in model.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            found.update((child, None) for child in module if _layers(child) > 1)
    return [module for module in reversed(list(model.modules())) if module in found]


def _layers(module: nn.Module) -> int:
    return sum(bool(layer._parameters) for layer in module.modules())


def shard(model: nn.Module, world: World) -> None:
    """Keep this process's part of every parameter, in place, on its device.

    Before the optimizer is built: the parameters are others afterwards.
    Raises UserError where this PyTorch has no FSDP2.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    except ImportError as error:
        raise UserError(
            f"TRAIN.SHARDING fsdp needs torch.distributed.fsdp.fully_shard (PyTorch 2.6 or later, "
            f"built with distributed); this is {torch.__version__} ({error}). Set it to none"
        ) from error
    mesh = init_device_mesh(world.device.type, (world.size,))

    def place(parameter: nn.Parameter) -> Shard:
        return placement(parameter.shape, world.size)

    for module in (*blocks_of(model), model):
        fully_shard(module, mesh=mesh, shard_placement_fn=place)
    passes = _PASSES[model] = _Passes(world)
    for name in METHODS:
        if hasattr(model, name):
            plain = getattr(model, name)
            register_fsdp_forward_method(model, name)
            setattr(model, name, passes.around(getattr(model, name), plain))
    # before the hook of FSDP itself: what announces a pass comes before what is part of it
    model.register_forward_pre_hook(lambda model, _: passes.begin(model), prepend=True)
    model.register_forward_hook(lambda *_: passes.end(), always_call=True)
    for module in _sharded_modules(model):
        # Otherwise these tensors are made in the first pass, and if that is a validation, in
        # inference mode, which makes them useless for training.
        module.unshard()
        module.reshard()


def placement(shape: Sequence[int], size: int) -> Shard:
    """Return the dimension along which a tensor of this shape is cut for `size` processes: the
    first one that gives each a part, so that no process has nothing to keep."""
    from torch.distributed.tensor import Shard

    if shape[0] < size:  # FSDP2 cuts other dimensions than the first into equal parts only
        equal = [d for d, length in enumerate(shape) if length and length % size == 0]
        if equal:
            return Shard(max(equal, key=lambda d: shape[d]))
    return Shard(0)


def is_sharded(model: nn.Module) -> bool:
    """Return whether `shard` was called for this model."""
    return any(True for _ in _sharded_modules(model))


def _sharded_modules(model: nn.Module) -> Iterator[Any]:
    # every subclass of FSDPModule, without importing FSDP where nothing is sharded
    return (module for module in model.modules() if hasattr(module, "set_requires_gradient_sync"))


def reshard(model: nn.Module) -> None:
    """Drop the gathered parameters that a pass without gradients leaves behind."""
    for module in _sharded_modules(model):
        module.reshard()


def parallel(model: nn.Module, world: World) -> nn.Module:
    """Return the model that the steps of a run call: in DistributedDataParallel where each of
    several processes has a whole one, else as it is."""
    if world.size == 1 or is_sharded(model):
        return model
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


@contextlib.contextmanager
def exchanging(parallel: nn.Module, enabled: bool) -> Iterator[None]:
    """Exchange the gradients of a backward pass with the other processes, or keep them until the
    last part of a step: it sends the sum."""
    if isinstance(parallel, DistributedDataParallel) and not enabled:
        with parallel.no_sync():
            yield
        return
    if is_sharded(parallel):
        cast(Any, parallel).set_requires_gradient_sync(enabled)
    yield


# ---- tensors ------------------------------------------------------------------------------------


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, in the same memory: all of it unless it is cut."""
    part: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on every process; each of them calls this."""
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def like(target: Tensor, value: Tensor) -> Tensor:
    """Return `value`, which is whole or already the same part, as `target` lies on the processes.

    This is no collective.
    """
    if not hasattr(target, "to_local"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    own = cast("DTensor", target)
    if isinstance(value, DTensor):
        if value.placements == own.placements:
            return cut_like(own, value.to_local().to(own.device), own.device_mesh)
        raise ValueError(f"a tensor is cut as {value.placements}, and not as {own.placements}")
    return distribute_tensor(
        value.to(own.device), own.device_mesh, own.placements, src_data_rank=None
    )


def cut_like(target: DTensor, part: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return the sharded tensor, cut as `target` is, of which this process has `part`."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        mesh,
        target.placements,
        run_check=False,
        shape=target.shape,
        stride=target.stride(),
    )


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, or the same part of it, into `target`."""
    local(target).copy_(local(like(target, value)))


def placed(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `values` as the tensors of the same names in `own` lie on the processes."""
    return {key: like(own[key], value) if key in own else value for key, value in values.items()}


def whole_copy(module: nn.Module) -> nn.Module:
    """Copy a part of a model, without blocks in it, with whole parameters; on every process."""
    gathered = {
        id(parameter): nn.Parameter(whole(parameter.detach()).clone(), parameter.requires_grad)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, cast(dict[int, Any], gathered))


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients, those of the other processes' parts too; 0-d, on the
    device."""
    gradients = list(gradients)
    norm = torch.nn.utils.get_total_norm([local(gradient) for gradient in gradients])
    if any(hasattr(gradient, "to_local") for gradient in gradients):
        squares = norm.double().square()
        dist.all_reduce(squares)
        return squares.sqrt().to(norm.dtype)
    return norm


# ---- passes that not every process has to make --------------------------------------------------


def attend(model: nn.Module, world: World, pass_without_clips: Callable[[], object]) -> None:
    """Take part in the forward passes of the other processes until all have made theirs.

    Every process calls this after passes without gradients. pass_without_clips: makes a pass whose
    result is not used.
    """
    if not is_sharded(model):
        return
    passes = _PASSES[model]
    passes.joins = True
    try:
        while passes.count(own=0).item():
            pass_without_clips()
    finally:
        passes.joins = False
    reshard(model)


class _Passes:
    """The forward passes of a sharded model: those without gradients are announced to the other
    processes, which count them before they join."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.joins = False
        """Whether this process is in `attend`: it joins passes that others have announced."""
        self.inside = False

    def count(self, own: int) -> Tensor:
        """Count the processes about to make a pass, on the device; each says whether it is."""
        total = torch.full((1,), own, dtype=torch.int32, device=self.world.device)
        dist.all_reduce(total)
        return total

    def begin(self, model: nn.Module) -> None:
        """Note that a pass begins."""
        self.inside = True
        if torch.is_grad_enabled():
            send_statistics(model)
        elif not self.joins:
            self.count(own=1)

    def end(self) -> None:
        """Note that a pass has ended."""
        self.inside = False

    def around(
        self, gathering: Callable[..., Any], plain: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Return a method of a model, which is a pass by itself unless it is called in one."""

        def method(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return plain(*args, **kwargs)
            self.begin(plain.__self__)  # type: ignore[attr-defined]  # the model
            try:
                return gathering(*args, **kwargs)
            finally:
                self.end()

        return method


_PASSES: weakref.WeakKeyDictionary[nn.Module, _Passes] = weakref.WeakKeyDictionary()


def send_statistics(model: nn.Module) -> None:
    """Give every process the running statistics of rank 0, as DistributedDataParallel does."""
    for module in model.modules():
        if isinstance(module, _NormBase) and module.training and module.track_running_stats:
            for buffer in module.buffers(recurse=False):
                dist.broadcast(buffer, src=0)
