"""The README's tables of a CPU: a training step against the recipe, and the loaders.

``python -m benchmarks.readme`` writes them, from ``results/step-cifar10-b4-cpu.json`` and
``results/loader-cpu.json``, which ``ddgan-fast bench`` wrote.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ddgan_fast import tables

RESULTS = Path(__file__).resolve().parent / "results"
STEP = (
    "<!-- the step on a CPU, written by `python -m benchmarks.readme` -->",
    "<!-- end of the step on a CPU -->",
)
LOADERS = (
    "<!-- the loaders, written by `python -m benchmarks.readme` -->",
    "<!-- end of the loaders -->",
)
_LOADERS = {
    "ring": "ring",
    "dali": "DALI",
    "workers": "threads",
    "reference": "as published (Pillow in worker processes, float)",
    "reference_jpeg": "as published",
}


def step(results: Path = RESULTS) -> str:
    """The step, its conditions and its command."""
    rows = rows_of(results / "step-cifar10-b4-cpu.json")
    titles = {
        "ddgan_fast": "ddgan_fast",
        "reference": "published recipe",
        "reference_our_filter": "published recipe with our filter",
    }
    ours, recipe, other = found = [_one(rows, name) for name in titles]
    header = ["`cifar10`, batch 4, float32, one CPU thread", "ms per step, median", "img/s"]
    lines = [
        [title, f"{row['ms_p50']:,.0f}", f"{row['img_s']:.2f}"]
        for title, row in zip(titles.values(), found, strict=True)
    ]
    whole, without = (row["ms_p50"] / ours["ms_p50"] for row in (recipe, other))
    return (
        tables.markdown(header, lines) + f"\n{whole:.1f} times as fast; {without:.1f} times "
        "where the recipe has our filter, as its own is slow on CPUs. All in one run, R1 "
        f"weighted by its interval of {ours['r1_every']} steps. {machine_of(ours)}. Command: "
        f"`{ours['command']}`.\n"
    )


def loaders(results: Path = RESULTS) -> str:
    """The loaders by the CPU time of an image."""
    rows = rows_of(results / "loader-cpu.json")
    header = ["loader", "data", "CPU-ms per image", "cores for 8 GPUs at 400 img/s each"]
    found = [(title, _one(rows, name)) for name, title in _LOADERS.items()]
    lines = [
        [title, row["data"], f"{row['cpu_ms_p50']:.3f}", f"{row['cores_for_node']:.1f}"]
        for title, row in found
    ]
    first = found[0][1]
    return (
        tables.markdown(header, lines)
        + f"\n{first['count']} {first['images']} at {first['size']}x{first['size']} pixels, batch "
        f"{first['batch']}, medians of one run. {machine_of(first)}. Command: "
        f"`{first['command']}`.\n"
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of results."""
    return json.loads(path.read_text())["rows"]


def _one(rows: list[dict[str, Any]], provider: str) -> dict[str, Any]:
    return next(row for row in rows if row["provider"] == provider)


def machine_of(row: dict[str, Any]) -> str:
    """Where and with what a row was measured."""
    machine = row["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, torch {row['versions']['torch']}"
