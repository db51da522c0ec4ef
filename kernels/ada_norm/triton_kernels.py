"""Triton kernels of adaptive group norm + SiLU: two passes over memory in each direction.

The first pass leaves sums per (sample, chunk of pixels, channel), the second kernel combines them
per group in a fixed order (no atomics: results repeat), the third applies. Tiles are [pixels,
channels] with strides for both, so one kernel serves NHWC and NCHW.
"""

# Of a kernel's parameters only the compile-time ones have a type to write down.
# mypy: allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _place(pid, chunks, blocks, BLOCK_C: tl.constexpr):
    """Splits a program's number into (sample, chunk), and gives its channels."""
    channels = (pid % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    pid = pid // blocks
    return (pid // chunks).to(tl.int64), pid % chunks, channels


@triton.jit
def _load(ptr, row, S, in_c, at, stride_s, ACC: tl.constexpr):
    mask = (row < S)[:, None] & in_c
    return tl.load(ptr + (row[:, None] * stride_s + at), mask=mask, other=0.0).to(ACC)


@triton.jit
def moments(
    x_ptr, mean_ptr, square_ptr, C, S, chunks, blocks, stride_n, stride_s, stride_c,
    STEPS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of every (sample, chunk, channel).

    Sums are taken relative to the chunk's first pixel, so that a large mean does not cancel.
    """
    n, chunk, c = _place(tl.program_id(0), chunks, blocks, BLOCK_C)
    in_c = (c < C)[None, :]
    x_ptr += n * stride_n
    at = c[None, :] * stride_c
    first = chunk * (STEPS * BLOCK_S)
    origin = tl.load(x_ptr + (first * stride_s + at), mask=in_c, other=0.0).to(ACC)
    total = tl.zeros([BLOCK_S, BLOCK_C], ACC)
    square = tl.zeros([BLOCK_S, BLOCK_C], ACC)
    for step in range(STEPS):
        row = first + step * BLOCK_S + tl.arange(0, BLOCK_S)
        d = _load(x_ptr, row, S, in_c, at, stride_s, ACC) - origin
        d = tl.where((row < S)[:, None], d, 0.0)
        total += d
        square += d * d
    count = tl.minimum(S - first, STEPS * BLOCK_S).to(ACC)
    total = tl.sum(total, 0)[None, :]
    square = tl.sum(square, 0)[None, :]
    to = (n * chunks + chunk) * C + c[None, :]
    tl.store(mean_ptr + to, origin + total / count, mask=in_c)
    tl.store(square_ptr + to, square - total * (total / count), mask=in_c)


@triton.jit
def combine_moments(
    means_ptr, squares_ptr, mean_ptr, rstd_ptr, C, S, chunks, chunk_size, groups,
    EPS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Mean and inverse deviation of one group from those of its chunks and channels."""
    pid = tl.program_id(0)
    n = (pid // groups).to(tl.int64)
    channel = (pid % groups) * CHANNELS + tl.arange(0, BLOCK_C)[None, :]
    in_c = tl.arange(0, BLOCK_C)[None, :] < CHANNELS
    chunk = tl.arange(0, BLOCK_K)[:, None]
    mask = (chunk < chunks) & in_c
    at = (n * chunks + chunk) * C + channel
    means = tl.load(means_ptr + at, mask=mask, other=0.0)
    squares = tl.load(squares_ptr + at, mask=mask, other=0.0)
    sizes = tl.where(mask, tl.minimum(S - chunk * chunk_size, chunk_size).to(ACC), 0.0)
    count = S * CHANNELS
    mean = tl.sum(tl.sum(means * sizes, 1), 0) / count
    deviation = means - mean
    square = tl.sum(tl.sum(squares + deviation * deviation * sizes, 1), 0)
    tl.store(mean_ptr + pid, mean)
    variance = square / count + EPS
    # The correctly rounded root exists for float32 only.
    root = tl.sqrt_rn(variance) if ACC == tl.float32 else tl.sqrt(variance)  # noqa: SIM300
    tl.store(rstd_ptr + pid, 1.0 / root)


@triton.jit
def per_channel(ptr, n, c, C, ACC: tl.constexpr):
    return tl.load(ptr + n * C + c, mask=c < C, other=0.0).to(ACC)[None, :]


@triton.jit
def per_group(ptr, n, c, C, groups, channels):
    return tl.load(ptr + n * groups + c // channels, mask=c < C, other=0.0)[None, :]


@triton.jit
def apply(
    x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, y_ptr,
    N, C, S, chunks, blocks, groups, channels, stride_n, stride_s, stride_c,
    SILU: tl.constexpr, STEPS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """silu(scale * xhat + shift)."""
    n, chunk, c = _place(tl.program_id(0), chunks, blocks, BLOCK_C)
    # The statistics pass read the last samples last: they are still in the cache.
    n = N - 1 - n
    in_c = (c < C)[None, :]
    rstd = per_group(rstd_ptr, n, c, C, groups, channels)
    mean = per_group(mean_ptr, n, c, C, groups, channels)
    factor = per_channel(scale_ptr, n, c, C, ACC) * rstd
    shift = per_channel(shift_ptr, n, c, C, ACC)
    x_ptr += n * stride_n
    y_ptr += n * stride_n
    at = c[None, :] * stride_c
    for step in range(STEPS):
        row = (chunk * STEPS + step) * BLOCK_S + tl.arange(0, BLOCK_S)
        a = (_load(x_ptr, row, S, in_c, at, stride_s, ACC) - mean) * factor + shift
        if SILU:
            a = a * tl.sigmoid(a)
        to = y_ptr + (row[:, None] * stride_s + at)
        tl.store(to, a.to(y_ptr.dtype.element_ty), mask=(row < S)[:, None] & in_c)


@triton.jit
def _inner(grad_ptr, x_ptr, row, S, in_c, at, stride_s, mean, rstd, scale, shift,
           SILU: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """xhat, and the gradient at scale * xhat + shift."""
    xhat = (_load(x_ptr, row, S, in_c, at, stride_s, ACC) - mean) * rstd
    da = _load(grad_ptr, row, S, in_c, at, stride_s, ACC)
    if SILU:
        a = scale * xhat + shift
        s = tl.sigmoid(a)
        da *= s + (a - a * s) * s
    return xhat, da


@triton.jit
def backward_sums(
    grad_ptr, x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, da_ptr, product_ptr,
    C, S, chunks, blocks, groups, channels, stride_n, stride_s, stride_c,
    SILU: tl.constexpr, STEPS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Sums of da and da * xhat over every (sample, chunk, channel)."""
    n, chunk, c = _place(tl.program_id(0), chunks, blocks, BLOCK_C)
    in_c = (c < C)[None, :]
    rstd = per_group(rstd_ptr, n, c, C, groups, channels)
    mean = per_group(mean_ptr, n, c, C, groups, channels)
    scale = per_channel(scale_ptr, n, c, C, ACC)
    shift = per_channel(shift_ptr, n, c, C, ACC)
    x_ptr += n * stride_n
    grad_ptr += n * stride_n
    at = c[None, :] * stride_c
    total = tl.zeros([BLOCK_S, BLOCK_C], ACC)
    product = tl.zeros([BLOCK_S, BLOCK_C], ACC)
    for step in range(STEPS):
        row = (chunk * STEPS + step) * BLOCK_S + tl.arange(0, BLOCK_S)
        # Rows beyond the sample add nothing: their grad is 0.
        xhat, da = _inner(grad_ptr, x_ptr, row, S, in_c, at, stride_s, mean, rstd, scale, shift,
                          SILU, ACC)  # fmt: skip
        total += da
        product += da * xhat
    to = (n * chunks + chunk) * C + c[None, :]
    tl.store(da_ptr + to, tl.sum(total, 0)[None, :], mask=in_c)
    tl.store(product_ptr + to, tl.sum(product, 0)[None, :], mask=in_c)


@triton.jit
def combine_sums(
    da_ptr, product_ptr, scale_ptr, grad_scale_ptr, grad_shift_ptr, first_ptr, second_ptr,
    C, S, chunks, groups,
    CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradients of one group's scale and shift, and the two means that dx needs."""
    pid = tl.program_id(0)
    n = (pid // groups).to(tl.int64)
    channel = (pid % groups) * CHANNELS + tl.arange(0, BLOCK_C)
    in_c = tl.arange(0, BLOCK_C) < CHANNELS
    chunk = tl.arange(0, BLOCK_K)[:, None]
    mask = (chunk < chunks) & in_c[None, :]
    at = (n * chunks + chunk) * C + channel[None, :]
    da = tl.sum(tl.load(da_ptr + at, mask=mask, other=0.0), 0)
    product = tl.sum(tl.load(product_ptr + at, mask=mask, other=0.0), 0)
    to = n * C + channel
    scale = tl.load(scale_ptr + to, mask=in_c, other=0.0).to(ACC)
    tl.store(grad_scale_ptr + to, product.to(grad_scale_ptr.dtype.element_ty), mask=in_c)
    tl.store(grad_shift_ptr + to, da.to(grad_shift_ptr.dtype.element_ty), mask=in_c)
    count = S * CHANNELS
    tl.store(first_ptr + pid, tl.sum(scale * da, 0) / count)
    tl.store(second_ptr + pid, tl.sum(scale * product, 0) / count)


@triton.jit
def backward_apply(
    grad_ptr, x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, first_ptr, second_ptr, dx_ptr,
    N, C, S, chunks, blocks, groups, channels, stride_n, stride_s, stride_c,
    SILU: tl.constexpr, STEPS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """dx = rstd * (scale * da - first - xhat * second)."""
    n, chunk, c = _place(tl.program_id(0), chunks, blocks, BLOCK_C)
    n = N - 1 - n
    in_c = (c < C)[None, :]
    rstd = per_group(rstd_ptr, n, c, C, groups, channels)
    mean = per_group(mean_ptr, n, c, C, groups, channels)
    first = per_group(first_ptr, n, c, C, groups, channels) * rstd
    second = per_group(second_ptr, n, c, C, groups, channels) * rstd
    scale = per_channel(scale_ptr, n, c, C, ACC)
    shift = per_channel(shift_ptr, n, c, C, ACC)
    factor = scale * rstd
    x_ptr += n * stride_n
    grad_ptr += n * stride_n
    dx_ptr += n * stride_n
    at = c[None, :] * stride_c
    for step in range(STEPS):
        row = (chunk * STEPS + step) * BLOCK_S + tl.arange(0, BLOCK_S)
        xhat, da = _inner(grad_ptr, x_ptr, row, S, in_c, at, stride_s, mean, rstd, scale, shift,
                          SILU, ACC)  # fmt: skip
        dx = factor * da - (second * xhat + first)
        to = dx_ptr + (row[:, None] * stride_s + at)
        tl.store(to, dx.to(dx_ptr.dtype.element_ty), mask=(row < S)[:, None] & in_c)
