"""Modes that are combinations of classes: how many the samples show, and how evenly.

StackedMNIST's 1,000 modes are the classes of three channels, 100 R + 10 G + B (Metz et al.,
"Unrolled Generative Adversarial Networks", 2017; Srivastava et al., "VEEGAN", 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

PUBLISHED_SAMPLES = (25_600, 26_000)
"""Samples among which published numbers count the modes of StackedMNIST."""


@dataclass(frozen=True)
class ClassModes:
    """What a classifier's verdicts on the channels of an image stand for.

    Attributes:
        classes: K of them in a channel.
        channels: C of them in an image; every combination of classes is a mode.
        found_from: share of the samples from which on a mode counts as found; 0: one sample.
        shares: of the modes among real images; None: all alike.
    """

    classes: int
    channels: int = 1
    found_from: float = 0.0
    shares: tuple[float, ...] | None = None

    @property
    def total(self) -> int:
        """Number of modes."""
        return self.classes**self.channels

    def numbers(self, logits: torch.Tensor) -> torch.Tensor:
        """The mode of each image, int64 [N], from the logits of its channels [N, C * K]."""
        found = self._by_channel(logits).argmax(2)
        places = self.classes ** torch.arange(self.channels - 1, -1, -1)
        return (found * places).sum(1)

    def joint_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits of the modes [N, K ** C]; the channels are judged independently."""
        first, *others = self._by_channel(logits).unbind(1)
        for other in others:
            first = (first[:, :, None] + other[:, None, :]).flatten(1)
        return first

    def counts(self, logits: torch.Tensor) -> torch.Tensor:
        """Images of each mode, int64 [K ** C]."""
        return torch.bincount(self.numbers(logits), minlength=self.total)

    def scores(self, counts: torch.Tensor) -> dict[str, float]:
        """``modes``, how many are found, and ``kl``, of the samples' modes from the real ones.

        The divergence is sum p log(p / q) in nats, p the share of a mode among the samples.
        """
        share = counts.double() / counts.sum()
        if self.shares is None:
            ratio = share * self.total
        else:
            ratio = share / torch.tensor(self.shares, dtype=torch.float64)
        drawn = share > 0
        return {
            "modes": float((drawn & (share >= self.found_from)).sum()),
            "kl": float((share[drawn] * ratio[drawn].log()).sum()),
        }

    def note(self, n: int) -> str | None:
        """What a reader of the scores of n samples must know, if n is not the published number."""
        least, most = PUBLISHED_SAMPLES
        if self.channels == 1 or least <= n <= most:
            return None
        modes, kl = ideal(n, self.total)
        return (
            f"modes and kl are of {n:,} samples, and compare with no published ones, which are of "
            f"{least:,} to {most:,}: of {n:,} perfect samples about {modes:.0f} modes and a kl of "
            f"{kl:.2g} are to be expected."
        )

    def _by_channel(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.unflatten(1, (self.channels, self.classes))


def ideal(n: int, total: int) -> tuple[float, float]:
    """Modes and divergence that n independent samples of evenly likely modes show on average."""
    expected = 0.0
    log_p, log_q = -math.log(total), math.log1p(-1 / total)
    for k in range(1, n + 1):
        log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        probability = math.exp(log_choose + k * log_p + (n - k) * log_q)
        expected += probability * k / n * math.log(k * total / n)
    return total * -math.expm1(n * log_q), total * expected
