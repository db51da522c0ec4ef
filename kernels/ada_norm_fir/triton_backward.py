"""Triton kernels for the gradient of both branches of a downsampling block.

The gradients of the two results have a quarter of x's pixels. Each of the two passes, one that sums
and one that writes, filters them back to x's resolution on the way: nothing of that size is stored
but the gradient of x.
"""

# Of a kernel's parameters only the compile-time ones have a type to write down.
# mypy: allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ..ada_norm.triton_kernels import per_channel, per_group
from ..upfirdn.triton_fir import sample, tap, within
from .triton_kernels import _SIZES, _sigmoid


@triton.jit
def _row(ptr, row, H, W, stride_h, stride_w, column, at, in_c, t0, t1, t2, t3,
         ACC: tl.constexpr):  # fmt: skip
    """One row of a gradient filtered for an odd and an even column of x, from two samples."""
    in_h = within(row, 0, H, column)
    ptr += row * stride_h
    in_a = (column >= 0) & (column < W) & in_h & in_c
    in_b = (column + 1 >= 0) & (column + 1 < W) & in_h & in_c
    a = tl.load(ptr + at, mask=in_a, other=0.0).to(ACC)
    b = tl.load(ptr + (at + stride_w), mask=in_b, other=0.0).to(ACC)
    return t1 * a + t3 * b, t0 * a + t2 * b


@triton.jit
def _inner(x_ptr, to, mask, grad, norm, SILU: tl.constexpr, ACC: tl.constexpr):
    """xhat, and the gradient at scale * xhat + shift, which is 0 where masked."""
    x = tl.load(x_ptr + to, mask=mask, other=0.0).to(ACC)
    mean, rstd, scale, shift = norm
    xhat = (x - mean) * rstd
    da = tl.where(mask, grad, 0.0)
    if SILU:
        a = scale * xhat + shift
        s = _sigmoid(a)
        da *= s + (a - a * s) * s
    return xhat, da


@triton.jit
def _norm(mean_ptr, rstd_ptr, scale_ptr, shift_ptr, n, c, C, groups, channels, ACC: tl.constexpr):
    mean = per_group(mean_ptr, n, c, C, groups, channels)
    rstd = per_group(rstd_ptr, n, c, C, groups, channels)
    return mean, rstd, per_channel(scale_ptr, n, c, C, ACC), per_channel(shift_ptr, n, c, C, ACC)


