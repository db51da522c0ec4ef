"""The chapter on a training run: facts, curves, metrics, sample grids, faults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ddgan_fast.run_log import (
    LOG,
    METRICS,
    Record,
    option,
    points,
    read_config,
    read_records,
    timesteps,
    value_of,
)
from ddgan_fast.training.faults import read_faults

from . import charts
from .html import Cell, Html, facts, join, notes, number, picture, table, tag

# Title, statistics, whether the axis is logarithmic.
_CURVES = (
    ("Losses", ("D/real", "D/fake", "G/loss", "D0/real", "D0/fake", "G/x0"), False),
    ("R1 before gamma/2", ("D/r1", "D0/r1"), True),
    ("Share of images that D judges rightly",
     ("D/real_acc", "D/fake_acc", "D0/real_acc", "D0/fake_acc"), False),
    ("Gradient norms", ("D/grad_norm", "G/grad_norm", "D0/grad_norm"), True),
    ("Images per second", ("img_s",), False),
    ("Share of time waiting for data", ("wait_share",), False),
    ("Distance of the averaged weights", ("G/ema_distance",), True),
)
_BY_TIMESTEP = {
    "D/real": "D's loss on real images",
    "D/fake": "D's loss on generated images",
    "G/loss": "G's loss",
}
_GRIDS, _FAULTS = 4, 50


@dataclass(frozen=True)
class RunFiles:
    """What a run directory holds."""

    path: Path
    config: dict[str, Any]
    log: list[Record]
    metrics: list[Record]
    faults: list[dict[str, Any]]
    grids: list[Path]

    @property
    def name(self) -> str:
        """Of the directory."""
        return self.path.resolve().name


def read_run(path: Path) -> RunFiles:
    """Read a run directory; a run that is being written is fine.

    Raises:
        FileNotFoundError: there is no such directory, or no log in it.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"--run: there is no folder {path}.")
    if not (path / LOG).is_file():
        raise FileNotFoundError(f"--run: {path} is no run directory: it holds no {LOG}.")
    grids = [p for p in (path / "samples").glob("step-*") if p.suffix in (".png", ".npz")]
    return RunFiles(
        path, read_config(path), read_records(path / LOG), read_records(path / METRICS),
        read_faults(path), sorted(grids),
    )


def run_chapter(run: RunFiles) -> Html:
    """Everything about one run."""
    return join([
        facts(_facts(run)),
        _box("Samples: fixed noise, averaged weights", _grids(run.grids), "pictures"),
        _box("Curves", _curves(run.log), "charts"),
        _box("By timestep", _by_timestep(run.log), "charts"),
        _metrics(run.metrics),
        _faults(run.faults),
        "" if run.log else tag("p", "The log holds no step yet."),
    ])


def _box(title: str, content: Sequence[Html], style: str) -> Html:
    shown = [part for part in content if part]
    return join([tag("h3", title), tag("div", *shown, class_=style)]) if shown else Html("")


def _facts(run: RunFiles) -> list[tuple[str, object]]:
    log, config = run.log, run.config
    last = log[-1] if log else {}
    planned = option(config, "run.steps")
    done = f"{last.get('step', 0):,}" + (f" of {planned:,}" if isinstance(planned, int) else "")
    wait = _median(log, "wait_share")
    return [
        ("preset", option(config, "preset")),
        ("folder", str(run.path)),
        ("steps", done),
        ("images seen", f"{last['images']:,}" if "images" in last else None),
        ("time in the log", _duration(log)),
        ("images per second, median", _rounded(_median(log, "img_s"))),
        ("waiting for data, median", None if wait is None else f"{wait:.1%}"),
        ("batch", option(config, "run.batch_size")),
        ("timesteps T", option(config, "model.num_timesteps")),
        ("seed", option(config, "run.seed")),
        ("precision, engine", ", ".join(
            str(option(config, f"run.{name}")) for name in ("precision", "engine")
            if option(config, f"run.{name}")
        )),
        ("data", option(config, "data.path") or option(config, "data.source")),
        ("faults", len(run.faults)),
    ]


