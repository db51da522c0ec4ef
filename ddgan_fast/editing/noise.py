"""Everything random about an edit: the draws of sampling, and what lies between two of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from ..kernels import philox
from ..sampling import LoadedGenerator

MOVES = ("both", "x", "z")
"""What an interpolation may move: all noise, the images x_t alone, the latents z alone."""

# As in sampling: a step that training never reaches.
_NOISE_STEP = -1


class Noise(Protocol):
    """What the denoising of N samples draws."""

    def first(self) -> torch.Tensor:
        """x_T [N, C, H, W]."""

    def latent(self, t: int) -> torch.Tensor:
        """z [N, nz] of step t."""

    def posterior(self, t: int) -> torch.Tensor:
        """Noise [N, C, H, W] of x_t given x_0 and x_{t+1}."""


class Draws:
    """The draws that sampling makes for samples of these numbers.

    Args:
        model: the generator.
        seed: picks the samples.
        index: int64 [N] on the model's device, the samples' numbers.
        shape: (C, H, W).
    """

    def __init__(
        self, model: LoadedGenerator, seed: int, index: torch.Tensor, shape: Sequence[int]
    ) -> None:
        self._shape, self._nz, self._index = shape, model.cfg.model.nz, index
        self._key = philox.seed_tensor(seed, _NOISE_STEP, 0, model.device)
        steps = model.diffusion.num_timesteps
        self._seeds = philox.split(philox.split(self._key, 1), 2 * steps)

    def first(self) -> torch.Tensor:
        """x_T [N, C, H, W]."""
        return philox.normal(self._key, self._index, self._shape)

    def latent(self, t: int) -> torch.Tensor:
        """z [N, nz] of step t."""
        return philox.normal(self._seeds[2 * t : 2 * t + 1], self._index, (self._nz,))

    def posterior(self, t: int) -> torch.Tensor:
        """Noise [N, C, H, W] of x_t given x_0 and x_{t+1}."""
        return philox.normal(self._seeds[2 * t + 1 : 2 * t + 2], self._index, self._shape)


class Between:
    """Draws on the way from one set to another.

    Args:
        start: the draws at the beginning.
        end: the draws at the end.
        rest: the draws of what does not move.
        weight: float64 [N], 0 at the beginning and 1 at the end.
        move: one of ``MOVES``.
    """

    def __init__(
        self, start: Draws, end: Draws, rest: Draws, weight: torch.Tensor, move: str
    ) -> None:
        self._start, self._end, self._rest = start, end, rest
        self._weight, self._move = weight, move

    def first(self) -> torch.Tensor:
        """x_T [N, C, H, W]."""
        return self._mix("x", Draws.first)

    def latent(self, t: int) -> torch.Tensor:
        """z [N, nz] of step t."""
        return self._mix("z", lambda draws: draws.latent(t))

    def posterior(self, t: int) -> torch.Tensor:
        """Noise [N, C, H, W] of x_t given x_0 and x_{t+1}."""
        return self._mix("x", lambda draws: draws.posterior(t))

    def _mix(self, kind: str, draw: Callable[[Draws], torch.Tensor]) -> torch.Tensor:
        if self._move not in (kind, "both"):
            return draw(self._rest)
        return slerp(draw(self._start), draw(self._end), self._weight)


def slerp(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation of each sample: Gaussian noise stays about as long as it was.

    Args:
        a: [N, ...], what comes back, bit for bit, where the weight is 0.
        b: like a, what comes back where it is 1.
        weight: [N].

    Returns:
        Like a.
    """
    wide_a, wide_b, w = a.flatten(1).double(), b.flatten(1).double(), weight.double()[:, None]
    cosine = torch.nn.functional.cosine_similarity(wide_a, wide_b, 1).clamp(-1.0, 1.0)
    angle = torch.acos(cosine)[:, None]
    sine = torch.sin(angle)
    # Between equal or opposite directions there is no single arc.
    straight = sine < 1e-6
    safe = torch.where(straight, torch.ones_like(sine), sine)
    of_a = torch.where(straight, 1.0 - w, torch.sin((1.0 - w) * angle) / safe)
    of_b = torch.where(straight, w, torch.sin(w * angle) / safe)
    return (of_a * wide_a + of_b * wide_b).reshape(a.shape).to(a.dtype)
