"""Bias + leaky ReLU and its fusion with FIR downsampling; differentiable to any order.

Leaky ReLU is piecewise linear, so each op has one linear companion: its adjoint. The adjoint of
the adjoint is the tangent map, whose adjoint is the first one again.
"""

from __future__ import annotations

from typing import Any

import torch

from .._library import define, refuse_tangents
from ..cuda_library import register as register_cuda
from ..layout import in_order_of, memory_format
from ..registry import register_backend
from ..triton_support import register as register_triton
from ..upfirdn.op import output_size
from . import ref


def bias_leaky_relu(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    negative_slope: float = 0.2,
    scale: float = 1.0,
) -> torch.Tensor:
    """scale * leaky_relu(x + bias), differentiable to any order.

    Args:
        x: [N, C, ...], any trailing shape.
        bias: [C], [N, C] or None.
        negative_slope: slope below zero, at least 0.
        scale: positive factor on the result.

    Returns:
        The shape, dtype and memory order of x.

    Raises:
        ValueError: an argument of the wrong form.
    """
    _check("bias_leaky_relu", x, bias, negative_slope)
    if not scale > 0:
        raise ValueError(f"bias_leaky_relu: scale must be positive, got {scale}.")
    refuse_tangents("bias_leaky_relu", x, bias)
    return _bias_leaky_relu(x, bias, float(negative_slope), float(scale))


def bias_leaky_relu_down(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    taps: torch.Tensor,
    *,
    negative_slope: float = 0.2,
) -> torch.Tensor:
    """FIR downsampling by 2 of leaky_relu(x + bias), differentiable to any order.

    Args:
        x: [N, C, H, W].
        bias: [C], [N, C] or None.
        taps: [k], k >= 2, normalised by the caller.
        negative_slope: slope below zero, at least 0.

    Returns:
        [N, C, H', W'] where even sizes are halved: pad ((k-1)//2, (k-2)//2).

    Raises:
        ValueError: an argument of the wrong form.
    """
    _check("bias_leaky_relu_down", x, bias, negative_slope)
    if x.ndim != 4:
        raise ValueError(f"bias_leaky_relu_down: x must be [N, C, H, W], got {list(x.shape)}.")
    if taps.ndim != 1 or taps.shape[0] < 2:
        raise ValueError(
            f"bias_leaky_relu_down: taps must be [k] with k >= 2, got {list(taps.shape)}."
        )
    height, width = output_size(x.shape, taps.shape, [1, 1], [2, 2], ref.down_padding(taps))
    if height < 1 or width < 1:
        raise ValueError(
            f"bias_leaky_relu_down: {list(x.shape)} with {taps.shape[0]} taps leaves no output: "
            f"{height} x {width}."
        )
    refuse_tangents("bias_leaky_relu_down", x, bias)
    return _down(x, bias, taps, float(negative_slope))


def _check(op: str, x: torch.Tensor, bias: torch.Tensor | None, slope: float) -> None:
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(
            f"{op}: x must be floating-point [N, C, ...], got {x.dtype} {list(x.shape)}."
        )
    if bias is not None and bias.shape not in ((x.shape[1],), (x.shape[0], x.shape[1])):
        raise ValueError(
            f"{op}: bias must be [{x.shape[1]}] or [{x.shape[0]}, {x.shape[1]}] for x "
            f"{list(x.shape)}, got {list(bias.shape)}."
        )
    if slope < 0:
        raise ValueError(f"{op}: negative_slope must be at least 0, got {slope}.")


