"""FIR resampling as a registered op whose gradient is the same op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .._library import define, refuse_tangents
from ..cuda_library import register as register_cuda
from ..layout import memory_format
from ..registry import register_backend
from ..triton_support import register as register_triton
from . import ref


def upfirdn2d(
    x: torch.Tensor,
    taps: torch.Tensor,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    *,
    flip: bool = False,
    gain: float = 1.0,
) -> torch.Tensor:
    """Upsample by zero insertion, pad, filter, and downsample every channel of an image.

    Per axis, with size in: insert ``up - 1`` zeros after every sample, pad (negative crops),
    convolve with the taps, keep every ``down``-th sample. Differentiable to any order in x; the
    taps get no gradient.

    Args:
        x: images [N, C, H, W], any floating dtype, NCHW or channels_last; the result has the same
            memory order.
        taps: [k] (applied along both axes) or [kh, kw], on x's device.
        up: factor for both axes, or (x, y).
        down: factor for both axes, or (x, y).
        padding: one number for all sides, (before, after) for both axes, or (x0, x1, y0, y1).
        flip: correlate instead of convolve.
        gain: factor on the result.

    Returns:
        [N, C, H', W'] with H' = (H * up + y0 + y1 - kh) // down + 1.

    Raises:
        ValueError: an argument of the wrong form, or an empty result.
    """
    up, down = _pair(up, "up"), _pair(down, "down")
    padding = _four(padding)
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(
            f"upfirdn2d: x must be floating-point images [N, C, H, W], got {x.dtype} "
            f"{list(x.shape)}."
        )
    if taps.ndim not in (1, 2) or taps.numel() == 0:
        raise ValueError(f"upfirdn2d: taps must be [k] or [kh, kw], got {list(taps.shape)}.")
    height, width = output_size(x.shape, taps.shape, up, down, padding)
    if height < 1 or width < 1:
        raise ValueError(
            f"upfirdn2d: {list(x.shape)} with up {up}, down {down}, padding {padding} and "
            f"{list(taps.shape)} taps leaves no output: {height} x {width}."
        )
    refuse_tangents("upfirdn2d", x)
    return _upfirdn2d(x, taps, up, down, padding, flip, float(gain))


def _pair(value: int | Sequence[int], name: str) -> list[int]:
    pair = [value, value] if isinstance(value, int) else list(value)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(
            f"upfirdn2d: {name} must be a factor of at least 1 or (x, y), got {value}."
        )
    return pair


def _four(value: int | Sequence[int]) -> list[int]:
    four = [value] * 4 if isinstance(value, int) else list(value)
    if len(four) == 2:
        four = four * 2
    if len(four) != 4:
        raise ValueError(
            "upfirdn2d: padding must be one number, (before, after) or (x0, x1, y0, y1), got "
            f"{value}."
        )
    return four


def output_size(
    shape: Sequence[int],
    taps_shape: Sequence[int],
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
) -> tuple[int, int]:
    """Height and width of the result."""
    kh, kw = taps_shape[0], taps_shape[-1]
    height = (shape[2] * up[1] + padding[2] + padding[3] - kh) // down[1] + 1
    width = (shape[3] * up[0] + padding[0] + padding[1] - kw) // down[0] + 1
    return height, width


def _fake(
    x: torch.Tensor,
    taps: torch.Tensor,
    up: list[int],
    down: list[int],
    padding: list[int],
    flip: bool,
    gain: float,
) -> torch.Tensor:
    size = (*x.shape[:2], *output_size(x.shape, taps.shape, up, down, padding))
    return torch.empty(
        size, dtype=x.dtype, device=x.device, memory_format=memory_format(x)
    )


def _run(x: torch.Tensor, *args: Any) -> torch.Tensor:
    return ref.upfirdn2d(x, *args).contiguous(memory_format=memory_format(x))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, taps, ctx.up, ctx.down, padding, ctx.flip, ctx.gain = inputs
    ctx.save_for_backward(taps)
    kh, kw = taps.shape[0], taps.shape[-1]
    gradient_padding = []
    for size, out, k, u, d, before in (
        (x.shape[3], output.shape[3], kw, ctx.up[0], ctx.down[0], padding[0]),
        (x.shape[2], output.shape[2], kh, ctx.up[1], ctx.down[1], padding[2]),
    ):
        gradient_padding += [k - before - 1, size * u - out * d + before - u + 1]
    ctx.padding = gradient_padding


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    (taps,) = ctx.saved_tensors
    grad_x = _upfirdn2d(grad, taps, ctx.down, ctx.up, ctx.padding, not ctx.flip, ctx.gain)
    return grad_x, None, None, None, None, None, None


_upfirdn2d = define(
    "upfirdn2d(Tensor x, Tensor taps, int[2] up, int[2] down, int[4] padding, bool flip, "
    "float gain) -> Tensor",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
register_backend("upfirdn2d", "torch", _run)
register_cuda("upfirdn2d", "upfirdn", "upfirdn2d")
register_triton("upfirdn2d", "upfirdn.triton_impl")
