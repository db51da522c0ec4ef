"""Adam, its learning rate, and its state in a form that every implementation reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from . import apex_adam

BACKENDS = ("auto", "torch", "apex", "foreach", "loop")
_MOMENTS = ("exp_avg", "exp_avg_sq")


def cosine_rate(step: int, start: float, end: float, total: int, interval: int = 1) -> float:
    """Learning rate of a step: half a cosine from ``start`` to ``end``, constant per interval."""
    periods = max(total // interval, 1)
    done = min(step // interval, periods)
    return end + (start - end) * (1.0 + math.cos(math.pi * done / periods)) / 2.0


def make_adam(
    parameters: Iterable[nn.Parameter],
    rate: float,
    betas: tuple[float, float],
    eps: float,
    backend: str = "auto",
    *,
    rate_on_device: bool = False,
) -> Optimizer:
    """Adam without weight decay.

    Args:
        parameters: parameters to update; those that require no gradient are left out.
        rate: learning rate; ``set_rate`` changes it.
        betas: moment decays.
        eps: epsilon.
        backend: "torch" (one fused kernel), "apex" (NVIDIA's), "foreach", "loop", or "auto"
            (torch).
        rate_on_device: keep the rate in a tensor, as a CUDA graph would freeze a number.

    Raises:
        ValueError: no such backend, or one that cannot do what is asked.
        RuntimeError: NVIDIA's apex is asked for, but not usable; the message says why.
    """
    if backend not in BACKENDS:
        names = ", ".join(f'"{name}"' for name in BACKENDS)
        raise ValueError(f"optim.backend is {backend!r}: choose one of {names}.")
    trainable = [p for p in parameters if p.requires_grad]
    device = trainable[0].device
    if backend == "apex":
        optimizer = apex_adam.make(trainable, rate, betas, eps, on_device=rate_on_device)
        set_rate(optimizer, rate)
        return optimizer
    options: dict[str, Any] = {"foreach": backend == "foreach"}
    if backend in ("auto", "torch"):
        options = {"fused": True, "capturable": rate_on_device and device.type == "cuda"}
    elif rate_on_device:
        raise ValueError(
            f'optim.backend is "{backend}", which cannot run inside a CUDA graph: choose "torch".'
        )
    first: float | torch.Tensor = rate
    if rate_on_device:
        # The kernels for GPUs read float32, those for CPUs any type.
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        first = torch.full((), rate, dtype=dtype, device=device)
    optimizer = torch.optim.Adam(trainable, lr=first, betas=betas, eps=eps, **options)
    set_rate(optimizer, rate)
    return optimizer


def set_rate(optimizer: Optimizer, value: float) -> None:
    """Change the learning rate, without waiting for the device; not inside a CUDA graph.

    On GPUs the rate is a float32 number also where it is kept on the host, so that a run with CUDA
    graphs repeats one without.
    """
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(value)
        elif group["params"][0].is_cuda:
            group["lr"] = torch.tensor(value, dtype=torch.float32).item()
        else:
            group["lr"] = value


def adam_tensors(optimizer: Optimizer) -> list[torch.Tensor]:
    """Everything that steps change beside the parameters, for who puts it back in place."""
    entries = [*optimizer.state.values(), *optimizer.param_groups]
    names = (*_MOMENTS, "step")
    found = [entry[name] for entry in entries for name in names if name in entry]
    return [value for value in found if isinstance(value, torch.Tensor)]


def adam_state(optimizer: Optimizer) -> dict[str, Any]:
    """Moments and step counts in the layout of torch's Adam, whichever implementation it is.

    The tensors are the optimiser's own, not copies.
    """
    state = optimizer.state_dict()
    groups = state["param_groups"]
    for group in groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"] = float(group["lr"])
        # Apex counts once per group.
        steps = group.pop("step", None)
        if steps is not None:
            count = torch.tensor(float(steps))
            for number in group["params"]:
                if number in state["state"]:
                    state["state"][number] = {"step": count, **state["state"][number]}
    return {"state": state["state"], "param_groups": groups}


@torch.no_grad()
def load_adam_state(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Go on with saved moments and step counts; all other options stay this optimiser's.

    Tensors that exist are filled in place, so that CUDA graphs go on using them.

    Args:
        optimizer: what ``make_adam`` returned.
        saved: from ``adam_state`` or ``torch.optim.Adam.state_dict``.

    Raises:
        ValueError: the state is one of other parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in saved["param_groups"] for n in group["params"]]
    if len(numbers) != len(parameters):
        raise ValueError(
            f"the saved optimiser has {len(numbers)} parameters, this one {len(parameters)}: "
            "the state belongs to another network."
        )
    counts_in_group = apex_adam.is_apex(optimizer)
    for number, parameter in zip(numbers, parameters, strict=True):
        old = saved["state"].get(number, {})
        if not old and parameter not in optimizer.state:
            continue
        own = optimizer.state[parameter]
        for name in _MOMENTS:
            moment = own.setdefault(name, torch.empty_like(parameter, requires_grad=False))
            moment.copy_(old[name]) if old else moment.zero_()
        if not counts_in_group:
            step = own.setdefault("step", _step_count(optimizer, parameter))
            step.copy_(old["step"]) if old else step.zero_()
    if counts_in_group:
        counts = [float(entry["step"]) for entry in saved["state"].values()]
        apex_adam.set_step(optimizer, int(max(counts, default=0)))


def _step_count(optimizer: Optimizer, parameter: torch.Tensor) -> torch.Tensor:
    group = optimizer.param_groups[0]
    device = parameter.device if group["fused"] or group["capturable"] else "cpu"
    return torch.zeros((), dtype=torch.float32, device=device)
