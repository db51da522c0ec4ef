"""``ddgan-fast bench kernels``: every op, backend and baseline, each pass checked, then timed."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddgan_fast.commands import Parser
from ddgan_fast.kernels import backend_report, philox, use_backend

from . import facts
from .agreement import distance
from .kernel_cases import OPS, Function, KernelCase, Tensors, cases, tiny_cases
from .kernel_timing import Clock, Timed, quantiles, rounded

Row = dict[str, Any]
Result = tuple[torch.Tensor, ...]
OURS = ("cuda", "triton", "torch")
_FLOOR = {"bf16": 2e-3, "fp32": 2e-6}
"""Error that is always allowed: one rounding of the result."""
_SECONDS = 3.0
"""For the timed rounds of one pass; slow providers make them fewer, but three."""
_PER_SAMPLE = ("x", "bias", "scale", "shift", "x_next", "t", "index", "flip")


class DeviceLost(RuntimeError):
    """The device answers every call with an error: only a new process goes on."""


@dataclass
class Settings:
    """How to time.

    Attributes:
        device: where.
        rounds: how often.
        deadline: value of ``time.monotonic()`` after which no case and no pass begins.
        copy_gb_s: measured copy bandwidth, or None.
        skip: (op, provider) pairs to leave out.
        trying: told of (op, provider) before it runs for the first time.
        check_only: run and check every pass once without timing.
        compile_s: seconds for torch.compile, after which it is left out.
    """

    device: torch.device
    rounds: int = 20
    deadline: float = float("inf")
    copy_gb_s: float | None = None
    skip: set[tuple[str, str]] = field(default_factory=set)
    trying: Callable[[str, str], None] = lambda op, provider: None
    check_only: bool = False
    compile_s: float = float("inf")


def usable_backends(op: str) -> list[str]:
    """Our backends that can run this op on this machine, most preferred first."""
    found = {row["backend"] for row in backend_report() if row["op"] == op and row["usable"]}
    return [name for name in OURS if name in found]


def providers(case: KernelCase, device: torch.device) -> dict[str, Function]:
    """Who is timed: our backends, the eager composition, and further baselines."""
    op = OPS[case.op]
    found: dict[str, Function] = {}
    for name in usable_backends(op.name):
        if not (device.type == "cpu" and name == "cuda"):
            found[name] = on_backend(op.ours, name)
    found["eager"] = op.plain
    found.update(op.others)
    if case.compiled and device.type == "cuda":
        from torch._functorch import config as functorch_config

        torch._dynamo.reset()
        # The graph of a timed backward pass is kept for the next round.
        functorch_config.donated_buffer = False
        found["compile"] = torch.compile(op.others.get("grouped_conv", op.plain), dynamic=False)
    return found


def on_backend(function: Callable[..., Result], name: str) -> Callable[..., Result]:
    """The function on one backend of ours; as it is for a baseline."""
    if name not in OURS:
        return function

    def call(*values: Tensors) -> Result:
        with use_backend(name):
            return function(*values)

    return call


def run_case(case: KernelCase, clock: Clock, settings: Settings) -> list[Row]:
    """One row per pass and provider.

    Raises:
        DeviceLost: a kernel broke the device for this process.
    """
    torch.manual_seed(0)
    op = OPS[case.op]
    inputs = op.make(case, clock.device)
    rows: list[Row] = []
    chosen = {
        name: function
        for name, function in providers(case, clock.device).items()
        if (op.name, name) not in settings.skip
    }
    with torch.no_grad():
        cotangents = tuple(torch.randn_like(y) for y in op.plain(inputs))
    tangent = torch.randn_like(inputs["x"]) if inputs["x"].is_floating_point() else inputs["x"]
    for which in case.passes():
        if rows and time.monotonic() > settings.deadline:
            break
        truth = Truth(case, inputs, cotangents, tangent, which)
        # Baselines draw their own noise while timed, and take ours while compared.
        given = None
        if "seed" in inputs and which == "forward":
            given = inputs | drawn_noise(case, inputs)
        timed: dict[str, Timed] = {}
        named: dict[str, Row] = {}
        for name, function in chosen.items():
            if name == "compile" and (
                which == "double_backward"
                or time.monotonic() > settings.deadline
                or settings.compile_s <= 0
            ):
                continue
            settings.trying(op.name, name)
            row = _describe(case, which, name)
            try:
                with _stream(clock):
                    began = time.perf_counter()
                    call = on_backend(
                        bind(function, inputs, op.differentiable, cotangents, tangent, which), name
                    )
                    call()
                    clock.synchronize()
                    row["first_call_s"] = rounded(time.perf_counter() - began)
                    if name == "compile":
                        settings.compile_s -= row["first_call_s"]
                    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                        result = call() if given is None or name in OURS else function(given)
                        row |= truth.judge(result)
                        del result
                    if not settings.check_only:
                        timed[name] = clock.prepare(call)
            except Exception as error:
                _raise_if_lost(clock, error)
                row |= {"status": "failed", "agrees": False, "error_text": _brief(error)}
            named[name] = row
            rows.append(row)
        clock.rounds(timed, 2)
        round_s = sum(one.micros[-1] for one in timed.values()) / 1e6
        for one in timed.values():
            one.micros.clear()
        clock.rounds(timed, min(settings.rounds, max(3, int(_SECONDS / max(round_s, 1e-6)))))
        _fill_in(case, which, named, timed, settings.copy_gb_s)
        del timed, truth
    if clock.device.type == "cuda":
        torch.cuda.empty_cache()
    return rows


def bind(
    function: Function,
    inputs: Tensors,
    differentiable: Sequence[str],
    cotangents: tuple[torch.Tensor, ...],
    tangent: torch.Tensor,
    which: str,
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A call that does one pass alone: what comes before it is computed here."""
    if which == "forward":

        def forward() -> tuple[torch.Tensor, ...]:
            with torch.no_grad():
                return function(inputs)

        return forward
    leaves = {name: inputs[name].detach().requires_grad_() for name in differentiable}
    outputs = function(inputs | leaves)
    if which == "backward":
        return lambda: torch.autograd.grad(
            outputs, list(leaves.values()), cotangents, retain_graph=True
        )
    # R1 differentiates the gradient of x, which is linear in the incoming gradient.
    incoming = tuple(g.detach().requires_grad_() for g in cotangents)
    (first,) = torch.autograd.grad(outputs, leaves["x"], incoming, create_graph=True)
    return lambda: torch.autograd.grad(first, incoming, tangent, retain_graph=True)


