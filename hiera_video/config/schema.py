"""One run, written down: every setting, its default, its type and its range.

YAML files and command lines speak SlowFast's keys (`SOLVER.BASE_LR`), Python reads the same
setting as an attribute (`cfg.solver.base_lr`). A file may name another with `_BASE_`, relative to
itself, and then says only what differs:

    _BASE_: ../_base_/k400_finetune.yaml
    SOLVER:
      BASE_LR: 4e-4            # a number here, though plain YAML 1.1 reads a string

A `Config` is frozen: nothing is derived into it, and what it says is what was asked for. Whatever
is wrong with a setting (unknown, mistyped, out of range) is a `ConfigError` that names the key,
what came, what is allowed and the file and line it stands in.

To add a setting, add one line to a section: `name: type = setting(default, at_least=..., ...)`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import ConfigError
from hiera_video.registry import MODEL_REGISTRY, arguments_of


def setting(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    pattern: str | None = None,
    example: str | None = None,
) -> Any:
    """A field with its default and what it allows; bounds hold for every element of a tuple.

    `pattern` is a regular expression for text, `example` what an error shows in its place.
    """
    metadata = {
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "below": below,
        "choices": choices,
        "pattern": pattern,
        "example": example,
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


INSTEAD_OF_KWARGS = {
    "name": "MODEL.MODEL_NAME",
    "num_classes": "MODEL.NUM_CLASSES",
    "classes": "DATA.CLASS_NAMES, a file with the names of the classes",
    "pretrained": "TRAIN.CHECKPOINT_FILE_PATH to start from weights, TEST.CHECKPOINT_FILE_PATH to "
    "test them",
}
"""What `build_model` takes besides the arguments of a builder, and the settings that say it."""


# ---- sections -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """Checks each of its fields when it is made; subclasses hold the fields."""

    prefix: typing.ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, spec in _settings_of(type(self)).items():
            key = f"{self.prefix}{name.upper()}"
            object.__setattr__(self, name, _checked(getattr(self, name), spec, key))
        self.check()

    def check(self) -> None:
        """Rules between fields of one section."""


@dataclass(frozen=True)
class ModelConfig(Section):
    prefix = "MODEL."

    model_name: str = setting("hiera_base_16x224")
    """A registered model (`list_models()`); an autoencoder (`mae_hiera_*`) when pretraining."""
    num_classes: int = setting(0, at_least=0)
    """Outputs of the head; 0 takes the number of classes of the data set."""
    dropout_rate: float | None = setting(None, at_least=0, below=1)
    """Dropout before the classifier; None is the model's own default."""
    loss_func: str = setting("cross_entropy", choices=("cross_entropy", "bce_logit"))
    """bce_logit gives every class its own yes or no; DATA.MULTI_LABEL needs it."""
    act_checkpoint: bool = setting(False)
    """Recompute each block in the backward pass: less memory, about a third more time."""
    kwargs: dict[str, Any] = setting({})  # noqa: RUF009 (`setting` makes it a default_factory)
    """Passed to the model's builder last, in its own lower-case names: `{embed_dim: 32}`."""

    def check(self) -> None:
        for name in sorted(self.kwargs.keys() & INSTEAD_OF_KWARGS.keys()):
            raise ConfigError(
                f"MODEL.KWARGS.{name}={self.kwargs[name]!r} is not taken from there; "
                f"set {INSTEAD_OF_KWARGS[name]}"
            )


@dataclass(frozen=True)
class HieraConfig(Section):
    """Settings of the Hiera family; None leaves the builder's own default."""

    prefix = "HIERA."

    droppath_rate: float | None = setting(None, at_least=0, below=1)
    """Stochastic depth of the last block; earlier blocks drop linearly less."""
    abs_win: bool | None = setting(None)
    """Absolute-window position embeddings (arXiv 2311.05613): the size of the input may change."""
    decoder_embed_dim: int | None = setting(None, at_least=1)
    """Width of the autoencoder's decoder (512 in the paper's code)."""
    decoder_depth: int | None = setting(None, at_least=1)
    """Blocks of the decoder (8 in the paper)."""
    decoder_num_heads: int | None = setting(None, at_least=1)
    """Heads of the decoder's attention (8 for video in the paper's table)."""
    decode_ratio: float | None = setting(None, above=0, at_most=1)
    """Share of the deleted mask units that a pretraining step decodes: below 1 is faster, and
    beyond the paper. None and 1 decode them all."""


