"""Files of weights: read without trust, written whole or not at all."""

import os
import pickle
import random
import sys
import zipfile

import pytest
import torch
from small_models import autoencoder, same, tensors, truncated, video

from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import WeightsError
from hiera_video.models import build_model
from hiera_video.models.weights.file import read_checkpoint, save_published

# ---- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model_state": s, "epoch": 3, "cfg": "MODEL: {}"},
        lambda s: {"state_dict": s, "optimizer": {"lr": 0.1}},
        lambda s: {"model": s, "optimizer": {}},
        lambda s: {"module": s},
        lambda s: {"model_state_dict": s},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {"model_state": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
        lambda s: {"state_dict": {f"module.model.{k}": v for k, v in s.items()}},
        lambda s: {"a._orig_mod.weight": s["a.weight"], "b": s["b"], "epoch": 3},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_layouts_of_other_trainers_are_understood(wrap, zipped, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(wrap(tensors()), path, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path).state_dict
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[key], value) for key, value in tensors().items())


def test_a_prefix_that_only_some_keys_have_is_part_of_their_names(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "x.pth")
    assert set(read_checkpoint(tmp_path / "x.pth").state_dict) == {"module.a", "b"}


def test_facts_of_our_own_trainer_come_along(tmp_path):
    spec = ClipSpec(num_frames=8, sampling_rate=2, crop_size=64)
    content = {
        "format": "hiera_video/1",
        "model_state": tensors(),
        "model": {"name": "hiera_base_16x224", "kwargs": {"input_size": [8, 64, 64]}},
        "classes": ["left", "right"],
        "spec": spec.to_dict(),
        "epoch": 7,
    }
    torch.save(content, tmp_path / "x.pyth")
    checkpoint = read_checkpoint(tmp_path / "x.pyth")
    assert checkpoint.model_name == "hiera_base_16x224"
    assert checkpoint.model_kwargs == {"input_size": [8, 64, 64]}
    assert checkpoint.classes == ["left", "right"]
    assert checkpoint.spec == spec
    assert checkpoint.epoch == 7
    torch.save({**content, "spec": {"frames": 3}}, tmp_path / "x.pyth")
    with pytest.raises(WeightsError, match=r"cannot be read .*frames"):
        read_checkpoint(tmp_path / "x.pyth")
    torch.save({**content, "model": "hiera"}, tmp_path / "x.pyth")
    with pytest.raises(WeightsError, match="notes on model"):
        read_checkpoint(tmp_path / "x.pyth")


def test_safetensors_are_read(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(tensors(), tmp_path / "x.safetensors")
    found = read_checkpoint(tmp_path / "x.safetensors").state_dict
    assert torch.equal(found["a.weight"], tensors()["a.weight"])
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "y.safetensors").write_bytes(whole[:-3])
    with pytest.raises(WeightsError, match="cut short or damaged"):
        read_checkpoint(tmp_path / "y.safetensors")


def test_safetensors_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(WeightsError, match="pip install safetensors"):
        read_checkpoint(tmp_path / "x.safetensors")


class Trap:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class ShellTrap(Trap):
    """Unpickled, it runs a command."""

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


TRAPS = [
    lambda trap, path: torch.save({"model_state": {"a": torch.ones(1), "b": trap}}, path),
    lambda trap, path: torch.save(trap, path),
    lambda trap, path: torch.save({"a": trap}, path, _use_new_zipfile_serialization=False),
    lambda trap, path: path.write_bytes(pickle.dumps({"a": trap}, protocol=2)),
    lambda trap, path: path.write_bytes(pickle.dumps({"a": trap}, protocol=4)),
    lambda trap, path: path.write_bytes(pickle.dumps({"a": trap}, protocol=0)),
]


@pytest.mark.parametrize("kind", [Trap, ShellTrap])
@pytest.mark.parametrize("write", TRAPS)
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(kind, write, tmp_path):
    marker, path = tmp_path / "pwned", tmp_path / "x.pth"
    write(kind(marker), path)
    with pytest.raises(WeightsError, match=r"refused|not a checkpoint") as caught:
        read_checkpoint(path)
    assert not marker.exists()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    # the trap is a live one: without the restricted loader it springs
    try:
        torch.load(path, weights_only=False)
    except Exception:
        pickle.loads(path.read_bytes())
    assert marker.exists()


