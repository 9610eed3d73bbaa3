"""The rows that run the trainer, as a user does: `tools/run_net.py` in a process of its own.

The last epoch is tested, by the trainer itself, also where the recipe tests its best one: the best
is chosen on the list "val", which here are the test videos, and these must decide nothing. The
controls are asked of the very checkpoint that was tested. A run that was interrupted is resumed
from its checkpoint.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from evidence_rows.action_sets import ActionSet, Part
from evidence_rows.controls import CONTROLS, PLAIN, changed
from evidence_rows.encoders import RANDOM
from evidence_rows.feature_files import plain_name
from evidence_rows.progress import Progress
from evidence_rows.results import Job
from evidence_rows.rows import Answers, Row
from hiera_video import __version__, files
from hiera_video.classifier import load_classifier
from hiera_video.config import Config, load_config
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.data.transforms.normalize import normalize_clips
from hiera_video.data.views import read_view_pixels, views_of
from hiera_video.engine import build, evaluate
from hiera_video.errors import RunFailed, UserError
from hiera_video.models.weights.load import load_weights
from hiera_video.models.weights.resolve import resolve
from hiera_video.scoring import choose_device, clip_scores
from hiera_video.spreadsheet import original
from hiera_video.video.decode import open_video

TOOL = Path(__file__).resolve().parents[1] / "run_net.py"

_SECONDS_BETWEEN = 30.0
"""Between two lines of the trainer that are shown."""


SAME_IN_ALL_RUNS = {
    "TRAIN.ENABLE": "True",
    "TEST.ENABLE": "True",
    "TRAIN.EVAL_PERIOD": "0",  # validation would choose the best epoch on the test videos
    "TEST.CHECKPOINT_FILE_PATH": "",  # the last epoch
    "DATA.GROUP_BY": "",  # the lists have the groups
}
"""What keeps the table honest, whatever the config says."""

OF_A_RUN = ("DATA.PATH_TO_DATA_DIR", "DATA.PATH_PREFIX", "OUTPUT_DIR", "RNG_SEED")
"""What each run has of its own."""

LISTS = 2
"""Version of what the lists tell a run: 2 names files below the folder of the set, and groups."""


@dataclass(frozen=True)
class Trainer:
    """How runs are started.

    Raises UserError where `overrides` has a setting that each row sets itself.
    """

    config: Path
    overrides: tuple[str, ...]
    """Further settings of every run: KEY VALUE KEY VALUE."""
    folder: Path
    """For lists and runs."""
    progress: Progress

    def __post_init__(self) -> None:
        for key in self.overrides[::2]:
            if key.upper() in (*SAME_IN_ALL_RUNS, *OF_A_RUN):
                raise UserError(f"--set {key}: every fine-tuning row has its own; leave it out")


@dataclass(frozen=True)
class FineTuning:
    """Trains on the training videos of a job, from some weights, and tests."""

    trainer: Trainer
    changes: Mapping[str, str]
    """Setting -> value: how the row differs from the config."""

    @property
    def words(self) -> list[str]:
        """The settings that differ from the config, without paths and seed."""
        settings = {**self.changes, **SAME_IN_ALL_RUNS}
        return [*self.trainer.overrides, *itertools.chain(*settings.items())]

    def config(self) -> Config:
        return load_config(self.trainer.config, self.words)

    def settings(self, seed: int) -> dict[str, Any]:
        config = self.config()
        return {
            "config": config.to_yaml(),
            "start": weights_digest(config.train.checkpoint_file_path, config.model.model_name),
            "controls": list(CONTROLS),
            "lists": LISTS,
            "version": __version__,
        }

    def check(self) -> None:
        """Build the model and load the weights to start from, as the trainer does.

        Raises UserError, WeightsError: they are not there or do not fit; a wrong setting.
        """
        config = self.config()
        if config.task != "classify":
            raise UserError(f"{self.trainer.config} is for TASK {config.task}; name one that tests")
        names = ["a", "b"]
        with torch.random.fork_rng(devices=[]):
            model, _ = build.training_model(config, num_classes=len(names))
            start = config.train.checkpoint_file_path
            if start:
                stored, _ = resolve(start, config.model.model_name)
                load_weights(model, stored, classes=names)

    def run(self, job: Job) -> Answers:
        """Train, test, and test the controls."""
        lists = self._write_lists(job)
        out = self.trainer.folder / "runs" / job.key()
        folder = str(job.action_set.folder)
        paths = ["DATA.PATH_TO_DATA_DIR", str(lists), "DATA.PATH_PREFIX", folder]
        words = [*self.words, *paths, "OUTPUT_DIR", str(out), "RNG_SEED", str(job.seed)]
        self._call([sys.executable, str(TOOL), "--cfg", str(self.trainer.config), *words])

        classes = job.action_set.classes
        predicted = {PLAIN: read_predictions(out / "predictions.csv", job.part.test, classes)}
        tested = json.loads((out / "results.json").read_text(encoding="utf-8"))["checkpoint"]
        predicted |= control_answers(Path(tested), job.action_set, job.part.test, self.config())
        # they are large and many; logs, records and predictions stay
        shutil.rmtree(out / "checkpoints")
        return Answers(predicted)

    def _write_lists(self, job: Job) -> Path:
        """Write the lists of a part; returns their folder."""
        name = plain_name(f"{job.action_set.name} {job.part.name}")
        folder = self.trainer.folder / "lists" / f"{name}-{job.action_set.fingerprint}"
        write_lists(folder, job.action_set, job.part)
        return folder

    def _call(self, command: Sequence[str]) -> None:
        """Run the trainer and show a line of it now and then.

        Whatever ends this wait ends the run, which saves its state first. Raises RunFailed.
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
            process.terminate()  # not SIGINT: it is ignored where a shell began this with `&`
            process.communicate()
            raise
        if code:
            raise RunFailed(
                f"the trainer ended with exit code {code}; its last lines:\n  " + "\n  ".join(last)
            )


