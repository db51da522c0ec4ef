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
    rows = _rows(results / "step-cifar10-b4-cpu.json")
    ours, recipe = (_one(rows, name) for name in ("ddgan_fast", "reference"))
    header = ["`cifar10`, batch 4, float32, one CPU thread", "ms per step, median", "img/s"]
    lines = [
        [title, f"{row['ms_p50']:,.0f}", f"{row['img_s']:.2f}"]
        for title, row in (("ddgan_fast", ours), ("published recipe", recipe))
    ]
    ratio = recipe["ms_p50"] / ours["ms_p50"]
    return (
        tables.markdown(header, lines) + f"\n{ratio:.1f} times as fast, both in one run, R1 "
        f"weighted by its interval of {ours['r1_every']} steps. {_machine(ours)}. Command: "
        f"`{ours['command']}`.\n"
    )


def loaders(results: Path = RESULTS) -> str:
    """The loaders by the CPU time of an image."""
    rows = _rows(results / "loader-cpu.json")
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
        f"{first['batch']}, medians of one run. {_machine(first)}. Command: `{first['command']}`.\n"
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"]


def _one(rows: list[dict[str, Any]], provider: str) -> dict[str, Any]:
    return next(row for row in rows if row["provider"] == provider)


def _machine(row: dict[str, Any]) -> str:
    machine = row["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, torch {row['versions']['torch']}"