def _bias_gradient(grad_x: torch.Tensor, bias_shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    dims = tuple(range(2, grad_x.ndim)) if len(bias_shape) == 2 else (0, *range(2, grad_x.ndim))
    # Summed in float32 at least: a bias collects millions of terms.
    wide = torch.promote_types(grad_x.dtype, torch.float32)
    return grad_x.sum(dims, dtype=wide).to(dtype) if dims else grad_x.to(dtype)


def _like(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(x)


def _like_second(grad: torch.Tensor, x: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(x)


def _run(x: torch.Tensor, *args: Any) -> torch.Tensor:
    return in_order_of(x, ref.bias_leaky_relu(x, *args))


def _run_grad(grad: torch.Tensor, y: torch.Tensor, *args: Any) -> torch.Tensor:
    return in_order_of(y, ref.bias_leaky_relu_grad(grad, y, *args))


def _setup_act(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, bias, ctx.slope, ctx.scale = inputs
    ctx.bias_shape = None if bias is None else tuple(bias.shape)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(output)


def _backward_act(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    (y,) = ctx.saved_tensors
    grad_x = _act_grad(grad, y, ctx.slope, ctx.scale)
    grad_bias = None
    if ctx.bias_shape is not None and ctx.needs_input_grad[1]:
        grad_bias = _bias_gradient(grad_x, ctx.bias_shape, ctx.bias_dtype)
    return grad_x, grad_bias, None, None


def _setup_act_grad(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, y, ctx.slope, ctx.scale = inputs
    ctx.save_for_backward(y)


def _backward_act_grad(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    (y,) = ctx.saved_tensors
    return _act_grad(grad, y, ctx.slope, ctx.scale), None, None, None


_act_grad = define(
    "bias_leaky_relu_grad(Tensor grad, Tensor y, float slope, float scale) -> Tensor",
    fake=_like_second,
    setup_context=_setup_act_grad,
    backward=_backward_act_grad,
)
_bias_leaky_relu = define(
    "bias_leaky_relu(Tensor x, Tensor? bias, float slope, float scale) -> Tensor",
    fake=_like,
    setup_context=_setup_act,
    backward=_backward_act,
)


def _fake_down(x: torch.Tensor, bias: Any, taps: torch.Tensor, slope: float) -> torch.Tensor:
    size = output_size(x.shape, taps.shape, [1, 1], [2, 2], ref.down_padding(taps))
    return torch.empty(
        (*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=memory_format(x)
    )


def _fake_tangent(v: torch.Tensor, x: torch.Tensor, *args: Any) -> torch.Tensor:
    return _fake_down(x, *args)


def _run_down(x: torch.Tensor, *args: Any) -> torch.Tensor:
    return ref.bias_leaky_relu_down(x, *args).contiguous(memory_format=memory_format(x))


def _run_tangent(v: torch.Tensor, x: torch.Tensor, *args: Any) -> torch.Tensor:
    y = ref.bias_leaky_relu_down_tangent(v, x, *args)
    return y.contiguous(memory_format=memory_format(x))


def _run_down_grad(grad: torch.Tensor, x: torch.Tensor, *args: Any) -> torch.Tensor:
    return in_order_of(x, ref.bias_leaky_relu_down_grad(grad, x, *args))


def _setup_down(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, bias, taps, ctx.slope = inputs
    ctx.save_for_backward(x, bias, taps)


def _backward_down(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    x, bias, taps = ctx.saved_tensors
    grad_x = _down_grad(grad, x, bias, taps, ctx.slope)
    grad_bias = None
    if bias is not None and ctx.needs_input_grad[1]:
        grad_bias = _bias_gradient(grad_x, tuple(bias.shape), bias.dtype)
    return grad_x, grad_bias, None, None


def _setup_linear(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, x, bias, taps, ctx.slope = inputs
    ctx.save_for_backward(x, bias, taps)


def _backward_down_grad(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    x, bias, taps = ctx.saved_tensors
    return _down_tangent(grad, x, bias, taps, ctx.slope), None, None, None, None


def _backward_tangent(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    x, bias, taps = ctx.saved_tensors
    return _down_grad(grad, x, bias, taps, ctx.slope), None, None, None, None


_down_grad = define(
    "bias_leaky_relu_down_grad(Tensor grad, Tensor x, Tensor? bias, Tensor taps, float slope) "
    "-> Tensor",
    fake=_like_second,
    setup_context=_setup_linear,
    backward=_backward_down_grad,
)
_down_tangent = define(
    "bias_leaky_relu_down_tangent(Tensor v, Tensor x, Tensor? bias, Tensor taps, float slope) "
    "-> Tensor",
    fake=_fake_tangent,
    setup_context=_setup_linear,
    backward=_backward_tangent,
)
_down = define(
    "bias_leaky_relu_down(Tensor x, Tensor? bias, Tensor taps, float slope) -> Tensor",
    fake=_fake_down,
    setup_context=_setup_down,
    backward=_backward_down,
)
for _name, _function in (
    ("bias_leaky_relu", _run),
    ("bias_leaky_relu_grad", _run_grad),
    ("bias_leaky_relu_down", _run_down),
    ("bias_leaky_relu_down_grad", _run_down_grad),
    ("bias_leaky_relu_down_tangent", _run_tangent),
):
    register_backend(_name, "torch", _function)
    register_triton(_name, "bias_act.triton_impl")
    register_cuda(_name, "bias_act", _name)
