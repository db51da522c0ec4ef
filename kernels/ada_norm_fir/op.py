"""Adaptive group norm + SiLU + FIR resampling of both branches of a block as a registered op."""

from __future__ import annotations

from typing import Any

import torch

from .._library import define, refuse_tangents
from ..cuda_library import register as register_cuda
from ..layout import memory_format
from ..registry import register_backend
from ..triton_support import register as register_triton
from . import ref


def ada_group_norm_silu_resample(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    groups: int,
    taps: torch.Tensor,
    *,
    resample: str,
    both: bool = True,
    eps: float = 1e-6,
    silu: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """FIR resampling by 2 of silu(scale * group_norm(x) + shift), and of x itself.

    What is normalised is never stored at x's resolution by the kernels: they read x once for the
    statistics and once for both results. Outside the image the filter sees zeros, on both branches.
    Differentiable to any order in x, scale and shift; the taps get no gradient.

    Args:
        x: images [N, C, H, W], any floating dtype, NCHW or channels_last.
        scale: [N, C].
        shift: [N, C].
        groups: number of groups, dividing C.
        taps: [k] of sum 1, applied along both axes, on x's device.
        resample: "up" to [2 H, 2 W], or "down" to [H // 2, W // 2].
        both: also resample x.
        eps: added to the variance.
        silu: apply x * sigmoid(x) before the filter.

    Returns:
        The two results, the second None unless ``both``; the dtype and memory order of x.

    Raises:
        ValueError: shapes that do not fit, an unknown ``resample``, or an empty result.
    """
    _check(x, scale, shift, groups, taps, resample)
    refuse_tangents("ada_group_norm_silu_resample", x, scale, shift)
    up = resample == "up"
    h, skip, _, _ = _forward(x, scale, shift, taps, groups, up, both, float(eps), silu)
    return h, skip if both else None


def _check(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    groups: int,
    taps: torch.Tensor,
    resample: str,
) -> None:
    name = "ada_group_norm_silu_resample"
    if resample not in ("up", "down"):
        raise ValueError(f"{name}: resample is {resample!r}: choose up or down.")
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(
            f"{name}: x must be floating-point images [N, C, H, W], got {x.dtype} "
            f"{list(x.shape)}."
        )
    if scale.shape != x.shape[:2] or shift.shape != x.shape[:2]:
        raise ValueError(
            f"{name}: scale and shift must be {list(x.shape[:2])} for x {list(x.shape)}, got "
            f"{list(scale.shape)} and {list(shift.shape)}."
        )
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{name}: {x.shape[1]} channels do not divide into {groups} groups.")
    if taps.ndim != 1 or taps.numel() == 0:
        raise ValueError(f"{name}: taps must be [k], got {list(taps.shape)}.")
    least = 1 if resample == "up" else 2
    if x.shape[2] < least or x.shape[3] < least:
        raise ValueError(f"{name}: {list(x.shape)} resampled {resample} by 2 leaves no output.")


def _fake(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    taps: torch.Tensor,
    groups: int,
    up: bool,
    both: bool,
    *_: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    h, skip = outputs(x, taps, up, both)
    wide = torch.promote_types(x.dtype, torch.float32)
    mean = x.new_empty((x.shape[0], groups), dtype=wide)
    return h, skip, mean, torch.empty_like(mean)


def outputs(
    x: torch.Tensor, taps: torch.Tensor, up: bool, both: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty results of the right shape and memory order; the second has no elements unless both."""
    size = (*x.shape[:2], *ref.resampling(taps.shape[0], up).size(*x.shape[2:]))
    h = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    return h, torch.empty_like(h) if both else x.new_empty(0)


def _run(x: torch.Tensor, *args: Any) -> tuple[torch.Tensor, ...]:
    h, skip, mean, rstd = ref.forward(x, *args)
    h = _in_format(h, memory_format(x))
    skip = x.new_empty(0) if skip is None else _in_format(skip, memory_format(x))
    return h, skip, mean, rstd


def _in_format(y: torch.Tensor, order: torch.memory_format) -> torch.Tensor:
    """y with the strides that ``outputs`` promises; contiguous() leaves those of one pixel."""
    wanted = torch.empty(y.shape, device="meta", memory_format=order).stride()
    if y.stride() == wanted:
        return y
    return torch.empty(y.shape, dtype=y.dtype, device=y.device, memory_format=order).copy_(y)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, scale, shift, taps, ctx.groups, ctx.up, ctx.both, ctx.eps, ctx.silu = inputs
    _, _, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, scale, shift, taps, mean, rstd)


def _vjp(
    ctx: Any, grad: torch.Tensor | None, grad_skip: torch.Tensor | None, *_: Any
) -> tuple[Any, ...]:
    # The statistics are not part of the public result, so nothing flows back through them.
    x, scale, shift, taps, mean, rstd = ctx.saved_tensors
    grad_x = grad_scale = grad_shift = None
    if grad is not None:
        grad_x, grad_scale, grad_shift = torch.ops.ddgan_fast.ada_group_norm_silu_backward(
            _adjoint(grad, x, taps, ctx.up), x, scale, shift, mean, rstd, ctx.groups, ctx.eps,
            ctx.silu,
        )
    if grad_skip is not None and ctx.both:
        skip = _adjoint(grad_skip, x, taps, ctx.up)
        grad_x = skip if grad_x is None else grad_x + skip
    return grad_x, grad_scale, grad_shift, None, None, None, None, None, None


def _adjoint(grad: torch.Tensor, x: torch.Tensor, taps: torch.Tensor, up: bool) -> torch.Tensor:
    """The gradient of a resampled x in x."""
    by = ref.resampling(taps.shape[0], up)
    padding = []
    for axis in (3, 2):
        before = by.padding[0]
        rest = x.shape[axis] * by.up[0] - grad.shape[axis] * by.down[0] + before - by.up[0] + 1
        padding += [taps.shape[0] - before - 1, rest]
    return torch.ops.ddgan_fast.upfirdn2d(grad, taps, by.down, by.up, padding, True, by.gain)


_forward = define(
    "ada_group_norm_silu_resample(Tensor x, Tensor scale, Tensor shift, Tensor taps, int groups, "
    "bool up, bool both, float eps, bool silu) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    setup_context=_setup,
    backward=_vjp,
)
register_backend("ada_group_norm_silu_resample", "torch", _run)
register_cuda("ada_group_norm_silu_resample", "ada_norm_fir", "forward")
register_triton("ada_group_norm_silu_resample", "ada_norm_fir.triton_impl")
