"""Exported files as modules: what they say about themselves, how they are called, what fails."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from clips import write_clip
from conftest import REPOSITORY

from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import RunFailed, UserError, WeightsError
from hiera_video.runtimes import exported
from hiera_video.runtimes.exported import ExportedModel
from hiera_video.runtimes.facts import KEY, Facts
from hiera_video.runtimes.libraries import library, require
from hiera_video.runtimes.load import check_runtime, exported_kind, open_exported

SPEC = ClipSpec(num_frames=4, sampling_rate=2, crop_size=32, normalize_brightness=True)


def facts(**changes):
    chosen = {
        "kind": "onnx",
        "model": "hiera_tiny_16x224",
        "weights": "best.pyth",
        "classes": ("jump", "näher kommen"),
        "spec": SPEC,
        "clip_shape": (3, 4, 32, 32),
        "licence": "Apache-2.0",
    }
    return Facts(**{**chosen, **changes})


# ---- facts --------------------------------------------------------------------------------------


def test_facts_come_back_as_they_were():
    for stored in (facts(), facts(batch=4, dtype="int8", multi_label=True, calibrated_on="x")):
        assert Facts.from_json(stored.to_json(), "m.onnx") == stored


def test_readers_without_this_package_find_input_and_output():
    stored = json.loads(facts(batch=2).to_json())
    assert stored["input"] == {"name": "clips", "shape": [2, 3, 4, 32, 32], "dtype": "float32"}
    assert stored["output"] == {"name": "logits", "shape": [2, 2], "dtype": "float32"}
    assert stored["classes"] == ["jump", "näher kommen"]
    assert stored["spec"]["mean"] == [0.45, 0.45, 0.45]
    assert json.loads(facts().to_json())["input"]["shape"][0] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "format": "hiera_video/export/2"}, "format hiera_video/export/2, this"),
        (lambda s: {k: v for k, v in s.items() if k != "spec"}, "cannot be read .*export it again"),
        (lambda s: {**s, "batch": 0}, "cannot be read .batch 0 must be"),
        (lambda s: [s], "cannot be read"),
    ],
)
def test_facts_that_were_changed_are_refused(change, message):
    text = json.dumps(change(json.loads(facts().to_json())))
    with pytest.raises(WeightsError, match=rf"m\.onnx.*{message}"):
        Facts.from_json(text, "m.onnx")


# ---- calls --------------------------------------------------------------------------------------


class Recorder:
    """A runtime that returns the first two values of each clip, and notes what it was given."""

    def __init__(self):
        self.sizes = []

    def __call__(self, clips):
        assert clips.dtype == np.float32
        assert clips.flags.c_contiguous
        self.sizes.append(len(clips))
        return clips.reshape(len(clips), -1)[:, :2]


@pytest.mark.parametrize(("batch", "sizes"), [(None, [5]), (2, [2, 2, 2]), (8, [8])])
def test_any_number_of_clips_goes_through_a_fixed_batch(batch, sizes):
    run = Recorder()
    model = ExportedModel(facts(batch=batch), run, "a runtime")
    clips = torch.randn(5, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = model(clips.transpose(3, 4).contiguous().transpose(3, 4))
    assert torch.equal(logits, clips.flatten(1)[:, :2])
    assert run.sizes == sizes
    assert (model.num_classes, model.input_size, model.training) == (2, (4, 32, 32), False)


@pytest.mark.parametrize("shape", [(1, 3, 4, 32, 16), (3, 4, 32, 32), (0, 3, 4, 32, 32)])
def test_clips_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match=r"takes \[B, 3, 4, 32, 32\]"):
        ExportedModel(facts(), Recorder(), "a runtime")(torch.zeros(shape))


def test_a_failure_inside_a_runtime_is_one_line():
    def broken(clips):
        raise ValueError("no kernel\nand a page of details")

    with pytest.raises(RunFailed, match=r"^Fast Runtime cannot run the model: no kernel$"):
        ExportedModel(facts(), broken, "Fast Runtime")(torch.zeros(1, 3, 4, 32, 32))


def test_a_forked_process_is_told_that_it_has_no_threads(monkeypatch):
    model = ExportedModel(facts(), Recorder(), "Fast Runtime")
    parent = os.getpid()
    monkeypatch.setattr(exported.os, "getpid", lambda: parent + 1)
    with pytest.raises(RunFailed, match=r"forked from one that uses Fast Runtime.*spawn"):
        model(torch.zeros(1, 3, 4, 32, 32))


# ---- libraries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "nncf"])
def test_a_missing_library_is_named_with_its_command(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"--runtime x needs {name}.*pip install .*{name}"):
        library(name, "--runtime x")


def test_what_is_asked_for_is_checked_without_an_import(monkeypatch):
    require(["torch"], "this")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="this needs openvino, which is not installed; run `pip"):
        require(["openvino"], "this")


@pytest.mark.parametrize("name", ["openvino", "nncf"])
def test_nothing_is_reported_over_the_network(name):
    """OpenVINO sends an event when it is imported, if the package that sends is there."""
    pytest.importorskip(name, reason=f"needs {name}")
    code = (
        "import sys\n"
        "from hiera_video.runtimes.libraries import library\n"
        f"library({name!r}, 'this')\n"
        "sent = [m for m in sys.modules if m.startswith('openvino_telemetry') and sys.modules[m]]\n"
        "print(sent)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


# ---- files --------------------------------------------------------------------------------------


def test_kinds_of_files(tmp_path):
    (tmp_path / "folder").mkdir()
    assert exported_kind(tmp_path / "folder") is None
    (tmp_path / "folder" / "openvino_model.xml").write_text("<net/>")
    assert exported_kind(tmp_path / "folder") == "openvino"
    assert exported_kind("x/M.ONNX") == "onnx"
    assert exported_kind("m.xml") == "openvino"
    torch.save({"model_state": {"a": torch.zeros(1)}}, tmp_path / "weights.pt")
    assert exported_kind(tmp_path / "weights.pt") is None
    assert exported_kind("camera_motion") is None


def test_an_unknown_runtime_is_refused():
    assert check_runtime("auto") == "auto"
    with pytest.raises(UserError, match="runtime 'tensorrt'; choose auto, torch, onnx, openvino"):
        open_exported("m.onnx", "tensorrt")


def test_files_that_are_no_exports(tmp_path):
    with pytest.raises(WeightsError, match=r"no such file: .*gone\.onnx"):
        open_exported(tmp_path / "gone.onnx")
    clip = write_clip(tmp_path / "clip.mp4", frames=2)
    with pytest.raises(WeightsError, match="is not an exported model"):
        open_exported(clip)


def _onnx_file(path, **metadata):
    """An .onnx file that returns its input, with these metadata."""
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    values = [helper.make_tensor_value_info(n, kind, [1, 2]) for n in ("clips", "logits")]
    node = helper.make_node("Identity", ["clips"], ["logits"])
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(("runtime", "needs"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_stranger_s_onnx_file_is_refused(runtime, needs, tmp_path):
    pytest.importorskip(needs, reason=f"needs {needs}")
    plain = _onnx_file(tmp_path / "plain.onnx")
    with pytest.raises(WeightsError, match=r"does not say which clips.*hiera-video export"):
        open_exported(plain, runtime)
    told = _onnx_file(tmp_path / "told.onnx", **{KEY: facts().to_json()})
    assert open_exported(told, runtime).facts == facts()
    with pytest.raises(UserError, match="runs in onnx or openvino, not in torch"):
        open_exported(told, "torch")


@pytest.mark.parametrize(("runtime", "needs"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_damaged_file_is_refused(runtime, needs, tmp_path):
    pytest.importorskip(needs, reason=f"needs {needs}")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x00not a graph" * 10)
    with pytest.raises(WeightsError, match=r"broken\.onnx cannot be opened .*damaged"):
        open_exported(broken, runtime)
