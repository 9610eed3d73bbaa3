"""Classes are names: two lists compared, and the rows of every family's head placed by them."""

import re

import pytest
import torch
from small_models import TINY, VIDEO, autoencoder, held, same, untouched, video
from torch import nn

from hiera_video import Predictor
from hiera_video.classes import match_classes
from hiera_video.errors import UserError, WeightsError
from hiera_video.labels import known_labels, load_labels
from hiera_video.models import build_model
from hiera_video.models.baselines.create_hiera import create_hiera
from hiera_video.models.weights.load import load_weights
from hiera_video.models.weights.resolve import resolve

# ---- two lists ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "wanted", "rows"),
    [
        ("a b c", "a b c", (0, 1, 2)),
        ("a b c", "c a b", (2, 0, 1)),
        ("a b c z", "a b c d e", (0, 1, 2, None, None)),
        ("a b", "c d", (None, None)),
        ("riding_a_bike Jump", "jump riding-a-bike", (1, 0)),
        ("Run run", "run RUN", (1, None)),  # RUN may be either
        ("run", "Run RUN", (None, None)),  # either may be run
        ("run", "Run run", (None, 0)),
        ("1 -1", "-1 1", (1, 0)),
        ("1", "-1", (None,)),
        ("x x y", "x y", (None, 2)),  # which x?
        ("x x", "x x", (0, 1)),
        ("caf\u00e9", "cafe\u0301", (0,)),  # as macOS writes a folder's name
        ("", "a", (None,)),
    ],
)
def test_names_are_found_by_name_and_never_guessed(stored, wanted, rows):
    match = match_classes(stored.split(), wanted.split())
    assert match.rows == rows
    assert match.known + match.new == sorted(wanted.split(), key=lambda n: n in match.new)


def test_words_are_compared_whatever_stands_between_them():
    match = match_classes(["riding a bike", "pan left"], ["Pan_Left", "riding_a_bike"])
    assert match.rows == (1, 0)
    assert match.respelled == [("Pan_Left", "pan left"), ("riding_a_bike", "riding a bike")]
    assert "'Pan_Left' is 'pan left'" in match.spelling_note()
    assert match_classes(["a b"], ["ab"]).rows == (None,)


@pytest.mark.parametrize("name", known_labels())
def test_every_public_list_finds_itself_backwards_and_as_folders(name):
    names = load_labels(name)
    places = list(range(len(names)))
    assert list(match_classes(names, names[::-1]).rows) == places[::-1]
    folders = [n.replace(" ", "_") for n in names]
    found = match_classes(names, folders).rows
    wrong = [n for n, row, place in zip(names, found, places, strict=True) if row != place]
    # the two of ImageNet that differ in a capital alone are not told apart by a folder's spelling
    assert len(wrong) <= 2 * (name == "imagenet1k")
    assert all(found[names.index(n)] is None for n in wrong)


# ---- heads of every family ----------------------------------------------------------------------

OLD, NEW = ["a", "b", "c"], ["c", "d", "a", "e"]


def x3d(num_classes):
    small = {"width_factor": 0.5, "head_dim_out": 32}
    return build_model("x3d_xs", num_classes=num_classes, input_size=(4, 32, 32), library=small), (
        4,
        32,
        32,
    )


def slowfast(num_classes):
    model = build_model(
        "slowfast_r50",
        num_classes=num_classes,
        input_size=(8, 32, 32),
        library={"stem_dim_outs": [16, 2]},
    )
    return model, (8, 32, 32)


def videomae(num_classes):
    pytest.importorskip("transformers")
    small = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64,
    }  # fmt: skip
    model = build_model(
        "videomae_base_16x224", num_classes=num_classes, input_size=(4, 32, 32), library=small
    )
    return model, (4, 32, 32)


def hiera(num_classes):
    return video(num_classes), (4, 64, 64)


def mvit(num_classes):
    model = build_model(
        "mvitv2_small_16x224", num_classes=num_classes, input_size=(4, 64, 64), **TINY
    )
    return model, (4, 64, 64)


def torchvision_mvit(num_classes):
    return build_model("torchvision_mvit_v2_s", num_classes=num_classes), (16, 224, 224)


