"""tools/camera_motion_test.py from its command line, on footage made here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from clips import write_clip

from hiera_video import build_model
from hiera_video.data.synthetic.camera_motion import CLIP_SPEC, LABELS, render_clip
from hiera_video.data.synthetic.mp4 import encode
from hiera_video.data.synthetic.scenes import scene_pyramid

TINY = {
    "input_size": [8, 64, 64],
    "embed_dim": 8,
    "num_heads": 1,
    "stages": [1, 1, 1, 1],
    "num_classes": 9,
}


def checkpoint(path, classes):
    torch.manual_seed(0)
    model = build_model("hiera_tiny_16x224", **{**TINY, "num_classes": len(classes)})
    content = {
        "format": "hiera_video/1",
        "model_state": model.state_dict(),
        "model": {"name": "hiera_tiny_16x224", "kwargs": {**TINY, "num_classes": len(classes)}},
        "classes": list(classes),
        "spec": CLIP_SPEC.to_dict(),
    }
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def run(repository):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, repository / "tools" / "camera_motion_test.py", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=repository,
            timeout=300,
        )

    return run


def test_report_on_synthetic_frozen_and_moving_clips(run, tmp_path):
    write_clip(tmp_path / "hiera_dog.mp4", frames=60, fps=25, size=(128, 96))
    weights = checkpoint(tmp_path / "camera.pyth", LABELS)
    arguments = ["--weights", weights, "--footage", tmp_path, "--synthetic", 18, "--repeats", 1]
    done = run(*arguments, "--json", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    assert "chance 11.1 %" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert [r["name"] for r in report["results"]] == ["synthetic", "frozen", "moving"]
    assert [r["clips"] for r in report["results"]] == [18, 9, 9]
    assert list(report["own_drift"]) == ["hiera_dog.mp4"]
    for result in report["results"]:
        mistakes = sum(result["mistakes"].values())
        assert result["top1"] == pytest.approx(100 * (1 - mistakes / result["clips"]), abs=0.06)
        assert set(result["by_label"]) == set(LABELS)
        if importlib.util.find_spec("cv2"):
            assert 0 <= result["confirmed"] <= result["clips"]
    if importlib.util.find_spec("cv2"):
        # the crops move over footage that stands still: their labels are true
        assert report["results"][1]["confirmed"] >= 8


def test_drift_is_that_of_the_background(repository, tmp_path):
    path = repository / "tools" / "camera_motion_test.py"
    spec = importlib.util.spec_from_file_location("camera_motion_test", path)
    tool = importlib.util.module_from_spec(spec)
    sys.modules["camera_motion_test"] = tool  # where dataclasses look their module up
    spec.loader.exec_module(tool)
    scene = scene_pyramid(3)[0][0].mul(255).to(torch.uint8)
    for speed, drift in ((0, 0.0), (3, 11.7)):  # 3 pixels in 0.1 s: 42 of 360 in 1.4 s
        crops = [scene[:, :360, speed * t : speed * t + 360].clone() for t in range(24)]
        for t, crop in enumerate(crops):  # something in the middle runs the other way
            crop[:, 150:210, 200 - 3 * t : 240 - 3 * t] = 255
        encode(tmp_path / f"{speed}.mp4", torch.stack(crops), fps=10, crf=18)
        assert tool.own_drift(tmp_path / f"{speed}.mp4") == pytest.approx(drift, abs=1.0)


def test_without_footage_the_synthetic_part_still_runs(run, tmp_path):
    weights = checkpoint(tmp_path / "camera.pyth", LABELS)
    done = run("--weights", weights, "--footage", tmp_path, "--synthetic", 9)
    assert done.returncode == 0, done.stderr
    assert "no real footage" in done.stdout


def test_weights_of_something_else_are_refused(run, tmp_path):
    weights = checkpoint(tmp_path / "cats.pyth", ["cat", "dog"])
    done = run("--weights", weights)
    assert done.returncode == 2
    assert "knows 2 classes (cat, dog" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def estimate(repository):
    pytest.importorskip("cv2")
    path = repository / "tools" / "global_motion.py"
    spec = importlib.util.spec_from_file_location("global_motion", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("label", LABELS)
def test_an_estimate_of_the_motion_knows_what_the_camera_does(estimate, label):
    clip = render_clip(label, 5, plain=True)
    frames = clip.permute(0, 2, 3, 1).contiguous().numpy()
    assert estimate.estimated_label(frames) == label
    assert estimate.estimated_label([frames[3]] * 8) == "static"


def test_an_estimate_is_of_what_most_of_the_picture_does(estimate):
    scene = scene_pyramid(3)[0][0].mul(255).to(torch.uint8)
    frames = []
    for t in range(8):  # the scene slides to the left by 7 of 200 pixels, a ball to the right
        picture = scene[:, 100:300, 100 + t : 300 + t].clone()
        picture[:, 60:140, 20 + 5 * t : 80 + 5 * t] = 255
        frames.append(picture.permute(1, 2, 0).contiguous().numpy())
    assert estimate.motion_of(frames) == pytest.approx([-7 / 200, 0, 0, 0], abs=0.004)
    assert estimate.estimated_label(frames) == "pan right"
