"""A model becomes a file of another runtime, and the file is the model: or there is no file."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from clips import write_clip
from randomness import redraw, relative_error

from hiera_video import Predictor, build_model
from hiera_video.classifier import Classifier
from hiera_video.clip_spec import ClipSpec
from hiera_video.commands import export as command
from hiera_video.errors import RunFailed, UserError
from hiera_video.export import export as exporting
from hiera_video.export import formats, on_demand
from hiera_video.export.clips import CALIBRATED_FROM, COMPARED_FROM, generated_clips, video_clips
from hiera_video.export.export import ExportSettings, check_out, export
from hiera_video.export.formats import FORMATS
from hiera_video.export.parity import compare, pieces
from hiera_video.runtimes.load import open_exported
from hiera_video.runtimes.programs import program_facts

NAME = "hiera_tiny_16x224"
TINY = {"embed_dim": 8, "num_heads": 1, "stages": [1, 1, 1, 1], "input_size": [4, 64, 64]}
SPEC = ClipSpec(num_frames=4, sampling_rate=2, target_fps=10, crop_size=64)
CLASSES = ["apple", "bird", "cat", "dog", "eel"]

NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "torch_export": (),
    "torchscript": (),
}
OUT = {"onnx": "m.onnx", "openvino": "m_ov", "torch_export": "m.pt2", "torchscript": "m.pt"}


def require_libraries(form, *more):
    for name in (*NEEDS[form], *more):
        pytest.importorskip(name, reason=f"--format {form} needs {name}")


def model():
    """A small model whose classes depend on the clip; a fresh head's hardly do."""
    made = redraw(build_model(NAME, num_classes=5, **TINY)).eval()
    torch.nn.init.normal_(
        made.head.projection.weight, std=2.0, generator=torch.Generator().manual_seed(1)
    )
    return made


def classifier(**changes):
    facts = {"name": NAME, "weights": "tiny.pyth", "spec": SPEC, "classes": CLASSES}
    return Classifier(**{"model": model(), **facts, **changes})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """As the trainer writes it."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pyth"
    content = {
        "format": "hiera_video/1",
        "model_state": model().state_dict(),
        "model": {"name": NAME, "kwargs": TINY},
        "classes": CLASSES,
        "spec": SPEC.to_dict(),
        "epoch": 1,
    }
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """Format -> the file, written by the command once for all tests."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def path(form):
        require_libraries(form)
        if form not in made:
            words = ["--weights", checkpoint, "--format", form, "--out", folder / OUT[form]]
            assert command.main([*map(str, words), "--clips", "4"]) == 0
            made[form] = folder / OUT[form]
        return made[form]

    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(write_clip(tmp_path_factory.mktemp("video") / "clip.mp4", frames=30, fps=10))


# ---- the files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_gives_the_logits_of_the_model(form, exported):
    opened = open_exported(exported(form), FORMATS[form].runtime)
    clips = generated_clips(SPEC, 3, first_seed=77)
    with torch.no_grad():
        expected = model()(clips)
    assert relative_error(opened(clips), expected) < 1e-4
    assert relative_error(opened(clips[1:2]), expected[1:2]) < 1e-4  # any batch


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_says_what_it_is(form, exported):
    facts = open_exported(exported(form), FORMATS[form].runtime).facts
    assert (facts.kind, facts.model, facts.weights) == (form, NAME, "tiny.pyth")
    assert facts.classes == tuple(CLASSES)
    assert facts.spec == SPEC
    assert (facts.input_shape, facts.dtype) == ((None, 3, 4, 64, 64), "fp32")


def test_other_programs_read_the_onnx_file(exported):
    import onnx

    graph = onnx.load(str(exported("onnx")))
    onnx.checker.check_model(graph)
    assert [value.name for value in graph.graph.input] == ["clips"]
    assert [value.name for value in graph.graph.output] == ["logits"]
    stored = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(stored["hiera_video"])["classes"] == CLASSES


def test_weights_too_large_for_one_onnx_file_lie_beside_it(tmp_path, monkeypatch):
    require_libraries("onnx")
    monkeypatch.setattr(formats, "LARGEST_ONNX", 1000)
    settings = ExportSettings("onnx", str(tmp_path / "m.onnx"), dtype="fp16", clips=2)
    done = export(classifier(), settings, print)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert done.size == sum(path.stat().st_size for path in tmp_path.iterdir())
    with torch.no_grad():
        expected = model()(generated_clips(SPEC, 2, 5))
    found = open_exported(done.path)(generated_clips(SPEC, 2, 5))
    assert 0 < relative_error(found, expected) < 0.02  # rounded to fp16