def write_lists(folder: Path, action_set: ActionSet, part: Part) -> None:
    """Write train.csv, val.csv and the names of the classes.

    The lists have a column `group`, so that a probe is chosen with whole groups held out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classes = json.dumps(list(action_set.classes), ensure_ascii=False)
    files.write_text(folder / "classnames.json", classes)
    for name, manifest in (("train", part.train), ("val", part.test)):
        text = io.StringIO()
        table = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
        table.writerow(["path", "label", "group"])
        names, groups = action_set.names_of(manifest), action_set.groups_of(manifest)
        for i, (path, group) in enumerate(zip(names, groups, strict=True)):
            table.writerow([path, manifest.label(i), group])
        files.write_text(folder / f"{name}.csv", text.getvalue(), errors="surrogateescape")


def read_predictions(file: Path, test: Manifest, classes: Sequence[str]) -> list[int]:
    """The trainer's answer for each video of the test list; -1, which is wrong, for unreadable."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines))
    if len(rows) != len(test):
        raise RunFailed(f"{file} has {len(rows)} videos, the list {len(test)}")
    names = [original(row["class1"]) for row in rows]
    return [list(classes).index(name) if name else -1 for name in names]


def control_answers(
    weights: Path, action_set: ActionSet, test: Manifest, config: Config
) -> dict[str, list[int]]:
    """What a trained model answers to the changed test clips, scored as the test scores them."""
    device = choose_device(config.device)
    found = load_classifier(None, weights, None, spec=None, model_kwargs={}, warn=lambda line: None)
    model = found.model.to(device).eval()
    views, crops = config.test.num_ensemble_views, config.test.num_spatial_crops
    settings = evaluate.test_settings(config)
    answers: dict[str, list[int]] = {control: [] for control in CONTROLS}
    for i, name in enumerate(action_set.names_of(test)):
        with open_video(test.paths[i], config.data.decoding_backend) as reader:
            clips = read_view_pixels(reader, views_of(reader, found.spec, views), found.spec, crops)
        for control, said in answers.items():
            pixels = torch.stack(
                [changed(clip, control, f"{name} {k // crops}") for k, clip in enumerate(clips)]
            )
            batch = normalize_clips(pixels.transpose(1, 2), found.spec)
            scores = clip_scores(model, batch, settings, device=device)
            said.append(int(scores.mean(dim=0).argmax()))
    return answers


@lru_cache(maxsize=16)
def weights_digest(weights: str, model: str) -> str:
    """Hash of the tensors in a file of weights, or of named ones; "" for no weights."""
    if not weights:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    for key, value in sorted(resolve(weights, model)[0].state_dict.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


# ---- the rows -----------------------------------------------------------------------------------

FROM = "recipe from "


def finetuning_rows(trainer: Trainer, encoders: Sequence[str]) -> list[Row]:
    """From scratch, as the config says, its parts, and from each encoder that the config does not
    start from.

    `scratch` and `fine-tuning without probe` take the same steps and differ in the first weights
    alone: together they tell what pretraining is worth. `probe` is what the recipe starts from, and
    all of it where there are too few videos for more.
    Random encoders have no row of their own: that is `scratch`.
    """
    usual = load_config(trainer.config, list(trainer.overrides)).train
    start = usual.checkpoint_file_path
    no_probe, nothing = {"TRAIN.PROBE": "False"}, {"TRAIN.CHECKPOINT_FILE_PATH": ""}

    def row(name: str, what: str, changes: Mapping[str, str]) -> Row:
        tuning = FineTuning(trainer, changes)
        return Row(name, "fine-tuning", what, tuning.run, tuning.settings, check=tuning.check)

    def stops_at_probe(part: Part) -> str:
        few = usual.fits_probe and len(part.train) < usual.probe_alone_below
        return "probe" if few else ""

    rows = [row("scratch", "fine-tuning from random weights, no probe", {**no_probe, **nothing})]
    if start and usual.fits_probe:
        what = f"fine-tuning from {start}, from a random head"
        rows.append(row("fine-tuning without probe", what, no_probe))
    if usual.fits_probe:
        untrained = {"SOLVER.MAX_EPOCH": "0", "SOLVER.MAX_STEPS": "0"}
        rows.append(row("probe", "the head fitted to the frozen encoder alone", untrained))
    recipe = row("recipe", f"fine-tuning from {start or 'random weights'}", {})
    rows.append(replace(recipe, twin=stops_at_probe))
    for weights in encoders:
        if weights not in (RANDOM, start):
            changes = {"TRAIN.CHECKPOINT_FILE_PATH": weights}
            rows.append(row(f"{FROM}{weights}", "fine-tuning from these weights", changes))
    return rows
