"""FIR resampling by the compiled library."""

from __future__ import annotations

import torch

from ..cuda_library import op
from ..layout import memory_format
from .op import output_size


def upfirdn2d(
    x: torch.Tensor,
    taps: torch.Tensor,
    up: list[int],
    down: list[int],
    padding: list[int],
    flip: bool,
    gain: float,
) -> torch.Tensor:
    """See ``op.upfirdn2d``; up and down are [x, y], padding is [x0, x1, y0, y1]."""
    order = memory_format(x)
    size = (*x.shape[:2], *output_size(x.shape, taps.shape, up, down, padding))
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=order)
    x = x.contiguous(memory_format=order)
    op("upfirdn2d")(x, wide_taps(taps, x), up, down, padding, flip, gain, out)
    return out


def wide_taps(taps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The taps as the kernels take them: contiguous, float32, or float64 for float64."""
    return taps.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
