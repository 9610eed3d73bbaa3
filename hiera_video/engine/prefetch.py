"""The way from a loader to the device: the next batch travels while this one is computed.

    batches = DevicePrefetcher(loader, device, spec)
    for batch in batches:
        ...                 # queue the work of this batch; clips are normalised, on the device
        batches.fetch()     # read the next, and copy it on a stream of its own
        ...                 # only now wait for the device

On a GPU, work is queued and the CPU runs ahead; `fetch` uses that time. The copy goes from
page-locked memory, on a second stream, so neither waits for the other. Two batches are on the
device at once, the one that waits as uint8. On a CPU nothing overlaps and `fetch` does nothing.

The batches are those of the loader, in its order, and what goes wrong with one of them is raised
where that one would have come, not a step earlier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.batch import Batch

_NOTHING: Any = object()


class DevicePrefetcher:
    """The batches of a loader on a device, normalised; an iterator.

    Args:
        batches: a `Loader`, or anything that gives a `Batch` after the other.
        device: where the work is done.
        spec: mean and standard deviation that clips are normalised by.
        lane: how batches travel; None takes a `CopyStream` on a GPU, and else none.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        device: torch.device,
        spec: ClipSpec,
        *,
        lane: CopyStream | None = None,
    ) -> None:
        self._batches = iter(batches)
        self._device, self._spec = device, spec
        self._lane = CopyStream(device) if lane is None and device.type == "cuda" else lane
        self._fetched: Any = _NOTHING
        self.starved = 0.0
        """Seconds for which the device had nothing to do while the last `fetch` read a batch."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self.starved = 0.0
        if self._lane is None:
            return next(self._batches).to(self._device).normalized(self._spec)
        if self._fetched is _NOTHING:
            self._fetched = self._lane.send(next(self._batches))
        else:
            self.starved = self._lane.idle_seconds()
        batch, self._fetched = self._fetched, _NOTHING
        if isinstance(batch, Exception):
            raise batch
        return self._lane.receive(batch).normalized(self._spec)

    def fetch(self) -> None:
        """Read the next batch and send it on its way, while the device works on what is queued.

        Raises nothing: what goes wrong is raised by the next `next`.
        """
        if self._lane is None or self._fetched is not _NOTHING:
            return
        self._lane.work_ends_here()
        try:
            batch = next(self._batches)
        except Exception as error:  # StopIteration too
            self._fetched = error
            self._lane.batch_is_here()
            return
        self._lane.batch_is_here()
        self._fetched = self._lane.send(batch)


class CopyStream:
    """A CUDA stream for copies to the device, beside the one that computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)
        self._ended = torch.cuda.Event(enable_timing=True)
        self._arrived = torch.cuda.Event(enable_timing=True)

    def send(self, batch: Batch) -> Batch:
        """The batch on the device, some time soon."""
        with torch.cuda.stream(self._copies):
            return batch.to(self._device)

    def receive(self, batch: Batch) -> Batch:
        """The same, which may be worked on from here on."""
        compute = torch.cuda.current_stream(self._device)
        compute.wait_stream(self._copies)
        for tensor in batch.device_tensors():
            # Memory of the copying stream: not to be used again before this stream is done with it.
            tensor.record_stream(compute)
        return batch

    def work_ends_here(self) -> None:
        """All work on the present batch is queued."""
        self._ended.record(torch.cuda.current_stream(self._device))

    def batch_is_here(self) -> None:
        """The loader has given the next batch."""
        self._arrived.record(self._copies)

    def idle_seconds(self) -> float:
        """How long before the batch was there the work had ended; 0 where it has not ended yet."""
        if not self._ended.query():
            return 0.0
        self._arrived.synchronize()  # long ago
        return max(self._ended.elapsed_time(self._arrived) / 1000, 0.0)
