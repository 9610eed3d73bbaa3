"""The settings of one run: every key, its default, its type and its range.

YAML files and command lines use SlowFast's keys (`SOLVER.BASE_LR`), Python reads the same setting
as an attribute (`cfg.solver.base_lr`). A file may name another one with `_BASE_`, relative to
itself, and then says only what differs:

    _BASE_: ../_base_/k400_finetune.yaml
    SOLVER:
      BASE_LR: 4e-4            # a number here, though plain YAML 1.1 reads a string

A `Config` is frozen and holds what the user asked for; derived values are computed where they are
needed. A setting that is unknown, of the wrong type or out of range is a `ConfigError`, which names
the key, the value, what is allowed, and the file and line.

To add a setting, add one line to a section and a string with its meaning below it:
`name: type = setting(default)`, or `number(default, at_least=...)`, `choice(default, (...))`,
`matching(default, pattern, example=...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hiera_video.clip_spec import ClipSpec
from hiera_video.config.detection import AvaConfig, DetectionConfig, check_task
from hiera_video.config.generated import SETS_WITH_TRUTH, SyntheticConfig
from hiera_video.config.keys import keys_of
from hiera_video.config.parse import assemble, read_file, read_text, read_words, to_yaml_text
from hiera_video.config.recipes import locate
from hiera_video.config.section import Section
from hiera_video.config.trackers import PageConfig, TensorboardConfig, TrackersConfig
from hiera_video.config.values import choice, matching, number, setting
from hiera_video.errors import ConfigError
from hiera_video.registry import MODEL_REGISTRY, arguments_of

INSTEAD_OF_KWARGS = {
    "name": "MODEL.MODEL_NAME",
    "num_classes": "MODEL.NUM_CLASSES",
    "classes": "DATA.CLASS_NAMES, a file with the names of the classes",
    "pretrained": "TRAIN.CHECKPOINT_FILE_PATH to start from weights, TEST.CHECKPOINT_FILE_PATH to "
    "test them",
}
"""Arguments of `build_model` that have a setting of their own, and that setting."""


def _check_ascending(section: Section, name: str) -> None:
    """Raise ConfigError unless the range of that name does not fall."""
    least, most = getattr(section, name)
    if least > most:
        key = f"{section.prefix}{name.upper()}"
        raise ConfigError(f"{key}=[{least}, {most}] must be [least, most], ascending")


@dataclass(frozen=True)
class ModelConfig(Section):
    """The model, its head and its loss."""

    prefix = "MODEL."

    model_name: str = setting("hiera_base_16x224")
    """A registered model (`list_models()`); an autoencoder (`mae_hiera_*`) when pretraining."""
    num_classes: int = number(0, at_least=0)
    """Outputs of the head; 0 takes the number of classes of the data set."""
    dropout_rate: float | None = number(None, at_least=0, below=1)
    """Dropout before the classifier; None is the model's own default."""
    loss_func: str = choice("cross_entropy", ("cross_entropy", "bce_logit"))
    """bce_logit is a sigmoid for every class; DATA.MULTI_LABEL needs it."""
    act_checkpoint: bool = setting(False)
    """Recompute each block in the backward pass: less memory, about a third more time."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """More arguments for the model's builder, in its own lower-case names: `{embed_dim: 32}`. They
    override those of other settings."""

    def check(self) -> None:
        for name in sorted(self.kwargs.keys() & INSTEAD_OF_KWARGS.keys()):
            raise ConfigError(
                f"MODEL.KWARGS.{name}={self.kwargs[name]!r} is not allowed there; "
                f"set {INSTEAD_OF_KWARGS[name]}"
            )


@dataclass(frozen=True)
class HieraConfig(Section):
    """Settings of the Hiera family; None keeps the builder's default."""

    prefix = "HIERA."

    droppath_rate: float | None = number(None, at_least=0, below=1)
    """Stochastic depth of the last block; earlier blocks drop linearly less."""
    abs_win: bool | None = setting(None)
    """Absolute-window position embeddings (arXiv 2311.05613): the size of the input may change."""
    decoder_embed_dim: int | None = number(None, at_least=1)
    """Width of the autoencoder's decoder (512 in the paper's code)."""
    decoder_depth: int | None = number(None, at_least=1)
    """Blocks of the decoder (8 in the paper)."""
    decoder_num_heads: int | None = number(None, at_least=1)
    """Heads of the decoder's attention (8 for video in the paper's table)."""
    decode_ratio: float | None = number(None, above=0, at_most=1)
    """Share of the masked units that a pretraining step decodes; below 1 is faster, but not what
    the paper does. None and 1 decode all."""
    target: str = choice("pixels", ("pixels", "hog", "flow"))
    """What an autoencoder predicts: pixels, histograms of oriented gradients (Table 3 of the
    paper), or the optical flow of generated clips (TRAIN.DATASET body_motion, camera_flow)."""


