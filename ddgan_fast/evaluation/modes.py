"""Judge of generated points: which of the 25 Gaussians they found, how evenly and how sharply."""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

DEVIATION = 0.05
"""Standard deviation of each Gaussian."""
RADIUS = 4 * DEVIATION
"""Samples at most this far from a centre belong to its mode."""
FOUND_FROM = 0.008
"""Share of all samples from which on a mode counts as found: a fifth of its fair share."""

_BRIDGE = 0.05  # how far a bridge's samples may be from the straight line between two centres


class ModeScores(TypedDict):
    """What ``judge`` says about a set of points."""

    modes: int
    """Modes found, out of 25."""
    near: float
    """Share of the samples within 4 standard deviations of a centre."""
    kl: float
    """Kullback-Leibler divergence, in nats, of the near samples' modes from uniform."""
    spread: float
    """Standard deviation within the modes, the mean over the modes found; the truth is 0.05."""
    bridges: float
    """Share of the samples between two neighbouring modes: off both, but on the line."""
    counts: list[int]
    """Near samples of each mode; mode 5 * i + j has the centre (2 i - 4, 2 j - 4)."""


def centres() -> NDArray[np.float64]:
    """The 25 centres {-4, -2, 0, 2, 4}², [25, 2]."""
    axis = np.arange(-4.0, 5.0, 2.0)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(25, 2)


def judge(samples: ArrayLike) -> ModeScores:
    """Scores of points [N, 2] in the data's units.

    Raises:
        ValueError: samples of another shape, none at all, or not finite.
    """
    points = np.asarray(samples, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise ValueError(f"Points to be judged must be [N, 2], got {list(points.shape)}.")
    if not np.isfinite(points).all():
        raise ValueError("The points hold values that are not finite: the generator diverged.")
    nearest = np.clip(np.rint(points / 2), -2, 2) * 2
    offset = points - nearest
    near = np.hypot(*offset.T) <= RADIUS
    cells = nearest.astype(np.int64) // 2 + 2
    mode = cells[:, 0] * 5 + cells[:, 1]
    counts = np.bincount(mode[near], minlength=25)
    found = counts >= FOUND_FROM * len(points)
    spreads = [offset[near & (mode == k)].std(0).mean() for k in np.flatnonzero(found)]
    return ModeScores(
        modes=int(found.sum()),
        near=float(near.mean()),
        kl=_divergence(counts),
        spread=float(np.mean(spreads)) if spreads else math.nan,
        bridges=float(_on_bridge(points, offset, near).mean()),
        counts=counts.tolist(),
    )


def _divergence(counts: NDArray[np.int64]) -> float:
    total = counts.sum()
    if total == 0:
        return math.inf
    share = counts[counts > 0] / total
    return float((share * np.log(25 * share)).sum())


def _on_bridge(
    points: NDArray[np.float64], offset: NDArray[np.float64], near: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Samples outside every mode, within the square of centres, close to a line between two."""
    inside = (np.abs(points) <= 4.0 + _BRIDGE).all(1)
    return ~near & inside & (np.abs(offset).min(1) <= _BRIDGE)
