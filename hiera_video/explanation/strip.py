"""The picture of an explanation: frames of the clip above, what speaks for the label below."""

from __future__ import annotations

import io

import numpy as np

from hiera_video.explanation.explain import Explanation
from hiera_video.explanation.heat import put_heat, step_of, strengths
from hiera_video.explanation.places import MARK
from hiera_video.files import AnyPath, atomic_write, explained

MOST_COLUMNS = 8
"""Frames that are shown; of longer clips, as many, spread over them."""


def write_strip(explanation: Explanation, path: AnyPath) -> None:
    """Write a JPEG of an explanation. Raises RunFailed, which names it, if it cannot be written."""
    with explained(path), atomic_write(path) as file:
        file.write(strip_jpeg(explanation))


def strip_jpeg(explanation: Explanation) -> bytes:
    """Return the content of a JPEG of an explanation."""
    # Not through pyplot, which keeps global state and may want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heat = strengths(explanation.relevance.cells)
    frames = len(explanation.pixels)
    columns = min(frames, MOST_COLUMNS)
    figure = Figure(figsize=(max(1.6 * columns, 6.4), 4.2))
    FigureCanvasAgg(figure)
    rows = figure.subplots(2, columns, squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.76, wspace=0.04, hspace=0.04)
    for column, frame in enumerate(np.linspace(0, frames - 1, columns).round().astype(int)):
        picture = explanation.pixels[frame]
        coloured = picture.copy()
        put_heat(coloured, heat[step_of(frame, frames, len(heat))])
        for axis, shown in zip(rows[:, column], (picture, coloured), strict=True):
            axis.imshow(shown, interpolation="nearest")
            axis.set_axis_off()
        rows[0, column].set_title(f"{explanation.times[frame]:.2f} s", fontsize=9)
    where, shares = explanation.lines
    figure.text(0.01, 0.92, _cut(explanation.label, 60), fontsize=14, parse_math=False)
    figure.text(0.01, 0.825, f"{where}\n{shares}", fontsize=9, parse_math=False)
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", dpi=100, pil_kwargs={"comment": MARK})
    return file.getvalue()


def _cut(text: str, most: int) -> str:
    """One line of at most so many characters; bytes that are no text are escaped."""
    text = text.encode("utf-8", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= most else text[: most - 3] + "..."
