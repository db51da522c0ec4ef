"""The identity as a registered op whose gradient is the same op."""

from __future__ import annotations

from typing import Any

import torch

from .._library import define, refuse_tangents
from ..cuda_library import register as register_cuda
from ..layout import in_order_of
from ..registry import register_backend
from ..triton_support import register as register_triton
from . import ref


def identity(x: torch.Tensor) -> torch.Tensor:
    """A copy of x, differentiable to any order.

    Args:
        x: floating-point [N, C, ...], any trailing shape.

    Returns:
        The shape, dtype and memory order of x.

    Raises:
        ValueError: x of the wrong form.
    """
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(
            f"identity: x must be floating-point [N, C, ...], got {x.dtype} {list(x.shape)}."
        )
    refuse_tangents("identity", x)
    return _identity(x)


def _fake(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def _run(x: torch.Tensor) -> torch.Tensor:
    return in_order_of(x, ref.identity(x))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """Saves nothing: the derivative does not depend on x."""


def _backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
    return _identity(grad)


_identity = define(
    "identity(Tensor x) -> Tensor",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
register_backend("identity", "torch", _run)
register_cuda("identity", "template", "identity")
register_triton("identity", "template.triton_impl")
