"""A data set of the user's own: one module outside of the package, named by `--import`."""

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from tiny_runs import CLASSES, empty, environment, final, settings, write_videos

from hiera_video.preparation import manifest_files, prepare
from hiera_video.registry import DATASET_REGISTRY, import_user_module

MODULE = '''
from hiera_video.data.manifests.builder import ManifestBuilder
from hiera_video.data.manifests.detection import recognized_by
from hiera_video.data.manifests.splits import choose_split
from hiera_video.data.manifests.tables import text_lines
from hiera_video.registry import DATASET_REGISTRY


@DATASET_REGISTRY.register(name="toy_index")
@recognized_by(lambda path: (path / "index.toy").is_file())
def read_toy_index(source):
    """One line `split | class | path` per video."""
    file = source.path / "index.toy"
    lines = [(number, line.split(" | ")) for number, line in text_lines(file)]
    builder = ManifestBuilder(source, file, sorted({label for _, (_, label, _) in lines}))
    splits = {split: split for _, (split, _, _) in lines}
    wanted, notes = choose_split(source.split, splits, kind="split", place=file)
    for number, (split, label, path) in lines:
        if split == wanted:
            builder.add(number, path, builder.label_of(number, label))
    return builder.build(
        "toy_index", str(source.path), notes=notes, classes_from=f"names in {file}"
    )
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the module, and the data set in `videos`."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "toy_index.py").write_text(MODULE)
    videos = write_videos(folder / "videos")
    lines = []
    for path in sorted(videos.rglob("*.mp4")):
        split, label, name = path.relative_to(videos).parts
        flat = videos / f"{split}_{label}_{name}"  # no folder of this set has a meaning
        path.rename(flat)
        lines.append(f"{split} | {label} | {flat.name}\n")
    (videos / "index.toy").write_text("".join(lines))
    return folder


def tool(place, name, *words):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / name), *map(str, words)],
        cwd=place,
        env={**environment(), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["toy_index", "video"])
def test_it_is_trained_on_by_name_and_as_what_it_looks_like(place, tmp_path, name):
    words = settings(place / "videos", tmp_path / "out", "TRAIN.DATASET", name)
    words += ["TEST.DATASET", name, "SOLVER.MAX_EPOCH", "1"]
    said = tool(place, "run_net.py", "--import", "toy_index", "--cfg", empty(tmp_path), *words)
    assert final(tmp_path / "out")["classes"] == list(CLASSES)
    assert "on 3 videos of" in said  # it is tested as well


def test_the_audit_recognises_it(place):
    said = tool(place, "audit_data.py", "videos", "--import", "toy_index", "--memory", "none")
    assert "3 classes: fast, slow, still; names in videos/index.toy" in said
    assert "no known layout" not in said


def test_it_is_prepared(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(DATASET_REGISTRY, "_obj_map", dict(DATASET_REGISTRY))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "toy_index", raising=False)
    import_user_module("toy_index")
    prepared = prepare.gather("toy_index", place / "videos")
    assert {split: len(videos) for split, videos in prepared.splits.items()} == {
        "train": 9,
        "val": 3,
    }
    prepare.leave_out_missing(prepared)
    manifest_files.write(prepared, tmp_path / "lists")
    lines = (tmp_path / "lists" / "val.csv").read_text().splitlines()
    assert [os.path.basename(line) for line in lines] == [
        "val_fast_00.mp4 0",
        "val_slow_01.mp4 1",
        "val_still_02.mp4 2",
    ]
