"""Pictures of a run: curves.png and confusion.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hiera_video.engine.records import read_metrics
from hiera_video.files import atomic_write


def draw_curves(folder: Path) -> Path | None:
    """Draw metrics.jsonl as curves.png (loss, learning rate, validation); return its path.

    None where the run has no training steps yet.
    """
    records = read_metrics(folder)
    train = [r for r in records if r["_type"] == "train_iter_"]
    if not train:
        return None
    val = [r for r in records if r["_type"] == "val_epoch"]
    panels = [("loss", train, ["loss"]), ("learning rate", train, ["lr"])]
    metrics = [n for n in ("top1_err", "top5_err", "map") if any(n in r for r in val)]
    if metrics:
        panels.append(("validation", val, metrics))
    figure, axes = _figure(len(panels))
    for axis, (title, shown, keys) in zip(axes, panels, strict=True):
        for key in keys:
            points = [(r["step"], r[key]) for r in shown if isinstance(r.get(key), int | float)]
            if points:
                axis.plot(*zip(*points, strict=True), label=key)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(keys) > 1:
            axis.legend()
    path = Path(folder) / "curves.png"
    _save(figure, path)
    return path


def draw_confusion(confusion: Tensor, classes: list[str], path: Path) -> None:
    """Draw a confusion matrix, int64 [C, C], as a PNG; colours are shares of a row's videos."""
    import numpy as np

    counts = confusion.numpy()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.3 * len(classes), 24)
    figure, (axis,) = _figure(1, size=(side, side))
    image = axis.imshow(share, vmin=0, vmax=1, cmap="viridis")
    figure.colorbar(image, ax=axis, fraction=0.046, label="share of the true class")
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if len(classes) <= 60:
        # Names are shown as they are: two $ make no formula, invalid UTF-8 is escaped.
        names = [name.encode("utf-8", "backslashreplace").decode() for name in classes]
        axis.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        axis.set_yticks(range(len(names)), names, parse_math=False)
    if len(classes) <= 15:
        for row in range(len(classes)):
            for column in range(len(classes)):
                colour = "black" if share[row, column] > 0.6 else "white"
                axis.text(column, row, counts[row, column], ha="center", va="center", color=colour)
    _save(figure, path)


def _figure(panels: int, size: tuple[float, float] | None = None) -> tuple[Any, list[Any]]:
    # Not through pyplot, which keeps global state and may want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Constrained layout takes twice the time: only where class names need the room.
    figure = Figure(figsize=size or (5 * panels, 4), layout="constrained" if size else None)
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, panels, i + 1) for i in range(panels)]


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)
