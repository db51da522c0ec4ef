"""Triton kernels that normalise, activate and filter both branches while reading x once.

As those of upfirdn, with two sums for each output: of the normalised samples and of x. What lies
outside the image is 0 after the norm, not before it, so the weights there are 0, not the samples.
"""

# Of a kernel's parameters only the compile-time ones have a type to write down.
# mypy: allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from ..ada_norm.triton_kernels import per_channel, per_group
from ..upfirdn.triton_fir import sample, tap, within

# No compilation of their own for sizes of 1 or multiples of 16: only strides decide about the
# width of loads.
_SIZES = [
    *("H", "W", "OH", "OW", "pad_x", "pad_y", "first_x", "first_y"),
    *("across", "strips", "blocks", "blocks_p", "blocks_c", "groups", "channels"),
]


@triton.jit
def _affine(x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, n, c, C, groups, channels,
            ACC: tl.constexpr):  # fmt: skip
    """(mean, factor, shift) of every channel: the norm is (x - mean) * factor + shift.

    Half precision has no digits that subtracting the mean first would save: there the shift
    contains it, and mean is 0.
    """
    factor = per_channel(scale_ptr, n, c, C, ACC) * per_group(rstd_ptr, n, c, C, groups, channels)
    shift = per_channel(shift_ptr, n, c, C, ACC)
    mean = per_group(mean_ptr, n, c, C, groups, channels)
    if x_ptr.dtype.element_ty.primitive_bitwidth == 16:
        return 0.0, factor, shift - mean * factor
    else:
        return mean, factor, shift


@triton.jit
def _sigmoid(a):
    # Fewer instructions than tl.sigmoid: two special functions that need no care for denormal
    # numbers.
    root = tl.rsqrt(1.0 + tl.exp2(a * -1.4426950408889634))
    return root * root


@triton.jit
def _normed(x, affine, SILU: tl.constexpr):
    a = (x - affine[0]) * affine[1] + affine[2]
    if SILU:
        a = a * _sigmoid(a)
    return a


@triton.jit
def _inside(weight, at, size):
    """The weight of the sample ``at``, 0 outside the image."""
    return tl.where((at >= 0) & (at < size), weight, 0.0)


