"""Whole training steps as CUDA graphs: recorded once, replayed with one call of the driver."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

# Before a recording the same work runs so often on a side stream: libraries choose algorithms and
# allocate; DistributedDataParallel rebuilds its buckets and needs eleven.
WARM_UP = 3
WARM_UP_RANKS = 11

Step = Callable[[torch.Tensor, torch.Tensor | None, bool], None]


class Recorder(Protocol):
    """Runs work once and can run it again on the same memory."""

    def warm_up(self, work: Callable[[], object], times: int) -> None:
        """Run the work without recording it."""

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """What repeats the work; it is not run (or undone by the caller) while recorded."""


class CudaRecorder:
    """CUDA graphs that share one memory pool, as no two of them run at once.

    What one of them leaves in the pool is overwritten when another one runs.
    """

    def __init__(self, device: torch.device) -> None:
        if device == torch.device(device.type):
            device = torch.device(device.type, torch.cuda.current_device())
        self._device = device
        self._stream = capture_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], object], times: int) -> None:
        # What is left of earlier autograd graphs would accumulate gradients on their own stream,
        # which must not wait for a recording.
        gc.collect()
        with on_capture_stream(self._device):
            for _ in range(times):
                work()
        torch.cuda.synchronize()

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        failed: BaseException | None = None
        try:
            with (
                # torch.cuda.graph leaves its stream the current one when a recording fails.
                torch.cuda.stream(self._stream),
                # Loader threads may pin memory and start copies meanwhile.
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                try:
                    work()
                except Exception as error:
                    failed = error
                    raise
        except Exception as error:
            abandon(self._device, self._stream, self._pool)
            # That the recording is void says less than what made it so.
            raise failed or error from None
        finally:
            failed = None
        return graph.replay

    def held_bytes(self) -> int:
        """Memory of the pool, which the graphs keep as long as one of them is there."""
        segments = torch.cuda.memory_snapshot()
        return sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == self._pool)


def abandon(device: torch.device, stream: torch.cuda.Stream, pool: tuple[int, int]) -> None:
    """End a failed recording for torch, which goes on waiting for its end.

    Until then no memory that other streams have used comes back, and torch's generator of the
    device refuses to draw.
    """
    index = device.index or 0
    # The first one refuses where the recording has ended properly.
    with contextlib.suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)
    # The generator is told of the end by the next recording that succeeds.
    with contextlib.suppress(RuntimeError), torch.cuda.stream(stream):
        one = torch.zeros(1, device=device)
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            one.zero_()
        finally:
            graph.capture_end()


@functools.cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a device on which graphs are recorded.

    Libraries keep workspaces for every stream they have seen, and DistributedDataParallel keeps the
    stream that it was made on.
    """
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def on_capture_stream(device: torch.device) -> Iterator[None]:
    """Work inside runs on ``capture_stream``, after what came before and before what follows."""
    stream = capture_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)


class StepGraphs:
    """A training step that is recorded once per kind, with R1 and without.

    The step must be a function of its arguments and of tensors on the device alone: numbers of the
    host are frozen as they were when it was recorded.

    Args:
        step: takes images, flip and whether R1 is applied.
        recorder: what records and replays.
        warm_up: how often the step runs before it is recorded.
    """

    def __init__(self, step: Step, recorder: Recorder, warm_up: int = WARM_UP) -> None:
        self._step = step
        self._recorder = recorder
        self._warm_up = warm_up
        self._images: torch.Tensor | None = None
        self._flip: torch.Tensor | None = None
        self._replays: dict[bool, Callable[[], None]] = {}

    def record(
        self, images: torch.Tensor, flip: torch.Tensor | None, kinds: tuple[bool, ...]
    ) -> None:
        """Record the kinds of step; what they change must be put back by the caller."""
        self._images = images.clone(memory_format=torch.preserve_format)
        self._flip = None if flip is None else flip.clone()
        own = self._images, self._flip
        for penalize in kinds:
            self._recorder.warm_up(lambda p=penalize: self._step(*own, p), self._warm_up)  # type: ignore[misc]
        for penalize in kinds:
            self._replays[penalize] = self._recorder.record(
                lambda p=penalize: self._step(*own, p)  # type: ignore[misc]
            )

    def __call__(self, images: torch.Tensor, flip: torch.Tensor | None, penalize: bool) -> None:
        """One step on other images of the recorded shape."""
        assert self._images is not None
        self._images.copy_(images, non_blocking=True)
        if self._flip is not None and flip is not None:
            self._flip.copy_(flip, non_blocking=True)
        self._replays[penalize]()
