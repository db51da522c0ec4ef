"""The memory of a step: how it rises and falls by phases, and who holds it at the peak."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..training.footprint import LiveBytes
from ..training.optim import adam_tensors
from .session import Session

_HISTORY = 200_000


def measure(session: Session) -> dict[str, Any]:
    """Follow one step of the largest kind, operator by operator.

    Returns:
        "peak_bytes"; "timeline": live bytes where each phase begins and its highest; "at_peak":
        bytes by owner: what lasts, the module of a network whose forward pass made it, or the
        phase, the largest first. What operators need inside is not seen.
    """
    engine = session.engine
    live = LiveBytes()
    for owner, tensors in _lasting(session).items():
        live.owner = owner
        for tensor in tensors:
            live.add(tensor)
    timeline: list[dict[str, Any]] = []

    def begin(phase: str) -> None:
        if timeline:
            timeline[-1]["highest_bytes"] = live.highest
        live.highest = live.now
        timeline.append({"phase": phase, "bytes": live.now})
        live.owner = phase

    session.timeline.watchers.append(begin)
    try:
        networks = {k: engine.modules[name] for k, name in engine.networks.items()}
        with _owning(live, networks), live:
            session.operator_step(session.kinds[0])
        begin("end")
    finally:
        session.timeline.watchers.remove(begin)
    timeline[-1]["highest_bytes"] = live.now
    owners = sorted(live.at_peak.items(), key=lambda item: -item[1])
    return {
        "peak_bytes": live.peak,
        "timeline": timeline,
        "at_peak": [{"owner": name, "bytes": size} for name, size in owners if size],
    }


def allocator(session: Session, path: Path) -> dict[str, Any]:
    """A step under CUDA's allocator: its statistics, and its history as a pickle for memory_viz."""
    device = session.device
    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.memory._record_memory_history(max_entries=_HISTORY)
    try:
        session.step(session.kinds[0], False)
        session.timeline.finish()
        temporary = path.with_name(f".{path.name}.tmp")
        torch.cuda.memory._dump_snapshot(str(temporary))
        os.replace(temporary, path)
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    known = torch.cuda.memory_stats(device)
    names = {
        "allocated_peak_bytes": "allocated_bytes.all.peak",
        "reserved_peak_bytes": "reserved_bytes.all.peak",
        "retries": "num_alloc_retries",
    }
    found = {name: known.get(key, 0) for name, key in names.items()}
    return found | {"device_bytes": torch.cuda.get_device_properties(device).total_memory}


def _lasting(session: Session) -> dict[str, list[torch.Tensor]]:
    """What lies there between steps, by name."""
    engine, batch = session.engine, session.batch
    networks = {f"weights of {k}": engine.modules[name] for k, name in engine.networks.items()}
    found = {k: [*module.parameters(), *module.buffers()] for k, module in networks.items()}
    parameters = [p for module in networks.values() for p in module.parameters()]
    found["gradients of the step before"] = [p.grad for p in parameters if p.grad is not None]
    found["Adam's moments"] = [
        t for optimizer in engine.optimizers.values() for t in adam_tensors(optimizer)
    ]
    found["averaged generator"] = list(engine.ema.average)
    found["batch"] = [t for t in (batch.images, batch.flip) if t is not None]
    return found


@contextlib.contextmanager
def _owning(live: LiveBytes, networks: dict[str, nn.Module]) -> Iterator[None]:
    """What a module's forward pass makes belongs to the outermost one under its network."""
    before: list[str] = []
    with contextlib.ExitStack() as hooks:
        for network, root in networks.items():
            for name, module in root.named_modules():
                if not name:
                    continue
                path = f"{network}.{name}"

                def enter(*_: Any, path: str = path) -> None:
                    before.append(live.owner)
                    if len(before) == 1:
                        live.owner = path

                def leave(*_: Any) -> None:
                    live.owner = before.pop()

                hooks.callback(module.register_forward_pre_hook(enter).remove)
                hooks.callback(module.register_forward_hook(leave).remove)
        yield
