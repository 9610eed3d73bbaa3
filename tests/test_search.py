"""Neighbours by the cosine, and probes: what they must find, and what they must not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from test_features import SETTINGS, described

from hiera_video.commands import search as command
from hiera_video.errors import DataError, UserError
from hiera_video.features import probe
from hiera_video.features.probe import LabelledVectors, cross_validate, interval
from hiera_video.features.readouts import READOUTS, fit_logistic, fit_neighbours
from hiera_video.features.search import nearest
from hiera_video.features.table import Batch, TableWriter

LOGISTIC, NEIGHBOURS = READOUTS


def batch(vectors, first=0):
    names = [f"{first + i}.mp4" for i in range(len(vectors))]
    times = [0.0] * len(vectors)
    return Batch(names, times, times, np.asarray(vectors, dtype=np.float32))


# ---- neighbours ---------------------------------------------------------------------------------


@pytest.fixture(params=["exact", "faiss"])
def engine(request):
    """Each way to compare that is installed."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
    return request.param


def test_neighbours_are_the_largest_cosines(engine):
    draw = np.random.default_rng(0)
    rows, queries = draw.normal(size=(50, 8)), draw.normal(size=(3, 8))
    pieces = [batch(rows[:20]), batch(rows[20:23], 20), batch(rows[23:], 23)]
    found = nearest(pieces, queries, top=5, engine=engine)
    for query, neighbours in zip(queries, found, strict=True):
        cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
        best = np.argsort(-cosines)[:5]
        assert [one.path for one in neighbours] == [f"{i}.mp4" for i in best]
        assert np.allclose([one.score for one in neighbours], cosines[best], atol=1e-5)


def test_length_does_not_count_and_zeros_are_near_nothing(engine):
    pieces = [batch([[0, 0], [10, 10]]), batch([[0.1, 0.1], [1, -1], [-3, -3]], 2)]
    (found,) = nearest(pieces, np.array([[2.0, 2.0]]), top=10, engine=engine)
    assert [one.path for one in found] == ["1.mp4", "2.mp4", "0.mp4", "3.mp4", "4.mp4"]
    assert np.allclose([one.score for one in found], [1, 1, 0, 0, -1], atol=1e-6)


def test_an_engine_that_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    rows, query = [batch([[1, 0]])], np.array([[1.0, 0]])
    assert nearest(rows, query, top=1)[0][0].score == 1
    with pytest.raises(UserError, match="pip install faiss-cpu"):
        nearest(rows, query, top=1, engine="faiss")
    with pytest.raises(UserError, match="engine 'annoy'; choose auto, exact, faiss"):
        nearest(rows, query, top=1, engine="annoy")


# ---- classifiers --------------------------------------------------------------------------------


def test_votes_are_those_of_the_nearest():
    rows = np.array([[1, 0], [1, 0.1], [0, 1], [-1, 0]], dtype=np.float32)
    scorer = fit_neighbours(rows, np.array([0, 2, 2, 1]), 4, 2)
    scores = scorer(np.array([[2, 0]], dtype=np.float32))
    cosine = 1 / 1.01**0.5
    assert np.allclose(scores, [[1, 0, (1 + cosine) / 2, 0]], atol=1e-6)


def test_classes_that_were_not_seen_have_no_score():
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    labels = (rows[:, 0] > 0).astype(np.int64) * 2  # 0 and 2
    scores = fit_logistic(rows, labels, 4, 1e-3)(rows)
    assert scores.shape == (20, 4)
    assert (scores[:, [1, 3]] == 0).all()
    assert (scores.argmax(axis=1) == labels).all()
    alone = fit_logistic(rows, np.full(20, 3), 4, 1e-3)(rows)
    assert (alone.argmax(axis=1) == 3).all()


# ---- cross-validation ---------------------------------------------------------------------------


def videos_of(rooms_matter, *, seed=0):
    """120 videos in 12 rooms of one class each, two windows a video.

    The vectors tell the room, and the class only where `rooms_matter` is False.
    """
    draw = np.random.default_rng(seed)
    room = np.repeat(np.arange(12), 10)
    labels = room % 2
    centres = draw.normal(size=(12, 16)) * 5
    vectors = centres[room] if rooms_matter else np.zeros((120, 16))
    if not rooms_matter:
        vectors[:, 3] = 4 * labels
    windows = np.repeat(vectors, 2, axis=0) + draw.normal(size=(240, 16))
    return LabelledVectors(
        vectors=windows.astype(np.float32),
        video_of=np.repeat(np.arange(120), 2),
        labels=labels.astype(np.int64),
        groups=[f"room {r}" for r in room],
        classes=["a", "b"],
        grouped=True,
    )


@pytest.mark.parametrize("readout", READOUTS, ids=lambda r: r.name)
def test_what_tells_the_class_is_found(readout):
    result = cross_validate(videos_of(False), readout)
    assert result.accuracy > 0.9
    assert result.low < result.accuracy <= result.high
    ((_, values),) = result.chosen.items()
    assert len(values) == 5
    assert set(values) <= set(readout.values)


