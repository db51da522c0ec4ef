"""How a loader's thread hands its batches to the device: through a ring of pinned buffers."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddgan_fast.data.dataset import Dataset

SLOTS = 3


class Event(Protocol):
    """A point in a stream of copies."""

    def synchronize(self) -> None:
        """Waits until everything before it is done."""


@dataclass
class Sent:
    """A batch on its way to the device."""

    images: Tensor
    flip: Tensor | None
    arrived: Event | None
    """Reached when the copies are done; None where nothing was copied."""


class Upload(Protocol):
    """What one thread sends its batches with."""

    def send(
        self, dataset: Dataset, indices: NDArray[np.int64], flips: NDArray[np.bool_] | None
    ) -> Sent:
        """Reads the records and starts their way to the device; called in the thread."""

    def receive(self, sent: Sent) -> tuple[Tensor, Tensor | None]:
        """Makes a batch safe to use; called by the consumer."""


class FreshArrays:
    """On the CPU: every batch is memory of its own, which the consumer may keep and change."""

    def send(
        self, dataset: Dataset, indices: NDArray[np.int64], flips: NDArray[np.bool_] | None
    ) -> Sent:
        images = torch.from_numpy(dataset.fetch(indices))
        return Sent(images, None if flips is None else torch.from_numpy(flips), None)

    def receive(self, sent: Sent) -> tuple[Tensor, Tensor | None]:
        return sent.images, sent.flip


class Copies(Protocol):
    """Where the ring's buffers come from, and what copies them to the device."""

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory on the host that can be copied from in the background."""

    def start(self, *buffers: Tensor) -> tuple[list[Tensor], Event]:
        """Starts copies of the buffers; the event is reached when they may be written again."""

    def receive(self, tensors: Sequence[Tensor], arrived: Event) -> None:
        """Lets the consumer's work wait for the copies, without stopping the host."""


class PinnedRing:
    """A few buffers in turn: each is filled again only when the copy out of it has ended."""

    def __init__(self, copies: Copies, slots: int = SLOTS) -> None:
        self._copies = copies
        self._slots: deque[_Slot] = deque(_Slot() for _ in range(slots))

    def send(
        self, dataset: Dataset, indices: NDArray[np.int64], flips: NDArray[np.bool_] | None
    ) -> Sent:
        slot = self._slots[0]
        self._slots.rotate(-1)
        if slot.copied is not None:
            slot.copied.synchronize()
        shape = (len(indices), *dataset.shape)
        if slot.images is None or slot.images.shape != shape:
            slot.images = self._copies.buffer(shape, _torch_type(dataset.dtype))
            slot.flip = self._copies.buffer(shape[:1], torch.bool)
        # numpy does the copying: torch's would wake its thread pool for every batch.
        read_into(dataset, indices, slot.images.numpy())
        buffers = [slot.images]
        if flips is not None:
            assert slot.flip is not None
            np.copyto(slot.flip.numpy(), flips)
            buffers.append(slot.flip)
        moved, slot.copied = self._copies.start(*buffers)
        return Sent(moved[0], moved[1] if len(moved) > 1 else None, slot.copied)

    def receive(self, sent: Sent) -> tuple[Tensor, Tensor | None]:
        tensors = [sent.images] if sent.flip is None else [sent.images, sent.flip]
        assert sent.arrived is not None
        self._copies.receive(tensors, sent.arrived)
        return sent.images, sent.flip


@dataclass
class _Slot:
    images: Tensor | None = None
    flip: Tensor | None = None
    copied: Event | None = None


class CudaCopies:
    """Pinned memory, and copies on a stream of their own beside the training step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def start(self, *buffers: Tensor) -> tuple[list[Tensor], Event]:
        with self.issuing() as done:
            moved = [buffer.to(self._device, non_blocking=True) for buffer in buffers]
        return moved, done

    @contextlib.contextmanager
    def issuing(self) -> Iterator[torch.cuda.Event]:
        """Work that is issued inside goes to the copies' stream; the event ends it."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            # A thread that waits for a blocking event sleeps instead of spinning.
            done = torch.cuda.Event(blocking=True)
            yield done
            done.record(self._stream)

    def receive(self, tensors: Sequence[Tensor], arrived: Event) -> None:
        assert isinstance(arrived, torch.cuda.Event)
        current = torch.cuda.current_stream(self._device)
        current.wait_event(arrived)
        for tensor in tensors:  # else their memory could go to a later copy while still in use
            tensor.record_stream(current)


def make_upload(dataset: Dataset, device: torch.device) -> Upload:
    """What suits data and device; every thread needs one of its own."""
    make = getattr(dataset, "make_upload", None)
    if make is not None:
        upload: Upload = make(device)
        return upload
    return PinnedRing(CudaCopies(device)) if device.type == "cuda" else FreshArrays()


def read_into(dataset: Dataset, indices: NDArray[np.int64], target: NDArray[Any]) -> None:
    """Fetches records into ``target``, in one copy where the data set can do that."""
    fetch_into = getattr(dataset, "fetch_into", None)
    if fetch_into is not None:
        fetch_into(indices, target)
    else:
        np.copyto(target, dataset.fetch(indices))


def _torch_type(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
