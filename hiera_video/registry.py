"""Registries of models, data sets and objectives, by the names that configs and `build_model` use.

fvcore's `Registry`, but a name can be registered only once, and an unknown name is answered with
similar ones. To add your own model, data set or objective, import a registry, decorate a builder,
and name the module with `--import my_module`.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import importlib.util
import inspect
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.registry import Registry as FvcoreRegistry

from hiera_video.errors import UserError


class UnknownNameError(UserError, KeyError):
    """No such name in a registry; the message suggests similar names."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the repr, with quotes


_PACKAGE = __name__.partition(".")[0]


class Registry(FvcoreRegistry):
    """Name -> builder, with the package's own entries always in it.

    Which names a registry knows never depends on what was imported before: the module that
    registers the package's own entries is imported by the first look-up or registration. Until
    then nothing is imported, so `--help` need not wait for torch.

    Args:
        kind: the word for an entry in messages ("model", "data set").
        home: the module whose import registers the package's own entries; None for none.
        rooms: further modules that do so, each in a part of the package that nothing else needs.
            They are imported by the first look-up of a name that `home` does not know, by the first
            list of the names, and before a name from outside the package is registered.
    """

    def __init__(self, kind: str, home: str | None = None, rooms: Sequence[str] = ()) -> None:
        super().__init__(kind)
        self.kind = kind
        self.home = home
        self.rooms = tuple(rooms)

    def register(self, obj: Callable | None = None, *, name: str | None = None) -> Any:
        """Register a builder: a decorator with or without `name`, or a plain call.

        Raises UserError if the name is taken.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, name=name)
        self._do_register(name or obj.__name__, obj)
        return obj

    def get(self, name: str) -> Any:
        """The builder of this name; raises UnknownNameError, which suggests similar names."""
        if name in self:
            return self._obj_map[name]
        raise UnknownNameError(f"unknown {self.kind} {name!r}; {self._advice(str(name))}")

    def names(self, pattern: str = "*") -> list[str]:
        """Sorted names that match a shell pattern, such as "mae_*"; an empty list for none."""
        self._import_all()
        return sorted(fnmatch.filter(self._obj_map, pattern))

    def __contains__(self, name: str) -> bool:
        self._import_home()
        if not super().__contains__(name):
            self._import_all()
        return super().__contains__(name)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self._import_all()
        return super().__iter__()

    def _import_home(self) -> None:
        """Import what most programs look up; nothing happens once it is (being) imported."""
        if self.home is not None:
            importlib.import_module(self.home)

    def _import_all(self) -> None:
        """Import all of the package's own entries; nothing happens once they are."""
        self._import_home()
        for room in self.rooms:
            if room not in sys.modules and importlib.util.find_spec(room.rpartition(".")[0]):
                importlib.import_module(room)

    def _do_register(self, name: str, obj: Any) -> None:
        # A name from outside must not hide one of the package's own, so those come first. They
        # themselves are registered while home is being imported.
        if str(getattr(obj, "__module__", "")).partition(".")[0] != _PACKAGE:
            self._import_all()
        if name in self._obj_map:
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


MODEL_REGISTRY = Registry(
    "model",
    "hiera_video.models",
    [
        "hiera_video.models.ladder.mvit",
        "hiera_video.models.ladder.steps",
        "hiera_video.models.baselines.pytorchvideo",
        "hiera_video.models.baselines.torchvision_mvit",
        "hiera_video.models.baselines.videomae",
        "hiera_video.detection.roi_head",
    ],
)
"""Builders `name(num_classes=..., **kwargs) -> nn.Module`."""

DATASET_REGISTRY = Registry("data set", home="hiera_video.data.manifests.layouts")
"""Readers `name(source) -> Manifest`, for TRAIN.DATASET, TEST.DATASET and DATA.FORMAT."""

OBJECTIVE_REGISTRY = Registry(
    "objective", "hiera_video.engine.objectives", ["hiera_video.detection.objective"]
)
"""What TASK names: classes without arguments that follow `hiera_video.engine.tasks.Objective`."""


def arguments_of(builder: Callable) -> set[str]:
    """Names of the arguments that a builder accepts.

    These are the parameters of its signature. If it takes `**kwargs`, those of the class that it is
    annotated to return (or is) are added, and of the base classes as long as they take `**kwargs`
    too. A class that passes its `**kwargs` to one of its parts names the class of that part as
    `kwargs_of`.
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
    """The class that a builder returns, by its annotation; `object` without one."""
    if isinstance(builder, type):
        return builder
    try:
        built = typing.get_type_hints(builder).get("return")
    except (NameError, TypeError):  # a name that only type checkers import
        built = None
    return built if isinstance(built, type) else object


def import_user_module(name: str) -> None:
    """Import a user's module, so that the models and data sets that it registers exist.

    `name` is the module's name ("my_models", "my_package.models"); it may be in the current folder.
    Raises UserError with the reason if the import fails with any exception.
    """
    if name.endswith(".py") or "/" in name:
        stem = Path(name).stem
        raise UserError(
            f"--import takes a module's name, not a file: {name!r}. "
            f"Write --import {stem} in the folder of {stem}.py, or put that folder on PYTHONPATH"
        )
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # last: a user's file must not hide an installed package
    try:
        importlib.import_module(name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UserError(
            f"cannot import module {name!r}{_place_of(error)}: {reason}. "
            f"Searched the current folder ({folder}) and the installed packages"
        ) from error


def _place_of(error: Exception) -> str:
    """ " (file:line)" of the line that raised, leaving out the import system; or empty."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and Path(frame.filename).name != "registry.py"
    ]
    frames = [frame for frame in frames if "importlib" not in frame.filename]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
