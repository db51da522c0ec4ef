"""Adaptive group norm + SiLU + FIR resampling in plain torch: the two ops one after another."""

from __future__ import annotations

from collections.abc import Callable
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

    def adjoint(self, taps: int, height: int, width: int) -> Resampling:
        """What takes the gradient of a resampled [height, width] to its own; taps flipped."""
        padding = []
        for size, out in zip((width, height), self.size(height, width)[::-1], strict=True):
            before, (up, _), (down, _) = self.padding[0], self.up, self.down
            padding += [taps - before - 1, size * up - out * down + before - up + 1]
        return Resampling(self.down, self.up, padding, self.gain)


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


def backward(
    fir: Callable[..., torch.Tensor],
    norm_backward: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    grad: torch.Tensor,
    grad_skip: torch.Tensor | None,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    taps: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    groups: int,
    up: bool,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients in x, scale and shift, from a backend's upfirdn2d and backward of the norm."""
    grad_y = filtered_back(fir, grad, x, taps, up)
    grad_x, grad_scale, grad_shift = norm_backward(
        grad_y, x, scale, shift, mean, rstd, groups, eps, silu
    )
    if grad_skip is not None:
        grad_x = grad_x + filtered_back(fir, grad_skip, x, taps, up)
    return grad_x, grad_scale, grad_shift


def filtered_back(
    fir: Callable[..., torch.Tensor],
    grad: torch.Tensor,
    x: torch.Tensor,
    taps: torch.Tensor,
    up: bool,
) -> torch.Tensor:
    """The gradient of a resampled x in x."""
    by = resampling(taps.shape[0], up).adjoint(taps.shape[0], *x.shape[2:])
    return fir(grad, taps, by.up, by.down, by.padding, True, by.gain)