def test_the_openvino_folder_has_what_others_look_for(exported):
    names = sorted(path.name for path in exported("openvino").iterdir())
    assert names == ["openvino_model.bin", "openvino_model.xml"]


def test_an_image_model_and_a_fixed_batch(tmp_path):
    made = redraw(build_model("hiera_tiny_224", num_classes=5, **{**TINY, "input_size": [64, 64]}))
    torch.nn.init.normal_(made.head.projection.weight, std=2.0)
    image = classifier(model=made, spec=dataclasses.replace(SPEC, num_frames=1))
    settings = ExportSettings("torchscript", str(tmp_path / "image.pt"), batch=2, clips=3)
    done = export(image, settings, print)
    assert done.facts.input_shape == (2, 3, 64, 64)
    assert done.size == (tmp_path / "image.pt").stat().st_size
    clips = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = made(clips)
    assert relative_error(open_exported(done.path, "torch")(clips), expected) < 1e-4


def test_an_openvino_file_by_its_own_name(tmp_path):
    require_libraries("openvino")
    settings = ExportSettings("openvino", str(tmp_path / "x.xml"), dtype="bf16", batch=1, clips=2)
    done = export(classifier(licence="CC0"), settings, print)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.xml"]
    opened = open_exported(done.path)
    assert (opened.facts.licence, opened.facts.dtype) == ("CC0", "bf16")
    assert opened(generated_clips(SPEC, 2, 0)).shape == (2, 5)


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_int8(form, tmp_path, clip):
    """Smaller numbers, hence other logits, but the same order of classes on nearly all clips."""
    require_libraries(form, *(["nncf"] if form == "openvino" else []))
    said = []
    settings = ExportSettings(form, str(tmp_path / OUT[form]), dtype="int8", calibrate=[clip])
    done = export(classifier(), settings, said.append)
    assert done.parity.agreement >= 0.9
    assert done.parity.largest > 1e-4, "nothing was rounded"
    assert done.facts.calibrated_on == "1 clips of given videos"
    assert not [line for line in said if "generated" in line]
    assert open_exported(done.path).facts == done.facts


# ---- parity -------------------------------------------------------------------------------------


def test_what_parity_compares():
    expected = np.array([[1.0, 2.0, -4.0], [3.0, 0.0, 0.0]], np.float32)
    found = np.array([[1.0, 2.5, -4.0], [0.0, 1.0, 0.0]], np.float32)
    parity = compare(expected, found)
    assert (parity.clips, parity.largest, parity.magnitude) == (2, 3.0, 4.0)
    assert (parity.spread, parity.agreement, parity.classes_seen) == (4.0, 0.5, 2)
    assert parity.relative == 0.75
    assert "relative 7.5e-01" in parity.in_words()
    assert "agrees for 1 of 2" in parity.in_words()


