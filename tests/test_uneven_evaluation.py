"""Processes that have unequal shares of what is evaluated, or none of it, end together, with the
results of one process. Real processes, over gloo."""

from __future__ import annotations

import csv
import json

import pytest
import ranks
import run_net
import tiny_runs as tiny

from hiera_video.detection import moving_shapes
from hiera_video.engine.records import read_metrics

BROKEN = b"no video at all"


def command(folder, words):
    """What each process runs."""
    return run_net.main(words)


def run_on(processes, tmp_path, words):
    """Run tools/run_net.py on so many processes; how each ended."""
    folder = tmp_path / f"on_{processes}"
    folder.mkdir()
    words = ["--cfg", str(tiny.empty(tmp_path)), *map(str, words)]
    return ranks.start(command, processes, folder, words).wait()


def write_set(folder, *, val, broken=()):
    """Videos, of which those at the indices `broken` of the validation list cannot be read."""
    tiny.write_videos(folder, train=8, val=val)
    # the list is in the order of its paths: class, then name
    for i, path in enumerate(sorted((folder / "val").rglob("*.mp4"))):
        if i in broken:
            path.write_bytes(BROKEN)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of one step."""
    folder = tmp_path_factory.mktemp("trained")
    videos = tiny.write_videos(folder / "videos", train=4, val=3)
    quick = ("SOLVER.MAX_STEPS", 1, "PAGE.ENABLE", "false")
    assert tiny.run(tiny.config(videos, folder / "out", *quick)) == 0
    return folder / "out" / "checkpoints" / "best.pyth"


def test_words(weights, videos, out, *more):
    quick = ("TRAIN.ENABLE", "false", "TEST.CHECKPOINT_FILE_PATH", weights, "PAGE.ENABLE", "false")
    return tiny.settings(videos, out, *quick, "TEST.BATCH_SIZE", 2, *more)


test_words.__test__ = False


def predictions(out):
    """The rows of predictions.csv; scores as numbers."""
    with open(out / "predictions.csv", newline="") as file:
        return list(csv.reader(file))


def assert_same_results(one, several):
    """Bit for bit: each video is scored with its own views alone."""
    first, second = (json.loads((out / "results.json").read_text()) for out in (one, several))
    for key in ("top1_acc", "top5_acc", "n_videos", "n_failed"):
        assert first[key] == second[key], key
    assert [f["path"] for f in first["failed"]] == [f["path"] for f in second["failed"]]
    assert predictions(one) == predictions(several)


@pytest.mark.parametrize(
    ("processes", "val", "broken"),
    [
        pytest.param(2, 5, (), marks=pytest.mark.slow),
        pytest.param(4, 5, (), marks=pytest.mark.slow),
        pytest.param(4, 2, (), marks=pytest.mark.slow),  # two processes have no video
        (4, 6, (1, 5)),  # all videos of the second process are broken, others fail in part
        pytest.param(4, 6, (0, 4), marks=pytest.mark.slow),  # all of the first one
        pytest.param(2, 1, (), marks=pytest.mark.slow),
    ],
)
def test_a_test_of_several_views(weights, tmp_path, processes, val, broken):
    videos = write_set(tmp_path / "videos", val=val, broken=broken)
    one, several = tmp_path / "one", tmp_path / "several"
    more = ("DATA_LOADER.NUM_WORKERS", int(val == 2))
    assert (
        run_net.main(["--cfg", str(tiny.empty(tmp_path)), *test_words(weights, videos, one)]) == 0
    )
    ended = run_on(processes, tmp_path, test_words(weights, videos, several, *more))
    assert [process.code for process in ended] == [0] * processes, ended
    assert_same_results(one, several)


@pytest.mark.slow
def test_where_nothing_can_be_read_all_processes_say_so_at_once(weights, tmp_path):
    videos = write_set(tmp_path / "videos", val=3, broken=(0, 1, 2))
    ended = run_on(4, tmp_path, test_words(weights, videos, tmp_path / "out"))
    assert [process.code for process in ended] == [1] * 4, ended
    assert ended[0].errors.startswith("error: none of the 3 videos could be read")


def validations(out):
    return [
        {key: record[key] for key in ("top1_acc", "n_videos", "n_failed") if key in record}
        for record in read_metrics(out)
        if record["_type"] == "val_epoch"
    ]


@pytest.mark.slow
def test_validation_in_training(tmp_path):
    """Two videos for four processes, of which one is broken; the steps go on afterwards."""
    videos = write_set(tmp_path / "videos", val=2, broken=(1,))
    more = ("PAGE.ENABLE", "false", "TEST.ENABLE", "false", "SOLVER.BASE_LR", 1e-7,
            "SOLVER.WARMUP_START_LR", 1e-8, "SOLVER.COSINE_END_LR", 1e-8)  # fmt: skip
    one, several = tmp_path / "one", tmp_path / "several"
    assert tiny.run(tiny.config(videos, one, *more)) == 0
    ended = run_on(4, tmp_path, tiny.settings(videos, several, *more))
    assert [process.code for process in ended] == [0] * 4, ended
    assert tiny.final(several)["step"] == 4
    assert validations(one) == validations(several)
    assert len(validations(one)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_features_of_a_probe(tmp_path, kind):
    """Seven videos for four processes; both of one process are broken."""
    videos = tiny.write_videos(tmp_path / "videos", train=7, val=3)
    for i, path in enumerate(sorted((videos / "train").rglob("*.mp4"))):
        if i in (2, 6):
            path.write_bytes(BROKEN)
    stages = "attentive: true" if kind == "attentive" else "readout_stages: [3]"
    more = ("TRAIN.PROBE", kind, "TRAIN.PROBE_VIEWS", 2, "SOLVER.MAX_EPOCH", 0,
            "SOLVER.WARMUP_EPOCHS", 0, "PAGE.ENABLE", "false",
            "MODEL.KWARGS", f"{{embed_dim: 8, num_heads: 1, stages: [1, 1, 1, 1], {stages}}}",
            )  # fmt: skip
    one, several = tmp_path / "one", tmp_path / "several"
    assert tiny.run(tiny.config(videos, one, *more)) == 0
    ended = run_on(4, tmp_path, tiny.settings(videos, several, *more))
    assert [process.code for process in ended] == [0] * 4, ended
    assert validations(one) == validations(several)
    first, second = (tiny.final(out)["model_state"] for out in (one, several))
    for name in first:
        assert first[name].allclose(second[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_boxes_of_key_frames(tmp_path, broken):
    """Three key frames of one video, or six of which three cannot be read, for four processes."""
    count = 1 + broken
    kind = moving_shapes.ShapeSettings(num_train=4, num_val=count, size=64)
    shapes = moving_shapes.make_shapes(tmp_path / "set", kind, workers=1)
    task = {**tiny.DETECT, "SYNTHETIC.NUM_VAL": count, "SOLVER.MAX_STEPS": 1}
    task["PAGE.ENABLE"] = "false"
    out = tmp_path / "trained"
    assert tiny.run(tiny.config(shapes, out, "TRAIN.EVAL_PERIOD", 100, task=task)) == 0
    if broken:
        sorted((shapes / "videos").rglob("*val*"))[0].write_bytes(BROKEN)
    best = sorted((out / "checkpoints").glob("*.pyth"))[-1]
    quick = ("TRAIN.ENABLE", "false", "TEST.CHECKPOINT_FILE_PATH", best)
    one, several = tmp_path / "one", tmp_path / "several"
    words = tiny.settings(shapes, one, *quick, task=task)
    assert run_net.main(["--cfg", str(tiny.empty(tmp_path)), *words]) == 0
    ended = run_on(4, tmp_path, tiny.settings(shapes, several, *quick, task=task))
    assert [process.code for process in ended] == [0] * 4, ended
    first, second = (json.loads((o / "results.json").read_text()) for o in (one, several))
    for key in ("map", "n_videos", "n_failed", "n_boxes"):
        assert first[key] == second[key], key
    assert first["n_failed"] == 3 * broken
    assert (one / "detections.csv").read_bytes() == (several / "detections.csv").read_bytes()
