"""Command lines with settings: `KEY VALUE` anywhere, `--cfg FILE`, and a description of every key.

    parser = SettingsParser(description=...)
    add_config_arguments(parser)
    args = parser.parse_args(argv)          # args.settings: the words KEY VALUE KEY VALUE ...
    cfg = config_from_args(args)

SlowFast's documentation puts settings after `--cfg FILE`, its parser requires `--opts`, and users
put them at the end. All of these work. If a key is given twice, the last value counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import fnmatch
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from hiera_video.cli import add_import_argument
from hiera_video.errors import ConfigError, UserError
from hiera_video.registry import import_user_module

if TYPE_CHECKING:
    from hiera_video.config.describe import SettingText
    from hiera_video.config.schema import Config

__all__ = [
    "SettingsParser",
    "add_config_arguments",
    "config_from_args",
    "is_key",
    "settings_table",
]


class SettingsParser(argparse.ArgumentParser):
    """An ArgumentParser that accepts settings, `KEY VALUE`, anywhere among its arguments.

    The word after a key is its value, even if it looks like an option or a negative number. In a
    parser without positional arguments, every word that is neither an option nor an option's value
    is a setting. In a parser with positional arguments (paths), a word is a setting if it is a key
    and no existing file or folder; paths may be anywhere too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._values_of: dict[str, int | str] = {}
        """Option -> argparse's `nargs`: a number of words, "?", "*" or "+"."""
        self._takes_paths = False
        super().__init__(*args, **kwargs)

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        """As argparse's, and remember how many words follow an option."""
        action = super().add_argument(*names, **kwargs)
        for option in action.option_strings:
            self._values_of[option] = 1 if action.nargs is None else action.nargs
        self._takes_paths |= not action.option_strings and action.dest != "settings"
        return action

    def parse_args(  # type: ignore[override]  # argparse overloads it for other namespaces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse's, with the words KEY VALUE ... in `settings` of the result.

        Raises ConfigError for a key without a value and for `KEY=VALUE`.
        """
        words = _Words(sys.argv[1:] if args is None else args)
        own, paths, settings = self._sorted(words)
        parsed = super().parse_args([*own, *(["--", *paths] if paths else [])], namespace)
        if parsed.settings:  # argparse puts a word such as -1 there
            self.error(f"unrecognized arguments: {' '.join(parsed.settings)}")
        for word in [*paths, *(key for key, _ in settings)]:
            _require_no_second_file(word, parsed)
        for key, value in settings:
            if value is None:
                raise ConfigError(_no_value(key))
        parsed.settings = [word for pair in settings for word in pair]
        return parsed

    def error(self, message: str) -> NoReturn:
        """As argparse's, and suggest a similar option."""
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if unknown[0].startswith("-"):
            near = difflib.get_close_matches(unknown[0].partition("=")[0], self._values_of, n=2)
            message += f"; did you mean {' or '.join(near)}?" if near else ""
        super().error(message)

    def _sorted(self, words: _Words) -> tuple[list[str], list[str], list[tuple[str, str | None]]]:
        """Sort words into options with their values, paths, and settings as pairs."""
        own: list[str] = []
        paths: list[str] = []
        settings: list[tuple[str, str | None]] = []
        for word in words:
            if word == "--":
                paths += words
            elif word == "--opts":
                if words.left and not self._option(words.peek()):
                    settings.append(self._pair(next(words), words))
            elif word.startswith("-") and word != "-":
                own += [word, *self._values(word, words)]
            elif self._is_key(word):
                settings.append(self._pair(word, words))
            else:
                paths.append(word)
        if not self._takes_paths and paths:  # words after "--"
            rest = _Words(paths)
            settings += [self._pair(word, rest) for word in rest]
            paths = []
        return own, paths, settings

    def _pair(self, key: str, words: _Words) -> tuple[str, str | None]:
        """A key and the word after it; None if an option or nothing follows."""
        if "=" in key or not words.left or self._option(words.peek()):
            return key, None
        return key, next(words)

    def _is_key(self, word: str) -> bool:
        if not self._takes_paths:
            return True
        return not os.path.exists(word) and is_key(word)

    def _values(self, word: str, words: _Words) -> Iterator[str]:
        """The words that belong to an option; none if its value follows an `=`."""
        option = self._option(word)
        count = 0 if option is None or "=" in word else self._values_of[option]
        if isinstance(count, int):
            for _ in range(count):
                if words.left:
                    yield next(words)
        elif words.left and not words.peek().startswith("-"):  # "?"
            yield next(words)

    def _option(self, word: str) -> str | None:
        """The option that a word names, possibly abbreviated; None if it is not an option."""
        name = word.partition("=")[0]
        if name in self._values_of:
            return name
        if not name.startswith("--") or name == "--" or not self.allow_abbrev:
            return None
        near = [option for option in self._values_of if option.startswith(name)]
        return near[0] if len(near) == 1 else None


def is_key(word: str) -> bool:
    """Whether a word names a setting, and is no path or name of something else."""
    from hiera_video.config.describe import is_setting, names_a_section  # 0.05 s: paths need none

    name = word.partition("=")[0]
    return (name.isupper() or "." in name) and (is_setting(name) or names_a_section(name))


class _Words:
    """An iterator over words with a look at the next one."""

    def __init__(self, words: Sequence[str]) -> None:
        self.left = [str(word) for word in words]

    def __iter__(self) -> _Words:
        return self

    def __next__(self) -> str:
        if not self.left:
            raise StopIteration
        return self.left.pop(0)

    def peek(self) -> str:
        return self.left[0]


def _require_no_second_file(word: str, parsed: argparse.Namespace) -> None:
    if word.endswith((".yaml", ".yml")):
        first = getattr(parsed, "cfg", None)
        if first is None:
            raise ConfigError(f"name the config file with --cfg: --cfg {word}")
        raise ConfigError(f"--cfg takes one file, then KEY VALUE ...; {word!r} is a second file")


def _no_value(key: str) -> str:
    name, equals, value = key.partition("=")
    if equals:
        return f"settings are written KEY VALUE, without '=': {name} {value}"
    return f"settings are written KEY VALUE, but {key} has no value"


# ---- arguments that command lines share ---------------------------------------------------------


def add_config_arguments(parser: SettingsParser, *, required: bool = True) -> None:
    """Add `--cfg FILE`, settings, `--opts` and `--import MODULE`.

    With `required=False` the file may be left out; `args.cfg` is then None.
    """
    parser.add_argument(
        "--cfg",
        required=required,
        action=_Once,
        metavar="FILE",
        help="one YAML file of settings, or the name of a recipe (K400/hiera_b_16x4)",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY VALUE",
        help="settings that replace the file's, anywhere on the line: SOLVER.BASE_LR 1e-4 ... "
        "(all of them: hiera-video train --settings)",
    )
    parser.add_argument(
        "--opts",
        action="store_true",
        help="optional before KEY VALUE; KEY is then a setting even if there is such a file",
    )
    add_import_argument(parser)


class _Once(argparse.Action):
    """An option that may be given once; argparse would keep the last of two silently."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest, None) is not None:
            parser.error(f"{option_string} given twice; it takes one file, use _BASE_ to combine")
        setattr(namespace, self.dest, values)


def config_from_args(args: argparse.Namespace) -> Config:
    """Make the Config of a parsed command line, and import the modules that its IMPORTS name."""
    from hiera_video.config.schema import load_config

    cfg = load_config(args.cfg, args.settings)
    for module in cfg.imports:
        import_user_module(module)
    missing = tuple(module for module in args.imports if module not in cfg.imports)
    return dataclasses.replace(cfg, imports=cfg.imports + missing)


# ---- a table of settings ------------------------------------------------------------------------


def settings_table(pattern: str = "", *, width: int = 100) -> str:
    """Describe the settings that match a pattern: key, default, allowed values and meaning.

    Args:
        pattern: a part of a key or a shell pattern, in upper or lower case. If no key matches, the
            meanings are searched.
        width: columns of the text.

    Raises UserError, which suggests similar keys, if nothing matches.
    """
    from hiera_video.config.describe import describe_settings

    known = describe_settings()
    matching = [setting for setting in known if _matches(pattern, setting.key)]
    matching = matching or [s for s in known if pattern.lower() in s.meaning.lower()]
    if not matching:
        near = _near([setting.key for setting in known], pattern.upper())
        advice = f"; similar ones: {', '.join(near)}" if near else ""
        raise UserError(f"no setting matches {pattern!r}{advice}. --settings alone lists all")
    return "\n".join(_described(setting, width) for setting in matching)


def _matches(pattern: str, key: str) -> bool:
    pattern = pattern.upper().replace(" ", "_").replace("-", "_")
    if any(sign in pattern for sign in "*?["):
        return fnmatch.fnmatchcase(key, pattern)
    return pattern in key


def _near(keys: Sequence[str], pattern: str) -> list[str]:
    """Keys that are spelled like a pattern, and keys with a word that is."""
    whole = difflib.get_close_matches(pattern, keys, n=3)
    words = {word for key in keys for word in re.split("[._]", key)}
    alike = difflib.get_close_matches(pattern.rpartition(".")[2], words, n=2, cutoff=0.7)
    some = [key for key in keys if any(word in re.split("[._]", key) for word in alike)]
    return list(dict.fromkeys([*whole, *some]))[:6]


def _described(setting: SettingText, width: int) -> str:
    head = f"{setting.key}  (default {setting.default}; {setting.allowed})"
    lines = textwrap.wrap(head, width, subsequent_indent="    ", break_on_hyphens=False)
    lines += textwrap.wrap(setting.meaning, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)
