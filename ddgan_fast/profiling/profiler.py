"""The profile of a configuration, from the first step to the last figure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..config import Config, validate
from ..flops import training_flops
from ..kernels import backend_report
from . import ceilings, figures, memory, modules, trace
from .costs import Cost, CostCounter
from .hints import hints
from .session import Session, prepared

VERSION = 1
"""Of the form of a profile."""
_WARM_UP = 3
_TRACED, _TRACED_SECONDS = 5, 10.0
"""Steps of each kind under the profiler, fewer where that takes longer."""

Say = Callable[[str], None]


def profile(
    cfg: Config,
    out: Path,
    *,
    device: str | None = None,
    steps: int = 10,
    say: Say = lambda text: None,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Take real training steps and take them apart.

    Under torchrun every rank makes this call; the figures are those of its own steps.

    Args:
        cfg: what would be trained; without a data path, synthetic images.
        out: a folder, made when absent, for Chrome traces and, on a GPU, the allocator's history.
        device: "cpu", "cuda" or "cuda:0"; default a GPU when there is one.
        steps: of each kind (with R1, without), with marks and as many without.
        say: told what is chosen and done.
        scale: of the matrices and copies that find the machine's peaks.

    Returns:
        Plain types: "version", "preset", "device", "dtype", "engine", "batch", "r1_every", "step",
        "phases" (they add up to the step), "sum_over_step", "operators", "kernels", "modules",
        "memory", "ceilings", "flops", "mfu", "images", "data", "hints", "files", "notes".

    Raises:
        ValueError: the configuration, the data or the device do not fit.
    """
    validate(cfg)
    notes: list[str] = []

    def tell(text: str) -> None:
        notes.append(text)
        say(text)

    cfg = prepared(cfg, tell)
    with contextlib.ExitStack() as stack:
        session = Session(cfg, device, stack, tell)
        return _measure(session, out, steps, scale, say) | {"notes": notes}


def _measure(session: Session, out: Path, rounds: int, scale: float, say: Say) -> dict[str, Any]:
    cfg, engine, device = session.cfg, session.engine, session.device
    on_gpu = device.type == "cuda"
    shares = {kind: session.share(kind) for kind in session.kinds}
    out.mkdir(parents=True, exist_ok=True)
    say("Warming up.")
    session.rounds(_WARM_UP)
    say(f"Timing {rounds} steps of each kind, with marks and without.")
    taken = session.rounds(rounds)
    costs = {kind: _costs(session, kind) for kind in session.kinds}
    say("Tracing.")
    traces, files = _traces(session, costs, out)
    say("Measuring modules, memory and the machine's peaks.")
    used = {"operators": memory.measure(session)}
    parts = modules.measure(session)
    if on_gpu:
        path = out / "memory.pickle"
        used["allocator"] = memory.allocator(session, path)
        files.append(str(path))
    peak = ceilings.measure(device, engine.precision.name, scale)
    local = len(engine.index)
    step = figures.step_figures(taken, shares, local)
    # Code compiled for a CPU is not made of operators, so what lies between them is unknown.
    seen = traces if on_gpu or "compile" not in engine.mode else {kind: [] for kind in shares}
    phases = figures.phase_figures(taken, shares, seen, on_gpu)
    flops = training_flops(cfg)
    waits = [s.host_wait for s in taken]
    found: dict[str, Any] = {
        "version": VERSION,
        "preset": cfg.preset,
        "device": device.type,
        "dtype": engine.precision.name,
        "engine": engine.mode,
        "batch": local,
        "ranks": session.ranks.world,
        "micro_batches": engine.micros,
        "r1_every": cfg.loss.lazy_reg if cfg.loss.kind == "gan" else None,
        "recompute": list(cfg.run.recompute),
        "channels_last": cfg.run.channels_last,
        "step": step,
        "phases": phases,
        "sum_over_step": figures.rounded(sum(p["ms"] for p in phases) / step["ms_p50"]),
        "operators": figures.operator_figures(traces, costs, shares, peak),
        "kernels": figures.kernel_figures(traces, shares),
        "modules": parts,
        "memory": used,
        "ceilings": {
            "gflop_s": figures.rounded(peak.flops / 1e9),
            "gb_s": figures.rounded(peak.bytes / 1e9),
            "dtype": peak.dtype,
        },
        "flops": flops,
        "mfu": figures.rounded(
            1e3 * flops["training_image"] * local / step["ms_p50"] / peak.flops
        ),
        "images": figures.image_figures(taken, shares, local),
        "data": {
            "loader": session.feed.loader.kind,
            "note": session.feed.loader.note,
            "source": cfg.data.source,
            "prepared": getattr(session.dataset, "kind", None) == "shards",
            "workers": session.dataset.workers,
            "host_wait_ms": figures.rounded(1e3 * sum(waits) / len(waits)),
        },
        "backends": backend_report(),
        "bf16_usable": on_gpu and torch.cuda.is_bf16_supported(),
        "files": files,
    }
    found["hints"] = hints(found)
    return found


def _costs(session: Session, kind: bool) -> dict[str, Cost]:
    with CostCounter() as counter:
        session.operator_step(kind)
    return counter.costs


def _traces(
    session: Session, costs: Mapping[bool, Mapping[str, Cost]], out: Path
) -> tuple[dict[bool, list[trace.Trace]], list[str]]:
    """Profiled steps of each kind; a trace of each is kept as a file."""
    known = {name for table in costs.values() for name in table}
    on_gpu = session.device.type == "cuda"
    session.timeline.ranges = True
    found: dict[bool, list[trace.Trace]] = {}
    files = []
    for kind in session.kinds:
        suffix = "" if len(session.kinds) == 1 else "-with-r1" if kind else "-without-r1"
        path = out / f"trace{suffix}.json.gz"

        def step(kind: bool = kind) -> None:
            session.step(kind, True)
            session.timeline.finish()

        if on_gpu:
            # The first step under the profiler also starts the profiler.
            trace.record(step, session.device)
        own: list[trace.Trace] = []
        began = time.monotonic()
        while len(own) < _TRACED:
            # Ranks must take the same steps.
            if session.ranks.any(bool(own) and time.monotonic() - began > _TRACED_SECONDS):
                break
            profiler = trace.record(step, session.device)
            if not own:
                trace.keep(profiler, path)
                files.append(str(path))
            own.append(trace.read(profiler.events() or [], known, on_gpu))
        found[kind] = own
    session.timeline.ranges = False
    return found, files
