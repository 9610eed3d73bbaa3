"""The settings of one run: all sections together, and the rules between them.

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

from hiera_video.config.clips import AugConfig, DataConfig, DataLoaderConfig, MixupConfig
from hiera_video.config.detection import AvaConfig, DetectionConfig, check_task
from hiera_video.config.generated import SETS_WITH_TRUTH, SyntheticConfig
from hiera_video.config.keys import keys_of
from hiera_video.config.model import HieraConfig, ModelConfig
from hiera_video.config.parse import Entry, assemble, read_file, read_text, read_words, to_yaml_text
from hiera_video.config.recipes import locate
from hiera_video.config.section import Section
from hiera_video.config.trackers import PageConfig, TensorboardConfig, TrackersConfig
from hiera_video.config.training import SolverConfig, TestConfig, TrainConfig
from hiera_video.config.values import choice, number, setting
from hiera_video.errors import ConfigError
from hiera_video.registry import MODEL_REGISTRY, arguments_of


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
        return assemble(cls, _with_auto_parts(read_text(text, source, keys_of(cls))))


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The Config of a YAML file with `KEY VALUE ...` overrides; path None starts from defaults.

    path: a file, or the name of a recipe of the package, such as "K400/hiera_b_16x4".

    Raises ConfigError (a UserError): no such file, broken YAML, unknown key, bad value.
    """
    keys = keys_of(Config)
    entries = [] if path is None else read_file(locate(path), keys)
    return assemble(Config, _with_auto_parts([*entries, *read_words(overrides, keys)]))


def _with_auto_parts(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with TRAIN.BATCH_SIZE auto as what it means, TRAIN.GRAD_ACCUM auto: the
    batch stays that of an earlier entry."""
    return [
        entry._replace(key="TRAIN.GRAD_ACCUM")
        if entry.key == "TRAIN.BATCH_SIZE" and str(entry.value).lower() == "auto"
        else entry
        for entry in entries
    ]
