"""The diffused pair in plain torch; float32 at least."""

from __future__ import annotations

import torch

from .. import philox
from ..posterior.ref import rows


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
    x = from_uint8(x0, flip) if x0.dtype == torch.uint8 else x0
    wide = torch.promote_types(x.dtype, torch.float32)
    x = x.to(wide)
    if noise_next is None or noise_t is None:
        assert seed is not None
        if index is None:
            index = philox.positions(x.shape[0], x.device)
        noise_next = philox.normal(seed, index, x.shape[1:], wide, stream=0)
        noise_t = philox.normal(seed, index, x.shape[1:], wide, stream=1)
    signal, sigma, signal_next, sigma_next = rows(tables, t, x.ndim, wide)
    x_t = torch.addcmul(x * signal, noise_t.to(wide), sigma)
    x_next = torch.addcmul(x_t * signal_next, noise_next.to(wide), sigma_next)
    return x_t, x_next


def from_uint8(images: torch.Tensor, flip: torch.Tensor | None) -> torch.Tensor:
    """uint8 [N, H, W, C] to float32 [N, C, H, W] in [-1, 1], mirrored where flip is true."""
    if flip is not None:
        images = torch.where(flip.reshape(-1, 1, 1, 1), images.flip(2), images)
    return (images.to(torch.float32) * (1.0 / 127.5) - 1.0).permute(0, 3, 1, 2)
