"""Exponential moving average of the generator's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class WeightAverage:
    """ema = decay * ema + (1 - decay) * parameter, in one pass over all parameters.

    The average starts as the weights after the first update, as published.

    Args:
        module: whose parameters are averaged.
        decay: constant decay; 0 turns the average into the weights themselves.
        warmup: use min(decay, (1 + step) / (10 + step)) instead.
    """

    def __init__(self, module: nn.Module, decay: float, warmup: bool = False) -> None:
        self.names = [name for name, _ in module.named_parameters()]
        self.parameters = list(module.parameters())
        self.decay = decay
        self.warmup = warmup
        self.average: list[torch.Tensor] = []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update number ``step`` (counted from 0)."""
        if not self.average:
            self.average = [p.detach().clone() for p in self.parameters]
            return
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 - decay)

    def weights(self) -> dict[str, torch.Tensor]:
        """The averaged weights by parameter name; the current ones before the first update."""
        values = self.average or [p.detach() for p in self.parameters]
        return dict(zip(self.names, values, strict=True))

    @torch.no_grad()
    def distance(self) -> torch.Tensor:
        """l2 distance of the average from the weights over the weights' norm, [] on the device."""
        # One tensor after the other: all differences at once would take the weights' memory again.
        pairs = list(zip(self.average or self.parameters, self.parameters, strict=True))
        apart = torch.stack([torch.linalg.vector_norm(a - p) for a, p in pairs])
        norms = torch.stack([torch.linalg.vector_norm(p) for p in self.parameters])
        return torch.linalg.vector_norm(apart) / torch.linalg.vector_norm(norms)

    @torch.no_grad()
    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Continue from saved averages; tensors that exist are filled in place."""
        if not self.average:
            # In the parameters' memory order: the update would otherwise fall apart into one
            # kernel per tensor.
            self.average = [torch.empty_like(p, requires_grad=False) for p in self.parameters]
        for name, average in zip(self.names, self.average, strict=True):
            average.copy_(weights[name])
