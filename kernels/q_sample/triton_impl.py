"""The diffused pair with Triton: one pass, from floats or straight from uint8 images."""

# Of a kernel's parameters only the compile-time ones have a type to write down.
# mypy: allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import triton_philox as philox
from ..posterior.triton_impl import check_steps
from ..triton_support import cdiv, draw_tile, on_device_of, ordered


@triton.jit
def pair_kernel(
    x0_ptr, t_ptr, tables_ptr, flip_ptr, noise_next_ptr, noise_t_ptr, seed_ptr, index_ptr,
    x_t_ptr, x_next_ptr, N, T, per_sample, space, width,
    BYTES: tl.constexpr, FLIP: tl.constexpr, LAST: tl.constexpr, ALIGNED: tl.constexpr,
    DRAWN: tl.constexpr, HAS_INDEX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """x_t = tables[t, 0] * x0 + tables[t, 1] * noise_t; x_{t+1} likewise from x_t."""
    n, block, position = philox.place(N, per_sample, index_ptr, HAS_INDEX, BLOCK_N, BLOCK_B)
    t = tl.load(t_ptr + n, mask=n < N, other=0)
    signal = philox.coefficient(tables_ptr, t, T, 0, 4, ACC)
    sigma = philox.coefficient(tables_ptr, t, T, 1, 4, ACC)
    signal_next = philox.coefficient(tables_ptr, t, T, 2, 4, ACC)
    sigma_next = philox.coefficient(tables_ptr, t, T, 3, 4, ACC)
    if DRAWN:
        normals_next = philox.normals4(seed_ptr, position, block, 0)
        normals_t = philox.normals4(seed_ptr, position, block, 1)
    if FLIP:
        mirrored = tl.load(flip_ptr + n, mask=n < N, other=0) != 0
    for i in tl.static_range(4):
        e = 4 * block + i
        mask = (n < N) & (e < per_sample)
        channel, pixel, column = philox.split(block, i, space, width, ALIGNED)
        at = philox.offset(n, e, channel, pixel, per_sample, space, LAST)
        source = at
        if FLIP:
            step = (width - 1 - 2 * column) * (per_sample // space)
            source = at + tl.where(mirrored, step, 0)
        x = tl.load(x0_ptr + source, mask=mask, other=0).to(ACC)
        if BYTES:
            x = x * (1.0 / 127.5) - 1.0
        if DRAWN:
            noise_t, noise_next = normals_t[i].to(ACC), normals_next[i].to(ACC)
        else:
            noise_t = tl.load(noise_t_ptr + at, mask=mask, other=0.0).to(ACC)
            noise_next = tl.load(noise_next_ptr + at, mask=mask, other=0.0).to(ACC)
        x_t = x * signal + noise_t * sigma
        x_next = x_t * signal_next + noise_next * sigma_next
        tl.store(x_t_ptr + at, x_t.to(x_t_ptr.dtype.element_ty), mask=mask)
        tl.store(x_next_ptr + at, x_next.to(x_next_ptr.dtype.element_ty), mask=mask)


def q_sample_pair(
    x0: torch.Tensor,
    t: torch.Tensor,
    tables: torch.Tensor,
    flip: torch.Tensor | None,
    noise_next: torch.Tensor | None,
    noise_t: torch.Tensor | None,
    seed: torch.Tensor | None,
    index: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``op.q_sample_pair``."""
    is_bytes = x0.dtype == torch.uint8
    wide = torch.promote_types(x0.dtype, torch.float32)
    if is_bytes:
        wide = torch.float32
        # The bytes as [N, C, H, W] in NHWC order: what the result is, too.
        x0 = x0.contiguous().permute(0, 3, 1, 2)
        last = True
        x_t = torch.empty_strided(x0.shape, x0.stride(), dtype=wide, device=x0.device)
    else:
        x_t = torch.empty_like(x0, dtype=wide)
    x_next = torch.empty_like(x_t)
    if x_t.numel() == 0:
        return x_t, x_next
    check_steps(t, tables)
    if not is_bytes:
        x0, last = ordered(x0)
    outs = [
        y if y.stride() == x0.stride() else torch.empty_like(x0, dtype=wide) for y in (x_t, x_next)
    ]
    noises = [x0 if z is None else ordered(z, x0)[0] for z in (noise_next, noise_t)]
    n, per_sample = x0.shape[0], x0[0].numel()
    block_n, block_b = draw_tile(n, per_sample)
    with on_device_of(x0):
        pair_kernel[(cdiv(n, block_n) * cdiv(per_sample, 4 * block_b),)](
            x0,
            t.contiguous(),
            tables.contiguous(),
            t if flip is None else flip.contiguous(),
            *noises,
            t if seed is None else seed,
            t if index is None else index.contiguous(),
            *outs,
            n,
            tables.shape[0],
            per_sample,
            x0[0, 0].numel(),
            x0.shape[-1],
            BYTES=is_bytes,
            FLIP=flip is not None,
            LAST=last,
            ALIGNED=x0.ndim > 2 and x0.shape[-1] % 4 == 0,
            DRAWN=noise_next is None,
            HAS_INDEX=index is not None,
            BLOCK_N=block_n,
            BLOCK_B=block_b,
            ACC=tl.float64 if wide == torch.float64 else tl.float32,
            num_warps=4,
            enable_fp_fusion=True,
        )
    x_t, x_next = (
        y if out is y else y.copy_(out) for y, out in zip((x_t, x_next), outs, strict=True)
    )
    return x_t, x_next
