"""Times providers of the same work in turns, in one process, after checking that they agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Provider:
    """One implementation of a case's work.

    Attributes:
        name: "ddgan_fast", "reference", ….
        dtype: what it computes in.
        parts: name of each part of the work -> a call that does it once.
    """

    name: str
    dtype: str
    parts: Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """Work to time.

    Attributes:
        name: as in the rows ("step").
        providers: who does it; ours first.
        shares: how much each part counts, summing to 1.
        images: per call.
        device: where it runs.
        facts: further columns of every row.
        differences: compares the providers' results; what does not agree, in words.
    """

    name: str
    providers: Sequence[Provider]
    shares: Mapping[str, float]
    images: int
    device: torch.device
    facts: Mapping[str, Any] = field(default_factory=dict)
    differences: Callable[[], Iterable[str]] = lambda: ()


@dataclass(frozen=True)
class Options:
    """What the command line asks of a case."""

    preset: str
    batch: int
    device: torch.device
    baseline: str | None = None
    precision: str | None = None
    """Other than the preset's."""
    engine: str = "eager"
    """How our steps are taken (run.engine)."""


Row = dict[str, Any]


def run(case: Case, rounds: int, warmup: int) -> list[Row]:
    """Time all providers in turns.

    Args:
        case: the work.
        rounds: how often each part of each provider is timed.
        warmup: rounds before that.

    Returns:
        One row per provider: milliseconds per call as median and 20th and 80th percentile over the
        rounds, images per second at the median; with several providers in our row "speedup", the
        ratio of the medians to each other provider, and the percentiles of the rounds' ratios.

    Raises:
        RuntimeError: the providers' results differ.
    """
    found = list(case.differences())
    if found:
        raise RuntimeError(
            f"{case.name}: the providers do not compute the same, so no time is told: "
            + "; ".join(found)
        )
    for _ in range(warmup):
        _round(case)
    timed = [_round(case) for _ in range(rounds)]
    parts = {
        p.name: {part: np.array([r[p.name, part] for r in timed]) for part in case.shares}
        for p in case.providers
    }
    whole = {
        name: np.sum([share * times[part] for part, share in case.shares.items()], 0)
        for name, times in parts.items()
    }
    rows = [_row(case, p, whole[p.name], parts[p.name]) for p in case.providers]
    ours, *others = case.providers
    if others:
        rows[0]["speedup"] = {p.name: _speedup(whole[p.name], whole[ours.name]) for p in others}
    return rows


def _round(case: Case) -> dict[tuple[str, str], float]:
    """Milliseconds of one call by (provider, part): the providers take turns at each part."""
    return {
        (provider.name, part): _milliseconds(provider.parts[part], case.device)
        for part in case.shares
        for provider in case.providers
    }


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    call()
    _wait(device)
    return 1e3 * (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _row(case: Case, provider: Provider, whole: np.ndarray, parts: Mapping[str, np.ndarray]) -> Row:
    p20, p50, p80 = np.quantile(whole, (0.2, 0.5, 0.8))
    return {
        "case": case.name,
        "provider": provider.name,
        **case.facts,
        "device": case.device.type,
        "dtype": provider.dtype,
        "ms_p50": _rounded(p50),
        "ms_p20": _rounded(p20),
        "ms_p80": _rounded(p80),
        "ms_parts": {part: _rounded(np.median(times)) for part, times in parts.items()},
        "img_s": _rounded(1e3 * case.images / p50),
        "rounds": len(whole),
    }


def _speedup(other: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    p20, p80 = np.quantile(other / ours, (0.2, 0.8))
    return {
        "p50": _rounded(np.median(other) / np.median(ours)),
        "p20": _rounded(p20),
        "p80": _rounded(p80),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
