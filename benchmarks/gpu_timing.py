"""Times the providers of a case on a GPU: one that fails or is wrong costs its own row alone."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from ddgan_fast.kernels import use_backend

from . import runner
from .gpu_units import Child
from .runner import Case, Provider


@dataclasses.dataclass(frozen=True)
class Memory:
    """What belongs to one provider alone, while others lie beside it.

    Attributes:
        own: tensors that stay from call to call.
        graph_bytes: of the graphs that it replays; 0 where there are none.
    """

    own: Callable[[], list[torch.Tensor]]
    graph_bytes: int = 0


def time_case(
    child: Child,
    case: Case,
    rounds: int,
    flops: float = 0.0,
    memory: Mapping[str, Memory] | None = None,
    wrong: Mapping[str, str] | None = None,
) -> None:
    """Rows of a case; without agreement the rows say so and hold no ratio, and the unit fails.

    Args:
        child: the part that the rows belong to.
        case: what is timed.
        rounds: how often.
        flops: of one call, 0 where they are not to be told.
        memory: of providers by name.
        wrong: what is known to be wrong about single providers.

    Raises:
        RuntimeError: no provider works, or they do not agree.
    """
    common, wrong = problem(case.differences, case.device), wrong or {}
    working = [p for p in case.providers if _works(child, case, p)]
    if not working:
        raise RuntimeError("no provider works")
    checked = dataclasses.replace(case, differences=lambda: (), providers=working)
    rows = runner.run(checked, rounds, 0 if child.tiny else 1)
    for row, provider in zip(rows, working, strict=True):
        found = common or wrong.get(provider.name)
        if found:
            row.pop("speedup", None)
            row["disagreement"] = found
        row["agrees"] = not found
        row["preset"] = Path(str(row["preset"])).stem
        row["peak_gib"] = _peak(provider, case.device, (memory or {}).get(provider.name))
        if flops:
            row["tflop_s"] = round(flops / row["ms_p50"] / 1e9, 2)
        print(json.dumps(row), flush=True)
        child.row(**row)
    if common or wrong:
        raise RuntimeError(f"the providers do not agree: {common or dict(wrong)}")


def problem(differences: Callable[[], Iterable[str]], device: torch.device) -> str:
    """How providers differ, in words; "" where they agree."""
    try:
        return "; ".join(differences())[:1000]
    except Exception as error:
        text = f"not compared: {str(error)[:300]}"
    settle(device)
    return text


def _works(child: Child, case: Case, provider: Provider) -> bool:
    """Whether it runs beside the others; if not, a row says why."""
    text = ""
    try:
        for call in provider.parts.values():
            call()
        runner._wait(case.device)
    except Exception as error:
        text = str(error)[:300]
    if text:
        settle(case.device)
        child.row(case=case.name, provider=provider.name, **case.facts, status="failed",
                  error_text=text)
    return not text


def fastest(call: Callable[[], object], backends: Sequence[str], device: torch.device) -> str:
    """The backend of our ops by which a baseline that uses them is fastest."""
    seconds = {}
    for name in backends if len(backends) > 1 else ():
        with contextlib.suppress(Exception), use_backend(name):
            seconds[name] = min(runner._milliseconds(call, device) for _ in range(2))
        settle(device)
    if seconds:
        told = ", ".join(f"{name} {ms:.0f} ms" for name, ms in seconds.items())
        print(f"the recipe by its filter: {told}", flush=True)
    return min(seconds, key=seconds.__getitem__) if seconds else backends[0]


def settle(device: torch.device) -> None:
    """Give free memory back, that of a failed call too; raises where the device is lost."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def _peak(provider: Provider, device: torch.device, memory: Memory | None) -> float | None:
    """GiB at the peak of a call, without what the others keep."""
    if device.type != "cuda" or memory is None:
        return None
    own = sum(tensor.nbytes for tensor in memory.own())
    if memory.graph_bytes:
        return round((own + memory.graph_bytes) / 2**30, 3)
    torch.cuda.empty_cache()
    others = torch.cuda.memory_allocated(device) - own
    torch.cuda.reset_peak_memory_stats(device)
    for call in provider.parts.values():
        call()
    torch.cuda.synchronize(device)
    return round((torch.cuda.max_memory_allocated(device) - others) / 2**30, 3)
