"""The diffused pair as a registered op: linear in x0."""

from __future__ import annotations

from typing import Any

import torch

from .._library import define, refuse_tangents
from ..cuda_library import register as register_cuda
from ..layout import in_order_of
from ..posterior.op import check_draw, refuse_gradient
from ..posterior.ref import rows
from ..registry import register_backend
from ..triton_support import register as register_triton
from . import ref


def q_sample_pair(
    x0: torch.Tensor,
    t: torch.Tensor,
    tables: torch.Tensor,
    *,
    flip: torch.Tensor | None = None,
    noise: tuple[torch.Tensor, torch.Tensor] | None = None,
    seed: torch.Tensor | None = None,
    index: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Diffuse data to (x_t, x_{t+1}).

    Args:
        x0: floating-point data [N, ...] in [-1, 1], or uint8 images [N, H, W, C].
        t: int64 [N].
        tables: float32 [T, 4]: a_s_cum[t], sigmas_cum[t], a_s[t+1], sigmas[t+1].
        flip: bool [N], mirror these images left to right; with uint8 images only.
        noise: standard normal numbers for x_{t+1} and for x_t, each of x_t's shape; else they
            come from ``seed``.
        seed: int64[1] on the device, the Philox key.
        index: int64 [N] global sample positions; default 0..N-1.

    Returns:
        x_t and x_{t+1}, float32 at least: [N, ...] in x0's memory order, or float32 [N, C, H, W]
        in channels_last order from uint8 images.

    Raises:
        ValueError: neither or both of noise and seed, or shapes that do not fit.
    """
    if x0.dtype == torch.uint8:
        if x0.ndim != 4:
            raise ValueError(
                f"q_sample_pair: uint8 images must be [N, H, W, C], got {list(x0.shape)}."
            )
        if flip is not None and (flip.dtype != torch.bool or flip.shape != x0.shape[:1]):
            raise ValueError(
                f"q_sample_pair: flip must be bool [{x0.shape[0]}], got {flip.dtype} "
                f"{list(flip.shape)}."
            )
    elif not x0.is_floating_point() or x0.ndim < 2:
        raise ValueError(
            f"q_sample_pair: x0 must be floating-point [N, ...] or uint8 [N, H, W, C], got "
            f"{x0.dtype} {list(x0.shape)}."
        )
    elif flip is not None:
        raise ValueError("q_sample_pair: flip works on uint8 images only; mirror x0 beforehand.")
    if tables.ndim != 2 or tables.shape[1] != 4:
        raise ValueError(f"q_sample_pair: tables must be [T, 4], got {list(tables.shape)}.")
    check_draw("q_sample_pair", x0.shape[0], t, seed, noise is not None, index)
    noise_next, noise_t = noise if noise is not None else (None, None)
    shape = _shape(x0)
    for n in (noise_next, noise_t):
        if n is not None and n.shape != shape:
            raise ValueError(
                f"q_sample_pair: each noise must be {list(shape)}, got {list(n.shape)}."
            )
        refuse_gradient("q_sample_pair", n)
    refuse_tangents("q_sample_pair", x0)
    return _q_sample_pair(x0, t, tables, flip, noise_next, noise_t, seed, index)


def _shape(x0: torch.Tensor) -> torch.Size:
    if x0.dtype == torch.uint8:
        n, h, w, c = x0.shape
        return torch.Size((n, c, h, w))
    return x0.shape


def _model(x0: torch.Tensor) -> torch.Tensor:
    """An empty tensor of the result's shape, dtype and memory order."""
    if x0.dtype == torch.uint8:
        empty = torch.empty(x0.shape, dtype=torch.float32, device=x0.device)
        return empty.permute(0, 3, 1, 2)
    return torch.empty_like(x0, dtype=torch.promote_types(x0.dtype, torch.float32))


def _fake(x0: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return _model(x0), _model(x0)


def _run(x0: torch.Tensor, *args: Any) -> tuple[torch.Tensor, ...]:
    model = x0.permute(0, 3, 1, 2) if x0.dtype == torch.uint8 else x0
    return tuple(in_order_of(model, y) for y in ref.q_sample_pair(x0, *args))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x0, t, tables = inputs[:3]
    ctx.dtype = x0.dtype
    ctx.save_for_backward(t, tables)


def _backward(ctx: Any, grad_t: torch.Tensor, grad_next: torch.Tensor) -> tuple[Any, ...]:
    t, tables = ctx.saved_tensors
    grad_x0 = None
    if ctx.needs_input_grad[0]:
        signal, _, signal_next, _ = rows(tables, t, grad_t.ndim, grad_t.dtype)
        grad_x0 = ((grad_t + grad_next * signal_next) * signal).to(ctx.dtype)
    return grad_x0, None, None, None, None, None, None, None


_q_sample_pair = define(
    "q_sample_pair(Tensor x0, Tensor t, Tensor tables, Tensor? flip, Tensor? noise_next, "
    "Tensor? noise_t, Tensor? seed, Tensor? index) -> (Tensor, Tensor)",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
register_backend("q_sample_pair", "torch", _run)
register_cuda("q_sample_pair", "q_sample", "q_sample_pair")
register_triton("q_sample_pair", "q_sample.triton_impl")
