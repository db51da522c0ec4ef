"""FIR resampling as the published code does it: 2-D taps, rebuilt on the host at every call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import numpy as np
import torch
import torch.nn.functional as F

from ddgan_fast.kernels import upfirdn2d

_OURS = ContextVar("ours", default=False)


@contextlib.contextmanager
def our_filter() -> Iterator[None]:
    """Inside, our filter stands for the published one on CPUs, too."""
    token = _OURS.set(True)
    try:
        yield
    finally:
        _OURS.reset(token)


def filter_2d(
    x: torch.Tensor, taps: torch.Tensor, up: int, down: int, pad: tuple[int, int]
) -> torch.Tensor:
    """Upsample, pad, convolve with taps [k, k], downsample; differentiable to any order.

    The published code has a CUDA kernel for 2-D taps; on a GPU the fastest such op at hand stands
    for it. On a CPU it inserts the zeros and convolves them.
    """
    if x.is_cuda or _OURS.get():
        return upfirdn2d(x, taps, up=up, down=down, padding=pad)
    return _zero_stuffed(x, taps, up, down, pad)


def upsample_2d(x: torch.Tensor, fir: Sequence[float]) -> torch.Tensor:
    """[N, C, H, W] -> [N, C, 2H, 2W]."""
    p = len(fir) - 2
    return filter_2d(x, _taps(x, fir, gain=4.0), 2, 1, ((p + 1) // 2 + 1, p // 2))


def downsample_2d(x: torch.Tensor, fir: Sequence[float]) -> torch.Tensor:
    """[N, C, H, W] -> [N, C, H/2, W/2]."""
    p = len(fir) - 2
    return filter_2d(x, _taps(x, fir), 1, 2, ((p + 1) // 2, p // 2))


def conv_downsample_2d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, fir: Sequence[float]
) -> torch.Tensor:
    """Filter, then a 3x3 convolution of stride 2 without padding."""
    p = len(fir) - 2 + weight.shape[-1] - 1
    x = filter_2d(x, _taps(x, fir), 1, 1, ((p + 1) // 2, p // 2))
    return F.conv2d(x, weight, stride=2) + bias.reshape(1, -1, 1, 1)


def _taps(x: torch.Tensor, fir: Sequence[float], gain: float = 1.0) -> torch.Tensor:
    line = np.asarray(fir, dtype=np.float32)
    square = np.outer(line, line)
    square *= gain / square.sum()
    return torch.tensor(square, dtype=x.dtype, device=x.device)


def _zero_stuffed(
    x: torch.Tensor, taps: torch.Tensor, up: int, down: int, pad: tuple[int, int]
) -> torch.Tensor:
    n, c, height, width = x.shape
    x = x.reshape(n * c, 1, height, width)
    if up > 1:
        x = x.reshape(n * c, 1, height, 1, width, 1)
        x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1)).reshape(n * c, 1, height * up, width * up)
    x = F.pad(x, (*pad, *pad))
    kernel = taps.flip(0, 1)[None, None]
    # The convolution skips the samples that would be dropped.
    y = F.conv2d(x, kernel, stride=down)
    return y.reshape(n, c, *y.shape[2:])
