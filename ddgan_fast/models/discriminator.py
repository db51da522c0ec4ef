"""The time-dependent discriminators D(x_t, t, x_{t+1})."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..config import DiscriminatorConfig
from ..kernels import bias_leaky_relu, bias_leaky_relu_down
from .labels import label_embedding, with_label
from .layers import (
    Resampler,
    dense_fan_out,
    final_logits,
    init_fan_out,
    joined,
    keep_or_recompute,
    residual,
    timestep_embedding,
)
from .rewrites import Rewrites

TAPS = (1.0, 3.0, 3.0, 1.0)

# Width in units of ngf after each block, and whether the block halves the resolution.
BLOCKS = {
    "small": ((2, 4, 8, 8), (False, True, True, True)),
    "large": ((4, 8, 8, 8, 8, 8), (True,) * 6),
}


def conv_fan_out(
    n_in: int, n_out: int, kernel: int, scale: float = 1.0, bias: bool = True
) -> nn.Conv2d:
    """Same-size convolution of a discriminator: fan-out weights, zero bias."""
    layer = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, bias=bias)
    init_fan_out(layer.weight, scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class TimeEmbedding(nn.Module):
    """t [N] -> [N, width]: sinusoids and two activated layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList([dense_fan_out(width, width), dense_fan_out(width, width)])

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        first, second = self.layers
        embedding = timestep_embedding(t, self.width).to(self.layers[0].weight.dtype)
        return F.leaky_relu(second(F.leaky_relu(first(embedding), 0.2)), 0.2)


class DiscriminatorBlock(nn.Module):
    """Residual block with a time bias, optionally halving the resolution."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        time_width: int,
        down: bool,
        recompute: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.halves = down
        self.recompute = recompute
        self.resample = Resampler(TAPS)
        self.conv1 = conv_fan_out(n_in, n_out, 3)
        self.conv2 = conv_fan_out(n_out, n_out, 3, scale=0.0)
        self.time_proj = dense_fan_out(time_width, n_out)
        self.skip = conv_fan_out(n_in, n_out, 1, bias=False)

    def forward(
        self, x: torch.Tensor, time: torch.Tensor, time_bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x [N, n_in, H, W], time [N, time_width].

        ``time_bias`` [N, n_out] is what the block's projection makes of time, if known already.
        """
        if time_bias is None:
            time_bias = self.time_proj(time)
        return keep_or_recompute(
            self._biased, x, time_bias, side=max(x.shape[2:]), recompute=self.recompute
        )

    def _biased(self, x: torch.Tensor, time_bias: torch.Tensor) -> torch.Tensor:
        # conv1's bias and the time bias enter with the activation, in one pass.
        h = F.conv2d(bias_leaky_relu(x), self.conv1.weight, padding=1)
        bias = time_bias + self.conv1.bias
        if self.halves:
            h = bias_leaky_relu_down(h, bias, self.resample.taps)
            x = self.resample.down(x)
        else:
            h = bias_leaky_relu(h, bias)
        return residual(self.skip(x), self.conv2(h), True)


def group_deviation(h: torch.Tensor, group: int = 4, chunks: int = 1) -> torch.Tensor:
    """The mean deviation over the set of samples that each sample belongs to.

    With g = min(N, group) and N divisible by g, sample i belongs to set i mod (N / g), as
    published. Other batches, for which the published network is undefined, keep that rule with
    ceil(N / g) sets of unequal size, the last of which miss one sample: 5 samples make the sets
    {0, 2, 4} and {1, 3}.

    Args:
        h: [N, ...], N at least 1 in each chunk.
        group: samples per set.
        chunks: equal parts of h that know nothing of each other.

    Returns:
        [N], in h's dtype; computed in float32 at least.
    """
    n = h.shape[0] // chunks
    g = min(n, group)
    sets = math.ceil(n / g)
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    if n % g == 0:
        y = wide.reshape(chunks, g, sets, -1)
        variance = (y - y.mean(1, keepdim=True)).square().mean(1)
    else:
        y = wide.reshape(chunks, n, -1)
        variance = torch.stack([y[:, m::sets].var(1, correction=0) for m in range(sets)], 1)
    deviation = torch.sqrt(variance + 1e-8).mean(2)
    return deviation.repeat(1, g)[:, :n].flatten().to(h.dtype)


