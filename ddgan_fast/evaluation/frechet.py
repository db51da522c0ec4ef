"""Fréchet distance between Gaussians fitted to two sets of features, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class Gaussian:
    """Mean [D] and covariance [D, D] (unbiased) of a set of features."""

    mean: torch.Tensor
    covariance: torch.Tensor


class Moments:
    """Mean and covariance accumulated over batches of features.

    Batches are merged around their own means, so large offsets cost no digits.

    Args:
        dim: length of a feature vector.
        device: where they are accumulated.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def update(self, features: torch.Tensor) -> None:
        """Take in features [N, D]."""
        x = features.detach().to(self._mean)
        if len(x):
            mean = x.mean(0)
            centred = x - mean
            self._add(len(x), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Take in what another object has accumulated."""
        if other.count:
            self._add(other.count, other._mean.to(self._mean), other._scatter.to(self._mean))

    def pack(self) -> torch.Tensor:
        """Count, mean and scatter as one host vector, for ``unpack`` on another rank."""
        count = torch.tensor([self.count], dtype=torch.float64)
        return torch.cat([count, self._mean.cpu(), self._scatter.cpu().flatten()])

    @classmethod
    def unpack(cls, packed: torch.Tensor, dim: int) -> Moments:
        """The moments that ``pack`` made a vector of."""
        moments = cls(dim)
        moments.count = int(packed[0])
        moments._mean = packed[1 : dim + 1]
        moments._scatter = packed[dim + 1 :].view(dim, dim)
        return moments

    def _add(self, n: int, mean: torch.Tensor, scatter: torch.Tensor) -> None:
        total = self.count + n
        shift = mean - self._mean
        self._scatter = self._scatter + scatter
        self._scatter += torch.outer(shift, shift) * (self.count * n / total)
        self._mean = self._mean + shift * (n / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """The Gaussian with the moments so far.

        Raises:
            ValueError: fewer than two feature vectors, which have no covariance.
        """
        if self.count < 2:
            raise ValueError(
                f"A covariance needs at least 2 feature vectors, but there are {self.count}."
            )
        return Gaussian(self._mean.cpu().clone(), self._scatter.cpu() / (self.count - 1))


def gaussian_of(features: torch.Tensor) -> Gaussian:
    """Mean and covariance of features [N, D], N >= 2."""
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments.gaussian()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), symmetric, at least 0.

    The trace of the root is the sum of the roots of the eigenvalues, so no matrix root of a
    non-symmetric product is needed, and singular covariances are no special case.

    Raises:
        ValueError: features of different lengths, or values that are not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"The features have different lengths: {a.mean.shape[0]} and {b.mean.shape[0]}."
        )
    for values in (a.mean, a.covariance, b.mean, b.covariance):
        if not torch.isfinite(values).all():
            raise ValueError("A mean or covariance is not finite: check the samples for NaN.")
    eigenvalues, vectors = torch.linalg.eigh(a.covariance.double())
    root = (vectors * eigenvalues.clamp(min=0.0).sqrt()) @ vectors.T
    product = root @ b.covariance.double() @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0.0).sqrt().sum()
    shift = (a.mean.double() - b.mean.double()).square().sum()
    distance = shift + a.covariance.trace() + b.covariance.trace() - 2.0 * cross
    return max(0.0, float(distance))


def sampling_bias(halves: Sequence[Moments], reference: Gaussian, distance: float) -> float | None:
    """By how much the distance of a finite set of samples is too high, about.

    The bias falls like 1 / n (Chong and Forsyth, 2020), so half of the samples lie as much above
    the whole as the whole lies above infinitely many.

    Args:
        halves: moments of the two halves of the samples.
        reference: what they are compared with.
        distance: of the whole set to ``reference``.

    Returns:
        The bias, at least 0; None where a half is too small to have a distance.
    """
    if min(half.count for half in halves) < 2:
        return None
    parts = [frechet_distance(reference, half.gaussian()) for half in halves]
    return max(0.0, sum(parts) / len(parts) - distance)
