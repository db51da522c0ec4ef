"""The training step of the published code, with the work it does and throws away.

The gradient of D's fake loss runs on through G and is discarded, the real loss and R1 are two
backward passes, the average of the weights is restacked by shape at every step, the optimiser is
the plain one, and everything is float32 in NCHW order.
"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F

from ddgan_fast.config import Config
from ddgan_fast.diffusion import Diffusion
from ddgan_fast.training.draws import Draws

from .reference_networks import ReferenceDiscriminator, ReferenceGenerator, check_supported


class ReferenceRecipe:
    """Both networks with their optimisers, and one step of training.

    Args:
        cfg: a configuration with published networks.
        device: where everything lives.
        dtype: float32; float64 in tests.

    Raises:
        ValueError: the configuration is outside the published settings.
    """

    def __init__(
        self, cfg: Config, device: torch.device | str, dtype: torch.dtype = torch.float32
    ) -> None:
        check_supported(cfg)
        self.cfg = cfg
        with torch.device(device):
            self.generator = ReferenceGenerator(cfg.model).to(dtype)
            self.discriminator = ReferenceDiscriminator(
                cfg.discriminator, cfg.model.num_channels
            ).to(dtype)
        self.tables = PublishedTables(cfg, device, dtype)
        o = cfg.optim
        self.optimizer_g, self.optimizer_d = (
            torch.optim.Adam(
                network.parameters(), lr, (o.beta1, o.beta2), o.eps, foreach=False, fused=False
            )
            for network, lr in ((self.generator, o.lr_g), (self.discriminator, o.lr_d))
        )
        self.average = RestackedAverage(list(self.generator.parameters()), o.ema_decay)

    def step(self, real: torch.Tensor, penalize: bool) -> None:
        """One update of each network with fresh draws from torch's generator.

        Args:
            real: images [N, C, H, W] in [-1, 1].
            penalize: apply R1.
        """
        self.discriminator_gradients(real, self.draw(real), penalize)
        self.optimizer_d.step()
        self.generator_gradients(real, self.draw(real))
        self.optimizer_g.step()
        self.average.update()

    def draw(self, real: torch.Tensor) -> Draws:
        """The random numbers of one network's update."""
        n, model = real.shape[0], self.cfg.model
        t = torch.randint(0, model.num_timesteps, (n,), device=real.device)
        pair = (torch.randn_like(real), torch.randn_like(real))
        z = torch.randn(n, model.nz, device=real.device, dtype=real.dtype)
        return Draws(t=t, z=z, pair_noise=pair, posterior_noise=torch.randn_like(real))

    def discriminator_gradients(
        self, real: torch.Tensor, draws: Draws, penalize: bool
    ) -> dict[str, torch.Tensor]:
        """Set D's gradients (and G's, which nobody uses); returns detached losses."""
        self._train_discriminator(True)
        self.discriminator.zero_grad()
        x_t, x_next = self._pair(real, draws)
        x_t.requires_grad = True
        logits = self.discriminator(x_t, draws.t, x_next)
        loss_real = F.softplus(-logits.flatten()).mean()
        loss_real.backward(retain_graph=True)
        losses = {"D/real": loss_real.detach()}
        if penalize:
            (gradient,) = torch.autograd.grad(logits.sum(), x_t, create_graph=True)
            penalty = gradient.flatten(1).square().sum(1).mean()
            (self.cfg.loss.r1_gamma / 2 * penalty).backward()
            losses["D/r1"] = penalty.detach()
        fake = self.discriminator(self._denoise(x_next, draws), draws.t, x_next)
        loss_fake = F.softplus(fake.flatten()).mean()
        loss_fake.backward()
        losses["D/fake"] = loss_fake.detach()
        return losses

    def generator_gradients(self, real: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
        """Set G's gradients; returns the detached loss."""
        self._train_discriminator(False)
        self.generator.zero_grad()
        _, x_next = self._pair(real, draws)
        logits = self.discriminator(self._denoise(x_next, draws), draws.t, x_next)
        loss = F.softplus(-logits.flatten()).mean()
        loss.backward()
        return {"G/loss": loss.detach()}

    def _denoise(self, x_next: torch.Tensor, draws: Draws) -> torch.Tensor:
        assert draws.posterior_noise is not None
        x0 = self.generator(x_next, draws.t, draws.z)
        return self.tables.posterior(x0, x_next, draws.t, draws.posterior_noise)

    def _pair(self, real: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        assert draws.pair_noise is not None
        noise_next, noise_t = draws.pair_noise
        t, at = draws.t, self.tables.at
        x_t = at("a_s_cum", t) * real + at("sigmas_cum", t) * noise_t
        x_next = at("a_s", t + 1) * x_t + at("sigmas", t + 1) * noise_next
        return x_t, x_next

    def _train_discriminator(self, on: bool) -> None:
        for parameter in self.discriminator.parameters():
            parameter.requires_grad = on


class PublishedTables:
    """The diffusion's coefficients, looked up one by one."""

    def __init__(self, cfg: Config, device: torch.device | str, dtype: torch.dtype) -> None:
        tables = Diffusion.from_config(cfg.model).tables
        self.tables = {name: table.to(device, dtype) for name, table in tables.items()}

    def at(self, table: str, t: torch.Tensor) -> torch.Tensor:
        """Entries t [N] of a table, shaped to multiply images."""
        return self.tables[table].gather(0, t).reshape(-1, 1, 1, 1)

    def posterior(
        self, x0: torch.Tensor, x_next: torch.Tensor, t: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """x_t ~ q(x_t | x_0, x_{t+1})."""
        mean = self.at("posterior_mean_coef1", t) * x0
        mean = mean + self.at("posterior_mean_coef2", t) * x_next
        nonzero = (t != 0).to(x0.dtype).reshape(-1, 1, 1, 1)
        log_variance = self.at("posterior_log_variance_clipped", t)
        return mean + nonzero * torch.exp(0.5 * log_variance) * noise


class RestackedAverage:
    """Moving average of weights that stacks all weights and all averages of a shape every time."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.average: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current weights."""
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for i, parameter in enumerate(self.parameters):
            if i not in self.average:
                self.average[i] = parameter.detach().clone()
            by_shape[parameter.shape].append(i)
        for same in by_shape.values():
            weights = torch.stack([self.parameters[i].detach() for i in same])
            averages = torch.stack([self.average[i] for i in same])
            averages.mul_(self.decay).add_(weights, alpha=1.0 - self.decay)
            self.average.update(zip(same, averages.unbind(0), strict=True))


class ReferenceSampler:
    """Sampling as published: T generator calls, noise from torch's generator.

    Raises:
        ValueError: the configuration is outside the published settings.
    """

    def __init__(self, cfg: Config, device: torch.device | str) -> None:
        check_supported(cfg)
        self.cfg, self.device = cfg, device
        with torch.device(device):
            self.generator = ReferenceGenerator(cfg.model)
        self.tables = PublishedTables(cfg, device, torch.float32)

    def draw(self, n: int) -> torch.Tensor:
        """New images [n, C, H, W]."""
        return self.loop(*self.noise(n))

    def noise(self, n: int) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """x_T, and z and posterior noise by timestep."""
        model, steps = self.cfg.model, range(self.cfg.model.num_timesteps)
        shape = (n, model.num_channels, model.image_size, model.image_size)
        z = [torch.randn(n, model.nz, device=self.device) for _ in steps]
        noise = [torch.randn(shape, device=self.device) for _ in steps]
        return torch.randn(shape, device=self.device), z, noise

    @torch.no_grad()
    def loop(
        self, x: torch.Tensor, z: list[torch.Tensor], noise: list[torch.Tensor]
    ) -> torch.Tensor:
        """x_0 from x_T [N, C, H, W]."""
        for i in reversed(range(self.cfg.model.num_timesteps)):
            t = torch.full((len(x),), i, dtype=torch.int64, device=x.device)
            x = self.tables.posterior(self.generator(x, t, z[i]), x, t, noise[i])
        return x
