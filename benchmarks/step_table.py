"""The README's tables of whole steps on GPUs: ``python -m benchmarks.step_table`` writes them anew.

From the rows of the GPU suite in results/*.json; without such results they say so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddgan_fast.tables import markdown

from . import readme

RESULTS = Path(__file__).resolve().parent / "results"
BEGIN = "<!-- written by `python -m benchmarks.step_table` -->"
END = "<!-- end of the tables of steps -->"
NOTHING = "No result of a GPU is there yet.\n"
_STEPS = ("step", "step_compiled")
_RECIPES = ("recipe", "recipe_fp32", "reference")

Row = dict[str, Any]


def gpu_rows(results: Path) -> list[Row]:
    """Rows of whole steps and of sampling on GPUs, each with its card and measured matrix rate.

    Rows whose providers disagreed are left out. Of a row that was measured again the newest stays.
    """
    found: dict[tuple[Any, ...], Row] = {}
    contents = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    suites = [c for c in contents if c.get("device") == "cuda" and not c.get("tiny")]
    for content in sorted(suites, key=lambda c: c["began"]):
        environment = content.get("environment", {})
        card = environment.get("machine", {}).get("gpu") or "GPU"
        for row in content["rows"]:
            if row.get("case") in (*_STEPS, "sample", "ablation") and row.get("agrees"):
                names = ("case", "preset", "batch", "chain", "provider")
                key = (card, *(row.get(name) for name in names))
                rate = environment.get("matrix_tflop_s")
                found[key] = row | {"card": card, "matrix_tflop_s": rate}
    return list(found.values())


def steps(rows: Sequence[Row]) -> str:
    """Training: the fastest of ours against the recipe measured in the same unit."""
    header = ["card", "preset", "batch", "ours (how)", "img/s", "ms", "peak memory"]
    header += ["share of the card's matrix rate", "recipe (TF32)", "ratio", "strict fp32 recipe"]
    lines = []
    for group in _groups([row for row in rows if row["case"] in _STEPS]):
        ours = [row for row in group if row["provider"] not in _RECIPES]
        if not ours:
            continue
        best = min(ours, key=lambda row: row["ms_p50"])
        # Both of one run, as other minutes may be slower ones.
        run = best["case"], best.get("chain")
        recipes = {r["provider"]: r for r in group if (r["case"], r.get("chain")) == run}
        recipe, strict = recipes.get("recipe"), _named(group, "recipe_fp32")
        lines.append([
            best["card"], best["preset"], str(best["batch"]),
            f"{best['dtype']}, {best['provider']}",
            f"**{best['img_s']:,.0f}**", f"{best['ms_p50']:.1f}", _gib(best), _share(best),
            f"{recipe['img_s']:,.0f} img/s, {_gib(recipe)}" if recipe else "-",
            f"**{recipe['ms_p50'] / best['ms_p50']:.1f}**" if recipe else "-",
            f"{strict['img_s']:,.0f} img/s" if strict else "-",
        ])
    return markdown(header, lines) if lines else ""


def samples(rows: Sequence[Row]) -> str:
    """Sampling: seconds for a batch of new images."""
    header = ["card", "preset", "images", "how", "seconds"]
    lines = [
        [row["card"], row["preset"], str(row["batch"]), f"{row['dtype']}, {row['provider']}",
         f"{row['ms_p50'] / 1e3:.3f}"]
        for group in _groups([row for row in rows if row["case"] == "sample"])
        for row in sorted(group, key=lambda row: row["ms_p50"])
    ]
    return markdown(header, lines) if lines else ""


def ablation(rows: Sequence[Row]) -> str:
    """Every variant against the anchor of its own chain."""
    header = ["card", "chain", "variant", "img/s", "ms", "against bf16 channels_last, torch"]
    lines = []
    chosen = [row for row in rows if row["case"] == "ablation"]
    for chain in dict.fromkeys((row["card"], row.get("chain")) for row in chosen):
        group = [row for row in chosen if (row["card"], row.get("chain")) == chain]
        anchor = _named(group, "bf16 channels_last, torch")
        for row in sorted(group, key=lambda row: -row["ms_p50"]):
            ratio = f"{anchor['ms_p50'] / row['ms_p50']:.2f}" if anchor else "-"
            lines.append([row["card"], str(row.get("chain")), row["provider"],
                          f"{row['img_s']:,.0f}", f"{row['ms_p50']:.1f}", ratio])
    return markdown(header, lines) if lines else ""


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    keys = dict.fromkeys((row["card"], row["preset"], row["batch"]) for row in rows)
    return [[r for r in rows if (r["card"], r["preset"], r["batch"]) == key] for key in keys]


def _named(rows: Sequence[Row], provider: str) -> Row | None:
    return next((row for row in rows if row["provider"] == provider), None)


def _gib(row: Row) -> str:
    return f"{row['peak_gib']:.1f} GiB" if row.get("peak_gib") else "-"


def _share(row: Row) -> str:
    rate = row.get("matrix_tflop_s")
    if not (rate and row.get("tflop_s")):
        return "-"
    return f"{row['tflop_s'] / rate:.0%} ({row['tflop_s']:.0f} of {rate:.0f} TFLOP/s)"


def tables(results: Path = RESULTS) -> str:
    """All tables in Markdown."""
    rows = gpu_rows(results)
    return "\n".join(filter(None, (steps(rows), samples(rows), ablation(rows)))) or NOTHING


def main() -> None:
    """Write the tables into README.md."""
    readme.write(BEGIN, END, tables())


if __name__ == "__main__":
    main()
