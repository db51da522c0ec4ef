"""The judge of the 25 Gaussians on sets of points whose scores are known."""

import math

import numpy as np
import pytest

from ddgan_fast.data.sources import gaussians25
from ddgan_fast.evaluation import modes

N = 10_000


def _perfect(keep: np.ndarray | None = None) -> np.ndarray:
    rng = np.random.default_rng(0)
    which = np.arange(25) if keep is None else keep
    mode = which[np.arange(N) % len(which)]
    return modes.centres()[mode] + 0.05 * rng.standard_normal((N, 2))


def test_the_data_are_perfect() -> None:
    data = gaussians25(N)
    assert data.array is not None
    assert data.labels is not None
    scores = modes.judge(data.array)
    assert scores["modes"] == 25
    assert scores["near"] == pytest.approx(1 - math.exp(-8), abs=5e-4)  # within 4 sigma
    assert scores["kl"] < 1e-6
    assert scores["spread"] == pytest.approx(0.05, rel=0.01)
    assert scores["bridges"] < 1e-3
    # The judge and the data number the modes alike.
    assert scores["counts"] == pytest.approx(np.bincount(data.labels), abs=3)


def test_a_dropped_mode_is_missed() -> None:
    scores = modes.judge(_perfect(np.delete(np.arange(25), 7)))
    assert scores["modes"] == 24
    assert scores["counts"][7] == 0
    assert scores["kl"] == pytest.approx(math.log(25 / 24), rel=1e-3)


def test_a_mode_counts_from_80_of_10000() -> None:
    points = _perfect(np.arange(1, 25))
    for n, found in ((79, 24), (80, 25)):
        points[:n] = modes.centres()[0]
        # The other modes have 400 points each, whoever is replaced.
        assert modes.judge(points)["modes"] == found


def test_uniform_noise_is_near_by_area_alone() -> None:
    points = np.random.default_rng(0).uniform(-5, 5, (100_000, 2))
    scores = modes.judge(points)
    assert scores["near"] == pytest.approx(25 * math.pi * 0.2**2 / 100, rel=0.05)
    assert scores["modes"] == 0


def test_collapse_to_one_mode() -> None:
    scores = modes.judge(_perfect(np.array([12])))
    assert scores["modes"] == 1
    assert scores["kl"] == pytest.approx(math.log(25), rel=1e-6)
    assert scores["near"] > 0.99


def test_the_border_of_a_mode_is_a_circle() -> None:
    inside, outside = np.array([[0.1999, 0.0]]), np.array([[0.15, 0.15]])
    assert modes.judge(inside)["near"] == 1
    assert modes.judge(outside)["near"] == 0


def test_modes_that_are_too_tight() -> None:
    centres = modes.centres()[np.arange(N) % 25]
    assert modes.judge(centres + 0.6 * (_perfect() - centres))["spread"] == pytest.approx(
        0.03, rel=0.02
    )


def test_bridges_are_between_neighbours_only() -> None:
    points = np.array([[1.0, 0.0], [0.0, -3.0], [1.0, 1.0], [5.0, 0.0], [0.0, 0.0]])
    assert modes.judge(points)["bridges"] == pytest.approx(2 / 5)


def test_far_points_belong_to_no_mode() -> None:
    scores = modes.judge(np.full((10, 2), 1e30))
    assert (scores["near"], scores["modes"], scores["kl"]) == (0.0, 0, math.inf)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (np.zeros((4, 3)), r"must be \[N, 2\], got \[4, 3\]"),
        (np.zeros((0, 2)), r"got \[0, 2\]"),
        (np.array([[0.0, math.nan]]), "not finite"),
    ],
)
def test_refusals(points: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        modes.judge(points)