FAMILIES = [
    hiera,
    mvit,
    x3d,
    slowfast,
    videomae,
    pytest.param(torchvision_mvit, marks=pytest.mark.slow),
]


def trained(build, names):
    """A model whose head is no longer what it started as, and its checkpoint."""
    torch.manual_seed(0)
    model, size = build(len(names))
    weight, bias = (model.state_dict()[key] for key in head_of(model))
    with torch.no_grad():
        weight.normal_()
        bias.normal_()
    return model.eval(), held(model, classes=list(names)), torch.randn(1, 3, *size)


def head_of(model):
    names = getattr(model, "key_names", None)
    return names.head if names else ("head.projection.weight", "head.projection.bias")


@pytest.mark.parametrize("build", FAMILIES)
def test_the_scores_of_a_class_follow_its_name(build):
    source, checkpoint, clips = trained(build, OLD)
    model = build(3)[0].eval()
    report = load_weights(model, checkpoint, classes=["c", "a", "b"])
    with torch.no_grad():
        scores = source(clips)
        torch.testing.assert_close(model(clips), scores[:, [2, 0, 1]])
    assert report.missing == []
    assert any("rows placed by name" in note for note in report.notes)
    assert report.classes.rows == (2, 0, 1)


@pytest.mark.parametrize("build", FAMILIES)
def test_known_classes_keep_their_rows_and_new_ones_start_afresh(build):
    source, checkpoint, clips = trained(build, OLD)
    rows = []
    for _ in range(2):  # new rows follow from the generator, as a new head does
        torch.manual_seed(5)
        model = build(4)[0].eval()
        report = load_weights(model, checkpoint, classes=NEW)
        with torch.no_grad():
            scores, expected = model(clips), source(clips)
        torch.testing.assert_close(scores[:, [0, 2]], expected[:, [2, 0]])
        rows.append(model.state_dict()[head_of(model)[0]][[1, 3]].clone())
    assert torch.equal(*rows)
    assert 0 < rows[0].abs().max() < 0.2  # small numbers of its own, not a trained row's
    assert report.notes == [
        "head: 2 of 4 classes placed by name (c, a); 2 new, randomly initialised: d, e; "
        "1 of the checkpoint left out: b"
    ]
    assert (report.classes.new, report.classes.left_out) == (["d", "e"], ["b"])


def test_a_net_of_blocks_takes_the_rows_of_a_hiera_by_name():
    torch.manual_seed(0)
    source = video(3, embed_dim=16, stages=(1, 2, 2, 1))
    nn.init.normal_(source.head.projection.weight)
    net = create_hiera(
        model_num_class=3,
        spatial_size=64,
        temporal_size=4,
        stem_dim_out=16,
        stage_depths=(1, 2, 2, 1),
    )
    load_weights(net, held(source, classes=OLD), classes=["c", "a", "b"])
    assert torch.equal(net.blocks[6].proj.weight, source.head.projection.weight[[2, 0, 1]])


def test_an_equal_number_of_other_classes_is_a_new_head():
    source, checkpoint, _ = trained(hiera, OLD)
    model = video(3)
    report = load_weights(model, checkpoint, classes=["x", "y", "z"])
    (note,) = report.notes
    assert "none of its 3 classes (a, b, c) is one of the 3 here (x, y, z)" in note
    assert report.missing == ["head.projection.bias", "head.projection.weight"]
    assert model.head.projection.weight.abs().max() < 1e-3
    assert torch.equal(model.norm.weight, source.norm.weight)


def test_equal_lists_load_as_they_are_without_a_word():
    source, checkpoint, _ = trained(hiera, OLD)
    for classes in (None, OLD):
        model = video(3)
        assert load_weights(model, checkpoint, classes=classes).notes == []
        assert same(model, source.state_dict())


def test_other_spellings_are_the_same_class_and_said():
    source, checkpoint, _ = trained(hiera, ["pan left", "pan right"])
    model = video(2)
    (note,) = load_weights(model, checkpoint, classes=["Pan_Left", "Pan_Right"]).notes
    assert note.startswith("class names compared regardless of case")
    assert same(model, source.state_dict())


