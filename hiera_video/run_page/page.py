"""The page of a run, which any browser opens without a server or a network.

    RUN/index.html             curves, settings, data, the test
    RUN/page/classes/*.html    the tested clips of each class, by what they were taken for
    RUN/page/pictures/*.jpg    named by their content
    RUN/page/facts.json        what the page is told, for the next time that it is written
    RUN/page/base.css, style.css, page.js

Everything can be read without JavaScript; with it curves show their numbers, tables sort, and the
page of a run that goes on refreshes itself. Names may come from strangers: the templates escape
them, and the pages forbid scripts and files from anywhere else.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hiera_video import __version__
from hiera_video.errors import RunFailed, hide_secrets
from hiera_video.files import explained, write_text
from hiera_video.pages.folder import OUR_PICTURE, PICTURES
from hiera_video.pages.links import link_to
from hiera_video.pages.moments import SIDE
from hiera_video.pages.templates import environment, write_as_they_are
from hiera_video.run_page import mistakes
from hiera_video.run_page.curves import panels_of
from hiera_video.run_page.facts import Clip, FactsFile, Outcome, Start
from hiera_video.run_page.pictures import add_pictures

MARK = "hiera_video run/1"
"""In index.html, so that a later page may replace it."""

PARTS, CLASSES = "page", "classes"
"""The folder beside index.html, and its subfolder with a page for each class."""

REFRESH_SECONDS = 30
"""Between two refreshes of an open page, while the run trains."""

MOST_DRAWINGS = 12
"""Pictures of the objective: the newest."""

_HERE = Path(__file__).parent
_AS_THEY_ARE = ("style.css", "page.js")
_FILES = (
    *("results.json", "predictions.csv", "per_class.csv", "confusion.csv", "confusion.png"),
    *("detections.csv", "excluded.csv", "precision_recall.png"),
    *("metrics.jsonl", "curves.png", "config.yaml", "stdout.log"),
)


class Drawing(NamedTuple):
    """What the objective drew after a step."""

    name: str
    step: int
    picture: str
    video: str
    """Empty where there is none."""
    rows: tuple[str, ...]
    """Of the picture, and columns of the video; none where it does not say."""


class Epoch(NamedTuple):
    """What was logged at the end of an epoch."""

    name: str
    training: Mapping[str, Any]
    validation: Mapping[str, Any]


class RunPage:
    """Writes the page of the run in `folder`; for one process at a time.

    A page that cannot be written does not end a run: `log` gets one line that says why, and nothing
    more is written.
    """

    def __init__(self, folder: Path, log: Callable[[str], None]) -> None:
        self.index = folder / "index.html"
        self._folder, self._parts, self._log = folder, folder / PARTS, log
        self._facts = FactsFile(self._parts)
        self._templates = environment(_HERE)
        self.works = True
        """Whether it is written: False once something could not be."""
        self._try(self._open)

    def begin(self, start: Start, *, anew: bool) -> None:
        """Show how a training run begins, from the next refresh on.

        anew: from its first step: a test that the page shows is of another run.
        """
        other: dict[str, Any] = {"test": None, "failed_videos": 0} if anew else {}
        self._try(lambda: self._facts.update(start=start, **other))

    def refresh(self, records: Sequence[Mapping[str, Any]], *, status: str, live: bool) -> None:
        """Write index.html anew. records: of metrics.jsonl; live: whether the run goes on."""
        self._try(lambda: self._write_index(records, status, live))

    def add_test(
        self,
        tested: Outcome,
        clips: Sequence[Clip],
        *,
        most_pictures: int,
        decoder: str,
    ) -> None:
        """Show a test, from the next refresh on: read pictures of clips, write pages of classes."""

        def add() -> None:
            add_pictures(clips, self._parts, most=most_pictures, decoder=decoder)
            shown = {
                "sure": mistakes.sure_mistakes(clips)[: mistakes.MOST_ON_PAGE],
                "hardest": mistakes.hardest(clips)[: mistakes.MOST_ON_PAGE],
                "failed": [clip for clip in clips if clip.error][: mistakes.MOST_IN_GROUP],
            }
            facts = self._facts.update(
                test=tested,
                test_clips={name: [vars(clip) for clip in some] for name, some in shown.items()},
                failed_videos=sum(bool(clip.error) for clip in clips),
                class_pages=bool(clips),
            )
            used = self._write_classes(tested, clips, facts)
            self._remove_unused(used | {clip.picture for clip in clips})

        self._try(add)

    # ---- writing ----

    def _try(self, write: Callable[[], object]) -> None:
        if not self.works:
            return
        try:
            write()
        except RunFailed as error:
            self.works = False
            self._log(f"note: the page of this run is not written: {error}")

    def _open(self) -> None:
        """Make the folders. Raises RunFailed where index.html is not ours to replace."""
        with explained(self.index):
            if os.path.lexists(self.index):
                with open(self.index, "rb") as file:
                    if MARK.encode() not in file.read(1000):
                        raise RunFailed(f"{self.index} is not a page of ours")
            for part in (CLASSES, PICTURES):
                (self._parts / part).mkdir(parents=True, exist_ok=True)
        write_as_they_are(_HERE, _AS_THEY_ARE, str(self._parts))

    def _write_index(self, records: Sequence[Mapping[str, Any]], status: str, live: bool) -> None:
        known = self._facts.read()
        test = known.get("test")
        text = self._templates.get_template("index.html").render(
            mark=MARK,
            version=__version__,
            title=self._folder.resolve().name,
            status=status,
            live=live,
            now=time.time(),
            clock=time.strftime("%Y-%m-%d %H:%M:%S"),
            refresh_seconds=REFRESH_SECONDS,
            start=known.get("start"),
            test=test,
            test_clips=known.get("test_clips"),
            failed_videos=known.get("failed_videos", 0),
            class_pages=known.get("class_pages", True),
            panels=panels_of(records),
            numbers=lambda line: json.dumps([[p.step, p.value] for p in line.points]),
            epochs=_epochs(records),
            best=_best(records),
            unreadable=_unreadable(records),
            drawings=self._drawings(),
            pairs=mistakes.pairs_of(test["confusion"]) if test else [],
            matrix=_matrix(test),
            counts=_class_counts(known),
            files=[name for name in _FILES if (self._folder / name).is_file()],
            **self._shared("", self._folder),
            most_pairs=mistakes.MOST_PAIRS,
        )
        write_text(self.index, text)

    def _write_classes(
        self, tested: Outcome, clips: Sequence[Clip], facts: Mapping[str, Any]
    ) -> set[str]:
        """Write the pages of the classes; returns their names below RUN/page."""
        pages = mistakes.class_pages(clips, tested.classes, multi_label=tested.multi_label)
        template = self._templates.get_template("class.html")
        names = [f"{CLASSES}/{page.number}.html" for page in pages]
        for place, page in enumerate(pages):
            text = template.render(
                page=page,
                test=tested,
                counts=_class_counts(facts),
                before=pages[place - 1].number if place else None,
                following=pages[place + 1].number if place + 1 < len(pages) else None,
                **self._shared("../../", self._parts / CLASSES),
            )
            write_text(self._parts / names[place], text)
        return set(names)

    def _shared(self, up: str, folder: Path) -> dict[str, Any]:
        """What both templates need. up: from the page to RUN; folder: where the page is."""
        return {
            "up": up,
            "parts": f"{up}{PARTS}/",
            "side": SIDE,
            "link": lambda path: link_to(path, str(folder)),
            "base_name": lambda path: os.path.basename(hide_secrets(path)),
        }

    def _drawings(self) -> list[Drawing]:
        """The newest pictures of the objective, the newest first."""
        found = []
        for path in (self._folder / "pictures").glob("*_[0-9]*.png"):
            name, _, step = path.stem.rpartition("_")
            if step.isdigit():
                video = path.with_suffix(".mp4")
                found.append(
                    Drawing(
                        name=name,
                        step=int(step),
                        picture=link_to(str(path), str(self._folder)),
                        video=link_to(str(video), str(self._folder)) if video.is_file() else "",
                        rows=_rows(path.with_name(f"{name}.json")),
                    )
                )
        return sorted(found, key=lambda drawing: -drawing.step)[:MOST_DRAWINGS]

    def _remove_unused(self, used: set[str]) -> None:
        """Delete pages and pictures of an earlier test."""
        for path in (
            *self._parts.glob(f"{CLASSES}/*.html"),
            *self._parts.glob(f"{PICTURES}/*.jpg"),
        ):
            name = f"{path.parent.name}/{path.name}"
            ours = path.stem.isdigit() or OUR_PICTURE.fullmatch(path.name)
            if ours and name not in used:
                with explained(path):
                    path.unlink(missing_ok=True)


def _rows(path: Path) -> tuple[str, ...]:
    """The names of the rows of pictures, from the file beside them."""
    try:
        return tuple(map(str, json.loads(path.read_text(encoding="utf-8"))["rows"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _epochs(records: Sequence[Mapping[str, Any]]) -> list[Epoch]:
    """Training and validation of each epoch, in order."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in records:
        if record.get("_type") in ("train_epoch", "val_epoch"):
            found.setdefault(str(record.get("epoch")), {})[record["_type"]] = record
    return [
        Epoch(name, kinds.get("train_epoch", {}), kinds.get("val_epoch", {}))
        for name, kinds in found.items()
    ]


