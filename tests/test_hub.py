"""Folders of model hubs: ours, the authors' and transformers'; Hiera inside SAM 2."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from randomness import redraw

from hiera_video import build_model, from_pretrained, push_to_hub, save_pretrained
from hiera_video.classifier import load_classifier
from hiera_video.errors import UserError, WeightsError
from hiera_video.models.hiera import Hiera
from hiera_video.models.weights import hub
from hiera_video.models.weights.file import Checkpoint
from hiera_video.models.weights.hiera_keys import published_keys
from hiera_video.models.weights.key_names import CLASSIFIER, ENCODER, kind_of
from hiera_video.models.weights.load import load_weights
from hiera_video.models.weights.resolve import resolve

safetensors = pytest.importorskip("safetensors")

SMALL = {"embed_dim": 8, "num_heads": 1, "stages": (1, 2, 2, 1)}


def classifier(weights):
    warnings = []
    found = load_classifier(
        None, weights, None, spec=None, model_kwargs={}, warn=lambda line: warnings.append(line)
    )
    return found, warnings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The bundled model as a folder of a hub."""
    return save_pretrained("camera_motion", tmp_path_factory.mktemp("hub") / "camera")


# ---- our folders --------------------------------------------------------------------------------


def test_a_folder_says_all_that_the_checkpoint_says(folder):
    ours, warnings = classifier(folder)
    usual, _ = classifier("camera_motion")
    assert warnings == []
    assert (ours.name, ours.classes, ours.spec) == (usual.name, usual.classes, usual.spec)
    assert ours.multi_label is usual.multi_label
    clip = torch.randn(1, 3, *usual.model.input_size)
    with torch.no_grad():
        assert torch.equal(ours.model.eval()(clip), usual.model.eval()(clip))
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "config.json", "model.safetensors")
    ]


def test_a_folder_gives_a_model_to_train(folder):
    model = from_pretrained(folder)
    assert model.num_classes == len(resolve(folder)[0].classes)
    assert all(parameter.requires_grad for parameter in model.parameters())
    stored = resolve("camera_motion")[0].state_dict
    assert all(torch.equal(t, stored[key].to(t)) for key, t in model.state_dict().items())