@dataclass(frozen=True)
class DataConfig(Section):
    """The videos, and how clips are taken from them."""

    prefix = "DATA."

    path_to_data_dir: str = setting("")
    """Folder with one folder per class, or with lists (train.csv, val.csv, ...); or one list."""
    path_prefix: str = setting("")
    """Folder that relative paths in the lists start from."""
    format: str = setting("auto")
    """Layout of PATH_TO_DATA_DIR: the name of a reader (`kinetics_csv`, `folder`, ...); auto
    detects it and prints what it found. `class_folders` (CLASS/.../a.mp4) and `group_folders`
    (GROUP/CLASS/a.mp4) say which folders are the classes if both are possible."""
    path_label_separator: str = setting("")
    """Separator of path and label in a list. Lines are split at the last one, so paths may contain
    it. Empty: the separator that fits most lines."""
    split: int | None = number(None, at_least=0)
    """Which official split (UCF101, HMDB51: 1 to 3), or which fold of labels.csv is held out."""
    class_names: str = setting("")
    """File with the names of the classes, or the name of a public list (`kinetics400`); empty takes
    the names that come with the data."""
    val_fraction: float = number(0.2, above=0, below=1)
    """Share held out for validation if the data has no splits."""
    group_by: str = setting("")
    """Videos of one group stay together, in train or in validation. The group is a column of the
    list, or what the first group of a regular expression matches in the path."""
    multi_label: bool = setting(False)
    """A video may have several labels: `a.mp4 0,3` or `a.mp4,jump;run`."""
    num_frames: int = number(16, at_least=1)
    """Frames in a clip (T); 1 for an image model."""
    sampling_rate: int = number(4, at_least=1)
    """Distance between neighbouring frames of a clip, in frames at TARGET_FPS."""
    target_fps: float = number(30.0, above=0)
    """Frame rate that SAMPLING_RATE refers to; clips of other videos span the same time."""
    segments: bool = setting(False)
    """True: one frame from each of NUM_FRAMES equal parts of the video (Something-Something)."""
    mean: tuple[float, float, float] = number((0.45, 0.45, 0.45), at_least=0, at_most=1)
    """Per-channel RGB mean of pixels in [0, 1]."""
    std: tuple[float, float, float] = number((0.225, 0.225, 0.225), above=0, at_most=1)
    """Per-channel RGB standard deviation of pixels in [0, 1]."""
    normalize_brightness: bool = setting(False)
    """Bring each clip to the same levels before MEAN and STD: for dark, pale and overexposed
    videos. The checkpoint keeps it, for all that use the model."""
    train_crop_size: int = number(224, at_least=1)
    """Side of the square crop in training, pixels."""
    test_crop_size: int = number(224, at_least=1)
    """Side of the square crop in validation and test, pixels; the short side is resized to it."""
    train_jitter_scales_relative: tuple[float, float] = number((0.08, 1.0), above=0, at_most=1)
    """Share of the frame's area that a training crop covers: (least, most)."""
    train_jitter_aspect_relative: tuple[float, float] = number((0.75, 1.3333), above=0)
    """Width / height of a training crop before it is resized: (least, most)."""
    random_flip: bool = setting(True)
    """Mirror half of the training clips; switch off if left and right are part of the label."""
    train_crop_num_temporal: int = number(1, at_least=1)
    """Clips at different times that are taken from one training video."""
    decoding_backend: str = choice("auto", ("auto", "torchcodec", "pyav", "decord"))
    """Video decoder; auto takes the first that works, in this order, and prints which."""

    def check(self) -> None:
        for name in ("train_jitter_scales_relative", "train_jitter_aspect_relative"):
            _check_ascending(self, name)

    def clip_spec(self, *, training: bool) -> ClipSpec:
        """Sampling, crop and normalisation of a clip, in training or in validation and test."""
        return ClipSpec(
            num_frames=self.num_frames,
            sampling_rate=self.sampling_rate,
            target_fps=self.target_fps,
            crop_size=self.train_crop_size if training else self.test_crop_size,
            mean=self.mean,
            std=self.std,
            segments=self.segments,
            normalize_brightness=self.normalize_brightness,
        )


