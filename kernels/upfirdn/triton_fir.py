"""Triton kernels for FIR filters, with leaky ReLU before or its derivative before or after them.

Every kernel works on tiles [columns or pixels, channels] of one sample. Half precision is widened
right after the load: Triton's interpreter cannot compute in bfloat16.
"""

# Of a kernel's parameters only the compile-time ones have a type to write down.
# mypy: allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

PLAIN = tl.constexpr(0)
"""Filter x."""
ACT = tl.constexpr(1)
"""Filter leaky_relu(x + bias)."""
TANGENT = tl.constexpr(2)
"""Filter x * leaky_relu'(z + bias)."""
MASK = tl.constexpr(3)
"""Filter x, then multiply by leaky_relu'(z + bias)."""

# No compilation of their own for sizes of 1 or multiples of 16: only strides decide about the
# width of loads.
_SIZES = [
    *("H", "W", "OH", "OW", "pad_x", "pad_y", "first_x", "first_y"),
    *("across", "strips", "blocks", "blocks_p", "blocks_c"),
]


@triton.jit
def leaky(v, SLOPE: tl.constexpr):
    """leaky_relu(v)."""
    if SLOPE <= 1.0:
        return tl.maximum(v, v * SLOPE)
    else:
        return tl.where(v > 0, v, v * SLOPE)


@triton.jit
def _masked(v, z_ptr, mask, bias, SLOPE: tl.constexpr, HAS_BIAS: tl.constexpr, ACC: tl.constexpr):
    """v * leaky_relu'(z + bias)."""
    z = tl.load(z_ptr, mask=mask, other=0.0).to(ACC)
    if HAS_BIAS:
        z += bias
    return tl.where(z > 0, v, v * SLOPE)


@triton.jit
def _value(
    x_ptr,
    z_ptr,
    at,
    mask,
    bias,
    MODE: tl.constexpr,
    SLOPE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr,
):
    """What the filter sees at the offsets ``at``; where masked, it may differ from 0."""
    v = tl.load(x_ptr + at, mask=mask, other=0.0).to(ACC)
    if MODE == ACT:
        if HAS_BIAS:
            v += bias
        v = leaky(v, SLOPE)
    if MODE == TANGENT:
        v = _masked(v, z_ptr + at, mask, bias, SLOPE, HAS_BIAS, ACC)
    return v


@triton.jit
def tap(taps_ptr, J: tl.constexpr, K: tl.constexpr, FLIP: tl.constexpr, ACC: tl.constexpr):
    """The weight of the J-th sample under the filter, 0 beyond its K taps."""
    if J < K:
        return tl.load(taps_ptr + (J if FLIP else K - 1 - J)).to(ACC)
    else:
        return tl.full([], 0.0, ACC)


