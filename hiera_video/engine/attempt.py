"""The processes of one attempt of a run find each other in a store that outlives attempts.

torchrun (--max-restarts) starts all processes again after one was killed, and gives them the store
of the attempt before, with its keys: the address of a process that is dead, its barriers, its stop.
How many attempts there were does not name this one either: on several machines the count of each
torchrun is its own. So rank 0 makes up a name, and no process takes one that was not made for it.
"""

from __future__ import annotations

import json
import secrets
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from hiera_video.errors import RunFailed

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_POLL_SECONDS = 0.02
_ANSWER = "attempt"


def name_of_attempt(store: Store, rank: int, size: int, timeout: timedelta) -> str:
    """Return a name that all `size` processes of this attempt share and no earlier one had.

    Waits for all of them. Raises RunFailed, with the ranks that did not come, after `timeout`.
    """
    end = time.monotonic() + timeout.total_seconds()
    own = secrets.token_hex(8)
    return _invite(store, own, size, end) if rank == 0 else _accept(store, own, rank, end)


def _invite(store: Store, name: str, size: int, end: float) -> str:
    """Rank 0: answer to whoever is there with the name, until all have taken it."""
    answered: dict[str, str] = {}
    while missing := [r for r in range(1, size) if not store.check([f"{name}/{r}"])]:
        # What a rank says may still be of an earlier attempt: it says anew when it comes.
        here = {str(r): store.get(_key(r)).decode() for r in missing if store.check([_key(r)])}
        if not here.items() <= answered.items():
            answered |= here
            store.set(_ANSWER, json.dumps({"name": name, "ranks": answered}))
        if time.monotonic() > end:
            who = ", ".join(map(str, missing))
            raise RunFailed(f"waited in vain for rank{'s' * (len(missing) > 1)} {who} to start")
        time.sleep(_POLL_SECONDS)
    return name


def _accept(store: Store, own: str, rank: int, end: float) -> str:
    """Another rank: say who is here, and take the name that is answered to that."""
    store.set(_key(rank), own)
    while True:
        if store.check([_ANSWER]):
            answer = json.loads(store.get(_ANSWER))
            if answer["ranks"].get(str(rank)) == own:
                name = str(answer["name"])
                store.set(f"{name}/{rank}", "here")
                return name
        if time.monotonic() > end:
            raise RunFailed(f"rank {rank} waited in vain for rank 0 to start")
        time.sleep(_POLL_SECONDS)


def _key(rank: int) -> str:
    return f"{_ANSWER}/{rank}"