@pytest.mark.parametrize(
    ("stored", "wanted", "says"),
    [
        (None, OLD, r"given.pth has no class names: its 3 outputs are taken in order for a, b, c"),
        (OLD, [], r"the data has no class names: its labels .* 0 = a, 1 = b, 2 = c; if .*wrong"),
        (None, [], r"neither given.pth nor the data has class names"),
    ],
)
def test_without_names_the_order_is_taken_and_said(stored, wanted, says):
    source, checkpoint, _ = trained(hiera, OLD)
    checkpoint.classes = stored
    model = video(3)
    report = load_weights(model, checkpoint, classes=wanted)
    assert same(model, source.state_dict())
    assert len(report.notes) == 1
    assert re.search(says, report.notes[0])
    other = video(4)
    report = load_weights(other, checkpoint, classes=[*OLD, "d"] if wanted else [])
    assert report.notes == ["head replaced: 3 -> 4 classes, randomly initialised"]


def test_names_that_do_not_fit_the_head_change_nothing():
    _, checkpoint, _ = trained(hiera, OLD)
    model = video(3)
    with untouched(model), pytest.raises(WeightsError, match="2 class names for a model with 3"):
        load_weights(model, checkpoint, classes=["a", "b"])
    checkpoint.classes = ["a", "b"]
    with untouched(model), pytest.raises(WeightsError, match="2 class names for 3 outputs"):
        load_weights(model, checkpoint, classes=["a", "b", "c"])
    checkpoint.classes = OLD
    checkpoint.state_dict["head.projection.bias"] = torch.zeros(5)
    with untouched(model), pytest.raises(WeightsError, match=r"bias has shape 5.* 3 outputs"):
        load_weights(model, checkpoint, classes=["c", "a", "b"])
    del checkpoint.state_dict["head.projection.bias"]
    with untouched(model), pytest.raises(WeightsError, match=r"1 missing.*\n.*projection\.bias"):
        load_weights(model, checkpoint, classes=["c", "a", "b"])


