"""A path in, ranked labels out; and where weights, names and settings come from."""

import contextlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from clips import picture, write_clip
from conftest import REPOSITORY
from PIL import Image

from hiera_video import Predictor, build_model, classifier, predict, scoring
from hiera_video.clip_spec import ClipSpec
from hiera_video.data.datasets import TestReader, VideoDataset
from hiera_video.data.loader import LoaderSettings, build_loader
from hiera_video.data.manifests.layouts import read_manifest
from hiera_video.data.views import load_test_views
from hiera_video.engine import distributed
from hiera_video.engine.evaluate import score_videos
from hiera_video.errors import DecodeError, RunFailed, UserError, WeightsError
from hiera_video.labels import load_labels
from hiera_video.models.weights import resolve
from hiera_video.models.weights.published import PUBLISHED
from hiera_video.prediction import Label, Prediction
from hiera_video.scoring import ScoreSettings, view_scores
from hiera_video.video.decode import VideoReader
from hiera_video.video.decoders import available_decoders
from hiera_video.video.decoding_process import decoding_process
from hiera_video.video.find import expand_paths, find_videos

NAME = "hiera_base_16x224"
TINY = {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1), "input_size": (4, 64, 64)}
SPEC = ClipSpec(num_frames=4, sampling_rate=2, crop_size=64)
CLASSES = ["apple", "bird", "cat", "dog", "eel"]


def tiny_model(num_classes=5, **overrides):
    torch.manual_seed(0)
    model = build_model(NAME, num_classes=num_classes, **{**TINY, **overrides})
    # The published initialisation makes all scores nearly equal; ranks need something to rank.
    torch.nn.init.normal_(model.head.projection.weight, std=1.0)
    return model


