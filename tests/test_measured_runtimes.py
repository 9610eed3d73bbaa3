"""The fastest runtime: measured, remembered, taken, and not taken where that says nothing."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from randomness import redraw

from hiera_video import Predictor, __main__, build_model
from hiera_video.classifier import load_classifier
from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import RunFailed, UserError
from hiera_video.export import on_demand, timing
from hiera_video.export.on_demand import kind_of
from hiera_video.export.timing import Job, Way
from hiera_video.runtimes import measured
from hiera_video.runtimes.exported import ExportedModel
from hiera_video.runtimes.facts import Facts
from hiera_video.runtimes.measured import Kind, Record, read_record, store_record

NAME = "hiera_tiny_16x224"
TINY = {"embed_dim": 8, "num_heads": 1, "stages": [1, 1, 1, 1], "input_size": [4, 64, 64]}
SPEC = ClipSpec(num_frames=4, sampling_rate=2, target_fps=10, crop_size=64)
CLASSES = ["apple", "bird", "cat"]
VERSIONS = {"hiera_video": "1", "torch": "2", "onnxruntime": "3", "openvino": "4"}
TIMES = {"torch fp32": 0.42, "onnx fp32": 0.3, "openvino fp32": 0.2, "torch bf16": 0.1}


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """A cache of its own, on a machine whose processor and libraries are known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(measured, "cpu_name", lambda: "a processor")
    monkeypatch.setattr(measured, "installed_versions", lambda: dict(VERSIONS))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small model whose classes depend on the clip, as the trainer writes it."""
    made = redraw(build_model(NAME, num_classes=len(CLASSES), **TINY)).eval()
    torch.nn.init.normal_(
        made.head.projection.weight, std=2.0, generator=torch.Generator().manual_seed(1)
    )
    path = tmp_path_factory.mktemp("weights") / "tiny.pyth"
    content = {
        "format": "hiera_video/1",
        "model_state": made.state_dict(),
        "model": {"name": NAME, "kwargs": TINY},
        "classes": CLASSES,
        "spec": SPEC.to_dict(),
        "epoch": 1,
    }
    torch.save(content, path)
    return path


@pytest.fixture
def converted(monkeypatch):
    """Exports are noted and not made."""
    asked = []

    def convert(found, runtime, dtype, warn):
        asked.append((runtime, dtype))
        facts = Facts(
            kind=runtime,
            model=found.name,
            weights=found.weights,
            classes=tuple(found.classes),
            spec=found.spec,
            clip_shape=found.clip_shape,
            dtype=dtype,
        )
        return replace(found, model=ExportedModel(facts, lambda clips: clips, runtime))

    monkeypatch.setattr(on_demand, "_converted", convert)
    return asked


def remember(checkpoint, **changes):
    """Store a measurement of such weights; returns the file."""
    facts = {"date": "2026-11-27", "versions": dict(VERSIONS), "seconds": dict(TIMES)}
    return store_record(kind_of_file(checkpoint), Record(**{**facts, **changes}))


def kind_of_file(checkpoint):
    return kind_of(load_classifier(None, checkpoint, None, spec=None, model_kwargs={}, warn=print))


def load(checkpoint, **settings):
    """(what computes, the lines about runtimes)."""
    said = []
    predictor = Predictor.load(checkpoint, views=(1, 1), warn=said.append, **settings)
    runtime = getattr(predictor.model, "runtime", "torch")
    return runtime, [line for line in said if line.startswith("runtime: ")]


# ---- what is taken ------------------------------------------------------------------------------


def test_without_a_measurement_it_is_pytorch(checkpoint, converted):
    assert load(checkpoint) == ("torch", [])
    assert not converted


def test_the_fastest_that_was_measured_is_taken_and_said(checkpoint, converted):
    remember(checkpoint)
    said = "runtime: openvino (2.1 times torch on this machine, measured 2026-11-27)"
    assert load(checkpoint) == ("openvino", [said])
    assert load(checkpoint, dtype="float32", device="cpu") == ("openvino", [said])
    assert converted == [("openvino", "fp32")] * 2


def test_a_runtime_that_is_named_is_kept_to(checkpoint, converted):
    remember(checkpoint)
    assert load(checkpoint, runtime="torch") == ("torch", [])
    assert load(checkpoint, runtime="onnx") == ("onnx", [])


def test_number_formats_are_not_mixed(checkpoint, converted):
    """bf16 gives other scores than fp32: it is never taken unasked."""
    remember(checkpoint)
    assert load(checkpoint, dtype="bf16") == ("torch", [])
    remember(checkpoint, seconds={**TIMES, "openvino bf16": 0.05})
    assert load(checkpoint)[0] == "openvino"
    assert load(checkpoint, dtype="bf16")[1] == [
        "runtime: openvino (2.0 times torch on this machine, measured 2026-11-27)"
    ]
    assert converted == [("openvino", "fp32"), ("openvino", "bf16")]


@pytest.mark.parametrize(
    ("seconds", "dtype", "expected"),
    [
        (TIMES, "fp32", ("openvino", pytest.approx(2.1))),
        (TIMES, "bf16", ("torch", 1.0)),
        (TIMES, "fp16", ("torch", 1.0)),
        ({"openvino fp32": 0.1}, "fp32", ("torch", 1.0)),
        ({"torch fp32": 1.0, "onnx fp32": 0.95}, "fp32", ("torch", 1.0)),
        ({"torch fp32": 1.0, "onnx fp32": 0.8}, "fp32", ("onnx", 1.25)),
        ({"torch fp32": 1.0, "onnx fp32": 2.0}, "fp32", ("torch", 1.0)),
    ],
)
def test_another_runtime_must_be_clearly_faster(seconds, dtype, expected):
    assert Record("2026-11-27", VERSIONS, seconds).fastest(dtype) == expected


# ---- what is not taken --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hiera_video", "torch", "openvino"])
def test_a_measurement_of_other_versions_is_not_used(checkpoint, converted, name):
    remember(checkpoint, versions={**VERSIONS, name: "0.9"})
    runtime, (line,) = load(checkpoint)
    assert runtime == "torch"
    assert line.startswith("runtime: torch; openvino (2.1 times torch on this machine, measured 20")
    assert f"{name} 0.9 then, {VERSIONS[name]} now; `hiera-video doctor --measure`" in line
    assert not converted


def test_the_version_of_a_library_that_is_not_taken_does_not_matter(checkpoint, converted):
    remember(checkpoint, versions={**VERSIONS, "onnxruntime": "0.9"})
    assert load(checkpoint)[0] == "openvino"


def test_a_library_that_is_gone_is_said(checkpoint, converted, monkeypatch):
    remember(checkpoint)
    left = {name: version for name, version in VERSIONS.items() if name != "openvino"}
    monkeypatch.setattr(measured, "installed_versions", lambda: left)
    runtime, (line,) = load(checkpoint)
    assert runtime == "torch"
    assert "openvino 4 then, missing now" in line


@pytest.mark.parametrize("error", [UserError("--format openvino needs it"), RunFailed("no parity")])
def test_what_cannot_be_exported_runs_in_pytorch(checkpoint, monkeypatch, error):
    def fail(*_):
        raise error

    remember(checkpoint)
    monkeypatch.setattr(on_demand, "_converted", fail)
    runtime, (line,) = load(checkpoint)
    assert runtime == "torch"
    assert line.startswith("runtime: torch, not openvino (2.1 times torch on this machine")
    assert line.endswith(f": {error}")


def test_another_machine_or_kind_was_not_measured(checkpoint, converted, monkeypatch):
    kind = kind_of_file(checkpoint)
    remember(checkpoint)
    assert read_record(kind) is not None
    for other in (
        replace(kind, model="hiera_base_16x224"),
        replace(kind, clip_shape=(3, 16, 64, 64)),
        replace(kind, parameters=kind.parameters + 1),
        replace(kind, threads=kind.threads + 1),
    ):
        assert read_record(other) is None
    monkeypatch.setattr(measured, "cpu_name", lambda: "another processor")
    assert load(checkpoint) == ("torch", [])
    assert not converted


def test_the_number_of_classes_is_no_other_kind(checkpoint):
    kinds = set()
    for classes in (2, 7):
        model = build_model(NAME, num_classes=classes, **TINY)
        found = load_classifier(None, checkpoint, None, spec=None, model_kwargs={}, warn=print)
        kinds.add(kind_of(replace(found, model=model)))
    assert len(kinds) == 1


def test_a_gpu_keeps_to_pytorch(checkpoint, converted, monkeypatch):
    remember(checkpoint)
    monkeypatch.setattr(on_demand, "choose_device", lambda name: torch.device("cuda"))
    assert load(checkpoint) == ("torch", [])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "{",
        lambda text: "[1, 2]",
        lambda text: text.replace("0.42", '"fast"'),
        lambda text: text.replace("0.42", "-1"),
        lambda text: text.replace('"seconds"', '"second"'),
        lambda text: json.dumps(dict.fromkeys(json.loads(text), "openvino")),
        lambda text: json.dumps(
            {key: {**r, "seconds": [1]} for key, r in json.loads(text).items()}
        ),
        lambda text: json.dumps({key: {**r, "versions": 1} for key, r in json.loads(text).items()}),
    ],
)
def test_a_damaged_file_is_no_measurement(checkpoint, converted, spoil):
    path = remember(checkpoint)
    path.write_text(spoil(path.read_text()))
    assert load(checkpoint) == ("torch", [])
    remember(checkpoint)
    assert load(checkpoint)[0] == "openvino", "it can be measured again"


def test_measurements_of_other_kinds_stay(checkpoint):
    other = Kind("x", (3, 4, 8, 8), 1, 1)
    record = Record("2026-11-27", VERSIONS, {"torch fp32": 1.0})
    store_record(other, record)
    remember(checkpoint)
    assert read_record(other) == record


# ---- measuring ----------------------------------------------------------------------------------


def test_measuring_compares_and_remembers(checkpoint, monkeypatch):
    """In processes of their own. bf16 is emulated where the processor has none."""
    ways = [Way("torch", "fp32"), Way("torch", "bf16"), Way("torch", "int3")]
    monkeypatch.setattr(timing, "available", lambda: (ways, ["no openvino"]))
    monkeypatch.setattr(timing, "installed_versions", lambda: dict(VERSIONS))
    monkeypatch.setattr(timing, "ROUNDS", 2)
    said = []
    assert timing.measure_runtimes(str(checkpoint), said.append) == 0
    assert [len(way.seconds) for way in ways] == [2, 2, 0]
    assert ways[1].parity.clips == timing.CLIPS
    assert ways[2].failed.startswith("failed: ")
    record = read_record(kind_of_file(checkpoint))
    assert record.seconds["torch fp32"] == ways[0].median
    assert record.versions == VERSIONS
    table = "\n".join(said)
    assert "torch     int3   failed: " in table
    assert f" of {timing.CLIPS}\n" in table
    assert "no openvino\n--runtime auto takes torch in fp32" in table
    assert said[-1].endswith("hiera_video/runtimes.json")


def test_what_is_not_the_model_is_not_remembered(checkpoint, monkeypatch):
    def measure(ways, job, say):
        for way, seconds in zip(ways, (0.4, 0.1), strict=True):
            way.seconds = [seconds]
        ways[1].failed = "the relative difference is above 0.0001"

    monkeypatch.setattr(timing, "_measure", measure)
    monkeypatch.setattr(
        timing, "available", lambda: ([Way("torch", "fp32"), Way("onnx", "fp32")], [])
    )
    said = []
    assert timing.measure_runtimes(str(checkpoint), said.append) == 0
    assert read_record(kind_of_file(checkpoint)).seconds == {"torch fp32": 0.4}
    assert any("onnx      fp32   the relative difference" in line for line in said)


@pytest.mark.parametrize(("load", "said"), [(1.2, False), (7.5, True)])
def test_a_busy_machine_is_said(checkpoint, monkeypatch, load, said):
    monkeypatch.setattr(timing.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(timing, "_measure", lambda ways, job, say: None)
    way = Way("torch", "fp32", seconds=[0.4])
    monkeypatch.setattr(timing, "available", lambda: ([way], []))
    lines = []
    assert timing.measure_runtimes(str(checkpoint), lines.append) == 0
    notes = [line for line in lines if line.startswith("note: other work keeps 6.5 of ")]
    assert bool(notes) == said


def test_without_pytorch_to_compare_with_nothing_is_remembered(checkpoint, monkeypatch):
    monkeypatch.setattr(timing, "available", lambda: ([Way("torch", "int3")], []))
    assert timing.measure_runtimes(str(checkpoint), print) == 1
    assert read_record(kind_of_file(checkpoint)) is None


def test_a_process_that_says_nothing_is_ended(monkeypatch, checkpoint):
    monkeypatch.setattr(timing, "PATIENCE", 0.01)
    job = Job(str(checkpoint), "clips.npy", 1)
    with (
        pytest.raises(RunFailed, match=r"failed: no answer in 0.01 s"),
        timing._started(Way("torch", "fp32"), job, print) as runner,
    ):
        runner.answer()


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(timing, "installed_version", lambda name: None)
    monkeypatch.setattr(timing, "native_on_cpu", lambda dtype: False)
    ways, lines = timing.available()
    assert [way.name for way in ways] == ["torch fp32"]
    assert [line.partition(":")[0] for line in lines] == [
        "no bf16 in this processor",
        "no onnxruntime",
        "no openvino",
    ]
    monkeypatch.setattr(timing, "installed_version", lambda name: "1")
    monkeypatch.setattr(timing, "native_on_cpu", lambda dtype: True)
    assert [(way.runtime, way.dtype) for way in timing.available()[0]] == list(timing.WAYS)


# ---- the command --------------------------------------------------------------------------------


def test_exported_files_and_stray_options_are_refused(capsys):
    for words, said in (
        (["--measure", "--weights", "m.onnx"], "error: --weights m.onnx is exported already"),
        (["--weights", "best.pyth"], "--weights is for --measure; add it"),
        (["--measure", "--weights", "no_such.pyth"], "no_such.pyth"),
    ):
        with pytest.raises(SystemExit) as end:
            __main__.main(["doctor", *words])
        assert end.value.code == 2
        assert said in capsys.readouterr().err


def test_the_doctor_itself_imports_the_standard_library_alone():
    code = (
        "import sys, hiera_video.__main__, hiera_video.doctor\n"
        "print([m for m in ('torch', 'numpy', 'av', 'yaml', 'tqdm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
