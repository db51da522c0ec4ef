"""What a training step is a function of: a batch, and everything random."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels import philox
from ..models.layers import DropoutDraws


@dataclass
class Draws:
    """Everything random in one forward pass; noise is handed in or follows from seeds.

    Attributes:
        t: int64 [N], target timesteps.
        z: latents [N, nz].
        index: int64 [N], positions in the global batch.
        pair_seed, posterior_seed: int64[1] each, or
        pair_noise, posterior_noise: the noise itself ((for x_{t+1}, for x_t), and for x_t').
        drop: dropout masks; None means torch's generator.
        label: int64 [N], classes that the networks are told; None where they know none.
    """

    t: torch.Tensor
    z: torch.Tensor
    index: torch.Tensor | None = None
    pair_seed: torch.Tensor | None = None
    posterior_seed: torch.Tensor | None = None
    pair_noise: tuple[torch.Tensor, torch.Tensor] | None = None
    posterior_noise: torch.Tensor | None = None
    drop: DropoutDraws | None = None
    label: torch.Tensor | None = None


# Draws of one network's update, in this order; the discriminator's come first.
_T, _PAIR, _Z, _POSTERIOR, _DROP = range(5)
DRAWS_PER_STEP = 10


def counter_draws(
    seeds: torch.Tensor, index: torch.Tensor, num_timesteps: int, nz: int, dtype: torch.dtype
) -> Draws:
    """Draws of one update as a function of its seeds and the samples' global positions.

    Args:
        seeds: int64 [5], this update's part of ``philox.step_seeds``.
        index: int64 [N], positions in the global batch.
        num_timesteps: T.
        nz: length of the latent.
        dtype: of the latent.
    """

    def seed(i: int) -> torch.Tensor:
        return seeds[i : i + 1]

    return Draws(
        t=philox.integers(seed(_T), index, num_timesteps),
        z=philox.normal(seed(_Z), index, (nz,), dtype),
        index=index,
        pair_seed=seed(_PAIR),
        posterior_seed=seed(_POSTERIOR),
        drop=DropoutDraws(seed(_DROP), index),
    )


@dataclass
class MicroBatch:
    """A part of the local batch that passes through the networks at once."""

    images: torch.Tensor
    """uint8 [N, H, W, C], or floating-point [N, ...] in [-1, 1]."""
    flip: torch.Tensor | None
    draws: Draws