@dataclass(frozen=True)
class DataLoaderConfig(Section):
    """Processes that load batches."""

    prefix = "DATA_LOADER."

    num_workers: int = number(-1, at_least=-1)
    """Processes that decode videos, for each process of the run; 0 decodes in the training process.
    -1: by the cores that this machine lends, see `World.loader_workers`."""
    pin_memory: bool = setting(True)
    """Page-locked batches, which are copied to a GPU while it computes; no effect on a CPU."""


@dataclass(frozen=True)
class AugConfig(Section):
    """Augmentation of training clips, and masking when pretraining."""

    prefix = "AUG."

    num_sample: int = number(1, at_least=1)
    """Augmented copies of each training clip (repeated augmentation)."""
    aa_type: str = matching(
        "",
        r"(rand(-((m|mstd|p)\d+(\.\d+)?|n\d+|inc[01]))*)?",
        example="rand-m7-mstd0.5-inc1",
    )
    """RandAugment in timm's spelling, `rand-m7-mstd0.5-inc1`; empty is none."""
    re_prob: float = number(0.0, at_least=0, at_most=1)
    """Probability that a box of a training clip is erased, the same box in all frames."""
    re_mode: str = choice("pixel", ("pixel", "const"))
    """Fill of the erased box: random noise in every pixel, or zero."""
    re_count: int = number(1, at_least=1)
    """Largest number of boxes erased in one clip."""
    gamma: tuple[float, float] = number((1.0, 1.0), above=0)
    """Exponent of the pixels of a training clip: (least, most), log-uniform; above 1 darkens."""
    gain: tuple[float, float] = number((1.0, 1.0), above=0)
    """Factor of the pixels of a training clip: (least, most), log-uniform."""
    noise: float = number(0.0, at_least=0, at_most=1)
    """Largest standard deviation of Gaussian noise added to a training clip, for pixels in
    [0, 1]."""
    blur: float = number(0.0, at_least=0, at_most=1)
    """Probability that a training clip is blurred lightly in space."""
    grey: float = number(0.0, at_least=0, at_most=1)
    """Probability that a training clip loses its colours."""
    speed: tuple[float, float] = number((1.0, 1.0), above=0)
    """Factor of the distance between the frames of a training clip: (least, most), log-uniform;
    above 1 is faster. A clip is never stretched beyond its video."""
    symmetries: bool = setting(False)
    """Mirror, transpose and reverse camera-motion clips at random, and change their labels too."""
    mask_ratio: float = number(0.9, above=0, below=1)
    """Share of the mask units hidden from the encoder while pretraining."""

    def check(self) -> None:
        for name in ("gamma", "gain", "speed"):
            _check_ascending(self, name)


