"""Writes a labelled copy of a video, part by part, in a process of its own.

    write_labelled_video("clip.mp4", "out.mp4", captions)
    write_small_copy("clip.avi", "out.mp4", longest=640)      # nothing drawn
    write_drawn_video("clip.mp4", "out.mp4", drawing)         # whatever `drawing.put` draws

The copy has the frames, the times and the sound of the video, upright. A file that crashes or hangs
a decoder ends the child process and raises DecodeError; the target then stays as it was.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from hiera_video.errors import DecodeError, UserError
from hiera_video.explanation.heat import Heat
from hiera_video.files import put_in_place, unfinished_name
from hiera_video.labelled_video.captions import Caption, Panel, Pixels, caption_at
from hiera_video.labelled_video.encoder import Encoder, Sound, check_target, even
from hiera_video.video.container import open_container
from hiera_video.video.decode import VideoReader, open_video
from hiera_video.video.frame_folder import FrameFolder
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure
from hiera_video.video.limits import TIME_LIMIT, Deadline
from hiera_video.video.pictures import at_most, resized

PART_BYTES = 32 << 20
"""Pixels that one request handles."""

NARROWEST, LARGEST = 320, 1920
"""Smaller pictures are enlarged, by a whole number, so that the text can be read: up to at least
this width, as long as no side exceeds the other number."""

WRITER = "hiera_video.labelled_video.write.serve"


def write_labelled_video(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    captions: Sequence[Caption],
    *,
    heat: Heat | None = None,
    decoder: str = "auto",
    on_progress: Callable[[float], None] | None = None,
) -> str:
    """Write a copy of a video with captions drawn on it; returns the name of the encoder.

    Args:
        path: a video file, or a folder of pictures.
        target: the file to write, .mp4, .mov or .mkv; it appears at the end, whole, and replaces
            one of that name.
        captions: in the order of their times, at least one; each is shown until the next begins.
        heat: colours over the frames of one clip.
        on_progress: called with the fraction of the work that is done, 0 to 1.

    Raises:
        DecodeError: the video cannot be decoded.
        RunFailed: the target cannot be written.
        UserError: the target is the video itself, or no name of a video file.
    """
    if not captions:
        raise ValueError("captions: at least one")
    source, place = os.fspath(path), os.fspath(target)
    drawings = () if heat is None else (heat,)
    return _write((source, decoder), place, _Look(tuple(captions), drawings), on_progress)


class Drawing(Protocol):
    """Draws on the frames of one video. It travels to another process, pickled."""

    def put(self, picture: Pixels, time: float) -> None:
        """Draw on a frame [H, W, 3], in place; time: in seconds from the first frame."""


def write_drawn_video(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    drawing: Drawing,
    *,
    decoder: str = "auto",
    on_progress: Callable[[float], None] | None = None,
) -> str:
    """Write a copy of a video with a drawing on each frame; else as `write_labelled_video`."""
    look = _Look(drawings=(drawing,))
    return _write((os.fspath(path), decoder), os.fspath(target), look, on_progress)


def write_small_copy(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    longest: int,
    decoder: str = "auto",
) -> str:
    """Write a copy without captions, no side longer than `longest`; else as the other function."""
    return _write((os.fspath(path), decoder), os.fspath(target), _Look(longest=longest), None)


class _Look(NamedTuple):
    """What a copy looks like; as it is, the video itself."""

    captions: tuple[Caption, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    longest: int | None = None
    """Bounds the sides."""


def _write(
    file: tuple[str, str],
    place: str,
    look: _Look,
    on_progress: Callable[[float], None] | None,
) -> str:
    source = file[0]
    check_target(place)
    require_another_file(source, place)
    unfinished = unfinished_name(place)
    kind = os.path.splitext(place)[1].lower()
    try:
        # A request is bounded in work; what is slow here is the machine, not the file.
        with GuardedPool(WRITER, time_limit=10 * TIME_LIMIT) as process:
            request = ("begin", file, (unfinished, kind), look)
            count, codec = _ask(process, source, request)
            done = 0
            while done < count:
                done = _ask(process, source, ("go on",))
                if on_progress is not None:
                    on_progress(done / count)
            _ask(process, source, ("end",))
        put_in_place(unfinished, os.path.realpath(place))
    finally:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
    return codec


def require_another_file(source: str, target: str) -> None:
    """Raise UserError where writing the target would replace the video."""
    if os.path.exists(target) and os.path.exists(source) and os.path.samefile(source, target):
        raise UserError(f"{target} is the video that is labelled; name another file")


def check_copy(target: str, videos: Sequence[str]) -> None:
    """Raise UserError, before any work, unless --video can write its copy.

    target: what it names; videos: the files that are labelled.
    """
    try:
        check_target(target)
        if len(videos) != 1:
            raise UserError(
                f"{target} is one file, and {len(videos)} videos are labelled; name one"
            )
        require_another_file(videos[0], target)
    except UserError as error:
        raise UserError(f"--video: {error}") from None


def _ask(process: GuardedPool, path: str, request: tuple[Any, ...]) -> Any:
    try:
        return process.call(request)
    except WorkerFailure as failure:
        text = f"copying it in a process of its own: {failure.reason}"
        raise DecodeError(path, text) from None


# ---- in the other process -----------------------------------------------------------------------

_work: _Work | None = None


def serve(request: tuple[Any, ...]) -> Any:
    """Answer one request: begin (frames, encoder), go on (frames that are done), end."""
    global _work
    what, *arguments = request
    if what == "begin":
        _work = _Work(*arguments)
        return _work.count, _work.encoder.codec
    assert _work is not None, "the process was replaced"
    if what == "go on":
        return _work.go_on()
    _work.end()
    return None


class _Work:
    """One video on its way."""

    def __init__(self, file: tuple[str, str], target: tuple[str, str], look: _Look) -> None:
        self._reader, self._look = open_video(*file), look
        info = self._reader.info
        self.count, self._times = info.num_frames, info.times
        self._last = 1 / info.fps
        self._factor = enlargement(info.width, info.height) if look.captions or look.drawings else 1
        size = (info.width * self._factor, info.height * self._factor)
        self._size = max(1, PART_BYTES // (3 * size[0] * size[1]))
        self._smaller = None if look.longest is None else at_most(size, look.longest)
        size = self._smaller or size
        self._panel = Panel(*size) if look.captions else None
        self._parts = self._pixels()
        self._done = 0
        self.encoder = Encoder(
            target,
            (size[0] + size[0] % 2, size[1] + size[1] % 2),
            info.fps,
            _sound(self._reader),
        )

    def go_on(self) -> int:
        for picture in next(self._parts):
            time = float(self._times[self._done])
            self.encoder.add(self._drawn(picture, time), time, self._shown_for(self._done))
            self._done += 1
        return self._done

    def end(self) -> None:
        self.encoder.close()
        self._reader.close()

    def _drawn(self, picture: Pixels, time: float) -> Pixels:
        if self._factor > 1:
            picture = picture.repeat(self._factor, axis=0).repeat(self._factor, axis=1)
        if self._smaller is not None:
            picture = resized(picture, self._smaller)
        picture = np.require(picture, requirements=["C", "W"])
        for drawing in self._look.drawings:
            drawing.put(picture, time)
        if self._panel is not None:
            self._panel.put(picture, caption_at(self._look.captions, time))
        return even(picture)

    def _shown_for(self, frame: int) -> float:
        """Seconds; of the last frame, those of an average one."""
        following = self._times[frame + 1] if frame + 1 < self.count else None
        return self._last if following is None else float(following - self._times[frame])

    def _pixels(self) -> Iterator[Pixels]:
        frames = np.arange(self.count)
        if isinstance(self._reader, FrameFolder):
            for first in range(0, self.count, self._size):
                yield self._reader.pixels(frames[first : first + self._size])
        else:
            for _, pixels in self._reader.pixel_parts(frames, self._size):
                yield pixels


def enlargement(width: int, height: int) -> int:
    """Return by how much a picture is enlarged, so that text can be read on it."""
    return max(1, min(-(-NARROWEST // width), LARGEST // max(width, height)))


def _sound(reader: VideoReader | FrameFolder) -> Sound | None:
    """The sound of a video, read through a container of its own."""
    if isinstance(reader, FrameFolder):
        return None
    index = reader.info.index
    assert index is not None
    container = open_container(reader.info.path, Deadline(reader.info.path, TIME_LIMIT))
    if not container.streams.audio:
        container.close()
        return None
    return Sound(container, float(index.frame_pts()[0] * index.time_base))
