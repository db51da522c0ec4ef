"""Histograms of per-sample statistics by timestep, added up on the device between two ticks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LOSSES = ("D/real", "D/fake", "D0/real", "D0/fake", "G/loss", "G/x0")
"""The statistics that are worth one."""
# Fine around 0, where losses lie, coarse far away: the bins' edges are equidistant in asinh.
_FARTHEST, _BINS = 100.0, 80


class Histogram(NamedTuple):
    """Counts between edges; empty bins at either end are left out."""

    counts: np.ndarray
    """[n]."""
    edges: np.ndarray
    """[n + 1]."""


class Histograms:
    """Counts in bins that are the same for all statistics.

    Adding never waits for the device, and the counts stay in place, so that a CUDA graph may add.

    Args:
        names: of the statistics to count; others are ignored.
        device: where the values are.
    """

    def __init__(self, names: Iterable[str], device: torch.device) -> None:
        self._names = frozenset(names)
        end = float(np.arcsinh(_FARTHEST))
        self._edges = np.sinh(np.linspace(-end, end, _BINS + 1))
        self._counts: dict[str, Tensor] = {}
        self._inner = torch.from_numpy(self._edges[1:-1]).to(device) if self._names else None
        self._last: dict[str, np.ndarray] = {}

    def add(self, name: str, values: Tensor, part: Tensor, parts: int, weights: Tensor) -> None:
        """Count values; those beyond the edges count in the outermost bins.

        Args:
            name: of the statistic.
            values: float64 [N].
            part: int64 [N], which histogram of the statistic.
            parts: how many it has.
            weights: float64 [N], 0 or 1.
        """
        if self._inner is None or name not in self._names:
            return
        if name not in self._counts:
            size = parts * _BINS
            self._counts[name] = torch.zeros(size, dtype=torch.float64, device=values.device)
        index = torch.bucketize(values, self._inner).add_(part * _BINS)
        self._counts[name].index_add_(0, index, weights)

    def tensors(self) -> list[Tensor]:
        """The counts, flat, in the order of the statistics' names."""
        return [self._counts[name] for name in sorted(self._counts)]

    def take(self, read: np.ndarray) -> None:
        """Keep what ``tensors`` held, and begin anew.

        Args:
            read: all of them one after another.
        """
        self._last = {}
        for name in sorted(self._counts):
            size = self._counts[name].numel()
            self._last[name], read = read[:size].reshape(-1, _BINS), read[size:]
            self._counts[name].zero_()

    def last(self) -> dict[str, list[Histogram | None]]:
        """What was taken last: statistic -> one histogram per part, None where nothing fell."""
        return {name: [self._trimmed(row) for row in rows] for name, rows in self._last.items()}

    def _trimmed(self, counts: np.ndarray) -> Histogram | None:
        where = np.flatnonzero(counts)
        if not len(where):
            return None
        first, end = where[0], where[-1] + 1
        return Histogram(counts[first:end], self._edges[first : end + 1])
