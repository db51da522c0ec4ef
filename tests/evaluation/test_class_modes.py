"""Modes that are combinations of classes: scores whose values are known."""

import itertools
import math

import pytest
import torch

from ddgan_fast.evaluation.class_modes import ClassModes, ideal

STACKED = ClassModes(10, 3)


def scores(modes: ClassModes, triples: list[tuple[int, ...]]) -> dict[str, float]:
    return modes.scores(modes.counts(verdicts(modes, triples)))


def verdicts(modes: ClassModes, triples: list[tuple[int, ...]]) -> torch.Tensor:
    """Logits of a classifier that is sure of these classes of the channels."""
    classes = torch.tensor(triples)
    return 9.0 * torch.nn.functional.one_hot(classes, modes.classes).flatten(1).float()


ALL = list(itertools.product(range(10), repeat=3))


def test_the_number_of_a_mode_is_100_r_10_g_b():
    triples = [(0, 0, 7), (0, 3, 0), (9, 0, 1), (2, 5, 8)]
    assert STACKED.numbers(verdicts(STACKED, triples)).tolist() == [7, 30, 901, 258]
    joint = STACKED.joint_logits(verdicts(STACKED, triples))
    assert joint.shape == (4, 1000)
    assert joint.argmax(1).tolist() == [7, 30, 901, 258]


def test_joint_probabilities_are_products():
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    modes = ClassModes(2, 3)
    r, g, b = (part.softmax(1) for part in logits.split(2, 1))
    want = torch.einsum("na,nb,nc->nabc", r, g, b).flatten(1)
    torch.testing.assert_close(modes.joint_logits(logits).softmax(1), want)


@pytest.mark.parametrize(
    ("drawn", "modes", "kl"),
    [
        (ALL, 1000, 0.0),
        ([(r, g, 4) for r, g, _ in ALL], 100, math.log(10)),
        ([(r, 0, 4) for r, _, _ in ALL], 10, math.log(100)),
        ([t for t in ALL if t[0] < 5], 500, math.log(2)),
        ([*ALL[1:], ALL[1]], 999, 2 / 1000 * math.log(2)),
    ],
)
def test_known_answers(drawn, modes, kl):
    got = scores(STACKED, drawn)
    assert got["modes"] == modes
    assert got["kl"] == pytest.approx(kl, abs=1e-9)


def test_kl_is_from_the_shares_of_real_images():
    modes = ClassModes(3, shares=(0.5, 0.25, 0.25))
    got = scores(modes, [(0,), (0,), (1,), (2,)])
    assert got == {"modes": 3.0, "kl": pytest.approx(0.0, abs=1e-12)}
    got = scores(modes, [(1,), (1,), (1,), (0,)])
    assert got == {"modes": 2.0, "kl": pytest.approx(0.75 * math.log(3) + 0.25 * math.log(0.5))}


def test_a_share_can_be_asked_for():
    drawn = [(0,)] * 98 + [(1,)] * 2
    assert scores(ClassModes(10, found_from=0.02), drawn)["modes"] == 2
    assert scores(ClassModes(10, found_from=0.03), drawn)["modes"] == 1
    assert scores(ClassModes(10), drawn)["modes"] == 2


def test_other_numbers_of_samples_than_the_published_are_told():
    assert STACKED.note(26_000) is None and STACKED.note(25_600) is None
    assert ClassModes(10).note(500) is None
    note = STACKED.note(1000)
    assert note is not None and "of 1,000 samples" in note and "about 632 modes" in note


def test_what_perfect_samples_show():
    assert ideal(1, 1000) == pytest.approx((1, math.log(1000)))
    modes, kl = ideal(26_000, 1000)
    assert modes == pytest.approx(1000, abs=1e-3)
    assert kl == pytest.approx(999 / 52_000, rel=0.02)  # as of a chi-squared statistic
    draws = torch.randint(0, 50, (400, 80), generator=torch.Generator().manual_seed(0))
    counted = [scores(ClassModes(50), d[:, None].tolist()) for d in draws]
    modes, kl = ideal(80, 50)
    assert sum(c["modes"] for c in counted) / 400 == pytest.approx(modes, rel=0.01)
    assert sum(c["kl"] for c in counted) / 400 == pytest.approx(kl, rel=0.03)
