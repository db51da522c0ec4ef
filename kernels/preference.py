"""Which backends "auto" takes on CUDA tensors, most preferred first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from . import measured
from .layout import memory_format

AUTOMATIC = ("torch",)
"""Wherever nothing has been measured: backends that have been checked on a GPU. The others run
when asked for by name. The measured table is replaced by one command after a run of the GPU suite:
``python -m benchmarks.prefer build/gpu/results.json --write``."""

_SIZES = ((1 << 22, "small"), (1 << 26, "medium"))


def order(op: str, args: Sequence[Any]) -> tuple[str, ...]:
    """Backends for these arguments of an op, best first."""
    if not measured.TABLE:
        return AUTOMATIC
    x = max((a for a in args if isinstance(a, torch.Tensor)), key=lambda a: a.nbytes)
    last = memory_format(x) is torch.channels_last
    return measured.TABLE.get(key(op, x.dtype, last, x.nbytes), AUTOMATIC)


def key(op: str, dtype: torch.dtype, channels_last: bool, size: int) -> tuple[str, str, str, str]:
    """The entry of the measured table for an op on tensors of this kind.

    Args:
        op: registered op.
        dtype: of the largest tensor.
        channels_last: its memory order.
        size: its bytes.
    """
    name = next((name for limit, name in _SIZES if size < limit), "large")
    layout = "channels_last" if channels_last else "contiguous"
    return op, str(dtype).removeprefix("torch."), layout, name


def first(op: str, usable: Sequence[str]) -> str:
    """The backend that comes first for most kinds of tensors, among those usable."""
    orders = [names for (name, *_), names in measured.TABLE.items() if name == op] or [AUTOMATIC]
    leaders = Counter(next((n for n in names if n in usable), "torch") for names in orders)
    return leaders.most_common(1)[0][0]


def taken(names: Sequence[str]) -> list[str]:
    """Those of the backends that some tensors get."""
    orders = [AUTOMATIC, *measured.TABLE.values()]
    return [name for name in names if any(name in order for order in orders)]
