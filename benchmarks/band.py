"""Do the fast ways train as float32 does? Losses of short runs, and the band that seeds span.

As a part of the GPU suite it trains; ``python -m benchmarks.band RESULTS.json -o band.png`` judges
and draws what the suite has written.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddgan_fast.config import load_config
from ddgan_fast.plots import bands
from ddgan_fast.run_log import LOG, read_records

from .gpu_units import Child, Unit

STEPS, WINDOW, TICK = 500, 50, 10
SEEDS = (1, 2, 3)
# Means over a window of one run may leave a band of three runs by a part of its width.
MARGIN = 0.5
NAMES = ("D/real", "D/fake", "G/loss")


def units(child: Child) -> list[Unit]:
    """One run the fast way, and three in float32 (TF32 products) with seeds of their own.

    The fast one is first: without it nothing can be judged.
    """
    fast = {"run.seed": 4, "run.precision": "bf16", "run.engine": "graph"}
    if child.device == "cpu":
        fast["run.engine"] = "eager"
    plain = {"run.precision": "tf32", "run.engine": "eager"}
    runs = {"fast": fast}
    runs |= {f"tf32, seed {s}": {"run.seed": s, **plain} for s in SEEDS}
    return [(name, partial(_train, child, name, changes)) for name, changes in runs.items()]


def _train(child: Child, name: str, changes: dict[str, Any]) -> None:
    from ddgan_fast.training.trainer import train

    from .gpu_networks import tiny_preset

    steps, tick = (4, 2) if child.tiny else (STEPS, TICK)
    common: dict[str, Any] = {"run.steps": steps, "run.tick": tick, "run.tensorboard": False,
                              "run.batch_size": 8, "run.sample_every": 0,
                              "run.checkpoint_every": steps}
    if child.images:
        common["data.path"] = child.images
    elif not child.tiny:
        raise RuntimeError("this part needs photographs: --images FOLDER")
    with tempfile.TemporaryDirectory(dir=child.work) as folder:
        cfg = load_config(tiny_preset(child, "celebahq256"),
                          {**common, **changes, "run.dir": folder})
        result = train(cfg, device=child.device, quiet=True)
        log = read_records(Path(folder) / LOG)
    curves = {key: [line.get(key) for line in log] for key in NAMES}
    child.row(case="band", provider=name, preset=cfg.preset, batch=8, steps=result.step,
              seconds=round(result.seconds, 1), dtype=cfg.run.precision, engine=result.engine,
              at=[line["step"] for line in log], curves=curves)


def judge(rows: Sequence[dict[str, Any]], window: int = WINDOW) -> dict[str, dict[str, Any]]:
    """Means per window of steps of every run, and how many of the fast run's are in the band.

    Args:
        rows: of the part "band".
        window: steps per mean.

    Returns:
        By loss: "at", "band" (lowest and highest seed with MARGIN of the width on either side),
        "fast" and "inside", the share of windows.

    Raises:
        ValueError: a run is missing.
    """
    band = [row for row in rows if row["provider"] != "fast"]
    fast = next((row for row in rows if row["provider"] == "fast"), None)
    if fast is None or len(band) < 2:
        raise ValueError("the results hold no fast run with a band of others beside it")
    found: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        means = [_means(row, name, window) for row in band]
        low, high = np.min([m[1] for m in means], 0), np.max([m[1] for m in means], 0)
        width = high - low
        low, high = low - MARGIN * width, high + MARGIN * width
        at, own = _means(fast, name, window)
        inside = float(np.mean((own >= low) & (own <= high)))
        found[name] = {"at": at, "band": (low, high), "fast": own, "inside": inside}
    return found


def _means(row: dict[str, Any], name: str, window: int) -> tuple[np.ndarray, np.ndarray]:
    at = np.array(row["at"])
    values = np.array([np.nan if v is None else v for v in row["curves"][name]], dtype=float)
    slots = (at - 1) // window
    chosen = np.unique(slots)
    return (chosen + 1) * window, np.array([np.nanmean(values[slots == s]) for s in chosen])


def main(argv: Sequence[str] | None = None) -> int:
    """Judge and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.band", description=__doc__)
    parser.add_argument("results", help="results.json of the GPU suite")
    parser.add_argument("-o", "--output", required=True, help="a PNG")
    arguments = parser.parse_args(argv)
    results = json.loads(Path(arguments.results).read_text())
    found = judge([row for row in results["rows"] if row.get("case") == "band"])
    panels = {}
    for name, one in found.items():
        print(f"{name}: {one['inside']:.0%} of the {WINDOW}-step means inside the band")
        panels[name] = (one["at"], one["band"], one["fast"])
    bands(panels, arguments.output, band="tf32, three seeds", line="bf16, graph")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