def _median(log: Sequence[Record], name: str) -> float | None:
    values = [value for _, value in points(log, name)]
    return float(np.median(values)) if values else None


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:,.4g}"


def _duration(log: Sequence[Record]) -> str | None:
    try:
        first, last = (datetime.fromisoformat(log[i]["time"]) for i in (0, -1))
    except (IndexError, KeyError, TypeError, ValueError):
        return None
    return str(timedelta(seconds=round((last - first).total_seconds())))


def _curves(log: Sequence[Record]) -> list[Html]:
    return [
        charts.lines(title, {name: points(log, name) for name in names}, log=scale)
        for title, names, scale in _CURVES
    ]


def _by_timestep(log: Sequence[Record]) -> list[Html]:
    return [
        charts.lines(title, {key.rpartition("/")[2]: points(log, key) for key in keys})
        for name, title in _BY_TIMESTEP.items()
        if (keys := timesteps(log, name))
    ]


def _grids(paths: Sequence[Path]) -> list[Html]:
    chosen = sorted({round(i) for i in np.linspace(0, len(paths) - 1, min(len(paths), _GRIDS))})
    return [_grid(paths[i]) for i in chosen]


def _grid(path: Path) -> Html:
    digits = path.stem.removeprefix("step-")
    caption = f"step {int(digits):,}" if digits.isdigit() else path.stem
    if path.suffix == ".png":
        return picture(path, caption)
    try:
        with np.load(path, allow_pickle=False) as file:
            values = np.asarray(file[file.files[0]], float)
    except (OSError, ValueError, IndexError) as error:
        return tag("p", f"{path.name} cannot be shown: {error}.")
    if values.ndim != 2 or values.shape[1] != 2:
        return Html("")
    return charts.plane(caption, [(float(x), float(y)) for x, y in values])


def _metrics(found: Sequence[Record]) -> Html:
    """Curves of the measurements during and after training, and all of them as a table."""
    names = list(dict.fromkeys(name for record in found for name in _measured(record)))
    if not names:
        return Html("")
    flat = [{"step": record["step"], **_measured(record)} for record in found]
    drawn = [
        charts.lines(name, {name: sorted(points(flat, name))}, markers=True)
        for name in names
        if len({step for step, _ in points(flat, name)}) > 1
    ]
    rows: list[list[Cell]] = [
        [
            number(record["step"], "{:,}"), number(record.get("n"), "{:,}"),
            number(record.get("nfe")), str(record.get("weights", "-")),
            *(number(value_of(_measured(record), name)) for name in names),
            str((record.get("extractor") or {}).get("name", "-")),
        ]
        for record in found
    ]
    headers = ("step", "samples", "NFE", "weights", *names, "features")
    warnings = map(str, found[-1].get("warnings") or [])
    return join([
        _box("Metrics", drawn, "charts"), table("Measurements", headers, rows), notes(warnings),
    ])


def _measured(record: Record) -> dict[str, Any]:
    metrics = record.get("metrics")
    return {
        name: value for name, value in metrics.items() if not isinstance(value, dict | list)
    } if isinstance(metrics, dict) else {}


def _faults(faults: Sequence[dict[str, Any]]) -> Html:
    rows: list[list[Cell]] = [
        [
            number(fault.get("step", math.nan), "{:,}"), str(fault.get("time", "-")),
            number(fault.get("rank")), str(fault.get("kind", "-")), str(fault.get("sentence", "-")),
        ]
        for fault in faults[-_FAULTS:]
    ]
    dropped = len(faults) - len(rows)
    title = f"Faults, the newest {_FAULTS} of {len(faults):,}" if dropped else "Faults"
    return table(title, ("step", "time", "rank", "kind", "what happened"), rows)
