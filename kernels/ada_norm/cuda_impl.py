"""Adaptive group norm + SiLU by the compiled library."""

from __future__ import annotations

import torch

from ..cuda_library import op
from ..layout import in_order_of, memory_format


def forward(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, and the group means and inverse deviations [N, groups]."""
    dense = x.contiguous(memory_format=memory_format(x))
    y = torch.empty_like(dense)
    workspace = workspace_for(dense)
    if x.shape[0] and not x.numel():
        # Nothing to average: as plain torch has it.
        mean = workspace.new_full((x.shape[0], groups), float("nan"))
        return in_order_of(x, y), mean, mean.clone()
    mean, rstd = (workspace.new_empty((x.shape[0], groups)) for _ in range(2))
    op("ada_group_norm_silu")(
        dense, scale.contiguous(), shift.contiguous(), groups, eps, silu, workspace, y, mean, rstd
    )
    return in_order_of(x, y), mean, rstd


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of y in x, scale and shift."""
    order = memory_format(x)
    dense = x.contiguous(memory_format=order)
    grad = grad.to(x.dtype).contiguous(memory_format=order)
    grad_x, workspace = torch.empty_like(dense), workspace_for(dense)
    scale, shift = scale.contiguous(), shift.contiguous()
    if not x.numel():
        return in_order_of(x, grad_x), torch.zeros_like(scale), torch.zeros_like(shift)
    grad_scale, grad_shift = torch.empty_like(scale), torch.empty_like(shift)
    means = workspace.new_empty((x.shape[0], groups, 2))
    mean, rstd = (v.to(workspace.dtype).contiguous() for v in (mean, rstd))
    op("ada_group_norm_silu_backward")(
        grad, dense, scale, shift, mean, rstd, groups, silu, workspace, means, grad_x, grad_scale,
        grad_shift,
    )
    return in_order_of(x, grad_x), grad_scale, grad_shift


def workspace_for(x: torch.Tensor) -> torch.Tensor:
    """Two sums for each chunk of each channel.

    The chunks follow from the size of a sample alone: results do not depend on the batch.
    """
    space = x[0, 0].numel() if x.numel() else 1
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        chunk = min(max(space // 64, 64), 512)
    else:
        chunk = min(max(space // 16, 1024), 4096)
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty((x.shape[0], -(-space // chunk), x.shape[1], 2), dtype=wide)
