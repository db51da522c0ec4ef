"""How long a generator takes to draw a batch."""

from __future__ import annotations

import time
from typing import TypedDict

import torch

from ddgan_fast.drawing import Drawer, use_graphs
from ddgan_fast.guidance import Guidance, bind
from ddgan_fast.kernels import philox
from ddgan_fast.samplers import Sampler
from ddgan_fast.sampling import LoadedGenerator

ROUNDS = 300
"""Batches whose median is told, as in the paper."""
BUDGET_S = 10.0
"""After which a slow model's batches are no longer repeated."""

_WARM_UP = {"cuda": 10, "cpu": 1}


class SamplingTime(TypedDict):
    """One batch size's row."""

    batch: int
    ms_p50: float
    """Median time of a batch in milliseconds."""
    ms_p20: float
    ms_p80: float
    s_per_100: float
    """Seconds per 100 samples at the median."""
    rounds: int
    """Batches timed."""
    warm_up: int
    """Batches drawn before."""
    clock: str
    """"cuda events" or "perf_counter"."""
    engine: str
    """"graph" (CUDA graphs) or "eager"."""


def time_sampling(
    model: LoadedGenerator,
    batch: int,
    *,
    precision: str = "fp32",
    sampler: Sampler | None = None,
    guidance: Guidance | None = None,
    rounds: int = ROUNDS,
    budget_s: float = BUDGET_S,
) -> SamplingTime:
    """Time whole batches, from noise to uint8 on the device.

    Args:
        model: the generator, on its device.
        batch: samples at once.
        precision: "fp32", "tf32", "bf16" or "fp16".
        sampler: of a DDPM; default its ancestral one.
        guidance: of a model with classes.
        rounds: batches at most; at least one is timed.
        budget_s: seconds after which no further batch is begun.

    Raises:
        RuntimeError: the batch does not fit into memory.
    """
    device = model.device
    evaluations = sampler.evaluations if sampler else model.cfg.model.num_timesteps
    graphs = use_graphs("auto", device, rounds, evaluations)
    drawer = Drawer(
        model,
        philox.seed_tensor(0, -1, 0, device),
        graphs=graphs,
        precision=precision,
        sampler=sampler,
        condition=bind(model.cfg, guidance, device),
    )
    index = torch.arange(batch, device=device)
    warm_up = _WARM_UP.get(device.type, 1)
    for _ in range(warm_up):
        drawer.draw(index)
    times: list[float] = []
    began = time.perf_counter()
    while not times or (len(times) < rounds and time.perf_counter() - began < budget_s):
        times.append(_milliseconds(drawer, index, device))
    p20, p50, p80 = torch.tensor(times, dtype=torch.float64).quantile(
        torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    ).tolist()
    return SamplingTime(
        batch=batch,
        ms_p50=p50,
        ms_p20=p20,
        ms_p80=p80,
        s_per_100=p50 / 10.0 / batch,
        rounds=len(times),
        warm_up=warm_up,
        clock="cuda events" if device.type == "cuda" else "perf_counter",
        engine="graph" if graphs else "eager",
    )


def _milliseconds(drawer: Drawer, index: torch.Tensor, device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        drawer.draw(index)
        return 1e3 * (time.perf_counter() - began)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    drawer.draw(index)
    last.record()
    last.synchronize()
    return first.elapsed_time(last)