@pytest.mark.parametrize(
    ("change", "dtype", "reason"),
    [
        ({}, "fp32", None),
        ({"largest": 2e-4}, "fp32", "relative difference is above 0.0001"),
        ({"largest": 2e-4}, "bf16", None),
        ({"largest": float("nan")}, "int8", "not finite"),
        ({"spread": 1e-6, "largest": 1e-7}, "fp32", "is the model trained"),
        ({"spread": 0.0, "largest": 0.0}, "fp32", "is the model trained"),
        ({"agreement": 0.89}, "int8", "agrees for 89% of the clips, 90% are required"),
    ],
)
def test_what_parity_requires(change, dtype, reason):
    same = compare(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
    failure = dataclasses.replace(same, **change).failure(dtype)
    assert (failure is None) if reason is None else (reason in failure)


def test_both_sizes_of_a_call_are_tried():
    assert pieces(1) == [slice(0, 1)]
    assert pieces(8) == [slice(0, 1), slice(1, 5), slice(5, 8)]


def test_a_file_that_is_not_the_model_is_not_written(tmp_path, monkeypatch):
    """A writer that loses one bias: the old file stays, and no other."""
    (tmp_path / "m.pt").write_text("the old one")
    form = FORMATS["torchscript"]

    def forgetful(made, facts, file, calibration):
        with torch.no_grad():
            made.head.projection.bias[0] += 0.01
            form.write(made, facts, file, calibration)
            made.head.projection.bias[0] -= 0.01

    monkeypatch.setitem(FORMATS, "torchscript", dataclasses.replace(form, write=forgetful))
    settings = ExportSettings("torchscript", str(tmp_path / "m.pt"), clips=2)
    said = []
    with pytest.raises(RunFailed, match=r"parity failed: the relative difference .*not written"):
        export(classifier(), settings, said.append)
    assert "largest difference 1.0e-02" in said[0]
    assert os.listdir(tmp_path) == ["m.pt"]
    assert (tmp_path / "m.pt").read_text() == "the old one"


def test_a_file_that_does_not_run_is_not_written(tmp_path, monkeypatch):
    def broken(made, facts, file, calibration):
        file.write_bytes(b"not a program")

    form = dataclasses.replace(FORMATS["torchscript"], write=broken)
    monkeypatch.setitem(FORMATS, "torchscript", form)
    settings = ExportSettings("torchscript", str(tmp_path / "m.pt"), clips=2)
    with pytest.raises(RunFailed, match=r"the exported file does not run: .*not an exported model"):
        export(classifier(), settings, print)
    assert not os.listdir(tmp_path)


def test_an_exporter_that_fails_is_one_line(tmp_path, monkeypatch):
    def failing(made, facts, file, calibration):
        raise NotImplementedError("\nno such operator\nand a page of text")

    form = dataclasses.replace(FORMATS["torchscript"], write=failing)
    monkeypatch.setitem(FORMATS, "torchscript", form)
    settings = ExportSettings("torchscript", str(tmp_path / "m.pt"), clips=2)
    with pytest.raises(
        RunFailed,
        match=r"^torchscript cannot take this model: NotImplementedError: no such operator$",
    ):
        export(classifier(), settings, print)


# ---- clips --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "side"), [(1, 40), (4, 33), (8, 64)])
def test_generated_clips_fit_the_model(frames, side):
    spec = dataclasses.replace(SPEC, num_frames=frames, crop_size=side)
    clips = generated_clips(spec, 3, COMPARED_FROM)
    assert clips.shape == (3, 3, frames, side, side)
    assert torch.equal(clips, generated_clips(spec, 3, COMPARED_FROM))
    assert not torch.equal(clips[0], clips[1])
    assert 0.3 < clips.std() < 3
    other = generated_clips(spec, 1, CALIBRATED_FROM)
    assert not torch.equal(clips[:1], other), "int8 is compared on what it was measured on"


def test_videos_to_calibrate_on(clip, tmp_path):
    (tmp_path / "broken.mp4").write_text("not a video")
    said = []
    clips = video_clips([clip, str(tmp_path)], SPEC, 32, said.append)
    assert clips.shape == (1, 3, 4, 64, 64)
    assert len(said) == 1
    assert "broken.mp4" in said[0]
    with pytest.raises(UserError, match="no video could be read"):
        video_clips([str(tmp_path)], SPEC, 32, said.append)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "tflite"}, "--format 'tflite'; choose onnx, openvino, torch_export"),
        ({"dtype": "int4"}, "--dtype 'int4'; choose fp32, fp16, bf16, int8"),
        ({"dtype": "int8"}, "torchscript has no int8.*onnx and openvino"),
        ({"format": "onnx", "dtype": "bf16"}, "no bf16 for CPUs; --format openvino has"),
        ({"batch": 0}, "--batch 0; choose dynamic, or a number from 1"),
        ({"clips": 1}, "--clips 1; at least 2"),
        ({"calibrate": ["x.mp4"]}, "--calibrate is for --dtype int8"),
        ({"format": "openvino", "out": "m.onnx"}, r"name a folder or a file X\.xml"),
    ],
)
def test_settings_that_are_not_possible(given, message):
    with pytest.raises(UserError, match=message):
        ExportSettings(**{"format": "torchscript", "out": "m.pt", **given})


