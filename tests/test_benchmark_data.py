"""The benchmarks of reading and labelling: both libraries do the same work; never a time."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clips import read_indices, write_clip

from hiera_video.benchmarks import (
    data,
    data_clips,
    data_loaders,
    data_pytorchvideo,
    data_stages,
    machine,
    options,
    predict,
    stopwatch,
    videos,
)
from hiera_video.benchmarks.data_clips import ClipTask
from hiera_video.benchmarks.data_stages import HieraVideoPipeline, PyTorchVideoPipeline
from hiera_video.benchmarks.measure import Candidate
from hiera_video.clip_spec import ClipSpec
from hiera_video.commands import benchmark
from hiera_video.errors import RunFailed, UserError
from hiera_video.video.decode import probe
from hiera_video.video.decoders import available_decoders

PIPELINES = (HieraVideoPipeline, PyTorchVideoPipeline)
SPEC = ClipSpec(num_frames=4, sampling_rate=4, crop_size=64)

decoders = pytest.mark.parametrize("decoder", data_pytorchvideo.DECODERS)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Three 64x64 videos at 30 and 15 fps, that say which of their frames is which."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [
        write_clip(folder / f"{i}.mp4", frames=40, fps=fps, size=(64, 64), b_frames=2)
        for i, fps in enumerate((30, 30, 15))
    ]
    return data.write_list(str(folder), [str(path) for path in paths])


def require(decoder):
    if available_decoders()[decoder]:
        pytest.skip(available_decoders()[decoder])


def frames_of(clips):
    """The indices in pictures of normalised clips [B, 3, T, H, W]."""
    pixels = (clips * SPEC.std[0] + SPEC.mean[0]) * 255
    return [read_indices(clip.unbind(1)) for clip in pixels]


# ---- the same work ------------------------------------------------------------------------------


@decoders
def test_both_libraries_show_the_same_frames_in_a_test(manifest, decoder):
    require(decoder)
    ours, theirs = (p(ClipTask("test", manifest, SPEC, decoder))() for p in PIPELINES)
    assert ours.shape == theirs.shape == (3 * data_clips.VIEWS * data_clips.CROPS, 3, 4, 64, 64)
    assert frames_of(ours) == frames_of(theirs)
    assert (ours - theirs).abs().mean() < 0.02  # of one deviation: roundings of two decoders
    assert ours.dtype == theirs.dtype == torch.float32


@decoders
def test_both_libraries_train_on_the_same_frames(manifest, decoder, monkeypatch):
    require(decoder)
    # The whole picture, never mirrored: its code can be read.
    monkeypatch.setattr(data_clips, "AREA", (1, 1))
    monkeypatch.setattr(data_clips, "ASPECT", (1, 1))
    ours, theirs = (p(ClipTask("train", manifest, SPEC, decoder)) for p in PIPELINES)
    object.__setattr__(ours.dataset.reader.transform, "flip", 0.0)
    theirs.transform.flip = torch.nn.Identity()
    seen = set()
    for _ in range(3):  # each call is another epoch
        mine, other = frames_of(ours()), frames_of(theirs())
        assert mine == other
        seen.add(str(mine))
    assert len(seen) == 3


def test_ours_is_what_the_loader_gives(manifest):
    for kind in options.KINDS:
        pipeline = HieraVideoPipeline(ClipTask(kind, manifest, SPEC, "pyav"))
        for epoch in range(2):
            expected = [clip for i in range(3) for clip in pipeline.dataset[epoch, i]]
            assert torch.equal(pipeline(), torch.stack(expected))
        assert pipeline.clips == len(expected)


def test_every_stage_is_timed_and_the_device_is_not_the_workers(manifest):
    ours, theirs = (p(ClipTask("augmented", manifest, SPEC, "pyav")) for p in PIPELINES)
    for pipeline in (ours, theirs):
        pipeline()
        parts = pipeline.parts()
        assert set(parts) == {*data_clips.STAGES, "worker CPU"}
        assert all(value >= 0 for value in parts.values())
    ours.watch.cpu_seconds.update(dict.fromkeys(data_clips.STAGES, 1.0))
    theirs.watch.cpu_seconds.update(dict.fromkeys(data_clips.STAGES, 1.0))
    assert (ours.parts()["worker CPU"], theirs.parts()["worker CPU"]) == (5, 6)


def test_decord_is_given_back(manifest):
    require("decord")
    task = ClipTask("train", manifest, SPEC, "decord")
    PyTorchVideoPipeline(task)()
    assert HieraVideoPipeline(task)().shape[0] == 3


# ---- arithmetic ---------------------------------------------------------------------------------


def candidate(library, decoder, seconds, cpu):
    parts = [{"decode": s / 2, "crop": s / 4, "worker CPU": cpu} for s in seconds]
    facts = {"table": "stages", "kind": "train", "library": library, "decoder": decoder}
    return Candidate(facts, run=None, samples=4, seconds=list(seconds), part_seconds=parts)


def test_rows_are_of_one_clip():
    ours = candidate("hiera_video", "pyav", [1.0, 2.0, 4.0], cpu=0.8)
    theirs = candidate("pytorchvideo", "pyav", [3.0, 4.0, 4.0], cpu=2.0)
    row = data_stages.stage_row(ours, theirs)
    assert (row["ms"], row["ms_min"], row["ms_max"]) == (500, 250, 1000)
    assert (row["decode_ms"], row["crop_ms"]) == (250, 125)
    assert row["worker_cpu_ms"] == 200
    assert row["clips_per_core_s"] == 5
    assert row["ratio"] == 2  # of 3, 2 and 1


def test_the_reference_has_the_same_decoder_or_is_the_default_one():
    them = [candidate("pytorchvideo", name, [1.0], 1.0) for name in ("pyav", "decord")]
    ours = [candidate("hiera_video", name, [1.0], 1.0) for name in ("torchcodec", "decord")]
    everyone = [*ours, *them]
    assert data_stages.reference_for(ours[0], everyone) is them[0]
    assert data_stages.reference_for(ours[1], everyone) is them[1]
    assert data_stages.reference_for(them[0], everyone) is None
    assert data_stages.reference_for(ours[0], ours) is None


def test_loaders_are_compared_with_as_many_workers():
    facts = [
        ({"library": library, "workers": workers}, rates)
        for library, workers, rates in (
            ("hiera_video", 2, [8.0, 10.0, 12.0]),
            ("pytorchvideo", 2, [4.0, 2.0, 6.0]),
            ("pytorchvideo", 4, [100.0, 100.0, 100.0]),
        )
    ]
    runs = [data_loaders.LoaderRun(f, None, rates) for f, rates in facts]
    row = data_loaders.loader_row(runs[0], runs)
    assert row["clips_per_s"] == 10
    assert row["clips_per_worker_s"] == 5
    assert row["range"] == "8.0-12.0"
    assert row["ratio"] == 2  # of 2, 5 and 2
    assert "ratio" not in data_loaders.loader_row(runs[1], runs)


def test_a_loader_is_timed_once_every_worker_is_at_work(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(data_loaders.time, "perf_counter", lambda: float(next(clock)))
    taken, ended = [], []

    def batches():
        return (taken.append(n) or 4 for n in itertools.count()), lambda: ended.append(1)

    run = data_loaders.LoaderRun({"workers": 3}, batches)
    run.measure(seconds=2.5)
    assert taken == [0, 1, 2, 3, 4, 5]  # the last three within 2.5 ticks
    assert run.rates == [12 / 4]
    assert ended


def test_cores_are_what_the_model_takes_times_what_a_clip_costs():
    rows = [
        data_stages.stage_row(candidate("hiera_video", "pyav", [1.0], cpu=0.8), None),
        data_stages.stage_row(candidate("pytorchvideo", "pyav", [1.0], cpu=2.0), None),
        {"table": "loaders"},
    ]
    args = SimpleNamespace(model=None, feeds=60.0)
    found = data.feeding(rows, args, torch.device("cpu"))
    assert [row["cores"] for row in found] == [12, 30]
    assert data.feeding(rows, SimpleNamespace(model=None, feeds=None), None) == []


def test_worker_counts_end_with_all_cores():
    assert data_loaders.worker_counts(1) == [1]
    assert data_loaders.worker_counts(2) == [1, 2]
    assert data_loaders.worker_counts(6) == [1, 2, 4, 6]
    assert data_loaders.worker_counts(16) == [1, 2, 4, 8, 16]


def test_the_fastest_decoder_of_each_library_is_loaded_with():
    def row(library, decoder, cpu, kind="train"):
        facts = {"library": library, "decoder": decoder, "kind": kind}
        return {"table": "stages", "worker_cpu_ms": cpu, **facts}

    rows = [row("a", "x", 3), row("a", "y", 2), row("b", "x", 5), row("a", "z", 1, "test")]
    assert data_loaders.fastest_decoders(rows, "train") == {"a": "y", "b": "x"}
    assert data_loaders.fastest_decoders(rows, "augmented") == {}


def test_an_inner_stage_does_not_count_to_the_outer(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(stopwatch.time, "process_time", lambda: now[0] / 2)
    watch = stopwatch.Stopwatch()

    def passes(seconds):
        now[0] += seconds

    passes(100)
    for _ in range(2):
        with watch("outer"):
            passes(1)
            with watch("inner"):
                passes(10)
            passes(2)
        passes(100)
    assert watch.seconds == {"outer": 6, "inner": 20}
    assert watch.cpu_seconds == {"outer": 3, "inner": 10}
    watch.reset()
    assert not watch.seconds


# ---- videos to measure with ---------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "size"), [("h264", (400, 300)), ("vp9", (160, 128))])
def test_generated_videos_are_what_their_recipe_says(tmp_path, codec, size):
    recipe = videos.Recipe("made", *size, codec=codec, seconds=0.2)
    videos.write((str(tmp_path), recipe))
    info = probe(tmp_path / recipe.file_name)
    assert (info.width, info.height, info.num_frames, info.fps) == (*size, 6, 30)
    assert codec in info.codec or info.codec == codec


def test_large_pictures_are_made_of_mirror_images():
    frame = torch.arange(4, dtype=torch.uint8).expand(3, 4, 4)
    assert videos.tiled(frame, 2, 10)[0, 0].tolist() == [0, 1, 2, 3, 3, 2, 1, 0, 0, 1]
    assert videos.tiled(frame, 9, 2).shape == (3, 9, 2)


# ---- the commands -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small videos."""
    folder = tmp_path_factory.mktemp("files")
    for i in range(2):
        write_clip(folder / f"{i}.mp4", frames=30, size=(96, 64))
    return folder