def test_the_refusal_names_the_code_and_the_way_out(tmp_path):
    torch.save({"model_state": ShellTrap(tmp_path / "pwned")}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"would run code from outside \(\w+\.system\).*re-save"):
        read_checkpoint(tmp_path / "x.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.linear\.Linear.*re-save"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"\xef\xbb\xbf  <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n", "Git LFS pointer"),
        (b"path label\nclip.mp4 3\n", r'not a checkpoint \(it starts with "path label'),
        (b"\x00\x00\x00\x1cftypisom" + bytes(200), "not a checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a checkpoint"),
        (b"\xff" * 7, "not a checkpoint"),
        (b"\x80", "refused|damaged"),
        (b"PK\x03\x04" + bytes(50), "cut short or damaged"),
        (truncated(), "cut short or damaged"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(content, expected, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=expected) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_zip_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(WeightsError, match=r"cut short or damaged|no checkpoint"):
        read_checkpoint(tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "holds no weights .its keys: nothing"),
        ({"epoch": 3, "names": ["a"]}, "holds no weights .its keys: epoch, names"),
        ({"model_state": {}}, "holds no weights"),
        ([torch.ones(1)], "holds a list, not a dict"),
        (torch.ones(3), "holds a Tensor, not a dict"),
        ("weights", "holds a str, not a dict"),
        ({"model_state": {"a": torch.ones(1), "b": "text"}}, "no tensors: b"),
        ({3: torch.ones(1)}, "keys that are no strings"),
        ({"module._orig_mod.a": torch.ones(1), "module.a": torch.ones(1)}, "the same name"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(content, expected, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=expected):
        read_checkpoint(tmp_path / "x.pth")


def test_what_is_no_regular_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"is a folder, not a weights file$"):
        read_checkpoint(tmp_path)
    (tmp_path / "best.pyth").touch()
    with pytest.raises(WeightsError, match=r"is a folder.*it holds best\.pyth: name one"):
        read_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match="no such weights file"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="cannot read"):
        read_checkpoint("a\0b")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(WeightsError, match="not a regular file"):
        read_checkpoint(tmp_path / "pipe")


@pytest.mark.parametrize("zipped", [True, False])
def test_damage_anywhere_is_an_error_of_ours_or_harmless(zipped, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model_state": tensors(), "epoch": 1}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    refused = []
    for seed in range(300):
        chance = random.Random(seed)
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 3, 20])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if seed % 3 == 0:
            damaged = damaged[: chance.randrange(len(damaged))]
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except WeightsError as error:
            refused.append(str(error))
    assert len(refused) > 100  # the damage is real
    assert not any("\n" in text for text in refused)


# ---- writing ------------------------------------------------------------------------------------


def test_saved_weights_are_the_published_layout_and_nothing_else(tmp_path):
    model = autoencoder()
    path = save_published(model, tmp_path / "new" / "x.pth")
    content = torch.load(path, weights_only=True)
    assert list(content) == ["model_state"]
    assert "mask_token" in content["model_state"]
    assert not any(key.startswith("encoder.") for key in content["model_state"])
    assert sorted(os.listdir(path.parent)) == ["x.pth"]


def test_saving_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    save_published(video(), path)
    before = path.read_bytes()

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match=r"cannot write.*No space left"):
        save_published(video(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.pth"]


def test_what_is_saved_is_read_by_the_authors_package(tmp_path):
    reference = pytest.importorskip("hiera", reason="needs hiera-transformer")
    model = build_model("hiera_tiny_224")
    path = save_published(model, tmp_path / "x.pth")
    theirs = reference.hiera_tiny_224()
    theirs.load_state_dict(torch.load(path, weights_only=True)["model_state"], strict=True)
    assert same(theirs, model.state_dict())
