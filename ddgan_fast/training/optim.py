"""Adam and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


def cosine_rate(step: int, start: float, end: float, total: int, interval: int = 1) -> float:
    """Learning rate of a step: half a cosine from ``start`` to ``end``, constant per interval."""
    periods = max(total // interval, 1)
    done = min(step // interval, periods)
    return end + (start - end) * (1.0 + math.cos(math.pi * done / periods)) / 2.0


def make_adam(
    parameters: Iterable[nn.Parameter],
    rate: float,
    betas: tuple[float, float],
    eps: float,
    backend: str = "auto",
) -> torch.optim.Adam:
    """Adam without weight decay.

    Args:
        parameters: parameters to update; those that require no gradient are left out.
        rate: learning rate.
        betas: moment decays.
        eps: epsilon.
        backend: "torch" (one fused kernel), "foreach", "loop", or "auto" (torch).
    """
    if backend not in ("auto", "torch", "foreach", "loop"):
        raise ValueError(f'backend is {backend!r}: choose "auto", "torch", "foreach" or "loop".')
    options = {"torch": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}
    chosen = "torch" if backend == "auto" else backend
    trainable = [p for p in parameters if p.requires_grad]
    return torch.optim.Adam(trainable, lr=rate, betas=betas, eps=eps, **options[chosen])


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups, in place where it lies on the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
