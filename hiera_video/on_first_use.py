"""Names of a package whose modules are imported when they are first used.

    __getattr__ = on_first_use(__name__, {"Predictor": "hiera_video.predict"})

A command that needs one of them need not wait for the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def on_first_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package (PEP 562).

    Args:
        package: its `__name__`.
        homes: name -> the module that has it.
    """

    def getattr_of_package(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return getattr_of_package
