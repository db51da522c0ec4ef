"""NVIDIA's apex: whether it is there, its fused Adam, and why not.

Apex is never required. On PyPI a package of the same name has nothing to do with it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

ABSENT = "not installed"


def why_not(device: torch.device | None = None) -> str | None:
    """Why NVIDIA's fused Adam cannot be used (on a device), as a phrase; None where it can."""
    try:
        importlib.import_module("apex")
    except ModuleNotFoundError as error:
        return ABSENT if error.name == "apex" else _wrong_package()
    except Exception as error:
        return f"broken: it cannot be imported ({_brief(error)})"
    try:
        optimizers = importlib.import_module("apex.optimizers")
    except ModuleNotFoundError:
        return _wrong_package()
    except Exception as error:
        return f"broken: apex.optimizers cannot be imported ({_brief(error)})"
    if getattr(optimizers, "FusedAdam", None) is None:
        return _wrong_package()
    try:
        importlib.import_module("amp_C")
    except Exception as error:
        return (
            f"NVIDIA's, but without its CUDA extension amp_C ({_brief(error)}): build apex from "
            "source with its CUDA extensions"
        )
    if device is not None and device.type != "cuda":
        return f"NVIDIA's, whose Adam works on GPUs only, and this run is on {device.type}"
    return None


def make(
    parameters: Sequence[nn.Parameter],
    rate: float,
    betas: tuple[float, float],
    eps: float,
    on_device: bool,
) -> Optimizer:
    """Apex's Adam without weight decay.

    It is the capturable kind, which skips a step on the device, where this apex has one.

    Raises:
        RuntimeError: it cannot be used; the message says why.
    """
    reason = why_not(parameters[0].device)
    if reason is not None:
        raise RuntimeError(
            f'optim.backend is "apex", but apex is {reason}; or set optim.backend to "torch", '
            "whose Adam is fused, too."
        )
    fused_adam: Any = importlib.import_module("apex.optimizers").FusedAdam
    options: dict[str, Any] = {}
    if "capturable" in inspect.signature(fused_adam).parameters:
        options["capturable"] = True
    elif on_device:
        raise RuntimeError(
            'optim.backend is "apex", but this apex is too old for CUDA graphs (its FusedAdam has '
            'no argument capturable): install a newer one, or set optim.backend to "torch".'
        )
    optimizer: Optimizer = fused_adam(
        parameters, lr=rate, betas=betas, eps=eps, adam_w_mode=False, weight_decay=0.0, **options
    )
    set_step(optimizer, 0)
    return optimizer


def is_apex(optimizer: Optimizer) -> bool:
    """Whether it is apex's, which counts steps in the group instead of for each parameter."""
    return type(optimizer).__module__.partition(".")[0] == "apex"


def set_step(optimizer: Optimizer, step: int) -> None:
    """Set the number of steps taken, in place where it is on the device."""
    for group in optimizer.param_groups:
        if isinstance(group.get("step"), torch.Tensor):
            group["step"].fill_(step)
        elif getattr(optimizer, "capturable", False):
            device = group["params"][0].device
            group["step"] = torch.full((1,), step, dtype=torch.int32, device=device)
        else:
            group["step"] = step


def skips_on_device(optimizer: Optimizer) -> bool:
    """Whether ``step_unless`` works, without waiting for the device."""
    return is_apex(optimizer) and bool(getattr(optimizer, "capturable", False))


def step_unless(optimizer: Optimizer, found_inf: torch.Tensor) -> None:
    """Step, unless ``found_inf`` (float32, one element) is 1; decided on the device."""
    counts = [group["step"] for group in optimizer.param_groups]
    before = [count.clone() for count in counts]
    any_kind: Any = optimizer
    # FusedAdam counts a step by what became of the one before.
    any_kind._dummy_overflow_buf.zero_()
    verdict = found_inf.reshape(1)
    # The two methods by which FusedAdam.step asks a torch.amp.GradScaler; the scale is not ours.
    scaler = SimpleNamespace(
        _check_inf_per_device=lambda _: {verdict.device: verdict},
        _get_scale_async=lambda: torch.ones_like(verdict),
    )
    any_kind.step(grad_scaler=scaler)
    for group, count, old in zip(optimizer.param_groups, counts, before, strict=True):
        group["step"] = count.copy_(old + (1 - verdict).to(old))


def _wrong_package() -> str:
    summary = ""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        about = importlib.metadata.metadata("apex")
        summary = f", {about['Name']} {about['Version']}: {about['Summary']}"
    return (
        f"not NVIDIA's but another project of that name (apex.optimizers.FusedAdam is "
        f"missing{summary}): pip uninstall apex"
    )


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
