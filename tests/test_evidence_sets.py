"""tools/evidence.py: which file a video's name means, for features, runs and groups alike."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from evidence_clips import CLASSES, write_labels, write_set, write_video
from evidence_rows import action_sets
from evidence_rows.action_sets import read_set, split_folder
from evidence_rows.feature_files import FeatureStore
from evidence_rows.finetuning import write_lists
from evidence_rows.progress import Progress
from evidence_rows.readouts import Readout
from evidence_rows.results import Job
from evidence_rows.rows import FeatureRow

from hiera_video.data.manifests.layouts import read_manifest, video_groups
from hiera_video.errors import DataError


@pytest.fixture(scope="module", params=["listed", "folders"])
def toys(request, tmp_path_factory):
    """A set whose train and val have files of the same names, with a labels.csv or without."""
    folder = tmp_path_factory.mktemp(request.param)
    listed = request.param == "listed"
    write_set(folder, train=4, val=2, listed=listed)
    return split_folder("toys", folder, group_by="scene" if listed else "")


def test_each_video_has_a_name_of_its_own(toys):
    found = {path.relative_to(toys.folder).as_posix() for path in toys.folder.rglob("*.mp4")}
    assert len(found) == 18
    assert {video.name for video in toys.videos} == found
    for video in toys.videos:
        assert Path(video.path) == toys.folder / video.name
        assert video.size == Path(video.path).stat().st_size
    train, val = toys.names_of(toys.parts[0].train), toys.names_of(toys.parts[0].test)
    assert {name.split("/")[0] for name in train} == {"train"}
    assert {name.split("/")[0] for name in val} == {"val"}
    assert (len(train), len(val)) == (12, 6)


@pytest.mark.parametrize("part", [0, 1])
def test_runs_read_the_files_of_the_part(toys, part, tmp_path):
    """The lists, read as a run reads them, with DATA.PATH_PREFIX the folder of the set."""
    wanted = toys.parts[part]
    write_lists(tmp_path, toys, wanted)
    for split, manifest in (("train", wanted.train), ("val", wanted.test)):
        read = read_manifest(tmp_path, split, path_prefix=str(toys.folder))
        assert [Path(p) for p in read.paths] == [Path(p) for p in manifest.paths]
        assert all(Path(p).is_file() for p in read.paths)
        assert read.labels.tolist() == manifest.labels.tolist()
        assert read.classes == tuple(CLASSES)
        assert video_groups(read, "") == toys.groups_of(manifest)


def test_groups_are_scenes_or_single_videos(toys):
    groups = toys.groups_of(toys.parts[0].train)
    scenes = (toys.folder / "labels.csv").exists()
    assert sorted(set(groups)) == (
        ["scene 0", "scene 1"] if scenes else toys.names_of(toys.parts[0].train)
    )
    assert toys.groups_of(toys.parts[0].test) == toys.names_of(toys.parts[0].test)


def test_lists_hold_awkward_names(tmp_path):
    folder = tmp_path / "set"
    for i, split in enumerate(("train", "val")):
        for label, action in (('sit, "down" 3', "down"), ("left or  right", "left")):
            write_video(folder / split / label / f'a "b", {i} c.mp4', action, i)
    toys = split_folder("toys", folder, group_by="")
    write_lists(tmp_path / "lists", toys, toys.parts[0])
    read = read_manifest(tmp_path / "lists", "val", path_prefix=str(folder))
    assert list(read.paths) == list(toys.parts[0].test.paths)
    assert all(Path(p).is_file() for p in read.paths)
    assert read.classes == toys.classes


@dataclass(frozen=True)
class Checksums:
    """Describes a video by the checksum of its file."""

    name: str = "checksums"
    controls: tuple[str, ...] = ("plain",)

    @property
    def settings(self):
        return {}

    def describe(self, video):
        return {("plain", "sum"): np.array([[checksum(video.path)]], np.float32)}


def checksum(path):
    return zlib.crc32(Path(path).read_bytes()) % 1000


def test_features_are_of_the_files_of_the_part(toys, tmp_path):
    """What a classifier learns from and is asked about, against the files themselves."""
    learnt, asked = [], []

    def fit(features, labels, settings):
        learnt.append(features)
        return lambda queries: asked.append(queries) or np.eye(3)[np.zeros(len(queries), int)]

    readout = Readout("spy", fit, ({},))
    row = FeatureRow(readout, lambda seed: Checksums(), FeatureStore(tmp_path, Progress()))
    part = toys.parts[0]
    row.run(Job("spy", toys, part, 0, {}))
    train, test = ([checksum(path) for path in m.paths] for m in (part.train, part.test))
    assert len(set(train + test)) == 18, "all files differ"
    mean, scale = np.mean(train), np.std(train)
    assert learnt[-1][:, 0] == pytest.approx((np.array(train) - mean) / scale, abs=1e-3)
    assert asked[-1][:, 0] == pytest.approx((np.array(test) - mean) / scale, abs=1e-3)


def test_two_paths_with_one_name_are_refused(tmp_path):
    rows = []
    for label in CLASSES:
        for i, split in enumerate(("train", "val")):
            path = f"{label}/{i}.mp4"
            write_video(tmp_path / path, label, i)
            rows.append([path, label, split, ""])
    write_labels(tmp_path, rows)
    assert len(split_folder("toys", tmp_path, group_by="scene").videos) == 6
    write_labels(tmp_path, [*rows, ["./down/0.mp4", "down", "val", ""]])
    with pytest.raises(DataError, match=r"toys: .*down/0.mp4 have one name, down/0.mp4: list each"):
        split_folder("toys", tmp_path, group_by="scene")


def test_a_part_that_tests_what_it_trains_on_is_refused(toys):
    part = toys.parts[0]
    with pytest.raises(DataError, match="12 videos are trained on and tested, such as train/d"):
        replace(toys, parts=(replace(part, test=part.train),))


def test_the_generated_set_is_read_whole(tmp_path, monkeypatch):
    from hiera_video.data.synthetic.body_motion import actions

    write_set(tmp_path, train=2, val=1, listed=False)
    monkeypatch.setattr(action_sets, "GENERATED_FOLDER", str(tmp_path))
    monkeypatch.setattr(actions, "make_actions", Path)
    found = read_set("generated", tmp_path)
    assert len(found.videos) == 9
    (part,) = found.parts
    assert (part.name, len(part.train), len(part.test)) == ("train -> val", 6, 3)


@pytest.mark.parametrize(("name", "videos", "first"), [
    ("dark_actions", 200, "train/Jump/Jump_11_1.mp4"), ("scfd", 300, "fight/fi001.mp4"),
])  # fmt: skip
def test_real_sets_keep_the_names_of_their_lists(shared_data, name, videos, first):
    found = read_set(name, shared_data)
    assert len(found.videos) == videos
    assert found.videos[0].name == first
    assert set(found.groups) <= {video.name for video in found.videos}
