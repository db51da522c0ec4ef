"""Chapters on the ops alone, and on loaders, and whatever other rows there are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from . import charts
from .html import Cell, Html, between, join, number, table, tag
from .sources import Results, Row, grouped

_OURS = ("cuda", "triton", "torch")
_OTHERS = ("eager", "grouped_conv", "compile")
_KNOWN = ("kernels", "loader", "decode", "step", "step_compiled", "sample", "ablation", "band",
          "scaling", "rates", "compile", "fed_step", "profile")
_HIDDEN = ("origin", "card", "case", "part", "unit", "machine", "versions", "command", "when")
_MOST_COLUMNS = 16


def kernels(results: Results) -> Html:
    """Roofline and table of the ops, every pass at every shape."""
    rows = [row for row in results.rows if row.get("case") == "kernels" or "op" in row]
    keys = ("card", "variant", "pass", "preset", "shape", "dtype", "channels_last")
    lines = [_kernel_line(group) for group in grouped(rows, *keys)]
    headers = ["machine", "op", "pass", "preset", "shape", "dtype"]
    headers += [f"{name} us" for name in (*_OURS, *_OTHERS)]
    headers += ["fastest of ours", "times as fast as eager", "of a copy's GB/s", "agree"]
    about = tag(
        "p", "Device time. The roof is what a large copy moves on the same card in the same "
        "process; bytes are what a pass must read and write at least once, so a point on the roof "
        "wastes nothing.",
    )
    if not lines:
        return Html("")
    return join([about, _rooflines(rows), table("Ops", headers, lines)])


def _rooflines(rows: list[Row]) -> Html:
    pictures = []
    timed = [row for row in rows if row.get("gb_s") and row.get("agrees") is not False]
    for group in grouped(timed, "card"):
        copy = group[0].get("copy_gb_s") or group[0]["origin"].of(group[0], "copy_gb_s")
        providers = {
            name: [(row["bytes_min"] / 1e6, row["gb_s"]) for row in group
                   if row["provider"] == name]
            for name in (*_OURS, *_OTHERS)
        }
        pictures.append(charts.cloud(
            f"Roofline of the ops on {group[0]['card']}", providers,
            x="MB that must move", y="GB/s",
            roof=partial(np.full_like, fill_value=copy) if copy else None,
            roof_name=f"large copy, {copy:,.0f} GB/s" if copy else "",
        ))
    return tag("div", *pictures, class_="charts wide") if any(pictures) else Html("")


def _kernel_line(group: list[Row]) -> list[Cell]:
    first = group[0]
    timed = {row["provider"]: row for row in group if row.get("us_p50")}
    sound = [timed[name] for name in _OURS if name in timed and timed[name].get("agrees", True)]
    best: Mapping[str, Any] = min(sound, key=lambda row: row["us_p50"]) if sound else {}
    wrong = [str(row["provider"]) for row in group if row.get("agrees") is False]
    shape = "x".join(map(str, first.get("shape") or []))
    order = ", NHWC" if first.get("channels_last") else ""
    return [
        first["card"], str(first.get("variant") or first.get("op")), str(first.get("pass", "-")),
        str(first.get("preset", "-")), f"{shape}{order}", str(first.get("dtype", "-")),
        *(number(timed.get(name, {}).get("us_p50"), "{:,.1f}") for name in (*_OURS, *_OTHERS)),
        str(best.get("provider", "-")),
        number((best.get("speedup") or {}).get("eager"), "{:.2f}"),
        number(best.get("share_of_copy"), "{:.0%}"),
        f"not {', '.join(wrong)}" if wrong else "all",
    ]


def loaders(results: Results) -> Html:
    """CPU time of each way of the data, and steps that are fed."""
    rows = [row for row in results.of("loader", "decode") if row.get("cpu_ms_p50")]
    pictures = []
    for group in grouped(rows, "card", "size"):
        values = {f"{row['provider']}: {row.get('data', '')}": row["cpu_ms_p50"] for row in group}
        title = f"CPU time per image, {group[0].get('size', '?')} px, {group[0]['card']}"
        pictures.append(charts.bars(
            title, values, unit="CPU-ms per image (logarithmic)", log=True,
            marked=[name for name in values if name.startswith("reference")],
        ))
    headers = ("machine", "loader", "data", "px", "CPU-ms per image", "20-80 %",
               "cores for 8 GPUs at 400 img/s", "img/s", "output", "from")
    lines: list[list[Cell]] = [
        [
            row["card"], str(row["provider"]), str(row.get("data", "-")), number(row.get("size")),
            number(row["cpu_ms_p50"], "{:.3g}"),
            between(row.get("cpu_ms_p20"), row.get("cpu_ms_p80")),
            number(row.get("cores_for_node"), "{:.2g}"), number(row.get("img_s"), "{:,.0f}"),
            str(row.get("output", "-")), row["origin"].name,
        ]
        for row in rows
    ]
    fed: list[list[Cell]] = [
        [
            row["card"], str(row.get("provider")), number(row.get("img_s")),
            number(row.get("ms_p50")), number(row.get("wait_s"), "{:.3g}"), row["origin"].name,
        ]
        for row in results.of("fed_step")
    ]
    drawn = tag("div", *pictures, class_="charts wide") if any(pictures) else ""
    return join([
        drawn, table("Loaders", headers, lines),
        table("Steps fed by a loader", ("machine", "from", "img/s", "ms", "waited s", "file"), fed),
    ])


def scaling(results: Results) -> Html:
    """Predictions for many GPUs."""
    rows = results.of("scaling")
    if not rows:
        return Html("")
    headers = ("scaling", "GPUs", "images per GPU", "batch", "ms", "img/s", "efficiency", "from")
    lines: list[list[Cell]] = [
        [
            str(row.get("scaling")), number(row.get("gpus"), "{:,}"),
            number(row.get("per_gpu_batch"), "{:,}"), number(row.get("batch"), "{:,}"),
            number(row.get("ms_p50")), number(row.get("img_s"), "{:,.0f}"),
            number(row.get("efficiency"), "{:.0%}"), row["origin"].name,
        ]
        for row in rows
    ]
    about = tag("p", "Predicted from a step on one GPU and stated assumptions; nothing was run.")
    return join([about, table("Many GPUs, predicted", headers, lines)])


def others(results: Results) -> Html:
    """Rows of kinds that have no chapter, as they are."""
    rows = [row for row in results.rows if row.get("case") not in _KNOWN and "op" not in row]
    tables = []
    for path in dict.fromkeys(row["origin"].name for row in rows):
        own = [_flat(row) for row in rows if row["origin"].name == path]
        columns = list(dict.fromkeys(key for row in own for key in row))[:_MOST_COLUMNS]
        lines = [[number(row.get(column)) for column in columns] for row in own]
        tables.append(table(path, columns, lines) if columns else "")
    return join(tables)


def _flat(row: Row) -> dict[str, Any]:
    """Plain values, those of inner mappings under their own names."""
    plain: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict) and key not in _HIDDEN:
            plain |= {k: v for k, v in value.items() if not isinstance(v, dict | list)}
        elif key not in _HIDDEN and not isinstance(value, dict | list):
            plain[key] = value
    return plain
