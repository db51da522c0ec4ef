"""What torch.compile makes of ops when asked to fuse them (the choice "inductor").

Every body is functional torch code in which no operator stops fusion, so that an op and what
surrounds it become one kernel. Gradients stay those of the ops: autograd of a body would store and
scatter every slice. Adaptive group norm stays whole: the compiler's backward pass moves two to
three times the bytes of the op's.

Each body alone becomes one GPU kernel that moves every byte once. In a training step the compiler
may besides store the sign of bias_leaky_relu_down's input: less memory for more bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ._library import NAMESPACE, decompose
from .bias_act.ref import broadcast_bias, down_padding
from .layout import memory_format
from .posterior import ref as posterior
from .q_sample import ref as q_sample
from .upfirdn.op import output_size

_MOST_TERMS = 64
"""Products per output beyond which a filter is left whole: the kernel would compile for minutes."""


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _in_order_of(model: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """As ``layout.in_order_of``, without writing into a tensor."""
    empty = torch.empty_like(model, dtype=result.dtype)
    if result.stride() == empty.stride():
        return result
    return torch.ops.aten.copy.default(empty, result)


def _filter(
    x: torch.Tensor,
    taps: torch.Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip: bool,
    gain: float,
) -> torch.Tensor:
    """``op.upfirdn2d`` of x in float32 at least, as one sum of products."""
    dtype = _wide(x)
    x, taps = x.to(dtype), taps.to(dtype)
    weights = torch.outer(taps, taps) if taps.ndim == 1 else taps
    if gain != 1.0:
        weights = weights * gain
    # The sums below run forwards over the image: they correlate.
    if not flip:
        weights = weights.flip(0, 1)
    size = output_size(x.shape, taps.shape, up, down, padding)
    if up[0] == 1 and up[1] == 1:
        return _filter_slices(x, weights, down, padding, size)
    return _filter_gathered(x, weights, up, down, padding, size)


def _filter_slices(
    x: torch.Tensor,
    weights: torch.Tensor,
    down: Sequence[int],
    padding: Sequence[int],
    size: tuple[int, int],
) -> torch.Tensor:
    x0, x1, y0, y1 = padding
    x = x[:, :, max(-y0, 0) : x.shape[2] - max(-y1, 0), max(-x0, 0) : x.shape[3] - max(-x1, 0)]
    x = F.pad(x, [max(p, 0) for p in (x0, x1, y0, y1)])
    rows, columns = ((n - 1) * d + 1 for n, d in zip(size, (down[1], down[0]), strict=True))
    terms = [
        x[:, :, i : i + rows : down[1], j : j + columns : down[0]] * weights[i, j]
        for i in range(weights.shape[0])
        for j in range(weights.shape[1])
    ]
    return _sum(terms)


def _filter_gathered(
    x: torch.Tensor,
    weights: torch.Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    size: tuple[int, int],
) -> torch.Tensor:
    """Each output looks up the samples that meet a tap; inserted zeros are never read."""
    rows = _meetings(x, 2, weights.shape[0], up[1], down[1], padding[2], size[0])
    columns = _meetings(x, 3, weights.shape[1], up[0], down[0], padding[0], size[1])
    terms = []
    for sample_y, tap_y, inside_y in rows:
        for sample_x, tap_x, inside_x in columns:
            picked = torch.ops.aten._unsafe_index.Tensor(
                x, [None, None, sample_y[:, None], sample_x]
            )
            weight = torch.ops.aten._unsafe_index.Tensor(weights, [tap_y[:, None], tap_x])
            # Not a zero weight: the sample looked up instead may be infinite.
            terms.append(torch.where(inside_y[:, None] & inside_x, picked * weight, 0.0))
    return _sum(terms)


def _meetings(
    x: torch.Tensor, axis: int, taps: int, up: int, down: int, before: int, outputs: int
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For every output along an axis: the m-th sample, its tap, and whether there are both."""
    last = x.shape[axis] - 1
    start = torch.arange(outputs, device=x.device) * down - before
    # The first sample at or after the filter's start, whose tap is how far it lies behind it.
    first = torch.div(start + (up - 1), up, rounding_mode="floor")
    found = []
    for m in range(-(-taps // up)):
        sample = first + m
        tap = sample * up - start
        inside = (sample >= 0) & (sample <= last) & (tap < taps)
        found.append((sample.clamp(0, last), tap.clamp(0, taps - 1), inside))
    return found


def _sum(terms: list[torch.Tensor]) -> torch.Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _terms(taps: torch.Tensor, up: Sequence[int]) -> int:
    return -(-taps.shape[0] // up[1]) * -(-taps.shape[-1] // up[0])


def _whole(op: str, *args: Any) -> Any:
    return getattr(getattr(torch.ops, NAMESPACE), op).default(*args)


def _upfirdn2d(
    x: torch.Tensor,
    taps: torch.Tensor,
    up: list[int],
    down: list[int],
    padding: list[int],
    flip: bool,
    gain: float,
) -> torch.Tensor:
    if _terms(taps, up) > _MOST_TERMS:
        return _whole("upfirdn2d", x, taps, up, down, padding, flip, gain)
    y = _filter(x, taps, up, down, padding, flip, gain).to(x.dtype)
    return y.contiguous(memory_format=memory_format(x))


def _preactivation(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    dtype = _wide(x)
    return x.to(dtype) if bias is None else x.to(dtype) + broadcast_bias(bias, x).to(dtype)


def _leaky(v: torch.Tensor, slope: float) -> torch.Tensor:
    if 0 < slope <= 1:
        # No comparison: the compiler may store the gradient's, and would read it back here.
        return torch.maximum(v, v * slope)
    return _masked(v, v, slope)


def _masked(v: torch.Tensor, sign: torch.Tensor, slope: float) -> torch.Tensor:
    """v, times the slope where sign is not positive."""
    return torch.where(sign > 0, v, v * slope)


def _bias_leaky_relu(
    x: torch.Tensor, bias: torch.Tensor | None, slope: float, scale: float
) -> torch.Tensor:
    y = _preactivation(x, bias)
    return _in_order_of(x, (_leaky(y, slope) * scale).to(x.dtype))


def _bias_leaky_relu_grad(
    grad: torch.Tensor, y: torch.Tensor, slope: float, scale: float
) -> torch.Tensor:
    g = _masked(grad.to(_wide(y)) * scale, y, slope)
    return _in_order_of(y, g.to(y.dtype))


def _bias_leaky_relu_down(
    x: torch.Tensor, bias: torch.Tensor | None, taps: torch.Tensor, slope: float
) -> torch.Tensor:
    if _terms(taps, (1, 1)) > _MOST_TERMS:
        return _whole("bias_leaky_relu_down", x, bias, taps, slope)
    y = _preactivation(x, bias)
    return _down(_leaky(y, slope), x, taps)


def _bias_leaky_relu_down_tangent(
    v: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, taps: torch.Tensor, slope: float
) -> torch.Tensor:
    if _terms(taps, (1, 1)) > _MOST_TERMS:
        return _whole("bias_leaky_relu_down_tangent", v, x, bias, taps, slope)
    return _down(_masked(v.to(_wide(x)), _preactivation(x, bias), slope), x, taps)


def _down(y: torch.Tensor, x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    y = _filter(y, taps, (1, 1), (2, 2), down_padding(taps), False, 1.0).to(x.dtype)
    return y.contiguous(memory_format=memory_format(x))


def _bias_leaky_relu_down_grad(
    grad: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    taps: torch.Tensor,
    slope: float,
) -> torch.Tensor:
    if _terms(taps, (2, 2)) > _MOST_TERMS:
        return _whole("bias_leaky_relu_down_grad", grad, x, bias, taps, slope)
    k, before = taps.shape[0], down_padding(taps)[0]
    padding = []
    for size, out in ((x.shape[3], grad.shape[3]), (x.shape[2], grad.shape[2])):
        padding += [k - before - 1, size - 2 * out + before]
    up = _filter(grad.to(_wide(x)), taps, (2, 2), (1, 1), padding, True, 1.0)
    return _in_order_of(x, _masked(up, _preactivation(x, bias), slope).to(x.dtype))


def _sample_posterior(
    x0: torch.Tensor,
    x_next: torch.Tensor,
    t: torch.Tensor,
    tables: torch.Tensor,
    noise: torch.Tensor | None,
    seed: torch.Tensor | None,
    index: torch.Tensor | None,
) -> torch.Tensor:
    if noise is None:
        # Drawn numbers must not depend on how the compiler rounds a logarithm.
        return _whole("sample_posterior", x0, x_next, t, tables, noise, seed, index)
    y = posterior.sample_posterior(x0, x_next, t, tables, noise, seed, index)
    return _in_order_of(x_next, y)


def _q_sample_pair(x0: torch.Tensor, *args: Any) -> tuple[torch.Tensor, ...]:
    noise_next, noise_t = args[3:5]
    if noise_next is None or noise_t is None:
        return _whole("q_sample_pair", x0, *args)
    model = x0.permute(0, 3, 1, 2) if x0.dtype == torch.uint8 else x0
    return tuple(_in_order_of(model, y) for y in q_sample.q_sample_pair(x0, *args))


def register() -> None:
    """Add all decompositions to their ops, which must be registered."""
    for name, body in (
        ("upfirdn2d", _upfirdn2d),
        ("bias_leaky_relu", _bias_leaky_relu),
        ("bias_leaky_relu_grad", _bias_leaky_relu_grad),
        ("bias_leaky_relu_down", _bias_leaky_relu_down),
        ("bias_leaky_relu_down_grad", _bias_leaky_relu_down_grad),
        ("bias_leaky_relu_down_tangent", _bias_leaky_relu_down_tangent),
        ("sample_posterior", _sample_posterior),
        ("q_sample_pair", _q_sample_pair),
    ):
        decompose(name, body)
