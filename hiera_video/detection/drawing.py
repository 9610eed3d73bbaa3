"""Boxes of people, and what they do, drawn on the frames of a video.

Between two key frames a box moves evenly; before the first and after the last of a track it stands
for half the time between key frames.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hiera_video.labelled_video.captions import Pixels, fitting, font

if TYPE_CHECKING:
    from hiera_video.detection.rows import PersonRow

COLOURS = (
    *((255, 196, 0), (64, 156, 255), (255, 99, 132), (60, 200, 120), (200, 120, 255)),
    *((255, 140, 60), (0, 200, 210), (220, 220, 90), (160, 180, 255), (255, 150, 200)),
)
"""Of people, by their number."""

MOST_LABELS = 3
"""Of one person, on the picture."""

LIKELY = 0.1
"""Least score of the second label and the third."""


@dataclass(frozen=True)
class DrawnTrack:
    """One person over time."""

    person: int
    times: NDArray[np.float64]
    """[K], ascending: of the key frames at which the person was seen."""
    corners: NDArray[np.float64]
    """[K, 4], shares of the picture."""
    lines: tuple[tuple[str, ...], ...]
    """K times: what is written beside the box."""

    def at(self, time: float, step: float) -> tuple[NDArray[np.float64], tuple[str, ...]] | None:
        """The box at a time and what is written beside it; None where the person is not seen.

        step: seconds between key frames.
        """
        place = int(np.searchsorted(self.times, time, side="right")) - 1
        before, after = max(place, 0), min(place + 1, len(self.times) - 1)
        nearest = min((before, after), key=lambda row: abs(self.times[row] - time))
        between = before != after and self.times[before] <= time
        # one missed key frame is bridged, as in the track
        if not between or self.times[after] - self.times[before] > 2.5 * step:
            if abs(self.times[nearest] - time) > step / 2 + 1e-6:
                return None
            return self.corners[nearest], self.lines[nearest]
        part = (time - self.times[before]) / (self.times[after] - self.times[before])
        box = (1 - part) * self.corners[before] + part * self.corners[after]
        return box, self.lines[nearest]


@dataclass(frozen=True)
class PeopleDrawing:
    """Draws people on the frames of one video, see `labelled_video.write.Drawing`."""

    tracks: tuple[DrawnTrack, ...]
    step: float
    """Seconds between key frames."""

    def put(self, picture: Pixels, time: float) -> None:
        """Draw who is there at a time, in place; the smallest box last, over the others."""
        shown = [(track, found) for track in self.tracks if (found := track.at(time, self.step))]
        shown.sort(key=lambda entry: -_area(entry[1][0]))
        for track, (box, _) in shown:
            _put_box(picture, box, COLOURS[(track.person - 1) % len(COLOURS)])
        for track, (box, lines) in shown:
            colour = COLOURS[(track.person - 1) % len(COLOURS)]
            _put_lines(picture, box, lines, colour)


def drawing_of(rows: Sequence[PersonRow], every: float) -> PeopleDrawing:
    """Make the drawing of the rows of one video. every: seconds between key frames, usually."""
    times = np.unique([row.time for row in rows])
    step = float(np.diff(times).min(initial=every))
    of_person: dict[int, list[PersonRow]] = {}
    for row in rows:
        of_person.setdefault(row.person, []).append(row)
    tracks = []
    for person, seen in of_person.items():
        seen.sort(key=lambda row: row.time)
        tracks.append(
            DrawnTrack(
                person,
                np.array([row.time for row in seen]),
                np.array([row.corners for row in seen]),
                tuple(lines_of(row) for row in seen),
            )
        )
    return PeopleDrawing(tuple(tracks), step)


def lines_of(row: PersonRow) -> tuple[str, ...]:
    """What is written beside a person's box."""
    likely = [(label, score) for label, score in row.labels if score >= LIKELY] or row.labels[:1]
    labels = [f"{label} {score:.0%}" for label, score in likely[:MOST_LABELS]]
    return (f"person {row.person}", *labels)


# ---- pixels -------------------------------------------------------------------------------------


def _area(box: NDArray[np.float64]) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _pixels(picture: Pixels, box: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom pixel of a box, inside the picture."""
    height, width = picture.shape[:2]
    left, top, right, bottom = np.round(box * (width, height, width, height)).astype(int).tolist()
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, min(max(right, left + 1), width), min(max(bottom, top + 1), height)


def _put_box(picture: Pixels, box: NDArray[np.float64], colour: Sequence[int]) -> None:
    left, top, right, bottom = _pixels(picture, box)
    line = max(1, min(picture.shape[:2]) // 180)
    part = picture[top:bottom, left:right]
    for edge in (part[:line], part[-line:], part[:, :line], part[:, -line:]):
        edge[:] = colour


def _put_lines(
    picture: Pixels, box: NDArray[np.float64], lines: Sequence[str], colour: tuple[int, int, int]
) -> None:
    """Write on a dark ground: above the box where there is room, else in its upper corner."""
    height, width = picture.shape[:2]
    left, top, _, _ = _pixels(picture, box)
    size = max(8, min(round(min(width, height * 1.5) / 40), 48))
    drawn = _block(tuple(lines), colour, size, width)
    rows, columns = min(drawn.shape[0], height), min(drawn.shape[1], width)
    if top >= rows:
        top -= rows
    top, left = max(0, min(top, height - rows)), max(0, min(left, width - columns))
    ground = picture[top : top + rows, left : left + columns]
    ground >>= 2
    ground += drawn[:rows, :columns]


@functools.lru_cache(maxsize=256)
def _block(lines: tuple[str, ...], colour: tuple[int, int, int], size: int, width: int) -> Pixels:
    """Lines of text, uint8 [h, w, 3], three quarters of full brightness at most: what is added."""
    from PIL import Image, ImageDraw

    letters, pad, step = font(size), size // 3, round(1.25 * size)
    texts = [fitting(line, letters, width - 2 * pad) for line in lines]
    wide = max(int(letters.getlength(text)) for text in texts) + 2 * pad
    image = Image.new("RGB", (max(1, min(wide, width)), step * len(texts) + pad))
    draw = ImageDraw.Draw(image)
    for number, text in enumerate(texts):
        draw.text(
            (pad, pad // 2 + number * step), text, (255, 255, 255) if number else colour, letters
        )
    block: Pixels = np.asarray(image) // 4 * 3
    return block
