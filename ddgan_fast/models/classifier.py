"""Classifiers of diffused samples, p(y | x_{t+1}, t): the discriminators' trunks on one image.

No sample knows of another (there is no minibatch statistic), so that the gradient of a sample's
class is that sample's alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..config import Config, DiscriminatorConfig
from ..kernels import bias_leaky_relu
from .discriminator import BLOCKS, DiscriminatorBlock, TimeEmbedding, conv_fan_out
from .layers import dense_fan_out, final_logits, timestep_embedding
from .toy import PointFeatures


class ConvClassifier(nn.Module):
    """Residual blocks with a time bias, then the mean over all pixels.

    Args:
        cfg: options of the trunk, those of a discriminator of kind "small", "large" or "custom".
        num_channels: channels of an image.
        num_classes: K.
    """

    def __init__(self, cfg: DiscriminatorConfig, num_channels: int, num_classes: int) -> None:
        super().__init__()
        mults, downs = BLOCKS.get(cfg.kind, (cfg.block_mults, cfg.block_downs))
        width = 2 * cfg.ngf
        self.time_embed = TimeEmbedding(cfg.t_emb_dim)
        self.conv_in = conv_fan_out(num_channels, width, 1)
        self.blocks = nn.ModuleList()
        for mult, down in zip(mults, downs, strict=True):
            n_in, width = width, mult * cfg.ngf
            self.blocks.append(DiscriminatorBlock(n_in, width, cfg.t_emb_dim, down))
        self.out = dense_fan_out(width, num_classes)

    def forward(self, x: torch.Tensor, t: torch.Tensor, z: object = None) -> torch.Tensor:
        """Logits [N, K]; ``z`` is accepted for the sake of one calling convention."""
        time = self.time_embed(t)
        h = self.conv_in(x)
        for block in self.blocks:
            h = block(h, time)
        wide = torch.promote_types(h.dtype, torch.float32)
        return final_logits(self.out, bias_leaky_relu(h).mean((2, 3), dtype=wide))


class DenseClassifier(nn.Module):
    """Fully connected layers, for images of a few pixels and for points.

    Args:
        cfg: options of the trunk, those of a discriminator of kind "dense" or "mlp".
        size: numbers in a sample.
        num_classes: K.
    """

    def __init__(self, cfg: DiscriminatorConfig, size: int, num_classes: int) -> None:
        super().__init__()
        self.time_width = cfg.t_emb_dim
        self.features = PointFeatures(size, cfg.point_features)
        self.first = nn.Linear(self.features.width + cfg.t_emb_dim, cfg.hidden)
        self.layers = nn.ModuleList(
            nn.Linear(cfg.hidden, cfg.hidden) for _ in range(cfg.hidden_layers - 1)
        )
        self.out = nn.Linear(cfg.hidden, num_classes)

    def forward(self, x: torch.Tensor, t: torch.Tensor, z: object = None) -> torch.Tensor:
        """Logits [N, K]; ``z`` is accepted for the sake of one calling convention."""
        time = timestep_embedding(t, self.time_width).to(x.dtype)
        h = torch.cat([self.features(x.flatten(1)), time], 1)
        h = F.leaky_relu(self.first(h), 0.2)
        for layer in self.layers:
            h = h + F.leaky_relu(layer(h), 0.2)
        return final_logits(self.out, h)


def build_classifier(cfg: Config) -> nn.Module:
    """The classifier (x_{t+1} [N, C, H, W] or [N, D], t [N]) -> logits [N, K]."""
    d, model = cfg.discriminator, cfg.model
    if d.kind in ("dense", "mlp"):
        pixels = 1 if model.kind == "mlp" else model.image_size**2
        return DenseClassifier(d, model.num_channels * pixels, model.num_classes)
    return ConvClassifier(d, model.num_channels, model.num_classes)