def test_names_do_not_matter_to_what_has_no_head():
    source, checkpoint, _ = trained(hiera, OLD)
    model = autoencoder()
    load_weights(model, checkpoint, into_autoencoder=True, classes=["x", "y", "z"])
    assert torch.equal(model.encoder.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    encoder = video(3)
    report = load_weights(encoder, held(autoencoder(), classes=OLD), classes=["c", "a", "b"])
    assert "norm and head keep their initial values" in report.notes[0]
    assert report.classes is None


class Other(nn.Module):
    """A user's model that does not say what its head is called."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.body, self.fc = nn.Linear(4, 4), nn.Linear(4, num_classes)


def test_a_head_of_unknown_name_is_never_permuted_in_silence():
    checkpoint = held(Other(), classes=OLD, model_kwargs={"num_classes": 3})
    load_weights(Other(), checkpoint, classes=OLD)
    model = Other()
    with untouched(model), pytest.raises(WeightsError, match="attribute key_names"):
        load_weights(model, checkpoint, classes=["c", "a", "b"])
    checkpoint.classes = None
    (note,) = load_weights(Other(), checkpoint, classes=OLD).notes
    assert "taken in order for a, b, c" in note


# ---- by name from Python ------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    """A checkpoint file of a run whose classes are a, b and c."""
    source, _, _ = trained(hiera, OLD)
    return write(tmp_path / "best.pyth", source, OLD), source


def write(path, model, classes):
    content = {
        "format": "hiera_video/1",
        "model": {"name": "hiera_base_16x224", "kwargs": {**VIDEO, "num_classes": 3}},
        "model_state": model.state_dict(),
        "classes": classes,
        "spec": {
            "num_frames": 4, "sampling_rate": 2, "target_fps": 10.0, "crop_size": 64,
            "mean": [0.45] * 3, "std": [0.225] * 3, "segments": False,
        },
    }  # fmt: skip
    torch.save(content, path)
    return path


def test_build_model_takes_classes(file, capsys):
    path, source = file
    model = build_model("hiera_base_16x224", path, classes=["b", "c", "a"], **VIDEO)
    rows = source.head.projection.weight[[1, 2, 0]]
    assert torch.equal(model.head.projection.weight, rows)
    assert "rows placed by name" in capsys.readouterr().err
    assert build_model("hiera_base_16x224", classes="kinetics400", **VIDEO).num_classes == 400
    for arguments, says in (
        ({"classes": ["a", "a"]}, "more than once: a"),
        ({"classes": []}, "it is empty"),
        ({"classes": ["a"], "num_classes": 2}, "num_classes=2 and 1 names in classes"),
        ({"classes": "kinetic"}, "no class names for 'kinetic'"),
    ):
        with pytest.raises(UserError, match=says):
            build_model("hiera_base_16x224", **arguments, **VIDEO)


def test_build_model_says_whose_head_it_kept(file, capsys):
    path, source = file
    model = build_model("hiera_base_16x224", path, num_classes=3, **VIDEO)
    assert same(model, source.state_dict())
    assert "head kept: its 3 outputs are a, b, c; classes=[...]" in capsys.readouterr().err


def test_public_weights_know_their_names(tmp_path):
    torch.manual_seed(0)
    source = video(400)
    torch.save({"model_state": source.state_dict()}, tmp_path / "hiera_base_16x224.pth")
    checkpoint, row = resolve(tmp_path / "hiera_base_16x224.pth", "hiera_base_16x224")
    assert row is not None
    names = load_labels("kinetics400")
    assert (checkpoint.classes, checkpoint.classes_guessed) == (names, "")
    folders = sorted((n.replace(" ", "_") for n in names), reverse=True)
    model = video(400)
    load_weights(model, checkpoint, classes=folders)
    place = folders.index("riding_a_bike")
    row = names.index("riding a bike")
    assert torch.equal(model.head.projection.weight[place], source.head.projection.weight[row])


def test_likely_names_count_only_where_all_agree(tmp_path):
    torch.manual_seed(0)
    source, names = video(400), load_labels("kinetics400")
    torch.save({"model_state": source.state_dict()}, tmp_path / "mine.pth")
    checkpoint, _ = resolve(tmp_path / "mine.pth", "hiera_base_16x224")
    assert (checkpoint.classes, checkpoint.classes_guessed) == (names, "kinetics400")
    model = video(400)
    notes = load_weights(model, checkpoint, classes=names[::-1]).notes
    assert "its 400 outputs are read as those of kinetics400" in notes[0]
    assert torch.equal(model.head.projection.bias, source.head.projection.bias.flip(0))
    own = [*names[:399], "my own"]
    (note,) = load_weights(model, checkpoint, classes=own).notes
    assert "has no class names: its 400 outputs are taken in order" in note
    assert torch.equal(model.head.projection.bias, source.head.projection.bias)


def test_a_file_whose_names_are_not_as_many_as_its_outputs_is_refused(tmp_path):
    source, _, _ = trained(hiera, OLD)
    path = write(tmp_path / "x.pyth", source, ["a", "b"])
    with pytest.raises(WeightsError, match=r"x\.pyth has 2 class names for 3 outputs"):
        resolve(path)


# ---- labels of one's own ------------------------------------------------------------------------


def load(path, names, tmp_path):
    file, said = tmp_path / "names.txt", []
    file.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    predictor = Predictor.load(weights=path, labels=file, device="cpu", warn=said.append)
    return predictor.classes, said


def test_labels_translate_names_and_never_move_them(file, tmp_path):
    path, _ = file
    assert load(path, OLD, tmp_path) == (OLD, [])
    classes, (said,) = load(path, ["eins", "zwei", "c"], tmp_path)
    assert classes == ["eins", "zwei", "c"]
    assert "renames 2 of the 3 classes" in said
    assert "a -> eins, b -> zwei" in said
    classes, (said,) = load(path, ["C", "a", "b"], tmp_path)
    assert classes == ["a", "b", "C"]  # the order of the outputs, in the words of the file
    assert "another order; the order of the checkpoint counts" in said
    with pytest.raises(UserError, match=r"calls output 1 'a', which is output 0 of .*best\.pyth"):
        load(path, ["eins", "a", "c"], tmp_path)
