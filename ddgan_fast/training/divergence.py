"""Signs that a run diverges, read from the statistics of its ticks."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

LOSSES = ("D/real", "D/fake", "G/loss", "D0/real", "D0/fake", "G/x0")

FLOORS = dict.fromkeys(
    ("D/grad_norm", "G/grad_norm", "D/r1", "D0/grad_norm", "D0/r1"), 0.1
)
"""What must not grow, and the value that its median counts as at least: while D is still flat its
gradients are tiny, and soon a hundred times that."""

GROWTH = 100.0
"""Growth beyond the median that is no training any more. In two recorded healthy runs no mean over
20 steps was more than 16 times the median of its run; weights that blow up leave it by orders."""

HISTORY = 50
"""Ticks that the median is over: long enough that a sick stretch does not become the norm."""

MIN_HISTORY = 10
"""Ticks before anything is compared: the first ones change by large factors in every run."""

LASTING = 3
"""Ticks that a sign must last: Adam divides a single huge gradient by itself, and goes on."""

WON_TICKS = 10
"""Ticks that the discriminator must have won for: early in a run it often leads for a few."""
WON_ACCURACY = 0.99
WON_LOSS = 0.02
"""Both terms of the discriminator's loss; 1.39 when it guesses, about 1 in healthy runs."""
LOST_LOSS = 10.0
"""The generator's loss at logits of -10, which no image of its own changes any more."""


@dataclass(frozen=True)
class Sign:
    """Something that says the run diverges.

    Attributes:
        kind: "not_finite", "grown" or "won".
        since: the last step at which it was not there.
        sentence: what was seen, without its start and a full stop.
    """

    kind: str
    since: int
    sentence: str


@dataclass(frozen=True)
class _Look:
    """One thing looked at in one tick."""

    kind: str
    name: str
    bad: bool
    ticks: int
    """How many in a row make a sign."""
    sentence: str


class Detector:
    """Looks at the means of every tick.

    Args:
        step: finished steps when the run (re)starts.
    """

    def __init__(self, step: int = 0) -> None:
        self._last = step
        self._history = {name: deque[float](maxlen=HISTORY) for name in FLOORS}
        # Ticks that something has been bad for, and the last step before them.
        self._bad: dict[tuple[str, str], tuple[int, int]] = {}

    def look(self, step: int, values: Mapping[str, float]) -> Sign | None:
        """Take in one tick.

        Args:
            step: finished steps.
            values: means since the last tick by name; what is absent is not judged.

        Returns:
            A sign in the tick in which it has lasted long enough; again only after it was gone.
        """
        sign = None
        for look in self._looks(values):
            key = look.kind, look.name
            if not look.bad:
                self._bad.pop(key, None)
                continue
            ticks, since = self._bad.get(key, (0, self._last))
            self._bad[key] = ticks + 1, since
            if ticks + 1 == look.ticks and sign is None:
                sign = Sign(look.kind, since, look.sentence)
        self._last = step
        return sign

    @property
    def quiet_until(self) -> int:
        """The last step before anything that is amiss now, whether or not it has lasted."""
        return min((since for _, since in self._bad.values()), default=self._last)

    def go_back(self, step: int) -> None:
        """The run goes on from an earlier step: what was amiss is forgotten, medians stay."""
        self._last = step
        self._bad.clear()

    def _looks(self, values: Mapping[str, float]) -> Iterator[_Look]:
        for name in LOSSES:
            if name in values:
                bad = not math.isfinite(values[name])
                yield _Look("not_finite", name, bad, LASTING, f"{name} is {values[name]}")
        for name in FLOORS:
            if name in values:
                yield self._growth(name, values[name])
        yield _victory("D", "the discriminator", "G/loss", values)
        yield _victory("D0", "the discriminator of x_0", "G/x0", values)

    def _growth(self, name: str, value: float) -> _Look:
        history = self._history[name]
        if len(history) < MIN_HISTORY:
            bad, usual = False, math.nan
        else:
            usual = max(statistics.median(history), FLOORS[name])
            bad = not value <= GROWTH * usual  # also where it is not a number
        if not bad and math.isfinite(value):
            history.append(value)
        return _Look(
            "grown", name, bad, LASTING, f"{name} is {value:.3g}, and was {usual:.3g} before"
        )


def _victory(d: str, called: str, opposed: str, values: Mapping[str, float]) -> _Look:
    """Whether discriminator ``d`` has won against the generator's loss ``opposed``."""
    real, fake, loss = (values.get(name, math.nan) for name in (f"{d}/real", f"{d}/fake", opposed))
    accuracy = [values.get(f"{d}/{kind}_acc", math.nan) for kind in ("real", "fake")]
    bad = (
        min(accuracy) >= WON_ACCURACY
        and max(real, fake) <= WON_LOSS
        and loss >= LOST_LOSS
    )
    return _Look(
        "won",
        d,
        bad and all(math.isfinite(a) for a in accuracy),
        WON_TICKS,
        f"{called} has won: it is right about {accuracy[0]:.1%} of the real and "
        f"{accuracy[1]:.1%} of the generated images, and {opposed} is {loss:.3g}",
    )
