"""Small data sets in AVA's layout for tests: movies with a drawn rectangle, pictures, lists, boxes.

folder = AvaSet(tmp_path)
folder.movie("a", seconds=4)
folder.extract("a")
folder.write("ava_train_v2.2.csv", "a,1,0.25,0.5,0.5,1,1,0")
read_key_frames(folder.path, folder.settings(), "train")
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from clips import write_clip

from hiera_video.config.detection import AvaConfig

ACTIONS = 'item { name: "stand" id: 1 }\nitem { name: "walk" id: 3 }\nitem { name: "sit" id: 4 }\n'
DARK, BRIGHT = 30, 220


class AvaSet:
    """A data set below `path`, whose movies begin at second 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("videos", "annotations"):
            (path / name).mkdir(parents=True)
        self.write("actions.pbtxt", ACTIONS)

    def settings(self, **changes: Any) -> AvaConfig:
        usual = {
            "label_map_file": "actions.pbtxt",
            "exclusion_file": "",
            "video_start": 0.0,
            "seconds": (0, 1798),
            "test_predict_box_lists": (),
        }
        return AvaConfig(**usual | changes)

    def write(self, name: str, text: str) -> Path:
        """Write one of the annotation files."""
        path = self.path / "annotations" / name
        path.write_text(text)
        return path

    def movie(self, name: str, *, seconds: float = 3, fps: float | Fraction = 30, **more) -> Path:
        """Write a movie of numbered pictures (`clips.picture`)."""
        path = self.path / "videos" / f"{name}.mp4"
        return write_clip(path, frames=round(seconds * fps), fps=fps, **more)

    def drawn_movie(
        self, name: str, box: tuple[float, ...], size: tuple[int, int], *, frames: int = 12
    ) -> Path:
        """Write a movie in which the rectangle `box` of every picture is bright."""
        path = self.path / "videos" / f"{name}.mp4"
        pictures = [drawn(box, size)] * frames
        options = {"qp": "0"}
        return write_clip(path, frames=pictures, size=size, pix_fmt="yuv444p", options=options)

    def extract(self, name: str) -> Path:
        """Write the pictures of a movie as FFmpeg's filter fps=30 gives them."""
        folder = self.path / "frames" / name
        folder.mkdir(parents=True)
        for number, frame in enumerate(
            at_30_a_second(self.path / "videos" / f"{name}.mp4"), start=1
        ):
            frame.to_image().save(folder / f"{name}_{number:06d}.jpg", quality=98)
        return folder

    def list_frames(self, name: str, *videos: str) -> Path:
        """Write a list of frames, of the pictures that are there."""
        lines = ["original_vido_id video_id frame_id path labels"]
        for number, video in enumerate(videos):
            pictures = sorted((self.path / "frames" / video).iterdir())
            lines += [
                f'{video} {number} {i} {video}/{picture.name} ""'
                for i, picture in enumerate(pictures)
            ]
        path = self.path / "frame_lists" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        return path


def at_30_a_second(path: Path) -> Iterator[av.VideoFrame]:
    """The pictures that FFmpeg's own filter makes of a movie."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        source, sink = graph.add_buffer(template=stream), graph.add("buffersink")
        rate = graph.add("fps", "30")
        source.link_to(rate)
        rate.link_to(sink)
        graph.configure()
        frames = [*container.decode(stream), None]
        for frame in frames:
            graph.push(frame)
            while True:
                try:
                    yield graph.pull()
                except (av.error.BlockingIOError, av.error.EOFError):
                    break


def drawn(box: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    """A dark picture, uint8 RGB [H, W, 3] for `size` = (W, H), in which `box` is bright."""
    width, height = size
    picture = np.full((height, width, 3), DARK, np.uint8)
    x1, y1, x2, y2 = np.round(np.array(box) * [width, height, width, height]).astype(int)
    picture[y1:y2, x1:x2] = BRIGHT
    return picture


def found(picture: Any) -> tuple[float, float, float, float] | None:
    """The bright rectangle of uint8 [3, H, W]: x1, y1, x2, y2 in pixels; None for none."""
    rows, columns = np.nonzero(np.asarray(picture).mean(axis=0) > (DARK + BRIGHT) / 2)
    if not len(rows):
        return None
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
