"""Backends of the ops: which exist, whether each is usable here and why not, and which one runs.

The choice is one process-wide setting that is read inside the op's implementation, below torch's
dispatcher. Backward passes run in other threads and compiled graphs keep ops whole: both see the
same choice. Only "inductor" is read while code is traced: torch.compile then replaces ops by torch
operators that it fuses with their surroundings.

``DDGAN_FAST_BACKEND`` sets the choice for a process, ``DDGAN_FAST_BACKEND_UPFIRDN2D`` for one op;
``use_backend`` goes before both.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from . import measured, preference

BACKENDS = ("cuda", "triton", "torch")
"""All backend names, most preferred first."""

CHOICES = ("auto", *BACKENDS, "inductor")
"""What can be asked for. "inductor" lets torch.compile fuse the ops that have a decomposition;
everything else, eager code included, then runs as with "auto"."""


@dataclass(frozen=True)
class Backend:
    """One implementation of one op."""

    run: Callable[..., Any]
    why_not: Callable[[], str | None]
    """None when usable on this machine, else the reason in words."""
    accepts: Callable[..., str | None]
    """None when it can handle these arguments of the op, else the reason in words."""
    outlook: Callable[[], tuple[str | None, str]] | None = None
    """What ``why_not`` would say, and a note or "", where asking that has side effects."""


_table: dict[str, dict[str, Backend]] = {}
_decomposed: dict[str, str] = {}
"""Where compiled code decomposes an op: on the device type of this name, "everywhere" or "never".

Traced code reads it, and so is guarded by it: another choice means another compilation."""


def _backend_name(value: str, origin: str) -> str:
    if value not in CHOICES:
        raise ValueError(f"{origin} is {value!r}: choose one of {', '.join(CHOICES)}.")
    return value


_VARIABLE = "DDGAN_FAST_BACKEND"
_environment = _backend_name(os.environ.get(_VARIABLE, "auto"), _VARIABLE)
_environment_per_op: dict[str, str] = {}
_in_use: str | None = None
_announced = False


def register_backend(
    op: str,
    name: str,
    run: Callable[..., Any],
    *,
    why_not: Callable[[], str | None] = lambda: None,
    accepts: Callable[..., str | None] = lambda *args: None,
    outlook: Callable[[], tuple[str | None, str]] | None = None,
) -> None:
    """Add an implementation of ``op``; its arguments are those of the op's schema.

    Its reports ask ``outlook`` instead of ``why_not`` if that has side effects.
    """
    _table.setdefault(op, {})[name] = Backend(run, why_not, accepts, outlook)
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
    if forced in BACKENDS:
        reason = _why_not(op, forced) or _table[op][forced].accepts(*args)
        if reason:
            raise RuntimeError(
                f"backend {forced!r} was asked for, but {op} cannot use it: {reason}"
            )
        return _table[op][forced].run
    if args[0].device.type == "cuda":
        if not _announced:
            _announce()
        for name in preference.order(op, args):
            if _why_not(op, name) is None and _table[op][name].accepts(*args) is None:
                return _table[op][name].run
    return _table[op]["torch"].run


def _announce() -> None:
    """Say once, on the first rank, what the automatic choice is."""
    global _announced
    _announced = True
    if os.environ.get("RANK", "0") != "0":
        return
    if measured.TABLE:
        text = f"the fastest of {', '.join(preference.taken(BACKENDS))} ({measured.SOURCE})"
    else:
        text = (
            f"{', '.join(preference.AUTOMATIC)} (the others are not measured yet: "
            f"{_VARIABLE}=cuda or triton asks for them)"
        )
    print(f"ddgan_fast: automatic choice of kernels: {text}.", file=sys.stderr, flush=True)


def _why_not(op: str, name: str) -> str | None:
    backend = _table[op].get(name)
    if backend is None:
        return f"this version has no {name} kernel for it"
    return backend.why_not()


def can_decompose(op: str) -> None:
    """Tell that compiled code can replace ``op`` by torch operators."""
    _decomposed[op] = "never"
    _choose_decompositions()


def decomposes(op: str, device: str) -> bool:
    """Whether compiled code replaces ``op`` on tensors of this device type by torch operators."""
    return _decomposed.get(op, "never") in (device, "everywhere")


def _choose_decompositions() -> None:
    for op in _decomposed:
        choice = _choice(op)
        if choice == "inductor":
            _decomposed[op] = "everywhere"
        else:
            measured_faster = choice == "auto" and op in measured.DECOMPOSED
            _decomposed[op] = "cuda" if measured_faster else "never"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run all ops on one backend inside a ``with`` block, in every thread of the process.

    Args:
        name: "auto" (best usable one), "cuda", "triton", "torch", or "inductor": torch.compile
            fuses the ops that have a decomposition, and the rest is "auto".

    Raises:
        ValueError: unknown name.
    """
    global _in_use
    before = _in_use
    _in_use = _backend_name(name, "the backend")
    _choose_decompositions()
    try:
        yield
    finally:
        _in_use = before
        _choose_decompositions()


def backend_report() -> list[dict[str, str | bool]]:
    """One row per op and backend: ``{"op", "backend", "usable", "why_not", "note", "chosen"}``.

    "chosen" says what "auto" takes: on a CUDA device where there is one, else on the CPU; for
    "inductor", whether compiled code decomposes the op. Nothing is compiled for the report.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[dict[str, str | bool]] = []
    ask = functools.cache(lambda outlook: outlook())
    for op in sorted(_table):
        states = {}
        for name in BACKENDS:
            outlook = _table[op][name].outlook if name in _table[op] else None
            states[name] = ask(outlook) if outlook else (_why_not(op, name), "")
        chosen = _choice(op)
        if chosen not in BACKENDS:
            usable = [name for name in BACKENDS if states[name][0] is None]
            chosen = preference.first(op, usable) if device == "cuda" else "torch"
        whole = None if op in _decomposed else "torch.compile keeps this op whole"
        for name, (reason, note) in {**states, "inductor": (whole, "")}.items():
            takes = decomposes(op, device) if name == "inductor" else name == chosen
            rows.append(
                {
                    "op": op,
                    "backend": name,
                    "usable": reason is None,
                    "why_not": reason or "",
                    "note": note,
                    "chosen": takes,
                }
            )
    return rows
