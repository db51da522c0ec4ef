"""From the steps that were taken to the figures of a profile: phases, operators, kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .ceilings import Ceilings
from .costs import Cost
from .phases import COPY, RECORDED, WAIT
from .timeline import REST, Step
from .trace import Trace, Use

GAPS, REDUCTION = "host gaps", "reduction"
_ORDER_LAST = (REDUCTION, GAPS, REST)
_NOT_GAPS = (WAIT, COPY)
"""Phases in which nothing is computed because there is nothing to compute with yet."""

Row = dict[str, Any]
Shares = Mapping[bool, float]


def step_figures(steps: Sequence[Step], shares: Shares, images: int) -> Row:
    """The step as it is without marks: medians and percentiles over rounds of all kinds.

    Args:
        steps: pairs of neighbours of one kind, one with marks and one without.
        shares: of the kinds of step.
        images: per step.
    """
    by_kind = {kind: _lengths(steps, kind, marked=False) for kind in shares}
    whole = np.sum([share * by_kind[kind] for kind, share in shares.items()], 0)
    p20, p50, p80 = np.quantile(1e3 * whole, (0.2, 0.5, 0.8))
    names = {True: "with_r1", False: "without_r1"}
    parts = {names[kind]: rounded(1e3 * np.median(times)) for kind, times in by_kind.items()}
    pairs = zip(steps[::2], steps[1::2], strict=True)
    both = [sorted(pair, key=lambda step: step.marked) for pair in pairs]
    ratios = [marked.seconds / plain.seconds for plain, marked in both]
    return {
        "ms_p50": rounded(p50),
        "ms_p20": rounded(p20),
        "ms_p80": rounded(p80),
        "ms_parts": parts,
        "img_s": rounded(1e3 * images / p50),
        "rounds": len(whole),
        "marks_cost": {f"p{p}": rounded(np.quantile(ratios, p / 100) - 1) for p in (20, 50, 80)},
    }


def phase_figures(
    steps: Sequence[Step], shares: Shares, traces: Mapping[bool, Sequence[Trace]], on_gpu: bool
) -> list[Row]:
    """Milliseconds of each phase of a mean step; all of them add up to it.

    Of each kind the half of the steps around the median counts, as whole steps. What lies between
    operators (on a GPU, between kernels) is taken out of the phases and makes up the host gaps.

    Args:
        steps: with marks and without.
        shares: of the kinds of step.
        traces: profiled steps of each kind; none where operators cannot be told apart.
        on_gpu: whether the traces know kernels.

    Returns:
        "phase", "ms" without gaps, "gap_ms", "share" of the step; "ms_p20", "ms_p50" and "ms_p80"
        of the phase with its gaps over the rounds.
    """
    spread = _spread(steps, shares)
    whole: dict[str, float] = {}
    gaps: dict[str, float] = {}
    talking = 0.0
    for kind, share in shares.items():
        for name, seconds in _middle(steps, kind).items():
            whole[name] = whole.get(name, 0.0) + share * seconds
            gap = 0.0 if name in _NOT_GAPS else _gap(name, seconds, traces[kind], on_gpu)
            gaps[name] = gaps.get(name, 0.0) + share * gap
        talking += share * float(np.median([trace.talking for trace in traces[kind]] or [0.0]))
    total = sum(whole.values())
    rows = []
    for name in sorted(whole, key=lambda name: name in _ORDER_LAST):
        own = whole[name] - gaps[name]
        rows.append(
            {
                "phase": name,
                "ms": rounded(1e3 * own),
                "gap_ms": rounded(1e3 * gaps[name]),
                "share": rounded(own / total),
                **spread[name],
            }
        )
    # Waiting for other ranks looks like a gap from here.
    talking = min(talking, sum(gaps.values()))
    for name, seconds in ((REDUCTION, talking), (GAPS, sum(gaps.values()) - talking)):
        extra = {"phase": name, "ms": rounded(1e3 * seconds), "share": rounded(seconds / total)}
        rows.append(extra)
    return rows


def _gap(name: str, seconds: float, traces: Sequence[Trace], on_gpu: bool) -> float:
    """Seconds of a phase between its operators, or kernels.

    A GPU's kernels take as long with the profiler as without. On a CPU it slows operators and what
    lies between them, so the share counts.
    """
    if name == RECORDED:
        launched = [sum(use.seconds for use in trace.kernels.values()) for trace in traces]
        return max(0.0, seconds - float(np.median(launched)))
    spans = [trace.phases().get(name) for trace in traces]
    known = [span for span in spans if span is not None and span.seconds > 0]
    if not known:
        return 0.0
    if on_gpu:
        return max(0.0, seconds - float(np.median([span.busy for span in known])))
    share = float(np.median([1 - span.busy / span.seconds for span in known]))
    return seconds * min(1.0, max(0.0, share))


def _middle(steps: Sequence[Step], kind: bool) -> dict[str, float]:
    """Mean phases of the half of the marked steps that is nearest to the median."""
    chosen = sorted((s for s in steps if s.penalize == kind and s.marked), key=lambda s: s.seconds)
    cut = len(chosen) // 4
    chosen = chosen[cut : len(chosen) - cut]
    found: dict[str, float] = {}
    for step in chosen:
        for name, seconds in step.phases().items():
            found[name] = found.get(name, 0.0) + seconds / len(chosen)
    return found


def _spread(steps: Sequence[Step], shares: Shares) -> dict[str, Row]:
    rounds: dict[str, Any] = {}
    for kind, share in shares.items():
        chosen = [s.phases() for s in steps if s.penalize == kind and s.marked]
        for name in dict.fromkeys(name for phases in chosen for name in phases):
            times = np.array([phases.get(name, 0.0) for phases in chosen])
            rounds[name] = rounds.get(name, 0.0) + 1e3 * share * times
    return {
        name: {
            f"ms_p{p}": rounded(value)
            for p, value in zip((20, 50, 80), np.quantile(times, (0.2, 0.5, 0.8)), strict=True)
        }
        for name, times in rounds.items()
    }


def _lengths(steps: Sequence[Step], kind: bool, marked: bool) -> Any:
    return np.array([s.seconds for s in steps if s.penalize == kind and s.marked == marked])


def operator_figures(
    traces: Mapping[bool, Sequence[Trace]],
    costs: Mapping[bool, Mapping[str, Cost]],
    shares: Shares,
    ceilings: Ceilings,
) -> list[Row]:
    """Every operator of a mean step, the most expensive first, against the roofline.

    "ms", "calls", "share" of all operators; of those with traffic "gflop", "mbyte", "gflop_s",
    "gb_s", "bound" ("compute" or "memory"), and "of_roofline": the least time for its arithmetic
    and its bytes over the time it took. Above 1: its data stayed in a cache.
    """
    cost: dict[str, Cost] = {}
    for kind, share in shares.items():
        for name, own in costs[kind].items():
            cost.setdefault(name, Cost()).add(own, share)
    uses = _mean_uses({kind: [t.operators for t in traces[kind]] for kind in shares}, shares)
    total = sum(use.seconds for use in uses.values())
    rows = []
    for name, use in sorted(uses.items(), key=lambda item: -item[1].seconds):
        row: Row = {
            "operator": name,
            "ms": rounded(1e3 * use.seconds),
            "calls": rounded(use.calls),
            "share": rounded(use.seconds / total),
        }
        known = cost.get(name, Cost())
        if known.bytes and use.seconds:
            least = ceilings.seconds(known.flops, known.bytes)
            row |= {
                "gflop": rounded(known.flops / 1e9),
                "mbyte": rounded(known.bytes / 1e6),
                "gflop_s": rounded(known.flops / use.seconds / 1e9),
                "gb_s": rounded(known.bytes / use.seconds / 1e9),
                "bound": ceilings.bound(known.flops, known.bytes),
                "of_roofline": rounded(least / use.seconds),
                "lost_ms": rounded(1e3 * max(0.0, use.seconds - least)),
            }
        rows.append(row)
    return rows


def kernel_figures(traces: Mapping[bool, Sequence[Trace]], shares: Shares) -> list[Row]:
    """Every kernel of a mean step, the most expensive first: "ms", "calls", "us_each"."""
    uses = _mean_uses({kind: [t.kernels for t in traces[kind]] for kind in shares}, shares)
    return [
        {
            "kernel": name,
            "ms": rounded(1e3 * use.seconds),
            "calls": rounded(use.calls),
            "us_each": rounded(1e6 * use.seconds / use.calls),
        }
        for name, use in sorted(uses.items(), key=lambda item: -item[1].seconds)
    ]


def _mean_uses(
    tables: Mapping[bool, Iterable[Mapping[str, Use]]], shares: Shares
) -> dict[str, Use]:
    """Medians over the profiled steps of a kind, the kinds by their shares."""
    found: dict[str, Use] = {}
    for kind, share in shares.items():
        own = list(tables[kind])
        for name in dict.fromkeys(name for table in own for name in table):
            use = found.setdefault(name, Use())
            use.seconds += share * float(np.median([t.get(name, Use()).seconds for t in own]))
            use.calls += share * float(np.median([t.get(name, Use()).calls for t in own]))
    return {name: use for name, use in found.items() if use.calls}


def image_figures(steps: Sequence[Step], shares: Shares, batch: int) -> Row:
    """Images through each network per image of the batch, and what the algorithm needs.

    D sees each image as real and as fake, and G's fake of it; G makes a fake for each update.
    Empty where the networks' calls are compiled or recorded.
    """
    seen: dict[str, float] = {}
    for kind, share in shares.items():
        step = next(s for s in reversed(steps) if s.penalize == kind and s.marked)
        for network, count in step.images.items():
            seen[network] = seen.get(network, 0.0) + share * count / batch
    gan = "discriminator" in seen
    return {
        network: {
            "images": rounded(count),
            "needed": 3 if network != "generator" else 2 if gan else 1,
        }
        for network, count in seen.items()
    }


def rounded(value: float) -> float:
    """Five digits."""
    return float(f"{value:.5g}")
