"""The recipes that come with the package, by name: `K400/hiera_b_16x4` is that file of configs/."""

from __future__ import annotations

import difflib
from pathlib import Path

from hiera_video.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent.parent

INSTALLED = _PACKAGE / "recipes"
"""Where setup.py puts configs/ in a wheel."""

CHECKOUT = _PACKAGE.parent / "configs"


def recipes_folder() -> Path | None:
    """Return the folder of the recipes; None for a copy of the package without them."""
    found = [folder for folder in (INSTALLED, CHECKOUT) if folder.is_dir()]
    return found[0] if found else None


def recipe_names() -> list[str]:
    """Return the names of all recipes, such as "K400/hiera_b_16x4", sorted."""
    folder = recipes_folder()
    if folder is None:
        return []
    paths = (path.relative_to(folder) for path in folder.rglob("*.yaml"))
    return sorted(
        path.with_suffix("").as_posix() for path in paths if not path.parts[0].startswith("_")
    )


def locate(text: str | Path) -> Path:
    """Return the file that is meant by a path or the name of a recipe.

    A file that exists comes first. `.yaml` and a leading `configs/` may be left out or written.
    Raises ConfigError for a word without ending that names neither; a path that is missing is
    returned as it is, for whoever reads it to say so.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return path
    name = path.as_posix().removeprefix("configs/")
    folder, known = recipes_folder(), recipe_names()
    if folder is not None and name.removesuffix(".yaml") in known:
        return folder / f"{name.removesuffix('.yaml')}.yaml"
    if path.suffix or path.exists():
        return path
    raise ConfigError(f"{text}: neither a config file nor the name of a recipe; {_advice(name)}")


def _advice(name: str) -> str:
    """Return names that are spelled like `name`, or end or begin like it."""
    known = recipe_names()
    alike = [known_name for known_name in known if name.lower() in known_name.lower()][:4]
    near = alike or difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    some = f"similar ones: {', '.join(near)}; " if near else ""
    return f"{some}hiera-video train --recipes lists them"


def recipe_table() -> str:
    """Return the name of each recipe, and what the first line of its file says."""
    folder, names = recipes_folder(), recipe_names()
    if folder is None:
        raise ConfigError(
            "this copy of the package has no recipes; a checkout has them in configs/"
        )
    width = max(map(len, names))
    lines = []
    for name in names:
        first = (folder / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
        lines.append(f"{name:{width}}  {first.removeprefix('# ')}")
    return "\n".join(lines)
