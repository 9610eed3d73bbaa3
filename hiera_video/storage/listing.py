"""Find the videos that an address or a tar shard stands for: one, a folder, a glob, a shard.

Light to import: what asks a storage is loaded when it is asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from hiera_video.progress import Progress
from hiera_video.storage.addresses import (
    COMPRESSED,
    base_name,
    expand_braces,
    has_magic,
    is_address,
    is_shard,
    is_stored,
    member_of,
    member_path,
    plain_name,
    refusal,
)
from hiera_video.storage.retries import StorageError

if TYPE_CHECKING:
    from hiera_video.storage.shards import ShardIndex

Wanted = Callable[[str], bool]
"""Whether a name is one to take."""

THREADS = 16
"""Remote shards whose headers are read at the same time."""


class Found(NamedTuple):
    """A video, or why there is none."""

    path: str
    error: str | None = None


def names_stored(path: str) -> bool:
    """Whether a path of a command line is for this module: an address, or a shard."""
    return is_stored(path) or is_shard(path)


def videos_at(path: str, wanted: Wanted, looked_for: str) -> list[Found]:
    """The videos that an address, a shard or a pattern of shards names, sorted.

    looked_for: in words, for the message that there are none.

    Raises UserError where a package is missing.
    """
    try:
        if is_address(path) and (reason := refusal(path)):
            return [Found(path, reason)]
        if member_of(path) is not None:
            return [Found(path)]
        if is_shard(path):
            return _of_shards(shards_at(path), wanted, looked_for)
        return _of_folder(path, wanted, looked_for)
    except StorageError as error:
        return [Found(path, error.reason)]


def _of_folder(path: str, wanted: Wanted, looked_for: str) -> list[Found]:
    from hiera_video.storage.remote import files_below, is_folder, matching

    if has_magic(path):
        listed = [file.address for file in matching(path)]
    elif not path.endswith("/") and (wanted(base_name(path)) or not is_folder(path)):
        return [Found(path)]
    else:
        listed = [file.address for file in files_below(path)]
    videos = [address for address in listed if wanted(base_name(address))]
    shards = [address for address in listed if is_shard(address)]
    if shards and not videos:
        return _of_shards(shards, wanted, looked_for)
    if not videos:
        found = (
            f"{len(listed):,} files there, none of them a video's" if listed else "nothing there"
        )
        return [Found(path, f"{found}; {looked_for}")]
    return [Found(address) for address in videos]


# ---- shards -------------------------------------------------------------------------------------


def shards_at(path: str) -> list[str]:
    """The shards that a path, an address, a pattern with braces or a glob names.

    Raises StorageError.
    """
    found: list[str] = []
    for name in expand_braces(path):
        if os.path.lexists(name) or not has_magic(name):
            found.append(name)
        elif is_address(name):
            from hiera_video.storage.remote import matching

            found += [file.address for file in matching(name)]
        else:
            import glob

            found += sorted(glob.glob(name, recursive=True))
    if not found:
        raise StorageError(path, "matches no shard")
    return found


def shards_in(folder: str) -> list[str]:
    """The shards that lie in a folder itself, sorted. Raises StorageError."""
    if is_address(folder):
        from hiera_video.storage.remote import files_below

        above = folder.rstrip("/").partition("://")[2]
        names = [file.address for file in files_below(folder)]
        return [
            n for n in names if is_shard(n) and n.partition("://")[2].rpartition("/")[0] == above
        ]
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise StorageError(folder, error.strerror or str(error)) from None
    return [os.path.join(folder, n) for n in names if is_shard(n) and not n.startswith(".")]


def indexed(shards: Sequence[str]) -> Iterator[tuple[str, ShardIndex | StorageError]]:
    """Each shard, in order, with what it holds or why that is unknown; several at a time.

    At most a few wait: memory is that of one shard at a time, however many there are.
    """
    threads = THREADS if any(is_address(shard) for shard in shards) else 1
    with (
        Progress("reading shards", len(shards), unit="shards") as progress,
        ThreadPoolExecutor(threads) as pool,
    ):
        waiting: list[tuple[str, Future[ShardIndex | StorageError]]] = []
        for number, shard in enumerate([*shards, *[""] * threads]):
            if shard:
                waiting.append((shard, pool.submit(_index, shard)))
            if len(waiting) > threads or (not shard and waiting):
                name, future = waiting.pop(0)
                yield name, future.result()
                progress.to(number)


def _index(shard: str) -> ShardIndex | StorageError:
    from hiera_video.storage.remote import status_of_file
    from hiera_video.storage.shards import COMPRESSED_ADVICE, local_status, shard_index

    if plain_name(shard).lower().endswith(COMPRESSED):
        return StorageError(shard, COMPRESSED_ADVICE)
    try:
        status = status_of_file(shard) if is_address(shard) else local_status(shard)
        return shard_index(shard, status)
    except StorageError as error:
        return error


def _of_shards(shards: Sequence[str], wanted: Wanted, looked_for: str) -> list[Found]:
    found: list[Found] = []
    for shard, index in indexed(shards):
        if isinstance(index, StorageError):
            found.append(Found(shard, index.reason))
            continue
        names = [name for name in index.names() if wanted(os.path.basename(name))]
        if not names:
            found.append(Found(shard, f"no videos in it; {looked_for}"))
        found += [Found(member_path(shard, name)) for name in names]
    return found
