"""Sampling with networks that predict noise: ancestral, DDIM, DPM-Solver++(2M), Heun.

Everything random follows from (seed, sample number). Times are i = T .. 0, where x_i has i steps'
noise; the network sees x_i with t = i - 1. By signal a and noise s of x_i (``Diffusion.levels``)
eps = (x_i - a x_0) / s, and x_i / a obeys d(x / a) = eps d(s / a): the probability-flow ODE of the
variance-preserving SDE, which "ddim" without noise follows by Euler steps, "heun" by Heun's, and
"dpmpp" by an exponential integrator in the logarithm of a / s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from .config import Config, ModelConfig
from .diffusion import Diffusion, Generator
from .guidance import Condition, Conditional
from .kernels import philox

NAMES = ("ancestral", "ddim", "dpmpp", "heun")
_PREVIEW_STEPS = 50

Predictor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Sampler:
    """How x_T becomes x_0.

    Attributes:
        name: "ancestral" (Ho et al. 2020), "ddim" (Song et al. 2021), "dpmpp" (DPM-Solver++(2M),
            Lu et al. 2022) or "heun" (of the probability-flow ODE, Song et al. 2021).
        steps: steps from T to 0, evenly spaced; ancestral sampling takes all T.
        eta: noise of "ddim": 0 = none, 1 = as much as in ancestral sampling.
        clip: keep predictions of x_0 in [-1, 1]; "heun" never clips.
    """

    name: str
    steps: int
    eta: float = 0.0
    clip: bool = True

    @property
    def evaluations(self) -> int:
        """How often the network is evaluated."""
        return 2 * self.steps - 1 if self.name == "heun" else self.steps

    @torch.no_grad()
    def draw(
        self,
        network: Predictor,
        diffusion: Diffusion,
        shape: Sequence[int],
        seed: torch.Tensor,
        index: torch.Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """New samples for the positions of ``index``; the same position gives the same sample.

        Args:
            network: (x_{t+1} [N, ...], t int64 [N]) -> its noise.
            diffusion: the forward process.
            shape: of one sample.
            seed: int64[1]; x_T is that of ``Diffusion.draw``.
            index: int64 [N] global sample positions.
            dtype: of the samples.

        Returns:
            [N, *shape].
        """
        x = philox.normal(seed, index, shape, dtype)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.solve(network, diffusion, x, philox.split(seed, 1), index)

    @torch.no_grad()
    def solve(
        self,
        network: Predictor,
        diffusion: Diffusion,
        x: torch.Tensor,
        seed: torch.Tensor,
        index: torch.Tensor,
    ) -> torch.Tensor:
        """x_0 from x_T [N, ...]; arguments as of ``draw``."""
        path = _Path(network, diffusion, self)
        if self.name == "heun":
            return _heun(path, x)
        if self.name == "dpmpp":
            return _multistep(path, x)
        seeds = philox.split(seed, 2 * diffusion.num_timesteps)
        if self.name == "ddim":
            return _ddim(path, x, self.eta, seeds, index)
        return _ancestral(path, x, seeds, index)


class _Path:
    """The times of a sampler's steps, and the network's predictions at them."""

    def __init__(self, network: Predictor, diffusion: Diffusion, sampler: Sampler) -> None:
        self.network, self.diffusion, self.clip = network, diffusion, sampler.clip
        total, steps = diffusion.num_timesteps, sampler.steps
        self.times = [round(total * k / steps) for k in range(steps, -1, -1)]
        self._levels = diffusion.levels().tolist()

    def steps(self) -> Iterator[tuple[int, int]]:
        """(from, to) of every step."""
        return pairwise(self.times)

    def level(self, i: int) -> tuple[float, float]:
        """Signal and noise of x_i."""
        signal, noise = self._levels[i]
        return signal, noise

    def noise(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """The noise predicted in x_i."""
        t = torch.full((x.shape[0],), i - 1, dtype=torch.int64, device=x.device)
        return self.network(x, t).to(x.dtype)

    def both(self, x: torch.Tensor, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x_0 and noise predicted from x_i; after clipping x_0 the noise is what then remains."""
        signal, sigma = self.level(i)
        noise = self.noise(x, i)
        x0 = (x - sigma * noise) / signal
        if self.clip:
            x0 = x0.clamp(-1.0, 1.0)
            noise = (x - signal * x0) / sigma
        return x0, noise


