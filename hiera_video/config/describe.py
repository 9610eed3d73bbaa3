"""Every setting in words, as `hiera-video train --settings` shows it."""

from __future__ import annotations

import ast
import inspect
import itertools
from typing import Any, NamedTuple

from hiera_video.config.keys import keys_of
from hiera_video.config.schema import Config
from hiera_video.config.section import Section, settings_of


class SettingText(NamedTuple):
    """One setting in words."""

    key: str
    default: str
    """As it is written on a command line."""
    allowed: str
    meaning: str


def describe_settings() -> list[SettingText]:
    """Every setting, in the order of the sections; its meaning is the string below its field."""
    defaults = Config()
    sections: list[Section] = [defaults]
    sections += [getattr(defaults, name) for name in keys_of(Config).section_types]
    described = []
    for section in sections:
        meanings = _meanings(type(section))
        described += [
            SettingText(
                key=f"{section.prefix}{name.upper()}",
                default=_as_word(getattr(section, name)),
                allowed=spec.in_words(),
                meaning=meanings.get(name, ""),
            )
            for name, spec in settings_of(type(section)).items()
        ]
    return described


def is_setting(word: str) -> bool:
    """Whether a word of a command line is a key, in upper or lower case."""
    return keys_of(Config).is_setting(word)


def names_a_section(word: str) -> bool:
    """Whether a word begins with a section, as a mistyped key "SOLVER.BASE_RL" does."""
    return keys_of(Config).names_a_section(word)


def _meanings(section: type[Section]) -> dict[str, str]:
    """Field -> the string below it, on one line; empty if the source is not installed."""
    try:
        (declared,) = ast.parse(inspect.getsource(section)).body
    except OSError:
        return {}
    body = declared.body if isinstance(declared, ast.ClassDef) else []
    meanings = {}
    for field, below in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            meanings[field.target.id] = " ".join(str(below.value.value).split())
    return meanings


def _as_word(value: Any) -> str:
    """A value as a command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "''" if value == "" else str(value)