def test_the_data_command_writes_what_it_prints(folder, tmp_path, capsys):
    record, table = tmp_path / "out.json", tmp_path / "out.md"
    words = ["--videos", folder, "--kinds", "train", "--decoders", "pyav", "--repeats", 1]
    words += ["--loaders", "train", "--workers", 1, "--seconds", 0.1, "--feeds", 100]
    words += ["--frames", 4, "--crop", 32, "--json", record, "--markdown", table]
    assert data.run(benchmark.parse(["data", *map(str, words)])) == 0
    written = json.loads(record.read_text())
    kinds = [(row["table"], row["library"]) for row in written["rows"]]
    libraries = ("hiera_video", "pytorchvideo")
    assert kinds == [(t, lib) for t in ("stages", "loaders", "feeding") for lib in libraries]
    assert written["files"] == ["96x64 h264, 30 frames, 30 fps"] * 2
    for text in (capsys.readouterr().out, table.read_text()):
        assert "worker CPU ms" in text
        assert "cores needed" in text
    assert table.read_text().count("|---") > 20


def test_a_decoder_that_is_not_there_is_named(monkeypatch):
    failures = {"torchcodec": "cannot be imported (x)", "pyav": None, "decord": None}
    monkeypatch.setattr(data, "available_decoders", lambda: failures)
    assert data.usable_decoders(None) == ["pyav", "decord"]
    with pytest.raises(UserError, match=r"--decoders torchcodec: it cannot be imported"):
        data.usable_decoders(["torchcodec"])