def write_checkpoint(path, model=None, *, stored=None, **facts):
    """A checkpoint as the trainer writes it, the facts given here in the place of its own."""
    kwargs = {k: list(v) if isinstance(v, tuple) else v for k, v in TINY.items()}
    content = {
        "format": "hiera_video/1",
        "model_state": (model or tiny_model()).state_dict(),
        "model": stored or {"name": NAME, "kwargs": kwargs},
        "classes": CLASSES,
        "spec": SPEC.to_dict(),
        "epoch": 1,
    }
    torch.save(content | facts, path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """60 frames at 30 fps."""
    return str(write_clip(tmp_path_factory.mktemp("predict") / "clip.mp4", frames=60))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.pyth")


@pytest.fixture
def predictor():
    return Predictor(tiny_model(), spec=SPEC, classes=CLASSES, views=(2, 3), device="cpu")


@pytest.fixture
def warnings():
    return []


# ---- labels ----


def test_labels_are_the_scores_of_the_test(predictor, clip):
    clips = load_test_views(clip, SPEC, 2, 3)
    scores = view_scores(tiny_model().eval(), clips, ScoreSettings(6))
    prediction = predictor(clip, top_k=5)
    assert {x.label: x.score for x in prediction.labels} == pytest.approx(
        dict(zip(CLASSES, scores.tolist(), strict=True)), abs=1e-6
    )
    falling = [x.score for x in prediction.labels]
    assert falling == sorted(falling, reverse=True)
    assert sum(falling) == pytest.approx(1, abs=1e-5)
    assert falling[0] > falling[-1]


def test_the_engines_test_gives_every_video_the_predictors_scores(predictor, tmp_path):
    """Demo and test agree on the same files, whatever the loader's batches."""
    write_clip(tmp_path / "wide.mp4", frames=50, size=(160, 64), fps=24)
    write_clip(tmp_path / "upright.mp4", frames=50, size=(64, 160), fps=60)
    write_clip(tmp_path / "short.mp4", frames=5)
    (tmp_path / "broken.mp4").write_text("not a video")
    (tmp_path / "list.csv").write_text("wide.mp4 1\nbroken.mp4 2\nupright.mp4 3\nshort.mp4 4\n")
    manifest = read_manifest(tmp_path / "list.csv")
    dataset = VideoDataset(manifest, TestReader(SPEC, num_views=2, num_crops=3))
    scores = score_videos(
        predictor.model,
        build_loader(dataset, LoaderSettings(batch_size=2)),
        ScoreSettings(batch_size=5),
        world=distributed.World(device=torch.device("cpu")),
    )
    assert [os.path.basename(failed.path) for failed in scores.failed] == ["broken.mp4"]
    assert len(scores.video_ids) == 3
    for video_id, row in zip(scores.video_ids.tolist(), scores.rows, strict=True):
        labels = predictor(manifest.paths[video_id]).labels
        assert {x.label: x.score for x in labels} == pytest.approx(
            dict(zip(CLASSES, row.tolist(), strict=True)), abs=1e-6
        )


def test_top_k_takes_the_best_and_no_more_than_there_are(predictor, clip):
    everything = predictor(clip, top_k=99).labels
    assert len(everything) == 5
    assert predictor(clip, top_k=2).labels == everything[:2]


def test_the_json_object_has_the_documented_keys(predictor, clip):
    content = json.loads(json.dumps(predictor(clip, top_k=1).to_dict()))
    assert list(content) == ["file", "labels", "timeline", "error", "model", "weights", "views"]
    assert content["file"] == clip
    assert list(content["labels"][0]) == ["score", "label"]
    assert content["timeline"] is None
    assert content["error"] is None
    assert content["views"] == "2x3"


def test_a_prediction_reads_well():
    shown = repr(Prediction("a.mp4", [Label("dog", 0.93216), Label("cat", 0.05)], views="5x3"))
    assert shown.splitlines()[0].startswith("Prediction('a.mp4'")
    assert " 1 " in shown
    assert "93.22%  dog" in shown
    assert "error: no video" in repr(Prediction("a.mp4", error="no video"))


def test_progress_ends_at_one(predictor, clip):
    seen = []
    predictor(clip, on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)
    seen.clear()
    list(predictor.timeline(clip, 0.5, on_progress=seen.append))
    assert len(seen) == 4
    assert seen[-1] == pytest.approx(1)


def test_an_image_model_is_shown_single_frames(clip):
    model = build_model("hiera_tiny_224", num_classes=5, embed_dim=16, input_size=(64, 64)).eval()
    spec = ClipSpec(num_frames=1, sampling_rate=1, crop_size=64)
    labels = Predictor(model, spec=spec, classes=CLASSES, views=(3, 1))(clip).labels
    frames = load_test_views(clip, spec, 3, 1)[:, :, 0]
    expected = model(frames).softmax(-1).mean(0)
    assert labels[0].score == pytest.approx(expected.max().item(), abs=1e-6)


def test_an_undecodable_file_is_an_error_not_a_label(predictor, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"text")
    with pytest.raises(DecodeError, match=r"bad\.mp4"):
        predictor(bad)


def test_scores_that_are_not_numbers_are_refused(clip):
    model = tiny_model()
    torch.nn.init.constant_(model.head.projection.weight, float("inf"))
    predictor = Predictor(model, spec=SPEC, classes=CLASSES, views=(1, 1), device="cpu")
    with pytest.raises(RunFailed, match="not finite"):
        predictor(clip)


def test_a_folder_of_pictures_is_a_video(predictor, tmp_path):
    for i in range(12):
        Image.fromarray(picture(i, (96, 64))).save(tmp_path / f"frame_{i}.png")
    clips = load_test_views(tmp_path, SPEC, 2, 3)
    scores = view_scores(tiny_model().eval(), clips, ScoreSettings(6))
    assert predictor(tmp_path).labels[0].score == pytest.approx(scores.max().item(), abs=1e-6)


@pytest.mark.parametrize("decoder", ["pyav", "torchcodec"])
def test_the_decoder_asked_for_is_the_one_used(clip, decoder, monkeypatch):
    if available_decoders()[decoder] is not None:
        pytest.skip(f"{decoder} {available_decoders()[decoder]}")
    used = []
    opened = VideoReader.__init__

    def recording(self, path, decoder="auto", **kwargs):
        used.append(decoder)
        opened(self, path, decoder, **kwargs)

    monkeypatch.setattr(VideoReader, "__init__", recording)
    predictor = Predictor(
        tiny_model(), spec=SPEC, classes=CLASSES, views=(1, 1), device="cpu", decoder=decoder
    )
    predictor(clip)
    assert used == [decoder]


# ---- many files ----


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_many_files_get_the_labels_of_each(predictor, clip, tmp_path, workers):
    other = str(write_clip(tmp_path / "upright.mp4", frames=50, size=(64, 160), fps=60))
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"text")
    paths = [clip, bad, other, tmp_path / "gone.mp4", clip]
    alone = {str(path): predictor(path) for path in (clip, other)}
    done = []
    with contextlib.ExitStack() as stack:
        if workers:
            predictor.process = stack.enter_context(decoding_process(workers))
        found = list(predictor.label_files(iter(paths), on_progress=done.append))
    assert [prediction.file for prediction in found] == [str(path) for path in paths]
    for prediction in found:
        if prediction.file in alone:
            assert prediction == alone[prediction.file]  # bit for bit
        else:
            assert prediction.labels == []
            assert prediction.error
    assert done == sorted(done)
    assert done[-1] == pytest.approx(len(paths))