@dataclass(frozen=True)
class MixupConfig(Section):
    """Mixup, CutMix and label smoothing."""

    prefix = "MIXUP."

    enable: bool = setting(False)
    """Mix pairs of clips and their labels; also enables LABEL_SMOOTH_VALUE, as in SlowFast."""
    alpha: float = number(0.8, at_least=0)
    """Beta(alpha, alpha) of mixup; 0 is off."""
    cutmix_alpha: float = number(1.0, at_least=0)
    """Beta(alpha, alpha) of CutMix; 0 is off."""
    prob: float = number(1.0, at_least=0, at_most=1)
    """Probability that a batch is mixed at all."""
    switch_prob: float = number(0.5, at_least=0, at_most=1)
    """Probability of CutMix if both are on."""
    label_smooth_value: float = number(0.1, at_least=0, below=1)
    """Share of the label that is spread over all classes."""

    def check(self) -> None:
        if self.enable and self.alpha == 0 and self.cutmix_alpha == 0 and self.prob > 0:
            raise ConfigError(
                "MIXUP.ENABLE=true with MIXUP.ALPHA=0 and MIXUP.CUTMIX_ALPHA=0 mixes nothing; "
                "set one above 0, or MIXUP.PROB=0 for label smoothing alone"
            )


@dataclass(frozen=True)
class TrainConfig(Section):
    """Training and pretraining."""

    prefix = "TRAIN."

    enable: bool = setting(True)
    """Train (or pretrain)."""
    dataset: str = setting("video")
    """A registered data set."""
    batch_size: int = number(64, at_least=1)
    """Videos per optimizer step, over all processes and accumulation steps together; each gives
    DATA.TRAIN_CROP_NUM_TEMPORAL x AUG.NUM_SAMPLE clips."""
    grad_accum: int = number(1, at_least=1)
    """Parts of a step's batch that are computed one after the other: less memory, more time."""
    eval_period: int = number(1, at_least=0)
    """Epochs between validations; 0 validates after the last epoch only."""
    checkpoint_period: int = number(1, at_least=1)
    """Epochs between checkpoints; the last epoch always has one."""
    checkpoint_steps: int = number(0, at_least=0)
    """Optimizer steps between checkpoints inside an epoch; 0 is off."""
    keep_checkpoints: int = number(2, at_least=0)
    """Number of latest checkpoints that are kept besides the best one; 0 keeps all."""
    auto_resume: bool = setting(True)
    """Resume from the latest checkpoint in OUTPUT_DIR, if there is one."""
    checkpoint_file_path: str = setting("")
    """Weights to start from: a file, a URL, or a published name such as mae_k400."""
    checkpoint_epoch_reset: bool = setting(True)
    """True: load only the weights of CHECKPOINT_FILE_PATH. False: epoch and optimizer state too."""
    mixed_precision: str = choice("off", ("off", "bf16", "fp16"))
    """Number format of the forward pass; weights and loss stay float32."""
    compile: bool | None = setting(None)
    """Use torch.compile on the model: slower to start, faster afterwards. None: on a GPU, where
    the model compiles whole. Where it fails, a note says why and the run goes on without."""
    compile_mode: str = choice("default", ("default", "reduce-overhead", "max-autotune"))
    """Mode of torch.compile: reduce-overhead replays CUDA graphs, max-autotune also takes
    minutes to try kernels; both are for GPUs."""
    ema_decay: float = number(0.0, at_least=0, below=1)
    """Decay of the moving average of the weights, e.g. 0.9999, which is then evaluated; 0: off"""
    class_weights: str = choice("none", ("none", "balanced"))
    """balanced weights the loss of a class by the inverse of its number of videos."""
    linear_probe: bool = setting(False)
    """Train the head alone; the backbone stays as it was loaded."""
    probe: str = choice("off", ("off", "linear", "attentive"), {"true": "linear", "false": "off"})
    """Before the first step, fit the head to clips of the frozen encoder. linear: by logistic
    regression, for a model with a readout (MODEL.KWARGS {readout_stages: [3]}). attentive: by
    attention with one learned query over the tokens of these stages, or of the last one."""
    probe_views: int = number(8, at_least=1)
    """Random clips of each training video that the probe is fitted to."""
    probe_alone_below: int = number(0, at_least=0)
    """With fewer training videos than this the probe is all: no epochs follow. 0: always train."""
    picture_period: int = number(0, at_least=0)
    """Epochs between pictures of the autoencoder's reconstructions; 0 is off."""

    @property
    def fits_probe(self) -> bool:
        """Whether a head is fitted before the first step."""
        return self.probe != "off"

    def check(self) -> None:
        if self.batch_size % self.grad_accum:
            raise ConfigError(
                f"TRAIN.BATCH_SIZE={self.batch_size} must be a multiple of "
                f"TRAIN.GRAD_ACCUM={self.grad_accum}"
            )


