"""What operators must do: their arithmetic and the bytes that they read and write at least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..flops import Counter

_SECOND_READS = {
    "ddgan_fast::ada_group_norm_silu": 1,
    "ddgan_fast::ada_group_norm_silu_backward": 2,
}
"""Large tensors that an op must read twice: statistics and result both need them."""
_NO_TRAFFIC = ("aten::empty", "aten::new_empty", "aten::detach", "aten::alias", "aten::_unsafe")


@dataclass
class Cost:
    """What all calls of an operator come to.

    Attributes:
        calls: how many.
        flops: two per multiply-add of layers and attention; filters and norms count none.
        bytes: each tensor that a call takes or makes counts once, however small the cache.
    """

    calls: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0

    def add(self, other: Cost, share: float = 1.0) -> None:
        """Take in ``share`` of another one."""
        self.calls += share * other.calls
        self.flops += share * other.flops
        self.bytes += share * other.bytes


class CostCounter(Counter):
    """Costs by operator, as torch's dispatcher and its profiler call them."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, Cost] = {}

    def saw(self, func: Any, args: Any, kwargs: Any, result: Any, flops: int) -> None:
        """Count one call."""
        super().saw(func, args, kwargs, result, flops)
        name = func._schema.name
        size = 0 if func.is_view else traffic(name, (args, kwargs), result)
        self.costs.setdefault(name, Cost()).add(Cost(1, flops, size))


def traffic(name: str, inputs: Any, outputs: Any) -> int:
    """Fewest bytes that a call reads and writes, if nothing stays in a cache."""
    if name.startswith(_NO_TRAFFIC):
        return 0
    read = [_size(x) for x in tree_leaves(inputs) if isinstance(x, torch.Tensor)]
    written = [_size(x) for x in tree_leaves(outputs) if isinstance(x, torch.Tensor)]
    again = _SECOND_READS.get(name, 0) * max(read, default=0)
    return sum(read) + sum(written) + again


def _size(tensor: torch.Tensor) -> int:
    """Bytes of the tensor; an expanded one has fewer than its shape says."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