@dataclass(frozen=True)
class DataConfig(Section):
    prefix = "DATA."

    path_to_data_dir: str = setting("")
    """Folder with one folder per class, or with lists (train.csv, val.csv, ...); or one list."""
    path_prefix: str = setting("")
    """Put before the relative paths of the lists."""
    format: str = setting("auto")
    """How PATH_TO_DATA_DIR is written: the name of a reader (`kinetics_csv`, `folder`, ...); auto
    looks and says what it found. `class_folders` (CLASS/.../a.mp4) and `group_folders`
    (GROUP/CLASS/a.mp4) say which folders are the classes where both could be."""
    path_label_separator: str = setting("")
    """Between path and label in a list; split from the right, so paths may contain it. Empty takes
    the one that fits most lines."""
    split: int | None = setting(None, at_least=0)
    """Which official split (UCF101, HMDB51: 1 to 3), or which fold of labels.csv is held out."""
    class_names: str = setting("")
    """File with the names of the classes, or the name of a public list (`kinetics400`); empty takes
    those that the data carries."""
    val_fraction: float = setting(0.2, above=0, below=1)
    """Share held out for validation where the data comes without splits."""
    group_by: str = setting("")
    """Videos of one group are never split between train and validation: the name of a column, or a
    regular expression whose first group in the path is the source."""
    multi_label: bool = setting(False)
    """A video may have several labels: `a.mp4 0,3` or `a.mp4,jump;run`."""
    num_frames: int = setting(16, at_least=1)
    """Frames in a clip (T); 1 for an image model."""
    sampling_rate: int = setting(4, at_least=1)
    """Distance of neighbouring frames, counted at TARGET_FPS."""
    target_fps: float = setting(30.0, above=0)
    """Frame rate at which SAMPLING_RATE counts; videos of another rate span the same time."""
    segments: bool = setting(False)
    """True: one frame from each of NUM_FRAMES equal parts of the video (Something-Something)."""
    mean: tuple[float, float, float] = setting((0.45, 0.45, 0.45), at_least=0, at_most=1)
    """Per-channel RGB mean of pixels in [0, 1]."""
    std: tuple[float, float, float] = setting((0.225, 0.225, 0.225), above=0, at_most=1)
    """Per-channel RGB standard deviation of pixels in [0, 1]."""
    train_crop_size: int = setting(224, at_least=1)
    """Side of the square crop in training, pixels."""
    test_crop_size: int = setting(224, at_least=1)
    """Side of the square crop in validation and test; the short side is resized to it."""
    train_jitter_scales_relative: tuple[float, float] = setting((0.08, 1.0), above=0, at_most=1)
    """Share of the picture's area that a training crop covers: (least, most)."""
    train_jitter_aspect_relative: tuple[float, float] = setting((0.75, 1.3333), above=0)
    """Width / height of a training crop before it is resized: (least, most)."""
    random_flip: bool = setting(True)
    """Mirror half of the training clips; off where left and right are part of the label."""
    train_crop_num_temporal: int = setting(1, at_least=1)
    """Different clips (in time) taken from one decoded training video."""
    decoding_backend: str = setting("auto", choices=("auto", "torchcodec", "pyav", "decord"))
    """Video decoder; auto takes the first that works, in this order, and says which."""

    def check(self) -> None:
        for name in ("train_jitter_scales_relative", "train_jitter_aspect_relative"):
            least, most = getattr(self, name)
            if least > most:
                raise ConfigError(
                    f"DATA.{name.upper()}=[{least}, {most}] must be [least, most], ascending"
                )

    def clip_spec(self, *, training: bool) -> ClipSpec:
        """How a clip is sampled, cropped and normalised, in training or in validation and test."""
        return ClipSpec(
            num_frames=self.num_frames,
            sampling_rate=self.sampling_rate,
            target_fps=self.target_fps,
            crop_size=self.train_crop_size if training else self.test_crop_size,
            mean=self.mean,
            std=self.std,
            segments=self.segments,
        )


@dataclass(frozen=True)
class DataLoaderConfig(Section):
    prefix = "DATA_LOADER."

    num_workers: int = setting(2, at_least=0)
    """Processes that decode; 0 decodes in the training process."""
    pin_memory: bool = setting(True)
    """Page-locked batches, for copying to a GPU while it computes; no effect on a CPU."""


@dataclass(frozen=True)
class AugConfig(Section):
    prefix = "AUG."

    num_sample: int = setting(1, at_least=1)
    """Times each training clip is augmented anew (repeated sampling)."""
    aa_type: str = setting(
        "",
        pattern=r"(rand(-((m|mstd|p)\d+(\.\d+)?|n\d+|inc[01]))*)?",
        example="rand-m7-mstd0.5-inc1",
    )
    """RandAugment in timm's spelling, `rand-m7-mstd0.5-inc1`; empty is none."""
    re_prob: float = setting(0.0, at_least=0, at_most=1)
    """Probability that a box of a training clip is erased, the same box in all frames."""
    re_mode: str = setting("pixel", choices=("pixel", "const"))
    """Fill of the erased box: noise of its own in every pixel, or zero."""
    re_count: int = setting(1, at_least=1)
    """Most boxes erased in one clip."""
    symmetries: bool = setting(False)
    """Mirror, transpose and reverse camera-motion clips at random, and their labels with them."""
    mask_ratio: float = setting(0.9, above=0, below=1)
    """Share of the mask units hidden from the encoder while pretraining."""


