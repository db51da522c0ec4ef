"""Adaptive group norm + SiLU with Triton: tiles, chunks and launches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl

from ..triton_support import INTERPRET, cdiv, on_device_of, power_of_2, tile
from . import triton_kernels as kernels

# Programs that fill a large GPU a few times over.
_PROGRAMS = 4096
# The combining kernels hold all chunks and channels of a group at once.
_COMBINED = 8192


@dataclass(frozen=True)
class Plan:
    """How x [N, S pixels, C channels] is cut into programs."""

    x: torch.Tensor
    """Dense in NHWC or NCHW order."""
    sizes: tuple[int, int, int]
    """(N, C, S)."""
    steps: tuple[int, int, int]
    """Strides of (N, S, C)."""
    chunks: int
    blocks: int
    meta: dict[str, Any]

    @property
    def grid(self) -> tuple[int]:
        """One program per sample, chunk of pixels and block of channels."""
        return (self.sizes[0] * self.chunks * self.blocks,)

    @property
    def chunk(self) -> int:
        """Pixels of a chunk."""
        return self.meta["STEPS"] * self.meta["BLOCK_S"]


def plan(x: torch.Tensor, groups: int) -> Plan:
    """The plan for x [N, C, ...]; x is copied when it is neither NHWC nor NCHW."""
    n, c = x.shape[:2]
    s = x[0, 0].numel()
    last = x.movedim(1, -1).is_contiguous()
    if not last:
        x = x.contiguous()
    block_s, block_c = tile(s, c, 2048, rows_first=not last, minor=64 if last else 1024)
    blocks = cdiv(c, block_c)
    tiles = cdiv(s, block_s)
    most = max(_COMBINED // power_of_2(c // groups), 1)
    wanted = min(cdiv(_PROGRAMS, n * blocks), tiles, most)
    # Powers of two: the kernels are compiled for each number of steps.
    steps = tiles if INTERPRET else power_of_2(cdiv(tiles, wanted))
    meta = {
        "STEPS": steps,
        "BLOCK_S": block_s,
        "BLOCK_C": block_c,
        "ACC": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
    strides = (c * s, c, 1) if last else (c * s, 1, s)
    return Plan(x, (n, c, s), strides, cdiv(tiles, steps), blocks, meta)


def _combining(chunks: int, channels: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "CHANNELS": channels,
        "BLOCK_K": power_of_2(chunks),
        "BLOCK_C": power_of_2(channels),
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "num_warps": 4,
        "enable_fp_fusion": True,
    }


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def empty_statistics(x: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Uninitialised mean and inverse deviation [N, groups]."""
    mean = x.new_empty((x.shape[0], groups), dtype=_wide(x))
    return mean, torch.empty_like(mean)


def statistics(p: Plan, groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and inverse deviation [N, groups] of x, which must be on the current device."""
    mean, rstd = empty_statistics(p.x, groups)
    n, c, s = p.sizes
    means, squares = mean.new_empty((2, n, p.chunks, c)).unbind()
    kernels.moments[p.grid](p.x, means, squares, c, s, p.chunks, p.blocks, *p.steps, **p.meta)
    kernels.combine_moments[(n * groups,)](
        means, squares, mean, rstd, c, s, p.chunks, p.chunk, groups,
        EPS=eps, **_combining(p.chunks, c // groups, mean.dtype),
    )  # fmt: skip
    return mean, rstd


def ada_group_norm_silu(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See ``op.ada_group_norm_silu``; also the statistics [N, groups]."""
    y = torch.empty_like(x)
    if y.numel() == 0:
        return y, *empty_statistics(x, groups)
    p = plan(x, groups)
    n, c, s = p.sizes
    out = y if y.stride() == p.x.stride() else torch.empty_like(p.x)
    with on_device_of(x):
        mean, rstd = statistics(p, groups, eps)
        kernels.apply[p.grid](
            p.x, scale.contiguous(), shift.contiguous(), mean, rstd, out,
            n, c, s, p.chunks, p.blocks, groups, c // groups, *p.steps, SILU=silu, **p.meta,
        )  # fmt: skip
    return (y if out is y else y.copy_(out)), mean, rstd


def combined_sums(
    da: torch.Tensor,
    product: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    groups: int,
    space: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of scale and shift [N, C], and the two means [N, groups] that dx needs.

    Args:
        da: [N, chunks, C] sums of the gradient at scale * xhat + shift, on the current device.
        product: [N, chunks, C] sums of the same times xhat.
        scale: [N, C].
        shift: [N, C].
        groups: of the norm.
        space: pixels of a sample.
    """
    n, chunks, c = da.shape
    grad_scale, grad_shift = scale.new_empty(scale.shape), shift.new_empty(shift.shape)
    first, second = da.new_empty((2, n, groups)).unbind()
    kernels.combine_sums[(n * groups,)](
        da, product, scale.contiguous(), grad_scale, grad_shift, first, second,
        c, space, chunks, groups, **_combining(chunks, c // groups, da.dtype),
    )  # fmt: skip
    return grad_scale, grad_shift, first, second


def ada_group_norm_silu_backward(
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
    """Gradients of the result in x [N, C, ...], scale [N, C] and shift [N, C]."""
    dx = torch.empty_like(x)
    if dx.numel() == 0:
        return dx, scale.new_zeros(scale.shape), shift.new_zeros(shift.shape)
    p = plan(x, groups)
    n, c, s = p.sizes
    out = dx if dx.stride() == p.x.stride() else torch.empty_like(p.x)
    if grad.stride() != p.x.stride():
        grad = torch.empty_like(p.x, dtype=grad.dtype).copy_(grad)
    da, product = mean.new_empty((2, n, p.chunks, c)).unbind()
    given = (grad, p.x, *(v.contiguous() for v in (scale, shift, mean, rstd)))
    cut = (c, s, p.chunks, p.blocks, groups, c // groups, *p.steps)
    with on_device_of(x):
        kernels.backward_sums[p.grid](*given, da, product, *cut, SILU=silu, **p.meta)
        grad_scale, grad_shift, first, second = combined_sums(da, product, scale, shift, groups, s)
        kernels.backward_apply[p.grid](
            *given, first, second, out, n, *cut, SILU=silu, **p.meta
        )
    return (dx if out is dx else dx.copy_(out)), grad_scale, grad_shift
