"""The identity by the compiled library."""

from __future__ import annotations

import torch

from ..cuda_library import op
from ..layout import in_order_of, memory_format


def identity(x: torch.Tensor) -> torch.Tensor:
    """y = x."""
    dense = x.contiguous(memory_format=memory_format(x))
    out = torch.empty_like(dense)
    op("identity")(dense, out)
    return in_order_of(x, out)
