"""A profile as tables in the terminal, and as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_open
from ..summary import size_of
from ..tables import print_table

_OPERATORS, _KERNELS, _OWNERS, _MODULES = 12, 10, 8, 12
_BAR = 20

Profile = dict[str, Any]
Row = dict[str, Any]


def show(found: Profile) -> None:
    """Print everything that fits on two screens; the file has the rest."""
    _show_phases(found)
    _show_operators(found)
    _show_kernels(found["kernels"])
    _show_modules(found["modules"])
    _show_memory(found["memory"])
    print("\nHints")
    for hint in found["hints"] or ["Nothing stands out."]:
        print(f"  - {hint}")


def _show_phases(found: Profile) -> None:
    step, parts = found["step"], found["step"]["ms_parts"]
    kinds = ""
    if len(parts) > 1:
        kinds = (
            f"; with R1 {parts['with_r1']:g}, without {parts['without_r1']:g}, "
            f"R1 at every {found['r1_every']}th"
        )
    print(
        f"\nStep of {found['preset']}, batch {found['batch']}, {found['device']}, "
        f"{found['dtype']}, engine {found['engine']}: {step['ms_p50']:g} ms (median; 20-80 %: "
        f"{step['ms_p20']:g} - {step['ms_p80']:g}{kinds}), {step['img_s']:g} img/s."
    )
    peak = found["ceilings"]
    print(
        f"{found['flops']['training_image'] / 1e9:.4g} GFLOP per image: {found['mfu']:.1%} of the "
        f"{peak['gflop_s']:.4g} GFLOP/s that a large product of matrices reaches here in "
        f"{peak['dtype']} (MFU). A large copy moves {peak['gb_s']:.4g} GB/s.\n"
    )
    rows = [
        (
            row["phase"],
            f"{row['ms']:.2f}",
            f"{row['share']:.1%}",
            f"{row['gap_ms']:.2f}" if row.get("gap_ms") else "",
            "#" * round(_BAR * row["share"]),
        )
        for row in found["phases"]
    ]
    total, cost = sum(row["ms"] for row in found["phases"]), step["marks_cost"]
    rows.append(("together", f"{total:.2f}", "", "", ""))
    print_table("Phases of a mean step", ("phase", "ms", "share", "gaps in it", ""), rows)
    print(
        f"Together {found['sum_over_step']:.1%} of the median step, which was measured without "
        f"marks. A step with marks takes {cost['p50']:+.1%} against its neighbour without "
        f"(median; 20-80 %: {cost['p20']:+.1%} to {cost['p80']:+.1%})."
    )


def _show_operators(found: Profile) -> None:
    rows = [
        (
            row["operator"].partition("::")[2] or row["operator"],
            f"{row['ms']:.2f}",
            f"{row['share']:.1%}",
            f"{row['calls']:.4g}",
            *_against_roofline(row),
        )
        for row in found["operators"][:_OPERATORS]
    ]
    headers = ("operator", "ms", "share", "calls", "GFLOP/s", "GB/s", "of roofline", "bound by")
    print()
    print_table(f"Operators ({len(found['operators'])} in all)", headers, rows)


def _against_roofline(row: Row) -> tuple[str, str, str, str]:
    if "of_roofline" not in row:
        return "", "", "", ""
    rate = f"{row['gflop_s']:.4g}" if row["gflop"] else ""
    return rate, f"{row['gb_s']:.3g}", f"{row['of_roofline']:.0%}", row["bound"]


def _show_kernels(kernels: Sequence[Row]) -> None:
    if not kernels:
        return
    rows = [
        (row["kernel"][:70], f"{row['ms']:.3f}", f"{row['calls']:.4g}", f"{row['us_each']:.1f}")
        for row in kernels[:_KERNELS]
    ]
    print()
    print_table(f"Kernels ({len(kernels)} in all)", ("kernel", "ms", "calls", "us each"), rows)


def _show_modules(modules: Sequence[Row]) -> None:
    whole = [row for row in modules if "." not in row["name"]]
    units = sorted((row for row in modules if row["unit"]), key=lambda row: -row["ms"])
    rows = [
        (
            row["name"],
            row["kind"],
            f"{row['ms']:.2f}",
            f"{row['flops'] / 1e9:.4g}",
            f"{row['parameters']:,}",
            size_of(row["kept_bytes"]),
        )
        for row in [*whole, *units[:_MODULES]]
    ]
    headers = ("module", "kind", "ms", "GFLOP", "parameters", "kept for backward")
    print()
    print_table("Forward passes, the networks and their slowest parts", headers, rows)


def _show_memory(memory: Row) -> None:
    own = memory["operators"]
    rows = [(row["owner"], size_of(row["bytes"])) for row in own["at_peak"][:_OWNERS]]
    rest = sum(row["bytes"] for row in own["at_peak"][_OWNERS:])
    highest = max(own["timeline"], key=lambda row: row["highest_bytes"])
    rows += [("the rest", size_of(rest))]
    rows += [(f"together, in the phase {highest['phase']!r}", size_of(own["peak_bytes"]))]
    print()
    print_table("Memory at its peak", ("made by", "size"), rows)
    if "allocator" in memory:
        used = memory["allocator"]
        print(
            f"CUDA's allocator: {size_of(used['allocated_peak_bytes'])} allocated, "
            f"{size_of(used['reserved_peak_bytes'])} reserved at the peak, of "
            f"{size_of(used['device_bytes'])}; {used['retries']} retries."
        )


def rows(found: Profile) -> list[Row]:
    """The step and its phases in the form of benchmark rows, so that profiles can be compared."""
    common = {
        "case": "profile",
        "provider": "ddgan_fast",
        "preset": found["preset"],
        "batch": found["batch"],
        "r1_every": found["r1_every"],
        "engine": found["engine"],
        "device": found["device"],
        "dtype": found["dtype"],
    }
    result = [common | {"phase": "step"} | found["step"]]
    for phase in found["phases"]:
        if "ms_p50" in phase:
            times = {name: phase[name] for name in ("ms_p50", "ms_p20", "ms_p80")}
            share = found["batch"] / phase["ms_p50"] if phase["ms_p50"] else 0.0
            result.append(
                common
                | {"phase": phase["phase"], "rounds": found["step"]["rounds"]}
                | times
                | {"img_s": float(f"{1e3 * share:.5g}")}
            )
    return result


def write(path: Path, found: Profile, origin: Row) -> None:
    """The profile with its benchmark rows as JSON, whole or not at all."""
    content = {"rows": [row | origin for row in rows(found)], "profile": found | origin}
    with atomic_open(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
