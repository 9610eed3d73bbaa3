"""The sections on the videos, the clips taken from them, and what training does to clips."""

from __future__ import annotations

from dataclasses import dataclass

from hiera_video.clip_spec import ClipSpec
from hiera_video.config.section import Section
from hiera_video.config.values import choice, matching, number, setting
from hiera_video.errors import ConfigError


def _check_ascending(section: Section, name: str) -> None:
    """Raise ConfigError unless the range of that name does not fall."""
    least, most = getattr(section, name)
    if least > most:
        key = f"{section.prefix}{name.upper()}"
        raise ConfigError(f"{key}=[{least}, {most}] must be [least, most], ascending")


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
