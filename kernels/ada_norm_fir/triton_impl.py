"""Adaptive group norm + SiLU + FIR resampling with Triton: picks the kernel, tile and grid."""

from __future__ import annotations

from typing import Any

import torch

from ..ada_norm import triton_impl as ada_norm
from ..layout import in_order_of, memory_format
from ..triton_support import cdiv, on_device_of, strides, tile
from ..upfirdn.triton_impl import launch_rolling, rolling_cut, upfirdn2d
from . import ref, triton_backward
from . import triton_kernels as kernels
from .op import outputs
from .ref import Resampling, resampling

# Sums per group that its combining kernel holds at once.
_COMBINED = 1 << 16


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
        return h, skip, *ada_norm.empty_statistics(x, groups)
    p = ada_norm.plan(x, groups)
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
        mean, rstd = ada_norm.statistics(p, groups, eps)
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
    first, extent = _pairs(by.padding, *pointers[1].shape[2:])
    launch_rolling(kernels.up2, pointers, (*sizes, *first), steps, extent, meta)


def _pairs(
    padding: list[int], height: int, width: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where the pairs i of outputs 2 i - 1 + pad and 2 i + pad begin, and how many; as (x, y)."""
    (x0, _, y0, _) = padding
    # The first i whose second output is inside, and the last whose first one is.
    first_x, first_y = -(x0 // 2), -(y0 // 2)
    extent = (width - x0) // 2 - first_x + 1, (height - y0) // 2 - first_y + 1
    return (first_x, first_y), extent


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


def ada_group_norm_silu_resample_backward(
    grad: torch.Tensor,
    grad_skip: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    taps: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    groups: int,
    up: bool,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of both results in x, scale and shift; of upsampled ones by the separate ops.

    There the gradients are larger than x: filtering them once and storing the result is as cheap.
    """
    n, c, height, width = x.shape
    by = resampling(taps.shape[0], up).adjoint(taps.shape[0], height, width)
    first, extent = _pairs(by.padding, height, width)
    grad = grad.contiguous(memory_format=memory_format(x))
    rows_first = grad.stride(3) < grad.stride(1)
    cut = rolling_cut(n, c, extent, rows_first)
    chunks = cut.strips * cut.across
    if up or taps.shape[0] > 4 or x.numel() == 0 or chunks * (c // groups) > _COMBINED:
        grads = ref.backward(
            upfirdn2d, ada_norm.ada_group_norm_silu_backward, grad, grad_skip, x, scale, shift,
            taps, mean, rstd, groups, up, eps, silu,
        )  # fmt: skip
        return in_order_of(x, grads[0]), *grads[1:]
    p = ada_norm.plan(x, groups)
    if grad_skip.stride() != grad.stride():
        grad_skip = torch.empty_like(grad, dtype=grad_skip.dtype).copy_(grad_skip)
    dx = torch.empty_like(x)
    out = dx if dx.stride() == p.x.stride() else torch.empty_like(p.x)
    meta: dict[str, Any] = {
        "GAIN": by.gain,
        "SILU": silu,
        "ACC": p.meta["ACC"],
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
    sizes = (c, *grad.shape[2:], height, width, by.padding[0], by.padding[2], groups, c // groups)
    steps = (*strides(grad, range(4)), *strides(p.x, range(4)))
    row = (v.contiguous() for v in (taps, scale, shift, mean, rstd))
    pointers = (grad, p.x, grad_skip, *row)
    da, product = mean.new_empty((2, n, chunks, c)).unbind()
    with on_device_of(x):
        launch_rolling(
            triton_backward.sums, (*pointers, da, product), (*sizes, *first), steps, extent, meta
        )
        grad_scale, grad_shift, *means = ada_norm.combined_sums(
            da, product, scale, shift, groups, height * width
        )
        launch_rolling(
            triton_backward.write, (*pointers, *means, out), (*sizes, *first), steps, extent, meta
        )
    return (dx if out is dx else dx.copy_(out)), grad_scale, grad_shift
