"""Adaptive group norm + SiLU + FIR resampling of both branches of a block as a registered op."""

from __future__ import annotations

from typing import Any

import torch

from .._library import define, refuse_tangents
from ..ada_norm import ref as ada_norm
from ..cuda_library import register as register_cuda
from ..layout import in_order_of, memory_format
from ..registry import register_backend
from ..triton_support import register as register_triton
from ..upfirdn import ref as upfirdn
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
    row = (x, scale, shift, taps, mean, rstd, ctx.groups, ctx.up, ctx.eps, ctx.silu)
    grads: tuple[torch.Tensor | None, ...] = (None, None, None)
    if grad is not None:
        if grad_skip is not None and ctx.both:
            grads = _backward(grad, grad_skip, *row)
        else:
            grads = ref.backward(*_registered(), grad, None, *row)
    elif grad_skip is not None and ctx.both:
        fir, _ = _registered()
        grads = (ref.filtered_back(fir, grad_skip, x, taps, ctx.up), None, None)
    return (*grads, None, None, None, None, None, None)


def _registered() -> tuple[Any, Any]:
    """The differentiable parts that the gradient consists of."""
    ops = torch.ops.ddgan_fast
    return ops.upfirdn2d.default, ops.ada_group_norm_silu_backward.default


def _fake_backward(
    grad: torch.Tensor,
    grad_skip: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    *_: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), scale.new_empty(scale.shape), shift.new_empty(shift.shape)


def _run_backward(
    grad: torch.Tensor, grad_skip: torch.Tensor, x: torch.Tensor, *args: Any
) -> tuple[torch.Tensor, ...]:
    grads = ref.backward(upfirdn.upfirdn2d, _norm_backward, grad, grad_skip, x, *args)
    return in_order_of(x, grads[0]), *(g.contiguous() for g in grads[1:])


def _norm_backward(*args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # What eps changes is in the inverse deviation.
    *given, _, silu = args
    return ada_norm.backward(*(*given, silu))


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, ctx.groups, ctx.up, ctx.eps, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _vjp_backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[Any, ...]:
    *tensors, taps, mean, rstd = ctx.saved_tensors
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, as in ada_norm: these derivatives are partial, though grad may depend on x.
        wanted = [
            t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors
        ]
        rest = (taps, mean, rstd, ctx.groups, ctx.up, ctx.eps, ctx.silu)
        first = ref.backward(*_registered(), *(*wanted, *rest))
        second = torch.autograd.grad(
            first, wanted, cotangents, allow_unused=True, create_graph=further
        )
    return (*second, None, None, None, None, None, None, None)


_backward = define(
    "ada_group_norm_silu_resample_backward(Tensor grad, Tensor grad_skip, Tensor x, Tensor scale, "
    "Tensor shift, Tensor taps, Tensor mean, Tensor rstd, int groups, bool up, float eps, "
    "bool silu) -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    setup_context=_setup_backward,
    backward=_vjp_backward,
)
_forward = define(
    "ada_group_norm_silu_resample(Tensor x, Tensor scale, Tensor shift, Tensor taps, int groups, "
    "bool up, bool both, float eps, bool silu) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    setup_context=_setup,
    backward=_vjp,
)
register_backend("ada_group_norm_silu_resample", "torch", _run)
register_backend("ada_group_norm_silu_resample_backward", "torch", _run_backward)
register_cuda("ada_group_norm_silu_resample", "ada_norm_fir", "forward")
register_cuda("ada_group_norm_silu_resample_backward", "ada_norm_fir", "backward")
register_triton("ada_group_norm_silu_resample", "ada_norm_fir.triton_impl")
register_triton("ada_group_norm_silu_resample_backward", "ada_norm_fir.triton_impl")
