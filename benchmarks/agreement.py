"""What "the same result" means when two providers are compared."""

from __future__ import annotations

import torch
from torch import nn

FLOAT32_ERROR = 1e-4
"""Distance allowed between two float32 results: two orders of summation differ by some 1e-6, and a
network has dozens of layers. Coarser results may be twice as far from float32 as plain torch's."""


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Length of the difference relative to ``theirs``; infinite if ours is not even finite."""
    if ours.shape != theirs.shape or not bool(torch.isfinite(ours).all()):
        return float("inf")
    ours, theirs = ours.double().flatten(), theirs.double().flatten()
    return float((ours - theirs).norm() / theirs.norm())


@torch.no_grad()
def wake(network: nn.Module, seed: int) -> None:
    """Give a network weights with which every layer matters.

    Some published initial weights are 1e-10: an error behind them would not show, and gradients
    that small slow a processor down.
    """
    random = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            values = torch.randn(parameter.shape, generator=random) * parameter[0].numel() ** -0.5
            parameter.copy_(values)