@pytest.mark.parametrize("readout", READOUTS, ids=lambda r: r.name)
def test_recognising_the_room_does_not_count(readout):
    """Held out by rooms it is a guess, video by video it looks perfect: why groups matter."""
    data = videos_of(True)
    alone = LabelledVectors(**{**vars(data), "groups": [str(i) for i in range(120)]})
    assert cross_validate(alone, readout).accuracy > 0.95
    assert cross_validate(data, readout).accuracy < 0.8


def test_the_interval_of_single_videos_is_wilsons():
    right = np.arange(100) % 2 == 0
    low, high = interval(right, [str(i) for i in range(100)])
    assert (low, high) == (pytest.approx(0.4038, abs=1e-3), pytest.approx(0.5962, abs=1e-3))


def test_videos_that_are_right_together_count_as_fewer():
    """Ten groups of ten, all right or all wrong: as wide as for ten videos."""
    together = np.repeat(np.arange(10) % 2 == 0, 10)
    groups = np.repeat([f"g{i}" for i in range(10)], 10).tolist()
    low, high = interval(together, groups)
    assert (low, high) == (pytest.approx(0.2366, abs=0.01), pytest.approx(0.7634, abs=0.01))
    assert interval(np.ones(100, dtype=bool), groups) == pytest.approx((0.7225, 1.0), abs=1e-3)


# ---- labels -------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Two classes in three rooms each, and the list of them, in the current folder."""
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    lines = ["path,label,room,split"]
    draw = np.random.default_rng(0)
    with TableWriter("f.parquet", SETTINGS) as writer:
        for i in range(24):
            found = described(0, 0)
            found.vectors[:] = draw.normal(size=(2, 4))
            found.vectors[:, 0] += 8 * (i % 2)
            writer.add(f"v/{i}.mp4", found)
            split = "train" if i < 16 else "val"
            lines.append(f"v/{i}.mp4,{'jump' if i % 2 else 'wave'},room{i // 4},{split}")
        writer.add_error("v/bad.mp4", "cut off")
        writer.finish()
    lines.append("v/missing.mp4,jump,room0,train")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_probe_reads_all_splits_and_groups(table, capsys):
    assert command.main(["f.parquet", "--probe", "labels.csv", "--group", "room", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["videos"], said["listed"], said["vectors"]) == (24, 25, 48)
    assert (said["classes"], said["groups"], said["folds"]) == (["jump", "wave"], 6, 5)
    assert said["most_common"] == 0.5
    assert {p["classifier"] for p in said["probes"]} == {LOGISTIC.name, NEIGHBOURS.name}
    assert all(p["accuracy"] > 0.9 for p in said["probes"])
    assert command.main(["f.parquet", "--probe", "labels.csv"]) == 0
    text = capsys.readouterr().out
    assert "24 of 25 listed videos have vectors (48); 2 classes: jump, wave" in text
    assert "note: each video is a group by itself" in text
    assert "most common class      50.0%" in text


def test_videos_that_have_moved_are_known_by_their_names(table):
    (table / "moved").mkdir()
    (table / "labels.csv").rename(table / "moved" / "labels.csv")
    listed = probe.read_labels("moved/labels.csv", "room")
    data = probe.join(probe_batches(), listed, "f.parquet")
    assert len(data.labels) == 24


def probe_batches():
    from hiera_video.features.table import read_batches

    return read_batches("f.parquet")


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("path,label\nw/1.avi,a\nw/2.avi,b\n", [], "no video is both in f.parquet"),
        ("path,label\nv/1.mp4,a\nv/2.mp4,a\n", [], "all 2 videos .* are 'a'"),
        ("path,label,room\nv/1.mp4,a,x\nv/2.mp4,b,x\n", ["--group", "room"], "are of one group"),
        ("path,label\nv/1.mp4,a\nv/2.mp4,b\n", ["--group", "town"], "town"),
        ("path,label\nv/1.mp4,a\nv/2.mp4,b\n", ["--folds", "1"], "--folds 1: at least 2"),
    ],
)
def test_labels_that_no_probe_can_use(text, words, message, table):
    (table / "few.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        command.main(["f.parquet", "--probe", "few.csv", *words])


def test_an_address_in_a_table_is_not_fetched_by_itself(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    elsewhere = replace(SETTINGS, weights="https://example.org/w.pth")
    with TableWriter("f.parquet", elsewhere) as writer:
        writer.add("a.mp4", described(1))
        writer.finish()
    (tmp_path / "a.mp4").touch()
    fetched = []
    monkeypatch.setattr("hiera_video.models.weights.resolve.fetch", fetched.append)
    with pytest.raises(UserError, match=r"add --weights https://example\.org/w\.pth"):
        command.main(["f.parquet", "a.mp4"])
    assert not fetched


def test_a_search_or_a_probe(table):
    with pytest.raises(UserError, match="name either videos to search for"):
        command.main(["f.parquet"])
    with pytest.raises(DataError, match=r"no such file: none\.parquet"):
        command.main(["none.parquet", "v.mp4"])
    with pytest.raises(UserError, match="--top 0: at least 1"):
        command.main(["f.parquet", "v.mp4", "--top", "0"])
