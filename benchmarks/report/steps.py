"""Chapters on whole steps: the headline, training steps, sampling, and the ablation."""

from __future__ import annotations

from collections.abc import Sequence

from . import charts
from .html import Cell, Html, between, join, notes, number, table, tag
from .sources import RECIPES, Results, Row, grouped, is_sound

_STEPS = ("step", "step_compiled")
_ANCHOR = "bf16 channels_last, torch"


def headline(results: Results) -> Html:
    """The fastest of ours against the published recipe, measured in the same run."""
    headers = ["what", "machine", "preset", "batch", "ours", "img/s", "ms", "20-80 %"]
    headers += ["recipe img/s", "recipe ms", "times as fast", "conditions"]
    lines = []
    for kind, cases in (("training step", _STEPS), ("sampling", ("sample",))):
        chosen = [row for row in results.of(*cases) if is_sound(row)]
        for group in grouped(chosen, "card", "preset", "batch"):
            ours = [row for row in group if row["provider"] not in RECIPES]
            if ours:
                lines.append(_headline(kind, group, min(ours, key=lambda row: row["ms_p50"])))
    told = tag("p", "Medians. Ours and the recipe took turns in one process, after a check that "
               "their results agree.") if lines else ""
    return join([told, table("Fastest of ours against the published recipe", headers, lines)])


def _headline(kind: str, group: Sequence[Row], best: Row) -> list[Cell]:
    # Of one run, as other minutes may be slower ones.
    run = [row for row in group if _run(row) == _run(best)]
    recipes = [row for name in RECIPES for row in run if row["provider"] == name]
    recipe = recipes[0] if recipes else {}
    ratio = recipe["ms_p50"] / best["ms_p50"] if recipe else None
    return [
        kind, best["card"], _text(best, "preset"), number(best.get("batch"), "{:,}"),
        f"{best.get('dtype', '-')}, {best['provider']}", number(best.get("img_s")),
        number(best["ms_p50"]), _range(best), number(recipe.get("img_s")),
        number(recipe.get("ms_p50")), number(ratio, "{:.2f}"), conditions(best, recipe),
    ]


def _run(row: Row) -> tuple[object, ...]:
    return row["origin"].name, row["case"], row.get("chain"), row.get("unit")


def conditions(row: Row, recipe: Row | None = None) -> str:
    """How a row was measured, in words."""
    machine = row["origin"].of(row, "machine")
    parts = []
    if row.get("device") == "cpu" and isinstance(machine, dict) and machine.get("threads"):
        parts.append(f"CPU threads: {machine['threads']}")
    if recipe:
        parts.append(f"recipe in {recipe.get('dtype', 'its dtype')}")
    if row.get("r1_every"):
        parts.append(f"R1 at every {row['r1_every']}th step, weighted")
    if row.get("rounds"):
        parts.append(f"{row['rounds']} rounds")
    return ", ".join([*parts, row["origin"].name])


def _text(row: Row, key: str) -> str:
    return str(row.get(key, "-"))


def _range(row: Row) -> Cell:
    return between(row.get("ms_p20"), row.get("ms_p80"))


def steps(results: Results) -> Html:
    """Every way of taking a training step."""
    rows = results.of(*_STEPS)
    pictures = []
    for group in grouped([row for row in rows if is_sound(row)], "card", "preset", "batch"):
        rows_by_speed = sorted((r for r in group if "img_s" in r), key=lambda r: -r["img_s"])
        speeds = {_label(row): row["img_s"] for row in reversed(rows_by_speed)}
        theirs = {_label(row) for row in group if row["provider"] in RECIPES}
        first = group[0]
        if len(speeds) > 1:
            title = f"{first['preset']}, batch {first['batch']}, {first['card']}: images per second"
            pictures.append(charts.bars(title, speeds, unit="img/s", marked=theirs))
    return join([
        tag("div", *pictures, class_="charts wide") if any(pictures) else "",
        _matrix_rates(rows),
        table("Training steps", _HEADERS, [_line(row) for row in rows]),
    ])


_HEADERS = ("machine", "preset", "batch", "dtype", "how", "img/s", "ms", "20-80 %", "peak GiB",
            "TFLOP/s", "of the matrix rate", "agrees", "from")


def _label(row: Row) -> str:
    return f"{row['provider']} ({row['dtype']})" if row.get("dtype") else str(row["provider"])