@dataclass(frozen=True)
class MixupConfig(Section):
    prefix = "MIXUP."

    enable: bool = setting(False)
    """Mix pairs of clips and their labels; also switches LABEL_SMOOTH_VALUE on, as in SlowFast."""
    alpha: float = setting(0.8, at_least=0)
    """Beta(alpha, alpha) of mixup; 0 is off."""
    cutmix_alpha: float = setting(1.0, at_least=0)
    """Beta(alpha, alpha) of CutMix; 0 is off."""
    prob: float = setting(1.0, at_least=0, at_most=1)
    """Probability that a batch is mixed at all."""
    switch_prob: float = setting(0.5, at_least=0, at_most=1)
    """Probability of CutMix where both are on."""
    label_smooth_value: float = setting(0.1, at_least=0, below=1)
    """Share of the label spread over all classes."""

    def check(self) -> None:
        if self.enable and self.alpha == 0 and self.cutmix_alpha == 0 and self.prob > 0:
            raise ConfigError(
                "MIXUP.ENABLE=true with MIXUP.ALPHA=0 and MIXUP.CUTMIX_ALPHA=0 mixes nothing; "
                "set one above 0, or MIXUP.PROB=0 for label smoothing alone"
            )


@dataclass(frozen=True)
class TrainConfig(Section):
    prefix = "TRAIN."

    enable: bool = setting(True)
    """Train (or pretrain)."""
    dataset: str = setting("video")
    """A registered data set."""
    batch_size: int = setting(64, at_least=1)
    """Videos per optimizer step, over all processes and accumulation steps together; each gives
    DATA.TRAIN_CROP_NUM_TEMPORAL x AUG.NUM_SAMPLE clips."""
    grad_accum: int = setting(1, at_least=1)
    """Parts in which a step's batch is computed, one after the other: memory for time."""
    eval_period: int = setting(1, at_least=0)
    """Epochs between validations; 0 validates after the last epoch only."""
    checkpoint_period: int = setting(1, at_least=1)
    """Epochs between checkpoints; the last epoch always has one."""
    checkpoint_steps: int = setting(0, at_least=0)
    """Optimizer steps between checkpoints inside an epoch; 0 is off."""
    keep_checkpoints: int = setting(2, at_least=0)
    """Latest checkpoints kept besides the best one; 0 keeps all."""
    auto_resume: bool = setting(True)
    """Go on from the latest checkpoint in OUTPUT_DIR, if there is one."""
    checkpoint_file_path: str = setting("")
    """Weights to start from: a file, an address, or a published name such as mae_k400."""
    checkpoint_epoch_reset: bool = setting(True)
    """True: CHECKPOINT_FILE_PATH gives weights only. False: epoch and optimizer state as well."""
    mixed_precision: str = setting("off", choices=("off", "bf16", "fp16"))
    """Number format of the forward pass; weights and loss stay float32."""
    compile: bool = setting(False)
    """torch.compile the model: slower to start, faster afterwards."""
    compile_mode: str = setting("default", choices=("default", "reduce-overhead", "max-autotune"))
    """How COMPILE goes about it: reduce-overhead replays CUDA graphs, max-autotune also takes
    minutes to try kernels out; both are for GPUs."""
    ema_decay: float = setting(0.0, at_least=0, below=1)
    """Average of the weights over training, e.g. 0.9999, which is then what is evaluated; 0: off"""
    class_weights: str = setting("none", choices=("none", "balanced"))
    """balanced weighs the loss of a class by the inverse of its number of videos."""
    linear_probe: bool = setting(False)
    """Train the head alone; the backbone stays as it was loaded."""
    picture_period: int = setting(0, at_least=0)
    """Epochs between pictures of what the autoencoder reconstructs; 0 is off."""

    def check(self) -> None:
        if self.batch_size % self.grad_accum:
            raise ConfigError(
                f"TRAIN.BATCH_SIZE={self.batch_size} must be a multiple of "
                f"TRAIN.GRAD_ACCUM={self.grad_accum}"
            )


@dataclass(frozen=True)
class TestConfig(Section):
    __test__ = False  # for pytest: the name begins like a test class
    prefix = "TEST."

    enable: bool = setting(True)
    """Test after training, or alone with TRAIN.ENABLE false."""
    dataset: str = setting("video")
    """A registered data set."""
    batch_size: int = setting(8, at_least=1)
    """Views per forward pass; any value gives the same scores."""
    num_ensemble_views: int = setting(5, at_least=1)
    """Clips in time per video (K of "K x S views")."""
    num_spatial_crops: int = setting(3, at_least=1, at_most=3)
    """Crops per clip (S): 1 the centre, 3 along the longer side."""
    checkpoint_file_path: str = setting("")
    """What to test: a file, an address or a published name; empty tests what was just trained."""
    mixed_precision: str = setting("train", choices=("train", "off", "bf16", "fp16"))
    """Number format of the test's forward pass; train: that of TRAIN.MIXED_PRECISION. Validation
    while training always uses that of the training."""

    def check(self) -> None:
        if self.num_spatial_crops == 2:
            raise ConfigError("TEST.NUM_SPATIAL_CROPS=2 must be 1 (centre) or 3")


