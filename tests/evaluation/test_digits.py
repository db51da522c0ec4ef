"""The judge of digits: it knows the real ones, and tells every kind of bad sample."""

import pytest
import torch

pytest.importorskip("sklearn")

from ddgan_fast.data.sources import digits
from ddgan_fast.evaluation.digits import Classifier, DigitJudge, digit_judge, to_judged_size


@pytest.fixture(scope="module")
def judge() -> DigitJudge:
    return digit_judge()


def _real(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    data = digits(size)
    assert data.array is not None
    assert data.labels is not None
    images = torch.from_numpy(data.array).float().permute(0, 3, 1, 2) / 127.5 - 1
    return images, torch.from_numpy(data.labels)


def test_accuracy_on_held_out_digits(judge: DigitJudge) -> None:
    assert judge.accuracy >= 0.975


def test_scale_of_the_distance(judge: DigitJudge) -> None:
    assert 2 < judge.real < 40
    # What an untrained generator draws, whose last layer is zero.
    assert 2000 < judge.judge(torch.zeros(1000, 1, 8, 8))["frechet"] < 4000


def test_real_digits(judge: DigitJudge) -> None:
    images, labels = _real()
    scores = judge.judge(images)
    assert scores["frechet"] < 1e-3
    assert scores["recognised"] == 10
    assert sum(scores["counts"]) == len(images)
    assert scores["counts"] == pytest.approx(labels.bincount().tolist(), abs=8)
    assert scores["confidence"] > 0.95
    assert judge.judge(images[:1000])["frechet"] < judge.real


def test_a_digit_that_is_never_drawn(judge: DigitJudge) -> None:
    images, labels = _real()
    scores = judge.judge(images[labels != 3])
    assert scores["recognised"] == 9
    assert scores["counts"][3] < 10
    assert scores["frechet"] > judge.real


def test_damage_raises_the_distance_step_by_step(judge: DigitJudge) -> None:
    images, _ = _real()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    distances = [judge.judge(images + s * noise)["frechet"] for s in (0.1, 0.4, 0.8, 1.6)]
    assert distances == sorted(distances)
    assert distances[-1] > 10 * judge.real


def test_collapse_to_one_digit(judge: DigitJudge) -> None:
    images, labels = _real()
    one = images[labels == 4][:1].expand(1000, -1, -1, -1)
    scores = judge.judge(one + 1e-3 * torch.randn(one.shape))
    assert scores["recognised"] == 1
    assert scores["frechet"] > 450


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (32, 3)])
def test_larger_and_coloured_digits_are_averaged(
    judge: DigitJudge, size: int, channels: int
) -> None:
    images, _ = _real()
    large = images.repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3)
    large = large.expand(-1, channels, -1, -1)
    assert torch.allclose(to_judged_size(large), images, atol=1e-6)
    assert judge.judge(large)["recognised"] == 10


def test_training_is_a_function_of_the_seed(judge: DigitJudge) -> None:
    before = torch.random.get_rng_state()
    again = DigitJudge()
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b in zip(judge.classifier.parameters(), again.classifier.parameters(), strict=True):
        assert torch.equal(a, b)


def test_features_are_64_and_not_negative(judge: DigitJudge) -> None:
    with torch.no_grad():
        features = judge.classifier.features(_real()[0])
    assert features.shape == (1797, 64)
    assert features.min() == 0
    assert isinstance(judge.classifier, Classifier)


def test_refusals(judge: DigitJudge) -> None:
    with pytest.raises(ValueError, match=r"multiple of 8, got \[4, 1, 9, 9\]"):
        judge.judge(torch.zeros(4, 1, 9, 9))
    with pytest.raises(ValueError, match="not finite"):
        judge.judge(torch.full((4, 1, 8, 8), float("nan")))
    with pytest.raises(ValueError, match="at least 2"):
        judge.judge(torch.zeros(1, 1, 8, 8))
