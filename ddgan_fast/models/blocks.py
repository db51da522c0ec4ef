"""Residual blocks of the generator."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .layers import (
    AdaptiveGroupNorm,
    AffineGroupNorm,
    DropoutDraws,
    NetworkInNetwork,
    Resampler,
    conv,
    dense,
    group_count,
    joined,
    keep_or_recompute,
    residual,
)


class Modulation(NamedTuple):
    """What a block's projections make of timestep and latent."""

    time_bias: torch.Tensor | None
    """[N, n_out], or None where the network is not told the timestep."""
    styles: tuple[torch.Tensor, ...]
    """[N, 2 C] for each norm that the latent modulates: scales, then shifts."""


def joint_modulations(
    blocks: Sequence[ResidualBlock], time: torch.Tensor | None, latent: torch.Tensor | None
) -> list[Modulation]:
    """The modulation of every block, by one matrix product for the latent and one for the time."""
    styles: Iterator[torch.Tensor] = iter(())
    if latent is not None:
        styles = iter(joined(latent, [norm.style for block in blocks for norm in block.adaptive]))
    biases: Sequence[torch.Tensor | None] = [None] * len(blocks)
    if time is not None:
        biases = joined(F.silu(time), [block.time_proj for block in blocks])
    return [
        Modulation(bias, tuple(next(styles) for _ in block.adaptive))
        for bias, block in zip(biases, blocks, strict=True)
    ]


def _norm(channels: int, latent_width: int) -> AdaptiveGroupNorm | AffineGroupNorm:
    if latent_width:
        return AdaptiveGroupNorm(group_count(channels), channels, latent_width)
    return AffineGroupNorm(channels)


class ResidualBlock(nn.Module):
    """Two convolutions between norms, with an optional change of resolution.

    Args:
        n_in: channels in.
        n_out: channels out; default n_in.
        time_width: width of the time embedding.
        latent_width: width of the mapped latent, which modulates the norms; 0 = there is none, and
            their scales and shifts are learned.
        taps: FIR taps, or None for nearest neighbour and mean.
        resample: "up", "down" or None.
        kind: "biggan", "biggan_oneadagn" (second norm not modulated) or "ddpm" (1x1 shortcut
            stored as [in, out], no change of resolution).
        dropout: probability.
        skip_rescale: divide the sum by sqrt 2.
        skip_low: run an up block's shortcut before its filter.
        recompute: sides in pixels at which the block keeps its input only.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int | None = None,
        *,
        time_width: int,
        latent_width: int,
        taps: Sequence[float] | None = (1.0, 3.0, 3.0, 1.0),
        resample: str | None = None,
        kind: str = "biggan",
        dropout: float = 0.0,
        skip_rescale: bool = True,
        skip_low: bool = True,
        recompute: Collection[int] = (),
    ) -> None:
        super().__init__()
        n_out = n_out or n_in
        self.number = 0  # set by the network: tells the dropout masks of its blocks apart
        self.resample_by = resample
        self.dropout = dropout
        self.skip_rescale = skip_rescale
        self.skip_low = skip_low
        self.recompute = recompute
        self.norm0 = _norm(n_in, latent_width)
        if resample is not None:
            self.resample = Resampler(taps)
        self.conv0 = conv(n_in, n_out)
        self.time_proj = dense(time_width, n_out)
        self.norm1 = _norm(n_out, 0 if kind == "biggan_oneadagn" else latent_width)
        self.conv1 = conv(n_out, n_out, scale=0.0)
        self.skip: nn.Module | None = None
        if kind == "ddpm":
            if n_in != n_out:
                self.skip = NetworkInNetwork(n_in, n_out)
        elif n_in != n_out or resample is not None:
            self.skip = conv(n_in, n_out, kernel=1)

    @property
    def adaptive(self) -> tuple[AdaptiveGroupNorm, ...]:
        """The norms that the latent modulates."""
        norms = (self.norm0, self.norm1)
        return tuple(norm for norm in norms if isinstance(norm, AdaptiveGroupNorm))

    def forward(
        self,
        x: torch.Tensor,
        time: torch.Tensor | None,
        latent: torch.Tensor | None,
        drop: DropoutDraws | None = None,
        modulation: Modulation | None = None,
    ) -> torch.Tensor:
        """x [N, n_in, H, W], time [N, time_width] or None, latent [N, latent_width] or None.

        ``modulation`` is what the block's projections make of time and latent, if known already.
        """
        if modulation is None:
            bias = None if time is None else self.time_proj(F.silu(time))
            styles = () if latent is None else tuple(n.style(latent) for n in self.adaptive)
            modulation = Modulation(bias, styles)
        return keep_or_recompute(
            self._modulated,
            x,
            modulation.time_bias,
            modulation.styles,
            drop,
            side=max(x.shape[2:]) * (2 if self.resample_by == "up" else 1),
            recompute=self.recompute,
            torch_random=drop is None and self.training and self.dropout > 0.0,
        )

    def _modulated(
        self,
        x: torch.Tensor,
        time_bias: torch.Tensor | None,
        styles: tuple[torch.Tensor, ...],
        drop: DropoutDraws | None,
    ) -> torch.Tensor:
        own = iter(styles)
        style0, style1 = (
            next(own) if isinstance(norm, AdaptiveGroupNorm) else None
            for norm in (self.norm0, self.norm1)
        )
        if self.resample_by is None:
            h, x = self.norm0.styled(x, style0, silu=True), self._shortcut(x)
        elif self.resample_by == "up" and self.skip_low:
            (h,) = self.norm0.resampled(x, style0, self.resample, "up", both=False)
            x = self._shortcut_up(x)
        else:
            h, x = self.norm0.resampled(x, style0, self.resample, self.resample_by, both=True)
            x = self._shortcut(x)
        h = self.conv0(h)
        if time_bias is not None:
            h = h + time_bias[:, :, None, None]
        h = self.norm1.styled(h, style1, silu=True)
        if self.training and self.dropout > 0.0:
            h = F.dropout(h, self.dropout) if drop is None else drop(h, self.dropout, self.number)
        return residual(x, self.conv1(h), self.skip_rescale)

    def _shortcut(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.skip is None else self.skip(x)

    def _shortcut_up(self, x: torch.Tensor) -> torch.Tensor:
        # A 1x1 convolution commutes with resampling, so it runs on a quarter of the pixels. Its
        # bias does not: the zeros around the image would dim it at the borders.
        assert isinstance(self.skip, nn.Conv2d)
        assert self.skip.bias is not None
        x = self.resample.up(F.conv2d(x, self.skip.weight))
        return x + self.skip.bias[:, None, None].to(x.dtype)
