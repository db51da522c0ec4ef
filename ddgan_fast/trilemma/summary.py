"""What a comparison's measurements say: one row per method and way to sample, over all seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddgan_fast.trilemma.methods import Method

# Metric, its heading, how it is written, and which way is better.
_COLUMNS = {
    "near": ("near a mode", "{:.1%}"),
    "spread": ("spread (0.05)", "{:.3f}"),
    "fid": ("FID", "{:.1f}"),
    "kid": ("KID", "{:.4f}"),
    "is": ("IS", "{:.2f}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "density": ("density", "{:.2f}"),
    "coverage": ("coverage", "{:.2f}"),
    "modes": ("modes", "{:.0f}"),
    "kl": ("KL", "{:.3f}"),
}
_STAND_INS = {"fd": "fid", "kd": "kid", "cs": "is"}


@dataclass(frozen=True)
class Spread:
    """A number over several seeds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, form: str) -> str:
        """The median, and the range where there are several values that differ."""
        middle, low, high = (form.format(v) for v in (self.median, self.low, self.high))
        return middle if low == high else f"{middle} ({low} to {high})"


@dataclass(frozen=True)
class Row:
    """A line of the report."""

    method: Method
    title: str
    nfe: int
    seconds_per_100: float
    steps: int
    train_s: Spread | None
    metrics: dict[str, Spread]


def kind_of(metric: str) -> str:
    """The metric without the name of its extractor: "fid" of "fd_digits"."""
    base = metric.split("_")[0]
    return _STAND_INS.get(base, base)


def summarize(methods: Iterable[Method], rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The report's lines, in the methods' order.

    Args:
        methods: what was compared.
        rows: of ``Comparison.run``.
    """
    timed = {r["drawing"]: r["s_per_100"] for r in rows if r["kind"] == "time"}
    found = []
    for method in methods:
        for drawing in method.drawings:
            own = [
                r
                for r in rows
                if r["kind"] == "final"
                and (r["method"], r["drawing"]) == (method.name, drawing.title)
            ]
            seconds = [r["train_s"] for r in own if r["train_s"] is not None]
            found.append(
                Row(
                    method,
                    drawing.title,
                    own[0]["nfe"],
                    timed[drawing.title],
                    own[0]["step"] or 0,
                    Spread.of(seconds) if seconds else None,
                    {
                        name: Spread.of([float(r["metrics"][name]) for r in own])
                        for name in own[0]["metrics"]
                    },
                )
            )
    return found


def headings(rows: Sequence[Row]) -> list[str]:
    """Of the table."""
    return ["method", "NFE", "s per 100", *(_heading(name) for name in shown(rows)), "trained"]


def cells(row: Row, names: Sequence[str]) -> list[str]:
    """One line of the table as text."""
    time = row.train_s
    trained = f"{row.steps:,} steps, {time.text('{:.0f}')} s" if time else "loaded"
    values = [row.metrics[name].text(_COLUMNS[kind_of(name)][1]) for name in names]
    return [row.title, str(row.nfe), f"{row.seconds_per_100:.3g}", *values, trained]


def shown(rows: Sequence[Row]) -> list[str]:
    """Metrics that have a column, in the columns' order."""
    order = list(_COLUMNS)
    names = [n for n in rows[0].metrics if kind_of(n) in order and "_std" not in n]
    return sorted(names, key=lambda name: order.index(kind_of(name)))


def _heading(name: str) -> str:
    kind = kind_of(name)
    text = _COLUMNS[kind][0]
    base = name.split("_")[0]
    return name if base in _STAND_INS else text


def quality_of(metrics: Mapping[str, Any]) -> tuple[str, str, bool] | None:
    """Name and label of the metric that stands for quality, and whether less of it is better."""
    for name in metrics:
        if kind_of(name) == "fid":
            return name, "FID" if name == "fid" else f"Fréchet distance ({name})", True
    if "near" in metrics:
        return "near", "share of the samples near a mode", False
    return None
