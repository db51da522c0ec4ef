"""Kernel distance and Inception Score against numpy, and on cases whose answer is known."""

import math

import numpy as np
import pytest
import torch

from ddgan_fast.evaluation.kid import fitting_subset, inception_score, kernel_distance


def features(n: int, dim: int = 16, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + shift


def plain_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate, pair by pair."""
    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_agrees_with_the_sum_over_pairs():
    real, fake = features(40), features(24, seed=1, shift=0.3)
    mean, deviation = kernel_distance(real, fake, subsets=5, subset_size=12, seed=7)
    random = np.random.default_rng(7)
    want = []
    for _ in range(5):
        x, y = (
            part.double().numpy()[random.permutation(len(part))[:12]] for part in (real, fake)
        )
        want.append(plain_mmd2(x, y))
    assert mean == pytest.approx(np.mean(want), rel=1e-10)
    assert deviation == pytest.approx(np.std(want), rel=1e-10)


def test_nothing_between_samples_of_one_distribution_and_much_otherwise():
    real = features(3000)
    options = {"subsets": 30, "subset_size": 300}
    same, spread = kernel_distance(real, features(3000, seed=1), **options)
    other, _ = kernel_distance(real, features(3000, seed=1, shift=0.5), **options)
    assert abs(same) < 4 * spread
    assert same < 0.02 < 0.5 < other
    assert kernel_distance(real, features(3000, seed=1), **options) == (same, spread)


def test_subsets_are_half_of_a_small_set():
    assert [fitting_subset(n, 5000) for n in (2, 100, 1500, 2000, 9000)] == [2, 50, 750, 1000, 1000]
    assert kernel_distance(features(60), features(60, seed=1))[1] > 0


def plain_score(logits: np.ndarray, splits: int) -> list[float]:
    scores = []
    for part in np.array_split(logits, splits):
        p = np.exp(part) / np.exp(part).sum(1, keepdims=True)
        q = p.mean(0)
        scores.append(math.exp(np.mean([(row * np.log(row / q)).sum() for row in p])))
    return scores


def test_score_agrees_with_numpy():
    logits = 2 * features(103, 11, seed=3)
    want = plain_score(logits.double().numpy(), 10)
    mean, deviation = inception_score(logits)
    assert mean == pytest.approx(np.mean(want), rel=1e-12)
    assert deviation == pytest.approx(np.std(want), rel=1e-9)


def test_score_is_the_number_of_classes_at_best_and_1_at_worst():
    sure = 1000 * torch.eye(8).repeat(50, 1)
    assert inception_score(sure)[0] == pytest.approx(8)
    assert inception_score(torch.zeros(80, 8))[0] == pytest.approx(1)
    assert inception_score(sure[:1].repeat(80, 1))[0] == pytest.approx(1)


def test_refusals():
    with pytest.raises(ValueError, match="different lengths: 16 and 4"):
        kernel_distance(features(9), features(9, 4))
    with pytest.raises(ValueError, match="at least 2 real and 2 generated images, but there are 1"):
        kernel_distance(features(1), features(9))
    with pytest.raises(ValueError, match="at least 10 images"):
        inception_score(torch.zeros(9, 3))
