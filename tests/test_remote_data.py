"""Data sets at addresses and in tar shards: the same lists, the same training as from a folder."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import tarfile
import time
from pathlib import Path

import pytest
import tiny_runs as tiny
import torch
from storage_servers import WebServer

from hiera_video.data.manifests.layouts import read_manifest
from hiera_video.data.manifests.shard_labels import label_of
from hiera_video.engine.data_source import fingerprint
from hiera_video.errors import DataError, UserError

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """train/CLASS/N.mp4 and val/CLASS/N.mp4."""
    return tiny.write_videos(tmp_path_factory.mktemp("videos") / "set", train=8, val=3)


@pytest.fixture(scope="module")
def there(videos):
    """The same at an address."""
    fsspec.filesystem("memory").put(str(videos), "/data/set", recursive=True)
    return "memory://data/set"


def shard(path, samples):
    """samples: key -> {ending: bytes}."""
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for ending, content in files.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(path)


def shards_of(videos, folder, label=lambda name: {"cls": name.encode()}):
    """Pack the class folders as `NAME-train-0.tar`, ...: two shards for each split."""
    folder.mkdir()
    for split in ("train", "val"):
        files = sorted((videos / split).glob("*/*.mp4"), key=lambda file: file.name)
        for part in range(2):
            samples = {
                f"{split}{file.stem}": {"mp4": file.read_bytes(), **label(file.parent.name)}
                for file in files[part::2]
            }
            shard(folder / f"set-{split}-{part}.tar", samples)
    return folder


def listed(manifest):
    return [
        (manifest.paths.relative(i), manifest.classes[manifest.label(i)])
        for i in range(len(manifest))
    ]


# ---- lists --------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_class_folders_at_an_address(videos, there, split):
    local, remote_ = read_manifest(videos, split), read_manifest(there, split)
    assert listed(remote_) == listed(local)
    assert fingerprint(remote_) == fingerprint(local)
    assert remote_.paths[0] == f"{there}/{split}/{local.paths.relative(0)}"
    assert "memory://data/set" in remote_.describe_classes() + remote_.classes_from


def test_lists_at_an_address(videos, there):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/data/lists/train.csv", b"fast/00.mp4 0\ns/01.mp4 1\nmemory://x/y.mp4 1\n")
    memory.pipe_file("/data/lists/val.csv", b"fast/00.mp4 0\n/local/01.mp4 1\n")
    memory.pipe_file("/data/lists/classes.txt", b"quick\nslow\n")
    train = read_manifest("memory://data/lists", "train")
    assert train.classes == ("quick", "slow")
    assert list(train.paths) == [
        "memory://data/lists/fast/00.mp4", "memory://data/lists/s/01.mp4", "memory://x/y.mp4",
    ]  # fmt: skip
    val = read_manifest("memory://data/lists/val.csv", "val")
    assert list(val.paths) == ["memory://data/lists/fast/00.mp4", "/local/01.mp4"]
    prefixed = read_manifest("memory://data/lists/val.csv", "val", path_prefix="s3://b/clips")
    assert prefixed.paths[0] == "s3://b/clips/fast/00.mp4"
    memory.pipe_file("/data/lists/bad.csv", b"path,label\na.mp4,\nb.mp4,1\n")
    with pytest.raises(DataError, match=r"memory://data/lists/bad\.csv:2: .*no label"):
        read_manifest("memory://data/lists/bad.csv")


def test_a_local_list_with_addresses(tmp_path):
    lines = ["s3://b/a b.mp4 0", "https://h/x.mp4 1", "c.mp4 1", f"{tmp_path}/s.tar!/k.mp4 0"]
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    paths = list(read_manifest(tmp_path / "train.csv").paths)
    assert paths == [
        "s3://b/a b.mp4",
        "https://h/x.mp4",
        f"{tmp_path}/c.mp4",
        f"{tmp_path}/s.tar!/k.mp4",
    ]


def test_parquet_lists(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = arrow.table({"path": ["a.mp4", "s3://b/c.mp4"], "label": ["x", "y"]})
    parquet.write_table(table, tmp_path / "list.parquet")
    local = read_manifest(tmp_path / "list.parquet")
    assert list(local.paths) == [f"{tmp_path}/a.mp4", "s3://b/c.mp4"]
    assert local.classes == ("x", "y")
    content = (tmp_path / "list.parquet").read_bytes()
    fsspec.filesystem("memory").pipe_file("/data/p/list.parquet", content)
    there = read_manifest("memory://data/p/list.parquet")
    assert list(there.paths) == ["memory://data/p/a.mp4", "s3://b/c.mp4"]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read as a Parquet file"):
        read_manifest(tmp_path / "bad.parquet")


def test_what_is_not_there_or_not_allowed_is_told():
    for place, reason in {
        "memory://data/none": "nothing at this address",
        "memory://data/none.csv": "no such file at this address",
        "ftp://h/data": "ftp:// are not opened",
        "s3://b/x.csv?X-Amz-Signature=abc": r"Signature=\*\*\*: .*leave credentials to fsspec",
        "https://host/folder/": "web servers do not list files",
        "memory://data/{0..2}.tar": "no such file",
    }.items():
        with pytest.raises(DataError, match=reason):
            read_manifest(place)


def test_a_list_from_the_web():
    with WebServer({"list.csv": b"a.mp4 0\nb.mp4 1\n"}) as web:
        address = web.address("twice", "list.csv")
        paths = list(read_manifest(address).paths)
        assert paths == [address.replace("list.csv", name) for name in ("a.mp4", "b.mp4")]


# ---- shards -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "label",
    [
        lambda name: {"cls": name.encode() + b"\n"},
        lambda name: {"json": json.dumps({"id": 3, "label": name}).encode()},
        lambda name: {"txt": name.encode()},
    ],
)
def test_shards_are_the_same_set(videos, tmp_path, label, monkeypatch):
    folder = shards_of(videos, tmp_path / "shards", label)
    monkeypatch.chdir(tmp_path)
    braces = "set-{train,val}-{0..1}.tar"
    for place in (folder, f"{folder}/{braces}", "shards", f"shards/{braces}"):
        for split in ("train", "val"):
            local, packed = read_manifest(videos, split), read_manifest(place, split)
            assert packed.name == "shards"
            assert packed.classes == local.classes
            said = packed.describe_classes()
            assert "names in key.cls, key.json or key.txt of " in said
            assert str(place) in said
            assert all(path.startswith(f"{folder}/set-") for path in packed.paths)
            found = {(path.rpartition("/")[2], name) for path, name in listed(packed)}
            assert found == {(f"{split}{path[-6:]}", name) for path, name in listed(local)}
    one = read_manifest(f"{folder}/set-train-0.tar", "train")
    assert len(one) == 4
    assert one.paths[0] == f"{folder}/set-train-0.tar!/train00.mp4"
    assert one.undivided
    train = read_manifest(f"{folder}/set-train-0.tar", "train", hold_out=True, val_fraction=0.25)
    held = read_manifest(f"{folder}/set-train-0.tar", "val", hold_out=True, val_fraction=0.25)
    assert sorted([*train.paths, *held.paths]) == sorted(one.paths)


def test_labels_in_shards(tmp_path):
    video = b"x" * 10
    place = shard(
        tmp_path / "a.tar",
        {
            "dir/a": {"mp4": video, "cls": b"1"},
            "b": {"mp4": video, "cls": b" 0 \n", "json": b'{"label": 1}'},
            "c": {"mp4": video, "json": b"{broken"},
            "d": {"mp4": video},
            "e.x": {"mp4": video, "cls": b"5"},
            "f": {"cls": b"1"},
        },
    )
    manifest = read_manifest(place)
    assert [manifest.paths.relative(i) for i in range(2)] == ["a.tar!/dir/a.mp4", "a.tar!/b.mp4"]
    assert manifest.labels.tolist() == [1, 0]
    (note,) = [note for note in manifest.notes if "without a label" in note]
    assert note.startswith("ignored: 3 videos without a label, such as a.tar!/c.mp4")
    (tmp_path / "classes.txt").write_text("zero\none\n")
    assert read_manifest(place).classes == ("zero", "one")
    assert len(read_manifest(place, need_labels=False)) == 5
    with pytest.raises(DataError, match=r"class|name"):
        read_manifest(place, classes=("other", "names"), need_labels=True, num_classes=1)
    nothing = shard(tmp_path / "b.tar", {"a": {"cls": b"1"}})
    with pytest.raises(DataError, match="no videos with a label"):
        read_manifest(nothing)
    (tmp_path / "classes.txt").unlink()
    samples = {"a": b'{"label": ["x", "y"]}', "b": b'{"label": "y"}'}
    files = {key: {"mp4": video, "json": text} for key, text in samples.items()}
    several = shard(tmp_path / "m.tar", files)
    both = read_manifest(several, multi_label=True)
    assert both.classes == ("x", "y")
    assert [both.label(i) for i in range(2)] == [(0, 1), (1,)]


def test_one_label_of_a_sample():
    assert label_of({"cls": "3\n", "json": '{"label": "x"}'}) == "3"
    assert label_of({"json": '{"caption": "x", "cls": 4}'}) == "4"
    assert label_of({"json": '"jump"'}) == "jump"
    assert label_of({"json": '{"label": true}', "txt": "walk"}) == "walk"
    assert label_of({"txt": "a caption\nof two lines"}) == ""
    assert label_of({}) == ""


def test_shards_of_which_only_some_name_a_split_are_refused(tmp_path):
    for name in ("train-0.tar", "more-1.tar"):
        shard(tmp_path / name, {name: {"mp4": b"x", "cls": b"a"}})
    with pytest.raises(DataError, match=r"names a split and more-1\.tar does not"):
        read_manifest(tmp_path)


def test_an_archive_beside_class_folders_is_no_shard(videos, tmp_path):
    import shutil

    shutil.copytree(videos, tmp_path / "set")
    shard(tmp_path / "set" / "train.tar", {"a": {"mp4": b"x", "cls": b"a"}})
    assert listed(read_manifest(tmp_path / "set")) == listed(read_manifest(videos))


def test_damaged_shards_stop_with_their_name(tmp_path):
    good = shard(tmp_path / "a-0.tar", {"a": {"mp4": b"x", "cls": b"a"}})
    (tmp_path / "a-1.tar").write_bytes(Path(good).read_bytes()[:700])
    with pytest.raises(DataError, match=r"a-1\.tar: is cut off"):
        read_manifest(f"{tmp_path}/a-{{0..1}}.tar")


# ---- training -----------------------------------------------------------------------------------


def weights(out):
    return tiny.final(out)["model_state"]


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def losses(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row and "step" in row}


def test_training_from_an_address_is_the_same(videos, there, tmp_path, no_curves):
    overrides = ("TRAIN.EVAL_PERIOD", 1, "SOLVER.MAX_EPOCH", 1)
    assert tiny.run(tiny.config(videos, tmp_path / "a", *overrides)) == 0
    assert tiny.run(tiny.config(there, tmp_path / "b", *overrides)) == 0
    assert same_weights(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_training_on_shards_resumes_in_mid_epoch(videos, tmp_path, no_curves):
    folder = shards_of(videos, tmp_path / "shards")
    overrides = ("TRAIN.EVAL_PERIOD", 0)
    assert tiny.run(tiny.config(folder, tmp_path / "whole", *overrides)) == 0
    cfg = tiny.config(folder, tmp_path / "parts", *overrides)
    assert tiny.interrupted(cfg, after=3) == 130  # of two steps an epoch
    assert tiny.run(cfg) == 0
    assert same_weights(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_remote_training_from_s3_survives_a_kill(s3, videos, tmp_path, kind):
    """Killed without a warning in mid-epoch and started again: the same losses and weights."""
    source = videos if kind == "folder" else shards_of(videos, tmp_path / "shards")
    place = f"s3://bucket/{kind}"
    s3.put(f"{source}/", f"bucket/{kind}/", recursive=True)
    empty = tiny.empty(tmp_path)
    more = ("DATA_LOADER.NUM_WORKERS", 2, "TRAIN.CHECKPOINT_STEPS", 1, "SOLVER.MAX_EPOCH", 6)

    def words(out):
        return tiny.settings(place, out, "TRAIN.EVAL_PERIOD", 0, *more)

    whole = tiny.run_child("--cfg", empty, *words(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    child = tiny.start_child("--cfg", empty, *words(tmp_path / "parts"))
    end = time.monotonic() + 120
    while not list((tmp_path / "parts").glob("checkpoints/*")):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    again = tiny.run_child("--cfg", empty, *words(tmp_path / "parts"))
    assert again.returncode == 0, again.stderr
    assert same_weights(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


# ---- commands -----------------------------------------------------------------------------------


def test_labels_of_a_video_on_the_web_show_no_secret(videos, tmp_path, capsys, monkeypatch):
    from hiera_video.commands import predict

    name = next((videos / "train").glob("*/*.mp4"))
    with WebServer({"a.mp4": name.read_bytes()}) as web:
        address = web.address("ok", "a.mp4?X-Amz-Signature=q7w8e9")
        out, page = tmp_path / "out.csv", tmp_path / "page"
        words = ["--weights", "camera_motion", "--views", "1x1", "--device", "cpu"]
        assert predict.main([address, *words, "--csv", str(out), "--html", str(page)]) == 0
        gone = web.address("gone", "b.mp4?X-Amz-Signature=q7w8e9")
        assert predict.main([address, gone, "--json", *words]) == 1
    said = capsys.readouterr()
    assert "X-Amz-Signature=***" in said.out
    written = "".join(
        file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.is_file()
    )
    rows = list(csv.DictReader(out.open(encoding="utf-8-sig")))
    assert rows[0]["file"].endswith("a.mp4?X-Amz-Signature=***")
    for text in (said.out, said.err, written):
        assert "q7w8e9" not in text
    assert "no such file at this address" in said.err


def test_rows_of_a_job_are_addresses(videos, tmp_path):
    from hiera_video.scale.rows import folder_of_paths, read_rows, require_input

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/data/rows/list.txt", b"a.mp4\ns3://b/c.mp4\n")
    memory.pipe_file("/data/rows/t.csv", b"path,start,end\na.mp4,1,2\nb.mp4,,\n")
    memory.pipe_file("/data/rows/x/a.mp4", b"x")
    place = shard(tmp_path / "s.tar", {"k": {"mp4": b"x", "cls": b"1"}})

    def paths(source):
        return [path.decode() for rows in read_rows(source) for path in rows.paths]

    assert paths("memory://data/rows/list.txt") == ["a.mp4", "s3://b/c.mp4"]
    assert folder_of_paths("memory://data/rows/list.txt") == "memory://data/rows"
    (table,) = read_rows("memory://data/rows/t.csv")
    assert (table.starts, table.ends) == ([1.0, None], [2.0, None])
    assert paths("memory://data/rows/") == ["memory://data/rows/x/a.mp4"]
    assert paths(place) == [f"{place}!/k.mp4"]
    with pytest.raises(DataError, match="no such file at this address"):
        paths("memory://data/rows/none.txt")
    with pytest.raises(UserError, match="not opened"):
        require_input("ftp://h/list.txt")


def test_features_of_addresses_go_on_where_they_stopped(videos, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    from hiera_video.commands import features
    from hiera_video.features.table import read_batches, read_errors

    files = sorted((videos / "train").glob("*/*.mp4"))[:2]
    packed = shard(tmp_path / "s.tar", {f.stem: {"mp4": f.read_bytes()} for f in files})
    out = tmp_path / "features.parquet"
    with WebServer({"a.mp4": files[0].read_bytes()}) as web:
        one, two = (web.address("ok", f"a.mp4?sig=q7w8e9{i}") for i in range(2))
        words = ["--weights", "camera_motion", "--views", "1x1", "--device", "cpu"]
        inputs = [one, two, packed, web.address("denied", "a.mp4")]
        assert features.main([*inputs, *words, "--out", str(out)]) == 1
        before = len(web.requests)
        assert features.main([*inputs[:3], *words, "--out", str(out)]) == 0
        assert len(web.requests) == before  # all three are in the table
        npy = ["--format", "npy", "--every", "0.4", "--out", str(tmp_path / "npy")]
        assert features.main([one, packed, *words, *npy]) == 0
    (batch,) = [batch for batch in read_batches(out) if len(batch.paths) > 2]
    assert [path.partition("=")[0] for path in batch.paths[:2]] == [one.partition("=")[0]] * 2
    assert batch.paths[0] != batch.paths[1]
    assert (batch.vectors[0] == batch.vectors[2]).all()  # the same video, from the shard
    ((path, reason),) = read_errors(out)
    assert path.endswith("/denied/a.mp4")
    assert "permission denied" in reason
    assert len(list((tmp_path / "npy").rglob("*.npy"))) == 3
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    said = capsys.readouterr()
    assert "q7w8e9" not in said.out + said.err
    assert b"q7w8e9" not in written


@pytest.mark.slow
def test_remote_label_dataset_over_a_listing_of_s3(s3, videos, tmp_path):
    """Every video of a bucket's folder and of a shard once; the second run does nothing."""
    pytest.importorskip("ray")
    parquet = pytest.importorskip("pyarrow.parquet")
    import subprocess
    import sys

    files = sorted((videos / "train").glob("*/*.mp4"))
    for number, file in enumerate(files):
        s3.put_file(str(file), f"bucket/label/{number}.mp4")
    s3.pipe_file("bucket/label/9.mp4", b"no video")
    packed = shard(tmp_path / "s.tar", {f.stem: {"mp4": f.read_bytes()} for f in files})
    s3.put_file(packed, "bucket/packed/s.tar")
    for source, rows in {"s3://bucket/label/": 9, "s3://bucket/packed/s.tar": 8}.items():
        out = tmp_path / f"out{rows}"
        words = [source, "--weights", "camera_motion", "--out", str(out), "--views", "1x1"]
        command = [sys.executable, "tools/label_dataset.py", *words, "--actors", "1"]
        for _ in range(2):
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=300,
                env=tiny.environment(),
                cwd=tiny.REPOSITORY,
            )
            assert done.returncode == 0, done.stderr
        parts = [parquet.read_table(file).to_pylist() for file in sorted(out.glob("*.parquet"))]
        found = [row for part in parts for row in part]
        assert len({row["path"] for row in found}) == len(found) == rows
        assert all(row["path"].startswith(source.rstrip("/")) for row in found)
        failed = [row["error"] for row in found if row["error"]]
        assert failed == (["is a text file, not a video"] if rows == 9 else [])
