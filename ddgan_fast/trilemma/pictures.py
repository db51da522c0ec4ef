"""The report's pictures: samples side by side, quality against time, coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddgan_fast.evaluation.modes import centres
from ddgan_fast.images import grid, readable_scale
from ddgan_fast.plots import new_figure, save_figure
from ddgan_fast.trilemma.summary import Row, kind_of, quality_of

_IMAGES, _COLUMNS = 64, 8
_POINTS = 4000
_BARS = 25
_HIGHEST = 6.0


def samples(drawn: Mapping[str, np.ndarray], path: Path, *, smooth: bool) -> None:
    """Grids, or clouds of points, next to each other.

    Args:
        drawn: title -> uint8 [N, H, W, C] or points [N, 2].
        path: the PNG file.
        smooth: enlarge images smoothly.
    """
    columns = min(4, len(drawn))
    lines = -(-len(drawn) // columns)
    figure = new_figure(width=3.1 * columns, height=3.4 * lines)
    for number, (title, values) in enumerate(drawn.items()):
        axes = figure.add_subplot(lines, columns, number + 1)
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        if values.ndim == 2:
            axes.scatter(*values[:_POINTS].T, s=1, alpha=0.4, linewidths=0)
            axes.set(xlim=(-5, 5), ylim=(-5, 5), aspect="equal")
            axes.scatter(*centres().T, s=14, facecolors="none", edgecolors="0.3", linewidths=0.4)
        else:
            scale = readable_scale(values.shape[1])
            picture = grid(values[:_IMAGES], _COLUMNS, scale=scale, smooth=smooth)
            axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
    save_figure(figure, path)


def quality(rows: Sequence[Row], measured: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Quality against the time of sampling, and against that of training.

    Args:
        rows: of ``summarize``.
        measured: of ``Comparison.run``, for the checkpoints on the way.
        path: the PNG file.
    """
    name, label, less = quality_of(rows[0].metrics) or next(
        (n, n, False) for n in rows[0].metrics
    )
    figure = new_figure(width=10, height=4.2)
    left, right = figure.subplots(1, 2)
    colours = {row.method.name: f"C{i}" for i, row in enumerate(_first_of_each(rows))}
    names = list(colours)
    for row in rows:
        value = row.metrics[name]
        errors = [[value.median - value.low], [value.high - value.median]]
        colour = colours[row.method.name]
        left.errorbar(
            row.seconds_per_100, value.median, errors, fmt="o", color=colour, capsize=2, ms=5
        )
        left.annotate(
            row.title,
            (row.seconds_per_100, value.median),
            textcoords="offset points",
            # Models of the same kind often lie on the same spot.
            xytext=(6, 5 if names.index(row.method.name) % 2 else -10),
            fontsize=7,
        )
    left.set(xscale="log", xlabel="sampling: seconds per 100", ylabel=label)
    left.margins(x=0.25, y=0.12)
    progress = [
        r
        for r in measured
        if r["kind"] == "progress" and r["train_s"] is not None and name in r["metrics"]
    ]
    for row in _first_of_each(rows):
        own = [r for r in progress if r["method"] == row.method.name]
        for number, seed in enumerate(dict.fromkeys(r["seed"] for r in own)):
            line = sorted(
                (r["train_s"], float(r["metrics"][name])) for r in own if r["seed"] == seed
            )
            text = f"{row.method.title} ({own[0]['nfe']} NFE)" if number == 0 else None
            right.plot(*zip(*line, strict=True), ".-", color=colours[row.method.name], label=text)
    right.set(xlabel="training: seconds", ylabel=label)
    if right.lines:
        right.legend(frameon=False, fontsize=7)
    for axes in (left, right):
        if less:
            axes.set_yscale("log")
            _plain_decades(axes)
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def _plain_decades(axes: Any) -> None:
    """Write 1, 2, 5, 10, ... on a logarithmic axis instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def coverage(
    rows: Sequence[Row],
    measured: Sequence[Mapping[str, Any]],
    path: Path,
    fair: Sequence[float] | None = None,
) -> None:
    """Samples in each mode relative to its fair share; recall and coverage where none is known.

    Args:
        rows: of ``summarize``.
        measured: of ``Comparison.run``.
        path: the PNG file.
        fair: shares of the modes among real samples; default all alike.
    """
    first = {r["drawing"]: r for r in reversed(measured) if r["kind"] == "final"}
    counted = {row.title: first[row.title]["counts"] for row in rows}
    if all(counts is not None for counts in counted.values()):
        columns = min(4, len(rows))
        lines = -(-len(rows) // columns)
        figure = new_figure(width=3.1 * columns, height=2.1 * lines)
        shares = {
            title: relative_shares(counts, first[title]["n"], fair)
            for title, counts in counted.items()
        }
        highest = max(2.0, min(max(float(s.max()) for s in shares.values()) * 1.05, _HIGHEST))
        for number, (title, values) in enumerate(shares.items()):
            axes = figure.add_subplot(lines, columns, number + 1)
            _shares(axes, values, highest)
            axes.set_title(title, fontsize=9)
            if number % columns == 0:
                axes.set_ylabel("share / fair share", fontsize=8)
    else:
        figure = new_figure(width=8, height=3.6)
        _recall(figure.add_subplot(), rows)
    save_figure(figure, path)


def relative_shares(
    counts: Sequence[int], n: int, fair: Sequence[float] | None = None
) -> np.ndarray:
    """Share of each mode among n samples over its fair one; 0 of a mode that no real sample has."""
    real = np.full(len(counts), 1 / len(counts)) if fair is None else np.asarray(fair)
    return np.divide(np.asarray(counts) / n, real, out=np.zeros(len(counts)), where=real > 0)


def _shares(axes: Any, shares: np.ndarray, highest: float) -> None:
    if len(shares) <= _BARS:
        axes.bar(range(len(shares)), shares)
        axes.set_xlabel("mode", fontsize=8)
    else:
        axes.plot(np.sort(shares)[::-1])
        axes.set_xlabel("modes, sorted", fontsize=8)
    axes.axhline(1.0, color="0.3", linewidth=0.8, linestyle="--")
    axes.set_ylim(0, highest)
    axes.tick_params(labelsize=7)


def _recall(axes: Any, rows: Sequence[Row]) -> None:
    shown = [n for n in rows[0].metrics if kind_of(n) in ("recall", "coverage", "precision")]
    height = 0.8 / max(1, len(shown))
    places = np.arange(len(rows))[::-1]
    for i, name in enumerate(shown):
        values = [row.metrics[name].median for row in rows]
        axes.barh(places - i * height, values, height, label=name)
    axes.set_yticks(places - height * (len(shown) - 1) / 2, [row.title for row in rows])
    axes.set_xlim(0, 1)
    if shown:
        # Above the axes: inside it would lie on the longest bars.
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(shown)}
        axes.legend(frameon=False, fontsize=8, **above)
    else:
        nothing = "neither modes nor recall or coverage were measured"
        axes.text(0.5, 0.5, nothing, transform=axes.transAxes, ha="center", va="center", fontsize=9)


def _first_of_each(rows: Sequence[Row]) -> list[Row]:
    return list({row.method.name: row for row in reversed(rows)}.values())[::-1]
