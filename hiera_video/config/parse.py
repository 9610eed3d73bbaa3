"""Config files and `KEY VALUE` words -> settings -> a config; and a config -> YAML text.

Everything that is read becomes a list of `Entry`, base files first. `assemble` puts the entries
together, later ones over earlier ones.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from hiera_video.config.keys import Keys, keys_of
from hiera_video.config.section import Section, settings_of
from hiera_video.config.values import ValueSpec, check_value
from hiera_video.config.yaml_dialect import Loader, dump, open_document, read_value
from hiera_video.errors import ConfigError

AnyConfig = TypeVar("AnyConfig", bound=Section)


class Entry(NamedTuple):
    """One setting as a user wrote it."""

    key: str
    """`SOLVER.BASE_LR`; a name inside MODEL.KWARGS keeps its case."""
    value: Any
    """What YAML made of it, or a word of a command line."""
    where: str = ""
    """ " (file, line 3)", or empty."""
    is_word: bool = False
    """Whether `value` is a word of a command line, which is not read yet."""


# ---- files --------------------------------------------------------------------------------------


def read_file(path: Path, keys: Keys, named_by: tuple[Path, ...] = ()) -> list[Entry]:
    """Entries of a YAML file, behind those of the file that it names as `_BASE_`.

    `named_by` is the chain of files that led here by `_BASE_`.
    Raises ConfigError: no such file, not readable, not YAML, circular `_BASE_`.
    """
    path = path.expanduser()
    if path.resolve() in named_by:
        chain = " -> ".join(str(p) for p in (*named_by, path.resolve()))
        raise ConfigError(f"circular _BASE_: {chain}")
    entries = read_text(_text_of(path, named_by), str(path), keys)
    own = [entry for entry in entries if entry.key != "_BASE_"]
    bases = [entry for entry in entries if entry.key == "_BASE_"]
    if not bases:
        return own
    base = bases[0]
    if not isinstance(base.value, str):
        raise ConfigError(f"_BASE_={base.value!r} must be one file name, in quotes{base.where}")
    return [*read_file(path.parent / base.value, keys, (*named_by, path.resolve())), *own]


def _text_of(path: Path, named_by: tuple[Path, ...]) -> str:
    origin = f" (the _BASE_ of {named_by[-1]})" if named_by else ""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no config file {path}{origin}{_files_near(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}{origin} is a folder; name a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read config file {path}{origin}: {error}") from None


def _files_near(path: Path) -> str:
    """ "; FOLDER has a.yaml, b.yaml" for a mistyped file name."""
    folder = path.parent
    names = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3) or names[:8]
    return f"; {folder} has {', '.join(near)}" if near else ""


def read_text(text: str, source: str, keys: Keys) -> list[Entry]:
    """Entries of YAML text, in order; `source` is its name in messages."""
    with open_document(text, source) as loader:
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            kind = "a list" if isinstance(root, yaml.SequenceNode) else "one value"
            raise ConfigError(f"{source} must be KEY: VALUE lines, not {kind}")
        return list(_flatten(root, loader, keys))


def _flatten(
    node: yaml.MappingNode, loader: Loader, keys: Keys, parents: tuple[str, ...] = ()
) -> Iterator[Entry]:
    """Entries of a mapping and of the sections below it; raises for a key that is written twice."""
    lines: dict[str, int] = {}
    in_mapping = ".".join(parents) in keys.mappings
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        name = str(key_node.value)  # as written: YAML would make another value of `on` or `1`
        name = name if in_mapping else name.upper()
        key = ".".join((*parents, name))
        if name in lines:
            raise ConfigError(
                f"{key} is written twice in {loader.name}, lines {lines[name]} and {line}; keep one"
            )
        lines[name] = line
        where = f" ({loader.name}, line {line})"
        has_own_names = key in keys.sections or key in keys.mappings
        if has_own_names and isinstance(value_node, yaml.MappingNode):
            yield from _flatten(value_node, loader, keys, (*parents, name))
        elif key in keys.sections:
            if not _is_empty(value_node):
                raise ConfigError(f"{key} is a section; write its settings below it{where}")
        else:
            yield Entry(key, loader.construct_object(value_node, deep=True), where)


def _is_empty(node: yaml.Node) -> bool:
    """Whether all settings of a section are commented out."""
    return isinstance(node, yaml.ScalarNode) and node.value == ""


# ---- command lines ------------------------------------------------------------------------------


def read_words(words: Sequence[str], keys: Keys) -> list[Entry]:
    """Entries of the words KEY VALUE KEY VALUE ...; raises ConfigError for an odd number."""
    words = [str(word) for word in words]
    if len(words) % 2:
        hint = " (write KEY VALUE, without '=')" if any("=" in word for word in words[::2]) else ""
        raise ConfigError(
            f"settings are KEY VALUE pairs, but there are {len(words)} words: "
            f"{' '.join(words)}{hint}"
        )
    return [
        Entry(keys.normalized(key), value, is_word=True)
        for key, value in zip(words[::2], words[1::2], strict=True)
    ]


def _value_of_word(entry: Entry, spec: ValueSpec | None) -> Any:
    """Read a word as its setting's type wants: text stays as it is, all else is YAML.

    spec: None for a name inside a mapping, which takes any value.
    """
    word, source = entry.value, f"{entry.key}={entry.value}"
    if spec is None:
        return read_value(word, source)
    if spec.hint is str:
        quoted = re.fullmatch(r"(['\"])(.*)\1", word, flags=re.DOTALL)
        if quoted:
            return quoted[2]
        return None if word in ("None", "null", "~") else word
    if spec.is_list:
        inner = word.strip()
        inner = inner[1:-1] if inner[:1] + inner[-1:] in ("()", "[]") else inner
        return read_value(f"[{inner}]", source)
    return read_value(word, source)


# ---- putting together ---------------------------------------------------------------------------


def assemble(config: type[AnyConfig], entries: Iterable[Entry]) -> AnyConfig:
    """Make a config of entries, of which the later ones win; each section checks itself.

    Raises ConfigError, with file and line: unknown key, value of another type or out of range.
    """
    keys = keys_of(config)
    chosen: dict[str, Any] = {}
    for entry in entries:
        mapping, _, name = entry.key.rpartition(".")
        inside = mapping in keys.mappings  # one argument of MODEL.KWARGS
        key = mapping if inside else entry.key
        if key not in keys.specs:
            raise ConfigError(f"{keys.explain_unknown(key)}{entry.where}")
        spec = keys.specs[key]
        value = entry.value
        if entry.is_word:
            value = _value_of_word(entry, None if inside else spec)
        # Checked here as well as in the section, while file and line are known.
        value = check_value({name: value} if inside else value, spec, key, entry.where)
        if spec.is_mapping:
            value = {**chosen.get(key, {}), **value}
        chosen[key] = value
    sections = {
        name: section(**_below(chosen, f"{name.upper()}."))
        for name, section in keys.section_types.items()
    }
    top = {key.lower(): value for key, value in chosen.items() if "." not in key}
    return config(**top, **sections)


def _below(chosen: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Field name -> value of one section."""
    return {
        key.removeprefix(prefix).lower(): value
        for key, value in chosen.items()
        if key.startswith(prefix)
    }


def to_yaml_text(config: Section) -> str:
    """Every setting of a config as YAML; `read_text` and `assemble` make an equal config of it."""
    top = _plain_settings(config)
    for name in keys_of(type(config)).section_types:
        top[name.upper()] = _plain_settings(getattr(config, name))
    return dump(top)


def _plain_settings(section: Section) -> dict[str, Any]:
    names = settings_of(type(section))
    return {name.upper(): _plain(getattr(section, name)) for name in names}


def _plain(value: Any) -> Any:
    """Tuples as lists, which YAML can say."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
