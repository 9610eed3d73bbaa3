"""Names for models, data sets and objectives: those of YAML files, command lines, `build_model`.

fvcore's `Registry`, strict on the way in (a name is taken once) and helpful on the way out (an
unknown name is answered with its neighbours). Your own model, data set or objective joins by
importing a registry, decorating a builder and naming the module with `--import my_module`.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import inspect
import sys
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fvcore.common.registry import Registry as FvcoreRegistry

from hiera_video.errors import UserError


class UnknownNameError(UserError, KeyError):
    """No such name in a registry; the message lists its nearest neighbours."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the repr, quotes and all


class Registry(FvcoreRegistry):
    """Name -> builder. `kind` ("model", "data set") is the word its messages use."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind

    def register(self, obj: Callable | None = None, *, name: str | None = None) -> Any:
        """Decorator, with or without `name`; `register(obj)` works as a plain call too.

        Raises UserError where the name is taken.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, name=name)
        self._do_register(name or obj.__name__, obj)
        return obj

    def get(self, name: str) -> Any:
        """The object of this name; UnknownNameError with near names where there is none."""
        if name in self:
            return self._obj_map[name]
        raise UnknownNameError(f"unknown {self.kind} {name!r}; {self._advice(str(name))}")

    def names(self, pattern: str = "*") -> list[str]:
        """Sorted names that match a shell pattern, such as "mae_*"; maybe none."""
        return sorted(fnmatch.filter(self._obj_map, pattern))

    def _do_register(self, name: str, obj: Any) -> None:
        if name in self:
            owner = getattr(self._obj_map[name], "__module__", "?")
            raise UserError(
                f"{self.kind} name {name!r} is taken by {owner}; "
                f'choose another with register(name="...")'
            )
        self._obj_map[name] = obj

    def _advice(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._obj_map, n=3, cutoff=0.5)
        if near:
            return f"did you mean {' or '.join(near)}?"
        if not self._obj_map:
            return "none is registered yet (--import my_module registers yours)"
        return f"choose one of {', '.join(self.names())}, or register yours with --import my_module"


MODEL_REGISTRY = Registry("model")
"""Builders `name(num_classes=..., **kwargs) -> nn.Module`."""

DATASET_REGISTRY = Registry("data set")
"""What TRAIN.DATASET and TEST.DATASET name."""

OBJECTIVE_REGISTRY = Registry("objective")
"""What TASK names: classes without arguments that follow `hiera_video.engine.tasks.Objective`."""


def arguments_of(builder: Callable) -> set[str]:
    """Names of the arguments that a builder understands.

    Those of its own signature and, where that takes any (`**overrides`), those of the class it is
    annotated to return, or is, and of that class's bases as long as they pass any on. A class
    that hands its `**kwargs` to a part of its own names that part's class as `kwargs_of`.
    """
    parameters = inspect.signature(builder).parameters
    if not _takes_any(parameters):
        return set(parameters)
    names = {name for name, parameter in parameters.items() if parameter.kind not in _PACKED}
    built = _class_of(builder)
    for cls in [*built.__mro__[:-1], *getattr(built, "kwargs_of", object).__mro__[:-1]]:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters
        names |= {name for name, parameter in parameters.items() if parameter.kind not in _PACKED}
        if not _takes_any(parameters):
            break
    return names - {"self"}


_PACKED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _takes_any(parameters: typing.Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _class_of(builder: Callable) -> type:
    """What a builder says it builds; `object` where it does not say."""
    if isinstance(builder, type):
        return builder
    try:
        built = typing.get_type_hints(builder).get("return")
    except (NameError, TypeError):  # a name that is imported for type checkers alone
        built = None
    return built if isinstance(built, type) else object


def import_user_module(name: str) -> None:
    """Import a module of the user's so that the names it registers exist.

    `name` is what an import statement takes ("my_models", "my_package.models"); the current folder
    is searched as well. UserError with the reason where the import fails, whatever it raised.
    """
    if name.endswith(".py") or "/" in name:
        stem = Path(name).stem
        raise UserError(
            f"--import takes a module's name, not a file: {name!r}. "
            f"Write --import {stem} from the folder of {stem}.py, or put that folder on PYTHONPATH"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a file of the user's must not hide an installed package
    try:
        importlib.import_module(name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UserError(
            f"cannot import module {name!r}{_place_of(error)}: {reason}. "
            f"Searched the current folder ({here}) and the installed packages"
        ) from error


def _place_of(error: Exception) -> str:
    """ " (file:line)" of the line at fault, where it is the user's and not the import system's."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and Path(frame.filename).name != "registry.py"
    ]
    frames = [frame for frame in frames if "importlib" not in frame.filename]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
