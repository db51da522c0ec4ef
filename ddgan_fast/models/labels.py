"""How networks are told the class of a sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class LabelEmbedding(nn.Module):
    """A vector for each class, added to the time embedding; the last row is the null class.

    Args:
        num_classes: classes without the null class, which stands for "any".
        width: of the time embedding.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes + 1, width))

    def forward(
        self, time: torch.Tensor, label: torch.Tensor | None, t: torch.Tensor
    ) -> torch.Tensor:
        """time [N, width] joined with label int64 [N]; None is the null class everywhere."""
        if label is None:
            label = torch.full_like(t, self.weight.shape[0] - 1)
        return time + F.embedding(label, self.weight).to(time.dtype)


def label_embedding(num_classes: int, width: int) -> LabelEmbedding | None:
    """The embedding of a network; None where it knows no classes."""
    return LabelEmbedding(num_classes, width) if num_classes else None


def with_label(
    embedding: LabelEmbedding | None,
    time: torch.Tensor,
    label: torch.Tensor | None,
    t: torch.Tensor,
) -> torch.Tensor:
    """The time embedding [N, width] of timesteps t, told the class where the network knows it.

    Raises:
        ValueError: a label for a network without classes.
    """
    if embedding is not None:
        return embedding(time, label, t)
    if label is not None:
        raise ValueError("a label was given to a network without classes (model.num_classes 0).")
    return time


def told(label: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """What a network is called with so that it knows the classes; nothing where there are none."""
    return {} if label is None else {"label": label}
