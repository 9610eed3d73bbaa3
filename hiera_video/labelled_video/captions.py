"""What is said about a video at which time, and the panel that shows it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import ImageFont

Pixels = NDArray[np.uint8]

MOST_LABELS = 3
"""Labels that a panel shows, the first ones."""

TEXT, MUTED, BAR = (255, 255, 255), (200, 200, 200), (64, 156, 255)


@dataclass(frozen=True)
class Caption:
    """The labels of one stretch of time; times in seconds from the first frame."""

    start: float
    end: float | None
    """None: of the whole video; no times are shown."""
    labels: tuple[tuple[str, float], ...]
    """(name, score from 0 to 1), highest first."""


def caption_at(captions: Sequence[Caption], time: float) -> Caption:
    """Return the caption of a time: the last that has begun, or the first of all."""
    begun = [caption for caption in captions if caption.start <= time]
    return begun[-1] if begun else captions[0]


class Panel:
    """Draws captions over the lower edge of pictures [H, W, 3].

    Text that is wider than the picture is cut, with an ellipsis. Symbols that the font (DejaVu
    Sans, which comes with matplotlib) does not have are shown as boxes.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self._size = max(8, min(round(min(width, height * 1.5) / 34), 64))
        """Pixels of a line of text."""
        lines = max(1, min(MOST_LABELS + 1, (height - 2) // (self._line * 2)))
        self._labels = lines - 1 or 1
        self._with_time = lines > 1
        self.height = min(height, lines * self._line + self._size // 2)
        self._drawn = functools.lru_cache(maxsize=2)(self._draw)

    @property
    def _line(self) -> int:
        return round(1.4 * self._size)

    def put(self, picture: Pixels, caption: Caption) -> None:
        """Draw on a picture, in place: the panel covers it, and a quarter of it shines through."""
        lower = picture[-self.height :]
        lower >>= 2
        lower += self._drawn(caption)

    def _draw(self, caption: Caption) -> Pixels:
        """uint8 [h, W, 3], three quarters of full brightness at most: what is added."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (self.width, self.height))
        draw = ImageDraw.Draw(image)
        letters, pad = font(self._size), self._size // 2
        top = pad // 2
        if self._with_time:
            draw.text(
                (pad, top), self._fitting(_span(caption), self.width - 2 * pad), MUTED, letters
            )
            top += self._line
        score_width = int(letters.getlength("100.0%"))
        bar_width = max(0, min(self.width // 5, self.width - score_width - 6 * self._size))
        for name, score in caption.labels[: self._labels]:
            middle = top + self._line // 2
            half = max(1, self._size // 4)
            box = (pad, middle - half, pad + round(bar_width * min(max(score, 0.0), 1.0)), middle)
            draw.rectangle((*box[:3], middle + half), fill=BAR)
            left = pad + bar_width + (pad if bar_width else 0)
            draw.text((left, top), f"{score:.1%}", TEXT, letters)
            left += score_width + pad
            draw.text((left, top), self._fitting(name, self.width - left - pad), TEXT, letters)
            top += self._line
        drawn: Pixels = np.asarray(image) // 4 * 3
        return drawn

    def _fitting(self, text: str, width: float) -> str:
        return fitting(text, font(self._size), width)


def fitting(text: str, letters: ImageFont.FreeTypeFont, width: float) -> str:
    """As much of a text, on one line, as fits into a width."""
    text = "".join(c if c.isprintable() else " " for c in text)
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..." if text else ""


@functools.lru_cache(maxsize=4)
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font of all that is written on videos."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _span(caption: Caption) -> str:
    if caption.end is None:
        return "whole video"
    return f"{_clock(caption.start)} - {_clock(caption.end)}"


def _clock(seconds: float) -> str:
    minutes, tenths = divmod(round(seconds * 10), 600)
    return f"{minutes}:{tenths / 10:04.1f}"