def _line(row: Row) -> list[Cell]:
    agrees = row.get("agrees", True)
    state = "yes" if agrees else f"no: {row.get('disagreement', '')}"
    if row.get("status") not in (None, "ok"):
        state = f"{row['status']}: {row.get('error_text', '')}"
    return [
        row["card"], _text(row, "preset"), number(row.get("batch"), "{:,}"), _text(row, "dtype"),
        _text(row, "provider"), number(row.get("img_s")), number(row.get("ms_p50")), _range(row),
        number(row.get("peak_gib"), "{:.2f}"), number(row.get("tflop_s")),
        number(_share(row), "{:.0%}"), state, row["origin"].name,
    ]


def _share(row: Row) -> float | None:
    rate = row["origin"].of(row, "matrix_tflop_s")
    return row["tflop_s"] / rate if rate and row.get("tflop_s") else None


def _matrix_rates(rows: Sequence[Row]) -> Html:
    """Roofline of whole steps: arithmetic per second against a large product of matrices."""
    pictures = []
    sound = [row for row in rows if is_sound(row) and _share(row)]
    for group in grouped(sound, "card"):
        rate = group[0]["origin"].of(group[0], "matrix_tflop_s")
        best = [
            min(own, key=lambda row: row["ms_p50"]) for own in grouped(group, "preset", "batch")
        ]
        values = {f"{row['preset']}, {row['batch']}: {_label(row)}": row["tflop_s"] for row in best}
        title = f"Roofline of the fastest steps on {group[0]['card']}: TFLOP/s"
        roof = (rate, f"large bf16 matrix product, {rate:,.0f}")
        pictures.append(charts.bars(title, values, unit="TFLOP/s", roof=roof))
    return tag("div", *pictures, class_="charts wide") if any(pictures) else Html("")


def sampling(results: Results) -> Html:
    """Every way of sampling."""
    rows = results.of("sample")
    headers = ("machine", "preset", "images", "dtype", "how", "s per 100 images", "ms", "20-80 %",
               "img/s", "from")
    lines: list[list[Cell]] = [
        [
            row["card"], _text(row, "preset"), number(row.get("batch"), "{:,}"),
            _text(row, "dtype"), _text(row, "provider"),
            number(_per_hundred(row), "{:,.3g}"), number(row.get("ms_p50")), _range(row),
            number(row.get("img_s")), row["origin"].name,
        ]
        for row in rows
    ]
    return table("Sampling: all denoising steps of a batch of new images", headers, lines)


def _per_hundred(row: Row) -> float | None:
    if not (row.get("ms_p50") and row.get("batch")):
        return None
    return row["ms_p50"] / row["batch"] / 10


def ablation(results: Results) -> Html:
    """What each part of the speed is worth, every variant against the anchor of its own chain."""
    rows = results.of("ablation")
    parts, lines = [], []
    for group in grouped(rows, "card", "preset", "batch", "chain"):
        sound = sorted((row for row in group if is_sound(row)), key=lambda row: -row["ms_p50"])
        anchor = next((row for row in sound if row["provider"] == _ANCHOR), None)
        values = {row["provider"]: row["img_s"] for row in sound if "img_s" in row}
        first = group[0]
        title = (
            f"{first.get('preset')}, batch {first.get('batch')}, {first['card']}, chain "
            f"{first.get('chain')}: images per second"
        )
        parts.append(charts.bars(title, values, unit="img/s", marked=(_ANCHOR,)))
        for row in sound:
            ratio = anchor["ms_p50"] / row["ms_p50"] if anchor else None
            lines.append([
                row["card"], _text(row, "chain"), row["provider"], number(row.get("img_s")),
                number(row["ms_p50"]), _range(row), number(row.get("peak_gib"), "{:.2f}"),
                number(ratio, "{:.2f}"), row["origin"].name,
            ])
    headers = ("machine", "chain", "variant", "img/s", "ms", "20-80 %", "peak GiB",
               f"against {_ANCHOR}", "from")
    failed = [
        f"{row.get('provider')} failed: {row['error_text']}" for row in rows if "error_text" in row
    ]
    drawn = tag("div", *parts, class_="charts wide") if any(parts) else ""
    return join([drawn, table("Ablation", headers, lines), notes(failed)])
