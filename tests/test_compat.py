"""PyTorchVideo with old and new versions of torchvision, each case in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


STAND_IN = """
import sys, types
def module(name, **names):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(names)
    return sys.modules[name]
"""
"""Stand-ins for torch and torchvision: importing the real ones takes seconds."""


def run(code: str, *paths: Path) -> str:
    """Standard output of `code` in a fresh interpreter that looks in `paths` first."""
    path = os.pathsep.join(str(p) for p in (*paths, ROOT))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "torch.jit" not in done.stderr  # a warning at every start that nobody can act upon
    return done.stdout.strip()


def test_pytorchvideo_works_and_only_the_missing_name_is_added():
    out = run(
        """
        import importlib.util, sys
        import torchvision
        old, new = (f"torchvision.transforms.{n}functional_tensor" for n in ("", "_"))
        had = importlib.util.find_spec(old) is not None
        from hiera_video.compat import ensure_pytorchvideo
        ensure_pytorchvideo()
        ensure_pytorchvideo()
        assert had or sys.modules[old] is sys.modules[new]
        import torch
        from pytorchvideo.transforms import create_video_transform
        from pytorchvideo.transforms.augmentations import AugmentTransform
        clip = torch.full((4, 3, 8, 8), 0.25)
        print(AugmentTransform("Solarize", magnitude=10)(clip).shape)
        """
    )
    assert out == "torch.Size([4, 3, 8, 8])"


def test_a_torchvision_that_has_the_module_is_left_alone():
    """An old torchvision: its own functional_tensor must not be replaced."""
    out = run(
        STAND_IN
        + """
module("torchvision", __path__=[])
module("torchvision.transforms", __path__=[])
mine = module("torchvision.transforms.functional_tensor", rgb_to_grayscale=print)
module("pytorchvideo", __path__=[])
module("pytorchvideo.transforms")
from hiera_video.compat import ensure_pytorchvideo
ensure_pytorchvideo()
print(sys.modules["torchvision.transforms.functional_tensor"] is mine,
      "torchvision.transforms._functional_tensor" in sys.modules)
"""
    )
    assert out == "True False"


def test_torchvision_of_another_torch_is_one_sentence(tmp_path):
    folder = tmp_path / "torchvision"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist\\nand more')\n"
    )
    out = run(
        """
        import torch
        from hiera_video.compat import ensure_pytorchvideo
        from hiera_video.errors import UserError
        try:
            ensure_pytorchvideo()
        except UserError as error:
            print(error)
            print(torch.__version__ in str(error))
        """,
        tmp_path,
    )
    message, names_torch = out.splitlines()
    assert message.startswith("torchvision does not fit the installed torch ")
    assert "operator torchvision::nms does not exist" in message
    assert "and more" not in message
    assert names_torch == "True"


def test_an_undefined_symbol_is_reported_in_the_same_way(tmp_path):
    folder = tmp_path / "torchvision"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('_C.so: undefined symbol: _ZN3c10')\n")
    out = run(
        STAND_IN
        + """
module("torch", __version__="9.9")
from hiera_video.compat import ensure_torchvision
from hiera_video.errors import UserError
try:
    ensure_torchvision()
except UserError as error:
    print(error)
""",
        tmp_path,
    )
    assert out.startswith(
        "torchvision does not fit the installed torch 9.9 (_C.so: undefined symbol"
    )


@pytest.mark.parametrize("package", ["torchvision", "pytorchvideo"])
def test_a_missing_package_is_named(package):
    out = run(
        STAND_IN
        + f"""
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
module("torch", __version__="9.9")
if {package!r} != "torchvision":
    module("torchvision")
from hiera_video.compat import ensure_pytorchvideo
from hiera_video.errors import UserError
try:
    ensure_pytorchvideo()
except UserError as error:
    print(error)
"""
    )
    assert out.lower().startswith(f"{package} is not installed")


def test_a_fault_inside_pytorchvideo_is_not_hidden(tmp_path):
    """Only the one known module is replaced; another missing module stays an error."""
    folder = tmp_path / "pytorchvideo"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "transforms.py").write_text("import a_module_nobody_has\n")
    out = run(
        STAND_IN
        + """
module("torchvision")
from hiera_video.compat import ensure_pytorchvideo
try:
    ensure_pytorchvideo()
except ModuleNotFoundError as error:
    print(error.name)
""",
        tmp_path,
    )
    assert out == "a_module_nobody_has"
