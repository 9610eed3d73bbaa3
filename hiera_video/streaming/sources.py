"""Which streams may be opened: what the user wrote in, a `Source` out. Nothing is opened here.

Light to import: a mistyped address is an error before torch is loaded.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from hiera_video.cli import printable
from hiera_video.errors import UserError

ALLOWED = (
    "allowed are camera:N, an address that begins with rtsp://, rtsps://, http:// or https://, "
    "a file that may still grow, and - for standard input"
)

_SCHEMES = ("rtsp", "rtsps", "http", "https")

Kind = Literal["camera", "rtsp", "http", "file", "pipe", "stdin"]


@dataclass(frozen=True)
class Source:
    """A stream that may be opened."""

    kind: Kind
    place: str
    """The device, the address or the path that is opened; empty for standard input."""
    name: str
    """For people and for the output: without the password of an address or control characters."""


def parse_source(text: str) -> Source:
    """Read the word of `--stream`. Raises UserError, which says what is allowed, for any other.

    A word that begins like "concat:" is never a file: FFmpeg reads such words as instructions to
    open something else. A file of such a name is written "./concat:...".
    """
    if text == "-":
        return _standard_input()
    camera = re.fullmatch(r"camera:([0-9]{1,3})", text)
    if camera:
        return _camera(int(camera[1]))
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.\-]+)[:,]", text)  # "C:" of Windows has one letter
    if scheme:
        return _address(text, scheme[1].lower())
    return _file(text)


def _standard_input() -> Source:
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(
            "--stream -: standard input is a terminal; pipe a video into it, such as "
            "ffmpeg ... -f mpegts - | hiera-video predict --stream -"
        )
    if os.name == "nt":
        raise UserError("--stream -: reading standard input is not possible on Windows; " + ALLOWED)
    return Source("stdin", "", "-")


def _camera(number: int) -> Source:
    """A camera of Linux. PyAV could open those of other systems by their names, which nobody has
    tried here."""
    device = f"/dev/video{number}"
    other_way = (
        "another program can send its pictures: "
        "ffmpeg -f FORMAT -i DEVICE -f mpegts - | hiera-video predict --stream -"
    )
    if not sys.platform.startswith("linux"):
        raise UserError(
            f"--stream camera:{number}: cameras are opened with Video4Linux, on Linux alone; "
            + other_way
        )
    if not os.path.exists(device):
        raise UserError(
            f"--stream camera:{number}: there is no {device} here ({_cameras()}); {other_way}"
        )
    return Source("camera", device, f"camera:{number}")


def _cameras() -> str:
    found = sorted(re.findall(r"\bvideo([0-9]+)\b", " ".join(os.listdir("/dev"))), key=int)
    return "cameras: " + ", ".join(f"camera:{n}" for n in found) if found else "no camera at all"


def _address(text: str, scheme: str) -> Source:
    shown = _without_password(text)
    if scheme not in _SCHEMES:
        hint = f"; a file of this name is written ./{shown}" if os.path.exists(text) else ""
        raise UserError(f"--stream {shown}: {scheme}: is not opened; {ALLOWED}{hint}")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"--stream {shown}: not an address ({error})") from None
    if not host or "://" not in text or not text.isprintable() or " " in text:
        raise UserError(f"--stream {shown}: not an address; write {scheme}://HOST/PATH")
    return Source("rtsp" if scheme.startswith("rtsp") else "http", text, shown)


def _without_password(address: str) -> str:
    """Hide user and password of "rtsp://user:password@host", even in what is no address: outputs
    are kept and passed on."""
    return printable(re.sub(r"^([^/]*//)[^/]*@", r"\1***@", address))


def _file(path: str) -> Source:
    shown = printable(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UserError(f"--stream {shown}: {reason}; {ALLOWED}") from None
    if stat.S_ISFIFO(mode):
        return Source("pipe", path, shown)
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a device"
        raise UserError(f"--stream {shown}: is {what}; {ALLOWED}")
    return Source("file", path, shown)
