"""What the Triton backends share on the host: whether Triton runs here, and what its kernels take.

This module does not import Triton, so that importing the ops stays light.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch

from .registry import lazy, register_backend

INTERPRET = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")
"""Triton's interpreter runs the kernels on CPU tensors. Fixed when this module is imported."""

MAX_TAPS = 16
_OLDEST = (3, 3)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Offsets within one sample are 32-bit; the sample's own offset is 64-bit.
_SAMPLE_LIMIT = 2**31 - 2**20
# In the interpreter a program costs milliseconds whatever its size.
_INTERPRETER_BLOCK = 65536


@cache
def why_not() -> str | None:
    """None when Triton's kernels run on this machine, else the reason in words."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        return f"Triton {version} is older than {'.'.join(map(str, _OLDEST))}"
    if INTERPRET:
        return None
    if not torch.cuda.is_available():
        return "there is no GPU, and TRITON_INTERPRET=1 was not set when the program started"
    if torch.cuda.get_device_capability() < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


def register(op: str, module: str) -> None:
    """Register the function of the op's name in ``module`` as its Triton backend."""
    run = lazy(f"{__package__}.{module}", op)
    register_backend(op, "triton", run, why_not=why_not, accepts=_CHECKS.get(op, _accepts))


def _accepts(*args: Any) -> str | None:
    x = args[0]
    for value in args:
        if not isinstance(value, torch.Tensor):
            continue
        if value.device != x.device:
            return f"its tensors lie on {x.device} and {value.device}"
        if value.is_floating_point() and value.dtype not in _DTYPES:
            return f"its kernels do not take {value.dtype}"
        if value.ndim and value[:1].numel() > _SAMPLE_LIMIT:
            return f"a sample of {value[:1].numel()} numbers is too large for 32-bit offsets"
    if x.device.type != "cuda" and not INTERPRET:
        return "CPU tensors need Triton's interpreter: set TRITON_INTERPRET=1 before the start"
    return None


def _accepts_taps(position: int, growth: Callable[..., int] = lambda *args: 1) -> Any:
    def accepts(*args: Any) -> str | None:
        taps = args[position]
        if max(taps.shape) > MAX_TAPS:
            return f"its kernels take up to {MAX_TAPS} taps, not {list(taps.shape)}"
        if args[0][:1].numel() * growth(*args) > _SAMPLE_LIMIT:
            return "the result of one sample is too large for 32-bit offsets"
        return _accepts(*args)

    return accepts


_CHECKS = {
    "upfirdn2d": _accepts_taps(1, lambda x, taps, up, *_: up[0] * up[1]),
    "ada_group_norm_silu_resample": _accepts_taps(3, lambda *args: 4 if args[5] else 1),
    "bias_leaky_relu_down": _accepts_taps(2),
    "bias_leaky_relu_down_grad": _accepts_taps(3),
    "bias_leaky_relu_down_tangent": _accepts_taps(3),
}


def on_device_of(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Make x's GPU the current one: Triton launches on the current device and stream."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def tile(
    rows: int, columns: int, size: int, *, rows_first: bool = False, minor: int = 64
) -> tuple[int, int]:
    """Powers of two (block of rows, block of columns) whose product is about ``size``.

    Args:
        rows: extent of the first axis.
        columns: extent of the second axis.
        size: elements of a tile on a GPU; the interpreter takes larger ones.
        rows_first: the first axis is contiguous in memory, not the second.
        minor: elements of a tile along the contiguous axis on a GPU.
    """
    if INTERPRET:
        size = minor = _INTERPRETER_BLOCK
    inner, outer = (rows, columns) if rows_first else (columns, rows)
    block = min(power_of_2(inner), max(minor, size // power_of_2(outer)), size)
    other = max(min(power_of_2(outer), size // block), 1)
    return (block, other) if rows_first else (other, block)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def strides(x: torch.Tensor, order: Sequence[int]) -> list[int]:
    """Strides of x along the axes ``order``; 0 along axes of size 1."""
    return [x.stride(axis) for axis in order]


def flat_block(count: int) -> int:
    """Elements per program of a kernel that takes its tensors as one row of numbers."""
    return min(power_of_2(count), _INTERPRETER_BLOCK if INTERPRET else 4096)


def draw_tile(n: int, per_sample: int) -> tuple[int, int]:
    """(samples, Philox blocks of four numbers) of a tile of the kernels that draw noise."""
    size = _INTERPRETER_BLOCK // 4 if INTERPRET else 256
    block = min(power_of_2(cdiv(per_sample, 4)), size)
    return min(power_of_2(n), size // block), block


def ordered(x: torch.Tensor, like: torch.Tensor | None = None) -> tuple[torch.Tensor, bool]:
    """x dense with channels first or last, and whether they are last; or in the order of like."""
    if like is not None:
        if x.stride() != like.stride():
            x = torch.empty_like(like, dtype=x.dtype).copy_(x)
        return x, False
    if x.ndim > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous():
        return x, True
    return x.contiguous(), False
