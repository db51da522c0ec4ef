"""The few-step diffusion: schedules, forward noising, posterior, and the sampling loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from .config import ModelConfig
from .kernels import philox, q_sample_pair, sample_posterior

Generator = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def schedule_betas(
    num_timesteps: int, schedule: str, beta_min: float, beta_max: float
) -> np.ndarray:
    """Noise rates beta'_0 .. beta'_T, built in float64 and rounded to float32.

    Entry 0 is 1e-8, so that index i counts the applied steps.
    """
    s = np.linspace(0.0, 1.0, num_timesteps + 1) * (1.0 - 1e-3) + 1e-3
    if schedule == "geometric":
        variance = beta_min * (beta_max / beta_min) ** s
    else:
        variance = 1.0 - np.exp(-0.5 * s**2 * (beta_max - beta_min) - s * beta_min)
    signal = 1.0 - variance
    betas = np.concatenate([[1e-8], 1.0 - signal[1:] / signal[:-1]])
    return betas.astype(np.float32)


class Diffusion(nn.Module):
    """Tables of the forward process q and of its posterior, and sampling with a generator.

    ``t`` always indexes the target x_t, 0 <= t < T; the network sees x_{t+1}.

    Args:
        num_timesteps: T.
        schedule: "vp" (variance preserving) or "geometric".
        beta_min: smallest noise rate.
        beta_max: largest noise rate; below 1 for "geometric".

    Raises:
        ValueError: a schedule that does not exist or has no finite tables.
    """

    q_tables: torch.Tensor
    posterior_tables: torch.Tensor

    def __init__(
        self,
        num_timesteps: int,
        schedule: str = "vp",
        beta_min: float = 0.1,
        beta_max: float = 20.0,
    ) -> None:
        super().__init__()
        if schedule not in ("vp", "geometric"):
            raise ValueError(f'schedule is {schedule!r}: choose "vp" or "geometric".')
        if num_timesteps < 1:
            raise ValueError(f"num_timesteps is {num_timesteps}: it must be at least 1.")
        if schedule == "geometric" and not 0 < beta_min < beta_max < 1:
            raise ValueError(
                f"the geometric schedule needs 0 < beta_min < beta_max < 1, got {beta_min} and "
                f"{beta_max}: larger values make its tables NaN."
            )
        self.num_timesteps = num_timesteps
        betas = self._betas = schedule_betas(num_timesteps, schedule, beta_min, beta_max)
        self.tables = {**_forward_tables(betas), **_posterior_tables(betas[1:])}
        tables = self.tables
        q = [tables["a_s_cum"][:-1], tables["sigmas_cum"][:-1], tables["a_s"][1:]]
        q.append(tables["sigmas"][1:])
        std = torch.exp(0.5 * tables["posterior_log_variance_clipped"])
        std[0] = 0.0
        posterior = [tables["posterior_mean_coef1"], tables["posterior_mean_coef2"], std]
        self.register_buffer("q_tables", torch.stack(q, 1), persistent=False)
        self.register_buffer("posterior_tables", torch.stack(posterior, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: ModelConfig) -> Diffusion:
        """The diffusion of a model's configuration."""
        return cls(cfg.num_timesteps, cfg.schedule, cfg.beta_min, cfg.beta_max)

    def levels(self) -> np.ndarray:
        """Signal and noise of x_i given x_0, i = 0 .. T: float64 [T + 1, 2], first row (1, 0).

        Squares sum to 1. For "vp" these are the marginals of the variance-preserving SDE at the
        times s_i, relative to s_0. The float32 tables lose digits where the noise is small, as it
        is after the first of many steps; this does not.
        """
        kept = np.concatenate([[0.0], np.cumsum(np.log1p(-self._betas[1:].astype(np.float64)))])
        return np.stack([np.exp(0.5 * kept), np.sqrt(-np.expm1(kept))], 1)

    def q_sample(self, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x_t ~ q(x_t | x_0): x0 [N, ...], t int64 [N], noise like x0. t = 0 returns x0."""
        picked = self.q_tables.index_select(0, t).to(x0.dtype)
        signal, sigma = (picked[:, i].reshape(-1, *[1] * (x0.ndim - 1)) for i in (0, 1))
        return signal * x0 + sigma * noise

    def q_sample_pair(
        self,
        x0: torch.Tensor,
        t: torch.Tensor,
        *,
        flip: torch.Tensor | None = None,
        noise: tuple[torch.Tensor, torch.Tensor] | None = None,
        seed: torch.Tensor | None = None,
        index: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_t, x_{t+1}) of data x0; see ``ddgan_fast.kernels.q_sample_pair``."""
        return q_sample_pair(
            x0, t, self.q_tables, flip=flip, noise=noise, seed=seed, index=index
        )

    def sample_posterior(
        self,
        x0: torch.Tensor,
        x_next: torch.Tensor,
        t: torch.Tensor,
        *,
        noise: torch.Tensor | None = None,
        seed: torch.Tensor | None = None,
        index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x_t ~ q(x_t | x_0, x_{t+1}); see ``ddgan_fast.kernels.sample_posterior``."""
        return sample_posterior(
            x0, x_next, t, self.posterior_tables, noise=noise, seed=seed, index=index
        )

    @torch.no_grad()
    def sample_loop(
        self,
        generator: Generator,
        x: torch.Tensor,
        *,
        nz: int | None = None,
        seed: torch.Tensor | None = None,
        index: torch.Tensor | None = None,
        z: Sequence[torch.Tensor] | dict[int, torch.Tensor] | None = None,
        noise: Sequence[torch.Tensor] | dict[int, torch.Tensor] | None = None,
        start: int | None = None,
    ) -> torch.Tensor:
        """Denoise x_T to x_0 in T steps.

        Args:
            generator: G(x_{t+1}, t, z) -> x_0.
            x: x_T [N, ...], or x_{start}.
            nz: length of the latent; needed with ``seed``.
            seed: int64[1] from which all z and posterior noise follow.
            index: int64 [N] global sample positions; default 0..N-1.
            z: instead of ``seed``: z[t] [N, nz] for each t.
            noise: instead of ``seed``: noise[t] like x for each t.
            start: how many steps to take; default T.

        Returns:
            Like x, about [-1, 1].

        Raises:
            ValueError: neither a seed with nz nor z and noise.
        """
        steps = self.num_timesteps if start is None else start
        if index is None:
            index = philox.positions(x.shape[0], x.device)
        for i in reversed(range(steps)):
            t = torch.full((x.shape[0],), i, dtype=torch.int64, device=x.device)
            if z is not None and noise is not None:
                x = self.sample_posterior(generator(x, t, z[i]), x, t, noise=noise[i])
            elif seed is not None and nz is not None:
                seeds = philox.split(seed, 2 * self.num_timesteps)[2 * i : 2 * i + 2]
                latent = philox.normal(seeds[:1], index, (nz,), x.dtype)
                x0 = generator(x, t, latent)
                x = self.sample_posterior(x0, x, t, seed=seeds[1:], index=index)
            else:
                raise ValueError("sample_loop: pass seed=... and nz=..., or z=... and noise=... .")
        return x

    def draw(
        self,
        generator: Generator,
        shape: Sequence[int],
        nz: int,
        seed: torch.Tensor,
        index: torch.Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """New samples [N, *shape] for the N positions of ``index``, a function of the seed.

        The same position gives the same sample in any batch.
        """
        x = philox.normal(seed, index, shape, dtype)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.sample_loop(generator, x, nz=nz, seed=philox.split(seed, 1), index=index)


def _forward_tables(betas: np.ndarray) -> dict[str, torch.Tensor]:
    signal = np.sqrt(1.0 - betas)
    # Multiplied one after another in float32, as the published tables were.
    signal_cum = np.cumprod(signal, dtype=np.float32)
    tables = {
        "betas_full": betas,
        "sigmas": np.sqrt(betas),
        "a_s": signal,
        "a_s_cum": signal_cum,
        "sigmas_cum": np.sqrt(1.0 - signal_cum**2),
    }
    return {name: torch.from_numpy(values.astype(np.float32)) for name, values in tables.items()}


def _posterior_tables(betas: np.ndarray) -> dict[str, torch.Tensor]:
    beta = torch.from_numpy(betas)
    alpha = 1.0 - beta
    cum = torch.cumprod(alpha, 0)
    before = torch.cat([torch.ones(1), cum[:-1]])
    variance = beta * (1.0 - before) / (1.0 - cum)
    return {
        "betas": beta,
        "alphas": alpha,
        "alphas_cumprod": cum,
        "alphas_cumprod_prev": before,
        "posterior_variance": variance,
        "posterior_mean_coef1": beta * before.sqrt() / (1.0 - cum),
        "posterior_mean_coef2": (1.0 - before) * alpha.sqrt() / (1.0 - cum),
        "posterior_log_variance_clipped": torch.log(variance.clamp(min=1e-20)),
    }
