"""Bias + leaky ReLU, alone or with FIR downsampling, by the compiled library."""

from __future__ import annotations

import torch

from ..cuda_library import op
from ..layout import in_order_of, memory_format
from ..upfirdn.cuda_impl import wide_taps
from ..upfirdn.op import output_size
from . import ref


def bias_leaky_relu(
    x: torch.Tensor, bias: torch.Tensor | None, slope: float, scale: float
) -> torch.Tensor:
    """scale * leaky_relu(x + bias)."""
    dense = x.contiguous(memory_format=memory_format(x))
    out = torch.empty_like(dense)
    op("bias_leaky_relu")(dense, _contiguous(bias), slope, scale, out)
    return in_order_of(x, out)


def bias_leaky_relu_grad(
    grad: torch.Tensor, y: torch.Tensor, slope: float, scale: float
) -> torch.Tensor:
    """grad * scale * (1 where y > 0 else slope)."""
    order = memory_format(y)
    dense = y.contiguous(memory_format=order)
    out = torch.empty_like(dense)
    grad = grad.to(y.dtype).contiguous(memory_format=order)
    op("bias_leaky_relu_grad")(grad, dense, slope, scale, out)
    return in_order_of(y, out)


def bias_leaky_relu_down(
    x: torch.Tensor, bias: torch.Tensor | None, taps: torch.Tensor, slope: float
) -> torch.Tensor:
    """FIR downsampling by 2 of leaky_relu(x + bias)."""
    x = x.contiguous(memory_format=memory_format(x))
    out = _empty_down(x, taps)
    op("bias_leaky_relu_down")(x, _contiguous(bias), wide_taps(taps, x), slope, out)
    return out


def bias_leaky_relu_down_tangent(
    v: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, taps: torch.Tensor, slope: float
) -> torch.Tensor:
    """FIR downsampling by 2 of leaky_relu'(x + bias) * v."""
    order = memory_format(x)
    x = x.contiguous(memory_format=order)
    v = v.to(x.dtype).contiguous(memory_format=order)
    out = _empty_down(x, taps)
    op("bias_leaky_relu_down_tangent")(v, x, _contiguous(bias), wide_taps(taps, x), slope, out)
    return out


def bias_leaky_relu_down_grad(
    grad: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    taps: torch.Tensor,
    slope: float,
) -> torch.Tensor:
    """leaky_relu'(x + bias) * (adjoint of FIR downsampling by 2)(grad)."""
    order = memory_format(x)
    dense = x.contiguous(memory_format=order)
    grad = grad.to(x.dtype).contiguous(memory_format=order)
    out = torch.empty_like(dense)
    op("bias_leaky_relu_down_grad")(
        grad, dense, _contiguous(bias), wide_taps(taps, x), slope, out
    )
    return in_order_of(x, out)


def _empty_down(x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    size = output_size(x.shape, taps.shape, [1, 1], [2, 2], ref.down_padding(taps))
    return torch.empty(
        (*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=memory_format(x)
    )


def _contiguous(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.contiguous()