def test_many_files_of_a_broken_model_are_errors_one_by_one(clip):
    model = tiny_model()
    torch.nn.init.constant_(model.head.projection.weight, float("inf"))
    predictor = Predictor(model, spec=SPEC, classes=CLASSES, views=(1, 1), device="cpu")
    first, second = predictor.label_files([clip, clip], top_k=2)
    assert "not finite" in first.error
    assert second.error == first.error


@pytest.mark.parametrize(
    ("paths", "top_k", "says"), [([3], 1, "int is not a path"), ([], 0, "top")]
)
def test_wrong_use_of_many_files(predictor, paths, top_k, says):
    with pytest.raises(UserError, match=says):
        list(predictor.label_files(paths, top_k=top_k))


def test_views_too_large_for_one_answer_are_read_part_by_part(predictor, clip, monkeypatch):
    monkeypatch.setattr("hiera_video.predict.MOST_BYTES", 1)
    monkeypatch.setattr("hiera_video.predict.read_ahead", lambda *_: pytest.fail("in one answer"))
    with decoding_process() as predictor.process:
        (found,) = predictor.label_files([clip])
    predictor.process = None
    assert found == predictor(clip)


def test_pixels_travel_to_the_device_as_bytes(predictor, clip, monkeypatch):
    seen = []

    def score_batch(model, clips, settings):
        seen.append((clips.dtype, len(clips)))
        return scoring_batch(model, clips, settings)

    scoring_batch = scoring.score_batch
    monkeypatch.setattr(scoring, "score_batch", score_batch)
    monkeypatch.setattr("hiera_video.batched_scores.score_batch", score_batch)
    predictor(clip)
    list(predictor.label_files([clip, clip]))
    assert seen == [(torch.uint8, 4), (torch.uint8, 2)] * 3


def test_batches_are_as_large_as_the_device_likes(monkeypatch, warnings):
    assert predict.USUAL_BATCH == {"cpu": 4, "cuda": 32}
    model = tiny_model()
    settings = {"spec": SPEC, "classes": CLASSES, "device": "cpu", "warn": warnings.append}
    assert Predictor(model, **settings).batch_size == 4
    chosen = Predictor(model, batch_size=8, **settings)
    assert chosen._smaller_batch() is None  # what the user chose stays
    usual = Predictor(model, **settings)
    assert [usual._smaller_batch() for _ in range(3)] == [2, 1, None]
    assert len(warnings) == 2


