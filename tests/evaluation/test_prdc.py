"""Precision, recall, density and coverage against numpy, and on cases whose answer is known."""

import numpy as np
import pytest
import torch

from ddgan_fast.evaluation import prdc
from ddgan_fast.evaluation.prdc import density_coverage, precision_recall


def features(n: int, dim: int = 5, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + shift


def plain(real: torch.Tensor, fake: torch.Tensor, k: int) -> tuple[float, float, float, float]:
    """All four by full matrices of differences."""
    x, y = real.double().numpy(), fake.double().numpy()

    def distances(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    reach_x = np.sort(distances(x, x), 1)[:, k]  # column 0 is the point itself
    reach_y = np.sort(distances(y, y), 1)[:, k]
    d = distances(x, y)
    in_real = d <= reach_x[:, None]
    return (
        in_real.any(0).mean(),
        (d <= reach_y[None]).any(1).mean(),
        in_real.sum() / (k * len(y)),
        in_real.any(1).mean(),
    )


def ours(real: torch.Tensor, fake: torch.Tensor, k: int) -> tuple[float, float, float, float]:
    return (*precision_recall(real, fake, k), *density_coverage(real, fake, k))


@pytest.mark.parametrize("offset", [0.0, 1e7])
@pytest.mark.parametrize("block", [1, 1 << 24])
def test_agrees_with_numpy_far_from_the_origin_and_in_blocks(monkeypatch, block, offset):
    monkeypatch.setattr(prdc, "_BLOCK", block)
    real = features(60).double() + offset
    fake = 1.3 * features(45, seed=1, shift=0.4).double() + offset
    for k in (1, 3, 5):
        want = plain(real, fake, k)
        assert ours(real, fake, k) == pytest.approx(want, abs=1e-12)
        assert min(want) > 0
        assert max(want) < 3


def test_identical_sets():
    x = features(200)
    precision, recall, density, coverage = ours(x, x, 3)
    assert (precision, recall, coverage) == (1, 1, 1)
    # Each point lies in its own ball and, on average, in those of which it is a neighbour.
    assert density == pytest.approx(4 / 3, abs=0.01)


def test_disjoint_sets():
    assert ours(features(200), features(200, seed=1, shift=100.0), 5) == (0, 0, 0, 0)


def test_a_dropped_mode():
    centres = torch.tensor([[-50.0] * 5, [50.0] * 5])
    real = torch.cat([features(300) + centres[0], features(300, seed=1) + centres[1]])
    fake = features(600, seed=2) + centres[0]
    precision, recall = precision_recall(real, fake)
    density, coverage = density_coverage(real, fake)
    assert precision > 0.9
    assert recall == pytest.approx(0.5, abs=0.05)
    assert coverage == pytest.approx(0.5, abs=0.02)
    # Twice as many fakes as reals are in this mode.
    assert density == pytest.approx(1, abs=0.2)
    # The other way round: half of the samples are where no data are.
    precision, recall = precision_recall(fake, real)
    assert precision == pytest.approx(0.5, abs=0.05) and recall > 0.9


def test_copies_of_few_images_are_precise_and_cover_little():
    real = features(500)
    copies = real[:5].repeat(100, 1)
    precision, recall = precision_recall(real, copies)
    assert precision == 1
    assert recall == pytest.approx(5 / 500, abs=0.001)


def test_refusals():
    with pytest.raises(ValueError, match="different lengths: 5 and 4"):
        precision_recall(features(9), features(9, 4))
    with pytest.raises(ValueError, match="at least 6 real and 6 generated images, but there are 9"):
        density_coverage(features(9), features(5))
    with pytest.raises(ValueError, match="not finite"):
        precision_recall(features(9), features(9) / 0)
