"""The table of ops in the README: ``python -m benchmarks.op_table`` writes it anew.

Everything in it is found out: first lines of docstrings, derivatives that are taken here and now,
arguments that the backends accept, and the rows of results/*.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddgan_fast import kernels, tables
from ddgan_fast.kernels import registry, use_backend

from . import readme
from .kernel_bench import OURS, bind
from .kernel_cases import OPS, PASSES, Op, Tensors, tiny_cases

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- written by `python -m benchmarks.op_table` -->"
END = "<!-- end of what it wrote -->"
NEVER = "not yet run on a GPU"
_TITLES = {"torch": "torch", "triton": "Triton", "cuda": "CUDA C++"}
_DTYPES = {
    "fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16,
}
_LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
_IMAGES = ("x", "x_next")
# Derivatives of this order stand for all: each adjoint is one of the ops already seen.
_ANY_ORDER = 3


class _Calls(TorchDispatchMode):
    """Notes every call of one of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "ddgan_fast":
            self.found.append((func._opname, args))
        return func(*args, **(kwargs or {}))


class _OnGpu(torch.Tensor):
    """A tensor that says that it lies on a GPU, to be asked about its form only."""

    device = torch.device("cuda", 0)
    is_cuda = True


def public_ops() -> list[str]:
    """The ops that users call, in the order of their names."""
    return [name for name in kernels.__all__ if hasattr(torch.ops.ddgan_fast, name)]


def variants(name: str) -> list[Op]:
    """The timed variants of an op.

    Raises:
        ValueError: there is none.
    """
    found = [op for op in OPS.values() if op.name == name]
    if not found:
        raise ValueError(
            f"The op {name} has no case: add one to OPS in benchmarks/kernel_cases.py."
        )
    return found


def _inputs(op: Op) -> Tensors:
    torch.manual_seed(0)
    case = next(case for case in tiny_cases() if OPS[case.op] is op and case.dtype == "fp32")
    return op.make(case, torch.device("cpu"))


def _with_images(inputs: Tensors, **form: Any) -> Tensors:
    return inputs | {
        name: inputs[name].to(**form)
        for name in _IMAGES
        if name in inputs and inputs[name].is_floating_point()
    }


def gradient_orders(op: Op) -> str:
    """How often autograd differentiates the op: "any", or a number."""
    inputs = _inputs(op)
    x = inputs["x"].double().requires_grad_()
    results = op.ours(_with_images(inputs, dtype=x.dtype) | {"x": x})
    y = torch.stack([result.square().sum() for result in results]).sum()
    for order in range(_ANY_ORDER):
        try:
            (g,) = torch.autograd.grad(y, x, create_graph=True)
        except (RuntimeError, NotImplementedError):
            return str(order)
        y = g.square().sum()
    return "any"


def own_passes(op: Op) -> list[str]:
    """The passes that run one of our kernels rather than operators of torch."""
    inputs, own = _inputs(op), []
    differentiable = op.differentiable or ("x",)
    cotangents = tuple(torch.randn_like(y) for y in op.ours(inputs))
    for which in PASSES:
        call = bind(
            op.ours, inputs, differentiable, cotangents, torch.randn_like(inputs["x"]), which
        )
        with _Calls() as calls:
            call()
        if calls.found:
            own.append(which.replace("_", " "))
    return own


def dtypes(op: Op, backend: str) -> list[str]:
    """Dtypes of images that a backend takes; torch's by running it, the others' by asking."""
    return [name for name, dtype in _DTYPES.items() if _takes(op, backend, dtype)]


def _takes(op: Op, backend: str, dtype: torch.dtype) -> bool:
    inputs = _with_images(_inputs(op), dtype=dtype)
    try:
        with _Calls() as calls:
            op.ours(inputs)
    except (RuntimeError, NotImplementedError):
        return False
    name, given = calls.found[0]
    on_gpu = [a.as_subclass(_OnGpu) if isinstance(a, torch.Tensor) else a for a in given]
    found = registry._table[name].get(backend)
    return found is not None and (backend == "torch" or found.accepts(*on_gpu) is None)


def layouts(op: Op) -> list[str]:
    """The memory orders of images that the results keep."""
    inputs, kept = _inputs(op), []
    for name, order in _LAYOUTS.items():
        results = op.ours(_with_images(inputs, memory_format=order))
        if all(y.is_contiguous(memory_format=order) for y in results):
            kept.append(name)
    return kept


def runs(folder: Path) -> dict[tuple[str, str], dict[str, list[bool]]]:
    """(op, backend) -> GPU -> whether each of its passes agreed, from all results in a folder."""
    found: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for row in _rows(folder):
        gpu = (row["machine"] or {}).get("gpu")
        if gpu and row.get("provider") in OURS and "op" in row:
            on = found.setdefault((row["op"], row["provider"]), {})
            on.setdefault(gpu.removeprefix("NVIDIA "), []).append(row.get("agrees") is True)
    return found


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        # The suite states its machine once, single benchmarks in every row.
        machine = content.get("environment", {}).get("machine")
        for row in content.get("rows", []):
            yield {"machine": machine} | row


def ran_on(found: dict[str, list[bool]], *, always: Sequence[str] = ()) -> str:
    """Where one op ran on one backend, in words."""
    parts = list(always)
    for gpu, agreed in sorted(found.items()):
        wrong = agreed.count(False)
        parts.append(f"{gpu} ({wrong} of {len(agreed)} checks failed)" if wrong else gpu)
    return ", ".join(parts) if found else ", ".join([*parts, NEVER])


def _common(values: list[list[str]]) -> str:
    """What all have in common, in the order of the first; "-" where that is nothing."""
    first, *others = values
    return ", ".join(v for v in first if all(v in other for other in others)) or "-"


def _row(name: str, found: dict[tuple[str, str], dict[str, list[bool]]]) -> list[str]:
    # Of bytes there is no gradient, and their order is fixed.
    op = next(v for v in variants(name) if _inputs(v)["x"].is_floating_point())
    said = (getattr(kernels, name).__doc__ or "").split("\n")[0].rstrip(".")
    return [
        f"`{name}`",
        said.removesuffix(", differentiable to any order").replace("|", "\\|"),
        _common([dtypes(op, backend) for backend in _TITLES]),
        ", ".join(layouts(op)),
        gradient_orders(op) + " order",
        ", ".join(own_passes(op)),
        *(
            ran_on(found.get((name, b), {}), always=("CPU",) if b == "torch" else ())
            for b in _TITLES
        ),
    ]


def table(results: Path) -> str:
    """The table in Markdown.

    Raises:
        ValueError: an op has no case in ``kernel_cases``.
    """
    header = ["op", "what it does", "image dtypes", "memory orders", "gradients", "own kernels for"]
    header += [f"{title} ran on" for title in _TITLES.values()]
    found = runs(results)
    with use_backend("torch"):
        return tables.markdown(header, [_row(name, found) for name in public_ops()])


def main() -> None:
    """Write the table into README.md."""
    readme.write(BEGIN, END, table(ROOT / "benchmarks/results"))


if __name__ == "__main__":
    main()
