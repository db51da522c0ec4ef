"""Adaptive group norm + SiLU + FIR resampling in plain torch: the two ops one after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..ada_norm import ref as ada_norm
from ..upfirdn import ref as upfirdn


@dataclass(frozen=True)
class Resampling:
    """A resampling by 2 as upfirdn2d takes it."""

    up: list[int]
    down: list[int]
    padding: list[int]
    gain: float

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Of the result; an odd size is halved downwards."""
        return height * self.up[1] // self.down[1], width * self.up[0] // self.down[0]


def resampling(taps: int, up: bool) -> Resampling:
    """The padding that keeps the image in place, the extra sample before; and the gain."""
    rest = taps - 2
    if up:
        return Resampling([2, 2], [1, 1], [(rest + 1) // 2 + 1, rest // 2] * 2, 4.0)
    return Resampling([1, 1], [2, 2], [(rest + 1) // 2, rest // 2] * 2, 1.0)


def forward(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    taps: torch.Tensor,
    groups: int,
    up: bool,
    both: bool,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """The filtered silu(scale * xhat + shift), the filtered x, and the statistics [N, groups]."""
    y, mean, rstd = ada_norm.forward(x, scale, shift, groups, eps, silu)
    by = resampling(taps.shape[0], up)
    given = (taps, by.up, by.down, by.padding, False, by.gain)
    h = upfirdn.upfirdn2d(y, *given)
    return h, upfirdn.upfirdn2d(x, *given) if both else None, mean, rstd
