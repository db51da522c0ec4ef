"""Micro-batches whose gradients and statistics add up to those of the whole batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from .draws import MicroBatch


def scaled(loss: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return loss if scale is None else loss * scale


def shares(micros: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, float, bool]]:
    """Each micro-batch with its share of the samples, and whether it is the last."""
    total = sum(len(micro.draws.t) for micro in micros)
    for i, micro in enumerate(micros):
        yield micro, len(micro.draws.t) / total, i == len(micros) - 1


def reduce_only(module: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Let gradients accumulate locally until the last micro-batch, which reduces them."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return contextlib.nullcontext()


def losses_of(stats: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The per-sample statistics [N] that are losses."""
    kinds = ("/real", "/fake")
    found = {n: v for n, v in stats.items() if n.startswith("G/") or n.endswith(kinds)}
    found.pop("G/accuracy", None)  # of a classifier
    return list(found.values())


def together(collected: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([stats[name] for stats in collected]) for name in collected[0]}