def test_the_card_has_what_a_reader_asks_for(folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: hiera_video\npipeline_tag: video-classification\n")
    for text in ("license: unknown", "zoom in", "Predictor.load", "8x2 at 10 fps", "MAX_EPOCH"):
        assert text in card
    with_licence = save_pretrained("camera_motion", folder.parent / "b", licence="Apache-2.0")
    assert "license: apache-2.0\n" in (with_licence / "README.md").read_text()
    assert json.loads((with_licence / "config.json").read_text())["license"] == "Apache-2.0"


def test_weights_of_an_unknown_model_are_not_published(tmp_path):
    torch.save({"model_state": redraw(build_model("x3d_xs")).state_dict()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="does not say which model it is for"):
        save_pretrained(tmp_path / "w.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "but no model.safetensors or pytorch_model"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as that of a Hiera"),
        (lambda f: (f / "config.json").write_text("[]"), "cannot be read as that of a Hiera"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "bert"}'),
            "cannot be read as that of a Hiera",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"<html>"),
            "this is a web page, not weights",
        ),
    ],
)
def test_a_damaged_folder_is_refused(damage, message, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(WeightsError, match=message):
        resolve(copy)


def test_classes_must_be_numbered_without_gaps(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    del config["id2label"]["3"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="id2label has the numbers"):
        resolve(copy)


# ---- the Hugging Face Hub -----------------------------------------------------------------------


@pytest.fixture
def fake(folder, monkeypatch):
    """A hub that has one repository, and remembers what it was asked."""
    asked = SimpleNamespace(downloads=[], uploads={})

    def snapshot_download(name, *, revision, allow_patterns, local_files_only):
        assert not local_files_only
        asked.downloads.append((name, revision, allow_patterns))
        if name != "me/camera":
            raise OSError("404 Client Error\nlong text")
        return str(folder)

    def upload_folder(*, repo_id, folder_path):
        asked.uploads[repo_id] = shutil.copytree(folder_path, folder.parent / "uploaded")

    library = SimpleNamespace(
        snapshot_download=snapshot_download,
        upload_folder=upload_folder,
        create_repo=lambda name, *, private, exist_ok: asked.uploads.setdefault(name),
    )
    monkeypatch.setattr(hub, "library", lambda: library)
    return asked


def test_a_name_of_the_hub_is_downloaded_without_code(fake):
    found, _ = classifier("hf:me/camera@v1.2")
    assert found.weights == "hf:me/camera@v1.2"
    assert found.classes[0] == resolve("camera_motion")[0].classes[0]
    files = ["config.json", "model.safetensors", "pytorch_model.bin"]
    assert fake.downloads == [("me/camera", "v1.2", files)]
    classifier("hf:me/camera")
    assert fake.downloads[-1][1] is None


def test_a_name_that_the_hub_does_not_have(fake):
    with pytest.raises(
        WeightsError, match=r"cannot download hf:me/other: 404 Client Error\. Is the"
    ):
        resolve("hf:me/other")


@pytest.mark.parametrize("name", ["hf:camera", "hf:a/b/c", "hf:", "hf:../../etc/passwd"])
def test_a_name_that_is_none(name, fake):
    with pytest.raises(UserError, match="is no name of a hub"):
        resolve(name)
    assert fake.downloads == []


def test_what_is_pushed_can_be_loaded(fake):
    address = push_to_hub("camera_motion", "me/new", licence="MIT")
    assert address.endswith("/me/new")
    checkpoint, _ = resolve(fake.uploads["me/new"])
    assert checkpoint.classes == resolve("camera_motion")[0].classes
    with pytest.raises(UserError, match="is no name of a hub"):
        push_to_hub("camera_motion", "new")


# ---- the authors' folders, and transformers' ----------------------------------------------------


@pytest.mark.numbers
@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_the_authors_package(tmp_path):
    theirs = pytest.importorskip("hiera")
    model = redraw(theirs.hiera_tiny_224(pretrained=False)).eval()
    model.save_pretrained(tmp_path)
    checkpoint, _ = resolve(tmp_path)
    assert checkpoint.model_name == "hiera_tiny_224"
    assert checkpoint.classes[0] == "tench"
    ours = build_model("hiera_tiny_224", pretrained=tmp_path).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected, found = model(image), ours(image).softmax(-1)  # its head gives probabilities
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_what_the_authors_package_leaves_out_is_its_default():
    video = {"input_size": [16, 224, 224], "num_classes": 400, "sep_pos_embed": True}
    assert hub._facts(video)["model_name"] == "hiera_base_16x224"
    assert hub._facts({})["model_name"] == "hiera_base_224"
    mae = {"decoder_embed_dim": 512, "embed_dim": 96, "stages": [1, 2, 7, 2], "q_pool": 2}
    assert hub._facts(mae)["model_name"] == "mae_hiera_tiny_224"
    longer = hub._facts({"input_size": [32, 224, 224]})
    assert longer["model_kwargs"] == {"input_size": [32, 224, 224]}


@pytest.mark.numbers
@pytest.mark.filterwarnings("ignore")
def test_the_keys_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.HieraConfig(
        embed_dim=8, depths=[1, 2, 2, 1], num_heads=[1, 2, 4, 8], num_labels=5
    )
    theirs = redraw(transformers.HieraForImageClassification(config)).eval()
    ours = Hiera(input_size=(224, 224), num_classes=5, **SMALL).eval()
    state = published_keys(theirs.state_dict())
    assert kind_of(state) == CLASSIFIER
    report = load_weights(ours, Checkpoint(state, path="hf"))
    assert not report.missing
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected, found = theirs(image).logits, ours(image)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_folder_of_transformers(tmp_path):
    config = {
        "model_type": "hiera",
        "embed_dim": 96,
        "depths": [2, 3, 16, 3],
        "image_size": [224, 224],
        "id2label": {"1": "dog", "0": "cat"},
    }
    assert hub._facts(config)["model_name"] == "hiera_base_224"
    assert hub._facts(config)["classes"] == ["cat", "dog"]
    plain = {**config, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    assert hub._facts(plain)["classes"] is None
    larger = {**config, "image_size": [256, 256]}
    assert hub._facts(larger)["model_kwargs"] == {"input_size": [256, 256]}
    with pytest.raises(ValueError, match="no Hiera has embed_dim 97"):
        hub._facts({**config, "embed_dim": 97})


# ---- SAM 2 --------------------------------------------------------------------------------------


def in_metas_names(state):
    """transformers' names of SAM 2's encoder -> those of Meta's files, beside other parts."""
    renamed = {"sam_mask_decoder.iou_token.weight": torch.zeros(1, 8)}
    for key, tensor in state.items():
        for old, new in (
            ("patch_embed.projection.", "patch_embed.proj."),
            (".layer_norm", ".norm"),
            (".mlp.proj_in.", ".mlp.layers.0."),
            (".mlp.proj_out.", ".mlp.layers.1."),
        ):
            key = key.replace(old, new)
        renamed[f"image_encoder.trunk.{key}"] = tensor
    return renamed


@pytest.fixture(scope="module")
def trunk():
    """A small image encoder of SAM 2, all parameters drawn at random."""
    pytest.importorskip("transformers.models.sam2")
    from transformers.models.sam2 import modeling_sam2

    config = modeling_sam2.Sam2HieraDetConfig(
        hidden_size=8,
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        global_attention_blocks=[4],
        image_size=[224, 224],
    )
    return redraw(modeling_sam2.Sam2HieraDetModel(config)).eval()


@pytest.mark.numbers
@pytest.mark.parametrize("layout", ["meta", "transformers"])
def test_the_image_encoder_of_sam2(layout, trunk):
    state = trunk.state_dict()
    if layout == "meta":
        state = in_metas_names(state)
    else:
        state = {f"vision_encoder.backbone.{key}": tensor for key, tensor in state.items()}
    state = published_keys(state)
    assert kind_of(state) == ENCODER
    ours = Hiera(input_size=(224, 224), num_classes=5, **SMALL).eval()
    report = load_weights(ours, Checkpoint(state, path="sam2.pt"))
    assert any("the weights of an encoder" in note for note in report.notes)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = trunk(image).intermediate_hidden_states
        found = ours.stage_features(image)
    for theirs, own in zip(expected, found, strict=True):
        own = own.reshape(theirs.shape)
        assert torch.allclose(own, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_the_encoder_of_sam2_starts_a_video_model(trunk, tmp_path):
    torch.save({"model": in_metas_names(trunk.state_dict())}, tmp_path / "sam2.pt")
    model = build_model(
        "hiera_tiny_16x224", pretrained=tmp_path / "sam2.pt", num_classes=3, **SMALL
    )
    block = "blocks.2.mlp.fc1.weight"
    theirs = trunk.state_dict()["blocks.2.mlp.proj_in.weight"]
    assert torch.equal(model.state_dict()[block], theirs)


def test_other_state_dicts_stay_as_they_are():
    state = Hiera(input_size=(64, 64), num_classes=2, **SMALL).state_dict()
    assert published_keys(state).keys() == state.keys()
    assert kind_of(state) == CLASSIFIER
