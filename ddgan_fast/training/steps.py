"""The training algorithm: discriminator, R1 and generator losses, and one update of each network.

A step is a function of the batch and of its draws; it touches no global random state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from ..data.device import to_model_input
from ..diffusion import Diffusion
from ..models.labels import told
from ..models.layers import without_autocast
from .accumulation import reduce_only, scaled, shares, together
from .compiling import Compilable
from .draws import Draws, MicroBatch
from .terms import TermContext, WeightedTerm

if TYPE_CHECKING:
    from .second_judge import SecondJudge


class DiscriminatorLoss(nn.Module):
    """E softplus(-D(real)) + E softplus(D(fake)) [+ gamma/2 E |grad D(real)|^2] as one number.

    One loss means one backward pass: the real pass is traversed once for its loss and for R1, and
    DistributedDataParallel around this module reduces once. With ``joint`` real and fake images
    pass through D as one batch wherever R1 is not applied, whose gradient needs the real ones only.
    Names of statistics begin with ``name``.
    """

    def __init__(
        self, discriminator: nn.Module, r1_gamma: float, joint: bool = False, name: str = "D"
    ) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.r1_gamma = r1_gamma
        self.joint = joint
        self.name = name

    def forward(
        self,
        x_t: torch.Tensor,
        x_next: torch.Tensor | None,
        t: torch.Tensor,
        fake_x_t: torch.Tensor,
        penalize: bool,
        scale: torch.Tensor | None = None,
        label: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and detached statistics.

        With ``penalize``, x_t must be a leaf requiring grad. ``scale`` [] lifts R1's inner gradient
        into float16's range; it is divided out before squaring. ``label`` is as in ``Draws``.
        """
        given = [t] if x_next is None else [t, x_next]
        if self.joint and not penalize:
            pairs = (torch.cat(two) for two in ((x_t, fake_x_t), *((c, c) for c in given)))
            twice = told(None if label is None else torch.cat((label, label)))
            real, fake = self.discriminator(*pairs, chunks=2, **twice).chunk(2)
        else:
            real = self.discriminator(x_t, *given, **told(label))
            fake = self.discriminator(fake_x_t, *given, **told(label))
        loss_real, loss_fake = softplus(-real), softplus(fake)
        d = self.name
        stats = {
            f"{d}/real": loss_real.detach(),
            f"{d}/fake": loss_fake.detach(),
            f"{d}/real_acc": _share(real > 0),
            f"{d}/fake_acc": _share(fake < 0),
        }
        loss = loss_real.mean() + loss_fake.mean()
        if penalize:
            with without_autocast(x_t.device):
                # The gradient is lifted by this factor, and so is what flows back through it: the
                # loss is scaled, its mean divides by N, and R1 divides by the factor twice.
                factor = None if scale is None else (scale / real.shape[0]).sqrt()
                total = real.sum() if factor is None else real.sum() * factor
                (gradient,) = torch.autograd.grad(total, x_t, create_graph=True)
            gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            if factor is not None:
                gradient = gradient / factor
            penalty = gradient.square().flatten(1).sum(1)
            stats[f"{d}/r1"] = penalty.detach()
            stats[f"{d}/r1_norm"] = penalty.detach().sqrt()
            loss = loss + 0.5 * self.r1_gamma * penalty.mean()
        return loss, stats


class GeneratorLoss(nn.Module):
    """E softplus(-D(x_t', t, x_{t+1})) with x_t' drawn from the posterior of G's prediction x_0'.

    Each of the ``terms`` adds its weight times its mean.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        diffusion: Diffusion,
        terms: Sequence[WeightedTerm] = (),
    ) -> None:
        super().__init__()
        self.generator = generator
        self.diffusion = diffusion
        self.terms = list(terms)
        # Not a submodule: its parameters are the other network's, and not reduced with these.
        self._discriminator = [discriminator]

    def forward(
        self,
        x_next: torch.Tensor,
        draws: Draws,
        x_t: torch.Tensor | None = None,
        x0: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and detached statistics; only the terms need the real x_t and x_0."""
        fake_x_t, predicted = denoise(self.generator, self.diffusion, x_next, draws)
        logits = self._discriminator[0](fake_x_t, draws.t, x_next, **told(draws.label))
        losses = softplus(-logits)
        loss, stats = losses.mean(), {"G/loss": losses.detach()}
        if x0 is not None and x_t is not None:
            found = predicted.to(x_next.dtype)
            context = TermContext(found, x0, x_t, x_next, draws.t, draws.label)
            for term in self.terms:
                losses = _per_sample(term, context)
                loss = loss + term.weight * losses.mean()
                stats[f"G/{term.name}"] = losses.detach()
        return loss, stats


