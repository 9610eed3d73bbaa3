"""What is installed, what is pinned, the hub's entry points, and the class names that ship."""

from __future__ import annotations

import ast
import email
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from clips import write_clip
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.version import Version

import hiera_video
from hiera_video.data.manifests.layouts import read_class_names
from hiera_video.errors import UserError
from hiera_video.labels import known_labels, load_labels
from hiera_video.models.weights.published import PUBLISHED
from hiera_video.registry import MODEL_REGISTRY

ROOT = Path(__file__).resolve().parent.parent


def copy_of_checkout(tree, *names):
    """Copy the files that git knows, of these files and folders alone if any are named."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "-z", "--exclude-standard", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split("\0"):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The folder a wheel was built from, a copy of the files git knows, and the wheel."""
    top = tmp_path_factory.mktemp("wheel")
    tree = copy_of_checkout(top / "tree", "hiera_video", "configs", "setup.py", "LICENSE")
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


NO_TEST_NEEDS = {"tensorboard", "wandb", "mlflow-skinny", "trackio", "nncf", "gcsfs", "adlfs"}
"""Of extras; tests skip where they are absent."""

RUNTIMES = {"onnxscript", "onnxruntime", "openvino"}
SITE = {"zensical", "mkdocstrings-python"}
SITE_NEEDS = {
    *("deepmerge", "ghp-import", "griffelib", "markdown", "mergedeep", "mkdocs", "mkdocs-autorefs"),
    *("mkdocs-get-deps", "mkdocstrings", "platformdirs", "pymdown-extensions", "pyyaml-env-tag"),
    *("tomli", "watchdog"),
}
LOOPS = {"accelerate", "lightning"}
APP = {"gradio"}
APP_NEEDS = {
    *("brotli", "certifi", "fastapi", "gradio-client", "groovy", "hf-gradio", "httpcore", "httpx"),
    *("opentelemetry-api", "orjson", "pandas", "pydub", "python-multipart", "pytz", "safehttpx"),
    *("semantic-version", "starlette", "tomlkit", "uvicorn"),
}
MAPS = {"umap-learn"}
SCALE = {"ray"}
SCALE_NEEDS = {
    "grpcio",
    *("charset-normalizer", "jsonschema", "jsonschema-specifications", "msgpack", "referencing"),
    *("requests", "rpds-py", "urllib3"),
}
REMOTE = {"s3fs", "aiohttp", "moto", "flask", "flask-cors"}
REMOTE_NEEDS = {
    *("aiobotocore", "aioitertools", "blinker", "boto3", "botocore", "cffi", "cryptography"),
    *("itsdangerous", "jmespath", "py-partiql-parser", "pycparser", "responses", "s3transfer"),
    *("werkzeug", "wrapt", "xmltodict"),
}
NOT_OLD = {"torchcodec", *RUNTIMES, *SITE, *LOOPS, *APP, *MAPS, *SCALE, *REMOTE}
"""No release is right and works with the oldest torch (torchcodec), or with the oldest scikit-learn
(umap-learn), or none was tried with it; the site is built once."""


def asked(wheel, python: str) -> list[Requirement]:
    """What the package's metadata asks for with a Python version, all extras but the trackers',
    which no test needs."""
    _, archive = wheel
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    texts = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist")
    requirements = [Requirement(text) for text in texts]
    assert len(requirements) > 10
    # `extra == "docs" and python_version >= "3.11"`: whatever the extra is
    asks = [r for r in requirements if r.marker is None or _is_of(python, str(r.marker))]
    return [r for r in asks if canonical(r.name) not in NO_TEST_NEEDS]


