"""Memory order of results."""

from __future__ import annotations

import torch


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """The memory order that results follow: NHWC when x is stored so, else NCHW."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        # A tensor of one channel or one pixel is contiguous in both orders: NCHW by convention.
        return torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return torch.contiguous_format


def in_order_of(model: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """The result in the memory order of ``empty_like(model)``, which the fakes promise."""
    wanted = torch.empty_like(model, dtype=result.dtype, device="meta").stride()
    if result.stride() == wanted:
        return result
    return torch.empty_like(model, dtype=result.dtype).copy_(result)
