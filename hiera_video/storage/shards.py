"""What a tar shard holds: the place of each member, found with few requests and kept.

A tar has no table of contents: each member's header says where the next one is. The headers are
read in windows of WINDOW bytes, so small members come along in one request. What is found is kept
in the cache folder, for other processes and later runs.

Members are regular files with plain names. Links, folders and devices are passed over; absolute
names, `..` and a name twice are refused with the shard, since nobody can say which file is meant.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import tarfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hiera_video.files import atomic_write, explained
from hiera_video.storage import local_copies
from hiera_video.storage.addresses import COMPRESSED, is_address
from hiera_video.storage.range_file import RangeFile
from hiera_video.storage.remote import Fetcher, Status
from hiera_video.storage.retries import Changed, StorageError

WINDOW = 64 << 10
"""Bytes read at a header: it and the small members that follow."""

MOST_MEMBERS = 2_000_000
"""In one shard; more are refused."""

MOST_HEADER = 1 << 20
"""Bytes of one read: an extended header of a hostile shard may claim any size."""

LABEL_ENDINGS = (".cls", ".json", ".txt")
MOST_LABEL = 16 << 10
"""Bytes of a member with one of LABEL_ENDINGS up to which its content is kept with the index: it
came along with its header."""

_FORM = 1
"""Of what is kept; another number makes all shards be read again."""


class ShardIndex:
    """Name -> (offset, size) of the members of one shard, in flat arrays."""

    def __init__(self, names: bytes, numbers: Sequence[np.ndarray], texts: bytes = b"") -> None:
        self._names, self._texts = names, texts
        self._ends, self._offsets, self._sizes, self._text_ends = numbers
        self._order: np.ndarray | None = None
        """The members by the hash of their names, for look-ups."""
        self._hashes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, look-ups included."""
        return 256 + len(self._names) + len(self._texts) + 48 * len(self)

    def without_texts(self) -> ShardIndex:
        """The same for whoever needs places alone."""
        return ShardIndex(
            self._names, [self._ends, self._offsets, self._sizes, 0 * self._text_ends]
        )

    def name(self, number: int) -> str:
        """The name of a member."""
        start = int(self._ends[number - 1]) if number else 0
        return os.fsdecode(self._names[start : int(self._ends[number])])

    def names(self) -> Iterator[str]:
        """All names, in the order of the shard."""
        return (self.name(number) for number in range(len(self)))

    def text(self, number: int) -> str:
        """The content of a member that may be a label; "" of others."""
        start = int(self._text_ends[number - 1]) if number else 0
        return self._texts[start : int(self._text_ends[number])].decode("utf-8", "replace")

    def place(self, number: int) -> tuple[int, int]:
        """(offset, size) of a member."""
        return int(self._offsets[number]), int(self._sizes[number])

    def place_of(self, name: str, path: str) -> tuple[int, int]:
        """(offset, size) of the member of a name. Raises StorageError, about `path`."""
        if self._hashes is None or self._order is None:
            hashes = np.array([_hash(each) for each in self.names()], np.uint32)
            self._order = np.argsort(hashes, kind="stable")
            self._hashes = hashes[self._order]
        wanted = _hash(name)
        row = int(np.searchsorted(self._hashes, np.uint32(wanted)))
        while row < len(self) and int(self._hashes[row]) == wanted:
            number = int(self._order[row])
            if self.name(number) == name:
                offset, size = self.place(number)
                if size == 0:
                    raise StorageError(path, "is empty (0 bytes)")
                return offset, size
            row += 1
        raise StorageError(path, "the shard has no member of this name")

    def to_bytes(self) -> bytes:
        """For the cache."""
        head = struct.pack("<3q", _FORM, len(self), len(self._names))
        numbers = (self._ends, self._offsets, self._sizes, self._text_ends)
        lists = [x.astype("<i8").tobytes() for x in numbers]
        return zlib.compress(b"".join([head, *lists, self._names, self._texts]), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardIndex:
        """What `to_bytes` made. Raises ValueError for another form."""
        content = zlib.decompress(data)
        form, count, names = struct.unpack_from("<3q", content)
        if form != _FORM:
            raise ValueError("not an index of this form")
        numbers = np.frombuffer(content, "<i8", 4 * count, 24).reshape(4, count)
        start = 24 + 32 * count
        return cls(content[start : start + names], list(numbers), content[start + names :])


def _hash(name: str) -> int:
    return zlib.crc32(os.fsencode(name))


# ---- finding what a shard holds -----------------------------------------------------------------


def shard_index(shard: str, status: Status) -> ShardIndex:
    """What a shard in this state holds, from the cache or from its headers.

    Raises StorageError: compressed, damaged, cut off, with names that cannot be taken.
    """
    if shard.lower().endswith(COMPRESSED):
        raise StorageError(shard, COMPRESSED_ADVICE)
    place = local_copies.place_of(shard, (status.size, status.token), ".index")
    with contextlib.suppress(OSError, ValueError, zlib.error, struct.error):
        index = ShardIndex.from_bytes(place.read_bytes())
        os.utime(place)
        return index
    file = RangeFile(shard, fetcher_of(shard, status), status.size, block=WINDOW)
    index = read_headers(shard, file)
    with explained(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(place) as out:
        out.write(index.to_bytes())
    return index


COMPRESSED_ADVICE = (
    "is compressed, so no member can be read without all before it; videos are compressed "
    "already: unpack it and pack it as a plain .tar"
)


def read_headers(shard: str, file: RangeFile) -> ShardIndex:
    """Walk the headers of a shard. Raises StorageError."""
    head = file.read(512)
    file.seek(0)
    if head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head[:6] == b"\xfd7zXZ\0":
        raise StorageError(shard, COMPRESSED_ADVICE)
    names, ends = bytearray(), array("q")
    offsets, sizes = array("q"), array("q")
    texts, text_ends = bytearray(), array("q")
    seen: set[int] = set()
    try:
        limited: Any = _Limited(file)
        with tarfile.open(fileobj=limited, mode="r:", errorlevel=2) as tar:
            for member in _members(tar):
                name = member.name
                if reason := _name_refusal(name):
                    raise StorageError(shard, f"its member {name[:100]!r} {reason}")
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > file.size:
                    raise StorageError(shard, _cut_off(f"its member {name[:100]!r} goes on"))
                key = hash(name)
                if key in seen:
                    raise StorageError(
                        shard, f"holds {name[:100]!r} twice; give each member a name of its own"
                    )
                seen.add(key)
                names += os.fsencode(name)
                ends.append(len(names))
                offsets.append(member.offset_data)
                sizes.append(member.size)
                if name.lower().endswith(LABEL_ENDINGS) and member.size <= MOST_LABEL:
                    file.seek(member.offset_data)
                    texts += file.read(member.size)
                text_ends.append(len(texts))
                if len(ends) > MOST_MEMBERS:
                    raise StorageError(shard, f"has more than {MOST_MEMBERS:,} members")
    except (tarfile.TarError, UnicodeError, ValueError, OverflowError) as error:
        if file.failure is not None:
            raise file.failure from None
        if "end of data" in str(error) or "end of file" in str(error):
            raise StorageError(shard, _cut_off("it goes on")) from None
        raise StorageError(shard, f"is no tar file, or a damaged one ({error})") from None
    numbers = [np.frombuffer(x, np.int64) for x in (ends, offsets, sizes, text_ends)]
    return ShardIndex(bytes(names), numbers, bytes(texts))


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members one by one; tarfile would keep all of them."""
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]
        yield member


def _cut_off(what: str) -> str:
    return f"is cut off: {what} behind its end; is the upload or the download complete?"


def _name_refusal(name: str) -> str:
    if name.startswith("/") or "\0" in name or "!/" in name:
        return "has an absolute name, or one with !/; pack the shard with plain names"
    if ".." in name.split("/"):
        return "has .. in its name; pack the shard with plain names"
    return ""


class _Limited:
    """The file that tarfile reads, with a limit on what one read may ask for."""

    def __init__(self, file: RangeFile) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        """The next bytes. Raises ValueError for more than a header can have."""
        if size > MOST_HEADER:
            raise ValueError(f"a header of {size:,} bytes")
        return self._file.read(size)


# ---- shards on this machine ---------------------------------------------------------------------


def local_status(shard: str) -> Status:
    """Size and state of a shard on this machine. Raises StorageError."""
    try:
        status = os.stat(shard)
    except FileNotFoundError:
        raise StorageError(shard, "no such file") from None
    except (OSError, ValueError) as error:
        raise StorageError(shard, f"cannot be opened: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(shard, "is not a file")
    return Status(status.st_size, -1 - status.st_mtime_ns, "", True)


class LocalShard:
    """Gets ranges of a shard on this machine. Raises StorageError."""

    def __init__(self, shard: str, status: Status) -> None:
        self.shard, self.status = shard, status

    def __call__(self, start: int, end: int) -> bytes:
        try:
            with open(self.shard, "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != self.status.size:
                    raise Changed("changed while it was read")
                file.seek(start)
                data = b""
                while len(data) < end - start:
                    part = file.read(end - start - len(data))
                    if not part:
                        raise StorageError(self.shard, "is shorter than it was")
                    data += part
                return data
        except OSError as error:
            raise StorageError(self.shard, f"cannot be read: {error}") from None


def fetcher_of(shard: str, status: Status) -> Fetcher | LocalShard:
    """What gets ranges of a shard."""
    return Fetcher(shard, status) if is_address(shard) else LocalShard(shard, status)
