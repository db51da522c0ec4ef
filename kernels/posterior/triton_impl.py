"""Posterior sampling with Triton: one pass, the noise drawn in the kernel or handed in."""

# Of a kernel's parameters only the compile-time ones have a type to write down.
# mypy: allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import triton_philox as philox
from ..triton_support import cdiv, draw_tile, on_device_of, ordered


@triton.jit
def posterior_kernel(
    x0_ptr, x_next_ptr, t_ptr, tables_ptr, noise_ptr, seed_ptr, index_ptr, y_ptr,
    N, T, per_sample, space, width,
    LAST: tl.constexpr, ALIGNED: tl.constexpr, DRAWN: tl.constexpr, HAS_INDEX: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """tables[t, 0] * x0 + tables[t, 1] * x_next + tables[t, 2] * noise."""
    n, block, position = philox.place(N, per_sample, index_ptr, HAS_INDEX, BLOCK_N, BLOCK_B)
    t = tl.load(t_ptr + n, mask=n < N, other=0)
    a = philox.coefficient(tables_ptr, t, T, 0, 3, ACC)
    b = philox.coefficient(tables_ptr, t, T, 1, 3, ACC)
    std = philox.coefficient(tables_ptr, t, T, 2, 3, ACC)
    if DRAWN:
        normals = philox.normals4(seed_ptr, position, block, 0)
    for i in tl.static_range(4):
        e = 4 * block + i
        mask = (n < N) & (e < per_sample)
        channel, pixel, _ = philox.split(block, i, space, width, ALIGNED)
        at = philox.offset(n, e, channel, pixel, per_sample, space, LAST)
        if DRAWN:
            noise = normals[i].to(ACC)
        else:
            noise = tl.load(noise_ptr + at, mask=mask, other=0.0).to(ACC)
        y = a * tl.load(x0_ptr + at, mask=mask, other=0.0).to(ACC)
        y += b * tl.load(x_next_ptr + at, mask=mask, other=0.0).to(ACC)
        tl.store(y_ptr + at, (y + std * noise).to(y_ptr.dtype.element_ty), mask=mask)


def sample_posterior(
    x0: torch.Tensor,
    x_next: torch.Tensor,
    t: torch.Tensor,
    tables: torch.Tensor,
    noise: torch.Tensor | None,
    seed: torch.Tensor | None,
    index: torch.Tensor | None,
) -> torch.Tensor:
    """See ``op.sample_posterior``."""
    wide = torch.promote_types(torch.promote_types(x0.dtype, x_next.dtype), torch.float32)
    y = torch.empty_like(x_next, dtype=wide)
    if y.numel() == 0:
        return y
    check_steps(t, tables)
    x_next, last = ordered(x_next)
    x0 = ordered(x0, x_next)[0]
    noise = None if noise is None else ordered(noise, x_next)[0]
    out = y if y.stride() == x_next.stride() else torch.empty_like(x_next, dtype=wide)
    n, per_sample = y.shape[0], y[0].numel()
    block_n, block_b = draw_tile(n, per_sample)
    with on_device_of(y):
        posterior_kernel[(cdiv(n, block_n) * cdiv(per_sample, 4 * block_b),)](
            x0,
            x_next,
            t.contiguous(),
            tables.contiguous(),
            x0 if noise is None else noise,
            t if seed is None else seed,
            t if index is None else index.contiguous(),
            out,
            n,
            tables.shape[0],
            per_sample,
            y[0, 0].numel(),
            y.shape[-1],
            LAST=last,
            ALIGNED=y.ndim > 2 and y.shape[-1] % 4 == 0,
            DRAWN=noise is None,
            HAS_INDEX=index is not None,
            BLOCK_N=block_n,
            BLOCK_B=block_b,
            ACC=tl.float64 if wide == torch.float64 else tl.float32,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out if out is y else y.copy_(out)


def check_steps(t: torch.Tensor, tables: torch.Tensor) -> None:
    """On the CPU a wrong step raises as in torch; on a GPU it turns the sample into NaN."""
    if t.device.type == "cpu" and not ((t >= 0) & (t < tables.shape[0])).all():
        raise IndexError(f"t must lie in [0, {tables.shape[0]}), got {t.tolist()}.")
