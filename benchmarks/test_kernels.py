"""Every op, pass and provider under pytest-benchmark: ``pytest benchmarks/ --benchmark-only``.

The cases of ``kernel_cases``: at the presets' shapes on a GPU, else small ones on the CPU. A time
includes what issuing the call costs the host; ``ddgan-fast bench kernels`` times the device alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch

from .kernel_bench import Result, Truth, bind, drawn_noise, on_backend, providers
from .kernel_cases import OPS, KernelCase, Tensors, cases, tiny_cases

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _parameters() -> Iterator[Any]:
    for case in cases() if DEVICE.type == "cuda" else tiny_cases():
        plain = replace(case, compiled=False)
        for which in case.passes():
            for provider in providers(plain, DEVICE):
                yield pytest.param(plain, which, provider, id=f"{case.name} {which} {provider}")


@lru_cache(maxsize=1)
def _prepared(case: KernelCase) -> tuple[Tensors, Result, torch.Tensor]:
    """Inputs, cotangents of the outputs and a tangent of the input: alike for all providers."""
    torch.manual_seed(0)
    inputs = OPS[case.op].make(case, DEVICE)
    with torch.no_grad():
        cotangents = tuple(torch.randn_like(y) for y in OPS[case.op].plain(inputs))
    x = inputs["x"]
    return inputs, cotangents, torch.randn_like(x) if x.is_floating_point() else x


@lru_cache(maxsize=1)
def _truth(case: KernelCase, which: str) -> Truth:
    return Truth(case, *_prepared(case), which)


@pytest.mark.benchmark(max_time=0.2, min_rounds=5, warmup=True, warmup_iterations=2)
@pytest.mark.parametrize(("case", "which", "provider"), _parameters())
def test_op(benchmark: Any, case: KernelCase, which: str, provider: str) -> None:
    inputs, cotangents, tangent = _prepared(case)
    op, function = OPS[case.op], providers(case, DEVICE)[provider]

    def bound(given: Tensors) -> Any:
        call = bind(function, given, op.differentiable, cotangents, tangent, which)
        return on_backend(call, provider)

    # Baselines draw their own noise while timed, and take ours while compared.
    judged = _truth(case, which).judge(bound(inputs | drawn_noise(case, inputs))())
    assert judged["agrees"], judged
    call = bound(inputs)

    def run() -> None:
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)

    benchmark.group = f"{case.name} {which}"
    benchmark.extra_info |= {"provider": provider, "bytes_min": case.bytes_min(which)}
    benchmark(run)