class Truth:
    """The float64 result of one pass on the first and the last sample, and eager's error."""

    def __init__(
        self,
        case: KernelCase,
        inputs: Tensors,
        cotangents: tuple[torch.Tensor, ...],
        tangent: torch.Tensor,
        which: str,
    ) -> None:
        self.dtype = case.dtype
        self.samples = sorted({0, case.shape[0] - 1})
        op = OPS[case.op]
        self.exact: dict[int, tuple[torch.Tensor, ...]] = {}
        self.eager_error = 0.0
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for i in self.samples:
                one = sample(inputs, i)
                one |= drawn_noise(case, one)
                g, v = tuple(c[i : i + 1] for c in cotangents), tangent[i : i + 1]
                wide = tuple(c.double() for c in g)
                self.exact[i] = bind(
                    op.plain, _double(one), op.differentiable, wide, _wide(v), which
                )()
                found = bind(op.plain, one, op.differentiable, g, v, which)()
                self.eager_error = max(self.eager_error, _worst(found, self.exact[i]))

    def judge(self, result: tuple[torch.Tensor, ...]) -> Row:
        """Columns that say how far a provider's result is off."""
        error = max(
            _worst(tuple(y[i : i + 1] for y in result), self.exact[i]) for i in self.samples
        )
        allowed = 2 * self.eager_error + _FLOOR[self.dtype]
        return {
            "error": rounded(error),
            "eager_error": rounded(self.eager_error),
            "error_allowed": rounded(allowed),
            "agrees": error <= allowed,
            "status": "ok" if error <= allowed else "disagrees",
        }


def sample(inputs: Tensors, i: int) -> Tensors:
    """Sample i of every input that has one for each sample."""
    return {k: v[i : i + 1] if k in _PER_SAMPLE else v for k, v in inputs.items()}


def drawn_noise(case: KernelCase, inputs: Tensors) -> Tensors:
    """The noise that our ops draw."""
    if "seed" not in inputs:
        return {}
    drawn = [
        philox.normal(inputs["seed"], inputs["index"], case.shape[1:], torch.float32, stream=stream)
        for stream in (0, 1)
    ]
    return {"noise1": drawn[0], "noise2": drawn[1]}


def _wide(v: torch.Tensor) -> torch.Tensor:
    return v.double() if v.is_floating_point() else v


def _double(values: Tensors) -> Tensors:
    return {name: _wide(value) for name, value in values.items()}


def _worst(found: tuple[torch.Tensor, ...], exact: tuple[torch.Tensor, ...]) -> float:
    return max(distance(a, b) for a, b in zip(found, exact, strict=True))


