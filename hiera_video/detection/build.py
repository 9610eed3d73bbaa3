"""The parts of a run with boxes, built from its Config."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hiera_video.config import Config
from hiera_video.config.generated import GENERATED_SETS
from hiera_video.data.datasets import VideoDataset
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.data.transforms.photometric import Photometric
from hiera_video.data.transforms.train import TrainTransform
from hiera_video.detection import moving_shapes
from hiera_video.detection.clips import KeyFrameDataset, TestKeyFrames, TrainKeyFrames
from hiera_video.detection.evaluation import FrameMapEvaluation, as_key_frames
from hiera_video.detection.key_frames import read_key_frames
from hiera_video.detection.stand_in import make_stand_in
from hiera_video.errors import DataError
from hiera_video.progress import Progress


class DetectionParts:
    """What TASK detect builds itself, see `hiera_video.engine.parts.Parts`."""

    def read_split(self, cfg: Config, split: str) -> Manifest:
        """Read key frames and boxes; the embedded set is made first, where it is not there."""
        folder, ava = cfg.data.path_to_data_dir, cfg.ava
        if (cfg.test.dataset if split == "test" else cfg.train.dataset) == moving_shapes.NAME:
            folder = str(make_shapes(cfg, folder or GENERATED_SETS[moving_shapes.NAME]))
            ava = moving_shapes.SETTINGS
        elif not folder or not Path(folder).expanduser().is_dir():
            raise DataError(_no_data(folder))
        return read_key_frames(folder, ava, split)

    def training_set(self, cfg: Config, manifest: Manifest) -> VideoDataset:
        """Build the data set of random clips around key frames."""
        aug, scales = cfg.aug, cfg.detection.train_jitter_scales
        transform = TrainTransform(
            cfg.data.clip_spec(training=True),
            area=cfg.data.train_jitter_scales_relative,
            aspect=cfg.data.train_jitter_aspect_relative,
            flip=0.5 if cfg.data.random_flip else 0.0,
            rand_augment=aug.aa_type,
            erase_prob=aug.re_prob,
            erase_mode=aug.re_mode,
            erase_count=aug.re_count,
            photometric=Photometric(
                gamma=aug.gamma, gain=aug.gain, noise=aug.noise, blur=aug.blur, grey=aug.grey
            ),
        )
        reader = TrainKeyFrames(
            transform,
            seed=cfg.rng_seed,
            box_jitter=cfg.detection.box_jitter,
            scales=scales if any(scales) else None,
            decoder=cfg.data.decoding_backend,
        )
        return KeyFrameDataset(as_key_frames(manifest), reader, seed=cfg.rng_seed)

    def test_set(self, cfg: Config, manifest: Manifest, *, crops: int) -> VideoDataset:
        """Build the data set of the clips around all key frames."""
        reader = TestKeyFrames(
            cfg.data.clip_spec(training=False), num_crops=crops, decoder=cfg.data.decoding_backend
        )
        return KeyFrameDataset(as_key_frames(manifest), reader)

    def evaluation(self, cfg: Config) -> FrameMapEvaluation:
        """Measure frame mAP."""
        return FrameMapEvaluation()

    def boxes_per_clip(self, manifest: Manifest) -> float:
        """Count the boxes of a key frame on average."""
        return as_key_frames(manifest).num_boxes / max(1, len(manifest))

    def stand_in(self, cfg: Config, folder: Path, clips: int) -> Config:
        """Write clips of moving shapes for a dry run without data."""
        ava = make_stand_in(
            folder / "shapes",
            key_frames=clips,
            classes=cfg.model.num_classes,
            side=max(cfg.data.train_crop_size, 32),
        )
        data = dataclasses.replace(cfg.data, path_to_data_dir=str(folder / "shapes"))
        return dataclasses.replace(cfg, data=data, ava=ava)


def make_shapes(cfg: Config, folder: str) -> Path:
    """Make the embedded set, unless it is there; returns its folder."""
    settings = moving_shapes.ShapeSettings(
        num_train=cfg.synthetic.num_train, num_val=cfg.synthetic.num_val, size=cfg.synthetic.size
    )
    with Progress("generated", unit="videos") as progress:
        return moving_shapes.make_shapes(folder, settings, progress=progress.report)


def _no_data(path: str) -> str:
    """Return the message for a data folder that is not there."""
    what = (
        f"DATA.PATH_TO_DATA_DIR {path} is no folder" if path else "DATA.PATH_TO_DATA_DIR is empty"
    )
    return (
        f"{what}. It must hold AVA's files in SlowFast's layout: annotations/, and either frames/ "
        "with frame_lists/ or videos/ (the keys AVA.* name others)\n"
        "  --cfg quickstart/detect runs without any data\n"
        "  --dry-run 3 tries this config on generated clips"
    )
