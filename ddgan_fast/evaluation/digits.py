"""Judge of generated handwritten digits: a small classifier trained on the real ones."""

from __future__ import annotations

from functools import cache
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ddgan_fast.data.sources import digits
from ddgan_fast.evaluation.frechet import Gaussian, frechet_distance, gaussian_of

CLASSES = 10
RECOGNISED_FROM = 0.01
"""Share of the samples from which on a digit counts as drawn: 10 among 1,000."""

_FEATURES = 64
_HELD_OUT = 360
_BATCH = 64
_EPOCHS = 30
_SEED = 0


class DigitScores(TypedDict):
    """What ``DigitJudge`` says about a set of samples."""

    frechet: float
    """Fréchet distance to all real digits on the classifier's features."""
    recognised: int
    """Digits drawn often enough, out of 10."""
    counts: list[int]
    """Samples taken for a 0, a 1, ..., a 9."""
    confidence: float
    """Mean probability of the chosen digit."""


class Classifier(nn.Module):
    """8x8 digits [N, 1, 8, 8] in [-1, 1] -> 64 features -> 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * 4 * 4, _FEATURES)
        self.out = nn.Linear(_FEATURES, CLASSES)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 64], not negative."""
        h = F.relu(self.conv2(F.relu(self.conv1(x))))
        return F.relu(self.hidden(F.max_pool2d(h, 2).flatten(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.features(x))


class DigitJudge:
    """Trains the classifier (a few seconds on one core) and compares samples with real digits.

    Attributes:
        accuracy: share of held-out digits the classifier gets right.
        real: Fréchet distance between the digits it has seen and the held-out ones.

    Raises:
        RuntimeError: scikit-learn, which holds the digits, is missing.
    """

    def __init__(self) -> None:
        data = digits(8)
        assert data.array is not None
        assert data.labels is not None
        images = torch.from_numpy(data.array[..., 0]).float()[:, None] / 127.5 - 1.0
        labels = torch.from_numpy(data.labels)
        order = torch.from_numpy(np.random.default_rng(_SEED).permutation(len(images)))
        held_out, seen = order[:_HELD_OUT], order[_HELD_OUT:]
        self.classifier = _train(images[seen], labels[seen])
        with torch.no_grad():
            guesses = self.classifier(images[held_out]).argmax(1)
            features = self.classifier.features(images)
        self.accuracy = float((guesses == labels[held_out]).float().mean())
        self.reference: Gaussian = gaussian_of(features)
        self.real = frechet_distance(gaussian_of(features[seen]), gaussian_of(features[held_out]))

    @torch.no_grad()
    def judge(self, samples: torch.Tensor) -> DigitScores:
        """Scores of samples [N, C, H, W] in [-1, 1]; colours and larger pixels are averaged.

        Raises:
            ValueError: samples of another shape, fewer than two, or not finite.
        """
        small = to_judged_size(samples)
        features = torch.cat([self.classifier.features(part) for part in small.split(1000)])
        probabilities = self.classifier.out(features).softmax(1)
        confidence, guess = probabilities.max(1)
        counts = torch.bincount(guess, minlength=CLASSES).tolist()
        return DigitScores(
            frechet=frechet_distance(gaussian_of(features), self.reference),
            recognised=sum(count >= RECOGNISED_FROM * len(small) for count in counts),
            counts=counts,
            confidence=float(confidence.mean()),
        )


@cache
def digit_judge() -> DigitJudge:
    """The one judge, trained when it is first asked for."""
    return DigitJudge()


def to_judged_size(samples: torch.Tensor) -> torch.Tensor:
    """Samples [N, C, H, W] as float32 [N, 1, 8, 8] in [-1, 1]."""
    if samples.ndim != 4 or samples.shape[2] % 8 or samples.shape[2] != samples.shape[3]:
        raise ValueError(
            "Digits to be judged must be [N, C, H, H] with H a multiple of 8, "
            f"got {list(samples.shape)}."
        )
    if not torch.isfinite(samples).all():
        raise ValueError("The samples hold values that are not finite: the generator diverged.")
    grey = samples.detach().to("cpu", torch.float32).mean(1, keepdim=True).clamp(-1.0, 1.0)
    return F.avg_pool2d(grey, samples.shape[2] // 8)


def _train(images: torch.Tensor, labels: torch.Tensor) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        classifier = Classifier()
        optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-3)
        steps = _EPOCHS * (len(images) // _BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(_EPOCHS):
            order = torch.randperm(len(images))
            for batch in order.split(_BATCH)[: len(images) // _BATCH]:
                loss = F.cross_entropy(classifier(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return classifier.eval()
