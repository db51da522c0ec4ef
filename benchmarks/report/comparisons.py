"""Chapters on trainings compared: methods under equal time, and the band that seeds span."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..band import WINDOW, judge
from . import charts
from .html import Cell, Html, Number, facts, join, notes, picture, table, tag
from .sources import Results, Row, grouped

_PICTURES = {
    "samples.png": "samples side by side",
    "quality.png": "quality against the time of sampling and of training",
    "coverage.png": "coverage of the modes",
}
_LEADING = re.compile(r"-?[\d,]*\.?\d+(e[-+]?\d+)?%?")


def methods(results: Results) -> Html:
    """DDGAN against its baselines, under equal training time."""
    return join(_comparison(folder, report) for folder, report in results.comparisons)


def _comparison(folder: Path, report: Row) -> Html:
    rows = [[_cell(cell) for cell in row] for row in report["table"]]
    title = f"{report.get('preset', folder.name)}: quality, coverage and speed"
    warnings = dict.fromkeys(
        str(sentence)
        for row in report.get("measured", [])
        if isinstance(row, dict)
        for sentence in row.get("warnings") or []
    )
    pictures = [
        picture(folder / name, caption)
        for name, caption in _PICTURES.items()
        if (folder / name).is_file()
    ]
    return join([
        tag("h3", title),
        facts([
            ("training of each", f"{report['budget_s']:g} s" if "budget_s" in report else None),
            ("seeds", ", ".join(map(str, report.get("seeds", [])))),
            ("samples", f"{report['n']:,}" if isinstance(report.get("n"), int) else None),
            ("features", (report.get("extractor") or {}).get("name")),
            ("machine", report.get("machine")),
            ("device", report.get("device")),
        ]),
        table("Median over the seeds, in parentheses the range", report["headings"], rows),
        tag("div", *pictures, class_="pictures large") if pictures else "",
        notes(warnings),
    ])


def _cell(text: Any) -> Cell:
    """Text that begins with a number is sorted by it."""
    text = str(text)
    if not (found := _LEADING.match(text)):
        return text
    shown = found[0].replace(",", "")
    value = float(shown.rstrip("%")) / (100 if shown.endswith("%") else 1)
    return Number(value, text)


def seeds(results: Results) -> Html:
    """Whether the fast ways train as float32 does."""
    parts = []
    for group in grouped(results.of("band"), "origin", "preset"):
        try:
            found = judge(group)
        except (ValueError, KeyError) as error:
            parts.append(tag("p", f"{group[0]['origin'].name}: no band, {error}."))
            continue
        told = ", ".join(f"{one['inside']:.0%} of {name}" for name, one in found.items())
        drawn = [
            charts.band(name, one["at"], one["band"], one["fast"],
                        edges_name="TF32, seeds", values_name="fast")
            for name, one in found.items()
        ]
        machine = f"{group[0].get('preset')} on {group[0]['card']}"
        parts += [tag("h3", machine), tag("div", *drawn, class_="charts")]
        parts.append(tag("p", f"Means of {WINDOW} steps of the fast run inside the band: {told}."))
    return join(parts)
