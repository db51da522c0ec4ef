"""Diagrams as SVG inside the page: text stays text, colours follow the page's light or dark."""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
import re
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from .html import Html, escaped, four_digits, tag

MISSING = "Diagrams are left out: they need matplotlib, pip install 'ddgan_fast[demo]'."
_INK, _RULE = "#010203", "#010204"
_SERIES = tuple(f"#0105{i:02x}" for i in range(10))
# Stand-ins that matplotlib draws with, and the page's colours that take their places.
_COLOURS = {_INK: "currentColor", _RULE: "var(--rule)"} | {
    colour: f"var(--c{i})" for i, colour in enumerate(_SERIES)
}
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
}
_MOST_POINTS = 400
_LEGEND = 55

Points = Sequence[tuple[float, float]]


def available() -> bool:
    """Whether diagrams can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def lines(
    title: str,
    series: Mapping[str, Points],
    *,
    x: str = "step",
    log: bool = False,
    markers: bool = False,
) -> Html:
    """Lines over a common x; values that are no numbers are left out."""
    known = {name: _finite(points, log) for name, points in series.items()}
    known = {name: _thinned(points) for name, points in known.items() if points}
    if not known:
        return Html("")

    def draw(axes: Any) -> None:
        for colour, (name, points) in zip(itertools.cycle(_SERIES), known.items(), strict=False):
            marker = "o" if markers or len(points) == 1 else None
            axes.plot(*zip(*points, strict=True), color=colour, label=name, marker=marker, ms=3.5)
        axes.set_xlabel(x)
        if log:
            axes.set_yscale("log")
            _label_decades(axes.yaxis)
        axes.xaxis.set_major_locator(_ticker().MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(_ticker().FuncFormatter(_short))
        if len(known) > 1:
            _legend(axes, known)

    return _chart(title, (4.4, 2.9), draw)


def bars(
    title: str,
    values: Mapping[str, float],
    *,
    unit: str,
    roof: tuple[float, str] | None = None,
    marked: Collection[str] = (),
    log: bool = False,
) -> Html:
    """Horizontal bars, the first on top, with their values.

    Args:
        title: of the diagram.
        values: by name.
        unit: of the values.
        roof: a line to reach, and its name.
        marked: names of bars in another colour.
        log: whether the axis is logarithmic.
    """
    if not values:
        return Html("")

    def draw(axes: Any) -> None:
        names, heights = list(values), list(values.values())
        places = np.arange(len(names))[::-1]
        colours = [_SERIES[1] if name in marked else _SERIES[0] for name in names]
        axes.barh(places, heights, 0.62, color=colours)
        for place, value in zip(places, heights, strict=True):
            axes.annotate(four_digits(value), (value, place), xytext=(4, 0), va="center",
                          textcoords="offset points", fontsize=8)
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.set_xlabel(unit)
        if log:
            axes.set_xscale("log")
            _label_decades(axes.xaxis)
        if roof:
            axes.axvline(roof[0], color=_SERIES[4], linestyle="--", linewidth=1)
            axes.annotate(roof[1], (roof[0], 1), xycoords=("data", "axes fraction"), fontsize=8,
                          xytext=(-3, 3), textcoords="offset points", ha="right", va="bottom")
        axes.margins(x=0.16)

    return _chart(title, (5.2, 0.8 + 0.27 * len(values)), draw)


def cloud(
    title: str,
    groups: Mapping[str, Points],
    *,
    x: str,
    y: str,
    roof: Callable[[np.ndarray], np.ndarray] | None = None,
    roof_name: str = "",
    names: Mapping[tuple[float, float], str] | None = None,
) -> Html:
    """Points by group in logarithmic axes under a roof, a function of x."""
    known = {name: _positive(points) for name, points in groups.items()}
    known = {name: points for name, points in known.items() if points}
    if not known:
        return Html("")

    def draw(axes: Any) -> None:
        every = [point for points in known.values() for point in points]
        for colour, (name, points) in zip(itertools.cycle(_SERIES), known.items(), strict=False):
            axes.scatter(*zip(*points, strict=True), s=16, color=colour, label=name, alpha=0.8,
                         linewidths=0)
        axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
        for axis in (axes.xaxis, axes.yaxis):
            _label_decades(axis)
        if roof:
            low, high = (f(p[0] for p in every) for f in (min, max))
            where = np.geomspace(low / 1.5, high * 1.5, 60)
            axes.plot(where, roof(where), color=_SERIES[4], linestyle="--", label=roof_name)
        for place, text in (names or {}).items():
            axes.annotate(text, place, xytext=(4, 3), textcoords="offset points", fontsize=7)
        _legend(axes, [*known, roof_name])

    return _chart(title, (5.2, 3.6), draw)


def plane(title: str, points: Points) -> Html:
    """Generated points in the plane."""
    found = _finite(points, False)
    if not found:
        return Html("")

    def draw(axes: Any) -> None:
        axes.scatter(*zip(*found, strict=True), s=5, color=_SERIES[0], alpha=0.6, linewidths=0)
        axes.set_aspect("equal", adjustable="datalim")

    return _chart(title, (3.6, 3.4), draw)


def band(
    title: str, x: Sequence[float], edges: tuple[Sequence[float], Sequence[float]],
    values: Sequence[float], *, edges_name: str, values_name: str,
) -> Html:
    """A line over a band."""

    def draw(axes: Any) -> None:
        axes.fill_between(x, *edges, color=_SERIES[0], alpha=0.25, label=edges_name, linewidth=0)
        axes.plot(x, values, color=_SERIES[1], label=values_name)
        axes.set_xlabel("step")
        _legend(axes, (edges_name, values_name))

    return _chart(title, (4.4, 2.9), draw)


def _chart(title: str, size: tuple[float, float], draw: Callable[[Any], None]) -> Html:
    if not available():
        return Html("")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    shown = _inline(text, title, f"c{zlib.crc32(text.encode()):08x}-")
    return tag("figure", shown, tag("figcaption", title))


def _inline(text: str, title: str, prefix: str) -> Html:
    """An SVG file as an element of a page: no prolog, no metadata, names of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>',
                  rf'<svg \1 role="img" aria-label="{escaped(title)}">', text, count=1)
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", text)
    for stand_in, colour in _COLOURS.items():
        text = text.replace(stand_in, colour)
    return Html(text)


def _ticker() -> Any:
    from matplotlib import ticker

    return ticker


def _legend(axes: Any, names: Collection[str]) -> None:
    """Above the diagram, in as few rows as fit."""
    columns = len(names) if sum(len(name) + 6 for name in names) < _LEGEND else 2
    axes.legend(ncols=columns, loc="lower left", bbox_to_anchor=(0, 1.0), borderpad=0,
                columnspacing=1.0, handlelength=1.2)


def _label_decades(axis: Any) -> None:
    """Plain numbers on a logarithmic axis."""
    axis.set_major_locator(_ticker().LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(_ticker().FuncFormatter(_short))
    axis.set_minor_formatter(_ticker().NullFormatter())


def _short(value: float, _: object = None) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and value % (size / 10) == 0):
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _finite(points: Points, log: bool) -> list[tuple[float, float]]:
    return [
        (x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)
    ]


def _positive(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in _finite(points, True) if x > 0]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points as can be seen: means of neighbours."""
    if len(points) <= _MOST_POINTS:
        return points
    parts = np.array_split(np.array(points), _MOST_POINTS)
    return [(float(x), float(y)) for x, y in (part.mean(0) for part in parts)]
