"""The rows that run the trainer, as a user does: `tools/run_net.py` in a process of its own.

The last epoch is tested, by the trainer itself; the test videos decide nothing. A run that was
interrupted is resumed from its checkpoint.
"""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evidence_rows.action_sets import Part, names_of
from evidence_rows.controls import CONTROLS, PLAIN, changed
from evidence_rows.encoders import RANDOM, load_encoder
from evidence_rows.feature_files import plain_name
from evidence_rows.progress import Progress
from evidence_rows.results import Job
from evidence_rows.rows import Answers, Row
from hiera_video import __version__, files
from hiera_video.classifier import load_classifier
from hiera_video.config import Config, load_config
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.data.manifests.video_table import quoted_path
from hiera_video.data.transforms.normalize import normalize_clips
from hiera_video.data.views import read_view_pixels, views_of
from hiera_video.engine import checkpoint
from hiera_video.errors import RunFailed
from hiera_video.scoring import ScoreSettings, choose_device, clip_scores
from hiera_video.spreadsheet import original
from hiera_video.video.decode import open_video

TOOL = Path(__file__).resolve().parents[1] / "run_net.py"

_SECONDS_BETWEEN = 30.0
"""Between two lines of the trainer that are shown."""


@dataclass(frozen=True)
class Trainer:
    """How runs are started."""

    config: Path
    overrides: tuple[str, ...]
    """Further settings of every run: KEY VALUE KEY VALUE."""
    folder: Path
    """For lists and runs."""
    progress: Progress


@dataclass(frozen=True)
class FineTuning:
    """Trains on the training videos of a job, from some weights, and tests."""

    trainer: Trainer
    start: str | None
    """Weights to start from; "" is from scratch, None what the config says."""

    @property
    def words(self) -> list[str]:
        """The settings that differ from the config, without paths and seed."""
        # validation would only watch: the last epoch is tested whatever it shows
        words = ["TRAIN.EVAL_PERIOD", "0", *self.trainer.overrides]
        return words if self.start is None else [*words, "TRAIN.CHECKPOINT_FILE_PATH", self.start]

    def config(self) -> Config:
        return load_config(self.trainer.config, self.words)

    def settings(self, seed: int) -> dict[str, Any]:
        config = self.config()
        start = config.train.checkpoint_file_path
        return {
            "config": config.to_yaml(),
            "start": load_encoder(start).weights if start else "",
            "controls": list(CONTROLS),
            "version": __version__,
        }

    def run(self, job: Job) -> Answers:
        """Train, test, and test the controls."""
        lists = self._write_lists(job)
        out = self.trainer.folder / "runs" / job.key()
        paths = ["DATA.PATH_TO_DATA_DIR", str(lists), "DATA.PATH_PREFIX", job.part.train.paths.root]
        words = [*self.words, *paths, "OUTPUT_DIR", str(out), "RNG_SEED", str(job.seed)]
        self._call([sys.executable, str(TOOL), "--cfg", str(self.trainer.config), *words])

        classes = job.action_set.classes
        predicted = {PLAIN: read_predictions(out / "predictions.csv", job.part.test, classes)}
        newest = checkpoint.latest(out / "checkpoints")
        assert newest is not None  # the test above has read it
        predicted |= control_answers(newest[0], job.part.test, self.config())
        # they are large and many; logs, records and predictions stay
        shutil.rmtree(out / "checkpoints")
        return Answers(predicted)

    def _write_lists(self, job: Job) -> Path:
        """Write the lists of a part as tools/prepare_data.py writes them; their folder."""
        name = plain_name(f"{job.action_set.name} {job.part.name}")
        folder = self.trainer.folder / "lists" / f"{name}-{job.action_set.fingerprint}"
        write_lists(folder, job.part, job.action_set.classes)
        return folder

    def _call(self, command: Sequence[str]) -> None:
        """Run the trainer and show a line of it now and then.

        A Ctrl-C is passed on once, and waited for: the run saves its state. Raises RunFailed.
        """
        last: deque[str] = deque(maxlen=15)
        shown = time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # else the terminal's Ctrl-C would reach it, too
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last.append(line.rstrip())
                if time.monotonic() - shown >= _SECONDS_BETWEEN:
                    shown = time.monotonic()
                    self.trainer.progress.say(f"  {last[-1]}")
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.communicate()
            raise
        if code:
            raise RunFailed(
                f"the trainer ended with exit code {code}; its last lines:\n  " + "\n  ".join(last)
            )


def write_lists(folder: Path, part: Part, classes: Sequence[str]) -> None:
    """Write train.csv, val.csv and the names of the classes."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "classnames.json", json.dumps(list(classes), ensure_ascii=False))
    for name, manifest in (("train", part.train), ("val", part.test)):
        lines = [
            f"{quoted_path(path)} {manifest.label(i)}\n"
            for i, path in enumerate(names_of(manifest))
        ]
        files.write_text(folder / f"{name}.csv", "".join(lines), errors="surrogateescape")


def read_predictions(file: Path, test: Manifest, classes: Sequence[str]) -> list[int]:
    """The trainer's answer for each video of the test list; -1, which is wrong, for unreadable."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines))
    if len(rows) != len(test):
        raise RunFailed(f"{file} has {len(rows)} videos, the list {len(test)}")
    names = [original(row["class1"]) for row in rows]
    return [list(classes).index(name) if name else -1 for name in names]


def control_answers(weights: Path, test: Manifest, config: Config) -> dict[str, list[int]]:
    """What a trained model answers to the changed test clips, with the views of the test."""
    device = choose_device(config.device)
    found = load_classifier(None, weights, None, spec=None, model_kwargs={}, warn=lambda line: None)
    model = found.model.to(device).eval()
    views, crops = config.test.num_ensemble_views, config.test.num_spatial_crops
    answers: dict[str, list[int]] = {control: [] for control in CONTROLS}
    for i, name in enumerate(names_of(test)):
        with open_video(test.paths[i], config.data.decoding_backend) as reader:
            clips = read_view_pixels(reader, views_of(reader, found.spec, views), found.spec, crops)
        for control, said in answers.items():
            pixels = torch.stack(
                [changed(clip, control, f"{name} {k // crops}") for k, clip in enumerate(clips)]
            )
            batch = normalize_clips(pixels.transpose(1, 2), found.spec)
            settings = ScoreSettings(batch_size=config.test.batch_size)
            scores = clip_scores(model, batch, settings, device=device)
            said.append(int(scores.mean(dim=0).argmax()))
    return answers


# ---- the rows -----------------------------------------------------------------------------------


def finetuning_rows(trainer: Trainer, encoders: Sequence[str]) -> list[Row]:
    """From scratch, as the config says, and from each encoder that the config does not start from.

    Random weights are the row from scratch.
    """
    usual = load_config(trainer.config, list(trainer.overrides)).train.checkpoint_file_path
    rows = [
        _row("scratch", "fine-tuning from random weights", FineTuning(trainer, "")),
        _row("recipe", f"fine-tuning from {usual or 'random weights'}", FineTuning(trainer, None)),
    ]
    for weights in encoders:
        if weights not in (RANDOM, usual):
            what = "fine-tuning from these weights"
            rows.append(_row(f"recipe from {weights}", what, FineTuning(trainer, weights)))
    return rows


def _row(name: str, what: str, tuning: FineTuning) -> Row:
    return Row(name, "fine-tuning", what, tuning.run, tuning.settings)