@dataclass(frozen=True)
class TestConfig(Section):
    """Testing with several views of each video."""

    __test__ = False  # pytest: the name looks like a test class
    prefix = "TEST."

    enable: bool = setting(True)
    """Test after training; with TRAIN.ENABLE false, only test."""
    dataset: str = setting("video")
    """A registered data set."""
    batch_size: int = number(8, at_least=1)
    """Views per forward pass; the scores do not depend on it."""
    num_ensemble_views: int = number(5, at_least=1)
    """Clips in time per video (K of "K x S views")."""
    num_spatial_crops: int = number(3, at_least=1, at_most=3)
    """Crops per clip (S): 1 the centre, 3 along the longer side."""
    checkpoint_file_path: str = setting("")
    """Weights to test: a file, a URL or a published name; empty tests the model just trained, best
    the best.pyth of OUTPUT_DIR."""
    mixed_precision: str = choice("train", ("train", "off", "bf16", "fp16"))
    """Number format of the test's forward pass; train: that of TRAIN.MIXED_PRECISION. Validation
    during training always uses that of the training."""

    def check(self) -> None:
        if self.num_spatial_crops == 2:
            raise ConfigError("TEST.NUM_SPATIAL_CROPS=2 must be 1 (centre) or 3")


@dataclass(frozen=True)
class SolverConfig(Section):
    """Optimizer and learning-rate schedule."""

    prefix = "SOLVER."

    optimizing_method: str = choice("adamw", ("adamw", "sgd"))
    """AdamW, or SGD with momentum."""
    base_lr: float = number(8e-4, above=0)
    """Peak learning rate."""
    lr_batch: int = number(0, at_least=0)
    """TRAIN.BATCH_SIZE (videos) that BASE_LR, WARMUP_START_LR and COSINE_END_LR are for; for
    another batch size they are scaled linearly. 0: never scaled."""
    cosine_after_warmup: bool = setting(True)
    """The learning rate rises linearly, then follows half a cosine down to COSINE_END_LR. True: the
    cosine begins after the warm-up. False: at the first step, as in SlowFast by default."""
    cosine_end_lr: float = number(1e-6, at_least=0)
    """Learning rate at the end of training."""
    warmup_epochs: float = number(0.0, at_least=0)
    """Length of the linear warm-up in epochs, which may be a fraction."""
    warmup_start_lr: float = number(1e-8, at_least=0)
    """Learning rate of the first step. If an epoch is a single step, the warm-up begins one step
    later on its line, so that no epoch is lost."""
    max_epoch: int = number(30, at_least=0)
    """Passes over the list of videos (a paper's "effective epochs" divided by the repeats); 0 is
    for TRAIN.PROBE alone."""
    max_steps: int = number(0, at_least=0)
    """Train for this many optimizer steps, schedule included; 0: MAX_EPOCH decides."""
    momentum: float = number(0.9, at_least=0, below=1)
    """Momentum of SGD."""
    nesterov: bool = setting(True)
    """Nesterov momentum of SGD."""
    betas: tuple[float, float] = number((0.9, 0.999), at_least=0, below=1)
    """Betas of AdamW."""
    weight_decay: float = number(0.05, at_least=0)
    """Decoupled for AdamW; biases, norms and position embeddings are exempt."""
    layer_decay: float = number(1.0, above=0, at_most=1)
    """Learning-rate factor per block, from the head to the stem; 1.0 is off."""
    clip_grad_l2norm: float | None = number(None, above=0)
    """Largest norm of the gradient over all parameters; None does not clip."""

    def check(self) -> None:
        for name in ("cosine_end_lr", "warmup_start_lr"):
            if getattr(self, name) > self.base_lr:
                raise ConfigError(
                    f"SOLVER.{name.upper()}={getattr(self, name)} must be at most "
                    f"SOLVER.BASE_LR={self.base_lr}"
                )
        if self.warmup_epochs > self.max_epoch > 0:
            raise ConfigError(
                f"SOLVER.WARMUP_EPOCHS={self.warmup_epochs} must be at most "
                f"SOLVER.MAX_EPOCH={self.max_epoch}"
            )
        if self.optimizing_method == "sgd" and self.nesterov and self.momentum == 0:
            raise ConfigError("SOLVER.NESTEROV=true needs SOLVER.MOMENTUM above 0")


