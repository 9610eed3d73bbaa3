"""What is installed, what is pinned, the hub's entry points, and the class names that ship."""

from __future__ import annotations

import email
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

import hiera_video
from hiera_video.data.manifests.layouts import read_class_names
from hiera_video.errors import UserError
from hiera_video.labels import known_labels, load_labels
from hiera_video.models.weights.published import PUBLISHED
from hiera_video.registry import MODEL_REGISTRY

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The folder a wheel was built from, a copy of the files git knows, and the wheel."""
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "-co",
            "--exclude-standard",
            "hiera_video",
            "configs",
            "setup.py",
            "LICENSE",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = tmp_path_factory.mktemp("wheel")
    tree = top / "tree"
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    code = "import sys, setuptools.build_meta as build; build.build_wheel(sys.argv[1])"
    built = subprocess.run(
        [sys.executable, "-c", code, str(top)],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (path,) = top.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield tree, archive


# ---- class names --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "known"),
    [
        (
            "kinetics400",
            400,
            {0: "abseiling", 6: "arm wrestling", 129: "flipping pancake", 363: "training dog"},
        ),
        ("kinetics600", 600, {11: "arm wrestling", 58: "bull fighting", 594: "wrestling"}),
        ("kinetics700", 700, {11: "arm wrestling", 13: "arresting", 699: "zumba"}),
        (
            "ssv2",
            174,
            {
                0: "Approaching something with your camera",
                120: "Putting something, something and something on the table",
                173: "Wiping something off of something",
            },
        ),
        ("imagenet1k", 1000, {0: "tench", 207: "golden retriever", 999: "toilet tissue"}),
    ],
)
def test_class_names_are_whole_and_in_order(name, count, known):
    labels = load_labels(name)
    assert len(labels) == len(set(labels)) == count
    assert all(label and label == label.strip() for label in labels)
    assert {index: labels[index] for index in known} == known
    if name != "imagenet1k":  # alphabetical; Kinetics-600's one odd capital sorts the same
        assert labels == sorted(labels)
    assert read_class_names(name) == labels  # DATA.CLASS_NAMES takes the name as well


def test_they_are_torchvisions_where_it_has_them():
    from torchvision.models import ResNet50_Weights
    from torchvision.models.video import MViT_V2_S_Weights

    kinetics = MViT_V2_S_Weights.KINETICS400_V1.meta["categories"]
    assert load_labels("kinetics400") == kinetics
    assert load_labels("imagenet1k") == ResNet50_Weights.IMAGENET1K_V2.meta["categories"]


def test_published_weights_have_their_class_names():
    for row in PUBLISHED.values():
        if row.classes is not None:
            assert len(load_labels(row.classes)) == row.num_classes


def test_unknown_class_names_are_answered_with_the_known():
    with pytest.raises(UserError, match=r"no class names for 'kinetics'; .*kinetics400"):
        load_labels("kinetics")
    assert known_labels() == ["imagenet1k", "kinetics400", "kinetics600", "kinetics700", "ssv2"]
    readme = (ROOT / "hiera_video" / "labels" / "README.md").read_text(encoding="utf-8")
    for name in known_labels():
        assert f"`{name}.txt`" in readme


# ---- requirements -------------------------------------------------------------------------------


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


LOCKS = ("requirements.lock", "requirements-oldest.lock")


def lock_lines(lock: str) -> list[str]:
    text = (ROOT / lock).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def locked(lock: str, python: str) -> dict[str, str]:
    """Name -> version of a lock for a Python version on x86-64 Linux."""
    chosen = {}
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "extra": "",
    }
    for line in lock_lines(lock):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonical(requirement.name)
            assert name not in chosen, f"{name} is pinned twice for Python {python}"
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            chosen[name] = specifier.version
    return chosen


NO_TEST_NEEDS = {"tensorboard", "wandb", "mlflow-skinny", "trackio", "nncf"}
"""Of extras; tests skip where they are absent."""

RUNTIMES = {"onnxscript", "onnxruntime", "openvino"}
LOOPS = {"accelerate", "lightning"}
NOT_OLD = {"torchcodec", *RUNTIMES, *LOOPS}
"""No release is right and works with the oldest torch (torchcodec), or none was tried with it."""


def asked(wheel) -> list[Requirement]:
    """What the package's metadata asks for, all extras but the trackers', which no test needs."""
    _, archive = wheel
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    texts = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist")
    requirements = [Requirement(text) for text in texts]
    assert len(requirements) > 10
    return [r for r in requirements if canonical(r.name) not in NO_TEST_NEEDS]


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_pins_and_does_nothing_else(lock):
    for line in lock_lines(lock):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+( ; .+)?", line), line


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_has_all_that_the_package_asks_for(lock, python, wheel):
    pins = locked(lock, python)
    for requirement in asked(wheel):
        name = canonical(requirement.name)
        if name in NOT_OLD and lock == "requirements-oldest.lock":
            assert name not in pins
            continue
        assert name in pins, f"{name} is not pinned"
        assert requirement.specifier.contains(pins[name]), f"{name} {pins[name]}"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_the_oldest_lock_is_at_the_lower_ends(python, wheel):
    """What is allowed is tried: no range begins below what the suite runs with."""
    pins = locked("requirements-oldest.lock", python)
    for requirement in asked(wheel):
        (specifier,) = requirement.specifier
        assert specifier.operator in (">=", "=="), requirement
        if canonical(requirement.name) not in NOT_OLD:
            pinned = Version(pins[canonical(requirement.name)])
            assert pinned == Version(specifier.version), requirement
    assert (pins["torch"], pins["torchvision"]) == ("2.8.0", "0.23.0")


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_the_locks_pin_the_same_packages(python):
    new, old = (set(locked(lock, python)) for lock in LOCKS)
    narwhals = {"narwhals"} if python != "3.10" else set()  # the newer scikit-learn asks for it
    runtimes = RUNTIMES | {"flatbuffers", "onnx-ir", "openvino-telemetry"}
    loops = LOOPS | {"lightning-utilities", "psutil", "pytorch-lightning", "torchmetrics"}
    loops |= {"aiohappyeyeballs", "aiohttp", "aiosignal", "frozenlist", "multidict", "propcache"}
    loops |= {"yarl"} | ({"async-timeout"} if python == "3.10" else set())
    assert new - old == {"torchcodec"} | runtimes | narwhals | loops
    assert not old - new


def test_the_lock_is_closed():
    """What the pinned packages need is pinned too, but for what torch pins exactly by itself."""
    installed = metadata.version("torch").partition("+")[0]
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    fitting = [pins for lock in LOCKS if (pins := locked(lock, python))["torch"] == installed]
    if not fitting:
        pytest.skip(f"torch {installed}: not the environment of a lock")
    (pins,) = fitting
    for name in pins:
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed here: not the environment of the lock")
        for text in needs:
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            need = canonical(requirement.name)
            if need.startswith(("nvidia-", "cuda-")) or need == "triton":
                assert name == "torch"
                continue
            assert need in pins, f"{name} needs {need}"


def test_pytorchvideo_and_the_models_to_compare_with_are_in():
    pins = locked("requirements.lock", "3.11")
    assert pins["pytorchvideo"] == "0.1.5"
    assert pins["torch"] == "2.14.1"
    assert {"hiera-transformer", "timm", "transformers", "decord", "torchcodec"} <= set(pins)


# ---- the package itself -------------------------------------------------------------------------


def test_public_names_are_importable_and_named():
    for name in hiera_video.__all__:
        assert getattr(hiera_video, name) is not None
    assert set(hiera_video.__all__) <= set(dir(hiera_video))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hiera_video.nothing  # noqa: B018


def test_importing_the_package_imports_no_torch():
    code = "import sys, hiera_video; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_wheel_carries_every_module_the_class_names_and_the_licence(wheel):
    tree, archive = wheel
    inside = set(archive.namelist())
    files = (p for p in (tree / "hiera_video").rglob("*") if p.is_file())
    assert {p.relative_to(tree).as_posix() for p in files if "__pycache__" not in p.parts} <= inside
    assert any(name.endswith("/LICENSE") for name in inside)
    assert not [name for name in inside if name.startswith(("tests/", "tools/", "demo/"))]


# ---- torch.hub ----------------------------------------------------------------------------------


def test_every_model_has_an_entry_point():
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    hub = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hub)
    public = {n for n in dir(hub) if callable(getattr(hub, n)) and not n.startswith("_")}
    assert public == set(MODEL_REGISTRY.names())
    for name in public:
        assert name in getattr(hub, name).__doc__
    for name in hub.dependencies:
        assert importlib.util.find_spec(name) is not None


def test_torch_hub_loads_from_a_checkout():
    model = torch.hub.load(
        str(ROOT),
        "hiera_tiny_16x224",
        source="local",
        num_classes=3,
        input_size=(4, 64, 64),
        embed_dim=16,
        stages=(1, 1, 1, 1),
    )
    assert model.eval()(torch.zeros(1, 3, 4, 64, 64)).shape == (1, 3)
    with pytest.raises(UserError, match="needs pretrained=True"):
        torch.hub.load(str(ROOT), "hiera_base_224", source="local", checkpoint="mae_in1k")