@dataclass(frozen=True)
class SolverConfig(Section):
    prefix = "SOLVER."

    optimizing_method: str = setting("adamw", choices=("adamw", "sgd"))
    """AdamW, or SGD with momentum."""
    base_lr: float = setting(8e-4, above=0)
    """Peak learning rate."""
    lr_batch: int = setting(0, at_least=0)
    """TRAIN.BATCH_SIZE (videos) that BASE_LR, WARMUP_START_LR and COSINE_END_LR are for; with
    another batch they scale linearly. 0: taken as they are."""
    cosine_after_warmup: bool = setting(True)
    """Learning rates follow a straight line, then half a cosine down to COSINE_END_LR. True: the
    cosine begins where the warm-up ends. False: with the first step, as SlowFast's default has it.
    """
    cosine_end_lr: float = setting(1e-6, at_least=0)
    """Learning rate at the very end."""
    warmup_epochs: float = setting(0.0, at_least=0)
    """Linear warm-up, in epochs; fractions count."""
    warmup_start_lr: float = setting(1e-8, at_least=0)
    """Learning rate of the very first step; where an epoch is one step, the warm-up begins one step
    up its line instead, so that no epoch is lost."""
    max_epoch: int = setting(30, at_least=1)
    """Passes over the list of videos (a paper's "effective epochs" divided by the repeats)."""
    max_steps: int = setting(0, at_least=0)
    """Stop after so many optimizer steps, schedule included; 0: MAX_EPOCH decides."""
    momentum: float = setting(0.9, at_least=0, below=1)
    """Of SGD."""
    nesterov: bool = setting(True)
    """Of SGD."""
    betas: tuple[float, float] = setting((0.9, 0.999), at_least=0, below=1)
    """Of AdamW."""
    weight_decay: float = setting(0.05, at_least=0)
    """Decoupled for AdamW; biases, norms and position embeddings are exempt."""
    layer_decay: float = setting(1.0, above=0, at_most=1)
    """Learning-rate factor per block, from the head down; 1.0 is off."""
    clip_grad_l2norm: float | None = setting(None, above=0)
    """Largest norm of the whole gradient; None does not clip."""

    def check(self) -> None:
        for name in ("cosine_end_lr", "warmup_start_lr"):
            if getattr(self, name) > self.base_lr:
                raise ConfigError(
                    f"SOLVER.{name.upper()}={getattr(self, name)} must be at most "
                    f"SOLVER.BASE_LR={self.base_lr}"
                )
        if self.warmup_epochs > self.max_epoch:
            raise ConfigError(
                f"SOLVER.WARMUP_EPOCHS={self.warmup_epochs} must be at most "
                f"SOLVER.MAX_EPOCH={self.max_epoch}"
            )
        if self.optimizing_method == "sgd" and self.nesterov and self.momentum == 0:
            raise ConfigError("SOLVER.NESTEROV=true needs SOLVER.MOMENTUM above 0")


@dataclass(frozen=True)
class TensorboardConfig(Section):
    prefix = "TENSORBOARD."

    enable: bool = setting(False)
    """Also write the curves for TensorBoard; metrics.jsonl is written either way."""


@dataclass(frozen=True)
class SyntheticConfig(Section):
    """The embedded camera-motion set (data/synthetic.py), made on demand as real MP4 files."""

    prefix = "SYNTHETIC."

    num_train: int = setting(192, at_least=1)
    """Training videos."""
    num_val: int = setting(48, at_least=1)
    """Validation videos."""
    size: int = setting(96, at_least=16)
    """Side of a video, pixels."""
    frames: int = setting(24, at_least=2)
    """Frames of a video."""
    plain: bool = setting(False)
    """The easier set: no foreground, steady light, quick motions. A small model learns it fast."""