def arguments(**changes):
    usual = {"device": "cpu", "dtype": "auto", "batch_size": 4, "repeats": 1}
    return SimpleNamespace(**{**usual, "model": None, "weights": None, **changes})


@pytest.fixture
def bundled():
    """The small model that comes with the package, at one view."""
    name = predict.BUNDLED_CLASSIFIER
    return predict.Choice(None, name, name, views="1x1")


def test_the_bundled_model_labels_file_after_file(folder, bundled):
    paths = {str(folder / f"{i}.mp4"): f"file {i}" for i in range(2)}
    rows = predict.steady(bundled, paths, arguments(), torch.device("cpu"))
    assert [row["file"] for row in rows] == ["file 0", "file 1"]
    for row in rows:
        assert row["files_per_min"] == pytest.approx(60e3 / row["ms"])
        assert row["decode_ms"] > 0
        assert row["forward_ms"] > 0


def test_many_files_are_labelled_one_by_one_and_in_one_call(folder, bundled):
    paths = {str(folder / f"{i}.mp4"): f"file {i}" for i in range(2)}
    rows = predict.many(bundled, paths, arguments(), torch.device("cpu"))
    assert [(row["start"], row["file"]) for row in rows] == [
        ("one by one", "all 2"),
        ("one call", "all 2"),
    ]
    assert all(row["files_per_min"] == pytest.approx(120e3 / row["ms"]) for row in rows)


