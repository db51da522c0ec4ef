"""Adaptive group norm + SiLU + FIR resampling with Triton: picks the kernel, tile and grid."""

from __future__ import annotations

import torch

from ..ada_norm.triton_impl import empty_statistics, plan, statistics
from ..triton_support import cdiv, on_device_of, strides, tile
from ..upfirdn.triton_impl import launch_rolling
from . import triton_kernels as kernels
from .op import outputs
from .ref import Resampling, resampling


def ada_group_norm_silu_resample(
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
    if h.numel() == 0:
        return h, skip, *empty_statistics(x, groups)
    p = plan(x, groups)
    by = resampling(taps.shape[0], up)
    meta = {
        "GAIN": by.gain,
        "BOTH": both,
        "SILU": silu,
        "ACC": p.meta["ACC"],
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
    channels = x.shape[1] // groups
    sizes = (*x.shape[1:], *h.shape[2:], by.padding[0], by.padding[2], groups, channels)
    steps = (*strides(p.x, range(4)), *strides(h, range(4)))
    with on_device_of(x):
        mean, rstd = statistics(p, groups, eps)
        row = (scale.contiguous(), shift.contiguous(), mean, rstd)
        pointers = (p.x, h, skip if both else h, taps.contiguous(), *row)
        if taps.shape[0] > 4:
            _general(pointers, sizes, steps, by, meta)
        elif up:
            _up2(pointers, sizes, steps, by, meta)
        else:
            extent = (cdiv(h.shape[3], 2), h.shape[2])
            launch_rolling(kernels.down2, pointers, sizes, steps, extent, meta)
    return h, skip, mean, rstd


def _up2(
    pointers: tuple[torch.Tensor, ...],
    sizes: tuple[int, ...],
    steps: tuple[int, ...],
    by: Resampling,
    meta: dict[str, object],
) -> None:
    (x0, _, y0, _), (height, width) = by.padding, pointers[1].shape[2:]
    # The first i whose second output 2 i + pad is inside, and the last whose first one is.
    first_x, first_y = -(x0 // 2), -(y0 // 2)
    extent = ((width - x0) // 2 - first_x + 1, (height - y0) // 2 - first_y + 1)
    launch_rolling(kernels.up2, pointers, (*sizes, first_x, first_y), steps, extent, meta)


def _general(
    pointers: tuple[torch.Tensor, ...],
    sizes: tuple[int, ...],
    steps: tuple[int, ...],
    by: Resampling,
    meta: dict[str, object],
) -> None:
    n, channels, height, width = pointers[1].shape
    pixels = height * width
    block_p, block_c = tile(pixels, channels, 1024, rows_first=steps[3] < steps[1])
    blocks = cdiv(pixels, block_p), cdiv(channels, block_c)
    kernels.general[(n * blocks[0] * blocks[1],)](
        *pointers,
        *sizes,
        *blocks,
        *steps,
        K=pointers[3].shape[0],
        UP=by.up[0],
        DOWN=by.down[0],
        PHASE=by.padding[0] % by.up[0],
        BLOCK_P=block_p,
        BLOCK_C=block_c,
        **meta,
    )
