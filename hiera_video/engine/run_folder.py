"""OUTPUT_DIR as one run holds it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

from hiera_video import files
from hiera_video.engine.distributed import World
from hiera_video.errors import UserError


class RunFolder:
    """OUTPUT_DIR, created, tested for writing and locked: no other run can write into it.

    A context manager, entered by every process; rank 0 does the work. Entering raises UserError
    where the folder cannot be written or another run is using it.

    Attributes:
        path: the folder.
        checkpoints: its folder of checkpoints.
    """

    def __init__(self, path: str | Path, world: World) -> None:
        self.path = Path(path).expanduser()
        self.checkpoints = self.path / "checkpoints"
        self._world = world
        self._lock: IO[Any] | None = None

    def __enter__(self) -> RunFolder:
        self._world.run_on_main(self._open)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _open(self) -> None:
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            probe = self.checkpoints / f".probe.{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
            self._lock = files.hold(self.path / ".lock")
        except OSError as error:
            raise UserError(
                f"cannot write to OUTPUT_DIR {self.path}: {error.strerror or error}; "
                "choose a folder you may write to: OUTPUT_DIR runs/my_run"
            ) from None
        if self._lock is None:
            raise UserError(
                f"another run is writing to OUTPUT_DIR {self.path}; "
                "wait for it, or choose another folder"
            )
        files.remove_leftovers(self.checkpoints)
