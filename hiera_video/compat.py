"""The few lines that let PyTorchVideo 0.1.5 import beside today's torchvision; nothing else.

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

from hiera_video.errors import UserError

_OLD = "torchvision.transforms.functional_tensor"
_NEW = "torchvision.transforms._functional_tensor"


def ensure_pytorchvideo() -> None:
    """Make `import pytorchvideo.transforms` work; call it before importing from PyTorchVideo.

    Where the plain import works, nothing is touched. Raises UserError, in one sentence, where
    torchvision does not fit torch or PyTorchVideo is not installed.
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
    with _scripting_forgiven():
        try:
            importlib.import_module("pytorchvideo.transforms")
        except ModuleNotFoundError as error:
            if error.name != _OLD:
                raise
            sys.modules[_OLD] = importlib.import_module(_NEW)
            importlib.import_module("pytorchvideo.transforms")


def pytorchvideo_module(name: str) -> types.ModuleType:
    """A module of PyTorchVideo by its full name, imported without a word."""
    with _scripting_forgiven():
        return importlib.import_module(name)


@contextlib.contextmanager
def _scripting_forgiven() -> Iterator[None]:
    """It, and fvcore, script what we do not use, which today's torch frowns upon at every start."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        yield


def ensure_torchvision() -> None:
    """UserError in one sentence where torchvision was built for another torch."""
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
            f"torchvision does not fit the installed torch {_torch()} ({_first_line(error)}): "
            f"install the pair that was released together, e.g. torch 2.14.1 with torchvision "
            f"0.29.1, both for CPU or both for the same CUDA"
        ) from error


def _torch() -> str:
    return importlib.import_module("torch").__version__


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
