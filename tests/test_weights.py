"""The table of public weights, and finding weights by name, file or address."""

import pytest
import torch
from small_models import VIDEO, autoencoder, same, video

from hiera_video import registry
from hiera_video.errors import WeightsError
from hiera_video.models import build_model, list_models
from hiera_video.models.weights import load
from hiera_video.models.weights.file import save_published
from hiera_video.models.weights.load import load_pretrained
from hiera_video.models.weights.published import PUBLISHED, names_for
from hiera_video.models.weights.resolve import resolve


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty cache, and no proxy between a test and its own server."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(load, "_licences_logged", set())
    return tmp_path / "torch_home" / "hiera_video"


# ---- the table ----------------------------------------------------------------------------------

OURS = {key: row for key, row in PUBLISHED.items() if "hiera_" in row.model}


def test_table_says_what_one_must_know_of_video_weights():
    row = PUBLISHED["hiera_base_plus_16x224", "mae_k400_ft_k400"]
    assert row.url == "https://dl.fbaipublicfiles.com/hiera/hiera_base_plus_16x224.pth"
    assert (row.top1, row.num_classes, row.classes) == (85.0, 400, "kinetics400")
    assert (row.spec.num_frames, row.spec.sampling_rate, row.spec.crop_size) == (16, 4, 224)
    assert (row.spec.mean, row.spec.std) == ((0.45,) * 3, (0.225,) * 3)
    assert "CC BY-NC 4.0" in row.licence
    assert "Kinetics-400" in row.trained_on


def test_table_says_what_one_must_know_of_image_weights():
    row = PUBLISHED["hiera_tiny_224", "mae_in1k_ft_in1k"]
    assert row.url == "https://dl.fbaipublicfiles.com/hiera/hiera_tiny_224.pth"
    assert (row.top1, row.num_classes, row.classes) == (82.8, 1000, "imagenet1k")
    assert (row.spec.num_frames, row.spec.mean[0], row.spec.std[2]) == (1, 0.485, 0.225)


def test_accuracies_are_the_published_ones():
    top1 = {row.model: row.top1 for row in OURS.values() if row.top1}
    assert top1 == {
        "hiera_base_16x224": 84.0,
        "hiera_base_plus_16x224": 85.0,
        "hiera_large_16x224": 87.3,
        "hiera_huge_16x224": 87.8,
        "hiera_tiny_224": 82.8,
        "hiera_small_224": 83.8,
        "hiera_base_224": 84.5,
        "hiera_base_plus_224": 85.2,
        "hiera_large_224": 86.1,
        "hiera_huge_224": 86.9,
    }


def test_a_model_without_its_decoder_reads_the_autoencoders_file():
    encoder = PUBLISHED["hiera_large_16x224", "mae_k400"]
    whole = PUBLISHED["mae_hiera_large_16x224", "mae_k400"]
    assert encoder.url == whole.url
    assert encoder.url.endswith("/mae_hiera_large_16x224.pth")
    assert encoder.classes is None
    assert "decoder_num_heads" in whole.note


def test_every_row_is_of_a_registered_model_and_finetuned_is_the_default():
    assert {model for model, _ in PUBLISHED} <= set(list_models())
    assert names_for("hiera_base_16x224") == ["mae_k400_ft_k400", "mae_k400"]
    assert names_for("mae_hiera_base_224") == ["mae_in1k"]
    assert names_for("hiera_tiny_16x224") == []


@pytest.fixture
def reference(monkeypatch):
    """The authors' package, willing to build on the meta device."""
    package = pytest.importorskip("hiera", reason="needs hiera-transformer")
    linspace = torch.linspace
    monkeypatch.setattr(torch, "linspace", lambda *a, **k: linspace(*a, **{**k, "device": "cpu"}))
    return package


@pytest.mark.parametrize("name", sorted({model for model, _ in OURS}))
def test_the_published_state_dict_loads_strictly_at_full_size(name, reference):
    with torch.device("meta"):
        theirs, ours = getattr(reference, name)(), registry.MODEL_REGISTRY.get(name)()
    result = ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    addresses = getattr(reference, name).checkpoints
    assert addresses == {n: row.url for (m, n), row in PUBLISHED.items() if m == name}


# ---- finding ------------------------------------------------------------------------------------


def place(model, row, folder):
    """Put weights where the fetched file of a row would lie."""
    folder.mkdir(parents=True, exist_ok=True)
    return save_published(model, folder / row.file_name)


