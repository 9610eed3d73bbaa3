"""Bar charts of benchmark tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hiera_video.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150


def grouped_bars(
    path: str | Path,
    *,
    labels: Sequence[str],
    groups: dict[str, Sequence[float | None]],
    title: str,
    axis: str,
    form: str = ".2f",
) -> Path:
    """Draw a PNG with a cluster of bars for each label, one bar of each group in it.

    Args:
        labels: one for each cluster.
        groups: name in the legend -> a value for each label, None where there is none.
        axis: what the values are.
        form: of the number above each bar.

    Returns:
        Where the picture is.
    """
    figure, axes = _canvas(width=1.5 + 0.42 * len(labels) * max(2, len(groups)))
    width = 0.8 / len(groups)
    for i, (name, values) in enumerate(groups.items()):
        places = [place + (i - (len(groups) - 1) / 2) * width for place in range(len(labels))]
        known = [(place, v) for place, v in zip(places, values, strict=True) if v is not None]
        bars = axes.bar([p for p, _ in known], [v for _, v in known], width, label=name)
        axes.bar_label(bars, fmt=f"{{:{form}}}", fontsize=6, padding=1)
    axes.set_xticks(range(len(labels)), labels)
    return _save(figure, axes, path, title=title, axis=axis)


def stacked_bars(
    path: str | Path,
    *,
    labels: Sequence[str],
    parts: dict[str, Sequence[float]],
    title: str,
    axis: str,
) -> Path:
    """Draw a PNG with one bar for each label, stacked from its parts.

    Args:
        labels: one for each bar.
        parts: name in the legend -> its length in each bar, the bottom one first.
        axis: what the lengths are.

    Returns:
        Where the picture is.
    """
    figure, axes = _canvas(width=3 + 1.1 * len(labels))
    bottoms = [0.0] * len(labels)
    for name, values in parts.items():
        axes.bar(range(len(labels)), values, 0.6, bottom=bottoms, label=name)
        bottoms = [b + v for b, v in zip(bottoms, values, strict=True)]
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    return _save(figure, axes, path, title=title, axis=axis)


def _canvas(*, width: float) -> tuple[Figure, Axes]:
    """An empty figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Figure, axes: Axes, path: str | Path, *, title: str, axis: str) -> Path:
    """Finish the figure and write it as PNG."""
    axes.set_title(title, fontsize=9)
    axes.set_ylabel(axis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        figure.savefig(file, format="png", dpi=DPI)
    return target
