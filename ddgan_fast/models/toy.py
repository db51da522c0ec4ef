"""MLP generator and discriminator for points, as in the paper's 25-Gaussians experiment."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from ..config import DiscriminatorConfig, ModelConfig
from .labels import label_embedding, with_label
from .layers import timestep_embedding

TIME_WIDTH = 32


class PointFeatures(nn.Module):
    """Points joined with random Fourier features: [N, dim] -> [N, dim + 2 * count].

    An MLP on raw coordinates learns functions far too smooth to separate neighbouring modes.
    """

    frequencies: torch.Tensor

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.width = dim + 2 * count
        self.frequencies = nn.Parameter(torch.randn(dim, count), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.frequencies.shape[1] == 0:
            return x
        phase = x @ self.frequencies
        return torch.cat([x, phase.sin(), phase.cos()], 1)


def _mlp(sizes: list[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))


def _run(layers: nn.ModuleList, h: torch.Tensor) -> torch.Tensor:
    for layer in layers[:-1]:
        h = F.leaky_relu(layer(h), 0.2)
    return layers[-1](h)


class PointGenerator(nn.Module):
    """G(x_{t+1} [N, D], t [N], z [N, nz]) -> x_0 [N, D]."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.features = PointFeatures(cfg.num_channels, cfg.point_features)
        width = self.features.width + TIME_WIDTH + cfg.nz
        self.layers = _mlp([width, *[cfg.hidden] * cfg.hidden_layers, cfg.num_channels])
        self.label_embed = label_embedding(cfg.num_classes, TIME_WIDTH)

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        z: torch.Tensor,
        drop: object = None,
        label: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict x_0; ``drop`` is accepted for the sake of one calling convention."""
        time = timestep_embedding(t, TIME_WIDTH).to(x.dtype)
        time = with_label(self.label_embed, time, label, t)
        out = _run(self.layers, torch.cat([self.features(x), time, z], 1))
        return torch.tanh(out) if self.cfg.tanh else out


class PointDiscriminator(nn.Module):
    """D(x_t [N, D], t [N], x_{t+1} [N, D]) -> logits [N, 1]; of x_t alone with ``images`` 1."""

    def __init__(
        self, cfg: DiscriminatorConfig, dim: int, images: int = 2, num_classes: int = 0
    ) -> None:
        super().__init__()
        self.features = PointFeatures(dim, cfg.point_features)
        self.time_width = cfg.t_emb_dim
        width = self.features.width + (images - 1) * dim + cfg.t_emb_dim
        self.layers = _mlp([width, *[cfg.hidden] * cfg.hidden_layers, 1])
        self.label_embed = label_embedding(num_classes, cfg.t_emb_dim)

    def forward(
        self,
        x_t: torch.Tensor,
        t: torch.Tensor,
        x_next: torch.Tensor | None = None,
        chunks: int = 1,
        label: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [N, 1]; no sample knows of another, so ``chunks`` changes nothing."""
        time = timestep_embedding(t, self.time_width).to(x_t.dtype)
        time = with_label(self.label_embed, time, label, t)
        seen = [self.features(x_t)] if x_next is None else [self.features(x_t), x_next]
        return _run(self.layers, torch.cat([*seen, time], 1))
