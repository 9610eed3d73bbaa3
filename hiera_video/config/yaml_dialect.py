"""YAML as configs speak it: numbers are numbers, a key written twice is an error.

PyYAML reads YAML 1.1, where `1e-4` is text, `off` is false, `010` is eight and `1:30` is ninety.
Here the core types of YAML 1.2 and Python's None are read. What is written is quoted wherever
either version would read something else.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import yaml

from hiera_video.errors import ConfigError

_FLOAT = r"[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_RESOLVERS = [
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|None|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?\d+", list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789.")),
]
"""Tag, pattern of the text, first letters that the text can have."""


class Loader(yaml.SafeLoader):
    """Reads one document; made by `open_document`."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's, which keeps the last of two equal keys; here they are a ConfigError."""
        seen = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"{key} is written twice in {self.name}, line {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """An int or a float; raises ConstructorError for text that Python cannot convert."""
        text = str(self.construct_scalar(node))
        try:
            if node.tag.endswith(":int"):
                return int(text)
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:  # thousands of digits; or "!!int x"
            raise yaml.constructor.ConstructorError(
                None, None, f"cannot read {text[:20]!r} as a number", node.start_mark
            ) from None


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line."""

    def represent_values(self, values: list[Any]) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


Loader.yaml_implicit_resolvers = {}  # without those of YAML 1.1, which the dumper keeps
for _tag, _pattern, _first in _RESOLVERS:
    Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), _first)
    _Dumper.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), _first)
_Dumper.add_representer(list, _Dumper.represent_values)
for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    Loader.add_constructor(_tag, Loader.construct_number)


@contextlib.contextmanager
def open_document(text: str, source: str, *, located: bool = True) -> Iterator[Loader]:
    """Yield a loader of `text`; YAML's errors become a ConfigError about `source`.

    `located=False` leaves line and column out of the message.
    """
    try:
        loader = Loader(text)
        loader.name = source
        try:
            yield loader
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {_one_line(error, located)}") from None
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply") from None


def read_value(text: str, source: str) -> Any:
    """The value of a whole text; raises ConfigError about `source`."""
    with open_document(text, source, located=False) as loader:
        return loader.get_single_data()


def dump(mapping: dict[str, Any]) -> str:
    """YAML text of plain values, in the order of the mapping."""
    return yaml.dump(mapping, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _one_line(error: yaml.YAMLError, located: bool) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if mark is None or not located:
        return problem
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