def _best(records: Sequence[Mapping[str, Any]]) -> str:
    """The best validation so far, in words; empty before the first."""
    checks = [record for record in records if record.get("_type") == "val_epoch"]
    for key, name, sign in (("top1_err", "top-1", -1), ("map", "mAP", 1)):
        known = [record for record in checks if isinstance(record.get(key), int | float)]
        if known:
            best = max(known, key=lambda record: sign * record[key])
            value = 100 - best[key] if sign < 0 else best[key]
            epoch = str(best["epoch"])
            when = "the probe" if epoch.startswith("0/") else f"epoch {epoch}"
            return f"best validation, one view a video: {name} {value:.2f} % after {when}"
    return ""


def _unreadable(records: Sequence[Mapping[str, Any]]) -> str:
    """How many videos the last epochs could not read, in words; empty where there were none."""
    last = {record["_type"]: record for record in records if "_type" in record}
    trained, checked = last.get("train_epoch", {}), last.get("val_epoch", {})
    counts = {"training": trained.get("failed", 0), "validation": checked.get("n_failed", 0)}
    words = [f"{count} {name}" for name, count in counts.items() if count]
    return f"videos that could not be read in the last epoch: {', '.join(words)}" if words else ""


def _matrix(test: Mapping[str, Any] | None) -> list[list[int]] | None:
    """The confusion matrix, true classes as rows, where it is small enough to be a table."""
    if test is None or test["multi_label"] or len(test["classes"]) > mistakes.MOST_IN_MATRIX:
        return None
    size = len(test["classes"])
    matrix = [[0] * size for _ in range(size)]
    for true, predicted, count in test["confusion"]:
        matrix[true][predicted] = count
    return matrix


def _class_counts(facts: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Name of a class -> name of a list -> its videos there. Classes are compared by name."""
    start = facts.get("start") or {"classes": [], "splits": []}
    found: dict[str, dict[str, int]] = {}
    for split in start["splits"]:
        for name, count in zip(start["classes"], split["counts"], strict=False):
            found.setdefault(name, {})[split["name"]] = count
    return found