def test_a_missing_library_is_found_before_the_work(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs onnx, which is not installed; run `pip install"):
        ExportSettings("onnx", "m.onnx")


@pytest.mark.parametrize("out", ["gone/m.pt", "folder"])
def test_an_output_that_cannot_be_written_is_found_before_the_work(out, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"--out .*(no folder|is a folder)"):
        check_out(ExportSettings("torchscript", str(tmp_path / out)))


def test_an_exported_file_is_not_exported_again(exported, tmp_path):
    words = ["--weights", exported("torchscript"), "--format", "torchscript"]
    with pytest.raises(UserError, match="is exported already"):
        command.main([*map(str, words), "--out", str(tmp_path / "again.pt")])
    with pytest.raises(UserError, match="--batch 'many'; choose dynamic"):
        command.main([*map(str, words), "--out", str(tmp_path / "x.pt"), "--batch", "many"])


# ---- labelling with it --------------------------------------------------------------------------


def scores(predictor, clip):
    return {label.label: label.score for label in predictor(clip).labels}


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_gives_the_labels_of_the_checkpoint(form, exported, checkpoint, clip):
    runtime = "torch" if FORMATS[form].runtime == "torch" else "auto"
    theirs = Predictor.load(weights=exported(form), runtime=runtime, views=(2, 1))
    ours = Predictor.load(checkpoint, views=(2, 1), device="cpu")
    assert scores(theirs, clip) == pytest.approx(scores(ours, clip), abs=1e-5)
    assert theirs.weights_name == str(exported(form))
    assert (theirs.model_name, theirs.spec, theirs.classes) == (NAME, SPEC, CLASSES)
    assert theirs.device.type == "cpu"


def test_an_onnx_file_runs_in_openvino(exported, checkpoint, clip):
    require_libraries("openvino")
    theirs = Predictor.load(exported("onnx"), runtime="openvino", views=(1, 1))
    ours = Predictor.load(checkpoint, views=(1, 1), device="cpu")
    assert theirs.model.runtime == "OpenVINO"
    assert scores(theirs, clip) == pytest.approx(scores(ours, clip), abs=1e-5)


INTERRUPTED = """
import gc, os, signal, sys, time
from hiera_video.runtimes.load import open_exported
first = open_exported(sys.argv[1], "auto")
second = open_exported(sys.argv[1], "auto")
del first
gc.collect()
del second
gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_ctrl_c_after_two_opened_files(form, exported):
    """OpenVINO changes the stack of signal handlers; it used to leave one that was gone."""
    command = [sys.executable, "-c", INTERRUPTED, str(exported(form))]
    assert subprocess.run(command, timeout=120).returncode == 130


def test_a_program_is_opened_only_on_request(exported):
    with pytest.raises(UserError, match=r"opening it may run what it holds.*--runtime torch"):
        Predictor.load(weights=exported("torchscript"))
    assert program_facts(str(exported("torchscript"))).classes == tuple(CLASSES)


def test_names_are_translated_and_other_settings_refused(exported, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("Apfel\nVogel\nKatze\nHund\nAal\n")
    file, said = exported("torchscript"), []
    load = {"weights": file, "runtime": "torch"}
    renamed = Predictor.load(labels=names, warn=said.append, **load)
    assert renamed.classes[4] == "Aal"
    assert "renames 5 of the 5 classes" in said[0]
    with pytest.raises(UserError, match=r"is hiera_tiny_16x224, not x3d_xs; drop --model"):
        Predictor.load("x3d_xs", **load)
    with pytest.raises(UserError, match="was exported in fp32; leave dtype out"):
        Predictor.load(dtype="bf16", **load)
    with pytest.raises(UserError, match=r"clips of 4x64x64.*the sampling makes 8x64x64"):
        Predictor.load(spec=dataclasses.replace(SPEC, num_frames=8), **load)


def test_weights_are_exported_once_for_another_runtime(checkpoint, clip, tmp_path, monkeypatch):
    require_libraries("openvino")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    said = []
    load = {"runtime": "openvino", "views": (1, 1), "warn": said.append}
    first = Predictor.load(checkpoint, **load)
    assert "exporting" in said[0]
    assert "parity in openvino, fp32" in said[1]
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "export", None)  # not called again
        again = Predictor.load(checkpoint, **load)
    assert len(said) == 2
    assert scores(again, clip) == scores(first, clip)
    assert scores(first, clip) == pytest.approx(
        scores(Predictor.load(checkpoint, views=(1, 1), device="cpu"), clip), abs=1e-5
    )


def test_other_weights_are_another_file_in_the_cache():
    one = on_demand._fingerprint(classifier())
    assert on_demand._fingerprint(classifier()) == one
    other = classifier()
    with torch.no_grad():
        other.model.norm.bias[0] += 1e-6
    assert on_demand._fingerprint(other) != one
    assert on_demand._fingerprint(classifier(classes=CLASSES[::-1])) != one


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runtime": "tensorrt"}, "runtime 'tensorrt'; choose auto, torch, onnx, openvino"),
        ({"runtime": "onnx", "dtype": "bf16"}, "no bf16 for CPUs"),
    ],
)
def test_a_runtime_that_is_not_possible(given, message, checkpoint):
    with pytest.raises(UserError, match=message):
        Predictor.load(checkpoint, **given)


def test_another_runtime_on_a_gpu_is_refused(checkpoint):
    with pytest.raises(UserError, match="exported models run on the CPU here"):
        on_demand.load_in_runtime(
            "onnx", (checkpoint, None, None), {"device": "cuda"}, lambda: None, print
        )
