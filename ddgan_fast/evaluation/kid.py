"""Kernel distance (KID on Inception's features) and Inception Score."""

from __future__ import annotations

import numpy as np
import torch

SUBSETS = 100
SUBSET_SIZE = 1000
SPLITS = 10


def kernel_distance(
    real: torch.Tensor,
    fake: torch.Tensor,
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> tuple[float, float]:
    """Squared maximum mean discrepancy under the kernel (x·y / D + 1)³, unbiased.

    Binkowski et al., "Demystifying MMD GANs" (2018), equation 4: the mean over random subsets,
    drawn without replacement. It may be negative.

    Args:
        real: features [N, D].
        fake: features [M, D].
        subsets: how many.
        subset_size: vectors from each side; at most half of those that there are.
        seed: of the subsets.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        ValueError: features of different lengths, or fewer than two.
    """
    _check(real, fake)
    size = fitting_subset(len(real), len(fake), subset_size)
    random = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        x, y = (
            part[torch.from_numpy(random.permutation(len(part))[:size])].double()
            for part in (real, fake)
        )
        values.append(_mmd2(x, y))
    found = torch.stack(values)
    return float(found.mean()), float(found.std(unbiased=False))


def fitting_subset(reals: int, fakes: int, subset_size: int = SUBSET_SIZE) -> int:
    """Images of a subset: half of the smaller set at most, or else the subsets hardly differ."""
    return max(2, min(subset_size, reals // 2, fakes // 2))


def inception_score(logits: torch.Tensor, splits: int = SPLITS) -> tuple[float, float]:
    """exp of the mean divergence of p(class | image) from p(class), per split.

    Salimans et al., "Improved Techniques for Training GANs" (2016). The splits are consecutive, as
    the samples are independent.

    Args:
        logits: [N, K]; Inception's without the bias of its last layer.
        splits: how many; each must hold an image.

    Returns:
        Mean and standard deviation over the splits.

    Raises:
        ValueError: fewer images than splits.
    """
    if len(logits) < splits:
        raise ValueError(f"the score needs at least {splits} images, one per split: {len(logits)}.")
    scores = []
    for part in logits.tensor_split(splits):
        log_p = part.double().log_softmax(1)
        p = log_p.exp()
        marginal = p.mean(0).clamp(min=1e-300).log()
        scores.append((p * (log_p - marginal)).sum(1).mean().exp())
    found = torch.stack(scores)
    return float(found.mean()), float(found.std(unbiased=False))


def _mmd2(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    n, dim = x.shape
    xx, yy, xy = (_cube(a @ b.T / dim + 1.0) for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (n * (n - 1))
    return within - 2.0 * xy.mean()


def _cube(x: torch.Tensor) -> torch.Tensor:
    return x * x * x  # several times as fast as a power


def _check(real: torch.Tensor, fake: torch.Tensor) -> None:
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"The features have different lengths: {real.shape[1]} and {fake.shape[1]}."
        )
    if min(len(real), len(fake)) < 2:
        raise ValueError(
            "The kernel distance needs at least 2 real and 2 generated images, but there are "
            f"{len(real)} and {len(fake)}."
        )
