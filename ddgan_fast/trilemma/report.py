"""The report of a comparison: report.md with three pictures, report.json with every number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ddgan_fast import machine, tables
from ddgan_fast.evaluation import record
from ddgan_fast.files import atomic_open
from ddgan_fast.sampling import LoadedGenerator, generate
from ddgan_fast.trilemma import pictures
from ddgan_fast.trilemma.compare import SNAPSHOT_SAMPLES, SNAPSHOTS, Request
from ddgan_fast.trilemma.summary import Row, cells, headings, shown, summarize

_DRAWN = 4000
_SHOWN = 64


def write_report(
    request: Request,
    measured: Sequence[Mapping[str, Any]],
    models: Mapping[str, LoadedGenerator],
    command: str,
) -> list[Row]:
    """Write everything into the request's folder.

    Args:
        request: what was compared.
        measured: of ``Comparison.run``.
        models: the generator of each method whose samples are shown.
        command: that made the comparison.

    Returns:
        The report's lines.

    Raises:
        RuntimeError: matplotlib is missing.
    """
    rows = summarize(request.methods, measured)
    drawn = _draw(rows, models)
    small = next(iter(drawn.values()))
    smooth = small.ndim == 4 and small.shape[1] < 64
    pictures.samples(drawn, request.out / "samples.png", smooth=smooth)
    pictures.quality(rows, measured, request.out / "quality.png")
    modes = None if request.extractor is None else request.extractor.modes
    fair = None if modes is None else modes.shares
    pictures.coverage(rows, measured, request.out / "coverage.png", fair)
    facts = _facts(request, measured, command)
    content = {
        **facts,
        "headings": headings(rows),
        "table": [cells(row, shown(rows)) for row in rows],
        "rows": [_plain(row) for row in rows],
        "measured": list(measured),
    }
    record.write(request.out / "report.json", content)
    with atomic_open(request.out / "report.md") as file:
        file.write(_markdown(request, rows, measured, facts).encode())
    return rows


def _draw(rows: Sequence[Row], models: Mapping[str, LoadedGenerator]) -> dict[str, np.ndarray]:
    drawn = {}
    for row in rows:
        model = models[row.method.name]
        count = _DRAWN if model.cfg.model.kind == "mlp" else _SHOWN
        drawing = next(d for d in row.method.drawings if d.title == row.title)
        batches = generate(model, count, sampler=drawing.sampler, steps=drawing.steps)
        drawn[row.title] = np.concatenate(list(batches))
    return drawn


def _facts(
    request: Request, measured: Sequence[Mapping[str, Any]], command: str
) -> dict[str, Any]:
    first = next(row for row in measured if row["kind"] == "final")
    extractor = request.extractor
    return {
        "command": command,
        "time": machine.now(),
        "preset": request.preset,
        "budget_s": request.budget_s,
        "seeds": list(request.seeds),
        "n": request.n,
        "extractor": None if extractor is None else {"name": extractor.name} | {
            "sha256": extractor.sha256
        },
        "device": first["device"],
        "machine": f"{machine.cpu_model()}, {machine.cores()} cores",
        "versions": first["versions"],
    }


def _plain(row: Row) -> dict[str, Any]:
    return {
        "method": row.method.name,
        "title": row.title,
        "nfe": row.nfe,
        "s_per_100": row.seconds_per_100,
        "steps": row.steps,
        "train_s": None if row.train_s is None else asdict(row.train_s),
        "metrics": {name: asdict(value) for name, value in row.metrics.items()},
    }


def _markdown(
    request: Request,
    rows: Sequence[Row],
    measured: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> str:
    # The first of those that differ in their numbers only.
    warnings: dict[str, str] = {}
    for row in measured:
        for sentence in row["warnings"] if row["kind"] == "final" else ():
            warnings.setdefault(re.sub(r"[\d.,]+", "N", sentence), sentence)
    lines = [
        f"# {request.preset}: quality, coverage and speed under equal training time",
        "",
        tables.markdown(headings(rows), [cells(row, shown(rows)) for row in rows]),
        "![samples](samples.png)",
        "",
        "![quality against time](quality.png)",
        "",
        "![coverage](coverage.png)",
        "",
        "## How it was made",
        "",
        f"    {facts['command']}",
        "",
        *(f"- {sentence}" for sentence in _notes(request, facts)),
        *(f"- {sentence}" for sentence in warnings.values()),
        "",
    ]
    return "\n".join(lines)


def _notes(request: Request, facts: Mapping[str, Any]) -> list[str]:
    seeds = ", ".join(map(str, request.seeds))
    notes = [
        f"Each training was given {request.budget_s:g} s: so many steps as fit by the median time "
        "of a step, found before by timing blocks of steps of all methods in turn. The last column "
        "says what they took.",
        f"Seeds {seeds}; a number is the median over the seeds, in parentheses the range.",
        f"Every number is of {request.n:,} samples of the averaged weights. Seconds per 100: the "
        f"median time of a batch of {request.batch}, the ways to sample timed in turn.",
        f"The curves over training time are of {SNAPSHOTS} checkpoints and "
        f"{min(request.n, SNAPSHOT_SAMPLES):,} samples each.",
        "Baselines are the preset's networks in the same trainer, with options of their own where "
        "there is a preset for them; none was tuned longer than the DDGAN.",
    ]
    if request.load:
        named = ", ".join(f"{name} from {path}" for name, path in request.load.items())
        notes.append(f"Not trained here, but loaded: {named}.")
    if request.extractor is not None:
        notes.append(
            f"Features: {request.extractor.name} (SHA-256 {request.extractor.sha256[:12]})."
        )
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    notes.append(f"Machine: {facts['machine']}; device {facts['device']}; {versions}.")
    return notes
