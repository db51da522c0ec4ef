"""The Fréchet distance against closed forms, and moments against those of the whole set."""

import math

import pytest
import torch

from ddgan_fast.evaluation.frechet import (
    Gaussian,
    Moments,
    frechet_distance,
    gaussian_of,
    sampling_bias,
)


def _gaussian(mean: list[float], variances: list[float]) -> Gaussian:
    return Gaussian(
        torch.tensor(mean, dtype=torch.float64), torch.tensor(variances, dtype=torch.float64).diag()
    )


def _random_covariance(dim: int, seed: int, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, rank or 2 * dim, generator=generator, dtype=torch.float64)
    return root @ root.T / dim


def _turn(dim: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(_random_covariance(dim, seed))[0]


def test_diagonal_gaussians_have_a_closed_form() -> None:
    a = _gaussian([0.0, 1.0, -2.0], [1.0, 4.0, 0.25])
    b = _gaussian([3.0, 1.0, 2.0], [9.0, 1.0, 0.25])
    # Squared differences of means and of standard deviations.
    assert frechet_distance(a, b) == pytest.approx(9 + 16 + (1 - 3) ** 2 + (2 - 1) ** 2, rel=1e-12)


def test_rotation_changes_nothing() -> None:
    turn, _ = torch.linalg.qr(_random_covariance(3, 5))
    a, b = _gaussian([0, 1, 2], [1, 2, 3]), _gaussian([1, 1, 1], [5, 1, 2])
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T) for g in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-10)


@pytest.mark.parametrize("rank", [None, 7])
def test_covariances_that_do_not_commute(rank: int | None) -> None:
    a, b = _random_covariance(20, 0), _random_covariance(20, 1, rank)
    zero = torch.zeros(20, dtype=torch.float64)
    # tr (AB)^1/2 from the eigenvalues of the non-symmetric product.
    root = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    expected = float(a.trace() + b.trace() - 2 * root)
    assert frechet_distance(Gaussian(zero, a), Gaussian(zero, b)) == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("decades", [0, 4, 8])
def test_agrees_with_the_matrix_root_of_scipy(decades: int) -> None:
    """Condition numbers up to 1e8; beyond, the root of the product is what loses digits."""
    linalg = pytest.importorskip("scipy.linalg", reason="scipy comes with scikit-learn")
    spectrum = torch.logspace(0, -decades, 64, dtype=torch.float64)
    a, b = (
        Gaussian(mean, turn @ spectrum.roll(roll).diag() @ turn.T)
        for mean, turn, roll in (
            (torch.zeros(64, dtype=torch.float64), _turn(64, 0), 0),
            (torch.full((64,), 0.1, dtype=torch.float64), _turn(64, 1), 5),
        )
    )
    product = (a.covariance @ b.covariance).numpy()
    root = linalg.sqrtm(product)
    trace = float(a.covariance.trace() + b.covariance.trace() - 2 * root.real.trace())
    assert frechet_distance(a, b) == pytest.approx(0.64 + trace, rel=1e-6)


def test_merged_moments_are_those_of_the_whole() -> None:
    features = torch.randn(300, 5, generator=torch.Generator().manual_seed(1)) + 100
    whole, merged = gaussian_of(features), Moments(5)
    for part in features.split([120, 0, 179, 1]):
        own = Moments(5)
        own.update(part)
        merged.merge(Moments.unpack(own.pack(), 5))
    assert merged.count == 300
    assert torch.allclose(merged.gaussian().mean, whole.mean, rtol=1e-14)
    assert torch.allclose(merged.gaussian().covariance, whole.covariance, rtol=1e-9, atol=1e-12)


def test_zero_for_equal_and_symmetric_for_singular() -> None:
    a = Gaussian(torch.zeros(12, dtype=torch.float64), _random_covariance(12, 2, rank=3))
    b = Gaussian(torch.ones(12, dtype=torch.float64), _random_covariance(12, 3))
    assert 0 <= frechet_distance(a, a) < 1e-6
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_moments_of_batches_are_those_of_the_whole_far_from_the_origin() -> None:
    features = torch.randn(1000, 5, generator=torch.Generator().manual_seed(1)).double()
    features = features * torch.arange(1.0, 6.0) + 1e6
    moments = Moments(5)
    for part in features.split([1, 0, 400, 99, 500]):
        moments.update(part)
    whole = moments.gaussian()
    assert torch.allclose(whole.mean, features.mean(0), rtol=1e-14)
    assert torch.allclose(whole.covariance, features.T.cov(), rtol=1e-9, atol=1e-9)


def test_distance_between_samples_falls_with_their_number() -> None:
    generator = torch.Generator().manual_seed(0)
    few, many = (
        frechet_distance(*(gaussian_of(torch.randn(n, 8, generator=generator)) for _ in range(2)))
        for n in (100, 10_000)
    )
    assert many < few / 10


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_halves_tell_the_bias_of_few_samples(scale: float) -> None:
    """On average over sets of samples, whose distances scatter around the biased mean."""
    dim, n, sets = 24, 400, 60
    truth = Gaussian(torch.zeros(dim).double(), torch.eye(dim).double())
    random = torch.Generator().manual_seed(0)
    excess, bias = 0.0, 0.0
    for _ in range(sets):
        samples = scale * torch.randn(n, dim, generator=random)
        halves = [Moments(dim), Moments(dim)]
        for half, part in zip(halves, samples.split(n // 2), strict=True):
            half.update(part)
        distance = frechet_distance(truth, gaussian_of(samples))
        excess += (distance - dim * (scale - 1) ** 2) / sets
        bias += (sampling_bias(halves, truth, distance) or 0.0) / sets
    assert bias == pytest.approx(excess, rel=0.15)
    assert sampling_bias([Moments(dim), halves[1]], truth, distance) is None


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least 2 feature vectors, but there are 1"):
        gaussian_of(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="different lengths: 2 and 3"):
        frechet_distance(_gaussian([0, 0], [1, 1]), _gaussian([0, 0, 0], [1, 1, 1]))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(_gaussian([0, math.nan], [1, 1]), _gaussian([0, 0], [1, 1]))