def _is_of(python: str, marker: str) -> bool:
    extras = re.findall(r'extra == "([^"]+)"', marker) or [""]
    here = {"python_version": python, "sys_platform": "linux"}
    return any(Marker(marker).evaluate({**here, "extra": extra}) for extra in extras)


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_pins_and_does_nothing_else(lock):
    for line in lock_lines(lock):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+( ; .+)?", line), line


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_has_all_that_the_package_asks_for(lock, python, wheel):
    pins = locked(lock, python)
    for requirement in asked(wheel, python):
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
    for requirement in asked(wheel, python):
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
    site = SITE | SITE_NEEDS if python != "3.10" else set()
    loops = LOOPS | {"lightning-utilities", "psutil", "pytorch-lightning", "torchmetrics"}
    loops |= {"aiohappyeyeballs", "aiohttp", "aiosignal", "frozenlist", "multidict", "propcache"}
    loops |= {"yarl"} | ({"async-timeout"} if python == "3.10" else set())
    extra = {"torchcodec"} | runtimes | narwhals | site | loops | APP | APP_NEEDS
    extra |= REMOTE | REMOTE_NEEDS | ({"six"} if python != "3.10" else set())
    assert new - old == extra | MAPS | {"pynndescent"} | SCALE | SCALE_NEEDS
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


SCRIPTS = {p.name for folder in ("tools", "demo") for p in (ROOT / folder).glob("*.py")}
OF_A_CHECKOUT = re.compile(
    r"(?<![\w/.])(tools|demo)/|"
    + "|".join(rf"\b{re.escape(n)}" for n in sorted(SCRIPTS) if "_" in n and n != "gpu_check.py")
)
"""What a person with the wheel has not got. Scripts named like modules count with their folder."""

MAY_NAME_SCRIPTS = {
    "hiera_video/commands/__init__.py": "says how scripts and commands belong together",
    "hiera_video/commands/prepare.py": "prints the script's name to who started a script",
}


def texts_of(path):
    """(line, text) of every string of a Python file, in pieces where values stand between."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_no_text_that_ships_names_a_script_of_the_checkout():
    """Messages and help name `hiera-video NAME`, which whoever reads them has."""
    wrong, used = [], set()
    for path in sorted((ROOT / "hiera_video").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for line, text in texts_of(path):
            if OF_A_CHECKOUT.search(text):
                used.add(name)
                if name not in MAY_NAME_SCRIPTS:
                    wrong.append(f"{name}:{line}: {text.strip()[:80]}")
    for path in [*ROOT.glob("configs/**/*.yaml"), ROOT / "hiera_video/bundled/README.md"]:
        if found := OF_A_CHECKOUT.search(path.read_text(encoding="utf-8")):
            wrong.append(f"{path.relative_to(ROOT)}: {found[0]}")
    assert not wrong
    assert used == set(MAY_NAME_SCRIPTS), "entries that nothing needs any more"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("run tools/prepare_data.py", True),
        ("--weights FILE in demo/predict.py", True),
        ("torchrun run_net.py", True),
        ("hiera-video prepare", False),
        ("video/tools/data", False),
        ("export.py writes", False),
    ],
)
def test_the_reader_of_texts_sees_scripts(text, is_one):
    assert bool(OF_A_CHECKOUT.search(text)) == is_one


@pytest.mark.slow
def test_a_wheel_built_and_installed_labels_a_clip_in_any_folder(tmp_path):
    """As a person does it: python -m build, a new environment, and no checkout in sight."""
    pytest.importorskip("build.__main__", reason="needs build")
    tree = copy_of_checkout(tmp_path / "tree")
    clip = write_clip(tmp_path / "clip.mp4", frames=20, fps=10, size=(64, 64))
    away = tmp_path / "away"
    away.mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words, cwd=away):
        done = subprocess.run(
            list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", cwd=tree)
    (path,) = (tmp_path / "dist").glob("*.whl")
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
    assert {"setup.py", "Makefile", "tests/test_package.py", "tools/run_net.py"} <= inside
    # The new environment sees the libraries of this one; nothing is downloaded.
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    install = ("install", "--no-deps", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", "--python", python, *install, path)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    command = python.with_name("hiera-video")
    assert str(tmp_path / "venv") in run(
        python, "-c", "import hiera_video; print(hiera_video.__file__)"
    )
    said = run(command, "predict", clip, "--weights", "camera_motion", "--json")
    (result,) = json.loads(said)
    assert len(result["labels"]) == 5
    assert "hiera-video benchmark model" in run(command, "benchmark", "--help")
    run(command, "benchmark", "growth", "--frames", "--sizes", "--videos", "10", "--repeats", "1")
    assert "K400/hiera_b_16x4" in run(command, "train", "--recipes")
    assert not list(away.iterdir())


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
