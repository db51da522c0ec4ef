"""The identity with Triton: x as one row of numbers, in whatever dense order it lies."""

# Of a kernel's parameters only the compile-time ones have a type to write down.
# mypy: allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..triton_support import cdiv, flat_block, on_device_of, ordered


@triton.jit
def identity_kernel(x_ptr, y_ptr, count, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """y = x."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    v = tl.load(x_ptr + at, mask=inside, other=0.0).to(ACC)
    tl.store(y_ptr + at, v.to(y_ptr.dtype.element_ty), mask=inside)


def identity(x: torch.Tensor) -> torch.Tensor:
    """See ``op.identity``."""
    y = torch.empty_like(x)
    count = y.numel()
    if count == 0:
        return y
    block = flat_block(count)
    with on_device_of(x):
        identity_kernel[(cdiv(count, block),)](
            ordered(x, y)[0],
            y,
            count,
            BLOCK=block,
            ACC=tl.float64 if x.dtype == torch.float64 else tl.float32,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return y
