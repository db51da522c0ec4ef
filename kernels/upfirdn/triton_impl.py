"""FIR resampling with Triton: picks the kernel, its tile and its grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl

from ..layout import memory_format
from ..triton_support import INTERPRET, cdiv, on_device_of, strides, tile
from . import triton_fir
from .op import output_size

# Enough programs to fill a large GPU a few times over; below it, strips of rows get shorter.
_PROGRAMS = 2048
_ROWS = (32, 16, 8, 4)


@dataclass(frozen=True)
class Activation:
    """Leaky ReLU of z + bias, or its derivative, around a filter."""

    mode: Any
    """ACT, TANGENT or MASK of ``triton_fir``."""
    z: torch.Tensor
    """In the memory order of x (TANGENT) or of the result (MASK)."""
    bias: torch.Tensor | None
    slope: float


def upfirdn2d(
    x: torch.Tensor,
    taps: torch.Tensor,
    up: list[int],
    down: list[int],
    padding: list[int],
    flip: bool,
    gain: float,
) -> torch.Tensor:
    """See ``op.upfirdn2d``; up and down are [x, y], padding is [x0, x1, y0, y1]."""
    order = memory_format(x)
    size = output_size(x.shape, taps.shape, up, down, padding)
    y = torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=order)
    fir(x.contiguous(memory_format=order), taps, up, down, padding, flip, gain, y)
    return y


def fir(
    x: torch.Tensor,
    taps: torch.Tensor,
    up: list[int],
    down: list[int],
    padding: list[int],
    flip: bool,
    gain: float,
    y: torch.Tensor,
    activation: Activation | None = None,
) -> None:
    """Write the filtered x to y; both are dense in one memory order, NCHW or NHWC."""
    if y.numel() == 0:
        return
    act = activation or Activation(triton_fir.PLAIN, x, None, 1.0)
    if act.bias is not None:
        act = Activation(act.mode, act.z, act.bias.contiguous(), act.slope)
    taps = taps.contiguous()
    meta = {
        "FLIP": flip,
        "GAIN": gain,
        "MODE": act.mode,
        "SLOPE": act.slope,
        "HAS_BIAS": act.bias is not None,
        "PER_SAMPLE": act.bias is not None and act.bias.ndim == 2,
        "ACC": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
    pointers = (x, act.z, x if act.bias is None else act.bias, taps, y)
    sizes = (x.shape[1], *x.shape[2:], *y.shape[2:])
    steps = (*strides(x, range(4)), *strides(y, range(4)))
    short = taps.ndim == 1 and taps.shape[0] <= 4
    with on_device_of(x):
        if short and up == [1, 1] and down == [2, 2] and act.mode != triton_fir.MASK:
            _down2(pointers, sizes, steps, padding, meta)
        elif short and up == [2, 2] and down == [1, 1] and act.mode in (
            triton_fir.PLAIN,
            triton_fir.MASK,
        ):
            _up2(pointers, sizes, steps, padding, meta)
        elif short and up == down == [1, 1] and act.mode == triton_fir.PLAIN:
            launch_rolling(
                triton_fir.same,
                pointers,
                (*sizes, padding[0], padding[2]),
                steps,
                (cdiv(y.shape[3], 2), y.shape[2]),
                meta,
            )
        else:
            _general(pointers, sizes, steps, (up, down, padding), meta)


def _down2(
    pointers: tuple[torch.Tensor, ...],
    sizes: tuple[int, ...],
    steps: tuple[int, ...],
    padding: list[int],
    meta: dict[str, Any],
) -> None:
    out_h, out_w = sizes[3:]
    launch_rolling(
        triton_fir.down2,
        pointers,
        (*sizes, padding[0], padding[2]),
        steps,
        (cdiv(out_w, 2), out_h),
        meta,
    )


def _up2(
    pointers: tuple[torch.Tensor, ...],
    sizes: tuple[int, ...],
    steps: tuple[int, ...],
    padding: list[int],
    meta: dict[str, Any],
) -> None:
    (x0, _, y0, _), (out_h, out_w) = padding, sizes[3:]
    # The outputs of i are 2 i + pad and the one after it.
    first_x, first_y = -((x0 + 1) // 2), -((y0 + 1) // 2)
    last_x, last_y = (out_w - 1 - x0) // 2, (out_h - 1 - y0) // 2
    launch_rolling(
        triton_fir.up2,
        pointers,
        (*sizes, x0, y0, first_x, first_y),
        steps,
        (last_x - first_x + 1, last_y - first_y + 1),
        meta,
    )


def launch_rolling(
    kernel: Any,
    pointers: tuple[torch.Tensor, ...],
    scalars: tuple[int, ...],
    steps: tuple[int, ...],
    extent: tuple[int, int],
    meta: dict[str, Any],
) -> None:
    """Launch a kernel whose window rolls over rows; extent is (columns, rows) to go through."""
    (n, channels), taps = pointers[0].shape[:2], pointers[3]
    cut = rolling_cut(n, channels, extent, rows_first=steps[3] < steps[1])
    kernel[(n * cut.strips * cut.across * cut.blocks,)](
        *pointers,
        *scalars,
        cut.across,
        cut.strips,
        cut.blocks,
        *steps,
        K=taps.shape[0],
        ROWS=cut.rows,
        BLOCK_X=cut.block_x,
        BLOCK_C=cut.block_c,
        **meta,
    )


@dataclass(frozen=True)
class Cut:
    """How the launch of a rolling kernel is cut into programs."""

    block_x: int
    block_c: int
    rows: int
    """Of one strip."""
    across: int
    blocks: int
    """Of channels."""
    strips: int


def rolling_cut(n: int, channels: int, extent: tuple[int, int], rows_first: bool) -> Cut:
    """The cut for n samples; extent is (columns, rows) to go through."""
    columns, rows = extent
    block_x, block_c = rolling_tile(columns, channels, rows_first)
    across, blocks = cdiv(columns, block_x), cdiv(channels, block_c)
    strip = rows
    if not INTERPRET:
        # Rows beyond the image would be computed for nothing.
        fitting = [r for r in _ROWS if r < 2 * rows] or _ROWS[-1:]
        full = (r for r in fitting if n * across * blocks * cdiv(rows, r) >= _PROGRAMS)
        strip = next(full, fitting[-1])
    return Cut(block_x, block_c, strip, across, blocks, cdiv(rows, strip))


def rolling_tile(columns: int, channels: int, rows_first: bool) -> tuple[int, int]:
    """(BLOCK_X, BLOCK_C): eight channels per thread in NHWC, two columns in NCHW."""
    if rows_first:
        return tile(columns, channels, 256, rows_first=True)
    return tile(columns, channels, 1024)


def _general(
    pointers: tuple[torch.Tensor, ...],
    sizes: tuple[int, ...],
    steps: tuple[int, ...],
    resampling: tuple[list[int], list[int], list[int]],
    meta: dict[str, Any],
) -> None:
    (up, down, padding), taps = resampling, pointers[3]
    n, channels = pointers[0].shape[:2]
    pixels = sizes[3] * sizes[4]
    block_p, block_c = tile(pixels, channels, 1024, rows_first=steps[3] < steps[1])
    blocks = cdiv(pixels, block_p), cdiv(channels, block_c)
    triton_fir.general[(n * blocks[0] * blocks[1],)](
        *pointers,
        *sizes,
        padding[0],
        padding[2],
        *blocks,
        *steps,
        KY=taps.shape[0],
        KX=taps.shape[-1],
        SEPARABLE=taps.ndim == 1,
        UP_X=up[0],
        UP_Y=up[1],
        DOWN_X=down[0],
        DOWN_Y=down[1],
        PHASE_X=padding[0] % up[0],
        PHASE_Y=padding[2] % up[1],
        BLOCK_P=block_p,
        BLOCK_C=block_c,
        **meta,
    )
