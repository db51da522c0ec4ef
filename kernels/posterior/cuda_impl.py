"""Posterior sampling by the compiled library, with its random numbers drawn in the kernel."""

from __future__ import annotations

import torch

from ..cuda_library import op
from ..layout import in_order_of, memory_format


def sample_posterior(
    x0: torch.Tensor,
    x_next: torch.Tensor,
    t: torch.Tensor,
    tables: torch.Tensor,
    noise: torch.Tensor | None,
    seed: torch.Tensor | None,
    index: torch.Tensor | None,
) -> torch.Tensor:
    """tables[t, 0] * x0 + tables[t, 1] * x_next + tables[t, 2] * noise."""
    order = memory_format(x_next)
    wide = torch.promote_types(torch.promote_types(x0.dtype, x_next.dtype), torch.float32)
    dense = x_next.contiguous(memory_format=order)
    out = torch.empty_like(dense, dtype=wide)
    op("sample_posterior")(
        x0.contiguous(memory_format=order),
        dense,
        t.contiguous(),
        tables.to(torch.float32).contiguous(),
        None if noise is None else noise.contiguous(memory_format=order),
        seed,
        None if index is None else index.contiguous(),
        out,
    )
    return in_order_of(x_next, out)
