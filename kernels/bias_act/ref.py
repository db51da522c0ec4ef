"""Bias + leaky ReLU (+ FIR) in plain torch. Half precision computes in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..upfirdn import ref as fir


def broadcast_bias(bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """bias [C] or [N, C] shaped to broadcast over x [N, C, ...]."""
    rows = bias.shape[0] if bias.ndim == 2 else 1
    return bias.reshape(rows, x.shape[1], *[1] * (x.ndim - 2))


def bias_leaky_relu(
    x: torch.Tensor, bias: torch.Tensor | None, slope: float, scale: float
) -> torch.Tensor:
    """scale * leaky_relu(x + bias)."""
    if bias is None:
        y = F.leaky_relu(x, slope)
        return y.mul_(scale) if scale != 1.0 else y
    y = F.leaky_relu_(_preactivation(x, bias), slope)
    return (y.mul_(scale) if scale != 1.0 else y).to(x.dtype)


def bias_leaky_relu_grad(
    grad: torch.Tensor, y: torch.Tensor, slope: float, scale: float
) -> torch.Tensor:
    """grad * scale * (1 where y > 0 else slope); y is the result of ``bias_leaky_relu``."""
    if scale != 1.0:
        grad = grad * scale
    return torch.ops.aten.leaky_relu_backward(grad, y, slope, False)


def bias_leaky_relu_down(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    taps: torch.Tensor,
    slope: float,
) -> torch.Tensor:
    """FIR downsampling by 2 of leaky_relu(x + bias)."""
    y = bias_leaky_relu(x, bias, slope, 1.0)
    return fir.upfirdn2d(y, taps, [1, 1], [2, 2], down_padding(taps), False, 1.0)


def bias_leaky_relu_down_tangent(
    v: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    taps: torch.Tensor,
    slope: float,
) -> torch.Tensor:
    """FIR downsampling by 2 of leaky_relu'(x + bias) * v: linear in v."""
    y = torch.ops.aten.leaky_relu_backward(v, _preactivation(x, bias), slope, False).to(x.dtype)
    return fir.upfirdn2d(y, taps, [1, 1], [2, 2], down_padding(taps), False, 1.0)


def bias_leaky_relu_down_grad(
    grad: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    taps: torch.Tensor,
    slope: float,
) -> torch.Tensor:
    """leaky_relu'(x + bias) * (adjoint of FIR downsampling by 2)(grad)."""
    k = taps.shape[-1]
    before = down_padding(taps)[0]
    padding = []
    for size, out in ((x.shape[3], grad.shape[3]), (x.shape[2], grad.shape[2])):
        padding += [k - before - 1, size - 2 * out + before]
    up = fir.upfirdn2d(grad, taps, [2, 2], [1, 1], padding, True, 1.0)
    masked = torch.ops.aten.leaky_relu_backward(up, _preactivation(x, bias), slope, False)
    return masked.to(x.dtype)


def down_padding(taps: torch.Tensor) -> list[int]:
    """Padding that makes downsampling by 2 halve an even size."""
    rest = taps.shape[-1] - 2
    return [(rest + 1) // 2, rest // 2] * 2


def _preactivation(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x + bias, in float32 at least: half-precision sums would round before the kink."""
    if bias is None:
        return x
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.to(wide) + broadcast_bias(bias, x).to(wide)
