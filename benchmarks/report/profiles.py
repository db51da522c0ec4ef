"""The chapter on profiles: where the time of a step goes."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import charts
from .html import Cell, Html, facts, four_digits, join, notes, number, table, tag
from .sources import Results, Row

_OPERATORS, _NAMED = 20, 5


def profiles(results: Results) -> Html:
    """Phases, roofline, operators and hints of every profile."""
    return join(_profile(name, found) for name, found in results.profiles)


def _profile(name: str, found: Row) -> Html:
    step, ceilings = found.get("step") or {}, found.get("ceilings") or {}
    parts: list[object] = [
        tag("h3", f"{found.get('preset')}, batch {found.get('batch')}, {found.get('device')}"),
        facts([
            ("step, median", _ms(step.get("ms_p50"))),
            ("20-80 %", f"{_ms(step.get('ms_p20'))} - {_ms(step.get('ms_p80'))}"),
            ("images per second", step.get("img_s")),
            ("precision, engine", f"{found.get('dtype')}, {found.get('engine')}"),
            ("MFU", _percent(found.get("mfu"))),
            ("phases together, of the step", _percent(found.get("sum_over_step"))),
            ("from", name),
        ]),
    ]
    phases = {row["phase"]: row["ms"] for row in found.get("phases", []) if "ms" in row}
    operators = found.get("operators", [])
    drawn = [
        charts.bars("Phases of a mean step: ms", phases, unit="ms"),
        _roofline(operators, ceilings),
    ]
    if any(drawn):
        parts.append(tag("div", *drawn, class_="charts wide"))
    parts += [
        table("Operators, the most expensive first", _HEADERS, _operators(operators)),
        tag("h3", "Hints") if found.get("hints") else "",
        notes(map(str, found.get("hints") or [])),
    ]
    return join(parts)


_HEADERS = ("operator", "ms", "share", "calls", "GFLOP/s", "GB/s", "of the roofline", "bound by")


def _operators(rows: list[Row]) -> list[list[Cell]]:
    return [
        [
            str(row.get("operator")), number(row.get("ms")), number(row.get("share"), "{:.1%}"),
            number(row.get("calls")), number(row.get("gflop_s")), number(row.get("gb_s")),
            number(row.get("of_roofline"), "{:.0%}"), str(row.get("bound", "-")),
        ]
        for row in rows[:_OPERATORS]
    ]


def _roofline(rows: list[Row], ceilings: dict[str, Any]) -> Html:
    peak, moved = ceilings.get("gflop_s"), ceilings.get("gb_s")
    if not (peak and moved):
        return Html("")
    placed = {
        (row["gflop_s"] / row["gb_s"], row["gflop_s"]): row
        for row in rows
        if row.get("gflop_s") and row.get("gb_s")
    }
    groups: dict[str, list[tuple[float, float]]] = {}
    for place, row in placed.items():
        groups.setdefault(f"bound by {row.get('bound', '?')}", []).append(place)
    named = {place: _short(row) for place, row in list(placed.items())[:_NAMED]}
    return charts.cloud(
        "Roofline of the operators", groups, x="FLOP per byte", y="GFLOP/s",
        roof=lambda x: np.minimum(peak, x * moved),
        roof_name=f"{four_digits(peak)} GFLOP/s, {four_digits(moved)} GB/s", names=named,
    )


def _short(row: Row) -> str:
    return str(row["operator"]).rpartition("::")[2]


def _ms(value: Any) -> str:
    return f"{value:,.4g} ms" if isinstance(value, int | float) else "-"


def _percent(value: Any) -> str | None:
    return f"{value:.1%}" if isinstance(value, int | float) else None
