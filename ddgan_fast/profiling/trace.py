"""The profiler's view of steps: operators, kernels, communication, and what lies between."""

from __future__ import annotations

import bisect
import contextlib
import gzip
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ..files import atomic_open
from .timeline import RANGE

Interval = tuple[float, float]
_COMMUNICATION = ("nccl", "gloo:", "c10d::")


@dataclass
class Use:
    """Time that went to one operator or kernel."""

    seconds: float = 0.0
    calls: float = 0.0


@dataclass
class Span:
    """One phase of one step in the trace.

    Attributes:
        name: the phase.
        seconds: as long as it took under the profiler, in the host's time.
        busy: in operators; on a GPU, in kernels that were launched from it.
    """

    name: str
    seconds: float
    busy: float = 0.0


@dataclass
class Trace:
    """What a profiled step consists of.

    Attributes:
        operators: by name.
        kernels: of a GPU, by name.
        spans: phases in order.
        talking: seconds of communication during which nothing was computed.
    """

    operators: dict[str, Use] = field(default_factory=dict)
    kernels: dict[str, Use] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    talking: float = 0.0

    def phases(self) -> dict[str, Span]:
        """The spans of each phase together."""
        found: dict[str, Span] = {}
        for span in self.spans:
            whole = found.setdefault(span.name, Span(span.name, 0.0))
            whole.seconds += span.seconds
            whole.busy += span.busy
        return found


def record(step: Callable[[], None], device: torch.device) -> profile:
    """Run a step, which waits for the device itself, under torch's profiler."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with _quiet(), profile(activities=activities) as profiler:
        step()
    return profiler


def keep(profiler: profile, path: Path) -> None:
    """Write the Chrome trace (.json.gz), whole or not at all."""
    plain = path.with_name(f".{path.name}.{os.getpid()}.json")
    try:
        profiler.export_chrome_trace(str(plain))
        # Torch's own compression goes line by line, which takes seconds.
        with (
            open(plain, "rb") as source,
            atomic_open(path) as target,
            gzip.GzipFile(path.stem, "wb", 6, target) as packed,
        ):
            shutil.copyfileobj(source, packed, 1 << 20)
    finally:
        plain.unlink(missing_ok=True)


def read(events: Sequence[Any], known: Collection[str], on_gpu: bool) -> Trace:
    """Sort events into operators, kernels and phases.

    An operator is what torch's dispatcher calls one: operators that it is made of belong to it.

    Args:
        events: of torch's profiler.
        known: names of operators.
        on_gpu: whether operators' time is that of their kernels.
    """
    found = Trace()
    host = [e for e in events if e.device_type == DeviceType.CPU]
    # What runs beside the step, loader threads say, is in no phase and counts nowhere.
    own = [e for e in host if not e.is_async]
    kernels = [e for e in events if on_gpu and _is_kernel(e)]
    for event in kernels:
        _use(found.kernels, event.name, _length(event))
    outer = sorted(
        _outermost((e for e in own if e.cpu_parent is None), known, on_gpu),
        key=lambda e: e.time_range.start,
    )
    starts = [e.time_range.start for e in outer]
    for phase in (e for e in own if e.name.startswith(RANGE)):
        begin, end = _interval(phase)
        inside = outer[bisect.bisect_left(starts, begin) : bisect.bisect_left(starts, end)]
        span = Span(phase.name.removeprefix(RANGE), _length(phase))
        for event in inside:
            seconds = event.device_time_total / 1e6 if on_gpu else _length(event)
            _use(found.operators, event.name, seconds)
            span.busy += seconds
        found.spans.append(span)
    talking = [e for e in (kernels if on_gpu else host) if _talks(e)]
    computing = kernels if on_gpu else outer
    found.talking = (
        without(map(_interval, talking), (_interval(e) for e in computing if not _talks(e))) / 1e6
    )
    return found


def _talks(event: Any) -> bool:
    return event.name.lower().startswith(_COMMUNICATION)


def _is_kernel(event: Any) -> bool:
    return event.device_type == DeviceType.CUDA and not event.is_user_annotation


def without(intervals: Iterable[Interval], others: Iterable[Interval]) -> float:
    """Length of what the intervals cover and the others do not."""
    both = list(others)
    return covered([*intervals, *both]) - covered(both)


def covered(intervals: Iterable[Interval]) -> float:
    """Length of what the intervals cover together."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _outermost(events: Iterable[Any], known: Collection[str], on_gpu: bool) -> Iterator[Any]:
    """Operators that are not part of another one, and whatever else launches kernels.

    Communication is none of these: it is waited for.
    """
    waiting = list(events)
    while waiting:
        event = waiting.pop()
        if _talks(event):
            continue
        launches = on_gpu and event.kernels and not event.name.startswith(RANGE)
        if event.name in known or launches:
            yield event
        else:
            waiting += event.cpu_children


def _use(table: dict[str, Use], name: str, seconds: float) -> None:
    use = table.setdefault(name, Use())
    use.seconds += seconds
    use.calls += 1


def _interval(event: Any) -> Interval:
    return event.time_range.start, event.time_range.end


def _length(event: Any) -> float:
    return (event.time_range.end - event.time_range.start) / 1e6


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's library writes to the process's standard error; keep that to ourselves."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