def _ancestral(
    path: _Path, x: torch.Tensor, seeds: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    for i, _ in path.steps():
        x0, _ = path.both(x, i)
        t = torch.full((x.shape[0],), i - 1, dtype=torch.int64, device=x.device)
        seed = seeds[2 * i - 1 : 2 * i]
        x = path.diffusion.sample_posterior(x0, x, t, seed=seed, index=index)
    return x


def _ddim(
    path: _Path, x: torch.Tensor, eta: float, seeds: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    for i, to in path.steps():
        x0, noise = path.both(x, i)
        (signal, sigma), (signal_to, sigma_to) = path.level(i), path.level(to)
        # Of the posterior q(x_to | x_0, x_i), at eta = 1.
        std = eta * sigma_to / sigma * math.sqrt(max(1.0 - (signal / signal_to) ** 2, 0.0))
        x = signal_to * x0 + math.sqrt(max(sigma_to**2 - std**2, 0.0)) * noise
        if std > 0.0:
            fresh = philox.normal(seeds[2 * i - 1 : 2 * i], index, x.shape[1:], x.dtype)
            x = x + std * fresh
    return x


def _multistep(path: _Path, x: torch.Tensor) -> torch.Tensor:
    before: tuple[float, torch.Tensor] | None = None
    for i, to in path.steps():
        x0, _ = path.both(x, i)
        (signal, sigma), (signal_to, sigma_to) = path.level(i), path.level(to)
        if to == 0:
            # The step is infinitely long in log(a / s): only the first order is left.
            return x0
        length = math.log(signal_to / sigma_to) - math.log(signal / sigma)
        slope = x0
        if before is not None:
            share = length / (2.0 * before[0])
            slope = (1.0 + share) * x0 - share * before[1]
        x = sigma_to / sigma * x - signal_to * math.expm1(-length) * slope
        before = length, x0
    return x


def _heun(path: _Path, x: torch.Tensor) -> torch.Tensor:
    for i, to in path.steps():
        (signal, sigma), (signal_to, sigma_to) = path.level(i), path.level(to)
        length = sigma_to / signal_to - sigma / signal
        slope = path.noise(x, i)
        y = x / signal
        x = signal_to * (y + length * slope)
        if to > 0:
            x = signal_to * (y + 0.5 * length * (slope + path.noise(x, to)))
    return x


def choose(
    cfg: Config, name: str | None = None, steps: int | None = None, eta: float | None = None
) -> Sampler | None:
    """The sampler of a model, checked; None for GANs, which know their own steps.

    Args:
        cfg: the model's configuration.
        name: see ``Sampler``; default "ancestral", or "ddim" where only ``steps`` is given.
        steps: 1 to T; default T.
        eta: 0 to 1, of "ddim" alone; default 0.

    Raises:
        ValueError: any of these for a GAN, or a value that cannot work.
    """
    total = cfg.model.num_timesteps
    if cfg.loss.kind == "gan":
        asked = {"sampler": name, "steps": steps, "eta": eta}
        for option, value in asked.items():
            if value is not None:
                raise ValueError(
                    f"{option} is {value!r}, but this model is a denoising diffusion GAN, which "
                    f"samples with the T = {total} that it was trained for: leave it out (it is "
                    'for models trained with loss.kind "ddpm").'
                )
        return None
    name = name or ("ancestral" if steps is None else "ddim")
    if name not in NAMES:
        raise ValueError(f"the sampler is {name!r}: choose one of {', '.join(NAMES)}.")
    steps = total if steps is None else steps
    if not 1 <= steps <= total:
        raise ValueError(
            f"steps is {steps}: the model was trained with {total} steps, so choose 1 to {total}."
        )
    if name == "ancestral" and steps != total:
        raise ValueError(
            f"steps is {steps}, but ancestral sampling takes all {total} steps: choose the sampler "
            "ddim, dpmpp or heun for fewer."
        )
    if eta is not None and name != "ddim":
        raise ValueError(f"eta is {eta}: only the sampler ddim has it, not {name}.")
    if eta is not None and not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}: it must lie between 0 and 1.")
    return Sampler(name, steps, eta or 0.0, clip=cfg.model.kind != "mlp")


def draw(
    generator: Conditional,
    diffusion: Diffusion,
    sampler: Sampler | None,
    model: ModelConfig,
    seed: torch.Tensor,
    index: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    condition: Condition | None = None,
) -> torch.Tensor:
    """New samples [N, ...] of either kind of model, for the positions of ``index``.

    Args:
        generator: (x_{t+1}, t, z [N, nz]) -> x_0, or the noise where there is a sampler; takes the
            keyword ``label`` where there is a condition.
        diffusion: what it inverts.
        sampler: from ``choose``.
        model: its configuration.
        seed: int64[1].
        index: int64 [N] global sample positions.
        dtype: of the samples.
        condition: their classes, from ``guidance.bind``.
    """
    shape = sample_shape(model)
    predict: Generator = generator
    if condition is not None:
        predict = condition.guided(generator, condition.labels(seed, index))
    if sampler is None:
        return diffusion.draw(predict, shape, model.nz, seed, index, dtype)
    no_latent = torch.empty(len(index), 0, dtype=dtype, device=index.device)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return predict(x, t, no_latent)

    return sampler.draw(network, diffusion, shape, seed, index, dtype)


def sample_shape(model: ModelConfig) -> tuple[int, ...]:
    """Shape of a sample inside the networks: (C, H, W), or (D,) for points."""
    if model.kind == "mlp":
        return (model.num_channels,)
    return (model.num_channels, model.image_size, model.image_size)


def for_preview(cfg: Config) -> Sampler | None:
    """The sampler of a run's sample grids: few steps, so that they hold up no training."""
    if cfg.loss.kind == "gan":
        return None
    return choose(cfg, "ddim", min(cfg.model.num_timesteps, _PREVIEW_STEPS))
