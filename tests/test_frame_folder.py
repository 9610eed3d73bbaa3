"""Folders of pictures read like videos."""

import numpy as np
import pytest
import torch
from clips import picture, read_indices, write_clip
from PIL import Image

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.views import load_test_views
from hiera_video.errors import DecodeError
from hiera_video.video.decode import VideoReader, open_video
from hiera_video.video.frame_folder import FrameFolder


@pytest.fixture
def folder(tmp_path):
    """Twelve frames, numbered without zeros before."""
    for i in range(12):
        Image.fromarray(picture(i, (96, 64))).save(tmp_path / f"img_{i + 1}.jpg", quality=95)
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "._img_1.jpg").write_text("a file that macOS leaves behind")
    return tmp_path


def test_frames_come_in_the_order_of_their_numbers(folder):
    with open_video(folder) as reader:
        assert isinstance(reader, FrameFolder)
        info = reader.info
        assert (info.num_frames, info.width, info.height, info.fps) == (12, 96, 64, 30.0)
        frames = reader.read([0, 9, 10, 11])
        assert frames.shape == (4, 3, 64, 96)
        assert frames.dtype == torch.uint8
        assert read_indices(frames) == [0, 9, 10, 11]
        assert read_indices(reader.read([11, 0, 0])) == [11, 0, 0]
        assert np.allclose(info.times[:2], [0, 1 / 30])


def test_a_file_is_read_as_a_video(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=5)
    with open_video(path, "pyav") as reader:
        assert isinstance(reader, VideoReader)


def test_test_views_come_from_folders_too(folder):
    spec = ClipSpec(num_frames=4, sampling_rate=2, crop_size=32)
    assert load_test_views(str(folder), spec, 2, 1).shape == (2, 3, 4, 32, 32)


def test_damage_is_told(folder, tmp_path):
    (folder / "img_3.jpg").write_bytes(b"not a picture")
    with FrameFolder(folder) as reader:
        reader.read([0, 1])
        with pytest.raises(DecodeError, match=r"img_3.jpg cannot be read"):
            reader.read([0, 2])
    Image.new("RGB", (10, 10)).save(folder / "img_3.jpg")
    with FrameFolder(folder) as reader, pytest.raises(DecodeError, match=r"10x10.*first is 96x64"):
        reader.read([2])
    (folder / "img_1.jpg").write_bytes((folder / "img_2.jpg").read_bytes()[:500])
    with pytest.raises(DecodeError, match=r"img_1.jpg cannot be read"):
        FrameFolder(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DecodeError, match="a folder without pictures"):
        open_video(tmp_path / "empty")
