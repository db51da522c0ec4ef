"""The training step of a DDPM: one network learns to predict the noise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..diffusion import Diffusion
from ..kernels import q_sample_pair
from ..models.labels import told
from .accumulation import reduce_only, scaled, shares, together
from .compiling import Compilable
from .draws import Draws, MicroBatch


class NoiseLoss(nn.Module):
    """E |eps - network(x_{t+1}, t)|^2 per element, the simple loss of Ho et al. (2020)."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(
        self, x_next: torch.Tensor, noise: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and detached statistics."""
        predicted = self.generator(
            x_next, draws.t, draws.z, draws.drop, **told(draws.label)
        )
        wide = torch.promote_types(predicted.dtype, torch.float32)
        errors = (predicted.to(wide) - noise.to(wide)).square().flatten(1).mean(1)
        return errors.mean(), {"G/loss": errors.detach()}


class Diffuser(nn.Module):
    """Data mixed with noise, and the noise.

    Args:
        diffusion: the forward process.
    """

    mixed: torch.Tensor
    bare: torch.Tensor

    def __init__(self, diffusion: Diffusion) -> None:
        super().__init__()
        levels = torch.from_numpy(diffusion.levels()[1:]).float()
        # Tables of the op that makes pairs, of which the first image alone is used.
        mixed = torch.cat([levels, torch.tensor([[1.0, 0.0]]).expand(len(levels), 2)], 1)
        self.register_buffer("mixed", mixed.to(diffusion.q_tables.device), persistent=False)
        bare = torch.tensor([[0.0, 1.0, 1.0, 0.0]]).expand(len(levels), 4).contiguous()
        self.register_buffer("bare", bare.to(diffusion.q_tables.device), persistent=False)

    def forward(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_{t+1}, its noise), both like the images inside the networks."""
        # The same draw twice: mixed with the data, and alone.
        return self.image(micro), self._drawn(micro, self.bare)

    def image(self, micro: MicroBatch) -> torch.Tensor:
        """x_{t+1} alone."""
        return self._drawn(micro, self.mixed)

    def _drawn(self, micro: MicroBatch, tables: torch.Tensor) -> torch.Tensor:
        draws = micro.draws
        return q_sample_pair(
            micro.images,
            draws.t,
            tables,
            flip=micro.flip,
            noise=draws.pair_noise,
            seed=draws.pair_seed,
            index=draws.index,
        )[0]


class DenoisingStep:
    """The only update of a DDPM's training step.

    Gradients stay in the parameters; the caller applies them (and may look at them first).

    Args:
        generator: the network, noise from (x_{t+1}, t).
        diffusion: the forward process.
        wrap: what turns a loss module into a data-parallel one; default none.
        autocast: context for the forward pass; default none.
    """

    loss_of: Callable[[nn.Module], nn.Module] = NoiseLoss
    """Makes the network's loss."""

    def __init__(
        self,
        generator: nn.Module,
        diffusion: Diffusion,
        *,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        autocast: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
    ) -> None:
        self.generator = generator
        self.diffuse = Diffuser(diffusion)
        loss = Compilable(type(self).loss_of(generator))
        self.parts = [loss]
        """What torch.compile may take over."""
        self.g_loss = wrap(loss) if wrap else loss
        self.losses = [self.g_loss]
        self.autocast = autocast or contextlib.nullcontext

    def inputs(self, micro: MicroBatch) -> tuple[torch.Tensor, ...]:
        """What the loss takes in front of the draws."""
        return self.diffuse(micro)

    def generator_gradients(
        self, micros: Sequence[MicroBatch], scale: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Set the network's gradients, times ``scale`` [].

        Returns:
            Detached per-sample statistics [N]: "G/loss".
        """
        self.generator.zero_grad(set_to_none=True)
        collected = []
        for micro, share, last in shares(micros):
            inputs = self.inputs(micro)
            with reduce_only(self.g_loss, last):
                with self.autocast():
                    loss, stats = self.g_loss(*inputs, micro.draws)
                scaled(loss * share, scale).backward()
            collected.append(stats)
        return together(collected)
