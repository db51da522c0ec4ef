"""Deals the time of training steps to phases: at every moment exactly one phase is on.

So the phases of a step add up to the step. On a GPU the borders are events in the stream: nothing
waits for the device, and a phase is as long as the device needs to get through it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

RANGE = "phase: "
"""What the names of phases begin with in a trace."""
REST = "unaccounted"
"""What belongs to no phase that has a name."""


@dataclass
class _Stamp:
    host: float
    event: torch.cuda.Event | None

    def until(self, later: _Stamp) -> float:
        if self.event is None or later.event is None:
            return later.host - self.host
        return self.event.elapsed_time(later.event) / 1e3


@dataclass
class Step:
    """One step that was taken.

    Attributes:
        penalize: whether with R1.
        marked: whether it was dealt to phases; otherwise it only has a length.
        images: images that passed through each network, by its name.
        host_wait: seconds that the host waited for data.
    """

    penalize: bool
    marked: bool
    images: dict[str, int] = field(default_factory=dict)
    host_wait: float = 0.0
    _marks: list[tuple[str, _Stamp]] = field(default_factory=list)
    _end: _Stamp | None = None

    @property
    def seconds(self) -> float:
        """Its length; the device must have finished it."""
        assert self._end is not None
        return self._marks[0][1].until(self._end)

    def phases(self) -> dict[str, float]:
        """Seconds of each phase, in the order in which they first came."""
        assert self._end is not None
        ends = [stamp for _, stamp in self._marks[1:]] + [self._end]
        found: dict[str, float] = {}
        for (name, begin), end in zip(self._marks, ends, strict=True):
            found[name] = found.get(name, 0.0) + begin.until(end)
        return found


class Timeline:
    """The steps that are taken, and the phase that is on.

    Args:
        device: whose time counts.

    Attributes:
        steps: those that were taken, in order.
        ranges: name the phases in a trace of torch's profiler, too; as NVTX ranges they always are.
        watchers: told of every phase that begins.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self.steps: list[Step] = []
        self.ranges = False
        self.watchers: list[Callable[[str], None]] = []
        self._current: Step | None = None
        self._range: torch.profiler.record_function | None = None
        self._in_range = False

    def start(self, penalize: bool, marked: bool, first: str) -> None:
        """A step begins, with this phase; the step before ends."""
        stamp = self._stamp()
        self._close(stamp)
        self._current = Step(penalize, marked)
        self._current._marks.append((first, stamp))
        self.steps.append(self._current)
        if marked:
            self._tell(first)

    def mark(self, phase: str) -> None:
        """From now on this phase is on."""
        step = self._current
        if step is None or not step.marked or step._marks[-1][0] == phase:
            return
        self._end_range()
        step._marks.append((phase, self._stamp()))
        self._tell(phase)

    def saw(self, network: str, images: int) -> None:
        """So many images pass through a network."""
        if self._current is not None:
            seen = self._current.images
            seen[network] = seen.get(network, 0) + images

    def waited(self, seconds: float) -> None:
        """The host waited for data."""
        if self._current is not None:
            self._current.host_wait = seconds

    def finish(self) -> None:
        """The last step ends; waits for the device."""
        self._close(self._stamp())
        self._current = None
        if self._cuda:
            torch.cuda.synchronize(self._device)

    def _close(self, stamp: _Stamp) -> None:
        self._end_range()
        if self._current is not None:
            self._current._end = stamp

    def _stamp(self) -> _Stamp:
        event = None
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return _Stamp(time.perf_counter(), event)

    def _tell(self, phase: str) -> None:
        if self.ranges:
            self._range = torch.profiler.record_function(RANGE + phase)
            self._range.__enter__()
        if self._cuda:
            torch.cuda.nvtx.range_push(RANGE + phase)
            self._in_range = True
        for watcher in self.watchers:
            watcher(phase)

    def _end_range(self) -> None:
        if self._in_range:
            torch.cuda.nvtx.range_pop()
            self._in_range = False
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
