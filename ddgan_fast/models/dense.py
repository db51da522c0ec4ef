"""Fully connected discriminator for images of a few pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..config import DiscriminatorConfig
from .discriminator import group_deviation
from .labels import label_embedding, with_label
from .layers import final_logits, timestep_embedding


class DenseDiscriminator(nn.Module):
    """D(x_t [N, C, H, W], t [N], x_{t+1}) -> logits [N, 1], every pixel in sight of every unit.

    On images as small as handwritten digits it learns which strokes belong together from a
    fraction of the images that a convolutional discriminator needs, at a fraction of its cost.

    Args:
        cfg: the discriminator's configuration, validated.
        num_channels: channels of one image.
        image_size: height and width of an image in pixels.
        images: how many it sees of each sample: the pair, or x_t alone.
        num_classes: classes that it is told; 0 = none.
    """

    def __init__(
        self,
        cfg: DiscriminatorConfig,
        num_channels: int,
        image_size: int,
        images: int = 2,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.time_width = cfg.t_emb_dim
        pixels = num_channels * image_size**2
        self.first = nn.Linear(images * pixels + cfg.t_emb_dim + 1, cfg.hidden)
        self.layers = nn.ModuleList(
            nn.Linear(cfg.hidden, cfg.hidden) for _ in range(cfg.hidden_layers - 1)
        )
        self.out = nn.Linear(cfg.hidden, 1)
        self.label_embed = label_embedding(num_classes, cfg.t_emb_dim)

    def forward(
        self,
        x_t: torch.Tensor,
        t: torch.Tensor,
        x_next: torch.Tensor | None = None,
        chunks: int = 1,
        label: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [N, 1]: large where the pair looks real; arguments as of ``Discriminator``."""
        time = timestep_embedding(t, self.time_width).to(x_t.dtype)
        time = with_label(self.label_embed, time, label, t)
        deviation = group_deviation(x_t, chunks=chunks)[:, None]
        seen = [x_t] if x_next is None else [x_t, x_next]
        h = torch.cat([*(x.flatten(1) for x in seen), time, deviation], 1)
        h = F.leaky_relu(self.first(h), 0.2)
        for layer in self.layers:
            h = h + F.leaky_relu(layer(h), 0.2)
        return final_logits(self.out, h)
