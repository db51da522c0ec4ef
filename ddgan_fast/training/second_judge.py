"""The second discriminator D0, which judges the predicted x_0' beside the real x_0."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..models.labels import told
from .accumulation import reduce_only, scaled, shares, together
from .compiling import Compilable
from .draws import MicroBatch
from .steps import DiscriminatorLoss, clean, softplus
from .terms import TermContext, WeightedTerm


class SecondJudge:
    """The update of D0, and the term that it adds to the generator's loss.

    D0 is an ordinary discriminator of clean images. It is told neither x_{t+1} nor t: whatever the
    timestep, the predictions of a perfect generator are distributed like the data.

    Args:
        network: D0(x_0, t) -> logits [N, 1].
        weight: factor of E softplus(-D0(x_0')) in the generator's loss.
        r1_gamma: weight of D0's own R1 penalty.
        wrap: what turns a loss module into a data-parallel one; default none.
        autocast: context for the forward passes; default none.
        joint: let D0 see real and predicted images as one batch in steps without R1.
    """

    def __init__(
        self,
        network: nn.Module,
        weight: float,
        r1_gamma: float,
        *,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        autocast: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
        joint: bool = False,
    ) -> None:
        self.network = network
        self.part = Compilable(DiscriminatorLoss(network, r1_gamma, joint, name="D0"))
        self.loss = wrap(self.part) if wrap else self.part
        self.autocast = autocast or contextlib.nullcontext
        self.term = WeightedTerm("x0", weight, self._adversarial)

    def _adversarial(self, context: TermContext) -> torch.Tensor:
        t = torch.zeros_like(context.t)
        return softplus(-self.network(context.x0_prediction, t, **told(context.label)))

    def gradients(
        self,
        micros: Sequence[MicroBatch],
        predictions: Sequence[torch.Tensor],
        penalize: bool,
        scale: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Set D0's gradients, times ``scale`` []; ``penalize`` adds R1 to the loss.

        Args:
            micros: the real images.
            predictions: x_0' [N, ...] of each of them, without a graph.
            penalize: apply R1.
            scale: loss scale [], or None.

        Returns:
            Detached per-sample statistics [N], as ``TrainStep.discriminator_gradients`` of D,
            under names that begin with "D0/".
        """
        self.network.zero_grad(set_to_none=True)
        collected = []
        for (micro, share, last), predicted in zip(shares(micros), predictions, strict=True):
            x0 = clean(micro).detach().requires_grad_(penalize)
            t = torch.zeros_like(micro.draws.t)
            with reduce_only(self.loss, last):
                with self.autocast():
                    inputs = x0, None, t, predicted, penalize
                    loss, stats = self.loss(*inputs, scale, micro.draws.label)
                scaled(loss * share, scale).backward()
            collected.append(stats)
        return together(collected)
