"""Signs of divergence: found where they are, and in no healthy run."""

import gzip
import json
import math
from pathlib import Path

import pytest

from ddgan_fast.training import divergence
from ddgan_fast.training.divergence import Detector

LOGS = Path(__file__).parents[1] / "data" / "logs"
HEALTHY = {
    "D/real": 0.6, "D/fake": 0.6, "G/loss": 0.9, "D/real_acc": 0.7, "D/fake_acc": 0.7,
    "D/grad_norm": 1.0, "G/grad_norm": 0.5, "D/r1": 2.0,
}  # fmt: skip
WON = {"D/real": 0.001, "D/fake": 0.001, "G/loss": 15.0, "D/real_acc": 1.0, "D/fake_acc": 0.995}


def feed(detector, ticks, first=1, **changes):
    """Ticks of 100 steps; returns (tick, sign) of every sign."""
    values = HEALTHY | {name.replace("__", "/"): value for name, value in changes.items()}
    found = []
    for tick in range(first, first + ticks):
        sign = detector.look(100 * tick, values)
        if sign is not None:
            found.append((tick, sign))
    return found


@pytest.mark.parametrize("name", ["digits", "gaussians25"])
@pytest.mark.parametrize("ticks", [1, 5], ids=["short ticks", "long ticks"])
def test_no_sign_in_a_recorded_healthy_run(name, ticks):
    with gzip.open(LOGS / f"{name}.jsonl.gz", "rt") as file:
        records = [json.loads(line) for line in file]
    assert len(records) >= 100
    detector = Detector()
    judged = 0
    for i in range(ticks - 1, len(records), ticks):
        means = {
            key: sum(r[key] for r in records[i - ticks + 1 : i + 1]) / ticks for key in HEALTHY
        }
        assert detector.look(records[i]["step"], means) is None
        judged += 1
    assert judged > divergence.MIN_HISTORY
    # The same detector is not blind.
    last = {key: value * divergence.GROWTH * 10 for key, value in means.items()}
    signs = [detector.look(10**6 + i, last) for i in range(divergence.LASTING)]
    assert signs[-1] is not None


def test_a_healthy_run_has_no_sign():
    detector = Detector()
    assert not feed(detector, 300)
    assert detector.quiet_until == 30_000


@pytest.mark.parametrize("name", ["D/grad_norm", "G/grad_norm", "D/r1"])
@pytest.mark.parametrize("value", [1e5, math.inf, math.nan])
def test_growth_that_lasts(name, value):
    detector = Detector()
    feed(detector, 20)
    found = feed(detector, 10, first=21, **{name.replace("/", "__"): value})
    assert [(tick, sign.kind, sign.since) for tick, sign in found] == [(23, "grown", 2000)]
    assert name in found[0][1].sentence


def test_growth_within_bounds_is_training():
    detector = Detector()
    feed(detector, 20)
    assert not feed(detector, 100, first=21, D__r1=150.0, D__grad_norm=90.0, G__grad_norm=49.0)


def test_a_spike_is_no_sign_and_does_not_move_the_median():
    detector = Detector()
    feed(detector, 20)
    tick = 21
    for _ in range(30):
        assert not feed(detector, divergence.LASTING - 1, first=tick, D__r1=1e6)
        assert not feed(detector, 1, first=tick + divergence.LASTING - 1)
        tick += divergence.LASTING
    assert feed(detector, divergence.LASTING, first=tick, D__r1=1e6)


def test_the_first_ticks_are_not_compared():
    detector = Detector()
    assert not feed(detector, 3, D__r1=1e-9)
    assert not feed(detector, 40, first=4, D__r1=1e3)


def test_a_flat_discriminator_that_wakes_up_is_no_sign():
    detector = Detector()
    feed(detector, 40, D__r1=1e-7, D__grad_norm=1e-6, G__grad_norm=1e-6)
    assert not feed(detector, 40, first=41, D__r1=9.0, D__grad_norm=9.0, G__grad_norm=9.0)


@pytest.mark.parametrize("name", ["D/real", "D/fake", "G/loss"])
def test_a_loss_that_is_no_number(name):
    detector = Detector(step=400)
    found = feed(detector, 5, first=5, **{name.replace("/", "__"): math.nan})
    assert [(tick, sign.kind, sign.since) for tick, sign in found] == [(7, "not_finite", 400)]
    assert found[0][1].sentence == f"{name} is nan"


def test_a_discriminator_that_has_won():
    detector = Detector()
    feed(detector, 5)
    found = []
    for tick in range(6, 40):
        sign = detector.look(100 * tick, HEALTHY | WON)
        found += [] if sign is None else [(tick, sign)]
    assert [(tick, sign.kind, sign.since) for tick, sign in found] == [(15, "won", 500)]
    assert "100.0% of the real and 99.5% of the generated" in found[0][1].sentence


@pytest.mark.parametrize(
    "change",
    [{"G/loss": 5.0}, {"D/fake": 0.1}, {"D/real_acc": 0.95}, {"D/fake_acc": math.nan}],
    ids=str,
)
def test_leading_is_not_winning(change):
    detector = Detector()
    assert not any(detector.look(100 * i, HEALTHY | WON | change) for i in range(1, 60))


def test_absent_statistics_are_not_judged():
    detector = Detector()
    for i in range(1, 60):
        assert detector.look(i, {"D/real": 0.001, "D/fake": 0.001, "G/loss": 20.0}) is None
    assert Detector().look(1, {}) is None


def test_a_sign_is_given_once_until_it_is_gone():
    detector = Detector()
    feed(detector, 20)
    assert len(feed(detector, 30, first=21, D__r1=1e6)) == 1
    feed(detector, 1, first=51)
    assert [tick for tick, _ in feed(detector, 30, first=52, D__r1=1e6)] == [54]


def test_quiet_until_is_before_anything_amiss():
    detector = Detector()
    feed(detector, 20)
    feed(detector, 1, first=21, D__r1=1e6)
    feed(detector, 1, first=22, D__r1=1e6, G__loss=math.nan)
    assert detector.quiet_until == 2000


def test_after_a_return_counting_starts_again():
    detector = Detector()
    feed(detector, 20)
    feed(detector, divergence.LASTING - 1, first=21, D__r1=1e6)
    detector.go_back(1500)
    assert detector.quiet_until == 1500
    # The median is still known: the sign comes as fast as before.
    found = feed(detector, divergence.LASTING, first=16, D__r1=1e6)
    assert [(tick, sign.since) for tick, sign in found] == [(18, 1500)]
