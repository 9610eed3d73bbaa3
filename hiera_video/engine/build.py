"""The parts of a training run, built from its Config: lists, data sets, loaders, model, optimizer.

These functions see a whole Config; what they build takes a section of it or plain arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.config import Config, SolverConfig
from hiera_video.config.clips import MixupConfig
from hiera_video.data.datasets import FixedClips, TestReader, TrainReader, VideoDataset
from hiera_video.data.loader import Loader, LoaderSettings, build_loader
from hiera_video.data.manifests.layouts import Manifest, video_groups
from hiera_video.data.relabel import fit_labels
from hiera_video.data.synthetic.generated_streams import STREAMS
from hiera_video.data.transforms.flips import LabelAwareFlips
from hiera_video.data.transforms.mixup import MixUpCutMix
from hiera_video.data.transforms.photometric import Photometric
from hiera_video.data.transforms.train import TrainTransform
from hiera_video.engine import (
    attentive,
    data_source,
    optim,
    preflight,
    probe,
    sharded_checkpoint,
    sharding,
    tasks,
)
from hiera_video.engine.compiling import choose_compile
from hiera_video.engine.distributed import World
from hiera_video.engine.finite import FiniteState
from hiera_video.engine.schedule import Schedule, build_schedule
from hiera_video.engine.state import CheckpointWriter, RunRecord, TrainingState
from hiera_video.engine.step import Advice, Forward, StepRecipe, sum_names
from hiera_video.errors import UserError
from hiera_video.models import build_model
from hiera_video.models.readout import AttentiveReadout

# ---- lists and data sets ------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingData:
    """The videos of a run."""

    train_list: Manifest
    val_list: Manifest | None
    """None where the objective is not validated."""
    dataset: VideoDataset
    validation: VideoDataset | None
    labelled: bool
    """Whether the objective needs labels."""
    num_classes: int
    """Outputs of the model; unused where labels are not needed."""
    classes: list[str]
    """Names of the outputs; empty where they have none."""

    @property
    def notes(self) -> list[str]:
        """What a user should know of the lists; of the outputs, only where labels are needed."""
        unused = self.train_list.unused_outputs() if self.labelled else ""
        notes = [*([unused] if unused else []), *self.train_list.notes]
        return list(dict.fromkeys([*notes, *(self.val_list.notes if self.val_list else ())]))


def training_data(cfg: Config, world: World) -> TrainingData:
    """Read the lists, on the main process, and build their data sets on each.

    Raises DataError for data that is missing, empty or wrongly labelled.
    """
    train_list, val_list = world.run_on_main(read_lists, cfg)
    return TrainingData(
        train_list=train_list,
        val_list=val_list,
        dataset=training_set(cfg, train_list),
        validation=None if val_list is None else validation_set(cfg, val_list),
        labelled=tasks.get(cfg.task).labelled,
        num_classes=cfg.model.num_classes or train_list.num_classes,
        classes=class_names(cfg, train_list),
    )


def choose_by_size(cfg: Config, data: TrainingData) -> tuple[Config, list[str]]:
    """Return the settings for as many training videos as there are, and notes on what was chosen.

    With too few of them for fine-tuning, see TRAIN.PROBE_ALONE_BELOW, no epochs are left. With too
    many for the tokens of an attentive probe to be kept, the usual steps fit it.
    """
    cfg, notes = _fine_tune_or_not(cfg, data)
    cfg, more = _keep_tokens_or_not(cfg, data)
    return cfg, [*notes, *more]


def _fine_tune_or_not(cfg: Config, data: TrainingData) -> tuple[Config, list[str]]:
    """Return the settings with or without fine-tuning after a probe, and a note."""
    videos, least, solver = len(data.dataset), cfg.train.probe_alone_below, cfg.solver
    if not cfg.train.fits_probe or not least or not (solver.max_steps or solver.max_epoch):
        return cfg, []
    if videos >= least:
        return cfg, [f"{videos} training videos, {least} or more: fine-tuning follows the probe"]
    note = (
        f"{videos} training videos, fewer than {least}: the probe alone, without fine-tuning "
        "(TRAIN.PROBE_ALONE_BELOW 0 fine-tunes all the same)"
    )
    none = dataclasses.replace(solver, max_epoch=0, max_steps=0)
    return dataclasses.replace(cfg, solver=none), [note]


def _keep_tokens_or_not(cfg: Config, data: TrainingData) -> tuple[Config, list[str]]:
    """Return the settings for an attentive probe whose tokens are too many to be kept: steps of the
    usual training that change readout, norm and head alone; and a note."""
    if cfg.train.probe != "attentive" or cfg.solver.max_epoch or cfg.solver.max_steps:
        return cfg, []
    with torch.device("meta"):
        model, _ = training_model(cfg, num_classes=data.num_classes)
    size = probe.bytes_of_features(model, clips=len(data.dataset) * cfg.train.probe_views)
    if size <= attentive.MOST_BYTES:
        return cfg, []
    epochs = attentive.STEPPED_EPOCHS
    note = (
        f"the tokens of {len(data.dataset)} x {cfg.train.probe_views} clips take "
        f"{size / 2**30:.1f} GiB: they are computed anew in each of {epochs} epochs, which train "
        "the head alone (TRAIN.LINEAR_PROBE)"
    )
    model_settings = dataclasses.replace(cfg.model, kwargs={**cfg.model.kwargs, "attentive": True})
    train = dataclasses.replace(cfg.train, probe="off", linear_probe=True)
    solver = dataclasses.replace(
        cfg.solver,
        max_epoch=epochs,
        base_lr=attentive.LEARNING_RATE,
        lr_batch=0,
        layer_decay=1.0,
        weight_decay=attentive.USUAL[0],
    )
    return dataclasses.replace(cfg, model=model_settings, train=train, solver=solver), [note]


def require_probe(cfg: Config, data: TrainingData, model: nn.Module) -> None:
    """Raise UserError where TRAIN.PROBE does not fit the model, or the features the memory."""
    if not cfg.train.fits_probe:
        return
    is_attentive = cfg.train.probe == "attentive"
    (attentive.require_attentive if is_attentive else probe.require_linear)(model)
    most = attentive.MOST_BYTES if is_attentive else probe.MOST_BYTES
    probe.require_memory(model, clips=len(data.dataset) * cfg.train.probe_views, most=most)


def require_usable(data: TrainingData, world: World, *, guarded: bool) -> None:
    """Raise UserError where all videos are of one class, RunFailed where none can be read.

    guarded: read in a process of its own, as the workers of a loader do.
    """
    if data.labelled:
        preflight.require_classes(data.train_list)
    world.run_on_main(preflight.require_readable, data.dataset, what="training", guarded=guarded)
    if data.validation is not None:
        world.run_on_main(
            preflight.require_readable, data.validation, what="validation", guarded=guarded
        )


def read_lists(cfg: Config) -> tuple[Manifest, Manifest | None]:
    """Read the lists of training and validation videos; None where nothing is validated."""
    objective = tasks.get(cfg.task)
    if objective.parts is not None:
        return objective.parts.read_split(cfg, "train"), objective.parts.read_split(cfg, "val")
    source = data_source.DataSource(cfg.data, cfg.train.dataset, cfg.rng_seed, cfg.synthetic)
    train_list = data_source.read_split(
        source,
        "train",
        num_classes=cfg.model.num_classes if objective.labelled else 0,
        need_labels=objective.labelled,
        hold_out=True if objective.validated else None,
    )
    if not objective.validated:
        return train_list, None
    names = class_names(cfg, train_list)
    num_classes = cfg.model.num_classes or train_list.num_classes
    val_list = data_source.read_split(source, "val", num_classes=num_classes)
    if names or val_list.classes:
        val_list = fit_labels(val_list, names=names, count=num_classes, owner="the training list")
    return train_list, val_list


def class_names(cfg: Config, manifest: Manifest) -> list[str]:
    """Return the names of the model's outputs, as a checkpoint keeps them; empty where the data
    has none, or the objective needs no labels."""
    if not tasks.get(cfg.task).labelled:
        return []
    return preflight.class_names(manifest, cfg.model.num_classes)


def training_set(cfg: Config, manifest: Manifest) -> VideoDataset:
    """Build the training data set: random clips, as DATA and AUG describe them, or generated ones,
    which need no augmentation."""
    parts = tasks.get(cfg.task).parts
    if parts is not None:
        return parts.training_set(cfg, manifest)
    spec = cfg.data.clip_spec(training=True)
    if manifest.name in STREAMS:
        views = cfg.data.train_crop_num_temporal
        reader = STREAMS[manifest.name].reader(spec, seed=cfg.rng_seed, clips_per_video=views)
        return VideoDataset(manifest, reader, seed=cfg.rng_seed)
    transform = TrainTransform(
        spec,
        area=cfg.data.train_jitter_scales_relative,
        aspect=cfg.data.train_jitter_aspect_relative,
        flip=0.5 if cfg.data.random_flip else 0.0,
        rand_augment=cfg.aug.aa_type,
        erase_prob=cfg.aug.re_prob,
        erase_mode=cfg.aug.re_mode,
        erase_count=cfg.aug.re_count,
        photometric=Photometric(
            gamma=cfg.aug.gamma,
            gain=cfg.aug.gain,
            noise=cfg.aug.noise,
            blur=cfg.aug.blur,
            grey=cfg.aug.grey,
        ),
    )
    return VideoDataset(
        manifest,
        TrainReader(
            transform,
            num_temporal=cfg.data.train_crop_num_temporal,
            num_augment=cfg.aug.num_sample,
            speed=cfg.aug.speed,
            decoder=cfg.data.decoding_backend,
            seed=cfg.rng_seed,
        ),
        labelled=tasks.get(cfg.task).labelled,
    )


def validation_set(cfg: Config, manifest: Manifest) -> VideoDataset:
    """Build the validation data set: of each video the middle clip and centre crop."""
    parts = tasks.get(cfg.task).parts
    if parts is not None:
        return parts.test_set(cfg, manifest, crops=1)
    spec = cfg.data.clip_spec(training=False)
    return VideoDataset(manifest, TestReader(spec, decoder=cfg.data.decoding_backend))


# ---- loaders and schedule -----------------------------------------------------------------------


def training_loader(
    cfg: Config, dataset: VideoDataset, world: World, *, start: int = 0, end: int | None = None
) -> Loader:
    """Build the loader of this process's batches, from step `start` to before step `end` (None:
    where the epoch of `start` ends)."""
    return build_loader(
        dataset,
        LoaderSettings(
            batch_size=cfg.train.batch_size,
            num_workers=world.loader_workers(cfg.data_loader.num_workers),
            rank=world.rank,
            world_size=world.size,
            grad_accum=cfg.train.grad_accum,
            start_step=start,
            stop_step=end,
            pin_memory=cfg.data_loader.pin_memory,
        ),
    )


def validation_loader(cfg: Config, data: TrainingData, world: World) -> Loader | None:
    """Build the loader of this process's share of the validation videos; None for no videos."""
    if data.validation is None:
        return None
    return build_loader(
        data.validation,
        LoaderSettings(
            batch_size=cfg.test.batch_size,
            num_workers=world.loader_workers(cfg.data_loader.num_workers),
            rank=world.rank,
            world_size=world.size,
            pin_memory=cfg.data_loader.pin_memory,
        ),
    )


