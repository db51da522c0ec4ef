"""FIR resampling in plain torch: the truth for the other backends, and what runs on CPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..layout import memory_format

# Above this length two 1-D passes cost less than one 2-D pass of k * k taps.
_SEPARABLE_FROM = 9


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
    taps = taps.to(x.dtype)
    if taps.ndim == 1:
        if taps.shape[0] >= _SEPARABLE_FROM:
            rows = _pass(x, taps[None, :], [up[0], 1], [down[0], 1], [*padding[:2], 0, 0], flip)
            taps_y = (taps * gain)[:, None]
            return _pass(rows, taps_y, [1, up[1]], [1, down[1]], [0, 0, *padding[2:]], flip)
        taps = torch.outer(taps, taps)
    if gain != 1.0:
        taps = taps * gain
    return _pass(x, taps, up, down, padding, flip)


def _pass(
    x: torch.Tensor,
    taps: torch.Tensor,
    up: list[int],
    down: list[int],
    padding: list[int],
    flip: bool,
) -> torch.Tensor:
    if up[0] == 1 and up[1] == 1:
        return _filter_down(x, taps, down, padding, flip)
    y = _filter_up(x, taps, up, padding, flip)
    if down[0] == 1 and down[1] == 1:
        return y
    return y[:, :, :: down[1], :: down[0]].contiguous(memory_format=memory_format(x))


def _filter_down(
    x: torch.Tensor, taps: torch.Tensor, down: list[int], padding: list[int], flip: bool
) -> torch.Tensor:
    x0, x1, y0, y1 = padding
    pad = [0, 0]
    if x0 == x1 and y0 == y1 and x0 >= 0 and y0 >= 0:
        pad = [y0, x0]
    elif any(padding):
        x = F.pad(x, padding)
    channels = x.shape[1]
    kernel = taps if flip else taps.flip(0, 1)
    kernel = kernel.expand(channels, 1, *taps.shape)
    return F.conv2d(x, kernel, stride=[down[1], down[0]], padding=pad, groups=channels)


def _filter_up(
    x: torch.Tensor, taps: torch.Tensor, up: list[int], padding: list[int], flip: bool
) -> torch.Tensor:
    # A transposed convolution computes only the products with non-zero samples. Its output is
    # the full convolution, of which upfirdn2d keeps the part that starts at k - 1 - pad0.
    channels = x.shape[1]
    kernel = (taps.flip(0, 1) if flip else taps).expand(channels, 1, *taps.shape)
    x0, x1, y0, y1 = padding
    crop, extra, rest = [], [], []
    for size, k, u, before, after in (
        (x.shape[2], taps.shape[0], up[1], y0, y1),
        (x.shape[3], taps.shape[1], up[0], x0, x1),
    ):
        out = size * u + before + after - k + 1
        start = k - 1 - before
        end = (size - 1) * u + k - start - out
        # What the transposed convolution cannot do itself (unequal crops, zeros outside) is left
        # to F.pad.
        both = max(min(start, end), 0)
        more = both - end if 0 < both - end < u else 0
        crop.append(both)
        extra.append(more)
        rest.append((both - start, both - end - more))
    y = F.conv_transpose2d(
        x, kernel, stride=[up[1], up[0]], padding=crop, output_padding=extra, groups=channels
    )
    if any(rest[0]) or any(rest[1]):
        y = F.pad(y, [*rest[1], *rest[0]])
    return y
