"""The training step of a classifier of diffused samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .denoising import DenoisingStep
from .draws import Draws, MicroBatch


class ClassLoss(nn.Module):
    """-log p(label | x_{t+1}, t), and whether the likeliest class is the right one."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(
        self, x_next: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and detached statistics."""
        assert draws.label is not None
        logits = self.classifier(x_next, draws.t)
        wide = torch.promote_types(logits.dtype, torch.float32)
        losses = F.cross_entropy(logits.to(wide), draws.label, reduction="none")
        right = (logits.detach().argmax(1) == draws.label).to(torch.float32)
        return losses.mean(), {"G/loss": losses.detach(), "G/accuracy": right}


class ClassifyingStep(DenoisingStep):
    """The only update of a classifier's training step; "generator" is the classifier.

    Beside "G/loss" its statistics hold "G/accuracy" [N], 1 where the class is right.
    """

    loss_of = ClassLoss

    def inputs(self, micro: MicroBatch) -> tuple[torch.Tensor, ...]:
        return (self.diffuse.image(micro),)


STEPS: dict[str, type[DenoisingStep]] = {"ddpm": DenoisingStep, "classifier": ClassifyingStep}
"""What trains a network that plays against no other, by ``loss.kind``."""
