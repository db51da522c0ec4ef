"""Device time of calls: replayed CUDA graphs between events, with a cold L2 cache, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from ddgan_fast.training.graphs import abandon

Call = Callable[[], object]
_WARMUP = 3
_HOST_CALLS = 10
_HOST_SECONDS = 0.2
"""For these calls together; a slow one is called less often."""
_COPY_BYTES = 1 << 30


@dataclass
class Timed:
    """One call that is ready to be timed."""

    call: Call
    graph: torch.cuda.CUDAGraph | None = None
    why_no_graph: str = ""
    host_us: float = 0.0
    micros: list[float] = field(default_factory=list)

    @property
    def method(self) -> str:
        """How its device time is found: "graph", "events", or "host" on a CPU."""
        return "graph" if self.graph else "events" if torch.cuda.is_available() else "host"


class Clock:
    """Times calls on one device.

    Args:
        device: where the calls run.
        copy_bytes: size of the tensor whose copy gives the bandwidth.
    """

    def __init__(self, device: torch.device, copy_bytes: int = _COPY_BYTES) -> None:
        self.device = device
        self._copy_bytes = copy_bytes
        self._flush: torch.Tensor | None = None
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(4 * cache, dtype=torch.uint8, device=device)

    def copy_gb_s(self) -> float:
        """Bytes read and written per second by a large copy on the device, in GB/s."""
        size = self._copy_bytes // 4
        source = torch.rand(size, device=self.device)
        target = torch.empty_like(source)
        timed = self.prepare(lambda: target.copy_(source))
        self.rounds({"copy": timed}, 15)
        return 2 * source.nbytes / float(np.median(timed.micros)) / 1e3

    def prepare(self, call: Call) -> Timed:
        """Warm a call up, time its host side, and capture it where that works.

        What the call differentiates must have been computed on ``self.stream``, too.
        """
        if self.stream is None:
            call()
            return Timed(call)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            began = time.perf_counter()
            for _ in range(_WARMUP):
                call()
            self.stream.synchronize()
            each = (time.perf_counter() - began) / _WARMUP
            calls = max(1, min(_HOST_CALLS, int(_HOST_SECONDS / each)))
            began = time.perf_counter()
            for _ in range(calls):
                call()
            host_us = 1e6 * (time.perf_counter() - began) / calls
            self.stream.synchronize()
            graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
            try:
                graph.capture_begin(pool)
                try:
                    call()
                finally:
                    graph.capture_end()
                graph.replay()
                self.stream.synchronize()
            except Exception as error:  # a call that cannot be captured is timed launch by launch
                torch.cuda.synchronize(self.device)
                abandon(self.device, self.stream, pool)
                return Timed(call, None, str(error).strip().split("\n")[0][:200], host_us)
        return Timed(call, graph, "", host_us)

    def rounds(self, timed: Mapping[str, Timed], count: int) -> None:
        """Run all calls in turns ``count`` times; adds to each one's ``micros``."""
        if self.stream is None:
            for _ in range(count):
                for one in timed.values():
                    began = time.perf_counter()
                    one.call()
                    one.micros.append(1e6 * (time.perf_counter() - began))
            return
        assert self._flush is not None
        pairs: list[tuple[Timed, torch.cuda.Event, torch.cuda.Event]] = []
        with torch.cuda.stream(self.stream):
            for _ in range(count):
                for one in timed.values():
                    # Writing four times the cache leaves nothing of the last call in it, and gives
                    # the host time to get ahead.
                    self._flush.zero_()
                    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    begin.record()
                    if one.graph is not None:
                        one.graph.replay()
                    else:
                        one.call()
                    end.record()
                    pairs.append((one, begin, end))
                self.stream.synchronize()
        for one, begin, end in pairs:
            one.micros.append(1e3 * begin.elapsed_time(end))

    def synchronize(self) -> None:
        """Wait for the device; raises what went wrong there."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def quantiles(micros: list[float]) -> dict[str, float]:
    """Median and 20th and 80th percentile, in microseconds and, as in all rows, milliseconds."""
    found = {}
    for p in (20, 50, 80):
        found[f"us_p{p}"] = rounded(np.quantile(micros, p / 100))
        found[f"ms_p{p}"] = rounded(np.quantile(micros, p / 100) / 1e3)
    return found


def rounded(value: float) -> float:
    """Five digits."""
    return float(f"{value:.5g}")
