"""The label of a video in a tar shard, from the small files that lie beside it there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LABEL_FIELDS = ("label", "labels", "class", "class_name", "cls")
"""Fields of `key.json` that hold the label, the first that there is."""


def label_of(texts: Mapping[str, str]) -> str:
    """The label as a list would write it; "" where there is none.

    texts: ending ("cls", "json", "txt") -> content of the files with a video's key.
    """
    for ending, read in (("cls", _plain), ("json", _of_json), ("txt", _plain)):
        if ending in texts and (label := read(texts[ending])):
            return label
    return ""


def _plain(text: str) -> str:
    """One line of text: a number, or a name. A longer text is a caption and no label."""
    lines = text.strip().splitlines()
    return lines[0].strip() if len(lines) == 1 and len(lines[0]) <= 200 else ""


def _of_json(text: str) -> str:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(content, dict):
        return _written(content)
    return next((found for name in LABEL_FIELDS if (found := _written(content.get(name)))), "")


def _written(value: Any) -> str:
    """A number or a name, or several of them."""
    if isinstance(value, bool):
        return ""
    if isinstance(value, int | str):
        return _plain(str(value))
    if isinstance(value, list):
        each = [_written(one) for one in value if not isinstance(one, list)]
        return ";".join(each) if each and all(each) else ""
    return ""
