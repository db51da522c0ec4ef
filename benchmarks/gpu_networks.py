"""The parts of the GPU suite that run whole networks: step, sample, ablation, train."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddgan_fast.config import Config, from_dict, load_config, save_yaml, to_dict
from ddgan_fast.data.device import to_model_input
from ddgan_fast.kernels import backend_report, use_backend

from . import runner, sample, step
from .gpu_units import Child, Unit
from .reference_recipe import ReferenceRecipe
from .runner import Case, Options, Provider

STEPS = (
    ("celebahq256", 32), ("cifar10", 256), ("celebahq256", 4), ("cifar10", 64),
    ("lsun_church256", 8),
)
SAMPLES = (("celebahq256", 100), ("cifar10", 100))
_TINY: dict[str, Any] = {
    "model": {
        "image_size": 16, "num_timesteps": 2, "nz": 8, "z_emb_dim": 16, "n_mlp": 2,
        "num_channels_dae": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8],
    },
    "discriminator": {"kind": "small", "ngf": 8, "t_emb_dim": 16},
    "loss": {"r1_gamma": 2.0, "lazy_reg": 2},
    "data": {"source": "synthetic"},
}


def units(part: str, child: Child) -> list[Unit]:
    """The units of one of these parts."""
    if part == "train":
        found: list[Unit] = [("digits", partial(_train, child, "digits"))]
        if child.images:
            found.append(("images", partial(_train, child, "celebahq256")))
        return found
    if part == "ablation":
        chains = ["torch", *_usable(child)]
        return [(chain, partial(_ablation, child, chain)) for chain in chains]
    pairs: tuple[tuple[str, int], ...] = STEPS if part == "step" else SAMPLES
    if child.tiny:
        pairs = (("tiny", 4),)
    time_one = _step if part == "step" else _sample
    return [(f"{preset} {n}", partial(time_one, child, preset, n)) for preset, n in pairs]


def _usable(child: Child) -> list[str]:
    """Our other backends that run every op here."""
    if child.device == "cpu":
        return []
    rows = backend_report()
    names = ("triton", "cuda")
    return [n for n in names if any(r["backend"] == n and r["usable"] for r in rows)]


def tiny_preset(child: Child, name: str) -> str:
    """The preset, or the file of a toy one."""
    if not child.tiny:
        return name
    path = child.work / "tiny.yaml"
    save_yaml(from_dict(_TINY), path)
    return str(path)


def _rounds(child: Child, batch: int) -> int:
    return 1 if child.tiny else 8 if batch > 16 else 15


def _step(child: Child, preset: str, batch: int) -> None:
    options = Options(tiny_preset(child, preset), batch, torch.device(child.device), "reference")
    with contextlib.ExitStack() as stack:
        case = step.build(options, stack)
        flops = _flops(child, options.preset, batch)
        _time(child, case, _rounds(child, batch), flops)


def _flops(child: Child, preset: str, batch: int) -> float:
    if child.tiny:
        return 0.0
    from ddgan_fast.flops import training_flops

    return batch * training_flops(load_config(preset))["training_image"]


def _time(child: Child, case: Case, rounds: int, flops: float = 0.0) -> None:
    """Rows of a case; without agreement the rows say so and hold no ratio, and the unit fails."""
    problem = ""
    found = list(case.differences())
    if found:
        problem = "; ".join(found)[:1000]
    checked = dataclasses.replace(case, differences=lambda: ())
    rows = runner.run(checked, rounds, 0 if child.tiny else 2)
    for row, provider in zip(rows, case.providers, strict=True):
        if problem:
            row.pop("speedup", None)
            row["disagreement"] = problem
        row["agrees"] = not problem
        row["preset"] = Path(str(row["preset"])).stem
        row["peak_gib"] = _peak(provider, case.device)
        if flops:
            row["tflop_s"] = round(flops / row["ms_p50"] / 1e9, 2)
        print(json.dumps(row), flush=True)
        child.row(**row)
    if problem:
        raise RuntimeError(f"the providers do not agree: {problem}")


def _peak(provider: Provider, device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    for call in provider.parts.values():
        call()
    torch.cuda.synchronize(device)
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)


def _sample(child: Child, preset: str, count: int) -> None:
    device = torch.device(child.device)
    options = Options(tiny_preset(child, preset), count, device, "reference")
    with contextlib.ExitStack() as stack:
        case = sample.build(options, stack)
        ours, *others = case.providers
        half = Provider("ddgan_fast_bf16", "bf16", {"all_steps": _half(ours, device)})
        providers = [half, ours, *others]
        graph = _graph(half, child)
        if graph is not None:
            providers.insert(0, graph)
        _time(child, dataclasses.replace(case, providers=providers), 2 if child.tiny else 10)


def _half(provider: Provider, device: torch.device) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            return provider.parts["all_steps"]()

    return call


def _graph(provider: Provider, child: Child) -> Provider | None:
    """The same work replayed as one CUDA graph; None where it cannot be captured."""
    if child.device != "cuda":
        return None
    call = provider.parts["all_steps"]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            call()
    except Exception as error:
        child.row(case="sample", provider=f"{provider.name}_graph", status="not captured",
                  error_text=str(error)[:300])
        torch.cuda.synchronize()
        return None
    return Provider(f"{provider.name}_graph", provider.dtype, {"all_steps": graph.replay})


def _ablation(child: Child, chain: str) -> None:
    """Variants of the step side by side; every chain holds the best one of plain torch."""
    device = torch.device(child.device)
    batch = 4 if child.tiny else 32
    preset = tiny_preset(child, "celebahq256")
    options = Options(preset, batch, device, "reference")
    best = ("bf16", True, "torch")
    variants = {"bf16 channels_last, torch": best}
    if chain == "torch":
        variants |= {"bf16": ("bf16", False, "torch"), "no wasted work": ("tf32", False, "torch")}
    else:
        variants = {f"bf16 channels_last, {chain}": ("bf16", True, chain)} | variants
    with contextlib.ExitStack() as stack:
        base = step._configuration(options)
        steppers = {
            name: (_stepper(base, precision, order, device, stack), backend)
            for name, (precision, order, backend) in variants.items()
        }
        recipe = None
        providers = [_variant(name, *pair) for name, pair in steppers.items()]
        if chain == "torch":
            recipe = ReferenceRecipe(base, device)
            engine = next(iter(steppers.values()))[0].engine
            recipe.generator.load_state_dict(engine.generator.state_dict())
            recipe.discriminator.load_state_dict(engine.discriminator.state_dict())
            providers.append(_recipe(recipe, next(iter(steppers.values()))[0]))
        interval = base.loss.lazy_reg
        shares = {"with_r1": 1 / interval, "without_r1": 1 - 1 / interval}
        columns = {"preset": preset, "batch": batch, "chain": chain}
        case = Case("ablation", providers, shares, batch, device, columns,
                    partial(_disagreements, steppers, recipe))
        _time(child, case, _rounds(child, batch))


def _stepper(
    base: Config, precision: str, channels_last: bool, device: torch.device,
    stack: contextlib.ExitStack,
) -> step.Stepper:
    cfg = from_dict(to_dict(base))
    cfg.run.precision, cfg.run.channels_last = precision, channels_last
    return step.Stepper(cfg, device, stack)


def _variant(name: str, stepper: step.Stepper, backend: str) -> Provider:
    def call(penalize: bool) -> None:
        with use_backend(backend):
            stepper.step(penalize)

    parts = {"with_r1": partial(call, True), "without_r1": partial(call, False)}
    return Provider(name, stepper.engine.precision.name, parts)


def _recipe(recipe: ReferenceRecipe, stepper: step.Stepper) -> Provider:
    real = to_model_input(stepper.batch.images, stepper.batch.flip, channels_last=False)
    parts = {"with_r1": partial(recipe.step, real, True),
             "without_r1": partial(recipe.step, real, False)}
    return Provider("recipe", "fp32", parts)


def _disagreements(
    steppers: dict[str, tuple[step.Stepper, str]], recipe: ReferenceRecipe | None
) -> Iterator[str]:
    if recipe is None:  # the part "step" has compared the kernels' step with the recipe
        return
    for name, (stepper, backend) in steppers.items():
        real = to_model_input(stepper.batch.images, stepper.batch.flip, channels_last=False)
        with use_backend(backend):
            yield from (f"{name}: {found}" for found in step.differences(stepper, recipe, real))


def _train(child: Child, preset: str) -> None:
    """A short real training run: time per step, the last losses, pictures."""
    from ddgan_fast.training.trainer import train

    run_dir = child.work / "pictures" / f"{preset}-{'images' if preset != 'digits' else 'run'}"
    changes: dict[str, Any] = {"run.dir": str(run_dir), "run.tensorboard": False}
    if preset == "digits":
        steps = 4 if child.tiny else 1500
        changes |= {"run.sample_every": steps, "run.steps": steps, "run.tick": max(1, steps // 15)}
    else:
        steps = 200
        changes |= {"data.path": child.images, "run.batch_size": 32, "run.steps": steps,
                    "run.sample_every": steps, "run.sample_count": 16, "run.tick": 20}
    result = train(load_config(preset, changes), device=child.device, quiet=True)
    log = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    child.row(case="train", preset=preset, steps=result.step, finished=result.finished,
              seconds=round(result.seconds, 2), log=log[-20:])
    if not result.finished:
        raise RuntimeError("the run stopped early")