@dataclass(frozen=True)
class Config(Section):
    """All settings of a run. Only what builds a run sees all of them; the rest takes a section."""

    task: str = setting("classify")
    """classify: labels. pretrain: masked autoencoding, no labels. motion: dense motion of generated
    clips. detect: what is done in boxes (AVA). Or an objective of IMPORTS."""
    output_dir: str = setting("runs/default")
    """Folder for checkpoints, metrics and pictures."""
    rng_seed: int = number(1, at_least=0, at_most=2**63 - 1)
    """Seed of all random choices; the same clips are seen with any number of workers."""
    log_period: int = number(10, at_least=1)
    """Optimizer steps between lines on the console and in metrics.jsonl."""
    device: str = choice("auto", ("auto", "cpu", "cuda"))
    """auto uses a GPU if there is one."""
    num_threads: int = number(0, at_least=0)
    """CPU threads of PyTorch; 0 keeps its default."""
    imports: tuple[str, ...] = setting(())
    """Your modules to import first, for the models, data sets and objectives that they register."""

    model: ModelConfig = field(default_factory=ModelConfig)
    hiera: HieraConfig = field(default_factory=HieraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    data_loader: DataLoaderConfig = field(default_factory=DataLoaderConfig)
    aug: AugConfig = field(default_factory=AugConfig)
    mixup: MixupConfig = field(default_factory=MixupConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    page: PageConfig = field(default_factory=PageConfig)
    tensorboard: TensorboardConfig = field(default_factory=TensorboardConfig)
    trackers: TrackersConfig = field(default_factory=TrackersConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    ava: AvaConfig = field(default_factory=AvaConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)

    def check(self) -> None:
        if self.task == "pretrain" and self.mixup.enable:
            raise ConfigError("MIXUP.ENABLE=true has no meaning with TASK=pretrain (no labels)")
        if self.aug.symmetries and (self.task == "pretrain" or self.data.multi_label):
            other = "TASK=pretrain" if self.task == "pretrain" else "DATA.MULTI_LABEL=true"
            raise ConfigError(
                f"AUG.SYMMETRIES=true cannot be used with {other}: it changes the label of a clip"
            )
        if self.data.segments and self.aug.speed != (1, 1):
            raise ConfigError(
                f"AUG.SPEED={list(self.aug.speed)} has no meaning with DATA.SEGMENTS=true, whose "
                "clips always span the whole video; leave it at [1, 1]"
            )
        self._check_probe()
        self._check_truth()
        self._check_boxes()
        labelled = self.task == "classify"
        if labelled and self.data.multi_label and self.model.loss_func != "bce_logit":
            raise ConfigError(
                f"DATA.MULTI_LABEL=true needs MODEL.LOSS_FUNC=bce_logit, "
                f"not {self.model.loss_func!r}"
            )

    def _check_boxes(self) -> None:
        datasets = {"TRAIN.DATASET": self.train.dataset}
        if self.test.enable:
            datasets["TEST.DATASET"] = self.test.dataset
        off = {
            "MIXUP.ENABLE": not self.mixup.enable,
            "DATA.MULTI_LABEL": not self.data.multi_label,
            "DATA.SEGMENTS": not self.data.segments,
            "DATA.TRAIN_CROP_NUM_TEMPORAL": self.data.train_crop_num_temporal == 1,
            "AUG.NUM_SAMPLE": self.aug.num_sample == 1,
            "AUG.SPEED": self.aug.speed == (1, 1),
            "AUG.SYMMETRIES": not self.aug.symmetries,
            "TRAIN.CLASS_WEIGHTS": self.train.class_weights == "none",
            "TEST.NUM_ENSEMBLE_VIEWS": self.test.num_ensemble_views == 1 or not self.test.enable,
        }
        check_task(self.task, datasets, off)

    @property
    def sigmoid_scores(self) -> bool:
        """Whether each class is a yes or no of its own (sigmoid), not one of all (softmax)."""
        boxes = self.task == "detect" and self.model.loss_func == "bce_logit"
        return self.data.multi_label or boxes

    def _check_probe(self) -> None:
        solver = self.solver
        if not self.train.fits_probe:
            if not solver.max_epoch and not solver.max_steps:
                raise ConfigError("SOLVER.MAX_EPOCH=0 trains nothing; it is for TRAIN.PROBE alone")
            return
        if self.task != "classify":
            raise ConfigError(
                f"TRAIN.PROBE={self.train.probe} needs TASK=classify, not {self.task!r}"
            )
        if self.data.multi_label:
            raise ConfigError(
                f"TRAIN.PROBE={self.train.probe} is for one label a video, and "
                "DATA.MULTI_LABEL=true for several"
            )

    def _check_truth(self) -> None:
        """Refuse to predict what is known of generated clips from others, before any is read."""
        wants = ""
        if self.task == "motion":
            wants = "TASK=motion"
        elif self.task == "pretrain" and self.hiera.target == "flow":
            wants = "HIERA.TARGET=flow"
        if wants and self.train.dataset not in SETS_WITH_TRUTH:
            raise ConfigError(
                f"{wants} needs clips with their truth, which generated ones have: set "
                f"TRAIN.DATASET to {' or '.join(SETS_WITH_TRUTH)}, not {self.train.dataset!r}"
            )

    def model_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `build_model`, except `num_classes`.

        A setting that is None is not passed, so the builder's default holds. `input_size` comes
        from DATA, for builders that take such an argument or return a class that does; other
        models take any size, or what MODEL.KWARGS says.
        Raises UserError for a name that is not registered.
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
            if self.hiera.target != "pixels":  # which all autoencoders predict without being told
                arguments["target"] = self.hiera.target
            del arguments["head_dropout"]  # an autoencoder has no classifier
        if self.task == "detect":
            arguments["roi_resolution"] = self.detection.roi_xform_resolution
            arguments["aligned"] = self.detection.aligned
        arguments.update(self.model.kwargs)
        if self.train.probe == "attentive":
            if "attentive" not in arguments_of(MODEL_REGISTRY.get(self.model.model_name)):
                raise ConfigError(
                    f"TRAIN.PROBE=attentive needs a hiera_*, ladder_* or mvitv2_* model, not "
                    f"{self.model.model_name}"
                )
            arguments["attentive"] = True
        return {name: value for name, value in arguments.items() if value is not None}

    def to_yaml(self) -> str:
        """Every setting as YAML that `Config.from_yaml` reads back to an equal Config."""
        return to_yaml_text(self)

    @classmethod
    def from_yaml(cls, text: str, *, source: str = "config text") -> Config:
        """A Config from YAML text without `_BASE_`, such as a checkpoint stores."""
        return assemble(cls, read_text(text, source, keys_of(cls)))


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The Config of a YAML file with `KEY VALUE ...` overrides; path None starts from defaults.

    path: a file, or the name of a recipe of the package, such as "K400/hiera_b_16x4".

    Raises ConfigError (a UserError): no such file, broken YAML, unknown key, bad value.
    """
    keys = keys_of(Config)
    entries = [] if path is None else read_file(locate(path), keys)
    return assemble(Config, [*entries, *read_words(overrides, keys)])
