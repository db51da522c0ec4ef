"""Bias + leaky ReLU with Triton, alone or around FIR downsampling by 2."""

# Of a kernel's parameters only the compile-time ones have a type to write down.
# mypy: allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..layout import in_order_of, memory_format
from ..triton_support import cdiv, flat_block, on_device_of, tile
from ..upfirdn import triton_fir
from ..upfirdn.op import output_size
from ..upfirdn.triton_impl import Activation, fir
from .ref import down_padding

leaky = triton_fir.leaky


@triton.jit
def act_kernel(
    x_ptr, bias_ptr, y_ptr, rows, columns, channels, samples_rows, across,
    ALONG: tl.constexpr, PER_SAMPLE: tl.constexpr, SLOPE: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """scale * leaky_relu(x + bias) of x [rows, columns].

    ALONG: columns are channels, and samples_rows rows make a sample; else rows are (n, c).
    """
    pid = tl.program_id(0).to(tl.int64)
    column = (pid % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    if ALONG and PER_SAMPLE:
        # Tiles do not cross samples.
        tiles = (samples_rows + BLOCK_R - 1) // BLOCK_R
        n = pid // across // tiles
        row = ((pid // across) % tiles) * BLOCK_R + tl.arange(0, BLOCK_R)
        in_r = row < samples_rows
        row = n * samples_rows + row
        bias_ptr += n * columns
    else:
        row = (pid // across) * BLOCK_R + tl.arange(0, BLOCK_R)
        in_r = row < rows
    mask = in_r[:, None] & (column < columns)[None, :]
    if ALONG:
        bias = tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(ACC)[None, :]
    else:
        at = row if PER_SAMPLE else row % channels
        bias = tl.load(bias_ptr + at, mask=in_r, other=0.0).to(ACC)[:, None]
    offset = row[:, None] * columns + column[None, :]
    v = tl.load(x_ptr + offset, mask=mask, other=0.0).to(ACC) + bias
    v = leaky(v, SLOPE) * SCALE
    tl.store(y_ptr + offset, v.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def flat_kernel(
    x_ptr, mask_ptr, y_ptr, count,
    GRAD: tl.constexpr, SLOPE: tl.constexpr, SCALE: tl.constexpr,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """scale * leaky_relu(x), or GRAD: x * scale * (1 where the mask tensor > 0, else slope)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    v = tl.load(x_ptr + at, mask=inside, other=0.0).to(ACC)
    if GRAD:
        z = tl.load(mask_ptr + at, mask=inside, other=0.0).to(ACC)
        v = tl.where(z > 0, v, v * SLOPE)
    else:
        v = leaky(v, SLOPE)
    tl.store(y_ptr + at, (v * SCALE).to(y_ptr.dtype.element_ty), mask=inside)


def bias_leaky_relu(
    x: torch.Tensor, bias: torch.Tensor | None, slope: float, scale: float
) -> torch.Tensor:
    """See ``op.bias_leaky_relu``."""
    y = torch.empty_like(x)
    if y.numel() == 0:
        return y
    if bias is None:
        _flat(_dense(x, y), y, y, slope, scale, grad=False)
        return y
    last = x.ndim > 2 and x.movedim(1, -1).is_contiguous()
    if not last:
        # Dense orders other than NCHW and NHWC pass through an NCHW copy.
        x = x.contiguous()
    out = y if y.stride() == x.stride() else torch.empty_like(x)
    n, channels = x.shape[:2]
    space = x[0, 0].numel()
    per_sample = bias.ndim == 2
    rows, columns = (n * space, channels) if last else (n * channels, space)
    height = space if last and per_sample else rows
    block_r, block_c = tile(height, columns, 4096, minor=1024)
    across = cdiv(columns, block_c)
    tiles = cdiv(height, block_r) * (rows // height)
    with on_device_of(x):
        act_kernel[(tiles * across,)](
            x,
            bias.contiguous(),
            out,
            rows,
            columns,
            channels,
            height,
            across,
            ALONG=last,
            PER_SAMPLE=per_sample,
            SLOPE=slope,
            SCALE=scale,
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            ACC=_accumulator(x),
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out if out is y else y.copy_(out)


def bias_leaky_relu_grad(
    grad: torch.Tensor, y: torch.Tensor, slope: float, scale: float
) -> torch.Tensor:
    """grad * scale * (1 where y > 0 else slope)."""
    out = torch.empty_like(y)
    if out.numel():
        _flat(_dense(grad, out), _dense(y, out), out, slope, scale, grad=True)
    return out


def _dense(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """x in the memory order of a dense tensor."""
    if x.stride() == like.stride():
        return x
    return torch.empty_like(like, dtype=x.dtype).copy_(x)


def _flat(
    x: torch.Tensor, mask: torch.Tensor, y: torch.Tensor, slope: float, scale: float, grad: bool
) -> None:
    count = y.numel()
    block = flat_block(count)
    with on_device_of(y):
        flat_kernel[(cdiv(count, block),)](
            x,
            mask,
            y,
            count,
            GRAD=grad,
            SLOPE=slope,
            SCALE=scale,
            BLOCK=block,
            ACC=_accumulator(y),
            num_warps=4,
            enable_fp_fusion=True,
        )


def _accumulator(x: torch.Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _down(
    x: torch.Tensor,
    z: torch.Tensor,
    bias: torch.Tensor | None,
    taps: torch.Tensor,
    slope: float,
    mode: tl.constexpr,
) -> torch.Tensor:
    order = memory_format(z)
    padding = down_padding(taps)
    size = output_size(z.shape, taps.shape, [1, 1], [2, 2], padding)
    y = torch.empty((*z.shape[:2], *size), dtype=z.dtype, device=z.device, memory_format=order)
    x, z = x.contiguous(memory_format=order), z.contiguous(memory_format=order)
    fir(x, taps, [1, 1], [2, 2], padding, False, 1.0, y, Activation(mode, z, bias, slope))
    return y


def bias_leaky_relu_down(
    x: torch.Tensor, bias: torch.Tensor | None, taps: torch.Tensor, slope: float
) -> torch.Tensor:
    """FIR downsampling by 2 of leaky_relu(x + bias)."""
    return _down(x, x, bias, taps, slope, triton_fir.ACT)


def bias_leaky_relu_down_tangent(
    v: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    taps: torch.Tensor,
    slope: float,
) -> torch.Tensor:
    """FIR downsampling by 2 of leaky_relu'(x + bias) * v."""
    return _down(v, x, bias, taps, slope, triton_fir.TANGENT)


def bias_leaky_relu_down_grad(
    grad: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    taps: torch.Tensor,
    slope: float,
) -> torch.Tensor:
    """leaky_relu'(x + bias) * (adjoint of FIR downsampling by 2)(grad)."""
    order = memory_format(x)
    k, before = taps.shape[-1], down_padding(taps)[0]
    padding = []
    for size, out in ((x.shape[3], grad.shape[3]), (x.shape[2], grad.shape[2])):
        padding += [k - before - 1, size - 2 * out + before]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=order)
    mask = Activation(triton_fir.MASK, x.contiguous(memory_format=order), bias, slope)
    grad = grad.contiguous(memory_format=order)
    fir(grad, taps, [2, 2], [1, 1], padding, True, 1.0, y, mask)
    return in_order_of(x, y)
