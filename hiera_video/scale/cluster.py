"""Ray: started here, or joined; whether it has room for the actors that are wanted.

Actors that take every processor leave Ray nothing to do the rest of a job with, and actors that do
not fit are waited for without end or word (ray#44687): both are refused before the work.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hiera_video.errors import RunFailed, UserError, first_line
from hiera_video.video.processes import usable_cores

OBJECT_BYTES = 256 << 20
"""Of Ray's store on one machine: numbers of blocks travel, and no frames."""

LEAST_SHARE = 0.25
"""Of a processor that an actor has, unless the user says how much it is."""


@dataclass(frozen=True)
class Actors:
    """The processes that work, and what Ray sets aside for each."""

    count: int
    cpus: float
    gpus: float = 0.0

    def threads(self, cores: float) -> int:
        """Threads that the model of each may compute with, where there are so many cores."""
        given = os.environ.get("OMP_NUM_THREADS", "")
        return int(given) if given.isdigit() and int(given) else max(1, int(cores // self.count))


def choose_actors(
    count: int | None, cpus: float | None, gpus: float, there: dict[str, float]
) -> Actors:
    """Choose what is not given, and refuse what does not fit.

    count, cpus, gpus: as the user gave them, cpus and gpus for each actor. there: the processors
    and GPUs of the cluster, as Ray counts them.

    Raises UserError, which says what to set instead.
    """
    cores, cards = there.get("CPU", 0.0), there.get("GPU", 0.0)
    if gpus > cards:
        raise UserError(
            f"--gpus-per-actor {gpus:g}: Ray sees {cards:g} GPUs, and would wait for ever; "
            "--gpus-per-actor 0 works on processors"
        )
    if count is None:
        count = int(cards / gpus) if gpus else max(1, int(cores))
    if count < 1:
        raise UserError(f"--actors {count}: at least 1")
    if gpus and count * gpus > cards:
        raise UserError(
            f"--actors {count} with {gpus:g} GPUs each: Ray sees {cards:g}, and would wait for "
            f"ever; at most --actors {int(cards / gpus)}"
        )
    if cpus is None:
        cpus = min(1.0, (cores - min(0.5, cores / 2)) / count)
        if cpus < LEAST_SHARE:
            raise UserError(
                f"--actors {count} on {cores:g} processors: at most "
                f"--actors {int((cores - 0.5) / LEAST_SHARE)}, or --cpus-per-actor {cpus:.2g} to "
                "have so many models in memory all the same"
            )
    if cpus <= 0:
        raise UserError(f"--cpus-per-actor {cpus:g}: above 0")
    if count * cpus >= cores:
        fewer = max(0, int((cores - 0.25) / cpus))
        advice = f"--actors {fewer}, or " if fewer else ""
        raise UserError(
            f"{count} actors of {cpus:g} processors take all {cores:g} that Ray has, and it would "
            f"wait for ever (ray#44687); {advice}--cpus-per-actor "
            f"{_rounded_down((cores - min(0.5, cores / 2)) / count)}"
        )
    return Actors(count, _share(cpus), gpus)


def _share(cpus: float) -> float:
    """As Ray counts: in ten-thousandths, and whole numbers from 1 on."""
    return int(cpus * 10_000) / 10_000 if cpus < 1 else float(int(cpus))


def _rounded_down(share: float) -> str:
    return f"{int(share * 100) / 100:g}" if share >= 0.01 else f"{share:.2g}"


def require_ray() -> None:
    """Raise UserError where Ray is not installed."""
    from importlib.util import find_spec

    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise UserError("labelling a data set needs Ray: pip install 'hiera_video[scale]'")


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Nothing that C++ prints on stderr meanwhile is shown: Ray tells of its own log level."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[dict[str, float]]:
    """Start Ray on this machine, or join the cluster at `address`; yield what it has.

    Raises RunFailed where that fails.
    """
    # Nothing is sent anywhere, and Ray's own messages are for those who build on it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Else its actors are nice to all others (15): on a machine that is shared they starve.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # never one that RAY_ADDRESS names: it was not asked for
        options.update(address="local", include_dashboard=False, num_cpus=usable_cores())
        options["object_store_memory"] = OBJECT_BYTES
    else:
        options["address"] = address
    try:
        with _silent_stderr():
            ray.init(**options)
    except Exception as error:
        where = "on this machine" if address is None else f"at {address}"
        hint = ""
        token = "set RAY_AUTH_MODE=token, and put the cluster's token into ~/.ray/auth_token"
        if "InvalidAuthToken" in str(error.__cause__):
            hint = f"; it asks for a token: {token}"
        elif (address or "").startswith("ray://"):  # whose server only is silent without one
            hint = f"; if it asks for a token: {token}"
        raise RunFailed(f"cannot reach Ray {where}: {first_line(error)}{hint}") from error
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()
