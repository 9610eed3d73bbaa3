"""The optional libraries of exported models, imported where they are used and not before."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from hiera_video.errors import UserError, WeightsError

INSTALL = {
    "onnx": "onnx onnxscript onnxruntime",
    "onnxscript": "onnx onnxscript onnxruntime",
    "onnxruntime": "onnx onnxscript onnxruntime",
    "openvino": "openvino onnx onnxscript",
    "nncf": "nncf openvino",
}
"""Library -> what to give to pip."""


def library(name: str, what: str) -> ModuleType:
    """Import one of the libraries.

    what: what it is needed for, for the message: "--format onnx".

    Raises UserError, with the command that installs it, where it is absent or does not load.
    """
    if name in ("openvino", "nncf"):
        _without_telemetry()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == name
        reason = "which is not installed" if absent else f"which does not load ({error})"
        raise _missing(name, what, reason) from None


def require(names: Sequence[str], what: str) -> None:
    """Raise UserError, as `library`, unless all are installed. Imports none of them."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise _missing(name, what, "which is not installed")


def _missing(name: str, what: str, reason: str) -> UserError:
    package = name.partition(".")[0]
    return UserError(f"{what} needs {package}, {reason}; run `pip install {INSTALL[package]}`")


def _without_telemetry() -> None:
    """Keep OpenVINO and NNCF from reporting their use over the network, as they do when imported.

    They do without the package that reports where it cannot be imported.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def unreadable(path: str, error: Exception) -> WeightsError:
    """Return the error for a file that its runtime cannot open."""
    first: Any = str(error).strip().splitlines()[:1] or [type(error).__name__]
    reason = first[0] if len(first[0]) <= 200 else first[0][:197] + "..."
    return WeightsError(f"{path} cannot be opened ({reason}); it is damaged or not complete")


def not_ours(path: str) -> WeightsError:
    """Return the error for a file that does not say what its outputs are."""
    return WeightsError(
        f"{path} does not say which clips it takes and what its outputs are called; export it with "
        "`hiera-video export --weights W --format F --out FILE`"
    )
