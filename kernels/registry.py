"""Backends of the ops: which exist, whether each is usable here and why not, and which one runs.

The choice is one process-wide setting that is read inside the op's implementation, below torch's
dispatcher. Backward passes run in other threads and compiled graphs keep ops opaque: both see the
same choice.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

BACKENDS = ("cuda", "triton", "torch")
"""All backend names, most preferred first."""

AUTOMATIC = ("torch",)
"""What "auto" takes on CUDA tensors, most preferred first: backends that have been checked and
measured on a GPU. The others run when asked for by name."""


@dataclass(frozen=True)
class Backend:
    """One implementation of one op."""

    run: Callable[..., Any]
    why_not: Callable[[], str | None]
    """None when usable on this machine, else the reason in words."""
    accepts: Callable[..., str | None]
    """None when it can handle these arguments of the op, else the reason in words."""


_table: dict[str, dict[str, Backend]] = {}


def _backend_name(value: str, origin: str) -> str:
    if value not in ("auto", *BACKENDS):
        raise ValueError(
            f"{origin} is {value!r}: choose one of auto, {', '.join(BACKENDS)}."
        )
    return value


_VARIABLE = "DDGAN_FAST_BACKEND"
_environment = _backend_name(os.environ.get(_VARIABLE, "auto"), _VARIABLE)
_environment_per_op: dict[str, str] = {}
_in_use: str | None = None


def register_backend(
    op: str,
    name: str,
    run: Callable[..., Any],
    *,
    why_not: Callable[[], str | None] = lambda: None,
    accepts: Callable[..., str | None] = lambda *args: None,
) -> None:
    """Add an implementation of ``op``; its arguments are those of the op's schema."""
    _table.setdefault(op, {})[name] = Backend(run, why_not, accepts)
    variable = f"{_VARIABLE}_{_public_name(op).upper()}"
    if variable in os.environ:
        _environment_per_op[op] = _backend_name(os.environ[variable], variable)


def _public_name(op: str) -> str:
    """The op that users call: adjoints follow the choice made for it."""
    for suffix in ("_grad", "_tangent", "_backward"):
        op = op.removesuffix(suffix)
    return op


def check_environment() -> None:
    """Raise ValueError for a per-op variable that names no op; all ops must be registered."""
    ops = sorted({_public_name(op) for op in _table})
    for variable in os.environ:
        if variable.startswith(f"{_VARIABLE}_"):
            name = variable.removeprefix(f"{_VARIABLE}_").lower()
            if name not in ops:
                raise ValueError(f"{variable} names no op: the ops are {', '.join(ops)}.")


def _choice(op: str) -> str:
    """What was asked for: a ``with`` block counts before the op's variable, and that before all."""
    return _in_use or _environment_per_op.get(op, _environment)


def lazy(module: str, function: str) -> Callable[..., Any]:
    """A function of a module that is imported at its first call, as Triton's must be."""

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*args)

    return call


def select(op: str, args: Sequence[Any]) -> Callable[..., Any]:
    """The implementation of ``op`` that runs for these arguments, the first one a tensor.

    Raises:
        RuntimeError: a backend was asked for by name and cannot run here.
    """
    forced = _choice(op)
    if forced != "auto":
        reason = _why_not(op, forced) or _table[op][forced].accepts(*args)
        if reason:
            raise RuntimeError(
                f"backend {forced!r} was asked for, but {op} cannot use it: {reason}"
            )
        return _table[op][forced].run
    if args[0].device.type == "cuda":
        for name in AUTOMATIC:
            if _why_not(op, name) is None and _table[op][name].accepts(*args) is None:
                return _table[op][name].run
    return _table[op]["torch"].run


def _why_not(op: str, name: str) -> str | None:
    backend = _table[op].get(name)
    if backend is None:
        return f"this version has no {name} kernel for it"
    return backend.why_not()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run all ops on one backend inside a ``with`` block, in every thread of the process.

    Args:
        name: "auto" (best usable one), "cuda", "triton" or "torch".

    Raises:
        ValueError: unknown name.
    """
    global _in_use
    before = _in_use
    _in_use = _backend_name(name, "the backend")
    try:
        yield
    finally:
        _in_use = before


def backend_report() -> list[dict[str, str | bool]]:
    """One row per op and backend: ``{"op", "backend", "usable", "why_not", "chosen"}``.

    "chosen" says what "auto" takes: on a CUDA device where there is one, else on the CPU.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    rows: list[dict[str, str | bool]] = []
    for op in sorted(_table):
        chosen = _choice(op)
        if chosen == "auto":
            usable = [n for n in AUTOMATIC if _why_not(op, n) is None]
            chosen = usable[0] if has_gpu else "torch"
        for name in BACKENDS:
            reason = _why_not(op, name)
            rows.append(
                {
                    "op": op,
                    "backend": name,
                    "usable": reason is None,
                    "why_not": reason or "",
                    "chosen": name == chosen,
                }
            )
    return rows
