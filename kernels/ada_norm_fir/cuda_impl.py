"""Adaptive group norm + SiLU + FIR resampling by the compiled library."""

from __future__ import annotations

from typing import Any

import torch

from ..ada_norm import cuda_impl as ada_norm
from ..cuda_library import op
from ..layout import in_order_of, memory_format
from ..upfirdn import cuda_impl as upfirdn
from . import ref
from .op import outputs


def forward(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    taps: torch.Tensor,
    groups: int,
    up: bool,
    both: bool,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See ``op.ada_group_norm_silu_resample``; also the statistics [N, groups]."""
    h, skip = outputs(x, taps, up, both)
    x = x.contiguous(memory_format=memory_format(x))
    workspace = ada_norm.workspace_for(x)
    mean, rstd = (workspace.new_empty((x.shape[0], groups)) for _ in range(2))
    by = ref.resampling(taps.shape[0], up)
    taps = upfirdn.wide_taps(taps, x)
    op("ada_group_norm_silu_resample")(
        x, scale.contiguous(), shift.contiguous(), taps, groups, by.up, by.down, by.padding,
        by.gain, eps, silu, workspace, mean, rstd, h, skip if both else None,
    )
    return h, skip, mean, rstd


def backward(
    grad: torch.Tensor, grad_skip: torch.Tensor, x: torch.Tensor, *args: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of both results in x, scale and shift."""
    grads = ref.backward(upfirdn.upfirdn2d, ada_norm.backward, grad, grad_skip, x, *args)
    return in_order_of(x, grads[0]), *grads[1:]
