"""Class names of public data sets: one name per line, in index order; README.md has the sources."""

from __future__ import annotations

from importlib import resources

from hiera_video.errors import UserError


def load_labels(name: str) -> list[str]:
    """Read the class names of a data set: `load_labels("kinetics400")[6] == "arm wrestling"`.

    Raises UserError for a data set whose names are not part of the package.
    """
    if name not in known_labels():
        raise UserError(
            f"no class names for {name!r}; there are names for {', '.join(known_labels())}"
        )
    file = resources.files(__name__) / f"{name}.txt"
    return file.read_text(encoding="utf-8").splitlines()


def known_labels() -> list[str]:
    """Names of the data sets that `load_labels` knows."""
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".txt") for name in files if name.endswith(".txt"))
