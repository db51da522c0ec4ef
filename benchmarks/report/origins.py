"""The chapters on where the numbers come from, and on what there is no number for."""

from __future__ import annotations

from typing import Any

from .html import Cell, Html, join, notes, number, table, tag
from .sources import Origin, Results, Row


def environment(results: Results) -> Html:
    """Machine, versions and command of every file of results."""
    rows: dict[tuple[str, ...], list[Cell]] = {}
    for row in results.rows:
        line = _origin(row["origin"], row)
        rows[tuple(map(str, line))] = line
    for name, profile in results.profiles:
        line = _origin(Origin(name, profile), {})
        rows[tuple(map(str, line))] = line
    for folder, report in results.comparisons:
        line = _origin(Origin(f"{folder.name}/report.json", report), {})
        rows[tuple(map(str, line))] = line
    headers = ("file", "when", "machine", "versions", "command")
    return table("Where the numbers come from", headers, list(rows.values()))


def _origin(origin: Origin, row: Row) -> list[Cell]:
    def of(*keys: str) -> Any:
        return next((v for key in keys if (v := origin.of(row, key)) is not None), None)

    versions = of("versions") or {}
    listed = ", ".join(f"{k} {v}" for k, v in versions.items() if v) or "-"
    machine = of("machine")
    if isinstance(machine, dict):
        parts = [machine.get("gpu"), machine.get("cpu")]
        parts += [f"{key}: {machine[key]}" for key in ("cores", "threads") if machine.get(key)]
        machine = ", ".join(str(part) for part in parts if part)
    command = of("command")
    return [
        origin.name, str(of("when", "time", "began") or "-"), str(machine or "-"), listed,
        tag("code", command) if command else "-",
    ]


def suites(results: Results) -> Html:
    """Which parts of the GPU suite ended well."""
    lines: list[list[Cell]] = []
    errors = []
    for origin in results.suites:
        for part in origin.content.get("parts", []):
            units = part.get("units") or {}
            well = sum(status == "ok" for status in units.values())
            lines.append([
                origin.name, str(part.get("name")), str(part.get("status")),
                number(part.get("seconds"), "{:,.0f}"), f"{well} of {len(units)}",
            ])
            errors += [
                f"{part.get('name')}, {unit}: {said[-1]}"
                for unit, said in (part.get("errors") or {}).items()
                if said
            ]
    tests = [
        f"{row.get('file')}: {row['failures'] + row.get('errors', 0)} of {row.get('tests')} failed"
        for row in results.rows
        if row.get("part") == "tests" and row.get("failures", 0) + row.get("errors", 0)
    ]
    headers = ("file", "part", "ended", "s", "units that ended well")
    return join([table("Parts of the suite", headers, lines), notes(errors), notes(tests)])


def unmeasured(results: Results) -> Html:
    """What the results say nothing about, in sentences."""
    on_gpu = [row for row in results.rows if (_machine(row)).get("gpu")]
    told = []
    if not on_gpu:
        told.append("No result of a GPU is there yet: neither speed nor memory there is stated.")
    for case, sentence in _SENTENCES.items():
        if not results.of(case):
            told.append(sentence)
    if not results.profiles:
        told.append("No profile of a step is there: ddgan-fast profile PRESET makes one.")
    if not results.comparisons:
        told.append("Quality, coverage and speed under equal training time have not been compared.")
    return notes(told + results.problems)


_SENTENCES = {
    "kernels": "The ops alone have not been timed.",
    "ablation": "What each part of the speed is worth (the ablation) is not measured yet.",
    "sample": "Sampling has not been timed.",
    "loader": "The loaders have not been timed.",
    "band": "Whether the fast ways train as float32 does (the band) is not measured yet.",
}


def _machine(row: Row) -> dict[str, Any]:
    machine = row["origin"].of(row, "machine")
    return machine if isinstance(machine, dict) else {}
