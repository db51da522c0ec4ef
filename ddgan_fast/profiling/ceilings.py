"""What this machine can do at most: matrix products and copies, timed in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SIDE = {"cpu": 1024, "cuda": 8192}
_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
_ROUNDS = 9


@dataclass(frozen=True)
class Ceilings:
    """Peaks of one device.

    Attributes:
        flops: per second, of a large product of matrices in the run's precision.
        bytes: read and written per second by a large copy.
        dtype: the precision.
    """

    flops: float
    bytes: float
    dtype: str

    def seconds(self, flops: float, size: float) -> float:
        """The least time for so much arithmetic and so many bytes (the roofline)."""
        return max(flops / self.flops, size / self.bytes)

    def bound(self, flops: float, size: float) -> str:
        """Which of the two takes longer: "compute" or "memory"."""
        return "compute" if flops / self.flops > size / self.bytes else "memory"


def measure(device: torch.device, precision: str, scale: float = 1.0) -> Ceilings:
    """Time both; the fastest of some rounds counts, as nothing disturbed it.

    Args:
        device: which.
        precision: "fp32", "tf32", "bf16" or "fp16"; process-wide settings are the caller's.
        scale: smaller matrices and copies, for tests.
    """
    side, size = int(_SIDE[device.type] * scale), int(_BYTES[device.type] * scale) // 4
    dtype = _TYPES.get(precision, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    seconds = _fastest(lambda: torch.mm(a, b, out=product), device)
    source = torch.rand(size, device=device)
    target = torch.empty_like(source)
    copy = _fastest(lambda: target.copy_(source), device)
    return Ceilings(2 * side**3 / seconds, 2 * source.nbytes / copy, precision)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(_ROUNDS):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return min(times)