def _describe(case: KernelCase, which: str, provider: str) -> Row:
    size = case.bytes_min(which)
    return {
        "case": "kernels",
        "name": case.name,
        "op": OPS[case.op].name,
        "variant": case.op,
        "preset": case.preset,
        "shape": list(case.shape),
        "dtype": case.dtype,
        "channels_last": case.channels_last,
        "pass": which,
        "provider": provider,
        "bytes_min": size,
        "input_mb": rounded(size / OPS[case.op].passes[which] / 1e6),
    }


def _fill_in(
    case: KernelCase,
    which: str,
    rows: Mapping[str, Row],
    timed: Mapping[str, Timed],
    copy_gb_s: float | None,
) -> None:
    for name, one in timed.items():
        row = rows[name]
        row |= quantiles(one.micros)
        row |= {"timing": one.method, "rounds": len(one.micros)}
        if one.method != "host":
            row["host_us"] = rounded(one.host_us)
        if one.why_no_graph:
            row["why_no_graph"] = one.why_no_graph
        speed = case.bytes_min(which) / row["us_p50"] / 1e3
        row["gb_s"] = rounded(speed)
        row["img_s"] = rounded(1e3 * case.shape[0] / row["ms_p50"])
        if copy_gb_s:
            row["share_of_copy"] = rounded(speed / copy_gb_s)
    for name in OURS:
        if name not in timed or not rows[name]["agrees"]:
            continue
        rows[name]["speedup"] = {
            other: rounded(np.median(timed[other].micros) / np.median(timed[name].micros))
            for other in timed
            if other not in OURS and rows[other]["agrees"]
        }


def _stream(clock: Clock) -> contextlib.AbstractContextManager[Any]:
    if clock.stream is None:
        return contextlib.nullcontext()
    clock.stream.wait_stream(torch.cuda.current_stream(clock.device))
    return torch.cuda.stream(clock.stream)


def _raise_if_lost(clock: Clock, error: Exception) -> None:
    try:
        clock.synchronize()
    except Exception as lost:
        raise DeviceLost(_brief(error)) from lost


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]


def run(selected: Sequence[KernelCase], settings: Settings) -> Iterator[tuple[KernelCase, list]]:
    """(case, rows) one after another until the deadline."""
    clock = Clock(settings.device)
    for case in selected:
        if time.monotonic() > settings.deadline:
            return
        yield case, run_case(case, clock, settings)


def main(argv: Sequence[str]) -> int:
    """The command; 1 when a backend of ours disagrees or fails."""
    parser = Parser("bench kernels", "Check and time the ops at the presets' shapes.")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="small shapes, every op once")
    parser.add_argument("--check", action="store_true", help="check only, time nothing")
    parser.add_argument("--match", default="", help="only cases whose name has this in it")
    parser.add_argument("--backend", help="only this backend of ours")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds (default: 20)")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        raise ValueError(f"--rounds is {arguments.rounds}: it must be at least 1.")
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("There is no CUDA device: give --device cpu --tiny to see it run.")
    known = tiny_cases() if arguments.tiny else cases()
    selected = [case for case in known if arguments.match in case.name]
    settings = Settings(device, arguments.rounds, check_only=arguments.check)
    if arguments.backend:
        ops = {op.name for op in OPS.values()}
        settings.skip = {(o, b) for o in ops for b in OURS if b != arguments.backend}
    if device.type == "cuda" and not arguments.check:
        settings.copy_gb_s = Clock(device).copy_gb_s()
        print(f"A large copy moves {settings.copy_gb_s:.0f} GB/s.")
    rows: list[Row] = []
    for _, found in run(selected, settings):
        rows += found
        for row in found:
            print(line(row), flush=True)
    origin = {
        "device": device.type,
        "machine": facts.machine(device),
        "versions": facts.versions(),
        "command": shlex.join(["ddgan-fast", "bench", "kernels", *argv]),
        "when": facts.now(),
    }
    if arguments.json:
        facts.write(Path(arguments.json), [row | origin for row in rows])
    return int(any(row["provider"] in OURS and not row["agrees"] for row in rows))


def line(row: Row) -> str:
    """A row for the log."""
    text = f"{row['name']:<52} {row['pass']:<15} {row['provider']:<12}"
    if row["status"] == "failed":
        return f"{text} FAILED: {row['error_text']}"
    text += f" error {row['error']:.1e} (<= {row['error_allowed']:.1e})"
    if "us_p50" in row:
        text += f" {row['us_p50']:>9.1f} us {row['gb_s']:>7.0f} GB/s"
        if "share_of_copy" in row:
            text += f" {row['share_of_copy']:.0%} of a copy"
    return text if row["agrees"] else f"{text} DISAGREES"