@dataclass(frozen=True)
class Config(Section):
    """A whole run. Only `tools/`, `engine/train.py` and `engine/evaluate.py` see all of it."""

    task: str = setting("classify")
    """classify: labels. pretrain: masked autoencoding, no labels. Or an objective of IMPORTS."""
    output_dir: str = setting("runs/default")
    """Where checkpoints, metrics and pictures go."""
    rng_seed: int = setting(1, at_least=0, at_most=2**63 - 1)
    """The data stream is a pure function of it, whatever the number of workers."""
    log_period: int = setting(10, at_least=1)
    """Optimizer steps between lines on the console and in metrics.jsonl."""
    device: str = setting("auto", choices=("auto", "cpu", "cuda"))
    """auto takes a GPU where there is one."""
    num_threads: int = setting(0, at_least=0)
    """CPU threads of PyTorch; 0 leaves its own choice."""
    imports: tuple[str, ...] = setting(())
    """Modules of yours to import first, for the models and data sets they register."""

    model: ModelConfig = field(default_factory=ModelConfig)
    hiera: HieraConfig = field(default_factory=HieraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    data_loader: DataLoaderConfig = field(default_factory=DataLoaderConfig)
    aug: AugConfig = field(default_factory=AugConfig)
    mixup: MixupConfig = field(default_factory=MixupConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    tensorboard: TensorboardConfig = field(default_factory=TensorboardConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def check(self) -> None:
        if self.task == "pretrain" and self.mixup.enable:
            raise ConfigError("MIXUP.ENABLE=true has no meaning with TASK=pretrain (no labels)")
        if self.aug.symmetries and (self.task == "pretrain" or self.data.multi_label):
            other = "TASK=pretrain" if self.task == "pretrain" else "DATA.MULTI_LABEL=true"
            raise ConfigError(f"AUG.SYMMETRIES=true changes the one label of a clip; not {other}")
        labelled = self.task == "classify"
        if labelled and self.data.multi_label and self.model.loss_func != "bce_logit":
            raise ConfigError(
                f"DATA.MULTI_LABEL=true needs MODEL.LOSS_FUNC=bce_logit, "
                f"not {self.model.loss_func!r}"
            )

    def model_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `build_model`, besides `num_classes`: what the recipe sets.

        A setting left at None is not passed, so the builder's own default holds. A builder that
        names an argument `input_size`, or is annotated to return a class that does, gets it from
        DATA; others take any size, or what MODEL.KWARGS says.
        Raises UserError for a model that is not registered (yet): import it first, of the
        package's own `hiera_video.models`.
        """
        frames, side = self.data.num_frames, self.data.train_crop_size
        arguments: dict[str, Any] = {
            "head_dropout": self.model.dropout_rate,
            "act_checkpoint": self.model.act_checkpoint or None,
            "drop_path_rate": self.hiera.droppath_rate,
            "abs_win": self.hiera.abs_win,
        }
        if "input_size" in arguments_of(MODEL_REGISTRY.get(self.model.model_name)):
            arguments["input_size"] = (frames, side, side) if frames > 1 else (side, side)
        if self.task == "pretrain":
            arguments["mask_ratio"] = self.aug.mask_ratio
            arguments["decoder_embed_dim"] = self.hiera.decoder_embed_dim
            arguments["decoder_depth"] = self.hiera.decoder_depth
            arguments["decoder_num_heads"] = self.hiera.decoder_num_heads
            arguments["decode_ratio"] = self.hiera.decode_ratio
            del arguments["head_dropout"]  # an autoencoder has no classifier
        arguments.update(self.model.kwargs)
        return {name: value for name, value in arguments.items() if value is not None}

    def to_yaml(self) -> str:
        """Every setting as YAML that `Config.from_yaml` reads back to an equal Config."""
        top: dict[str, Any] = {}
        for name, spec in _settings_of(Config).items():
            top[name.upper()] = _plain(getattr(self, name), spec)
        for name, section in _sections().items():
            values = getattr(self, name)
            top[name.upper()] = {
                key.upper(): _plain(getattr(values, key), spec)
                for key, spec in _settings_of(section).items()
            }
        return yaml.dump(top, Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str, *, source: str = "config text") -> Config:
        """A Config from YAML text without `_BASE_`, such as a checkpoint stores."""
        return _assemble(_entries_of_text(text, source))


# ---- reading files and command lines ------------------------------------------------------------


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The Config of a YAML file with `KEY VALUE ...` overrides; path None starts from defaults.

    Raises ConfigError (a UserError): no such file, broken YAML, unknown key, bad value.
    """
    entries = [] if path is None else _entries_of_file(Path(path), chain=())
    return _assemble([*entries, *_entries_of_overrides(overrides)])


class _Entry(NamedTuple):
    """One setting as somebody wrote it."""

    key: str
    """`SOLVER.BASE_LR`; below MODEL.KWARGS the last part keeps its case."""
    value: Any
    """What YAML made of it, or a str that has yet to be read."""
    where: str
    """ " (file, line 3)", or empty."""
    raw: bool
    """True: a word of a command line."""


def _entries_of_file(path: Path, chain: tuple[Path, ...]) -> list[_Entry]:
    path = path.expanduser()
    if path.resolve() in chain:
        loop = " -> ".join(str(p) for p in (*chain, path.resolve()))
        raise ConfigError(f"the _BASE_ files name each other in a circle: {loop}")
    named_by = f" (the _BASE_ of {chain[-1]})" if chain else ""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no config file {path}{named_by}{_files_near(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}{named_by} is a folder; name a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read config file {path}{named_by}: {error}") from None
    entries = _entries_of_text(text, str(path))
    own = [entry for entry in entries if entry.key != "_BASE_"]
    bases = [entry for entry in entries if entry.key == "_BASE_"]
    if not bases:
        return own
    base = bases[0]
    if not isinstance(base.value, str):
        raise ConfigError(f"_BASE_={base.value!r} must be one file name, in quotes{base.where}")
    return [*_entries_of_file(path.parent / base.value, (*chain, path.resolve())), *own]


def _files_near(path: Path) -> str:
    """ "; there are a.yaml, b.yaml" for a mistyped file name."""
    folder = path.parent
    names = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3) or names[:8]
    return f"; in {folder} there is {', '.join(near)}" if near else ""


def _entries_of_text(text: str, source: str) -> list[_Entry]:
    with _loader(text, source) as loader:
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{source} must be KEY: VALUE lines, not {root.id}")
        return list(_flatten(root, loader, source, ()))


def _flatten(
    node: yaml.MappingNode, loader: _Loader, source: str, parents: tuple[str, ...]
) -> Iterator[_Entry]:
    """Entries of a mapping and of the sections below it, in order; a key written twice fails."""
    seen: dict[str, int] = {}
    in_kwargs = ".".join(parents) in _free_mappings()
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        name = str(key_node.value)  # as written: a key spelled `on` or `1` is no other value
        name = name if in_kwargs else name.upper()
        key = ".".join((*parents, name))
        if name in seen:
            raise ConfigError(
                f"{key} is written twice in {source}, lines {seen[name]} and {line}; keep one"
            )
        seen[name] = line
        where = f" ({source}, line {line})"
        opens_section = key in _section_keys() or key in _free_mappings()
        if opens_section and isinstance(value_node, yaml.MappingNode):
            yield from _flatten(value_node, loader, source, (*parents, name))
        elif key in _section_keys():
            if not _is_empty(value_node):
                raise ConfigError(f"{key} is a section; write its settings below it{where}")
        else:
            yield _Entry(key, loader.construct_object(value_node, deep=True), where, raw=False)


def _is_empty(node: yaml.Node) -> bool:
    """A section whose settings are all commented out."""
    return isinstance(node, yaml.ScalarNode) and node.value == ""


def _entries_of_overrides(overrides: Sequence[str]) -> list[_Entry]:
    words = [str(word) for word in overrides]
    if len(words) % 2:
        hint = " (write KEY VALUE, without '=')" if any("=" in word for word in words[::2]) else ""
        raise ConfigError(
            f"settings come as KEY VALUE pairs, but {len(words)} words came: "
            f"{' '.join(words)}{hint}"
        )
    return [
        _Entry(_spelled_as_key(key), value, "", raw=True)
        for key, value in zip(words[::2], words[1::2], strict=True)
    ]


def _spelled_as_key(word: str) -> str:
    """Upper case, except for what stands below a free mapping such as MODEL.KWARGS."""
    head, dot, tail = word.rpartition(".")
    if dot and head.upper() in _free_mappings():
        return f"{head.upper()}.{tail}"
    return word.upper()


def _assemble(entries: Iterable[_Entry]) -> Config:
    """Later entries win; then each section is made, and checks itself."""
    specs, free = _all_settings(), _free_mappings()
    chosen: dict[str, Any] = {}
    for entry in entries:
        head, _, tail = entry.key.rpartition(".")
        if head in free:  # one argument of MODEL.KWARGS
            value = _read_words(entry.value, entry) if entry.raw else entry.value
            _checked({tail: value}, specs[head], head, entry.where)
            chosen[head] = {**chosen.get(head, {}), tail: value}
            continue
        if entry.key not in specs:
            raise ConfigError(f"{_unknown(entry.key)}{entry.where}")
        value = _from_word(entry, specs[entry.key]) if entry.raw else entry.value
        # Checked here as well as in the section, while file and line are known.
        value = _checked(value, specs[entry.key], entry.key, entry.where)
        if entry.key in free:
            value = {**chosen.get(entry.key, {}), **value}
        chosen[entry.key] = value
    sections = {
        name: section(**_under(chosen, f"{name.upper()}.")) for name, section in _sections().items()
    }
    top = {key.lower(): value for key, value in chosen.items() if "." not in key}
    return Config(**top, **sections)


def _under(chosen: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {
        key.removeprefix(prefix).lower(): value
        for key, value in chosen.items()
        if key.startswith(prefix)
    }


# ---- types and ranges ---------------------------------------------------------------------------


class _Spec(NamedTuple):
    """Type and range of one field."""

    hint: Any
    optional: bool
    bounds: dict[str, Any]


@functools.cache
def _settings_of(section: type) -> dict[str, _Spec]:
    """Field name -> type and range, for the fields that are settings (and not sections)."""
    hints = typing.get_type_hints(section)
    specs = {}
    for f in dataclasses.fields(section):
        hint, optional = hints[f.name], False
        if isinstance(hint, types.UnionType):
            hint, optional = typing.get_args(hint)[0], True
        if not dataclasses.is_dataclass(hint):
            specs[f.name] = _Spec(hint, optional, dict(f.metadata))
    return specs


@functools.cache
def _sections() -> dict[str, type]:
    """Attribute of Config -> class of that section."""
    hints = typing.get_type_hints(Config)
    return {
        f.name: hints[f.name]
        for f in dataclasses.fields(Config)
        if dataclasses.is_dataclass(hints[f.name])
    }


@functools.cache
def _section_keys() -> frozenset[str]:
    return frozenset(name.upper() for name in _sections())


@functools.cache
def _all_settings() -> dict[str, _Spec]:
    """Full key -> type and range, of everything a file may set."""
    specs = {name.upper(): spec for name, spec in _settings_of(Config).items()}
    for section_name, section in _sections().items():
        for name, spec in _settings_of(section).items():
            specs[f"{section_name}.{name}".upper()] = spec
    return specs


@functools.cache
def _free_mappings() -> frozenset[str]:
    """Keys whose value is a mapping with names of its own."""
    return frozenset(
        key for key, spec in _all_settings().items() if typing.get_origin(spec.hint) is dict
    )


_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _checked(value: Any, spec: _Spec, key: str, where: str = "") -> Any:
    """The value in its field's type and range, or ConfigError."""
    if value is None:
        if spec.optional:
            return None
        raise _wrong(value, spec, key, where)
    if typing.get_origin(spec.hint) is dict:
        named = isinstance(value, dict) and all(
            isinstance(name, str) and name.isidentifier() for name in value
        )
        if not named:
            raise _wrong(value, spec, key, where)
        return dict(value)
    if typing.get_origin(spec.hint) is not tuple:
        return _checked_scalar(value, spec.hint, spec, key, where)
    if isinstance(value, str | int | float):
        value = (value,)  # a list of one may be written without brackets
    kinds = typing.get_args(spec.hint)
    if not isinstance(value, list | tuple):
        raise _wrong(value, spec, key, where)
    if kinds[-1] is not Ellipsis and len(value) != len(kinds):
        raise _wrong(value, spec, key, where)
    return tuple(_checked_scalar(item, kinds[0], spec, key, where) for item in value)


def _checked_scalar(value: Any, kind: type, spec: _Spec, key: str, where: str) -> Any:
    try:
        value = _converted(value, kind)
    except (TypeError, ValueError, OverflowError):
        raise _wrong(value, spec, key, where) from None
    bounds = spec.bounds
    inside = (
        (bounds.get("at_least") is None or value >= bounds["at_least"])
        and (bounds.get("above") is None or value > bounds["above"])
        and (bounds.get("at_most") is None or value <= bounds["at_most"])
        and (bounds.get("below") is None or value < bounds["below"])
        and (bounds.get("choices") is None or value in bounds["choices"])
        and (bounds.get("pattern") is None or re.fullmatch(bounds["pattern"], value))
    )
    if not inside:
        raise _wrong(value, spec, key, where)
    return value


def _converted(value: Any, kind: type) -> Any:
    """`value` as int, float, bool or str where that loses nothing; else TypeError/ValueError."""
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
            return value.lower() in _TRUE
        raise TypeError
    if kind is str:
        if isinstance(value, str):
            return value
        raise TypeError
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if kind is int:
        if value != int(value):
            raise ValueError
        return int(value)
    if not math.isfinite(value):
        raise ValueError
    return float(value)


def _wrong(value: Any, spec: _Spec, key: str, where: str) -> ConfigError:
    shown = value if isinstance(value, str) and value else repr(value)
    return ConfigError(f"{key}={shown} must be {_allowed(spec)}{_quote_hint(value, spec)}{where}")


def _allowed(spec: _Spec) -> str:
    """ "a whole number of at least 1", in words."""
    bounds = spec.bounds
    origin, arguments = typing.get_origin(spec.hint), typing.get_args(spec.hint)
    if origin is dict:
        return "a mapping {name: value, ...} of argument names"
    kind = arguments[0] if origin is tuple else spec.hint
    if bounds.get("choices"):
        text = f"one of {', '.join(bounds['choices'])}"
    elif bounds.get("pattern"):
        text = f"empty or like {bounds['example']}"
    else:
        text = _WORDS[kind]
    limits = [
        f"{word} {_limit(bounds[name])}"
        for name, word in (
            ("at_least", "at least"),
            ("above", "above"),
            ("at_most", "at most"),
            ("below", "below"),
        )
        if bounds.get(name) is not None
    ]
    text += f", {' and '.join(limits)}" if limits else ""
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} values, "
        text = f"a list of {count}each {text}"
    return text + (", or None" if spec.optional else "")


def _limit(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _quote_hint(value: Any, spec: _Spec) -> str:
    if spec.hint is not str or spec.bounds.get("choices"):
        return ""
    if value is None:
        return " (write '' for none)"
    return " (put it in quotes)" if not isinstance(value, str) else ""


# ---- what settings there are --------------------------------------------------------------------


class SettingText(NamedTuple):
    """One setting in words, as `--settings` shows it."""

    key: str
    default: str
    """As a command line would say it."""
    allowed: str
    meaning: str


def describe_settings() -> list[SettingText]:
    """Every setting, in the order of the sections. What it means is the text below its field."""
    defaults = Config()
    found = []
    for section in (Config, *_sections().values()):
        values = defaults if section is Config else getattr(defaults, _attribute_of(section))
        meanings = _meanings(section)
        found += [
            SettingText(
                f"{section.prefix}{name.upper()}",
                _as_word(getattr(values, name)),
                _allowed(spec),
                meanings.get(name, ""),
            )
            for name, spec in _settings_of(section).items()
        ]
    return found


def is_setting(word: str) -> bool:
    """Whether a command line's word is a key, in any case."""
    key = _spelled_as_key(word)
    return key in _all_settings() or key.rpartition(".")[0] in _free_mappings()


def names_a_section(word: str) -> bool:
    """Whether a word begins as the keys of a section do, "SOLVER.BASE_RL": a mistyped one."""
    section, dot, _ = word.partition(".")
    return bool(dot) and section in _section_keys()


def _attribute_of(section: type) -> str:
    return next(name for name, known in _sections().items() if known is section)


@functools.cache
def _meanings(section: type) -> dict[str, str]:
    """Field -> the string below it, on one line; nothing where the source is not installed."""
    try:
        (tree,) = ast.parse(inspect.getsource(section)).body
    except OSError:
        return {}
    below = zip(tree.body, tree.body[1:], strict=False)
    return {
        field.target.id: " ".join(ast.literal_eval(text.value).split())
        for field, text in below
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _as_word(value: Any) -> str:
    """A value as a command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "''" if value == "" else str(value)


# ---- keys nobody knows --------------------------------------------------------------------------

_ELSEWHERE = {
    "NUM_GPUS": "start one process per GPU with torchrun",
    "NUM_SHARDS": "start the machines with torchrun",
    "SHARD_ID": "start the machines with torchrun",
    "IMPORT": "the key is IMPORTS, a list of modules",
    "MODEL.ARCH": "MODEL.MODEL_NAME alone picks the model",
    "AUG.ENABLE": "an empty AUG.AA_TYPE and AUG.RE_PROB 0 switch augmentation off",
    "SOLVER.BASE_LR_SCALE_NUM_SHARDS": "use SOLVER.LR_BATCH, the batch that BASE_LR is for",
    "SOLVER.LR_POLICY": "it is always cosine here; leave the key out",
    "DATA.TRAIN_JITTER_SCALES": "use DATA.TRAIN_JITTER_SCALES_RELATIVE, shares of the area",
    "DATA.INPUT_CHANNEL_NUM": "clips are RGB",
    "DATA.REVERSE_INPUT_CHANNEL": "clips are always RGB",
    "DATA.USE_OFFSET_SAMPLING": "test clips are always spread from the first to the last start",
    "MODEL.DROPPATH_RATE": "use HIERA.DROPPATH_RATE",
    "MVIT.DROPPATH_RATE": "use HIERA.DROPPATH_RATE, or MODEL.KWARGS.drop_path_rate",
    "MASK.DECODER_DEPTH": "use HIERA.DECODER_DEPTH",
    "MASK.DECODER_EMBED_DIM": "use HIERA.DECODER_EMBED_DIM",
    "HIERA.MASK_RATIO": "use AUG.MASK_RATIO",
}
"""Keys people bring along from SlowFast, and what serves their purpose here."""


def _unknown(key: str) -> str:
    if key in _ELSEWHERE:
        return f"unknown config key {key}: {_ELSEWHERE[key]}"
    known = list(_all_settings())
    if key in _section_keys():
        inside = ", ".join(k for k in known if k.startswith(f"{key}."))
        return f"{key} is a section, not a setting; set one of {inside}"
    leaf = key.rpartition(".")[2]
    near = [k for k in known if k.rpartition(".")[2] == leaf]
    near = near or difflib.get_close_matches(key, known, n=3, cutoff=0.7)
    section = key.partition(".")[0]
    if near:
        return f"unknown config key {key}; did you mean {' or '.join(near)}?"
    if "." in key and section in _section_keys():
        inside = ", ".join(k for k in known if k.startswith(f"{section}."))
        return f"unknown config key {key}; the section has {inside}"
    return (
        f"unknown config key {key}; keys are {', '.join(k for k in known if '.' not in k)} "
        f"and those of the sections {', '.join(sorted(_section_keys()))}"
    )


# ---- YAML with numbers that are numbers ---------------------------------------------------------

_FLOAT = r"[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_RESOLVERS = [
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|None|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?\d+", list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789.")),
]
"""YAML 1.2's core types and Python's None. PyYAML speaks 1.1, where `1e-4` is text, `off` is false,
`010` is eight and `1:30` is ninety."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: typing.ClassVar[dict] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """PyYAML keeps the last of two equal keys without a word."""
        seen = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"{key} is written twice in {self.name}, line {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = self.construct_scalar(node)
        try:
            if node.tag.endswith(":int"):
                return int(text)
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:  # thousands of digits; or "!!int x"
            raise yaml.constructor.ConstructorError(
                None, None, f"{text[:20]!r} is no number that can be used", node.start_mark
            ) from None


class _Dumper(yaml.SafeDumper):
    """Quotes text that either reading of YAML would take for something else; lists on one line."""

    def represent_values(self, values: list) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), _first)
    _Dumper.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), _first)
_Dumper.add_representer(list, _Dumper.represent_values)
for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _Loader.add_constructor(_tag, _Loader.construct_number)


def _from_word(entry: _Entry, spec: _Spec) -> Any:
    """A command line's word, read as its field's type wants: text stays as it is."""
    word = entry.value
    if spec.hint is str:
        quoted = re.fullmatch(r"(['\"])(.*)\1", word, flags=re.DOTALL)
        if quoted:
            return quoted[2]
        return None if word in ("None", "null", "~") else word
    if typing.get_origin(spec.hint) is tuple:
        inner = word.strip()
        inner = inner[1:-1] if inner[:1] + inner[-1:] in ("()", "[]") else inner
        return _read_words(f"[{inner}]", entry)
    return _read_words(word, entry)


def _read_words(word: str, entry: _Entry) -> Any:
    with _loader(word, f"{entry.key}={entry.value}", located=False) as loader:
        return loader.get_single_data()


@contextlib.contextmanager
def _loader(text: str, source: str, *, located: bool = True) -> Iterator[_Loader]:
    """A loader of `text`; what YAML holds against it becomes a ConfigError about `source`."""
    try:
        loader = _Loader(text)
        loader.name = source
        try:
            yield loader
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {_one_line(error, located)}") from None
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply for a config") from None


def _plain(value: Any, spec: _Spec) -> Any:
    """Tuples as lists: what YAML can say."""
    if isinstance(value, dict):
        return {name: _plain(item, spec) for name, item in value.items()}
    return [_plain(item, spec) for item in value] if isinstance(value, tuple | list) else value


def _one_line(error: yaml.YAMLError, located: bool) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return (
        f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
        if mark and located
        else problem
    )