@pytest.mark.parametrize("chosen", [None, 4])
def test_a_full_memory_means_smaller_batches_or_an_error(clip, monkeypatch, warnings, chosen):
    def full(clips):
        if len(clips) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(clips)

    model = tiny_model()
    settings = {"spec": SPEC, "classes": CLASSES, "device": "cpu", "views": (2, 3)}
    expected = Predictor(model, batch_size=1, **settings)(clip).labels
    predictor = Predictor(model, batch_size=chosen, warn=warnings.append, **settings)
    forward, model.forward = model.forward, full
    if chosen is None:
        assert predictor(clip).labels == expected
        predictor.batch_size = 4
        assert next(predictor.label_files([clip])).labels == expected
        return
    with pytest.raises(RunFailed, match="4 views per forward pass"):
        predictor(clip)
    assert "4 views per forward pass" in next(predictor.label_files([clip])).error


# ---- timelines ----


def two_scenes(path):
    """2 s of black, then 2 s of the coded pictures, at 30 fps."""
    black = np.zeros((64, 64, 3), np.uint8)
    frames = [black] * 60 + [picture(i, (64, 64)) for i in range(60)]
    return str(write_clip(path, frames=frames, size=(64, 64)))


def test_a_timeline_labels_what_is_in_each_window(predictor, tmp_path):
    windows = list(predictor.timeline(two_scenes(tmp_path / "scenes.mp4"), 1.0, top_k=5))
    assert [w.start for w in windows] == pytest.approx([0, 1, 2, 3])
    assert [w.end for w in windows] == pytest.approx([1, 2, 3, 4])
    first, second, third, _ = ({x.label: x.score for x in w.labels} for w in windows)
    assert first == pytest.approx(second, abs=1e-3)
    assert max(abs(first[name] - third[name]) for name in CLASSES) > 0.01
    assert list(windows[0].to_dict()) == ["start", "end", "labels"]


def test_a_window_that_is_the_whole_video_has_the_labels_of_the_video(predictor, clip):
    (window,) = predictor.timeline(clip, 100.0)
    whole = predictor(clip).labels
    assert [x.label for x in window.labels] == [x.label for x in whole]
    assert [x.score for x in window.labels] == pytest.approx([x.score for x in whole], abs=1e-6)


def test_a_long_file_is_read_window_by_window(predictor, tmp_path, monkeypatch):
    path = write_clip(tmp_path / "long.mp4", frames=600, size=(32, 32))
    parts, most = VideoReader.parts, 0

    def recording(self, indices, size):
        nonlocal most
        most = max(most, len(indices))
        return parts(self, indices, size)

    monkeypatch.setattr(VideoReader, "parts", recording)
    windows = predictor.timeline(path, 1.0, top_k=1)
    first = next(windows)  # the generator has not walked the file
    assert (first.start, first.end) == (0, 1)
    assert len(list(windows)) == 19
    assert most <= 2 * SPEC.num_frames


def test_impossible_windows_are_refused(predictor, clip):
    with pytest.raises(UserError, match="seconds"):
        list(predictor.timeline(clip, 0))


