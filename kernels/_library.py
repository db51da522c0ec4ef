"""Registers ops with torch.library: schema, implementation, fake, autograd."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import forward_ad

from .registry import can_decompose, decomposes, select

NAMESPACE = "ddgan_fast"
INLINE_NAMESPACE = "ddgan_fast_inline"
_library = torch.library.Library(NAMESPACE, "DEF")
_inline = torch.library.Library(INLINE_NAMESPACE, "DEF")
op_names: list[str] = []
"""Every op of this library, so that tests can iterate over all of them."""


@dataclass(frozen=True)
class _Definition:
    schema: str
    fake: Callable[..., Any]
    setup_context: Callable[..., None] | None
    backward: Callable[..., Any] | None


_definitions: dict[str, _Definition] = {}
_twins: dict[str, Any] = {}
_formula = threading.local()


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
) -> Callable[..., Any]:
    """Register ``ddgan_fast::<schema>``; the registry supplies its implementations.

    Autograd formulas must call what this function returns or plain torch functions only: a
    ``torch.autograd.Function`` would give silently wrong second derivatives under torch.compile.

    Args:
        schema: torch schema, e.g. ``"name(Tensor x, float scale) -> Tensor"``; its first argument
            decides the backend.
        fake: shape and stride propagation without data.
        setup_context: saves what ``backward`` needs.
        backward: vector-Jacobian product; None means not differentiable.

    Returns:
        A function that calls the op, or in compiled code its twin that decomposes.
    """
    name = schema.split("(", 1)[0]
    op = _register(_library, _Definition(schema, fake, setup_context, backward))
    op_names.append(name)

    def call(*args: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            twin = decomposes(name, args[0].device.type)
        else:
            # Eager code calls ops; a formula, which is traced outside of Dynamo, calls its like.
            twin = name in _twins and getattr(_formula, "of_twin", False)
        return _twins[name](*args) if twin else op(*args)

    return call


def decompose(name: str, body: Callable[..., Any]) -> None:
    """Add a twin of a registered op that tracing replaces by its ``body``.

    The twin is an op of its own in the namespace ``ddgan_fast_inline``, with the same autograd
    formula. So the choice stands in the traced graph, and the compiler's caches tell apart
    what was compiled with and without it. Needs no import of the compiler.

    Args:
        name: the op.
        body: functional torch operators that compute the op, with its results' strides.
    """
    from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

    original = _definitions[name]
    backward = original.backward

    def formula(*args: Any) -> Any:
        before = getattr(_formula, "of_twin", False)
        _formula.of_twin = True
        try:
            assert backward is not None
            return backward(*args)
        finally:
            _formula.of_twin = before

    def trace(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        with mode:
            return body(*args)

    twin = _register(
        _inline, dataclasses.replace(original, backward=None if backward is None else formula)
    )
    torch.library.register_torch_dispatch(
        f"{INLINE_NAMESPACE}::{name}", ProxyTorchDispatchMode, trace, lib=_inline
    )
    _twins[name] = twin
    can_decompose(name)


def _register(library: torch.library.Library, definition: _Definition) -> Any:
    name = definition.schema.split("(", 1)[0]
    _definitions.setdefault(name, definition)

    def run(*args: Any) -> Any:
        # Public functions check their inputs; a tangent may also come in through a gradient.
        refuse_tangents(name, *(a for a in args if isinstance(a, torch.Tensor)))
        return select(name, args)(*args)

    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
    library.define(definition.schema, tags=tags)
    library.impl(name, run, "CompositeExplicitAutograd")
    qualified = f"{library.ns}::{name}"
    torch.library.register_fake(qualified, definition.fake, lib=library)
    if definition.backward is not None:
        torch.library.register_autograd(
            qualified, definition.backward, setup_context=definition.setup_context, lib=library
        )
    return getattr(getattr(torch.ops, library.ns), name).default