@pytest.mark.slow
def test_a_fresh_process_labels_one_file(folder, bundled):
    row = predict.cold(bundled, str(folder / "0.mp4"), "file 0", arguments())
    stages = ("python_ms", "import_ms", "weights_ms", "decode_ms", "forward_ms")
    assert all(row[stage] > 0 for stage in stages)
    clocked = 1e3 * sum(row["runs"][0]["seconds"].values())
    assert sum(row[stage] for stage in stages) <= clocked * 1.01
    assert row["ms_min"] <= row["ms"] <= row["ms_max"]
    assert row["torch_ms"] == row["runs"][0]["torch_ms"] > 0
    assert row["ms"] == row["runs"][0]["first_label_ms"]
    assert row["repeats"] == len(row["runs"]) == 1
    process = predict.decoding_process()
    with process:
        asked = arguments(**vars(bundled))
        expected = predict.load(asked, process)(str(folder / "0.mp4"), top_k=1).labels[0]
    assert row["runs"][0]["label"] == str(expected)


def test_fresh_processes_keep_compiled_modules_as_those_of_users_do(monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    ask = [sys.executable, "-c", "import sys; print(sys.dont_write_bytecode)"]
    said = [
        subprocess.run(ask, env=env, capture_output=True, text=True, check=True).stdout.strip()
        for env in (None, machine.child_environment())
    ]
    assert said == ["True", "False"]


@pytest.mark.slow
def test_a_fresh_process_that_fails_says_why(tmp_path):
    choice = predict.Choice(None, str(tmp_path / "missing.pyth"), "missing")
    missing = str(tmp_path / "no.mp4")
    with pytest.raises(RunFailed, match=r"missing\.pyth"):
        predict.cold_start(choice, missing, arguments())
    with pytest.raises(RunFailed, match="printed no label"):
        predict.first_label(choice, missing, arguments())


def test_random_weights_are_a_file_like_any_other(tmp_path):
    choice = predict.with_random_weights("hiera_tiny_224", tmp_path)
    state = torch.load(choice.weights, weights_only=True)["model_state"]
    assert "head.projection.weight" in state
    assert len(Path(choice.labels).read_text().splitlines()) == 1000
    words = choice.words(arguments())
    assert words[:2] == ["--model", "hiera_tiny_224"]
    assert dict(zip(words[::2], words[1::2], strict=True))["--batch-size"] == "4"


def test_what_is_asked_for_is_what_runs(tmp_path):
    (bundled, large) = predict.choices(arguments(), tmp_path)
    assert (bundled.model, bundled.name) == (None, "camera_motion")
    assert (large.model, large.name) == ("hiera_base_16x224", "random")
    (one,) = predict.choices(arguments(weights="some/file.pyth", model="m"), tmp_path)
    assert (one.model, one.weights, one.name) == ("m", "some/file.pyth", "file.pyth")
