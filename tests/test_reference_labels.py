"""The demo's labels against the reference model, fed the same frames, cropped by hand."""

import json
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from clips import write_clip
from randomness import redraw
from test_hiera import reference_package

from hiera_video.labels import load_labels
from hiera_video.video.decode import read_frames


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The reference model at random weights, and those weights in the published layout."""
    model = redraw(reference_package().hiera_base_16x224(pretrained=False), seed=5).eval()
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save({"model_state": model.state_dict()}, path)
    return model, path


def middle_clip_by_hand(path):
    """16 frames over 64 at 30 fps from the middle of a 340x256 file, centre crop, normalised."""
    with av.open(str(path)) as container:
        span = 64 * float(container.streams.video[0].average_rate) / 30
        count = sum(1 for _ in container.decode(video=0))
    start = (count - span) // 2
    indices = np.linspace(start, start + span - 1, 16).astype(int)
    frames = read_frames(path, indices, "pyav")
    assert frames.shape == (16, 3, 256, 340)
    clip = frames.transpose(0, 1)[:, :, 16:240, 58:282].float() / 255
    return ((clip - 0.45) / 0.225).unsqueeze(0)


def check(path, reference, repository):
    model, weights = reference
    command = [sys.executable, "demo/predict.py", str(path), "--model", "hiera_base_16x224"]
    command += ["--weights", str(weights), "--views", "1x1", "--decoder", "pyav", "--json"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    with torch.inference_mode():
        theirs = model(middle_clip_by_hand(path))[0]  # its eval mode gives probabilities
    names = load_labels("kinetics400")
    scores = [row["score"] for row in found["labels"]]
    # the label of each score, and no better one: near ties may change places
    named = [theirs[names.index(row["label"])].item() for row in found["labels"]]
    assert scores == pytest.approx(named, abs=1e-4)
    assert scores == pytest.approx(theirs.topk(5).values.tolist(), abs=1e-4)
    assert theirs.max() > 10 * 1e-4


def test_labels_of_a_made_clip(tmp_path, reference, repository):
    path = tmp_path / "clip.mp4"
    write_clip(path, frames=70, fps=30, size=(340, 256))
    check(path, reference, repository)


@pytest.mark.slow
def test_labels_of_a_real_clip(shared_data, reference, repository):
    check(shared_data / "clips/mmaction_demo_arm_wrestling.mp4", reference, repository)