@triton.jit(do_not_specialize=_SIZES)
def sums(
    grad_ptr, x_ptr, skip_ptr, taps_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr,
    da_ptr, product_ptr,
    C, H, W, OH, OW, pad_x, pad_y, groups, channels, first_x, first_y, across, strips, blocks,
    stride_n, stride_c, stride_h, stride_w, out_n, out_c, out_h, out_w,
    K: tl.constexpr, GAIN: tl.constexpr, SILU: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums of da and da * xhat over every (sample, strip and block across, channel).

    H and W are those of the gradients, OH and OW those of x; a window rolls over ROWS rows of the
    gradient as in ``triton_kernels.up2``.
    """
    n, strip, block, c = sample(tl.program_id(0), across, strips, blocks, BLOCK_C)
    norm = _norm(mean_ptr, rstd_ptr, scale_ptr, shift_ptr, n, c, C, groups, channels, ACC)
    grad_ptr += n * stride_n
    x_ptr += n * out_n
    column = first_x + (block * BLOCK_X + tl.arange(0, BLOCK_X))[:, None]
    in_c = (c < C)[None, :]
    at = column * stride_w + c[None, :] * stride_c
    t0 = tap(taps_ptr, 0, K, True, ACC)
    t1 = tap(taps_ptr, 1, K, True, ACC)
    t2 = tap(taps_ptr, 2, K, True, ACC)
    t3 = tap(taps_ptr, 3, K, True, ACC)
    g0, g1, g2, g3 = t0 * GAIN, t1 * GAIN, t2 * GAIN, t3 * GAIN
    target = 2 * column - 1 + pad_x
    out = target * out_w + c[None, :] * out_c
    in_odd = (target >= 0) & (target < OW) & in_c
    in_even = (target + 1 >= 0) & (target + 1 < OW) & in_c

    total = tl.zeros(at.shape, ACC)
    product = tl.zeros(at.shape, ACC)
    first = first_y + strip * ROWS
    odd0, even0 = _row(grad_ptr, first, H, W, stride_h, stride_w, column, at, in_c,
                       t0, t1, t2, t3, ACC)  # fmt: skip
    for r in range(ROWS):
        i = first + r
        odd1, even1 = _row(grad_ptr, i + 1, H, W, stride_h, stride_w, column, at, in_c,
                           t0, t1, t2, t3, ACC)  # fmt: skip
        for half in tl.static_range(2):
            row = 2 * i - 1 + pad_y + half
            above, below = (g0, g2) if half else (g1, g3)
            in_h = within(row, 0, OH, column)
            to = row * out_h + out
            xhat, da = _inner(x_ptr, to, in_odd & in_h, above * odd0 + below * odd1, norm,
                              SILU, ACC)  # fmt: skip
            total += da
            product += da * xhat
            xhat, da = _inner(x_ptr, to + out_w, in_even & in_h, above * even0 + below * even1,
                              norm, SILU, ACC)  # fmt: skip
            total += da
            product += da * xhat
        odd0, even0 = odd1, even1
    to = ((n * strips + strip) * across + block) * C + c[None, :]
    tl.store(da_ptr + to, tl.sum(total, 0)[None, :], mask=in_c)
    tl.store(product_ptr + to, tl.sum(product, 0)[None, :], mask=in_c)


@triton.jit
def _write(dx_ptr, x_ptr, to, mask, grad, skip, norm, factor, first, second,
           SILU: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    xhat, da = _inner(x_ptr, to, mask, grad, norm, SILU, ACC)
    dx = factor * da - (second * xhat + first) + skip
    tl.store(dx_ptr + to, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def write(
    grad_ptr, x_ptr, skip_ptr, taps_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr,
    first_ptr, second_ptr, dx_ptr,
    C, H, W, OH, OW, pad_x, pad_y, groups, channels, first_x, first_y, across, strips, blocks,
    stride_n, stride_c, stride_h, stride_w, out_n, out_c, out_h, out_w,
    K: tl.constexpr, GAIN: tl.constexpr, SILU: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dx = rstd * (scale * da - first - xhat * second) + the other branch's gradient."""
    n, strip, block, c = sample(tl.program_id(0), across, strips, blocks, BLOCK_C)
    norm = _norm(mean_ptr, rstd_ptr, scale_ptr, shift_ptr, n, c, C, groups, channels, ACC)
    mean_da = per_group(first_ptr, n, c, C, groups, channels) * norm[1]
    mean_product = per_group(second_ptr, n, c, C, groups, channels) * norm[1]
    factor = norm[2] * norm[1]
    grad_ptr += n * stride_n
    skip_ptr += n * stride_n
    x_ptr += n * out_n
    dx_ptr += n * out_n
    column = first_x + (block * BLOCK_X + tl.arange(0, BLOCK_X))[:, None]
    in_c = (c < C)[None, :]
    at = column * stride_w + c[None, :] * stride_c
    t0 = tap(taps_ptr, 0, K, True, ACC)
    t1 = tap(taps_ptr, 1, K, True, ACC)
    t2 = tap(taps_ptr, 2, K, True, ACC)
    t3 = tap(taps_ptr, 3, K, True, ACC)
    g0, g1, g2, g3 = t0 * GAIN, t1 * GAIN, t2 * GAIN, t3 * GAIN
    target = 2 * column - 1 + pad_x
    out = target * out_w + c[None, :] * out_c
    in_odd = (target >= 0) & (target < OW) & in_c
    in_even = (target + 1 >= 0) & (target + 1 < OW) & in_c

    first = first_y + strip * ROWS
    odd0, even0 = _row(grad_ptr, first, H, W, stride_h, stride_w, column, at, in_c,
                       t0, t1, t2, t3, ACC)  # fmt: skip
    odd_x0, even_x0 = _row(skip_ptr, first, H, W, stride_h, stride_w, column, at, in_c,
                           t0, t1, t2, t3, ACC)  # fmt: skip
    for r in range(ROWS):
        i = first + r
        odd1, even1 = _row(grad_ptr, i + 1, H, W, stride_h, stride_w, column, at, in_c,
                           t0, t1, t2, t3, ACC)  # fmt: skip
        odd_x1, even_x1 = _row(skip_ptr, i + 1, H, W, stride_h, stride_w, column, at, in_c,
                               t0, t1, t2, t3, ACC)  # fmt: skip
        for half in tl.static_range(2):
            row = 2 * i - 1 + pad_y + half
            above, below = (g0, g2) if half else (g1, g3)
            in_h = within(row, 0, OH, column)
            to = row * out_h + out
            _write(dx_ptr, x_ptr, to, in_odd & in_h, above * odd0 + below * odd1,
                   above * odd_x0 + below * odd_x1, norm, factor, mean_da, mean_product,
                   SILU, ACC)  # fmt: skip
            _write(dx_ptr, x_ptr, to + out_w, in_even & in_h, above * even0 + below * even1,
                   above * even_x0 + below * even_x1, norm, factor, mean_da, mean_product,
                   SILU, ACC)  # fmt: skip
        odd0, even0, odd_x0, even_x0 = odd1, even1, odd_x1, even_x1
