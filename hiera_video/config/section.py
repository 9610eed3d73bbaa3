"""Sections of a config: frozen dataclasses that check their own fields."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass

from hiera_video.config.values import ValueSpec, check_value


@dataclass(frozen=True)
class Section:
    """A group of settings, checked when it is made; subclasses hold the fields.

    Raises ConfigError, which names the key, for a value of another type or out of range.
    """

    prefix: typing.ClassVar[str] = ""
    """What the keys begin with, "SOLVER."; empty at the top level."""

    def __post_init__(self) -> None:
        for name, spec in settings_of(type(self)).items():
            key = f"{self.prefix}{name.upper()}"
            object.__setattr__(self, name, check_value(getattr(self, name), spec, key))
        self.check()

    def check(self) -> None:
        """Check rules between fields; raises ConfigError."""


_SETTINGS: dict[type, dict[str, ValueSpec]] = {}
"""What `settings_of` has read before: annotations are slow to resolve."""


def settings_of(section: type[Section]) -> dict[str, ValueSpec]:
    """Field name -> type and range, for the fields that are settings and not sections."""
    if section not in _SETTINGS:
        hints = typing.get_type_hints(section)
        _SETTINGS[section] = {
            f.name: ValueSpec.of_field(f, hints[f.name])
            for f in dataclasses.fields(section)
            if not dataclasses.is_dataclass(hints[f.name])
        }
    return _SETTINGS[section]


def sections_of(config: type[Section]) -> dict[str, type[Section]]:
    """Field name -> class, for the fields that are sections."""
    hints = typing.get_type_hints(config)
    return {
        f.name: hints[f.name]
        for f in dataclasses.fields(config)
        if dataclasses.is_dataclass(hints[f.name])
    }
