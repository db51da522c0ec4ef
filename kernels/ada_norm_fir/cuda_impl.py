"""Adaptive group norm + SiLU + FIR resampling by the compiled library."""

from __future__ import annotations

import torch

from ..ada_norm.cuda_impl import workspace_for
from ..cuda_library import op
from ..layout import memory_format
from ..upfirdn.cuda_impl import wide_taps
from .op import outputs
from .ref import resampling


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
    workspace = workspace_for(x)
    mean, rstd = (workspace.new_empty((x.shape[0], groups)) for _ in range(2))
    by = resampling(taps.shape[0], up)
    op("ada_group_norm_silu_resample")(
        x, scale.contiguous(), shift.contiguous(), wide_taps(taps, x), groups, by.up, by.down,
        by.padding, by.gain, eps, silu, workspace, mean, rstd, h, skip if both else None,
    )
    return h, skip, mean, rstd
