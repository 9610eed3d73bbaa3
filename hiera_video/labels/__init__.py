"""Class names of public data sets, one a line in index order; sources in README.md beside them."""

from __future__ import annotations

from importlib import resources

from hiera_video.errors import UserError


def load_labels(name: str) -> list[str]:
    """Class names by index, e.g. `load_labels("kinetics400")[6] == "arm wrestling"`.

    Raises UserError for a set whose names do not ship with the package.
    """
    folder = resources.files(__name__)
    known = sorted(
        entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt")
    )
    if name not in known:
        raise UserError(f"no class names for {name!r}; there are names for {', '.join(known)}")
    return (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()