@triton.jit
def sample(pid, across, strips, blocks, BLOCK_C: tl.constexpr):
    """Splits a program's number into (sample, strip, block across), and gives its channels."""
    channels = (pid % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    pid = pid // blocks
    block = pid % across
    pid = pid // across
    return (pid // strips).to(tl.int64), pid % strips, block, channels


@triton.jit
def _bias(bias_ptr, n, channels, C, PER_SAMPLE: tl.constexpr, ACC: tl.constexpr):
    if PER_SAMPLE:
        bias_ptr += n * C
    return tl.load(bias_ptr + channels, mask=channels < C, other=0.0).to(ACC)[None, :]


@triton.jit
def within(row, low, high, column):
    """low <= row < high, as long as ``column``.

    The interpreter of Triton 3.9 turns a single truth into an integer when it meets a mask.
    """
    row += tl.zeros_like(column)
    return (row >= low) & (row < high)


@triton.jit
def _row_down(x_ptr, z_ptr, row, H, W, stride_h, stride_w, column, at, in_c, bias, w,
              MODE: tl.constexpr, SLOPE: tl.constexpr, HAS_BIAS: tl.constexpr,
              ACC: tl.constexpr):  # fmt: skip
    """One row filtered for two output columns: samples 0-3 and 2-5 from ``column`` on."""
    in_h = within(row, 0, H, column)
    x_ptr += row * stride_h
    z_ptr += row * stride_h
    left = tl.zeros(at.shape, ACC)
    right = tl.zeros(at.shape, ACC)
    for j in tl.static_range(6):
        in_w = (column + j >= 0) & (column + j < W) & in_h
        v = _value(x_ptr, z_ptr, at + j * stride_w, in_w & in_c, bias, MODE, SLOPE, HAS_BIAS, ACC)
        if j < 4:
            left += w[j] * v
        if j >= 2:
            right += w[j + 2] * v
    return left, right, ((row >= 0) & (row < H)).to(ACC)


@triton.jit(do_not_specialize=_SIZES)
def down2(
    x_ptr, z_ptr, bias_ptr, taps_ptr, y_ptr,
    C, H, W, OH, OW, pad_x, pad_y, across, strips, blocks,
    stride_n, stride_c, stride_h, stride_w, out_n, out_c, out_h, out_w,
    K: tl.constexpr, FLIP: tl.constexpr, GAIN: tl.constexpr, MODE: tl.constexpr,
    SLOPE: tl.constexpr, HAS_BIAS: tl.constexpr, PER_SAMPLE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Downsampling by 2 with up to 4 taps: a window that rolls over ROWS output rows.

    Every input row is filtered along x once; an output row is what the two rows above left for it
    plus the two rows below. A thread makes two neighbouring columns from six loads.
    """
    n, strip, block, c = sample(tl.program_id(0), across, strips, blocks, BLOCK_C)
    x_ptr += n * stride_n
    z_ptr += n * stride_n
    y_ptr += n * out_n
    bias = _bias(bias_ptr, n, c, C, PER_SAMPLE, ACC) if HAS_BIAS else 0.0
    pair = (block * BLOCK_X + tl.arange(0, BLOCK_X))[:, None]
    in_c = (c < C)[None, :]
    column = 4 * pair - pad_x
    at = column * stride_w + c[None, :] * stride_c

    t0 = tap(taps_ptr, 0, K, FLIP, ACC)
    t1 = tap(taps_ptr, 1, K, FLIP, ACC)
    t2 = tap(taps_ptr, 2, K, FLIP, ACC)
    t3 = tap(taps_ptr, 3, K, FLIP, ACC)
    if MODE == ACT and HAS_BIAS:
        # leaky_relu(0 + bias) of the padding is not 0: its weights are.
        w = (
            tl.where((column >= 0) & (column < W), t0, 0.0),
            tl.where((column + 1 >= 0) & (column + 1 < W), t1, 0.0),
            tl.where((column + 2 >= 0) & (column + 2 < W), t2, 0.0),
            tl.where((column + 3 >= 0) & (column + 3 < W), t3, 0.0),
            tl.where((column + 2 >= 0) & (column + 2 < W), t0, 0.0),
            tl.where((column + 3 >= 0) & (column + 3 < W), t1, 0.0),
            tl.where((column + 4 >= 0) & (column + 4 < W), t2, 0.0),
            tl.where((column + 5 >= 0) & (column + 5 < W), t3, 0.0),
        )
    else:
        w = (t0, t1, t2, t3, t0, t1, t2, t3)
    g0, g1, g2, g3 = t0 * GAIN, t1 * GAIN, t2 * GAIN, t3 * GAIN

    first = strip * ROWS
    row = 2 * first - pad_y
    left0, right0, ok0 = _row_down(x_ptr, z_ptr, row, H, W, stride_h, stride_w, column, at, in_c,
                                   bias, w, MODE, SLOPE, HAS_BIAS, ACC)  # fmt: skip
    left1, right1, ok1 = _row_down(x_ptr, z_ptr, row + 1, H, W, stride_h, stride_w, column, at,
                                   in_c, bias, w, MODE, SLOPE, HAS_BIAS, ACC)  # fmt: skip
    left = (g0 * ok0) * left0 + (g1 * ok1) * left1
    right = (g0 * ok0) * right0 + (g1 * ok1) * right1
    out = 2 * pair * out_w + c[None, :] * out_c
    in_left = (2 * pair < OW) & in_c
    in_right = (2 * pair + 1 < OW) & in_c
    # A constant range: with numpy 2.4 the interpreter fails on bounds that are tensors.
    for r in range(ROWS):
        oy = first + r
        row = 2 * oy + 2 - pad_y
        left0, right0, ok0 = _row_down(x_ptr, z_ptr, row, H, W, stride_h, stride_w, column, at,
                                       in_c, bias, w, MODE, SLOPE, HAS_BIAS, ACC)  # fmt: skip
        left1, right1, ok1 = _row_down(x_ptr, z_ptr, row + 1, H, W, stride_h, stride_w, column, at,
                                       in_c, bias, w, MODE, SLOPE, HAS_BIAS, ACC)  # fmt: skip
        left += (g2 * ok0) * left0 + (g3 * ok1) * left1
        right += (g2 * ok0) * right0 + (g3 * ok1) * right1
        y = y_ptr + oy * out_h + out
        in_h = within(oy, 0, OH, column)
        tl.store(y, left.to(y_ptr.dtype.element_ty), mask=in_left & in_h)
        tl.store(y + out_w, right.to(y_ptr.dtype.element_ty), mask=in_right & in_h)
        left = (g0 * ok0) * left0 + (g1 * ok1) * left1
        right = (g0 * ok0) * right0 + (g1 * ok1) * right1


@triton.jit
def _row_same(x_ptr, row, H, W, stride_h, stride_w, column, at, in_c, t0, t1, t2, t3,
              ACC: tl.constexpr):  # fmt: skip
    """One row filtered for two neighbouring output columns, from five samples."""
    in_h = within(row, 0, H, column)
    x_ptr += row * stride_h
    w = (t0, t1, t2, t3)
    left = tl.zeros(at.shape, ACC)
    right = tl.zeros(at.shape, ACC)
    for j in tl.static_range(5):
        mask = (column + j >= 0) & (column + j < W) & in_h & in_c
        v = tl.load(x_ptr + (at + j * stride_w), mask=mask, other=0.0).to(ACC)
        if j < 4:
            left += w[j] * v
        if j >= 1:
            right += w[j - 1] * v
    return left, right


@triton.jit(do_not_specialize=_SIZES)
def same(
    x_ptr, z_ptr, bias_ptr, taps_ptr, y_ptr,
    C, H, W, OH, OW, pad_x, pad_y, across, strips, blocks,
    stride_n, stride_c, stride_h, stride_w, out_n, out_c, out_h, out_w,
    K: tl.constexpr, FLIP: tl.constexpr, GAIN: tl.constexpr, MODE: tl.constexpr,
    SLOPE: tl.constexpr, HAS_BIAS: tl.constexpr, PER_SAMPLE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Up to 4 taps without resampling: three unfinished output rows wait for the rows below."""
    n, strip, block, c = sample(tl.program_id(0), across, strips, blocks, BLOCK_C)
    x_ptr += n * stride_n
    y_ptr += n * out_n
    pair = (block * BLOCK_X + tl.arange(0, BLOCK_X))[:, None]
    in_c = (c < C)[None, :]
    column = 2 * pair - pad_x
    at = column * stride_w + c[None, :] * stride_c
    t0 = tap(taps_ptr, 0, K, FLIP, ACC)
    t1 = tap(taps_ptr, 1, K, FLIP, ACC)
    t2 = tap(taps_ptr, 2, K, FLIP, ACC)
    t3 = tap(taps_ptr, 3, K, FLIP, ACC)
    g0, g1, g2, g3 = t0 * GAIN, t1 * GAIN, t2 * GAIN, t3 * GAIN
    first = strip * ROWS
    left0 = tl.zeros(at.shape, ACC)
    right0 = tl.zeros(at.shape, ACC)
    left1, left2, right1, right2 = left0, left0, right0, right0
    out = 2 * pair * out_w + c[None, :] * out_c
    in_left = (2 * pair < OW) & in_c
    in_right = (2 * pair + 1 < OW) & in_c
    # The first three rows only fill the window.
    for r in range(ROWS + 3):
        oy = first - 3 + r
        left, right = _row_same(x_ptr, oy + 3 - pad_y, H, W, stride_h, stride_w, column, at, in_c,
                                t0, t1, t2, t3, ACC)  # fmt: skip
        inside = within(oy, first, OH, column)
        y = y_ptr + oy * out_h + out
        tl.store(y, (left0 + g3 * left).to(y_ptr.dtype.element_ty), mask=in_left & inside)
        tl.store(y + out_w, (right0 + g3 * right).to(y_ptr.dtype.element_ty),
                 mask=in_right & inside)  # fmt: skip
        left0, right0 = left1 + g2 * left, right1 + g2 * right
        left1, right1 = left2 + g1 * left, right2 + g1 * right
        left2, right2 = g0 * left, g0 * right


@triton.jit
def _row_up(x_ptr, row, H, W, stride_h, stride_w, column, at, in_c, t0, t1, t2, t3,
            ACC: tl.constexpr):  # fmt: skip
    """One row filtered for an even and an odd output column, from three samples."""
    in_h = within(row, 0, H, column)
    x_ptr += row * stride_h
    a = tl.load(x_ptr + at, mask=(column >= 0) & (column < W) & in_h & in_c, other=0.0).to(ACC)
    in_b = (column + 1 >= 0) & (column + 1 < W) & in_h & in_c
    b = tl.load(x_ptr + (at + stride_w), mask=in_b, other=0.0).to(ACC)
    in_d = (column + 2 >= 0) & (column + 2 < W) & in_h & in_c
    d = tl.load(x_ptr + (at + 2 * stride_w), mask=in_d, other=0.0).to(ACC)
    return t0 * a + t2 * b, t1 * b + t3 * d


@triton.jit
def _store_pair(y_ptr, z_ptr, even, odd, row, OH, at, in_even, in_odd, out_h, out_w, bias,
                MODE: tl.constexpr, SLOPE: tl.constexpr, HAS_BIAS: tl.constexpr,
                ACC: tl.constexpr):  # fmt: skip
    in_h = within(row, 0, OH, at)
    y_ptr += row * out_h
    if MODE == MASK:
        z_ptr += row * out_h
        even = _masked(even, z_ptr + at, in_even & in_h, bias, SLOPE, HAS_BIAS, ACC)
        odd = _masked(odd, z_ptr + (at + out_w), in_odd & in_h, bias, SLOPE, HAS_BIAS, ACC)
    tl.store(y_ptr + at, even.to(y_ptr.dtype.element_ty), mask=in_even & in_h)
    tl.store(y_ptr + (at + out_w), odd.to(y_ptr.dtype.element_ty), mask=in_odd & in_h)


@triton.jit(do_not_specialize=_SIZES)
def up2(
    x_ptr, z_ptr, bias_ptr, taps_ptr, y_ptr,
    C, H, W, OH, OW, pad_x, pad_y, first_x, first_y, across, strips, blocks,
    stride_n, stride_c, stride_h, stride_w, out_n, out_c, out_h, out_w,
    K: tl.constexpr, FLIP: tl.constexpr, GAIN: tl.constexpr, MODE: tl.constexpr,
    SLOPE: tl.constexpr, HAS_BIAS: tl.constexpr, PER_SAMPLE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Upsampling by 2 with up to 4 taps: a window that rolls over ROWS input rows.

    Outputs 2 i + pad and 2 i + 1 + pad lie on samples i, i + 1 and i + 1, i + 2; i runs from
    first_x, first_y on.
    """
    n, strip, block, c = sample(tl.program_id(0), across, strips, blocks, BLOCK_C)
    x_ptr += n * stride_n
    z_ptr += n * out_n
    y_ptr += n * out_n
    bias = _bias(bias_ptr, n, c, C, PER_SAMPLE, ACC) if HAS_BIAS else 0.0
    column = first_x + (block * BLOCK_X + tl.arange(0, BLOCK_X))[:, None]
    in_c = (c < C)[None, :]
    at = column * stride_w + c[None, :] * stride_c
    t0 = tap(taps_ptr, 0, K, FLIP, ACC)
    t1 = tap(taps_ptr, 1, K, FLIP, ACC)
    t2 = tap(taps_ptr, 2, K, FLIP, ACC)
    t3 = tap(taps_ptr, 3, K, FLIP, ACC)
    g0, g1, g2, g3 = t0 * GAIN, t1 * GAIN, t2 * GAIN, t3 * GAIN
    target = 2 * column + pad_x
    out = target * out_w + c[None, :] * out_c
    in_even = (target >= 0) & (target < OW) & in_c
    in_odd = (target + 1 >= 0) & (target + 1 < OW) & in_c

    first = first_y + strip * ROWS
    even0, odd0 = _row_up(x_ptr, first, H, W, stride_h, stride_w, column, at, in_c,
                          t0, t1, t2, t3, ACC)  # fmt: skip
    even1, odd1 = _row_up(x_ptr, first + 1, H, W, stride_h, stride_w, column, at, in_c,
                          t0, t1, t2, t3, ACC)  # fmt: skip
    for r in range(ROWS):
        i = first + r
        even2, odd2 = _row_up(x_ptr, i + 2, H, W, stride_h, stride_w, column, at, in_c,
                              t0, t1, t2, t3, ACC)  # fmt: skip
        row = 2 * i + pad_y
        _store_pair(y_ptr, z_ptr, g0 * even0 + g2 * even1, g0 * odd0 + g2 * odd1, row, OH, out,
                    in_even, in_odd, out_h, out_w, bias, MODE, SLOPE, HAS_BIAS, ACC)  # fmt: skip
        _store_pair(y_ptr, z_ptr, g1 * even1 + g3 * even2, g1 * odd1 + g3 * odd2, row + 1, OH, out,
                    in_even, in_odd, out_h, out_w, bias, MODE, SLOPE, HAS_BIAS, ACC)  # fmt: skip
        even0, odd0 = even1, odd1
        even1, odd1 = even2, odd2


@triton.jit(do_not_specialize=_SIZES)
def general(
    x_ptr, z_ptr, bias_ptr, taps_ptr, y_ptr,
    C, H, W, OH, OW, pad_x, pad_y, blocks_p, blocks_c,
    stride_n, stride_c, stride_h, stride_w, out_n, out_c, out_h, out_w,
    KY: tl.constexpr, KX: tl.constexpr, SEPARABLE: tl.constexpr, UP_X: tl.constexpr,
    UP_Y: tl.constexpr, DOWN_X: tl.constexpr, DOWN_Y: tl.constexpr, PHASE_X: tl.constexpr,
    PHASE_Y: tl.constexpr, FLIP: tl.constexpr,
    GAIN: tl.constexpr, MODE: tl.constexpr, SLOPE: tl.constexpr, HAS_BIAS: tl.constexpr,
    PER_SAMPLE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Any factors and taps: every output gathers the samples under its filter's phase."""
    n, _, block, c = sample(tl.program_id(0), blocks_p, 1, blocks_c, BLOCK_C)
    x_ptr += n * stride_n
    bias = _bias(bias_ptr, n, c, C, PER_SAMPLE, ACC) if HAS_BIAS else 0.0
    pixel = (block * BLOCK_P + tl.arange(0, BLOCK_P))[:, None]
    oy, ox = pixel // OW, pixel % OW
    in_out = (oy < OH) & (c < C)[None, :]
    start_y, start_x = oy * DOWN_Y - pad_y, ox * DOWN_X - pad_x
    # The first tap of an output's phase makes start + tap a multiple of UP; PHASE is pad % UP.
    # No remainder is taken of negative numbers: Triton and its interpreter differ there.
    tap_y = (PHASE_Y + oy * (DOWN_Y * (UP_Y - 1))) % UP_Y
    tap_x = (PHASE_X + ox * (DOWN_X * (UP_X - 1))) % UP_X
    z_at = c[None, :] * stride_c
    if MODE == TANGENT:
        z_ptr += n * stride_n
    acc = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    for iy in range((KY + UP_Y - 1) // UP_Y):
        jy = tap_y + iy * UP_Y
        y = (start_y + jy) // UP_Y
        in_y = (jy < KY) & (start_y + jy >= 0) & (y < H)
        ky = jy if FLIP else KY - 1 - jy
        if SEPARABLE:
            w_y = tl.load(taps_ptr + ky, mask=in_y, other=0.0).to(ACC)
        for ix in tl.static_range((KX + UP_X - 1) // UP_X):
            jx = tap_x + ix * UP_X
            x = (start_x + jx) // UP_X
            inside = in_y & (jx < KX) & (start_x + jx >= 0) & (x < W)
            kx = jx if FLIP else KX - 1 - jx
            if SEPARABLE:
                w = w_y * tl.load(taps_ptr + kx, mask=inside, other=0.0).to(ACC)
            else:
                w = tl.load(taps_ptr + ky * KX + kx, mask=inside, other=0.0).to(ACC)
            at = y * stride_h + x * stride_w + z_at
            acc += w * _value(x_ptr, z_ptr, at, inside & in_out, bias, MODE, SLOPE, HAS_BIAS, ACC)
    acc *= GAIN
    out = n * out_n + (oy * out_h + ox * out_w + c[None, :] * out_c)
    if MODE == MASK:
        acc = _masked(acc, z_ptr + out, in_out, bias, SLOPE, HAS_BIAS, ACC)
    tl.store(y_ptr + out, acc.to(y_ptr.dtype.element_ty), mask=in_out)
