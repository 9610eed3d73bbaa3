"""Types and ranges of setting values: how a field declares them, and how a value is checked.

This module does not know which settings exist.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hiera_video.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Allowed:
    """What a setting allows besides its type; bounds hold for every element of a list."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str = ""
    """Regular expression that a text must match as a whole."""
    example: str = ""
    """A text that matches `pattern`, for error messages."""
    spelled: Mapping[str, Any] = field(default_factory=dict)
    """Words for a value, in lower case: other spellings of choices (those of a truth value are
    "true" and "false"), or of numbers."""

    def admits(self, value: Any) -> bool:
        """Whether one value of the right type is allowed."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
            and (not self.choices or value in self.choices)
            and (not self.pattern or re.fullmatch(self.pattern, value) is not None)
        )


# ---- how a field of a section is declared -------------------------------------------------------


def setting(default: T) -> T:
    """A field that takes every value of its type."""
    return _field(default, Allowed())


def number(
    default: T,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    spelled: Mapping[str, float] | None = None,
) -> T:
    """A field for a number, or a list of numbers, within bounds; some may be `spelled` as words."""
    return _field(default, Allowed(at_least, above, at_most, below, spelled=spelled or {}))


def choice(default: str, choices: tuple[str, ...], spelled: Mapping[str, str] | None = None) -> str:
    """A field for one of several words, some of which may be `spelled` otherwise."""
    return _field(default, Allowed(choices=choices, spelled=spelled or {}))


def matching(default: str, pattern: str, *, example: str) -> str:
    """A field for text that matches a regular expression; errors show the example."""
    return _field(default, Allowed(pattern=pattern, example=example))


def _field(default: T, allowed: Allowed) -> T:
    return field(default=default, metadata={"allowed": allowed})


# ---- checking -----------------------------------------------------------------------------------

_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


@dataclass(frozen=True)
class ValueSpec:
    """Type and range of one setting."""

    hint: Any
    """int, float, bool, str, a tuple of one of these, or dict[str, Any]."""
    optional: bool
    """Whether None is allowed as well."""
    allowed: Allowed

    @classmethod
    def of_field(cls, declared: dataclasses.Field[Any], hint: Any) -> ValueSpec:
        """Read a dataclass field; `hint` is its resolved annotation."""
        optional = isinstance(hint, types.UnionType)
        return cls(
            hint=typing.get_args(hint)[0] if optional else hint,
            optional=optional,
            allowed=declared.metadata.get("allowed", Allowed()),
        )

    @property
    def is_mapping(self) -> bool:
        """Whether values are mappings with names of their own."""
        return typing.get_origin(self.hint) is dict

    @property
    def is_list(self) -> bool:
        """Whether values are lists, which a Config holds as tuples."""
        return typing.get_origin(self.hint) is tuple

    @property
    def kind(self) -> type:
        """Type of the value, or of each element of a list."""
        return typing.get_args(self.hint)[0] if self.is_list else self.hint

    @property
    def length(self) -> int | None:
        """Number of elements of a list; None for any number."""
        kinds = typing.get_args(self.hint)
        return None if kinds[-1] is Ellipsis else len(kinds)

    def in_words(self) -> str:
        """What is allowed, such as "a whole number, at least 1"."""
        if self.is_mapping:
            return "a mapping {name: value, ...} of argument names"
        text = self._one_in_words()
        if self.is_list:
            count = "" if self.length is None else f"{self.length} values, "
            text = f"a list of {count}each {text}"
        return text + (", or None" if self.optional else "")

    def _one_in_words(self) -> str:
        allowed = self.allowed
        if allowed.choices:
            text = f"one of {', '.join(allowed.choices)}"
            same = [f"{other} is {word}" for other, word in allowed.spelled.items()]
            text += f" ({', '.join(same)})" if same else ""
        elif allowed.pattern:
            text = f"empty or like {allowed.example}"
        else:
            text = _WORDS[self.kind]
        bounds = (
            ("at least", allowed.at_least),
            ("above", allowed.above),
            ("at most", allowed.at_most),
            ("below", allowed.below),
        )
        limits = [f"{word} {_bound(bound)}" for word, bound in bounds if bound is not None]
        text += f", {' and '.join(limits)}" if limits else ""
        words = "" if allowed.choices else ", or ".join(allowed.spelled)
        return text + (f", or {words}" if words else "")


def check_value(value: Any, spec: ValueSpec, key: str, where: str = "") -> Any:
    """Return the value in its setting's type.

    `where` is added to the message: " (file, line 3)", or nothing.
    Raises ConfigError for a value of another type or out of range.
    """
    try:
        return _converted(value, spec)
    except (TypeError, ValueError, OverflowError):
        shown = value if isinstance(value, str) and value else repr(value)
        raise ConfigError(
            f"{key}={shown} must be {spec.in_words()}{_quote_hint(value, spec)}{where}"
        ) from None


def _converted(value: Any, spec: ValueSpec) -> Any:
    """`check_value` without the message: TypeError, ValueError or OverflowError."""
    if value is None and spec.optional:
        return None
    if spec.is_mapping:
        if isinstance(value, dict) and all(isinstance(n, str) and n.isidentifier() for n in value):
            return dict(value)
        raise TypeError
    if not spec.is_list:
        return _converted_scalar(value, spec)
    if isinstance(value, str | int | float):
        value = (value,)  # a list of one may be written without brackets
    if not isinstance(value, list | tuple):
        raise TypeError
    if spec.length is not None and len(value) != spec.length:
        raise ValueError
    return tuple(_converted_scalar(item, spec) for item in value)


def _converted_scalar(value: Any, spec: ValueSpec) -> Any:
    if spec.allowed.spelled and isinstance(value, str | bool):
        value = spec.allowed.spelled.get(str(value).lower(), value)
    converters = {bool: _as_bool, str: _as_text, int: _as_int, float: _as_float}
    value = converters[spec.kind](value)
    if not spec.allowed.admits(value):
        raise ValueError
    return value


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise TypeError


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError


def _as_int(value: Any) -> int:
    if value != int(_as_number(value)):
        raise ValueError
    return int(value)


def _as_float(value: Any) -> float:
    if not math.isfinite(_as_number(value)):
        raise ValueError
    return float(value)


def _as_number(value: Any) -> int | float:
    """True and False are numbers to Python, but not here."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise TypeError


def _bound(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _quote_hint(value: Any, spec: ValueSpec) -> str:
    if spec.hint is not str or spec.allowed.choices:
        return ""
    if value is None:
        return " (write '' for none)"
    return " (put it in quotes)" if not isinstance(value, str) else ""
