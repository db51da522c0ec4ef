"""Registers ops with torch.library: schema, implementation, fake, autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from .registry import select

NAMESPACE = "ddgan_fast"
_library = torch.library.Library(NAMESPACE, "DEF")
op_names: list[str] = []
"""Every op of this library, so that tests can iterate over all of them."""


def refuse_tangents(op: str, *tensors: torch.Tensor | None) -> None:
    """Raise NotImplementedError for forward-mode inputs: registered ops would drop the tangents."""
    if forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"{op} has no forward-mode derivative: use torch.autograd.grad (twice for "
                "Hessian-vector products)."
            )


def define(
    schema: str,
    *,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Any:
    """Register ``ddgan_fast::<schema>``; the registry supplies its implementations.

    Autograd formulas must call registered ops or plain torch functions only: a
    ``torch.autograd.Function`` would give silently wrong second derivatives under torch.compile.

    Args:
        schema: torch schema, e.g. ``"name(Tensor x, float scale) -> Tensor"``; its first argument
            decides the backend.
        fake: shape and stride propagation without data.
        setup_context: saves what ``backward`` needs.
        backward: vector-Jacobian product; None means not differentiable.

    Returns:
        The callable ``torch.ops`` overload.
    """
    name = schema.split("(", 1)[0]

    def run(*args: Any) -> Any:
        return select(name, args)(*args)

    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    _library.impl(name, run, "CompositeExplicitAutograd")
    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(
            qualified, backward, setup_context=setup_context, lib=_library
        )
    op_names.append(name)
    return getattr(torch.ops.ddgan_fast, name).default