class Denoiser(nn.Module):
    """x_t' and x_0' as the discriminators' updates see them: no gradient is taken through them."""

    def __init__(self, generator: nn.Module, diffusion: Diffusion) -> None:
        super().__init__()
        self.generator = generator
        self.diffusion = diffusion

    def forward(self, x_next: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        return denoise(self.generator, self.diffusion, x_next, draws)


def denoise(
    generator: nn.Module, diffusion: Diffusion, x_next: torch.Tensor, draws: Draws
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t' ~ q(x_t | x_0' = G(x_{t+1}, t, z), x_{t+1}), and x_0'."""
    x0 = generator(x_next, draws.t, draws.z, draws.drop, **told(draws.label))
    x_t = diffusion.sample_posterior(
        x0,
        x_next,
        draws.t,
        noise=draws.posterior_noise,
        seed=draws.posterior_seed,
        index=draws.index,
    )
    return x_t, x0


def clean(micro: MicroBatch) -> torch.Tensor:
    """The data x_0 [N, ...] of a micro-batch, mirrored, as the forward diffusion takes it."""
    if micro.images.dtype != torch.uint8:
        return micro.images
    return to_model_input(micro.images, micro.flip)


def _per_sample(term: WeightedTerm, context: TermContext) -> torch.Tensor:
    """Losses [N] of a term, in float32 at least."""
    losses = term.function(context)
    if losses.shape != context.t.shape:
        raise ValueError(
            f"the term {term.name!r} of the loss returned the shape {list(losses.shape)}: it must "
            f"return one loss per sample, {list(context.t.shape)}."
        )
    return losses.to(torch.promote_types(losses.dtype, torch.float32))


def softplus(logits: torch.Tensor) -> torch.Tensor:
    """Per-sample softplus [N], in float32 at least."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.softplus(logits.to(wide)).flatten()


def _share(right: torch.Tensor) -> torch.Tensor:
    """1 where the sign of a logit is right, else 0, [N]."""
    return right.detach().flatten().to(torch.float32)


class TrainStep:
    """The updates of one training step: D's, that of a second judge if there is one, and G's.

    Gradients stay in the parameters; the caller applies them (and may look at them first).

    Args:
        generator: G.
        discriminator: D.
        diffusion: the forward process.
        r1_gamma: weight of the R1 penalty.
        wrap: what turns a loss module into a data-parallel one; default none.
        autocast: context for the forward passes; default none.
        joint: let D see real and fake images as one batch in steps without R1.
        terms: what joins the adversarial loss of G.
        judge: of x_0', beside D.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        diffusion: Diffusion,
        r1_gamma: float,
        *,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        autocast: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
        joint: bool = False,
        terms: Sequence[WeightedTerm] = (),
        judge: SecondJudge | None = None,
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.diffusion = diffusion
        self.judge = judge
        self._predicted: list[torch.Tensor] = []
        judges = [discriminator] + ([judge.network] if judge else [])
        self._d_parameters = [p for d in judges for p in d.parameters() if p.requires_grad]
        wrap = wrap or (lambda module: module)
        d_loss = Compilable(DiscriminatorLoss(discriminator, r1_gamma, joint))
        self.terms = [*([judge.term] if judge else []), *terms]
        g_loss = Compilable(GeneratorLoss(generator, discriminator, diffusion, self.terms))
        self.fake = Compilable(Denoiser(generator, diffusion))
        self.parts = [d_loss, g_loss, self.fake, *([judge.part] if judge else [])]
        """What torch.compile may take over."""
        self.d_loss, self.g_loss = wrap(d_loss), wrap(g_loss)
        self.losses = [self.d_loss, self.g_loss, *([judge.loss] if judge else [])]
        self.autocast = autocast or contextlib.nullcontext

    def discriminator_gradients(
        self, micros: Sequence[MicroBatch], penalize: bool, scale: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Set D's gradients, times ``scale`` []; ``penalize`` adds R1 to the loss.

        Returns:
            Detached per-sample statistics [N]: losses "D/real" and "D/fake", "D/real_acc" and
            "D/fake_acc" (1 where the logit's sign is right), and with the penalty "D/r1" and its
            root "D/r1_norm".
        """
        self.discriminator.zero_grad(set_to_none=True)
        self._predicted = []
        collected = []
        for micro, share, last in shares(micros):
            x_t, x_next = self._pair(micro)
            fake_x_t = self._fake(x_next, micro.draws)
            inputs = x_t.requires_grad_(penalize), x_next, micro.draws.t, fake_x_t, penalize
            with reduce_only(self.d_loss, last):
                with self.autocast():
                    loss, stats = self.d_loss(*inputs, scale, micro.draws.label)
                scaled(loss * share, scale).backward()
            collected.append(stats)
        return together(collected)

    def judge_gradients(
        self, micros: Sequence[MicroBatch], penalize: bool, scale: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Set the second judge's gradients on what G has just predicted for D's update.

        Args:
            micros: those of the call of ``discriminator_gradients`` before.
            penalize, scale: as there.

        Returns:
            As there, under names that begin with "D0/".
        """
        assert self.judge is not None
        predicted, self._predicted = self._predicted, []
        return self.judge.gradients(micros, predicted, penalize, scale)

    def generator_gradients(
        self, micros: Sequence[MicroBatch], scale: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Set G's gradients, times ``scale`` [].

        Returns:
            Detached per-sample statistics [N]: "G/loss", the adversarial loss, and "G/<name>" of
            every term, before its weight.
        """
        self.generator.zero_grad(set_to_none=True)
        self._train_discriminator(False)
        collected = []
        try:
            for micro, share, last in shares(micros):
                x_t, x_next = self._pair(micro)
                real = [x_t, clean(micro)] if self.terms else []
                with reduce_only(self.g_loss, last):
                    with self.autocast():
                        loss, stats = self.g_loss(x_next, micro.draws, *real)
                    scaled(loss * share, scale).backward()
                collected.append(stats)
        finally:
            self._train_discriminator(True)
        return together(collected)

    def _train_discriminator(self, on: bool) -> None:
        for parameter in self._d_parameters:
            parameter.requires_grad_(on)

    def _fake(self, x_next: torch.Tensor, draws: Draws) -> torch.Tensor:
        with torch.no_grad(), self.autocast():
            fake_x_t, predicted = self.fake(x_next, draws)
        if self.judge is not None:
            self._predicted.append(predicted.to(x_next.dtype))
        return fake_x_t

    def _pair(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        draws = micro.draws
        return self.diffusion.q_sample_pair(
            micro.images,
            draws.t,
            flip=micro.flip,
            noise=draws.pair_noise,
            seed=draws.pair_seed,
            index=draws.index,
        )
