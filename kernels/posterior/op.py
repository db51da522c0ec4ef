"""Posterior sampling as a registered op: linear in x0 and x_{t+1}."""

from __future__ import annotations

from typing import Any

import torch

from .._library import define, refuse_tangents
from ..cuda_library import register as register_cuda
from ..layout import in_order_of
from ..registry import register_backend
from ..triton_support import register as register_triton
from . import ref


def sample_posterior(
    x0: torch.Tensor,
    x_next: torch.Tensor,
    t: torch.Tensor,
    tables: torch.Tensor,
    *,
    noise: torch.Tensor | None = None,
    seed: torch.Tensor | None = None,
    index: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw x_t ~ q(x_t | x_0, x_{t+1}) of the diffusion.

    Args:
        x0: prediction [N, ...].
        x_next: x_{t+1} [N, ...].
        t: int64 [N].
        tables: float32 [T, 3]: coefficient of x0, of x_{t+1}, standard deviation (0 at t = 0).
        noise: standard normal numbers [N, ...]; else they come from ``seed``.
        seed: int64[1] on the device, the Philox key.
        index: int64 [N] global sample positions; default 0..N-1.

    Returns:
        x_t [N, ...], float32 at least, in x_next's memory order.

    Raises:
        ValueError: neither or both of noise and seed, or shapes that do not fit.
    """
    if x0.shape != x_next.shape or x0.ndim < 2:
        raise ValueError(
            f"sample_posterior: x0 and x_next must be equal shapes [N, ...], got "
            f"{list(x0.shape)} and {list(x_next.shape)}."
        )
    if tables.ndim != 2 or tables.shape[1] != 3:
        raise ValueError(f"sample_posterior: tables must be [T, 3], got {list(tables.shape)}.")
    check_draw("sample_posterior", x0.shape[0], t, seed, noise is not None, index)
    if noise is not None and noise.shape != x0.shape:
        raise ValueError(
            f"sample_posterior: noise must be {list(x0.shape)}, got {list(noise.shape)}."
        )
    refuse_gradient("sample_posterior", noise)
    refuse_tangents("sample_posterior", x0, x_next)
    return _sample_posterior(x0, x_next, t, tables, noise, seed, index)


def refuse_gradient(op: str, noise: torch.Tensor | None) -> None:
    """Raise ValueError for noise that expects a gradient, which it would silently not get."""
    if noise is not None and noise.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{op}: noise gets no gradient; pass noise.detach().")


def check_draw(
    op: str,
    n: int,
    t: torch.Tensor,
    seed: torch.Tensor | None,
    has_noise: bool,
    index: torch.Tensor | None,
) -> None:
    """Raise ValueError unless the random inputs of an op fit together."""
    if has_noise == (seed is not None):
        raise ValueError(
            f"{op}: pass exactly one of noise=... and seed=...; randomness enters explicitly."
        )
    if seed is not None and not isinstance(seed, torch.Tensor):
        raise ValueError(f"{op}: seed must be int64[1] on the device, got {seed!r}.")
    if seed is not None and (seed.dtype != torch.int64 or seed.numel() != 1):
        raise ValueError(f"{op}: seed must be int64[1], got {seed.dtype} {list(seed.shape)}.")
    for name, value in (("t", t), ("index", index)):
        if value is not None and (value.dtype != torch.int64 or value.shape != (n,)):
            raise ValueError(
                f"{op}: {name} must be int64 [{n}], got {value.dtype} {list(value.shape)}."
            )


def _fake(x0: torch.Tensor, x_next: torch.Tensor, *_: Any) -> torch.Tensor:
    wide = torch.promote_types(torch.promote_types(x0.dtype, x_next.dtype), torch.float32)
    return torch.empty_like(x_next, dtype=wide)


def _run(x0: torch.Tensor, x_next: torch.Tensor, *args: Any) -> torch.Tensor:
    return in_order_of(x_next, ref.sample_posterior(x0, x_next, *args))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x0, x_next, t, tables = inputs[:4]
    ctx.dtypes = (x0.dtype, x_next.dtype)
    ctx.save_for_backward(t, tables)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    t, tables = ctx.saved_tensors
    a, b, _ = ref.rows(tables, t, grad.ndim, grad.dtype)
    grad_x0 = (grad * a).to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
    grad_next = (grad * b).to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
    return grad_x0, grad_next, None, None, None, None, None


_sample_posterior = define(
    "sample_posterior(Tensor x0, Tensor x_next, Tensor t, Tensor tables, Tensor? noise, "
    "Tensor? seed, Tensor? index) -> Tensor",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
register_backend("sample_posterior", "torch", _run)
register_cuda("sample_posterior", "posterior", "sample_posterior")
register_triton("sample_posterior", "posterior.triton_impl")
