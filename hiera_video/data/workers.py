"""The worker processes of a loader: what they run, the limits of one video, and how they die.

A worker is sent the path and the label of each video that it reads and holds no list, so that the
number of workers does not multiply the memory of a long list. Workers are started from a fork
server: forking the training process itself, with its threads (FFmpeg's, OpenMP's, CUDA's), can make
them hang. A script that starts workers therefore needs `if __name__ == "__main__":` around its
code.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from hiera_video.data.batch import Clips, Failed
from hiera_video.data.datasets import ClipReader, Sample, VideoDataset, read_clips
from hiera_video.data.preload import PRELOAD
from hiera_video.errors import RunFailed, hide_secrets
from hiera_video.video.limits import MEMORY_LIMIT, TIME_LIMIT, is_out_of_memory, limited
from hiera_video.video.processes import SERVER_GONE, end_with_parent, ended_by, fork_server

logger = logging.getLogger("hiera_video")

MAX_DEATHS, DEATH_WINDOW = 5, 100
"""A run fails when MAX_DEATHS workers die, with no video to blame, with fewer than DEATH_WINDOW
batches between one death and the next."""

VIDEO_TIME_LIMIT = 2 * TIME_LIMIT
"""Seconds until a worker that reads one video is ended. Longer than the decoder's own limit, since
a decoder that interrupts itself reports the cause better."""


# ---- inside a worker ----------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleReader(Dataset):
    """The data set that a DataLoader's workers hold: indexed with a `Sample`, it reads the clips.

    Each worker records in `reading` which video it is reading.
    """

    reader: ClipReader
    reading: Tensor | None
    """int64 [workers], shared memory; None where the main process reads."""
    time_limit: float
    """Seconds per video."""
    memory_limit: int
    """Bytes per video, its clips included."""

    def __getitem__(self, sample: Sample) -> Clips | Failed:
        worker = get_worker_info()
        if worker is None or self.reading is None:
            return read_clips(self.reader, sample)
        self.reading[worker.id] = sample.video_id
        item = self._read_limited(sample)
        self.reading[worker.id] = -1
        return item

    def _read_limited(self, sample: Sample) -> Clips | Failed:
        try:
            with limited(self.time_limit, self.memory_limit):
                return read_clips(self.reader, sample)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = f"needed more than {self.memory_limit / 2**30:.1f} GiB of memory"
            return Failed(sample.video_id, hide_secrets(sample.path), reason)


def memory_limit(dataset: VideoDataset) -> int:
    """Most bytes that a worker may take for one video."""
    # Augmentation computes in float32 and needs up to three copies of the clips.
    return MEMORY_LIMIT + 3 * torch.float32.itemsize * bytes_per_video(dataset)


def bytes_per_video(dataset: VideoDataset) -> int:
    """Bytes of the uint8 clips that one video gives."""
    return 3 * dataset.spec.num_frames * dataset.spec.crop_size**2 * dataset.clips_per_video


def init_worker(worker_id: int) -> None:
    """Prepare a worker process; the `worker_init_fn` of a DataLoader."""
    # Ctrl-C reaches every process of a terminal; the trainer stops the workers when it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One core per worker: clips are decoded side by side, not each on all cores.
    torch.set_num_threads(1)
    end_with_parent()


def worker_context() -> multiprocessing.context.BaseContext:
    """A context that forks workers from a server which has imported what they need."""
    return fork_server(PRELOAD)


# ---- in the main process ------------------------------------------------------------------------


class WorkerMonitor:
    """Decides what happens when worker processes die: who is to blame, and whether to go on.

    Args:
        dataset: its `unreadable` takes up the videos that are given up.
        count: number of workers.
        others_wait: whether other processes of a distributed run wait for this one's batches.

    Attributes:
        processes: the workers; set by the loader when it starts them.
        reading: int64 [workers], shared memory: the video that each worker is reading, or -1.
        batches_since_death: batches that came since the last death with no video to blame.
    """

    def __init__(self, dataset: VideoDataset, count: int, others_wait: bool) -> None:
        self.dataset = dataset
        self.others_wait = others_wait
        self.time_limit = VIDEO_TIME_LIMIT
        self.processes: Sequence[multiprocessing.process.BaseProcess] = ()
        self.reading = torch.full((count,), -1, dtype=torch.int64).share_memory_()
        self.batches_since_death = 0
        self._deaths = 0
        self._suspects: set[int] = set()

    def handle_deaths(self, error: Exception) -> bool:
        """Record the workers that died and end the others; return whether any had died.

        Raises RunFailed (from `error`) where new workers would die as well.
        """
        dead = self._dead_workers()
        codes = {code for _, code in dead}
        all_ended = len(dead) == len(self.processes) and codes <= {-signal.SIGTERM, SERVER_GONE}
        if all_ended and self.others_wait:  # torchrun ends the processes that it started like this
            message = "all data loading workers were ended from outside"
            self._count_death(message, error)
            logger.warning("%s. They are replaced", message)
        else:
            for worker, exitcode in dead:
                self._handle_death(int(self.reading[worker]), exitcode, error)
            if all_ended and codes == {-signal.SIGTERM}:
                raise RunFailed("all data loading workers were ended by SIGTERM") from error
        if dead:
            for process in self.processes:
                process.kill()
            self.reading.fill_(-1)
        return bool(dead)

    def _dead_workers(self, patience: float = 1.0) -> list[tuple[int, int]]:
        """(worker, exit code) of the workers that ended.

        Waits up to `patience` seconds, until the system reports the exit codes.
        """
        end = time.monotonic() + patience
        while True:
            codes = [process.exitcode for process in self.processes]
            dead = [(worker, code) for worker, code in enumerate(codes) if code is not None]
            # After one SIGTERM, wait for the rest: the signal may be on its way to all workers.
            more_to_come = -signal.SIGTERM in codes and None in codes
            if (dead and not more_to_come) or time.monotonic() > end:
                return dead
            time.sleep(0.05)

    def _handle_death(self, video_id: int, exitcode: int, error: Exception) -> None:
        """Blame the video that the worker was reading, or count a death that no video explains."""
        ending = ended_by(exitcode)
        if video_id >= 0:
            path = hide_secrets(self.dataset.manifest.paths[video_id])
            if ending not in _AMBIGUOUS_ENDINGS:
                self._give_up(video_id, f"crashed the process that read it ({ending})")
                return
            reason = _AMBIGUOUS_ENDINGS[ending].format(limit=self.time_limit)
            if video_id in self._suspects:
                self._give_up(video_id, f"{reason}, twice")
                return
            self._suspects.add(video_id)
            if ending == "SIGALRM":
                logger.warning("%s: %s; it is tried once more", path, reason)
                return
        while_reading = f" while it read {path}" if video_id >= 0 else ""
        message = f"a data loading worker died{while_reading}: {_cause(exitcode)}"
        self._count_death(message, error, hopeless=video_id < 0 <= exitcode != SERVER_GONE)
        logger.warning("%s. It is replaced", message)

    def _count_death(self, message: str, error: Exception, *, hopeless: bool = False) -> None:
        """Count a death with no video to blame; RunFailed at the last of `MAX_DEATHS`."""
        self._deaths = self._deaths + 1 if self.batches_since_death < DEATH_WINDOW else 1
        self.batches_since_death = 0
        if self._deaths >= MAX_DEATHS or hopeless:
            raise RunFailed(
                f"{message}. Set DATA_LOADER.NUM_WORKERS 0 to read in the main process, where the "
                "error can be seen"
            ) from error

    def _give_up(self, video_id: int, reason: str) -> None:
        """Do not open this video again."""
        if video_id in self.dataset.unreadable:  # two workers were reading it at once
            return
        self.dataset.unreadable[video_id] = reason
        logger.warning(
            "%s: %s; it counts as unreadable from here on",
            hide_secrets(self.dataset.manifest.paths[video_id]),
            reason,
        )


_AMBIGUOUS_ENDINGS = {
    "SIGALRM": "took longer than {limit:g} s",
    "SIGKILL": "the process that read it was killed, most likely out of memory",
    "SIGTERM": "the process that read it was ended by SIGTERM",
    f"exit code {SERVER_GONE}": "the process that read it was killed",
}
"""Endings of a worker that may have another cause than the video it was reading: memory that all
processes use up together, a person, a computer in standby. Such a video is read once more."""

_CAUSES = {
    "SIGKILL": "killed, most likely out of memory: use fewer DATA_LOADER.NUM_WORKERS",
    "SIGBUS": "no shared memory left: enlarge /dev/shm (docker run --shm-size 8g)",
}


def _cause(exitcode: int) -> str:
    if exitcode == SERVER_GONE:
        return "killed, together with the process that starts them"
    if exitcode >= 0:
        return (
            f"it ended with exit code {exitcode} (a script of your own that starts workers needs "
            f"`if __name__ == '__main__':` around its code)"
        )
    name = ended_by(exitcode)
    return f"{name}, {_CAUSES.get(name, 'a signal from outside')}"