@triton.jit
def _row_down(x_ptr, row, H, W, stride_h, stride_w, column, at, in_c, affine, w,
              BOTH: tl.constexpr, SILU: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """One row filtered for two output columns, normalised and as it is; 1 inside, 0 outside."""
    in_h = within(row, 0, H, column)
    x_ptr += row * stride_h
    left = tl.zeros(at.shape, ACC)
    right, left_x, right_x = left, left, left
    for j in tl.static_range(6):
        in_w = (column + j >= 0) & (column + j < W) & in_h
        x = tl.load(x_ptr + (at + j * stride_w), mask=in_w & in_c, other=0.0).to(ACC)
        a = _normed(x, affine, SILU)
        if j < 4:
            left += w[j] * a
            if BOTH:
                left_x += w[j] * x
        if j >= 2:
            right += w[j + 2] * a
            if BOTH:
                right_x += w[j + 2] * x
    return left, right, left_x, right_x, ((row >= 0) & (row < H)).to(ACC)


@triton.jit(do_not_specialize=_SIZES)
def down2(
    x_ptr, h_ptr, skip_ptr, taps_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr,
    C, H, W, OH, OW, pad_x, pad_y, groups, channels, across, strips, blocks,
    stride_n, stride_c, stride_h, stride_w, out_n, out_c, out_h, out_w,
    K: tl.constexpr, GAIN: tl.constexpr, BOTH: tl.constexpr, SILU: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Downsampling by 2 with up to 4 taps: a window that rolls over ROWS output rows."""
    n, strip, block, c = sample(tl.program_id(0), across, strips, blocks, BLOCK_C)
    affine = _affine(x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, n, c, C, groups, channels,
                     ACC)  # fmt: skip
    x_ptr += n * stride_n
    h_ptr += n * out_n
    skip_ptr += n * out_n
    pair = (block * BLOCK_X + tl.arange(0, BLOCK_X))[:, None]
    in_c = (c < C)[None, :]
    column = 4 * pair - pad_x
    at = column * stride_w + c[None, :] * stride_c
    t0 = tap(taps_ptr, 0, K, False, ACC)
    t1 = tap(taps_ptr, 1, K, False, ACC)
    t2 = tap(taps_ptr, 2, K, False, ACC)
    t3 = tap(taps_ptr, 3, K, False, ACC)
    w = (
        _inside(t0, column, W), _inside(t1, column + 1, W),
        _inside(t2, column + 2, W), _inside(t3, column + 3, W),
        _inside(t0, column + 2, W), _inside(t1, column + 3, W),
        _inside(t2, column + 4, W), _inside(t3, column + 5, W),
    )  # fmt: skip
    g0, g1, g2, g3 = t0 * GAIN, t1 * GAIN, t2 * GAIN, t3 * GAIN
    out = 2 * pair * out_w + c[None, :] * out_c
    in_left = (2 * pair < OW) & in_c
    in_right = (2 * pair + 1 < OW) & in_c

    first = strip * ROWS
    left = tl.zeros(at.shape, ACC)
    right, left_x, right_x = left, left, left
    # A constant range: with numpy 2.4 the interpreter fails on bounds that are tensors. The first
    # two rows only open the sums of the first output.
    for r in range(ROWS + 1):
        oy = first + r - 1
        row = 2 * oy + 2 - pad_y
        l0, r0, lx0, rx0, ok0 = _row_down(x_ptr, row, H, W, stride_h, stride_w, column, at, in_c,
                                          affine, w, BOTH, SILU, ACC)  # fmt: skip
        l1, r1, lx1, rx1, ok1 = _row_down(x_ptr, row + 1, H, W, stride_h, stride_w, column, at,
                                          in_c, affine, w, BOTH, SILU, ACC)  # fmt: skip
        inside = within(oy, first, OH, column)
        to = oy * out_h + out
        end0, end1, begin0, begin1 = g2 * ok0, g3 * ok1, g0 * ok0, g1 * ok1
        h = left + end0 * l0 + end1 * l1
        tl.store(h_ptr + to, h.to(h_ptr.dtype.element_ty), mask=in_left & inside)
        h = right + end0 * r0 + end1 * r1
        tl.store(h_ptr + (to + out_w), h.to(h_ptr.dtype.element_ty), mask=in_right & inside)
        left, right = begin0 * l0 + begin1 * l1, begin0 * r0 + begin1 * r1
        if BOTH:
            x = left_x + end0 * lx0 + end1 * lx1
            tl.store(skip_ptr + to, x.to(h_ptr.dtype.element_ty), mask=in_left & inside)
            x = right_x + end0 * rx0 + end1 * rx1
            tl.store(skip_ptr + (to + out_w), x.to(h_ptr.dtype.element_ty), mask=in_right & inside)
            left_x, right_x = begin0 * lx0 + begin1 * lx1, begin0 * rx0 + begin1 * rx1


@triton.jit
def _row_up(x_ptr, row, H, W, stride_h, stride_w, column, at, in_c, affine, w,
            BOTH: tl.constexpr, SILU: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """One row filtered for an odd and an even output column, from two samples."""
    in_h = within(row, 0, H, column)
    x_ptr += row * stride_h
    in_a = (column >= 0) & (column < W) & in_h & in_c
    in_b = (column + 1 >= 0) & (column + 1 < W) & in_h & in_c
    a = tl.load(x_ptr + at, mask=in_a, other=0.0).to(ACC)
    b = tl.load(x_ptr + (at + stride_w), mask=in_b, other=0.0).to(ACC)
    odd_x, even_x = a, b
    if BOTH:
        odd_x, even_x = w[0] * a + w[1] * b, w[2] * a + w[3] * b
    ok = ((row >= 0) & (row < H)).to(ACC)
    a, b = _normed(a, affine, SILU) * ok, _normed(b, affine, SILU) * ok
    return w[0] * a + w[1] * b, w[2] * a + w[3] * b, odd_x, even_x


@triton.jit
def _store_row(ptr, row, OH, at, odd, even, in_odd, in_even, out_h, out_w):
    in_h = within(row, 0, OH, at)
    to = ptr + (row * out_h + at)
    tl.store(to, odd.to(ptr.dtype.element_ty), mask=in_odd & in_h)
    tl.store(to + out_w, even.to(ptr.dtype.element_ty), mask=in_even & in_h)


@triton.jit(do_not_specialize=_SIZES)
def up2(
    x_ptr, h_ptr, skip_ptr, taps_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr,
    C, H, W, OH, OW, pad_x, pad_y, groups, channels, first_x, first_y, across, strips, blocks,
    stride_n, stride_c, stride_h, stride_w, out_n, out_c, out_h, out_w,
    K: tl.constexpr, GAIN: tl.constexpr, BOTH: tl.constexpr, SILU: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Upsampling by 2 with up to 4 taps: a window that rolls over ROWS input rows.

    Outputs 2 i - 1 + pad and 2 i + pad both lie on samples i and i + 1; i runs from first_x,
    first_y on.
    """
    n, strip, block, c = sample(tl.program_id(0), across, strips, blocks, BLOCK_C)
    affine = _affine(x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, n, c, C, groups, channels,
                     ACC)  # fmt: skip
    x_ptr += n * stride_n
    h_ptr += n * out_n
    skip_ptr += n * out_n
    column = first_x + (block * BLOCK_X + tl.arange(0, BLOCK_X))[:, None]
    in_c = (c < C)[None, :]
    at = column * stride_w + c[None, :] * stride_c
    t0 = tap(taps_ptr, 0, K, False, ACC)
    t1 = tap(taps_ptr, 1, K, False, ACC)
    t2 = tap(taps_ptr, 2, K, False, ACC)
    t3 = tap(taps_ptr, 3, K, False, ACC)
    w = (
        _inside(t1, column, W), _inside(t3, column + 1, W),
        _inside(t0, column, W), _inside(t2, column + 1, W),
    )  # fmt: skip
    g0, g1, g2, g3 = t0 * GAIN, t1 * GAIN, t2 * GAIN, t3 * GAIN
    target = 2 * column - 1 + pad_x
    out = target * out_w + c[None, :] * out_c
    in_odd = (target >= 0) & (target < OW) & in_c
    in_even = (target + 1 >= 0) & (target + 1 < OW) & in_c

    first = first_y + strip * ROWS
    odd0, even0, odd_x0, even_x0 = _row_up(x_ptr, first, H, W, stride_h, stride_w, column, at,
                                           in_c, affine, w, BOTH, SILU, ACC)  # fmt: skip
    for r in range(ROWS):
        i = first + r
        odd1, even1, odd_x1, even_x1 = _row_up(x_ptr, i + 1, H, W, stride_h, stride_w, column, at,
                                               in_c, affine, w, BOTH, SILU, ACC)  # fmt: skip
        row = 2 * i - 1 + pad_y
        _store_row(h_ptr, row, OH, out, g1 * odd0 + g3 * odd1, g1 * even0 + g3 * even1,
                   in_odd, in_even, out_h, out_w)  # fmt: skip
        _store_row(h_ptr, row + 1, OH, out, g0 * odd0 + g2 * odd1, g0 * even0 + g2 * even1,
                   in_odd, in_even, out_h, out_w)  # fmt: skip
        if BOTH:
            _store_row(skip_ptr, row, OH, out, g1 * odd_x0 + g3 * odd_x1,
                       g1 * even_x0 + g3 * even_x1, in_odd, in_even, out_h, out_w)  # fmt: skip
            _store_row(skip_ptr, row + 1, OH, out, g0 * odd_x0 + g2 * odd_x1,
                       g0 * even_x0 + g2 * even_x1, in_odd, in_even, out_h, out_w)  # fmt: skip
        odd0, even0, odd_x0, even_x0 = odd1, even1, odd_x1, even_x1


@triton.jit(do_not_specialize=_SIZES)
def general(
    x_ptr, h_ptr, skip_ptr, taps_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr,
    C, H, W, OH, OW, pad_x, pad_y, groups, channels, blocks_p, blocks_c,
    stride_n, stride_c, stride_h, stride_w, out_n, out_c, out_h, out_w,
    K: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, PHASE: tl.constexpr,
    GAIN: tl.constexpr, BOTH: tl.constexpr, SILU: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Any taps: every output gathers the samples under its filter's phase; PHASE is pad % UP."""
    n, _, block, c = sample(tl.program_id(0), blocks_p, 1, blocks_c, BLOCK_C)
    affine = _affine(x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, n, c, C, groups, channels,
                     ACC)  # fmt: skip
    x_ptr += n * stride_n
    pixel = (block * BLOCK_P + tl.arange(0, BLOCK_P))[:, None]
    oy, ox = pixel // OW, pixel % OW
    in_out = (oy < OH) & (c < C)[None, :]
    start_y, start_x = oy * DOWN - pad_y, ox * DOWN - pad_x
    # No remainder is taken of negative numbers: Triton and its interpreter differ there.
    tap_y = (PHASE + oy * (DOWN * (UP - 1))) % UP
    tap_x = (PHASE + ox * (DOWN * (UP - 1))) % UP
    h = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    skip = h
    for iy in range((K + UP - 1) // UP):
        jy = tap_y + iy * UP
        y = (start_y + jy) // UP
        in_y = (jy < K) & (start_y + jy >= 0) & (y < H)
        w_y = tl.load(taps_ptr + (K - 1 - jy), mask=in_y, other=0.0).to(ACC)
        for ix in tl.static_range((K + UP - 1) // UP):
            jx = tap_x + ix * UP
            x = (start_x + jx) // UP
            inside = in_y & (jx < K) & (start_x + jx >= 0) & (x < W)
            # Outside it is 0, and so is what the norm makes of the masked sample.
            w = w_y * tl.load(taps_ptr + (K - 1 - jx), mask=inside, other=0.0).to(ACC)
            at = y * stride_h + x * stride_w + c[None, :] * stride_c
            v = tl.load(x_ptr + at, mask=inside & in_out, other=0.0).to(ACC)
            h += w * _normed(v, affine, SILU)
            if BOTH:
                skip += w * v
    out = n * out_n + (oy * out_h + ox * out_w + c[None, :] * out_c)
    tl.store(h_ptr + out, (h * GAIN).to(h_ptr.dtype.element_ty), mask=in_out)
    if BOTH:
        tl.store(skip_ptr + out, (skip * GAIN).to(h_ptr.dtype.element_ty), mask=in_out)