def test_a_published_name_is_found_in_the_cache_without_network(own_cache):
    row = PUBLISHED["hiera_base_16x224", "mae_k400_ft_k400"]
    path = place(video(400), row, own_cache)
    for name, model in [
        ("mae_k400_ft_k400", "hiera_base_16x224"),
        ("hiera_base_16x224.mae_k400_ft_k400", None),
        (row.url, None),
        (str(path), None),
    ]:
        checkpoint, found = resolve(name, model)
        assert found is row
        assert checkpoint.path == str(path)
        assert checkpoint.model_name == "hiera_base_16x224"
        assert checkpoint.spec == row.spec


def test_a_file_called_like_a_public_one_counts_as_it_only_with_its_classes(tmp_path):
    path = save_published(video(12), tmp_path / "hiera_base_16x224.pth")
    checkpoint, row = resolve(path)
    assert row is None
    assert checkpoint.published is None
    path = save_published(autoencoder(), tmp_path / "mae_hiera_base_16x224.pth")
    assert resolve(path, "mae_hiera_base_16x224")[1].model == "mae_hiera_base_16x224"
    assert resolve(path, "hiera_base_16x224")[1].model == "hiera_base_16x224"


@pytest.mark.parametrize(
    ("given", "model", "expected"),
    [
        ("mae_k400_ft", "hiera_base_16x224", "did you mean .*mae_k400_ft_k400"),
        ("mae_k400_ft", "hiera_base_16x224", "a local file, an https:// address"),
        ("mae_in1k", "hiera_base_16x224", r"did you mean hiera_base_(plus_)?224\.mae_in1k"),
        ("mae_k400", None, r"needs its model's name before it, such as hiera_\w+\.mae_k400"),
        ("hiera_base_16x224.mae_k40", None, r"did you mean hiera_base_16x224\.mae_k400"),
        ("zzz", None, "no published name is near"),
        ("weights/run.pyth", None, "no such weights file: weights/run.pyth"),
        ("run.pth", "hiera_base_16x224", "no such weights file: run.pth"),
        ("ftp://host/a.pth", None, "only https:// and http://"),
        ("file:///etc/passwd", None, "only https:// and http://"),
        ("a" * 5000, None, "unknown weights"),
        ("~nobody_of_this_name/x.pth", None, "no such weights file"),
    ],
)
def test_what_is_no_name_file_or_address_is_answered_with_what_is_allowed(given, model, expected):
    with pytest.raises(WeightsError, match=expected):
        resolve(given, model)


def test_true_means_the_default_of_the_model_and_lists_models_where_there_is_none(own_cache):
    row = PUBLISHED["hiera_base_16x224", "mae_k400_ft_k400"]
    source = video(400)
    place(source, row, own_cache)
    model = video(400)
    report = load_pretrained(model, "hiera_base_16x224", True)
    assert report.source == "hiera_base_16x224.mae_k400_ft_k400"
    assert same(model, source.state_dict())
    with pytest.raises(WeightsError, match=r"no public weights exist for hiera_tiny_16x224.*large"):
        load_pretrained(model, "hiera_tiny_16x224", True)


def test_the_licence_is_printed_once_when_published_weights_load(own_cache, capsys):
    row = PUBLISHED["hiera_base_16x224", "mae_k400_ft_k400"]
    place(video(400), row, own_cache)
    for _ in range(2):
        build_model("hiera_base_16x224", pretrained="mae_k400_ft_k400", **VIDEO)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("CC BY-NC 4.0") == 1
    assert "hiera_base_16x224.mae_k400_ft_k400" in captured.err


def test_other_processes_than_the_first_are_quiet(own_cache, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    place(video(400), PUBLISHED["hiera_base_16x224", "mae_k400_ft_k400"], own_cache)
    build_model("hiera_base_16x224", pretrained=True, num_classes=3, **VIDEO)
    assert capsys.readouterr().err == ""


def test_own_weights_carry_no_licence_line(tmp_path, capsys):
    path = save_published(video(), tmp_path / "mine.pth")
    video(pretrained=path)
    assert capsys.readouterr().err == ""


def test_build_model_does_not_lose_a_trained_head_by_accident(tmp_path, capsys):
    source = video(12)
    path = save_published(source, tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match=r"12 classes .* usual 400.*num_classes=12.*=400"):
        build_model("hiera_base_16x224", pretrained=path, **VIDEO)
    kept = build_model("hiera_base_16x224", pretrained=path, num_classes=12, **VIDEO)
    assert same(kept, source.state_dict())
    build_model("hiera_base_16x224", pretrained=str(path), num_classes=3, **VIDEO)
    assert "head replaced: 12 -> 3 classes, randomly initialised" in capsys.readouterr().err
