"""`Source`: what a reader of a data set is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hiera_video.errors import DataError


@dataclass(frozen=True)
class Source:
    """A data set to read. Each reader uses the settings that apply to its layout."""

    path: Path
    """The folder or the list that the user named."""
    split: str = "train"
    """train, val or test."""
    path_prefix: str = ""
    """Folder of the videos, where it is not the list's own."""
    separator: str | None = None
    """Between path and label in a list; None takes the one that fits most lines."""
    classes: tuple[str, ...] | None = None
    """Names in label order that the labels must fit (of the training list, of a checkpoint)."""
    id_names: tuple[str, ...] | None = None
    """The names of the list's own ids (DATA.CLASS_NAMES, a file beside the list); also the order of
    the classes where `classes` is None."""
    id_names_from: str = ""
    """Where those names are from, in words."""
    id_names_begin: int = 0
    """The number that the file gives to the first of them: 0, or 1."""
    num_classes: int | None = None
    """Labels must be below it; None takes the number of classes in the list."""
    multi_label: bool = False
    """A video may have several labels."""
    need_labels: bool = True
    """False: a list without labels is accepted (pretraining, the audit)."""
    ignore_labels: bool = False
    """Labels are not used (pretraining): an unknown class counts as no label, and is no error."""
    fold: int | None = None
    """Which official split (UCF101, HMDB51: 1 to 3) or which fold of labels.csv to hold out."""
    val_fraction: float = 0.2
    """Share of the videos held out where the data has no split of its own."""
    group_by: str = ""
    """Column of labels.csv, or a regular expression whose first group names a video's source."""
    seed: int = 0
    """Of the held-out share."""
    hold_out: bool | None = None
    """For data without splits (a plain folder of classes, a labels.csv without split or fold, a
    single list): True gives train and val their shares, False gives all of it to every split; None
    is True for a folder and False for a list."""
    on_bad_line: Callable[[int, DataError], None] | None = None
    """Called with the number of each line that cannot be read and its error; the line is then left
    out. None: the first such error is raised."""

    def reject(self, line: int, error: DataError) -> None:
        """Call `on_bad_line` for a line that cannot be read, or raise the error."""
        if self.on_bad_line is None:
            raise error
        self.on_bad_line(line, error)

    @property
    def wanted_classes(self) -> tuple[str, ...] | None:
        """Names in label order, where they are known before the list is read."""
        return self.classes or self.id_names
