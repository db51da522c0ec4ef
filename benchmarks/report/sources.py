"""Finds what there is to report: result files of every kind, each row with its origin."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECIPES = ("recipe", "reference", "recipe_fp32", "reference_our_filter")
"""Providers that are the published recipe or loader; we compare with the first there is."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """Where rows come from.

    Attributes:
        name: of the file, below the folder of results.
        content: the file's, without its rows.
    """

    name: str
    content: Mapping[str, Any]

    def of(self, row: Mapping[str, Any], key: str) -> Any:
        """A fact that single benchmarks state in every row, and suites once."""
        environment = self.content.get("environment") or {}
        for place in (row, self.content, environment):
            if isinstance(place, dict) and place.get(key) is not None:
                return place[key]
        return None


@dataclass
class Results:
    """Everything found in a folder.

    Attributes:
        rows: of benchmarks, each with "origin" and "card", the machine's short name.
        suites: origins that are of the GPU suite.
        profiles: name and content of profiles.
        comparisons: folder and report of each comparison of methods.
        problems: files that could not be read, in sentences.
    """

    rows: list[Row] = field(default_factory=list)
    suites: list[Origin] = field(default_factory=list)
    profiles: list[tuple[str, Row]] = field(default_factory=list)
    comparisons: list[tuple[Path, Row]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of(self, *cases: str) -> list[Row]:
        """The rows of some cases."""
        return [row for row in self.rows if row.get("case") in cases]


def read_results(folder: Path) -> Results:
    """Read results/*.json and the comparisons in folders below.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--results: there is no folder {folder}.")
    found = Results()
    paths = [*sorted(folder.glob("*.json")), *sorted(folder.glob("*/results.json"))]
    for path in paths:
        content = _read(path, found)
        if content is not None:
            _take(str(path.relative_to(folder)), content, found)
    for path in sorted(folder.glob("*/report.json")):
        content = _read(path, found)
        if content is not None and "headings" in content and "table" in content:
            found.comparisons.append((path.parent, content))
    return found


def _read(path: Path, found: Results) -> Row | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        found.problems.append(f"{path.name} could not be read: {error}.")
        return None
    if not isinstance(content, dict):
        found.problems.append(f"{path.name} is left out: it holds no object.")
        return None
    return content


def _take(name: str, content: Row, found: Results) -> None:
    if isinstance(content.get("profile"), dict):
        found.profiles.append((name, content["profile"]))
        return
    rows = content.get("rows")
    if not isinstance(rows, list):
        found.problems.append(f"{name} is left out: it holds neither rows nor a profile.")
        return
    origin = Origin(name, {key: value for key, value in content.items() if key != "rows"})
    if "parts" in content:
        found.suites.append(origin)
    for row in rows:
        if isinstance(row, dict):
            found.rows.append(row | {"origin": origin, "card": _card(origin, row)})


def _card(origin: Origin, row: Row) -> str:
    """The GPU's name, or the processor's."""
    machine = origin.of(row, "machine")
    if isinstance(machine, str):
        return machine
    machine = machine or {}
    name = machine.get("gpu") or machine.get("cpu") or "unknown machine"
    toy = " (toy sizes)" if origin.content.get("tiny") else ""
    return re.sub(r"\((R|TM)\)|NVIDIA |( CPU)?( Processor)?$", "", str(name)) + toy


def grouped(rows: list[Row], *keys: str) -> Iterator[list[Row]]:
    """Rows that agree in some columns, in the order of their first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(repr([row.get(key) for key in keys]), []).append(row)
    yield from groups.values()


def is_sound(row: Row) -> bool:
    """Whether a row was timed, and its provider computed what the others did."""
    return row.get("agrees", True) is not False and isinstance(row.get("ms_p50"), int | float)
