"""Building blocks of the generator and the discriminators.

Parameters have the shapes of the published checkpoints. Modules are constructed in the published
order, so that one torch seed gives the published initial weights.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..kernels import ada_group_norm_silu, ada_group_norm_silu_resample, philox, upfirdn2d

SQRT_HALF = math.sqrt(0.5)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """For what stays in float32, and for gradients that are differentiated again.

    On GPUs the latter are computed in a thread where autocast's dtype is float16, whatever it is in
    the caller's, and a gradient per pixel is too small for that.
    """
    if device.type == "meta":  # which counts FLOPs and bytes, and knows no autocast
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def final_logits(layer: nn.Linear, h: torch.Tensor) -> torch.Tensor:
    """The discriminator's last layer, in float32 at least also under autocast."""
    with without_autocast(h.device):
        return layer(h.to(layer.weight.dtype))


def set_memory_format(module: nn.Module, layout: torch.memory_format) -> None:
    """Store all convolution weights in this memory order, in place."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def init_fan_average(weight: torch.Tensor, scale: float = 1.0, transposed: bool = False) -> None:
    """Uniform weights of variance scale / mean(fan in, fan out); scale 0 means 1e-10."""
    receptive = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * receptive, weight.shape[0] * receptive
    if transposed:
        fan_in, fan_out = fan_out, fan_in
    bound = math.sqrt(3.0 * (scale or 1e-10) / ((fan_in + fan_out) / 2))
    with torch.no_grad():
        weight.copy_((torch.rand(weight.shape) * 2.0 - 1.0) * bound)


def init_fan_out(weight: torch.Tensor, scale: float = 1.0) -> None:
    """Uniform weights of variance scale / fan out; scale 0 means 1e-10."""
    fan_out = weight.shape[0] * math.prod(weight.shape[2:])
    bound = math.sqrt(3.0 * (scale or 1e-10) / max(1.0, fan_out))
    with torch.no_grad():
        weight.uniform_(-bound, bound)


def dense(n_in: int, n_out: int) -> nn.Linear:
    """Linear layer of the generator's time path: fan-average weights, zero bias."""
    layer = nn.Linear(n_in, n_out)
    init_fan_average(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def conv(n_in: int, n_out: int, kernel: int = 3, scale: float = 1.0) -> nn.Conv2d:
    """Same-size convolution of the generator: fan-average weights, zero bias."""
    layer = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)
    init_fan_average(layer.weight, scale)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def dense_fan_out(n_in: int, n_out: int) -> nn.Linear:
    """Linear layer of the latent path and of the discriminator: fan-out weights, zero bias."""
    layer = nn.Linear(n_in, n_out)
    init_fan_out(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def joined(x: torch.Tensor, layers: Sequence[nn.Linear]) -> tuple[torch.Tensor, ...]:
    """What each of these layers makes of x [N, in], by one matrix product."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return F.linear(x, weight, bias).split([layer.out_features for layer in layers], 1)


def group_count(channels: int) -> int:
    """Groups of every group norm in the generator."""
    return min(channels // 4, 32)


def timestep_embedding(t: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoids of the raw timestep: [N] -> [N, dim], sines first, a zero column if dim is odd."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(steps * (-math.log(10000.0) / (half - 1)))
    phase = t.to(torch.float32)[:, None] * frequencies[None, :]
    embedding = torch.cat([phase.sin(), phase.cos()], 1)
    return F.pad(embedding, (0, dim % 2))


class FourierEmbedding(nn.Module):
    """Random Fourier features of log t: [N] -> [N, 2 * features]; t = 0 gives NaN."""

    def __init__(self, features: int, scale: float) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(features) * scale, requires_grad=False)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        phase = torch.log(t.to(self.frequencies.dtype))[:, None] * self.frequencies * 2 * math.pi
        return torch.cat([phase.sin(), phase.cos()], 1)


class PixelNorm(nn.Module):
    """Divide by the root mean square over the features."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)


class LatentMapping(nn.Module):
    """z [N, nz] -> [N, width]: pixel norm, then n_mlp + 1 layers with SiLU."""

    def __init__(self, nz: int, width: int, n_mlp: int) -> None:
        super().__init__()
        self.norm = PixelNorm()
        sizes = [nz, *[width] * (n_mlp + 1)]
        self.layers = nn.ModuleList(
            dense_fan_out(a, b) for a, b in pairwise(sizes)
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        z = self.norm(z)
        for layer in self.layers:
            z = F.silu(layer(z))
        return z


class FusedNorm(ABC):
    """Group norm, SiLU and resampling in one pass, wherever scale and shift come from."""

    @abstractmethod
    def modulation(
        self, x: torch.Tensor, style: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Scale and shift [N, C], and the number of groups."""

    def styled(self, x: torch.Tensor, style: torch.Tensor | None, silu: bool) -> torch.Tensor:
        """Scale and shift are side by side in ``style`` [N, 2 C], unless they are learned."""
        return ada_group_norm_silu(x, *self.modulation(x, style), silu=silu)

    def resampled(
        self,
        x: torch.Tensor,
        style: torch.Tensor | None,
        by: Resampler,
        direction: str,
        both: bool,
    ) -> tuple[torch.Tensor, ...]:
        """With SiLU, then resampled "up" or "down"; followed by the resampled x when ``both``."""
        if not by.fir:
            change = by.up if direction == "up" else by.down
            h = change(self.styled(x, style, silu=True))
            return (h, change(x)) if both else (h,)
        h, skip = ada_group_norm_silu_resample(
            x, *self.modulation(x, style), by.taps, resample=direction, both=both
        )
        return (h,) if skip is None else (h, skip)


class AdaptiveGroupNorm(FusedNorm, nn.Module):
    """Group norm whose scale and shift come from the latent; optionally followed by SiLU."""

    def __init__(self, groups: int, channels: int, width: int) -> None:
        super().__init__()
        self.groups = groups
        self.style = dense_fan_out(width, 2 * channels)
        with torch.no_grad():
            self.style.bias[:channels] = 1.0

    def forward(self, x: torch.Tensor, latent: torch.Tensor, silu: bool = False) -> torch.Tensor:
        return self.styled(x, self.style(latent), silu)

    def modulation(
        self, x: torch.Tensor, style: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        assert style is not None
        scale, shift = style.chunk(2, 1)
        return scale, shift, self.groups


class AffineGroupNorm(FusedNorm, nn.GroupNorm):
    """Group norm with learned scale and shift; optionally followed by SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(group_count(channels), channels, eps=1e-6)

    def forward(self, x: torch.Tensor, silu: bool = False) -> torch.Tensor:
        return self.styled(x, None, silu)

    def modulation(
        self, x: torch.Tensor, style: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        n = x.shape[0]
        return self.weight.expand(n, -1), self.bias.expand(n, -1), self.num_groups


class NetworkInNetwork(nn.Module):
    """1x1 convolution that stores its weight as [in, out]."""

    def __init__(self, n_in: int, n_out: int, scale: float = 0.1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))
        init_fan_average(self.weight, scale, transposed=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight.t()[:, :, None, None], self.bias)


class Attention(nn.Module):
    """Single-head self-attention over all positions, with a residual connection."""

    def __init__(self, channels: int, skip_rescale: bool = True, fused: bool = True) -> None:
        super().__init__()
        self.fused = fused
        self.norm = AffineGroupNorm(channels)
        self.query = NetworkInNetwork(channels, channels)
        self.key = NetworkInNetwork(channels, channels)
        self.value = NetworkInNetwork(channels, channels)
        self.out = NetworkInNetwork(channels, channels, scale=0.0)
        self.skip_rescale = skip_rescale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, height, width = x.shape
        h = self.norm(x)
        # Position-major [N, 1, H * W, C]: a view where h is channels_last.
        q, k, v = (
            layer(h).permute(0, 2, 3, 1).reshape(n, 1, height * width, c)
            for layer in (self.query, self.key, self.value)
        )
        if self.fused:
            h = F.scaled_dot_product_attention(q, k, v)
        else:
            h = (q @ k.transpose(2, 3) * c**-0.5).softmax(-1) @ v
        h = self.out(h.reshape(n, height, width, c).permute(0, 3, 1, 2))
        return residual(x, h, self.skip_rescale)


def keep_or_recompute(
    function: Callable[..., torch.Tensor],
    x: torch.Tensor,
    *rest: Any,
    side: int,
    recompute: Collection[int],
    torch_random: bool = False,
) -> torch.Tensor:
    """function(x, *rest); its intermediate results are not kept when ``side`` is to be recomputed.

    Args:
        function: a block's arithmetic.
        x: its input [N, C, H, W].
        rest: further arguments.
        side: the block's larger side in pixels.
        recompute: the sides whose blocks run again in the backward pass.
        torch_random: it draws from torch's generator, which must then repeat itself.
    """
    if side not in recompute or not torch.is_grad_enabled():
        return function(x, *rest)
    return checkpoint(
        function, x, *rest, use_reentrant=False, preserve_rng_state=torch_random
    )


def residual(x: torch.Tensor, h: torch.Tensor, rescale: bool) -> torch.Tensor:
    """x + h, divided by sqrt 2 when ``rescale``."""
    return (x + h) * SQRT_HALF if rescale else x + h


class Resampler(nn.Module):
    """Parameter-free change of resolution by 2: FIR, or nearest neighbour and mean."""

    taps: torch.Tensor

    def __init__(self, taps: Sequence[float] | None) -> None:
        super().__init__()
        self.fir = taps is not None
        if taps is not None:
            values = torch.tensor(taps, dtype=torch.float64)
            values = (values / values.sum()).to(torch.float32)
            self.register_buffer("taps", values, persistent=False)

    def up(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, 2H, 2W]."""
        if not self.fir:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        p = self.taps.shape[0] - 2
        return upfirdn2d(x, self.taps, up=2, padding=((p + 1) // 2 + 1, p // 2), gain=4.0)

    def down(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, H/2, W/2]."""
        if not self.fir:
            return F.avg_pool2d(x, 2)
        p = self.taps.shape[0] - 2
        return upfirdn2d(x, self.taps, down=2, padding=((p + 1) // 2, p // 2))

    def smooth_for_conv(self, x: torch.Tensor) -> torch.Tensor:
        """Filter and pad so that a 3x3 stride-2 convolution without padding halves the size."""
        p = self.taps.shape[0]
        return upfirdn2d(x, self.taps, padding=((p + 1) // 2, p // 2))


class ConvDownsample(nn.Module):
    """Halve the resolution with a learned 3x3 convolution, after the FIR filter if there is one."""

    def __init__(self, n_in: int, n_out: int, taps: Sequence[float] | None) -> None:
        super().__init__()
        self.resample = Resampler(taps)
        # Without FIR the published layer is an ordinary convolution, whose own initialisation
        # consumes random numbers first.
        weight = torch.empty(n_out, n_in, 3, 3) if taps else nn.Conv2d(n_in, n_out, 3).weight.data
        init_fan_average(weight)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.resample.smooth_for_conv(x) if self.resample.fir else F.pad(x, (0, 1, 0, 1))
        return F.conv2d(x, self.weight, self.bias, stride=2)


class DropoutDraws:
    """Dropout masks as a function of (seed, global sample position, layer).

    Args:
        seed: int64[1] on the device.
        index: int64 [N] global sample positions.
    """

    def __init__(self, seed: torch.Tensor, index: torch.Tensor) -> None:
        self.seed = seed
        self.index = index

    def __call__(self, x: torch.Tensor, probability: float, layer: int) -> torch.Tensor:
        """Drop elements of x [N, ...]; every layer of a network has its own number."""
        keep = philox.uniform(self.seed + layer, self.index, x.shape[1:]) >= probability
        return x * keep.to(x.dtype) / (1.0 - probability)
