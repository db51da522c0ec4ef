"""Residual blocks of the generator."""

from __future__ import annotations

from collections.abc import Sequence

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
    residual,
)


class ResidualBlock(nn.Module):
    """Two convolutions between latent-modulated norms, with an optional change of resolution.

    Args:
        n_in: channels in.
        n_out: channels out; default n_in.
        time_width: width of the time embedding.
        latent_width: width of the mapped latent.
        taps: FIR taps, or None for nearest neighbour and mean.
        resample: "up", "down" or None.
        kind: "biggan", "biggan_oneadagn" (second norm not modulated) or "ddpm" (1x1 shortcut
            stored as [in, out], no change of resolution).
        dropout: probability.
        skip_rescale: divide the sum by sqrt 2.
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
    ) -> None:
        super().__init__()
        n_out = n_out or n_in
        self.number = 0  # set by the network: tells the dropout masks of its blocks apart
        self.resample_by = resample
        self.dropout = dropout
        self.skip_rescale = skip_rescale
        self.norm0 = AdaptiveGroupNorm(group_count(n_in), n_in, latent_width)
        if resample is not None:
            self.resample = Resampler(taps)
        self.conv0 = conv(n_in, n_out)
        self.time_proj = dense(time_width, n_out)
        self.norm1: nn.Module
        if kind == "biggan_oneadagn":
            self.norm1 = AffineGroupNorm(n_out)
        else:
            self.norm1 = AdaptiveGroupNorm(group_count(n_out), n_out, latent_width)
        self.conv1 = conv(n_out, n_out, scale=0.0)
        self.skip: nn.Module | None = None
        if kind == "ddpm":
            if n_in != n_out:
                self.skip = NetworkInNetwork(n_in, n_out)
        elif n_in != n_out or resample is not None:
            self.skip = conv(n_in, n_out, kernel=1)

    def forward(
        self,
        x: torch.Tensor,
        time: torch.Tensor | None,
        latent: torch.Tensor,
        drop: DropoutDraws | None = None,
    ) -> torch.Tensor:
        """x [N, n_in, H, W], time [N, time_width] or None, latent [N, latent_width]."""
        if self.resample_by == "down":
            h, x = self.norm0.resampled(x, latent, self.resample, "down", both=True)
            x = self._shortcut(x)
        elif self.resample_by == "up":
            (h,) = self.norm0.resampled(x, latent, self.resample, "up", both=False)
            x = self._shortcut_up(x)
        else:
            h, x = self.norm0(x, latent, silu=True), self._shortcut(x)
        h = self.conv0(h)
        if time is not None:
            h = h + self.time_proj(F.silu(time))[:, :, None, None]
        h = self.norm1(h, latent, silu=True)
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
