"""The loader: prefetches the batches of a plan in threads and puts them on the device.

``loading.make_loader`` chooses the kind that suits data and device.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from ddgan_fast.data.dataset import Dataset
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.resident import Resident, fits
from ddgan_fast.data.ring import Sent, make_upload

_JOIN_SECONDS = 10.0
_POLL_SECONDS = 0.2
KINDS = ("auto", "resident", "ring", "workers")


@dataclass
class Batch:
    """One rank's part of a step's data, on the device."""

    images: Tensor
    """uint8 [B, H, W, C], or float32 [B, 2] for points."""
    flip: Tensor | None
    """bool [B], true where the image is to be mirrored; None where nothing is mirrored."""
    step: int
    """The step this batch belongs to."""
    label: Tensor | None = None
    """int64 [B], classes, where somebody has asked ``labels.Labels`` for them."""


class Loader:
    """Endless iterator over a rank's batches, exact from any step.

    Kind "resident" puts the whole set on the device and indexes it there. The others fetch whole
    batches ahead of time, "ring" in one background thread, "workers" in ``dataset.workers``; on a
    GPU each thread sends them through a ring of pinned buffers.

    Args:
        dataset: Where the records come from.
        plan: Which records a step takes.
        device: Where the batches go.
        rank: This process's rank.
        world: Number of ranks.
        start_step: Step of the first batch.
        kind: As above; "auto" is "resident" for a set that is in memory and small enough, else
            "workers".
        note: What to tell the user about this choice.
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
        kind: str = "auto",
        note: str = "",
        timeout: float = 600.0,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; allowed are {', '.join(KINDS)}.")
        if plan.n != len(dataset):
            raise ValueError(
                f"The plan deals {plan.n} records, but the data set has {len(dataset)}."
            )
        plan.positions(start_step, rank, world)  # says what is wrong here, not in a thread
        self.wait_seconds = 0.0
        device = torch.device(device)
        if kind == "auto":
            kind = "resident" if fits(dataset, device) else "workers"
        self.kind, self.note = kind, note
        self._make = (dataset, plan, device, rank, world)
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
        if self.kind == "resident":
            return Resident(*self._make)
        workers = 1 if self.kind == "ring" else max(1, self._make[0].workers)
        threads = _Threads(*self._make, self._step, self._timeout, workers)
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
    The threads hold no reference to the loader. Processes would cost more (benchmarks/LOG.md):
    Pillow decodes without holding the interpreter, and a process has to hand every batch over.
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
        workers: int,
    ) -> None:
        self._dataset, self._plan = dataset, plan
        self._rank, self._world = rank, world
        self._start, self._timeout = start, timeout
        self.stopping = threading.Event()
        depth = max(1, 4 // workers)
        self._queues: list[queue.Queue[Sent | BaseException]] = [
            queue.Queue(depth) for _ in range(workers)
        ]
        self._uploads = [make_upload(dataset, device) for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._work, args=(k,), name=f"ddgan-loader-{k}", daemon=True)
            for k in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def get(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Records and flips of a step; steps must be asked for in order."""
        worker = (step - self._start) % len(self._queues)
        try:
            item = self._queues[worker].get(timeout=self._timeout)
        except queue.Empty:
            raise RuntimeError(
                f"No data for step {step} within {self._timeout:g} seconds: "
                f"the storage under {self._dataset.describe()} seems to be stuck "
                "(a larger run.timeout_s waits longer)."
            ) from None
        if isinstance(item, BaseException):
            raise item
        return self._uploads[worker].receive(item)

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
                item: Sent | BaseException = self._prepare(worker, step)
            except BaseException as error:
                item = error
            self._put(self._queues[worker], item)
            if isinstance(item, BaseException):
                return
            step += len(self._queues)

    def _put(
        self, target: queue.Queue[Sent | BaseException], item: Sent | BaseException
    ) -> None:
        while not self.stopping.is_set():
            try:
                return target.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                pass

    def _prepare(self, worker: int, step: int) -> Sent:
        indices, flips = self._plan.batch(step, self._rank, self._world)
        mirrored = self._plan.flip and self._dataset.flips
        return self._uploads[worker].send(self._dataset, indices, flips if mirrored else None)
