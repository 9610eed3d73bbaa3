"""Copies batches to the device ahead of time: the next one travels while this one is computed.

    batches = DevicePrefetcher(loader, device, spec)
    for batch in batches:
        ...                 # queue the work of this batch; clips are normalised, on the device
        batches.fetch()     # read the next, and copy it on a stream of its own
        ...                 # only now wait for the device

On a GPU, work is queued and the CPU runs ahead; `fetch` uses that time. The copy goes from
page-locked memory on a stream of its own, so copy and computation do not wait for each other. Two
batches are on the device at once, the waiting one as uint8. On a CPU nothing overlaps and `fetch`
does nothing.

The batches are those of the loader, in its order. An error of the loader is raised by the `next`
that would have returned that batch, not a step earlier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.batch import Batch

_NOTHING: Any = object()


class DevicePrefetcher:
    """An iterator over the batches of a loader, on the device and normalised.

    Args:
        batches: a `Loader`, or another iterable of `Batch`.
        device: the device that computes.
        spec: mean and standard deviation that clips are normalised by.
        stream: what copies batches; None: a `CopyStream` on a GPU, and on a CPU none.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        device: torch.device,
        spec: ClipSpec,
        *,
        stream: CopyStream | None = None,
    ) -> None:
        self._batches = iter(batches)
        self._device, self._spec = device, spec
        on_gpu = device.type == "cuda"
        self._stream = CopyStream(device) if stream is None and on_gpu else stream
        self._fetched: Any = _NOTHING
        self.starved = 0.0
        """Seconds that the device was idle while the last `fetch` read a batch."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self.starved = 0.0
        if self._stream is None:
            return next(self._batches).to(self._device).normalized(self._spec)
        if self._fetched is _NOTHING:
            self._fetched = self._stream.send(next(self._batches))
        else:
            self.starved = self._stream.idle_seconds()
        batch, self._fetched = self._fetched, _NOTHING
        if isinstance(batch, Exception):
            raise batch
        return self._stream.receive(batch).normalized(self._spec)

    def fetch(self) -> None:
        """Read the next batch and start its copy, while the device works on what is queued.

        Raises nothing: an error is raised by the following `next`.
        """
        if self._stream is None or self._fetched is not _NOTHING:
            return
        self._stream.mark_end_of_work()
        try:
            batch = next(self._batches)
        except Exception as error:  # StopIteration too
            self._fetched = error
            self._stream.mark_arrival()
            return
        self._stream.mark_arrival()
        self._fetched = self._stream.send(batch)


class CopyStream:
    """A CUDA stream for copies to the device, beside the one that computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)
        self._ended = torch.cuda.Event(enable_timing=True)
        self._arrived = torch.cuda.Event(enable_timing=True)

    def send(self, batch: Batch) -> Batch:
        """Start to copy a batch to the device; returns it there, to be used after `receive`."""
        with torch.cuda.stream(self._copies):
            return batch.to(self._device)

    def receive(self, batch: Batch) -> Batch:
        """Make the computing stream wait for the copy; returns the batch, ready to be used."""
        compute = torch.cuda.current_stream(self._device)
        compute.wait_stream(self._copies)
        for tensor in batch.device_tensors().values():
            # The memory belongs to the copying stream, which must not reuse it before this stream
            # is done with it.
            tensor.record_stream(compute)
        return batch

    def mark_end_of_work(self) -> None:
        """Record that all work on the present batch is queued."""
        self._ended.record(torch.cuda.current_stream(self._device))

    def mark_arrival(self) -> None:
        """Record that the loader has returned the next batch."""
        self._arrived.record(self._copies)

    def idle_seconds(self) -> float:
        """Return how long the device had no work before the batch arrived; 0: it was busy."""
        if not self._ended.query():
            return 0.0
        self._arrived.synchronize()  # does not wait: it was recorded long ago
        return max(self._ended.elapsed_time(self._arrived) / 1000, 0.0)
