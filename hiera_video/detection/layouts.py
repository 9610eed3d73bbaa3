"""Where the movies of an AVA data set are: folders of pictures with lists, or video files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

from hiera_video.config.detection import AvaConfig
from hiera_video.data.manifests.listing import scan_folder
from hiera_video.detection.frame_lists import ListedVideo, read_frame_lists
from hiera_video.detection.movie_frames import NumberedNames
from hiera_video.errors import DataError
from hiera_video.video.find import is_video


class Layout(ABC):
    """The movies by their names.

    Attributes:
        root: the folder of them all.
        note: one line that says what is read.
    """

    root: str
    note: str

    @abstractmethod
    def exists(self, video: str) -> bool:
        """Whether a movie seems to be there."""

    @abstractmethod
    def path(self, video: str) -> str:
        """Where it is, or should be, below `root`."""

    @abstractmethod
    def pictures(self, video: str) -> NumberedNames | None:
        """The names of its pictures; None of a video file, and of a movie that is missing."""


def find_layout(root: Path, ava: AvaConfig, *, training: bool) -> Layout:
    """The layout below `root`: pictures where there are lists of them, else video files.

    Raises DataError where neither is there, or a list is wrong.
    """
    frames, videos = os.path.join(root, ava.frame_dir), os.path.join(root, ava.video_dir)
    names = ava.train_lists if training else ava.test_lists
    lists = [os.path.join(root, ava.frame_list_dir, name) for name in names]
    has_lists = bool(lists) and all(map(os.path.isfile, lists))
    if has_lists and os.path.isdir(frames):
        return PictureFolders(frames, lists)
    if os.path.isdir(videos):
        return VideoFiles(videos)
    absent = frames if has_lists else ", ".join(lists) or "AVA.TRAIN_LISTS, AVA.TEST_LISTS"
    raise DataError(
        f"no pictures and no videos: neither {absent} (pictures with lists of them, AVA.FRAME_DIR "
        f"and AVA.FRAME_LIST_DIR) nor {videos} (the video files, AVA.VIDEO_DIR) is there"
    )


class PictureFolders(Layout):
    """SlowFast's layout: a folder of numbered pictures for each movie, and lists of them."""

    def __init__(self, root: str, lists: list[str]) -> None:
        self.root = root
        self._videos: dict[str, ListedVideo] = read_frame_lists(lists)
        count = sum(len(video.names) for video in self._videos.values())
        named = ", ".join(lists)
        self.note = f"reads the pictures in {root}: {count} of {len(self._videos)} videos ({named})"

    def exists(self, video: str) -> bool:
        """Whether it is listed, and its first and last pictures are there."""
        listed = self._videos.get(video)
        if listed is None:
            return False
        ends = {listed.names[0], listed.names[-1]}
        return all(os.path.isfile(os.path.join(self.root, listed.folder, name)) for name in ends)

    def path(self, video: str) -> str:
        listed = self._videos.get(video)
        return video if listed is None else listed.folder

    def pictures(self, video: str) -> NumberedNames | None:
        listed = self._videos.get(video)
        return None if listed is None else listed.names


class VideoFiles(Layout):
    """A folder of video files that are called as the movies."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._files: dict[str, str] = {}
        for entry in scan_folder(Path(root)):
            stem = os.path.splitext(entry.name)[0]
            if not is_video(entry.name) or entry.name.startswith("."):
                continue
            if stem in self._files:
                raise DataError(
                    f"{root}: {self._files[stem]} and {entry.name} are both the video {stem!r}; "
                    "keep one of them there"
                )
            self._files[stem] = entry.name
        self.note = f"reads the {len(self._files)} video files in {root}, as there are no pictures"

    def exists(self, video: str) -> bool:
        return video in self._files

    def path(self, video: str) -> str:
        return self._files.get(video, video)

    def pictures(self, video: str) -> NumberedNames | None:
        return None
