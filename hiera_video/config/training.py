"""The sections on training, testing and the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from hiera_video.config.section import Section
from hiera_video.config.values import choice, number, setting
from hiera_video.errors import ConfigError


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
    DATA.TRAIN_CROP_NUM_TEMPORAL x AUG.NUM_SAMPLE clips. auto keeps the number of the recipe and
    sets GRAD_ACCUM auto."""
    grad_accum: int = number(1, at_least=0, spelled={"auto": 0})
    """Parts of a step's batch that are computed one after the other: less memory, more time. auto
    (or 0): as few as fit into memory, found by trying."""
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
    sharding: str = choice("none", ("none", "fsdp"))
    """fsdp: each of several processes keeps a part of the weights, gradients and optimizer state
    (FSDP2), and checkpoints are folders that all of them write. none: each keeps all of them."""
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
        if self.grad_accum and self.batch_size % self.grad_accum:
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