# ---- settings that do not fit ----


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"views": (0, 3)}, "temporal"),
        ({"views": (5, 2)}, "spatial crops"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"device": "tpu"}, "auto, cpu, cuda"),
        ({"dtype": "fp4"}, "auto, fp32, fp16 or bf16"),
        ({"classes": CLASSES[:4]}, "4 class names .* 5 outputs"),
        ({"spec": ClipSpec()}, "4x64x64 .* 16x224x224"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_video(settings, says):
    with pytest.raises(UserError, match=says):
        Predictor(tiny_model(), **{"spec": SPEC, "classes": CLASSES, **settings})


def test_slow_number_formats_are_warned_of(monkeypatch, warnings):
    monkeypatch.setattr("hiera_video.scoring.native_on_cpu", lambda dtype: False)
    Predictor(
        tiny_model(), spec=SPEC, classes=CLASSES, device="cpu", dtype="bf16", warn=warnings.append
    )
    assert len(warnings) == 1
    assert "very slow" in warnings[0]


# ---- loading ----


def test_a_checkpoint_brings_all_that_is_needed(checkpoint, clip, warnings):
    predictor = Predictor.load(weights=checkpoint, views=(2, 3), device="cpu", warn=warnings.append)
    assert predictor.classes == CLASSES
    assert predictor.spec == SPEC
    assert predictor.model_name == NAME
    assert predictor.weights_name == str(checkpoint)
    assert warnings == []
    expected = Predictor(tiny_model(), spec=SPEC, classes=CLASSES, views=(2, 3), device="cpu")
    assert predictor(clip).labels == expected(clip).labels


def test_labels_from_a_file_replace_those_of_the_checkpoint(checkpoint, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("äpfel\nbirnen\nc\nd\ne\n", encoding="utf-8")
    assert Predictor.load(weights=checkpoint, labels=file).classes[:2] == ["äpfel", "birnen"]
    file.write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"names\.txt names 2 classes, the model has 5"):
        Predictor.load(weights=checkpoint, labels=file)
    with pytest.raises(UserError, match="no such file"):
        Predictor.load(weights=checkpoint, labels=tmp_path / "none.txt")


def test_labels_of_a_known_data_set_go_by_its_name(tmp_path):
    path = write_checkpoint(tmp_path / "ssv2.pyth", tiny_model(num_classes=174), classes=None)
    assert Predictor.load(weights=path, labels="ssv2").classes == load_labels("ssv2")
    with pytest.raises(UserError, match="kinetics400 names 400 classes, the model has 174"):
        Predictor.load(weights=path, labels="kinetics400")


def test_a_model_without_names_is_said_to_be_so(tmp_path, warnings):
    path = write_checkpoint(tmp_path / "nameless.pyth", classes=None)
    predictor = Predictor.load(weights=path, warn=warnings.append)
    assert predictor.classes[4] == "class 4"
    assert len(warnings) == 1
    assert "--labels" in warnings[0]


def test_a_bare_state_dict_needs_a_model_and_says_what_it_assumes(tmp_path, warnings):
    path = tmp_path / "bare.pth"
    torch.save({"model_state": tiny_model().state_dict()}, path)
    with pytest.raises(UserError, match="--model"):
        Predictor.load(weights=path)
    predictor = Predictor.load(
        NAME, weights=path, model_kwargs=TINY, labels=None, warn=warnings.append
    )
    assert predictor.spec == ClipSpec(num_frames=4, crop_size=64)
    assert any("4x4 at 30 fps" in line for line in warnings)


def test_another_model_than_the_checkpoints_is_refused(checkpoint):
    with pytest.raises(UserError, match=r"for hiera_base_16x224, not for hiera_large_16x224"):
        Predictor.load("hiera_large_16x224", weights=checkpoint)
    with pytest.raises(UserError, match="did you mean hiera_base_16x224"):
        Predictor.load("hiera_bas_16x224")


def test_a_checkpoint_of_a_multi_label_model_is_scored_by_sigmoid(tmp_path, clip):
    path = write_checkpoint(tmp_path / "multi.pyth", multi_label=True)
    labels = Predictor.load(weights=path, views=(1, 1), device="cpu")(clip).labels
    logits = tiny_model().eval()(load_test_views(clip, SPEC, 1, 1))[0]
    assert labels[0].score == pytest.approx(logits.sigmoid().max().item(), abs=1e-5)
    assert sum(label.score for label in labels) != pytest.approx(1, abs=1e-2)


def test_sampling_given_replaces_the_checkpoints(checkpoint):
    spec = ClipSpec(num_frames=4, sampling_rate=8, crop_size=64)
    assert Predictor.load(weights=checkpoint, spec=spec).spec == spec


def test_weights_of_pretraining_give_no_labels(tmp_path):
    small = {**TINY, "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 1}
    autoencoder = build_model("mae_hiera_base_16x224", **small)
    path = write_checkpoint(tmp_path / "mae.pyth", autoencoder)
    with pytest.raises(WeightsError, match="no trained classifier"):
        Predictor.load(weights=path)
    # An encoder without its head: nothing is random in silence.
    state = {k: v for k, v in tiny_model().state_dict().items() if not k.startswith("head.")}
    path = write_checkpoint(tmp_path / "headless.pyth", model_state=state)
    with pytest.raises(WeightsError, match=r"head\.projection"):
        Predictor.load(weights=path)


def test_the_first_argument_takes_what_weights_takes(checkpoint, clip, tmp_path):
    by_keyword = Predictor.load(weights=checkpoint, views=(2, 1), device="cpu")
    for first in (checkpoint, str(checkpoint)):
        predictor = Predictor.load(first, views="2x1", device=torch.device("cpu"))
        assert predictor.classes == CLASSES
        assert predictor(clip).labels == by_keyword(clip).labels
    assert (
        Predictor.load("camera_motion", dtype=torch.float32).weights_name == "bundled camera_motion"
    )
    # a file that is called as a model is: the file is what lies there
    here = write_checkpoint(tmp_path / NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert Predictor.load(NAME).weights_name == here.name


def test_the_name_of_a_model_stands_for_its_published_weights(monkeypatch):
    asked = []

    def unreachable(url):
        asked.append(url)
        raise WeightsError("no network")

    monkeypatch.setattr(classifier, "fetch", unreachable)
    for arguments in ({"model": NAME}, {"weights": NAME}):
        with pytest.raises(WeightsError, match="no network"):
            Predictor.load(**arguments)
    assert asked == [PUBLISHED[NAME, "mae_k400_ft_k400"].url] * 2


def test_first_arguments_that_name_nothing_say_what_is_near(tmp_path):
    missing = tmp_path / "runs" / "best.pyth"
    with pytest.raises(WeightsError, match=r"no such weights file: .*best\.pyth") as error:
        Predictor.load(str(missing))
    assert len(str(error.value)) < 400  # and not a list of all models
    with pytest.raises(WeightsError, match="did you mean camera_motion"):
        Predictor.load("camera_moton")
    with pytest.raises(WeightsError, match=r"similar names: .*ladder_r3_small_16x224"):
        Predictor.load("ladder_r3_smal_16x224")
    with pytest.raises(UserError, match=r"weights is a Hiera; .*Predictor\(model, spec="):
        Predictor.load(tiny_model())
    with pytest.raises(UserError, match="model is a Hiera; name a registered model"):
        Predictor.load(tiny_model(), str(missing))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": None}, r"model is a NoneType; .*torch\.nn\.Module\. Predictor\.load takes"),
        ({"model": "best.pyth"}, r"model is a str; .*Predictor\.load takes names and files"),
        ({"spec": None}, r"spec is a NoneType; .*hiera_video\.ClipSpec"),
        ({"classes": "apple"}, "classes is a str; .*list of names"),
        ({"classes": None}, "classes is a NoneType"),
        ({"process": "yes"}, r"process is a str; .*decoding_process\(\)"),
        ({"process": True}, "process is a bool"),
        ({"views": 5}, r"views=5 must be .*\(5, 3\)"),
        ({"views": (5, 3, 1)}, "views="),
        ({"views": "5"}, "views '5'; write TEMPORALxSPATIAL"),
        ({"dtype": torch.float64}, r"dtype 'torch\.float64'; choose auto, fp32"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_in_words(settings, says):
    arguments = {"model": tiny_model(), "spec": SPEC, "classes": CLASSES, **settings}
    with pytest.raises(UserError, match=says):
        Predictor(arguments.pop("model"), **arguments)


def test_calls_with_something_else_than_one_path_are_refused_in_words(predictor, clip):
    for call in (predictor, lambda path: list(predictor.timeline(path, 1.0))):
        with pytest.raises(UserError, match="a list is not a path: give one video at a time"):
            call([clip, clip])
    with pytest.raises(UserError, match="top_k=0 must be at least 1"):
        predictor(clip, top_k=0)


def test_a_classifier_is_all_that_its_checkpoint_knows(tmp_path):
    path = write_checkpoint(tmp_path / "tiny.pyth")
    lines = []
    loaded = classifier.load_classifier(
        path, None, None, spec=None, model_kwargs={}, warn=lines.append
    )
    assert (loaded.name, loaded.spec, loaded.classes) == (NAME, SPEC, CLASSES)
    assert (loaded.multi_label, loaded.weights) == (False, str(path))
    assert loaded.model(torch.zeros(1, 3, 4, 64, 64)).shape == (1, 5)
    assert lines == []


# ---- no weights named ----


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network and an empty cache; the package's own model lies in `bundled/` of tmp_path."""

    def unreachable(url):
        raise WeightsError(f"cannot download {url}: no network")

    monkeypatch.setattr(classifier, "fetch", unreachable)
    monkeypatch.setattr(resolve, "BUNDLED", tmp_path / "bundled")
    (tmp_path / "bundled").mkdir()
    return tmp_path / "bundled"


def test_without_a_network_the_bundled_model_stands_in_loudly(offline, clip, warnings):
    write_checkpoint(offline / "camera_motion.pyth")
    predictor = Predictor.load(views=(1, 1), warn=warnings.append)
    (warning,) = warnings
    assert "WARNING" in warning
    assert "apple, bird, cat, dog, eel" in warning
    assert "no network" in warning
    assert all(line.startswith("!!") for line in warning.splitlines())
    assert predictor(clip).weights == "bundled camera_motion"


def test_the_bundled_model_stands_in_for_nothing_that_was_named(offline, tmp_path):
    write_checkpoint(offline / "camera_motion.pyth")
    with pytest.raises(WeightsError, match="no network"):
        Predictor.load(NAME)
    with pytest.raises(WeightsError, match=r"missing\.pyth"):
        Predictor.load(weights=tmp_path / "missing.pyth")
    with pytest.raises(WeightsError):
        Predictor.load(weights="mae_k400_ft_k401")


def test_without_a_bundled_model_the_reason_is_the_error(offline):
    with pytest.raises(WeightsError, match="no network"):
        Predictor.load()


def test_models_without_a_published_classifier_ask_for_weights():
    with pytest.raises(UserError, match="--weights"):
        Predictor.load("mae_hiera_base_16x224")


def test_cached_published_weights_are_taken(tmp_path, monkeypatch, warnings):
    # A stand-in of the published layout in the cache: 400 outputs, no facts of its own.
    row = PUBLISHED[NAME, "mae_k400_ft_k400"]
    cache = tmp_path / "hiera_video"
    cache.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.save({"model_state": tiny_model(num_classes=400).state_dict()}, cache / row.file_name)
    predictor = Predictor.load(model_kwargs=TINY, spec=SPEC, warn=warnings.append)
    assert predictor.classes == load_labels("kinetics400")
    assert predictor.weights_name == f"{NAME}.mae_k400_ft_k400"
    assert "WARNING" not in "".join(warnings)


# ---- finding videos ----


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of empty files: names are what counts here."""
    names = [
        "b.MP4", "a.mkv", "notes.txt", "labels.csv", ".hidden.mp4", "-dash.mp4", "list.m3u8",
        "sub/c ü 视频.webm", "sub/deep/d [1].avi", ".git/e.mp4", "empty/none.txt",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_searched_in_order(folder):
    expected = [
        "-dash.mp4",
        "a.mkv",
        "b.MP4",
        "list.m3u8",
        "sub/c ü 视频.webm",
        "sub/deep/d [1].avi",
    ]
    assert find_videos([str(folder)]) == [str(folder / name) for name in expected]
    assert find_videos(["sub"]) == ["sub/c ü 视频.webm", "sub/deep/d [1].avi"]


def test_files_are_taken_by_any_name_and_once(folder):
    assert find_videos(["notes.txt", "-dash.mp4"]) == ["notes.txt", "-dash.mp4"]
    assert find_videos(["a.mkv", "./a.mkv", str(folder / "a.mkv")]) == ["a.mkv"]
    assert find_videos(["sub/deep/d [1].avi"]) == ["sub/deep/d [1].avi"]


def test_globs_take_what_a_folder_would(folder):
    assert find_videos(["*"])[:3] == ["-dash.mp4", "a.mkv", "b.MP4"]
    assert "notes.txt" not in find_videos(["*"])
    assert find_videos(["**/*.webm"]) == ["sub/c ü 视频.webm"]
    assert find_videos(["s?b"]) == ["sub/c ü 视频.webm", "sub/deep/d [1].avi"]


NOWHERE = ["missing.mp4", "empty", "*.mov", "*.txt", "ftp://x/y.mp4"]


@pytest.mark.parametrize("path", NOWHERE)
def test_nothing_to_label_is_wrong_use(folder, path):
    for find in (expand_paths, find_videos):
        with pytest.raises(UserError) as error:
            find([path])
        assert path in str(error.value)
        if path in ("empty", "*.mov", "*.txt"):
            assert ".mp4" in str(error.value)
    with pytest.raises(UserError, match="none of these 5 paths leads to a video"):
        expand_paths(NOWHERE)
    with pytest.raises(UserError, match=re.escape(path)):
        find_videos(["a.mkv", path])


@pytest.mark.parametrize("path", NOWHERE)
def test_a_path_that_leads_nowhere_is_one_entry_beside_the_others(folder, path):
    named = expand_paths(["a.mkv", path, "sub", path])
    assert [entry.path for entry in named] == [
        "a.mkv", path, "sub/c ü 视频.webm", "sub/deep/d [1].avi",
    ]  # fmt: skip
    assert [bool(entry.error) for entry in named] == [False, True, False, False]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into any folder")
def test_a_folder_that_may_not_be_read_is_said_and_the_others_are_searched(folder):
    (folder / "sub").chmod(0)
    try:
        with pytest.raises(UserError, match="sub"):
            find_videos(["."])
        *files, closed = expand_paths(["."])
        assert len(files) == 4
        assert closed == ("./sub", "cannot look into this folder: Permission denied")
    finally:
        (folder / "sub").chmod(0o755)


# ---- forked processes ----

FORKED = """
import multiprocessing, os, sys, threading
sys.path.insert(0, {tests!r})
import torch
from hiera_video import Predictor
from hiera_video.video.decoding_process import decoding_process
from hiera_video.errors import RunFailed

torch.set_num_threads(4)
settings = dict(weights={weights!r}, device="cpu", views=(2, 1))
predictor = Predictor.load(**settings)

def ranked(path):
    return [str(label) for label in predictor(path).labels]

def loaded_here(path):
    return [str(label) for label in Predictor.load(**settings)(path).labels]

def windows(path):
    return [str(window.labels[0]) for window in predictor.timeline(path, 1.0)]

def in_threads(path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(ranked(path))) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found[0] == found[1] == found[2]
    return found[0]

def guarded(path):
    try:
        predictor.process = process
        return ranked(path)
    except RunFailed as error:
        process.close()  # which must not end the process of the parent
        return str(error)

if __name__ == "__main__":
    video = {video!r}
    torch.randn(1000, 1000) @ torch.randn(1000, 1000)
    mine = ranked(video)
    with decoding_process() as process:
        predictor.process = process
        assert ranked(video) == mine
        predictor.process = None
        with multiprocessing.get_context("fork").Pool(2) as pool:
            for work in (ranked, loaded_here, in_threads):
                assert pool.map_async(work, [video] * 4).get(100) == [mine] * 4, work
            assert len(pool.map_async(windows, [video]).get(100)[0]) == 2
            said = pool.map_async(guarded, [video]).get(100)[0]
            assert "forked from the one whose children read videos" in said, said
        predictor.process = process
        assert ranked(video) == mine
    assert torch.get_num_threads() == 4
    print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_labels_what_its_parent_does(tmp_path):
    """As under gunicorn --preload: PyTorch's threads stay behind, and were waited for for ever."""
    weights = write_checkpoint(tmp_path / "tiny.pyth")
    video = write_clip(tmp_path / "clip.mp4", frames=60)
    script = tmp_path / "script.py"
    tests = os.path.dirname(__file__)
    script.write_text(FORKED.format(tests=tests, weights=str(weights), video=str(video)))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "4"}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    notes = [line for line in done.stderr.splitlines() if "computes on one thread" in line]
    assert 1 <= len(notes) <= 2  # once in each forked process that was given work
