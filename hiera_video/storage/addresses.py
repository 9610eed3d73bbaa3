"""What an address of a video may look like, and how it is written and shown.

An address is `scheme://...` with one of SCHEMES. A member of a tar shard is the shard's path or
address, `!/` and the member's name: `shards/000.tar!/a.mp4`, `s3://bucket/000.tar!/a.mp4`.

Light to import: a mistyped name is reported before any library is loaded. Lists may come from
strangers, so only the schemes of this list are opened, and none of fsspec's chains of them.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import NamedTuple
from urllib.parse import urlsplit

from hiera_video.errors import UserError, hide_secrets

SCHEMES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
    "memory": "",
}
"""The schemes that are opened -> the package that fsspec needs for each ("" for none)."""

INSIDE = "!/"
"""Between a tar shard and the name of its member."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_MEMBER = re.compile(r"(.+\.tar)!/(.+)", re.DOTALL | re.IGNORECASE)


class Member(NamedTuple):
    """One file inside a tar shard."""

    shard: str
    """Path or address."""
    name: str


def is_address(path: str) -> bool:
    """Whether a path is written as an address, allowed or not."""
    return _SCHEME.match(path) is not None


def is_stored(path: str) -> bool:
    """Whether a path is an address or a member of a shard: no plain file."""
    return is_address(path) or member_of(path) is not None


def member_of(path: str) -> Member | None:
    """The shard and the name that a path like `a.tar!/b.mp4` names; None for other paths."""
    if INSIDE not in path:
        return None
    match = _MEMBER.fullmatch(path)
    return Member(match[1], match[2]) if match else None


def member_path(shard: str, name: str) -> str:
    """How the member of a shard is written."""
    return f"{shard}{INSIDE}{name}"


def is_shard(path: str) -> bool:
    """Whether a name ends like that of a tar shard (a.tar, a.tar.gz, a.tgz), braces or not."""
    return plain_name(path).lower().endswith((".tar", *COMPRESSED))


COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Endings of shards that are refused: nothing inside can be read without reading all before it."""


def refusal(address: str) -> str:
    """Why an address is not opened; empty where it may be."""
    match = _SCHEME.match(address)
    if match is None:
        return "is no address; write scheme://place"
    scheme = match[1].lower()
    if "::" in re.sub(r"\[[^\]]*\]", "", address):  # but in a host like [::1]
        return "chains of addresses (::) are not opened; name the file itself"
    if scheme == "file":
        return "write a file of this machine as a plain path, without file://"
    if scheme not in SCHEMES:
        allowed = ", ".join(f"{name}://" for name in SCHEMES)
        return f"addresses that begin with {scheme}:// are not opened; allowed are {allowed}"
    if not address.isprintable():
        return "an address with control characters is not opened"
    if scheme in ("http", "https"):
        return _host_refusal(address)
    return (
        "" if address[match.end() :].strip("/") else f"names no place; write {scheme}://place/file"
    )


def require_allowed(address: str) -> None:
    """Raise UserError for an address that is not opened."""
    if reason := refusal(address):
        raise UserError(f"{hide_secrets(address)!r}: {reason}")


def _host_refusal(address: str) -> str:
    try:
        host = urlsplit(address).hostname or ""
    except ValueError:
        host = ""
    if not host:
        return "names no host; write https://host/path"
    # There a cloud answers its own machines with their credentials; no video lies there. A list
    # from a stranger must not make this machine ask, whoever started it.
    try:
        local = ipaddress.ip_address(host).is_link_local
    except ValueError:
        local = host.rstrip(".").lower() in ("metadata", "metadata.google.internal")
    return "the addresses of a cloud's own metadata are not opened" if local else ""


# ---- parts of paths -----------------------------------------------------------------------------


def join(root: str, path: str) -> str:
    """`path` below `root`, where either may be an address; an absolute one stays itself."""
    if is_address(path):
        return path
    if is_address(root):
        return path if os.path.isabs(path) else f"{root.rstrip('/')}/{path}"
    return os.path.join(root, path)


def absolute(path: str) -> str:
    """One way to write a path: the whole path of a file, an address as it is."""
    if is_address(path):
        return path
    inside = member_of(path)
    if inside is not None:
        return member_path(os.path.abspath(inside.shard), inside.name)
    return os.path.abspath(path)


def plain_name(path: str) -> str:
    """A path without what follows the name in a web address (?query, #part)."""
    return re.split(r"[?#]", path, maxsplit=1)[0] if re.match(r"https?://", path, re.I) else path


def base_name(path: str) -> str:
    """The last part of a path or address."""
    return plain_name(path).rstrip("/").rpartition("/")[2]


def folder_of(path: str) -> str:
    """The folder of a file, local or not."""
    if not is_address(path):
        return os.path.dirname(path)
    return plain_name(path).rstrip("/").rpartition("/")[0]


# ---- several shards in one word -----------------------------------------------------------------

MOST_SHARDS = 100_000

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` and `{a,b}.tar` as the names that they stand for; others as they are.

    Raises UserError for a range that falls and for more than MOST_SHARDS names.
    """
    found = [""]
    end = 0
    for match in _BRACES.finditer(pattern):
        found = [name + pattern[end : match.start()] for name in found]
        choices = _choices(match)
        if len(found) * len(choices) > MOST_SHARDS:
            raise UserError(f"{hide_secrets(pattern)!r} names more than {MOST_SHARDS:,} files")
        found = [name + choice for name in found for choice in choices]
        end = match.end()
    return [name + pattern[end:] for name in found]


def _choices(match: re.Match[str]) -> list[str]:
    if match[3] is not None:
        return match[3].split(",")
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + MOST_SHARDS:
        raise UserError(
            f"{match[0]}: write the first number, two dots and the last, at most "
            f"{MOST_SHARDS:,} numbers"
        )
    width = len(match[1]) if match[1].startswith("0") or len(match[1]) == len(match[2]) else 0
    return [str(number).zfill(width) for number in range(first, last + 1)]


def has_magic(address: str) -> bool:
    """Whether an address is a glob; in web addresses a `?` begins a query."""
    signs = "*[" if re.match(r"https?://", address, re.I) else "*?["
    return any(sign in address for sign in signs)
