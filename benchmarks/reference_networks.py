"""The published networks computed as the published code computes them, on our parameters.

Same mathematics and parameter names as ``ddgan_fast.models``, so a state dict of one loads into
the other. Plain torch operators only.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ddgan_fast.config import Config, ModelConfig
from ddgan_fast.models.blocks import ResidualBlock
from ddgan_fast.models.discriminator import (
    TAPS,
    Discriminator,
    DiscriminatorBlock,
)
from ddgan_fast.models.generator import Generator
from ddgan_fast.models.layers import (
    AdaptiveGroupNorm,
    Attention,
    DropoutDraws,
    NetworkInNetwork,
    timestep_embedding,
)

from .reference_filters import conv_downsample_2d, downsample_2d, upsample_2d

SQRT2 = math.sqrt(2.0)


def check_supported(cfg: Config) -> None:
    """Raise ValueError for a network outside the published settings."""
    fixed = {
        "kind": "ncsnpp",
        "conditional": True,
        "fir": True,
        "centered": True,
        "skip_rescale": True,
        "resblock_type": "biggan",
        "progressive": "none",
        "progressive_input": "residual",
        "embedding_type": "positional",
        "dropout": 0.0,
        "tanh": True,
    }
    for name, value in fixed.items():
        if getattr(cfg.model, name) != value:
            raise ValueError(
                f"the reference recipe covers the published networks only: model.{name} is "
                f"{getattr(cfg.model, name)!r}, it must be {value!r}; leave --baseline away."
            )


class ReferenceGenerator(Generator):
    """G, one operator at a time, in NCHW order."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        self.fir = cfg.fir_kernel

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        z: torch.Tensor,
        drop: DropoutDraws | None = None,
    ) -> torch.Tensor:
        latent = self._map(z)
        time = self._time(t)
        pyramid = x
        skips = [self.conv_in(x)]
        for level in self.down:
            for i, block in enumerate(level.blocks):
                h = self._residual(block, skips[-1], time, latent)
                if len(level.attentions) > 0:
                    h = _attend(level.attentions[i], h)
                skips.append(h)
            if level.downsample is not None:
                h = self._residual(level.downsample, skips[-1], time, latent)
                smaller = level.pyramid
                pyramid = conv_downsample_2d(pyramid, smaller.weight, smaller.bias, self.fir)
                pyramid = (pyramid + h) / SQRT2
                skips.append(pyramid)
        first, attention, second = self.middle
        h = _attend(attention, self._residual(first, skips[-1], time, latent))
        h = self._residual(second, h, time, latent)
        for level in self.up:
            for block in level.blocks:
                h = self._residual(block, torch.cat([h, skips.pop()], 1), time, latent)
            if level.attention is not None:
                h = _attend(level.attention, h)
            if level.upsample is not None:
                h = self._residual(level.upsample, h, time, latent)
        return torch.tanh(self.out_conv(F.silu(_affine_norm(self.out_norm, h))))

    def _map(self, z: torch.Tensor) -> torch.Tensor:
        z = z / torch.sqrt(torch.mean(z**2, dim=1, keepdim=True) + 1e-8)
        for layer in self.mapping.layers:
            z = F.silu(layer(z))
        return z

    def _time(self, t: torch.Tensor) -> torch.Tensor:
        first, second = self.time_embed
        embedding = timestep_embedding(t, self.cfg.num_channels_dae).to(first.weight.dtype)
        return second(F.silu(first(embedding)))

    def _residual(
        self, block: ResidualBlock, x: torch.Tensor, time: torch.Tensor, latent: torch.Tensor
    ) -> torch.Tensor:
        h = F.silu(_adaptive_norm(block.norm0, x, latent))
        if block.resample_by == "up":
            h, x = upsample_2d(h, self.fir), upsample_2d(x, self.fir)
        elif block.resample_by == "down":
            h, x = downsample_2d(h, self.fir), downsample_2d(x, self.fir)
        h = block.conv0(h)
        h = h + block.time_proj(F.silu(time))[:, :, None, None]
        h = block.conv1(F.silu(_adaptive_norm(block.norm1, h, latent)))
        if block.skip is not None:
            x = block.skip(x)
        return (x + h) / SQRT2


def _adaptive_norm(norm: AdaptiveGroupNorm, x: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    style = norm.style(latent)[:, :, None, None]
    gamma, beta = style.chunk(2, 1)
    return gamma * F.group_norm(x, norm.groups, eps=1e-6) + beta


def _affine_norm(norm: nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, eps=1e-6)


def _nin(layer: NetworkInNetwork, x: torch.Tensor) -> torch.Tensor:
    y = torch.einsum("bhwi,io->bhwo", x.permute(0, 2, 3, 1), layer.weight) + layer.bias
    return y.permute(0, 3, 1, 2)


def _attend(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    n, c, height, width = x.shape
    h = _affine_norm(attention.norm, x)
    q, k, v = (_nin(f, h).flatten(2) for f in (attention.query, attention.key, attention.value))
    weights = torch.einsum("bcp,bcq->bpq", q, k) * c**-0.5
    h = torch.einsum("bpq,bcq->bcp", F.softmax(weights, -1), v)
    h = _nin(attention.out, h.reshape(n, c, height, width))
    return (x + h) / SQRT2


class ReferenceDiscriminator(Discriminator):
    """D, one operator at a time, in NCHW order."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, x_next: torch.Tensor) -> torch.Tensor:
        time = self._time(t)
        h = self.conv_in(torch.cat([x_t, x_next], 1))
        for block in self.blocks:
            h = _halve(block, h, time)
        h = _with_deviation(h)
        h = F.leaky_relu(self.conv_out(h), 0.2)
        return self.linear_out(h.sum((2, 3)))

    def _time(self, t: torch.Tensor) -> torch.Tensor:
        first, second = self.time_embed.layers
        embedding = timestep_embedding(t, first.in_features).to(first.weight.dtype)
        return F.leaky_relu(second(F.leaky_relu(first(embedding), 0.2)), 0.2)


def _halve(block: DiscriminatorBlock, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    h = block.conv1(F.leaky_relu(x, 0.2))
    h = h + block.time_proj(time)[:, :, None, None]
    h = F.leaky_relu(h, 0.2)
    if block.halves:
        h, x = downsample_2d(h, TAPS), downsample_2d(x, TAPS)
    return (block.conv2(h) + block.skip(x)) / SQRT2


def _with_deviation(h: torch.Tensor) -> torch.Tensor:
    n, c, height, width = h.shape
    group = min(n, 4)
    if n % group:
        raise ValueError(
            f"the published discriminator needs a batch of at most 4 or a multiple of 4, got {n}."
        )
    y = h.view(group, n // group, 1, c, height, width)
    y = torch.sqrt(y.var(0, unbiased=False) + 1e-8).mean([2, 3, 4], keepdim=True).squeeze(2)
    return torch.cat([h, y.repeat(group, 1, height, width)], 1)
