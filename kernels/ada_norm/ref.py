"""Adaptive group norm + SiLU in plain torch. Half precision computes in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..layout import memory_format


def forward(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y = silu(scale * xhat + shift), with the group means and inverse deviations [N, groups]."""
    wide = _wide(x)
    n, c = x.shape[:2]
    xhat, mean, rstd = torch.native_group_norm(
        wide, None, None, n, c, wide[:1, :1].numel() if n else 1, groups, eps
    )
    y = torch.addcmul(per_channel(shift, wide), xhat, per_channel(scale, wide))
    if silu:
        y = F.silu(y, inplace=True)
    return y.to(x.dtype), mean.view(n, groups), rstd.view(n, groups)


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    groups: int,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of y in x [N, C, ...], scale [N, C] and shift [N, C].

    With a = scale * xhat + shift and da = grad * silu'(a):
    dx = rstd * (scale * da - <scale * da> - xhat * <scale * da * xhat>), < > the mean over a group.
    """
    wide = _wide(x)
    n, c = x.shape[:2]
    scale4, shift4 = per_channel(scale, wide), per_channel(shift, wide)
    rstd_c = rstd.repeat_interleave(c // groups, 1)
    mean_c = mean.repeat_interleave(c // groups, 1)
    xhat = torch.addcmul(
        per_channel(-mean_c * rstd_c, wide), wide, per_channel(rstd_c, wide)
    )
    da = grad.to(wide.dtype)
    if silu:
        da = torch.ops.aten.silu_backward(da, torch.addcmul(shift4, xhat, scale4))
    space = tuple(range(2, x.ndim))
    grad_shift = da.sum(space) if space else da
    product = da * xhat
    grad_scale = product.sum(space) if space else product
    count = c // groups * (wide[:1, :1].numel() if n else 1)
    first = -rstd_c * _group_mean(scale * grad_shift, groups, count)
    second = -rstd_c * _group_mean(scale * grad_scale, groups, count)
    grad_x = torch.addcmul(per_channel(first, wide), xhat, per_channel(second, wide))
    grad_x.addcmul_(da, per_channel(rstd_c * scale, wide))
    return grad_x.to(x.dtype), grad_scale.to(scale.dtype), grad_shift.to(shift.dtype)


def plain(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, groups: int, eps: float, silu: bool
) -> torch.Tensor:
    """The same function from differentiable torch operators, for derivatives of higher order."""
    y = F.group_norm(_wide(x), groups, None, None, eps)
    y = y * per_channel(scale, y) + per_channel(shift, y)
    return (F.silu(y) if silu else y).to(x.dtype)


def per_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """values [N, C] shaped to broadcast over x [N, C, ...], in x's dtype."""
    return values.reshape(*values.shape, *[1] * (x.ndim - 2)).to(x.dtype)


def _group_mean(values: torch.Tensor, groups: int, count: int) -> torch.Tensor:
    n, c = values.shape
    means = values.view(n, groups, c // groups).sum(2) / count
    return means.repeat_interleave(c // groups, 1)


def _wide(x: torch.Tensor) -> torch.Tensor:
    x = x.contiguous(memory_format=memory_format(x))
    return x.to(torch.promote_types(x.dtype, torch.float32))
