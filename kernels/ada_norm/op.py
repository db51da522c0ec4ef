"""Adaptive group norm + SiLU as a registered op with a fused first derivative."""

from __future__ import annotations

from typing import Any

import torch

from .._library import define, refuse_tangents
from ..cuda_library import register as register_cuda
from ..layout import in_order_of
from ..registry import register_backend
from ..triton_support import register as register_triton
from . import ref


def ada_group_norm_silu(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    groups: int,
    *,
    eps: float = 1e-6,
    silu: bool = True,
) -> torch.Tensor:
    """silu(scale * group_norm(x) + shift) with a scale and shift per sample and channel.

    The statistics are float32 at least. First derivatives are a fused op; higher ones follow from
    the plain formula.

    Args:
        x: [N, C, ...].
        scale: [N, C].
        shift: [N, C].
        groups: number of groups, dividing C.
        eps: added to the variance.
        silu: apply x * sigmoid(x) at the end.

    Returns:
        The shape, dtype and memory order of x.

    Raises:
        ValueError: shapes that do not fit.
    """
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(
            f"ada_group_norm_silu: x must be floating-point [N, C, ...], got {x.dtype} "
            f"{list(x.shape)}."
        )
    if scale.shape != x.shape[:2] or shift.shape != x.shape[:2]:
        raise ValueError(
            f"ada_group_norm_silu: scale and shift must be {list(x.shape[:2])} for x "
            f"{list(x.shape)}, got {list(scale.shape)} and {list(shift.shape)}."
        )
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(
            f"ada_group_norm_silu: {x.shape[1]} channels do not divide into {groups} groups."
        )
    refuse_tangents("ada_group_norm_silu", x, scale, shift)
    return _forward(x, scale, shift, groups, float(eps), silu)[0]


def _fake(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, groups: int, eps: float, silu: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    statistics = x.new_empty((x.shape[0], groups), dtype=wide)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


def _fake_backward(
    grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        torch.empty_like(x),
        scale.new_empty(scale.shape),
        shift.new_empty(shift.shape),
    )


def _run(x: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    y, mean, rstd = ref.forward(x, *args)
    return in_order_of(x, y), mean, rstd


def _run_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grads = ref.backward(grad, x, scale, shift, mean, rstd, groups, silu)
    grad_x, grad_scale, grad_shift = grads
    return in_order_of(x, grad_x), grad_scale.contiguous(), grad_shift.contiguous()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, scale, shift, ctx.groups, ctx.eps, ctx.silu = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, scale, shift, mean, rstd)


def _vjp(ctx: Any, grad: torch.Tensor, grad_mean: Any, grad_rstd: Any) -> tuple[Any, ...]:
    # The statistics are not part of the public result, so nothing flows back through them.
    x, scale, shift, mean, rstd = ctx.saved_tensors
    grads = _backward(grad, x, scale, shift, mean, rstd, ctx.groups, ctx.eps, ctx.silu)
    return (*grads, None, None, None)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    grad, x, scale, shift, _, _, ctx.groups, ctx.eps, ctx.silu = inputs
    ctx.save_for_backward(grad, x, scale, shift)


def _vjp_backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[Any, ...]:
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views keep the history, so that derivatives of any order flow through, but not one
        # another's: grad depends on x, and these derivatives are partial.
        grad, x, scale, shift = (
            t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
            for t in ctx.saved_tensors
        )
        y = ref.plain(x, scale, shift, ctx.groups, ctx.eps, ctx.silu)
        first = torch.autograd.grad(y, (x, scale, shift), grad, create_graph=True)
        second = torch.autograd.grad(
            first, (grad, x, scale, shift), cotangents, allow_unused=True, create_graph=further
        )
    return (*second, None, None, None, None, None)


_backward = define(
    "ada_group_norm_silu_backward(Tensor grad, Tensor x, Tensor scale, Tensor shift, Tensor mean, "
    "Tensor rstd, int groups, float eps, bool silu) -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    setup_context=_setup_backward,
    backward=_vjp_backward,
)
_forward = define(
    "ada_group_norm_silu(Tensor x, Tensor scale, Tensor shift, int groups, float eps, bool silu) "
    "-> (Tensor, Tensor, Tensor)",
    fake=_fake,
    setup_context=_setup,
    backward=_vjp,
)

register_backend("ada_group_norm_silu", "torch", _run)
register_backend("ada_group_norm_silu_backward", "torch", _run_backward)
register_cuda("ada_group_norm_silu", "ada_norm", "forward")
register_cuda("ada_group_norm_silu_backward", "ada_norm", "backward")
register_triton("ada_group_norm_silu", "ada_norm.triton_impl")
register_triton("ada_group_norm_silu_backward", "ada_norm.triton_impl")
