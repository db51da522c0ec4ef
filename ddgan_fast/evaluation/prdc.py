"""Improved precision and recall, density and coverage, by exact nearest neighbours in float64.

Distances are computed in blocks, so that memory stays bounded however many images there are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

PR_NEIGHBOURS = 3
DC_NEIGHBOURS = 5

_BLOCK = 1 << 24  # distances held at once


def precision_recall(
    real: torch.Tensor, fake: torch.Tensor, k: int = PR_NEIGHBOURS
) -> tuple[float, float]:
    """Share of fakes inside the real manifold, and of reals inside the generated one.

    Kynkäänniemi et al., "Improved Precision and Recall Metric" (2019): a manifold is the union of
    balls around its points that reach to the k-th nearest other point, boundary included.

    Args:
        real: features [N, D], N > k.
        fake: features [M, D], M > k.
        k: the neighbour that sets the radius.

    Raises:
        ValueError: features of different lengths, too few, or not finite.
    """
    real, fake = _prepared(real, fake, k)
    reach, fake_reach = _radii(real, k), _radii(fake, k)
    inside = 0
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, distances in _blocks(fake, real):
        inside += int((distances <= reach).any(1).sum())
        covered |= (distances <= fake_reach[rows, None]).any(0)
    return inside / len(fake), float(covered.double().mean())


def density_coverage(
    real: torch.Tensor, fake: torch.Tensor, k: int = DC_NEIGHBOURS
) -> tuple[float, float]:
    """How many real balls a fake lies in, over k, and the share of real balls with a fake inside.

    Naeem et al., "Reliable Fidelity and Diversity Metrics" (2020), equations 3 and 4; balls include
    their boundary.

    Args:
        real: features [N, D], N > k.
        fake: features [M, D], M > k.
        k: the neighbour that sets the radius.

    Raises:
        ValueError: features of different lengths, too few, or not finite.
    """
    real, fake = _prepared(real, fake, k)
    reach = _radii(real, k)
    balls = 0
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for _, distances in _blocks(fake, real):
        inside = distances <= reach
        balls += int(inside.sum())
        covered |= inside.any(0)
    return balls / (k * len(fake)), float(covered.double().mean())


def _prepared(
    real: torch.Tensor, fake: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"The features have different lengths: {real.shape[1]} and {fake.shape[1]}."
        )
    if min(len(real), len(fake)) <= k:
        raise ValueError(
            f"Neighbourhoods of {k} images need at least {k + 1} real and {k + 1} generated "
            f"images, but there are {len(real)} and {len(fake)}."
        )
    if not (torch.isfinite(real).all() and torch.isfinite(fake).all()):
        raise ValueError("The features are not finite: check the images for NaN.")
    # Near the origin |x|² + |y|² - 2xy loses the fewest digits.
    centre = real.double().mean(0)
    return real.double() - centre, fake.double() - centre


def _radii(x: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distance of each point to its k-th nearest other point, [N]."""
    found = []
    for rows, distances in _blocks(x, x):
        own = torch.arange(rows.start, rows.stop, device=x.device)
        distances[torch.arange(len(own), device=x.device), own] = torch.inf
        found.append(distances.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(found)


def _blocks(x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of x, and their squared distances to all of y."""
    step = max(1, _BLOCK // len(y))
    squares = y.square().sum(1)
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        part = x[rows]
        distances = part.square().sum(1, keepdim=True) + squares - 2.0 * (part @ y.T)
        yield rows, distances.clamp_(min=0.0)
