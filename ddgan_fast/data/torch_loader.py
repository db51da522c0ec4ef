"""The loader: prefetches the batches of a plan in threads and puts them on the device."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from ddgan_fast.data.dataset import Dataset
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.resident import Resident, fits

_JOIN_SECONDS = 10.0
_POLL_SECONDS = 0.2
_Item = tuple[Tensor, Tensor | None] | BaseException


@dataclass
class Batch:
    """One rank's part of a step's data, on the device."""

    images: Tensor
    """uint8 [B, H, W, C], or float32 [B, 2] for points."""
    flip: Tensor | None
    """bool [B], true where the image is to be mirrored; None where nothing is mirrored."""
    step: int
    """The step this batch belongs to."""


class Loader:
    """Endless iterator over a rank's batches, exact from any step.

    Small sets that are held in memory are put on the device and indexed there. Others are fetched
    by ``dataset.workers`` background threads, each of which prepares whole batches ahead of time.

    Args:
        dataset: Where the records come from.
        plan: Which records a step takes.
        device: Where the batches go.
        rank: This process's rank.
        world: Number of ranks.
        start_step: Step of the first batch.
        timeout: Seconds without a batch after which the data counts as stuck.

    Raises:
        ValueError: If the plan was made for another number of records, or its batch does not
            divide by the ranks.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        *,
        timeout: float = 600.0,
    ) -> None:
        if plan.n != len(dataset):
            raise ValueError(
                f"The plan deals {plan.n} records, but the data set has {len(dataset)}."
            )
        plan.positions(start_step, rank, world)  # says what is wrong here, not in a thread
        self.wait_seconds = 0.0
        self._make = (dataset, plan, torch.device(device), rank, world)
        self._timeout = timeout
        self._step = start_step
        self._backend: Resident | _Threads | None = None
        self._closed = False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            ValueError: If a record cannot be used; the message names it.
            OSError: If a record cannot be read.
            RuntimeError: If the loader is closed, or no batch came within ``timeout``.
        """
        if self._closed:
            raise RuntimeError("The loader is closed; build a new one to go on.")
        started = time.perf_counter()
        try:
            if self._backend is None:
                self._backend = self._start()
            images, flip = self._backend.get(self._step)
        except BaseException:
            self.close()
            raise
        finally:
            self.wait_seconds += time.perf_counter() - started
        batch = Batch(images, flip, self._step)
        self._step += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """All there is to save: the step of the next batch."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues at the saved step."""
        self._stop()
        self._step = state["step"]

    def close(self) -> None:
        """Ends the threads; batches that were prefetched are dropped. May be called again."""
        self._closed = True
        self._stop()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> Resident | _Threads:
        if fits(self._make[0]):
            return Resident(*self._make)
        threads = _Threads(*self._make, self._step, self._timeout)
        # A loader that is dropped without close() must not leave its threads behind. Only a flag is
        # set: the garbage collector may call this inside a worker that holds its queue's lock.
        weakref.finalize(self, threads.stopping.set)
        return threads

    def _stop(self) -> None:
        if self._backend is not None:
            self._backend.stop()
            self._backend = None


class _Threads:
    """Worker k prepares the steps start + k, start + k + workers, ...; each has its own queue.

    So the order of the batches needs no bookkeeping, and an error is met at the step it belongs to.
    The threads hold no reference to the loader.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        device: torch.device,
        rank: int,
        world: int,
        start: int,
        timeout: float,
    ) -> None:
        self._dataset, self._plan, self._device = dataset, plan, device
        self._rank, self._world = rank, world
        self._start, self._timeout = start, timeout
        self.stopping = threading.Event()
        workers = max(1, dataset.workers)
        depth = max(1, 4 // workers)
        self._queues: list[queue.Queue[_Item]] = [queue.Queue(depth) for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._work, args=(k,), name=f"ddgan-loader-{k}", daemon=True)
            for k in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def get(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Records and flips of a step; steps must be asked for in order."""
        try:
            item = self._queues[(step - self._start) % len(self._queues)].get(timeout=self._timeout)
        except queue.Empty:
            raise RuntimeError(
                f"No data for step {step} within {self._timeout:g} seconds: "
                f"the storage under {self._dataset.describe()} seems to be stuck."
            ) from None
        if isinstance(item, BaseException):
            raise item
        images, flip = item
        if self._device.type == "cpu":
            return images, flip
        # The memory is pinned and its allocator waits for the copy before it is used again.
        moved = images.to(self._device, non_blocking=True)
        return moved, None if flip is None else flip.to(self._device, non_blocking=True)

    def stop(self) -> None:
        """Ends the threads."""
        self.stopping.set()
        for waiting in self._queues:  # room for a worker that is blocked on a full queue
            while not waiting.empty():
                waiting.get_nowait()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self, worker: int) -> None:
        step = self._start + worker
        while not self.stopping.is_set():
            try:
                item: _Item = self._prepare(step)
            except BaseException as error:
                item = error
            self._put(self._queues[worker], item)
            if isinstance(item, BaseException):
                return
            step += len(self._queues)

    def _put(self, target: queue.Queue[_Item], item: _Item) -> None:
        while not self.stopping.is_set():
            try:
                return target.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                pass

    def _prepare(self, step: int) -> tuple[Tensor, Tensor | None]:
        # numpy does the copying: torch's would wake its thread pool for every batch.
        indices, flips = self._plan.batch(step, self._rank, self._world)
        records = self._dataset.fetch(indices)
        mask = flips if self._plan.flip and self._dataset.flips else None
        if self._device.type != "cuda":
            return torch.from_numpy(records), None if mask is None else torch.from_numpy(mask)
        return _pinned(records), None if mask is None else _pinned(mask)


def _pinned(array: np.ndarray) -> Tensor:
    source = torch.from_numpy(array)
    target = torch.empty_like(source, pin_memory=True)
    np.copyto(target.numpy(), array)
    return target