def minibatch_stddev(h: torch.Tensor, group: int = 4, chunks: int = 1) -> torch.Tensor:
    """h [N, C, H, W] with ``group_deviation`` as one more channel: [N, C + 1, H, W]."""
    n, _, height, width = h.shape
    if n == 0:
        return F.pad(h, (0, 0, 0, 0, 0, 1))
    value = group_deviation(h, group, chunks)[:, None, None, None]
    return torch.cat([h, value.expand(n, 1, height, width)], 1)


class Discriminator(nn.Module):
    """Convolutional discriminator of the pair (x_t, x_{t+1}).

    Args:
        cfg: the discriminator's configuration, validated.
        num_channels: channels of one image.
        rewrites: the orders in which it computes; default those of "auto".
        recompute: resolutions (pixels) whose blocks run again in the backward pass.
        images: how many it sees of each sample: the pair, or x_t alone.
        num_classes: classes that it is told; 0 = none.
    """

    def __init__(
        self,
        cfg: DiscriminatorConfig,
        num_channels: int,
        rewrites: Rewrites | None = None,
        recompute: Collection[int] = (),
        images: int = 2,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.rewrites = rewrites or Rewrites()
        custom = (cfg.block_mults, cfg.block_downs)
        mults, downs = BLOCKS.get(cfg.kind, custom)
        width = 2 * cfg.ngf
        self.time_embed = TimeEmbedding(cfg.t_emb_dim)
        self.conv_in = conv_fan_out(images * num_channels, width, 1)
        self.blocks = nn.ModuleList()
        for mult, down in zip(mults, downs, strict=True):
            n_in, width = width, mult * cfg.ngf
            self.blocks.append(DiscriminatorBlock(n_in, width, cfg.t_emb_dim, down, recompute))
        self.conv_out = conv_fan_out(width + 1, width, 3, scale=1.0 if cfg.kind == "large" else 0.0)
        self.linear_out = dense_fan_out(width, 1)
        self.label_embed = label_embedding(num_classes, cfg.t_emb_dim)

    def forward(
        self,
        x_t: torch.Tensor,
        t: torch.Tensor,
        x_next: torch.Tensor | None = None,
        chunks: int = 1,
        label: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [N, 1]: large where the pair looks real.

        Args:
            x_t: [N, C, H, W].
            t: int64 [N].
            x_next: x_{t+1} [N, C, H, W]; None where it sees x_t alone.
            chunks: equal parts of the batch, each of which gets the logits that it would alone.
            label: classes int64 [N]; default the null class, model.num_classes.

        Raises:
            ValueError: a label where model.num_classes is 0.
        """
        time = with_label(self.label_embed, self.time_embed(t), label, t)
        biases: Sequence[torch.Tensor | None] = [None] * len(self.blocks)
        if self.rewrites.joint_styles:
            biases = joined(time, [block.time_proj for block in self.blocks])
        h = self.conv_in(x_t if x_next is None else torch.cat([x_t, x_next], 1))
        for block, bias in zip(self.blocks, biases, strict=True):
            h = block(h, time, bias)
        h = minibatch_stddev(h, chunks=chunks)
        h = F.conv2d(h, self.conv_out.weight, padding=1)
        h = bias_leaky_relu(h, self.conv_out.bias)
        # Summed in float32: 16 values of 512 channels each may leave float16's range.
        wide = torch.promote_types(h.dtype, torch.float32)
        return final_logits(self.linear_out, h.sum((2, 3), dtype=wide))
