"""Where the settings of a run come from: the recipe that it was started with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hiera_video.config.recipes import CHECKOUT, INSTALLED, locate
from hiera_video.config.schema import load_config


class Recipe(NamedTuple):
    """A config file as it stands, without what a command line changes of it."""

    name: str
    """Of a recipe of the package, such as "K400/hiera_b_16x4", or the path of another file."""
    settings: str
    """All settings, as YAML."""


def read_recipe(path: str | Path) -> Recipe:
    """Read a config file, or a recipe by its name. Raises ConfigError, as `load_config` does."""
    place = locate(path).resolve()
    name = str(path)
    for folder in (INSTALLED, CHECKOUT):
        if folder.is_dir() and folder.resolve() in place.parents:
            name = place.relative_to(folder.resolve()).with_suffix("").as_posix()
    return Recipe(name, load_config(path).to_yaml())
