"""Posterior sampling in plain torch; float32 at least, since x_{t+1} feeds the next step."""

from __future__ import annotations

import torch

from .. import philox


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
    wide = torch.promote_types(torch.promote_types(x0.dtype, x_next.dtype), torch.float32)
    if noise is None:
        assert seed is not None
        if index is None:
            index = philox.positions(x0.shape[0], x0.device)
        noise = philox.normal(seed, index, x0.shape[1:], wide)
    a, b, std = rows(tables, t, x0.ndim, wide)
    y = torch.addcmul(x0.to(wide) * a, x_next.to(wide), b)
    return torch.addcmul(y, noise.to(wide), std)


def rows(
    tables: torch.Tensor, t: torch.Tensor, ndim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """The columns of tables[t], each shaped to broadcast over [N, ...]."""
    picked = tables.index_select(0, t).to(dtype)
    return tuple(c.reshape(-1, *[1] * (ndim - 1)) for c in picked.unbind(1))
