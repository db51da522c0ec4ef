"""``python -m benchmarks.prefer RESULTS.json``: which backends "auto" takes, from timed ops.

A backend is listed for a kind of tensors when it agreed with the truth in all their cases. Backends
are ordered by the geometric mean of their time over that of the fastest one of the case, and those
behind plain torch are left out, for torch always runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddgan_fast.files import atomic_open
from ddgan_fast.kernels import measured, preference
from ddgan_fast.kernels._library import op_names
from ddgan_fast.kernels.registry import BACKENDS

from .kernel_cases import DTYPES

Row = Mapping[str, Any]
Key = tuple[str, str, str, str]
Times = dict[tuple[Any, ...], dict[str, float]]

_ADJOINTS = {
    "forward": ("",),
    "backward": ("_grad", "_backward"),
    "double_backward": ("_tangent",),
}
"""What an op's name is continued with in the op of a pass, the first that exists.

A pass without an op of its own is left out: it runs ops that have cases of their own."""

_MODULE = '''\
"""Which backends were fastest on a GPU. Written by ``python -m benchmarks.prefer``."""

SOURCE = {source}
"""The measurement; empty as long as there is none."""

TABLE: dict[tuple[str, str, str, str], tuple[str, ...]] = {table}
"""(op, dtype, memory order, size) to backends that agreed, fastest first."""

DECOMPOSED: tuple[str, ...] = {decomposed}
"""Ops that torch.compile fuses into faster code than their best kernel."""
'''


@dataclass(frozen=True)
class Preferences:
    """What ``kernels/measured.py`` holds."""

    source: str
    table: dict[Key, tuple[str, ...]]
    decomposed: tuple[str, ...]

    def module(self) -> str:
        """The text of that file."""
        entries = "".join(
            f"    {_tuple(key)}: (\n        {', '.join(map(_quoted, names))},\n    ),\n"
            for key, names in self.table.items()
        )
        return _MODULE.format(
            source=_quoted(self.source),
            table=f"{{\n{entries}}}" if entries else "{}",
            decomposed=_tuple(self.decomposed),
        )


def preferences(rows: Iterable[Row], source: str) -> Preferences:
    """The preferences that follow from rows of timed ops.

    Args:
        rows: as ``bench kernels`` and the GPU suite write them; others are ignored. The provider
            "inductor" is compiled code that decomposes the op.
        source: where they come from, in words.

    Raises:
        ValueError: no row times an op on a GPU.
    """
    times: defaultdict[Key, Times] = defaultdict(dict)
    for row in rows:
        key = _key(row)
        if key is not None:
            case = times[key].setdefault((row["variant"], *row["shape"]), {})
            good = row.get("agrees") and "us_p50" in row
            case[row["provider"]] = float(row["us_p50"]) if good else math.inf
    if not times:
        raise ValueError("there are no rows of ops timed on a GPU.")
    table = {}
    of_op: defaultdict[str, Times] = defaultdict(dict)
    for key, cases in sorted(times.items()):
        of_op[key[0]] |= {(*key, *case): found for case, found in cases.items()}
        order = _order(cases, BACKENDS)
        if "torch" in order:
            table[key] = tuple(order[: order.index("torch") + 1])
    compiled = (*BACKENDS, "inductor")
    decomposed = [op for op, cases in of_op.items() if _order(cases, compiled)[:1] == ["inductor"]]
    return Preferences(source, table, tuple(decomposed))


def _key(row: Row) -> Key | None:
    """The entry of the table that a row counts for, if any."""
    if row.get("provider") not in (*BACKENDS, "inductor") or row.get("case") != "kernels":
        return None
    if row.get("timing") == "host":
        return None
    names = [row["op"] + ending for ending in _ADJOINTS[row["pass"]]]
    op = next((name for name in names if name in op_names), None)
    if op is None:
        return None
    dtype, last = DTYPES[row["dtype"]], row["channels_last"]
    if row["variant"].endswith("uint8"):
        # Such images are [N, H, W, C], which is their plain order.
        dtype, last = torch.uint8, False
    return preference.key(op, dtype, last, math.prod(row["shape"]) * dtype.itemsize)


def _order(cases: Times, names: Sequence[str]) -> list[str]:
    """Those that ran and agreed in every case, fastest first."""
    slowness = dict.fromkeys(names, 0.0)
    for found in cases.values():
        fastest = min(found.values())
        for name in names:
            ran = math.isfinite(found.get(name, math.inf))
            slowness[name] += math.log(found[name] / fastest) if ran else math.inf
    return sorted((name for name in names if slowness[name] < math.inf), key=slowness.__getitem__)


def _quoted(text: str) -> str:
    return json.dumps(text)


def _tuple(names: Sequence[str]) -> str:
    inside = ", ".join(map(_quoted, names))
    return f"({inside},)" if len(names) == 1 else f"({inside})"


def read(path: Path) -> Preferences:
    """The preferences that follow from a file of results.

    Raises:
        ValueError: not a file of results, or without ops timed on a GPU.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        rows = results["rows"]
        facts: Row = results.get("environment") or next(iter(rows), {})
        gpu = (facts.get("machine") or {}).get("gpu")
        commit = (facts.get("versions") or {}).get("commit")
        return preferences(rows, ", ".join(filter(None, (gpu, path.name, commit))))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} has not the form of results that benchmarks/README.md describes: {error!r}."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def main(argv: Sequence[str]) -> int:
    """Print the table, or put it where the package reads it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefer", description=__doc__)
    parser.add_argument("results", help="results.json of the GPU suite, or of bench kernels --json")
    parser.add_argument("--write", action="store_true", help=f"write it to {measured.__name__}")
    arguments = parser.parse_args(argv)
    try:
        text = read(Path(arguments.results)).module()
    except (OSError, ValueError) as error:
        print(f"prefer: {error}", file=sys.stderr)
        return 2
    if not arguments.write:
        print(text, end="")
        return 0
    target = Path(measured.__file__)
    with atomic_open(target) as file:
        file.write(text.encode())
    print(f"Wrote {target}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
