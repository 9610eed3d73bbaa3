"""Import a command line of tools/ or demo/ as a module."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from conftest import REPOSITORY


def load_script(path: str) -> ModuleType:
    """Return the module of a script, by its path from the root of the checkout."""
    file = REPOSITORY / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module
