"""The page of a map: a folder that any browser opens, without a server or a network.

    OUT/index.html         the map; without JavaScript a table of its points
    OUT/pictures/*.jpg     named by their content
    OUT/base.css, style.css, map.js

Paths and labels may come from strangers: what is data for the script is data there, too, and
becomes text, never markup. The page forbids scripts and files from anywhere else.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hiera_video import __version__
from hiera_video.cli import printable
from hiera_video.errors import DecodeError
from hiera_video.files import write_text
from hiera_video.map_page.collection import Collection
from hiera_video.map_page.labels import COLOURS, MOST_GROUPS, Group, Labels, legend_of
from hiera_video.map_page.projection import UMAP_NEIGHBOURS, Projection
from hiera_video.pages.folder import OUR_PICTURE, PICTURES, PageFolder
from hiera_video.pages.links import link_to
from hiera_video.pages.moments import SIDE, jpegs_at, write_picture
from hiera_video.pages.templates import environment, write_as_they_are
from hiera_video.video.guarded_pool import GuardedPool
from hiera_video.video.guarded_video import GuardedVideo

MARK = "hiera_video map/1"
"""In index.html, so that a later page may replace it."""

MOST_PICTURES = 48
"""Of one video, evenly spread; windows between share those of their neighbours."""

MOST_IN_PLAIN_TABLE = 2000
"""Pictures that are shown where there is no JavaScript: then all of them are loaded at once."""

GRID = 10_000
"""Places along the longer side of the map."""

_HERE = Path(__file__).parent
_AS_THEY_ARE = ("style.css", "map.js")

_NOT_REACHED = "not read: interrupted"


@dataclass(frozen=True)
class MapContent:
    """What a map shows."""

    collection: Collection
    labels: Labels
    projection: Projection


@dataclass
class _Pictures:
    """The pictures of points, or why a video has none."""

    names: list[str]
    """[N], relative to the page; empty where there is none."""
    trouble: dict[int, str] = field(default_factory=dict)
    """By video."""


class _Row(NamedTuple):
    """A point in the table that is shown without JavaScript."""

    path: str
    link: str
    picture: str
    trouble: str
    label: str | None
    start: float
    end: float
    x: float
    y: float


@dataclass
class MapWriter:
    """Writes the page of a map."""

    folder: str
    process: GuardedPool
    """Reads the videos (`video.decoding_process`): one that crashes a decoder costs its picture."""
    decoder: str = "auto"
    written: bool = False
    """Whether there is a page: also when it was interrupted."""

    @property
    def index(self) -> str:
        """The path of index.html."""
        return folder_of(self.folder).index

    def __call__(
        self, content: MapContent, on_progress: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        """Write the page. One that was there is replaced.

        on_progress: called with (videos done, all videos) while their pictures are read. Where that
        is interrupted, the page is written with those that there are.

        Raises UserError where the folder holds other things, RunFailed where it cannot be written.
        """
        folder = folder_of(self.folder)
        folder.make()
        pictures = _Pictures([""] * len(content.collection.vectors))
        try:
            self._read_pictures(content.collection, pictures, on_progress)
        finally:  # also when it is interrupted
            write_as_they_are(_HERE, _AS_THEY_ARE, self.folder)
            write_text(folder.index, _rendered(content, pictures, self.folder))
            folder.remove_unused(set(pictures.names))
            self.written = True

    def _read_pictures(
        self, collection: Collection, pictures: _Pictures, on_progress: Callable[[int, int], None]
    ) -> None:
        points_of: dict[int, list[int]] = defaultdict(list)
        for point, video in enumerate(collection.video_of):
            points_of[int(video)].append(point)
        pictures.trouble = dict.fromkeys(points_of, _NOT_REACHED)
        middles = collection.spans.mean(axis=1)
        for done, (video, points) in enumerate(points_of.items()):
            on_progress(done, len(points_of))
            path = collection.paths[video]
            points.sort(key=lambda point: middles[point])
            chosen = _spread(points)
            names: list[str] = []
            try:
                times = [float(middles[points[place]]) for place in chosen]
                names.extend(self._pictures_at(path, times))
                del pictures.trouble[video]
            except DecodeError as error:
                pictures.trouble[video] = error.reason
            nearest = np.abs(np.subtract.outer(np.arange(len(points)), chosen)).argmin(axis=1)
            for point, place in zip(points, nearest, strict=True):
                pictures.names[point] = names[place] if place < len(names) else ""

    def _pictures_at(self, path: str, times: Sequence[float]) -> Iterator[str]:
        """Write the picture of each time. Raises DecodeError, also where the video is gone."""
        if not os.path.exists(path):
            raise DecodeError(path, "missing: it has moved, or was deleted")
        with GuardedVideo(path, self.process, self.decoder) as video:
            for jpeg in jpegs_at(video, times):
                yield write_picture(self.folder, jpeg)


def folder_of(path: str) -> PageFolder:
    """Return the folder of such a page."""
    return PageFolder(path, MARK, {PICTURES: OUR_PICTURE})


def _spread(points: Sequence[int]) -> list[int]:
    """The places of the points that have a picture of their own, at most MOST_PICTURES."""
    count = min(len(points), MOST_PICTURES)
    return [int((k + 0.5) * len(points) / count) for k in range(count)]


# ---- what the template is given ------------------------------------------------------------------


def _rendered(content: MapContent, pictures: _Pictures, folder: str) -> str:
    collection, projection = content.collection, content.projection
    labels = [content.labels.of[video] for video in collection.video_of]
    groups = legend_of(labels)
    links = [link_to(path, folder) if os.path.exists(path) else "" for path in collection.paths]
    settings = collection.settings
    return (
        environment(_HERE)
        .get_template("index.html")
        .render(
            data=_data(content, labels, groups, pictures, links),
            rows=list(_rows(content, labels, pictures, links)),
            pictures_shown=len(collection.vectors) <= MOST_IN_PLAIN_TABLE,
            groups=groups,
            colours=COLOURS,
            most_groups=MOST_GROUPS,
            collection=collection,
            windows=settings.every is not None,
            settings=settings,
            tokens=len(settings.shape) > 1,
            labels=content.labels,
            projection=projection,
            umap_neighbours=UMAP_NEIGHBOURS,
            mark=MARK,
            side=SIDE,
            version=__version__,
        )
    )


def _data(
    content: MapContent,
    labels: Sequence[str | None],
    groups: Sequence[Group],
    pictures: _Pictures,
    links: Sequence[str],
) -> dict[str, Any]:
    """What the script reads: lists of numbers and texts, which it shows as text."""
    collection = content.collection
    group_of = {name: k for k, group in enumerate(groups) for name in group.names}
    without = next((k for k, group in enumerate(groups) if group.mark < 0), -1)
    names = sorted({label for label in labels if label is not None}, key=str.casefold)
    number_of: dict[str | None, int] = {name: k for k, name in enumerate(names)}
    places = _places(content.projection.points)
    return {
        "windows": collection.settings.every is not None,
        "videos": [
            {
                "name": printable(path),
                "link": link,
                "trouble": printable(pictures.trouble.get(video, "")),
            }
            for video, (path, link) in enumerate(zip(collection.paths, links, strict=True))
        ],
        "labels": [printable(name) for name in names],
        "marks": [group.mark for group in groups],
        "x": places[:, 0].tolist(),
        "y": places[:, 1].tolist(),
        "video": collection.video_of.tolist(),
        "label": [number_of.get(label, -1) for label in labels],
        "group": [without if label is None else group_of[label] for label in labels],
        "span": np.round(collection.spans, 3).tolist(),
        "picture": pictures.names,
    }


def _places(points: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to GRID; both axes have one scale, y grows downwards."""
    low = points.min(axis=0)
    extent = float((points.max(axis=0) - low).max()) or 1.0
    places = np.round((points - low) / extent * GRID).astype(int)
    places[:, 1] = places[:, 1].max() - places[:, 1]
    return places


def _rows(
    content: MapContent,
    labels: Sequence[str | None],
    pictures: _Pictures,
    links: Sequence[str],
) -> Iterator[_Row]:
    collection = content.collection
    for point, video in enumerate(collection.video_of.tolist()):
        start, end = collection.spans[point].tolist()
        link = links[video]
        x, y = content.projection.points[point].tolist()
        yield _Row(
            path=collection.paths[video],
            link=f"{link}#t={start:.3f}" if link and collection.settings.every else link,
            picture=pictures.names[point],
            trouble=pictures.trouble.get(video, ""),
            label=labels[point],
            start=start,
            end=end,
            x=x,
            y=y,
        )