def probe_loader(cfg: Config, data: TrainingData, world: World) -> Loader:
    """Build the loader of this process's share of the training videos, each once, with the clips
    that TRAIN.PROBE is fitted to."""
    reader = data.dataset.reader
    if not isinstance(reader, TrainReader):
        raise UserError("TRAIN.PROBE needs videos; these clips are generated as they are needed")
    places = -(-cfg.train.probe_views // reader.num_augment)
    dataset = VideoDataset(
        data.train_list, FixedClips(dataclasses.replace(reader, num_temporal=places))
    )
    dataset.unreadable = data.dataset.unreadable  # found by either, avoided by both
    return build_loader(
        dataset,
        LoaderSettings(
            batch_size=max(1, cfg.test.batch_size // dataset.clips_per_video),
            num_workers=world.loader_workers(cfg.data_loader.num_workers),
            rank=world.rank,
            world_size=world.size,
            pin_memory=cfg.data_loader.pin_memory,
        ),
    )


def plan_of(cfg: Config, dataset: VideoDataset, world: World) -> Schedule:
    """Compute steps, epochs and learning rates; DataError where the batch does not divide."""
    loader = training_loader(cfg, dataset, world)
    plan = build_schedule(
        cfg.solver,
        videos=len(dataset),
        videos_per_step=loader.batch_size,
        clips_per_video=dataset.clips_per_video,
        steps_per_epoch=loader.steps_per_epoch,
    )
    return dataclasses.replace(plan, unit=dataset.manifest.unit)


# ---- model and optimizer ------------------------------------------------------------------------


def training_model(cfg: Config, *, num_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model, with initial weights that are a function of RNG_SEED.

    Returns it with its identity for a checkpoint: {"name", "kwargs"}, enough to build it again.
    Raises UserError for a model that does not fit the objective or the clips.
    """
    objective = tasks.get(cfg.task)
    arguments = cfg.model_arguments()
    if objective.labelled:
        if num_classes < 1:
            raise UserError("the number of classes is unknown: set MODEL.NUM_CLASSES")
        arguments["num_classes"] = num_classes
    torch.manual_seed(tasks.stream_seed(cfg.rng_seed, "weights"))
    try:
        model = build_model(cfg.model.model_name, **arguments)
    except UserError as error:
        raise UserError(f"{error}{objective.hint(str(error))}") from error
    preflight.require_fitting_clips(cfg.model.model_name, model, cfg.data, training=True)
    if objective.validated:
        preflight.require_fitting_clips(cfg.model.model_name, model, cfg.data, training=False)
    arguments.pop("act_checkpoint", None)  # changes how the model computes, not what
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    return model, {"name": cfg.model.model_name, "kwargs": plain}


def initial_model(cfg: Config, data: TrainingData) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model as it is before the first step, on the CPU, and its identity, see
    `training_model`."""
    model, identity = training_model(cfg, num_classes=data.num_classes)
    if cfg.train.linear_probe:
        freeze_backbone(model)
    return model, identity


def initial_state(cfg: Config, data: TrainingData, model: nn.Module, world: World) -> TrainingState:
    """Place the model of `initial_model` on the processes, sharded where TRAIN.SHARDING says so,
    and build optimizer, scaler and averaged weights around it."""
    if is_sharded_run(cfg, world):
        sharding.shard(model, world)
    else:
        model.to(world.device)
    fp16 = cfg.train.mixed_precision == "fp16"
    return TrainingState(
        model=model,
        optimizer=build_optimizer(cfg.solver, model, world.device),
        scaler=torch.amp.GradScaler(world.device.type, enabled=fp16),
        sums=[0.0] * len(sum_names(tasks.get(cfg.task))),
        classes=data.classes,
        ema=optim.Ema(model, cfg.train.ema_decay) if cfg.train.ema_decay else None,
    )


def is_sharded_run(cfg: Config, world: World) -> bool:
    """Whether each process has a part of the parameters."""
    return cfg.train.sharding == "fsdp" and world.size > 1


def checkpoint_writer(
    cfg: Config,
    data: TrainingData,
    plan: Schedule,
    model: nn.Module,
    identity: dict[str, Any],
    world: World,
) -> CheckpointWriter:
    """Build what writes and reads the checkpoints of the run; `model` and `identity` as
    `initial_model` built them."""
    folder = Path(cfg.output_dir).expanduser()
    record = RunRecord(
        model=identity,
        multi_label=cfg.sigmoid_scores,
        spec=cfg.data.clip_spec(training=False).to_dict(),
        settings=cfg.to_yaml(),
        data=data_source.fingerprint(data.train_list),
    )
    writer = CheckpointWriter(
        folder / "checkpoints",
        record,
        steps_per_epoch=plan.steps_per_epoch,
        keep=cfg.train.keep_checkpoints,
        numbers=FiniteState(model, "a fresh model"),
        advice=Advice(cfg.solver, cfg.train.mixed_precision, folder),
    )
    return sharded_checkpoint.sharded(writer, world) if is_sharded_run(cfg, world) else writer


def freeze_backbone(model: nn.Module) -> None:
    """Make the parameters of `head` (and of an attentive readout, with its norm) the only trainable
    ones; UserError for a model without a head."""
    attends = isinstance(getattr(model, "readout", None), AttentiveReadout)
    own = ("head.", "readout.", "norm.") if attends else ("head.",)
    names = [name for name, _ in model.named_parameters() if name.startswith(own)]
    if not any(name.startswith("head.") for name in names):
        raise UserError(
            f"TRAIN.LINEAR_PROBE needs a model with a head; {type(model).__name__} has none"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def build_optimizer(
    solver: SolverConfig, model: nn.Module, device: torch.device
) -> torch.optim.Optimizer:
    """Build the optimizer of the SOLVER settings over the trainable parameters."""
    groups = optim.parameter_groups(
        model, weight_decay=solver.weight_decay, layer_decay=solver.layer_decay
    )
    return optim.build_optimizer(groups, solver, fused=device.type == "cuda")


# ---- steps --------------------------------------------------------------------------------------


def forward_passes(
    cfg: Config,
    model: nn.Module,
    world: World,
    data: TrainingData,
    plan: Schedule,
    note: Callable[[str], None],
) -> Forward:
    """Build the forward and backward passes of the run's steps.

    note: called with a line that the user should read.
    """
    objective = tasks.get(cfg.task)
    settings = tasks.StepSettings(
        seed=cfg.rng_seed,
        loss_func=cfg.model.loss_func,
        class_weights=class_weights(cfg, data, world.device),
        device=world.device,
        precision=tasks.PRECISION[cfg.train.mixed_precision],
        boxes_per_clip=(
            1.0 if objective.parts is None else objective.parts.boxes_per_clip(data.train_list)
        ),
    )
    wanted = cfg.train.compile if objective.compiles else False
    if sharding.is_sharded(model):
        if wanted:
            note(sharding.WITHOUT_COMPILE)
        wanted = False
    recipe = StepRecipe(
        objective=objective,
        settings=settings,
        grad_accum=cfg.train.grad_accum,
        symmetries=LabelAwareFlips(data.train_list.classes or ()) if cfg.aug.symmetries else None,
        mixing=mixing_of(cfg.mixup, data.num_classes),
        compiled=choose_compile(wanted, cfg.train.compile_mode, world.device),
    )
    if recipe.compiled is not None:
        note("the first step compiles the model, which takes minutes (TRAIN.COMPILE False: not)")
    return Forward(recipe, model, world, dataset=data.dataset, plan=plan, note=note)


def class_weights(cfg: Config, data: TrainingData, device: torch.device) -> Tensor | None:
    """Return TRAIN.CLASS_WEIGHTS as float32 [C] on the device; None for none, or without labels."""
    if cfg.train.class_weights != "balanced" or not data.labelled:
        return None
    counts = torch.zeros(data.num_classes, dtype=torch.int64)
    present = torch.from_numpy(data.train_list.class_counts())
    counts[: len(present)] = present
    return tasks.balanced_weights(counts).to(device)


def probe_labels(cfg: Config, data: TrainingData, video_ids: Tensor) -> probe.Labels:
    """Return classes, groups and class weights of the training videos that could be read."""
    weights = class_weights(cfg, data, torch.device("cpu"))
    if weights is None:
        weights = torch.ones(data.num_classes)
    groups = video_groups(data.train_list, cfg.data.group_by)
    ids = video_ids.tolist()
    return probe.Labels(
        of_videos=torch.tensor([data.train_list.label(i) for i in ids]),
        groups=[groups[i] for i in ids],
        class_weights=weights.double(),
    )


def mixing_of(mixup: MixupConfig, num_classes: int) -> MixUpCutMix | None:
    """Return the mixing of the MIXUP settings; None where it is off."""
    if not mixup.enable:
        return None
    return MixUpCutMix(
        num_classes=num_classes,
        mixup_alpha=mixup.alpha,
        cutmix_alpha=mixup.cutmix_alpha,
        prob=mixup.prob,
        switch_prob=mixup.switch_prob,
        label_smoothing=mixup.label_smooth_value,
    )
