"""The diffused pair by the compiled library, with its random numbers drawn in the kernel."""

from __future__ import annotations

import torch

from ..cuda_library import op
from ..layout import in_order_of, memory_format


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
    """x_t = tables[t, 0] * x0 + tables[t, 1] * noise_t; x_{t+1} likewise from x_t."""
    images = x0.dtype == torch.uint8
    model = x0.permute(0, 3, 1, 2) if images else x0
    order = memory_format(model)
    dense = model.contiguous(memory_format=order)
    wide = torch.promote_types(torch.float32 if images else x0.dtype, torch.float32)
    x_t, x_next = (torch.empty_like(dense, dtype=wide) for _ in range(2))
    noises = [
        None if z is None else z.contiguous(memory_format=order) for z in (noise_next, noise_t)
    ]
    op("q_sample_pair")(
        x0.contiguous() if images else dense,
        t.contiguous(),
        tables.to(torch.float32).contiguous(),
        None if flip is None else flip.contiguous(),
        *noises,
        seed,
        None if index is None else index.contiguous(),
        x_t,
        x_next,
    )
    return in_order_of(model, x_t), in_order_of(model, x_next)
