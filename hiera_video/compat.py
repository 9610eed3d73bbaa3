"""Make PyTorchVideo 0.1.5 importable with current versions of torchvision.

PyTorchVideo's last release imports `torchvision.transforms.functional_tensor`, which torchvision
0.17 renamed to `_functional_tensor`.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
import warnings
from collections.abc import Iterator

from hiera_video.errors import UserError, first_line

_OLD = "torchvision.transforms.functional_tensor"
_NEW = "torchvision.transforms._functional_tensor"


def ensure_pytorchvideo() -> None:
    """Make `import pytorchvideo.transforms` work; call it before importing from PyTorchVideo.

    Nothing is changed if the import works by itself. Raises UserError if torchvision does not fit
    torch, or if PyTorchVideo or torchvision is not installed.
    """
    ensure_torchvision()
    try:
        importlib.import_module("pytorchvideo")
    except ModuleNotFoundError as error:
        if error.name != "pytorchvideo":
            raise
        raise UserError(
            "PyTorchVideo is not installed; install it with: pip install pytorchvideo==0.1.5"
        ) from error
    with _without_script_warnings():
        try:
            importlib.import_module("pytorchvideo.transforms")
        except ModuleNotFoundError as error:
            if error.name != _OLD:
                raise
            sys.modules[_OLD] = importlib.import_module(_NEW)
            importlib.import_module("pytorchvideo.transforms")


def pytorchvideo_module(name: str) -> types.ModuleType:
    """Import a module of PyTorchVideo by its full name, without its deprecation warnings."""
    with _without_script_warnings():
        return importlib.import_module(name)


@contextlib.contextmanager
def _without_script_warnings() -> Iterator[None]:
    """Silence warnings of libraries that script functions with torch.jit when they are imported.

    Nothing here calls those functions, and the warnings would appear at every start.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        yield


def ensure_torchvision() -> None:
    """Import torchvision; raises UserError if it is missing or was built for another torch."""
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise UserError(
            f"torchvision is not installed; install the release that belongs to torch {_torch()}"
        ) from error
    except (RuntimeError, ImportError) as error:  # the operator it registers, or a symbol it links
        raise UserError(
            f"torchvision does not fit the installed torch {_torch()} ({first_line(error)}): "
            f"install the pair that was released together, e.g. torch 2.14.1 with torchvision "
            f"0.29.1, both for CPU or both for the same CUDA"
        ) from error


def _torch() -> str:
    return importlib.import_module("torch").__version__
