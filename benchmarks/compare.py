"""``ddgan-fast bench --compare``: two files of rows, or one against the last committed results."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Key = tuple[tuple[str, str], ...]

RESULTS = Path(__file__).resolve().parent / "results"

IDENTITY = (
    "case", "provider", "preset", "op", "variant", "shape", "dtype", "channels_last", "pass",
    "phase", "data", "size", "count", "batch", "micro_batch", "r1_every", "engine", "timesteps",
    "workers", "output", "device", "scaling", "gpus", "per_gpu_batch", "chain",
    "sampler", "nfe",
)  # fmt: skip
"""Columns that say what was measured; two rows that have them alike are compared."""

_USUAL = {"engine": "eager"}
"""What rows mean that lack a column."""
_UNITS = (("cpu_ms", 1.0), ("ms", 1.0), ("us", 1e-3))
"""Columns of times, the most telling first, and what makes milliseconds of them."""
_MACHINE = ("cpu", "cores", "threads", "gpu")
_VERSIONS = ("python", "torch", "ddgan_fast", "commit")
NOISE = "within noise"


@dataclass(frozen=True)
class Comparison:
    """The same work in two files.

    Attributes:
        what: the columns in which it differs from the file's other rows.
        ms: medians, before and after.
        ratio: after over before.
        low, high: the ratio between the nearest and between the farthest percentiles.
        verdict: "faster" or "slower" where the ranges from the 20th to the 80th percentile do not
            touch, else "within noise".
    """

    what: str
    ms: tuple[float, float]
    ratio: float
    low: float
    high: float
    verdict: str


def main(argv: Sequence[str]) -> int:
    """Compare and print; 1 when something got slower than allowed."""
    arguments = _parse(argv)
    paths = [Path(name) for name in arguments.compare]
    after = read(paths[-1])
    if len(paths) == 2:
        before, origin = read(paths[0]), str(paths[0])
    else:
        before, origin = committed(after, RESULTS, paths[0]), "the last committed results"
        if not before:
            raise ValueError(
                f"--compare {paths[0]}: there are no other committed results of such a machine: "
                "name two files."
            )
    found, alone = compare(before, after)
    if not found:
        raise ValueError(
            f"--compare: {origin} and {paths[-1]} have no timed row in common: the same case, "
            "shape, batch and dtype must be in both."
        )
    _print(found, alone, origin, str(paths[-1]))
    shared = {key(row) for row in before} & {key(row) for row in after}
    for line in differences(*([r for r in rows if key(r) in shared] for rows in (before, after))):
        print(line)
    worse = [c for c in found if c.verdict == "slower" and c.ratio > arguments.fail_above]
    if worse:
        print(
            f"More than {arguments.fail_above:g} times as slow, beyond the noise: "
            f"{'; '.join(c.what for c in worse)}."
        )
    return int(bool(worse))


def read(path: Path) -> list[Row]:
    """The timed rows of a file of any bench command, of a profile, or of the GPU suite.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no rows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--compare: there is no file {path}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [row | {"case": row["case"]} for row in content["rows"]]
        facts = content.get("environment") or {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--compare: {path} is not a file of bench results.") from error
    for row in rows:
        for name in ("machine", "versions"):
            row.setdefault(name, facts.get(name) or {})
    return [row for row in rows if _times(row) is not None and row.get("agrees", True)]


def committed(rows: Sequence[Row], folder: Path, but: Path | None = None) -> list[Row]:
    """The newest rows of a folder's files, but one, that were measured on such machines."""
    machines = {_machine(row) for row in rows}
    newest: dict[Key, Row] = {}
    for path in sorted(folder.glob("*.json")):
        if but is not None and path.samefile(but):
            continue
        with contextlib.suppress(ValueError):  # a file of another kind
            for row in (row for row in read(path) if _machine(row) in machines):
                known = newest.get(key(row))
                if known is None or row.get("when", "") >= known.get("when", ""):
                    newest[key(row)] = row
    return list(newest.values())


def key(row: Row) -> Key:
    """What was measured."""
    return tuple(
        (name, json.dumps(row[name]))
        for name in IDENTITY
        if row.get(name) not in (None, _USUAL.get(name))
    )


def compare(before: Sequence[Row], after: Sequence[Row]) -> tuple[list[Comparison], int]:
    """Rows that both have, and how many only one of them has.

    Of rows that are alike within a file the last counts.
    """
    old, new = ({key(row): row for row in rows} for rows in (before, after))
    shared = [k for k in new if k in old]
    common = set.intersection(*[set(k) for k in shared]) if len(shared) > 1 else set()
    found = [_compared(k, common, old[k], new[k]) for k in shared]
    return found, len(old) + len(new) - 2 * len(shared)


def _compared(k: Key, common: set[tuple[str, str]], old: Row, new: Row) -> Comparison:
    a, b = _times(old), _times(new)
    assert a is not None and b is not None
    verdict = NOISE
    if b[0] > a[2]:
        verdict = "slower"
    elif b[2] < a[0]:
        verdict = "faster"
    own = [(name, json.loads(value)) for name, value in k if (name, value) not in common]
    what = " ".join(_word(name, value) for name, value in own) or old["case"]
    return Comparison(what, (a[1], b[1]), b[1] / a[1], b[0] / a[2], b[2] / a[0], verdict)


def _word(name: str, value: Any) -> str:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return str(value) if isinstance(value, str) else f"{name} {value}"


def _times(row: Row) -> tuple[float, float, float] | None:
    """20th percentile, median and 80th in milliseconds; without a spread there is no verdict."""
    for unit, factor in _UNITS:
        low, median, high = (factor * float(row.get(f"{unit}_p{p}") or 0) for p in (20, 50, 80))
        if low and median and high:
            return low, median, high
    return None


def _machine(row: Row) -> str:
    return json.dumps([row["machine"].get(name) for name in _MACHINE])


def differences(before: Iterable[Row], after: Iterable[Row]) -> list[str]:
    """Sentences that say where machines or versions are not the same."""
    told = []
    sides = list(before), list(after)
    for title, names in (("machine", _MACHINE), ("versions", _VERSIONS)):
        for name in names:
            old, new = (
                sorted({str(row[title].get(name)) for row in rows}) for rows in sides
            )
            if old != new:
                what = "The machines differ" if title == "machine" else "The versions differ"
                told.append(f"{what}: {name} {', '.join(old)} against {', '.join(new)}.")
    return told


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    from ddgan_fast.commands import Parser

    parser = Parser(
        "bench",
        "Compare two files of rows, or one with the newest committed rows of the same type of "
        "machine.",
    )
    parser.add_argument("--compare", nargs="+", metavar="FILE", required=True)
    parser.add_argument(
        "--fail-above",
        type=float,
        default=float("inf"),
        metavar="RATIO",
        help="exit with 1 when a row is slower by more than this, beyond the noise",
    )
    arguments = parser.parse_args(argv)
    if len(arguments.compare) > 2:
        raise ValueError(f"--compare takes one or two files, not {len(arguments.compare)}.")
    if arguments.fail_above < 1:
        raise ValueError(f"--fail-above is {arguments.fail_above:g}: it must be at least 1.")
    return arguments


def _print(found: Sequence[Comparison], alone: int, before: str, after: str) -> None:
    from ddgan_fast.tables import print_table

    rows = [
        (
            c.what,
            f"{c.ms[0]:.4g}",
            f"{c.ms[1]:.4g}",
            f"{c.ratio:.3f}",
            f"{c.low:.3f} - {c.high:.3f}",
            c.verdict,
        )
        for c in found
    ]
    headers = ("what", "ms before", "ms after", "ratio", "(20-80 %)", "verdict")
    print_table(f"{before} against {after}", headers, rows)
    counts = [(word, sum(c.verdict == word for c in found)) for word in ("faster", "slower", NOISE)]
    print(
        ", ".join(f"{count} {word}" for word, count in counts)
        + (f"; {alone} rows are in one of them only" if alone else "")
        + ". Slower and faster: the ranges from the 20th to the 80th percentile do not touch."
    )
