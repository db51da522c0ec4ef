"""The parts of the GPU suite that run whole networks: step, sample, ablation, train."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddgan_fast.config import Config, from_dict, load_config, save_yaml, to_dict
from ddgan_fast.data.device import to_model_input
from ddgan_fast.kernels import use_backend
from ddgan_fast.models.rewrites import Rewrites
from ddgan_fast.run_log import LOG, read_records
from ddgan_fast.training.graphs import CudaRecorder

from . import gpu_recipe, sample, step
from .gpu_timing import Memory, fastest, problem, settle, time_case
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
        # Compiling takes minutes each, so it comes last.
        kernels = gpu_recipe.usable(child)
        chains = ["torch", *kernels, "rewrites", "objectives", "compile"]
        chains += [f"{name}, compiled" for name in kernels]
        return [(chain, partial(_ablation, child, chain)) for chain in chains]
    pairs: tuple[tuple[str, int], ...] = SAMPLES if part == "sample" else STEPS
    if child.tiny:
        pairs = (("tiny", 4),)
    if part == "compiled":
        # Compiling takes minutes: what one backend has shown is not lost with the next.
        backends = ["inductor", *gpu_recipe.usable(child)[-1:]]
        return [
            (f"{preset} {n}, {backend}", partial(_compiled, child, preset, n, backend))
            for preset, n in pairs
            for backend in backends
        ]
    if part == "sample":
        return [(f"{preset} {n}", partial(_sample, child, preset, n)) for preset, n in pairs]
    # A graph keeps its memory: in units of their own they do not meet the recipe's in float32.
    modes = ["eager"] if child.device == "cpu" else ["eager", "graph"]
    return [
        (f"{preset} {n}, {mode}", partial(_step, child, preset, n, mode))
        for preset, n in pairs
        for mode in modes
    ]


def tiny_preset(child: Child, name: str) -> str:
    """The preset, or the file of a toy one."""
    if not child.tiny:
        return name
    path = child.work / "tiny.yaml"
    save_yaml(from_dict(_TINY), path)
    return str(path)


def _rounds(child: Child, batch: int) -> int:
    return 1 if child.tiny else 6 if batch > 16 else 12


def _step(child: Child, preset: str, batch: int, mode: str) -> None:
    """Steps without a compiler, by every backend, against the recipe."""
    backends = ["torch", *gpu_recipe.usable(child)]
    variants = {f"{mode}, {backend}": Variant(backend=backend, mode=mode) for backend in backends}
    recipes = ("recipe", "recipe_fp32") if mode == "eager" else ("recipe",)
    _time_variants(child, "step", preset, batch, variants, recipes, chain=mode)


def _compiled(child: Child, preset: str, batch: int, backend: str) -> None:
    """Steps by torch.compile, as graphs on GPUs, against the recipe; compile time apart."""
    mode = "compile+graph" if child.device == "cuda" else "compile"
    variants = {f"{mode}, {backend}": Variant(backend=backend, mode=mode)}
    _time_variants(child, "step_compiled", preset, batch, variants, ("recipe",), chain=backend)


def _flops(child: Child, preset: str, batch: int) -> float:
    if child.tiny:
        return 0.0
    from ddgan_fast.flops import training_flops

    return batch * training_flops(load_config(preset))["training_image"]


def _sample(child: Child, preset: str, count: int) -> None:
    device = torch.device(child.device)
    options = Options(tiny_preset(child, preset), count, device, "reference")
    with contextlib.ExitStack() as stack:
        case = sample.build(options, stack)
        ours, *others = case.providers
        half = Provider("ddgan_fast_bf16", "bf16", {"all_steps": _half(ours, device)})
        others = [gpu_recipe.with_fastest_filter(child, other) for other in others]
        providers = [half, ours, *others]
        graph = _graph(half, child)
        if graph is not None:
            providers.insert(0, graph)
        time_case(child, dataclasses.replace(case, providers=providers), 2 if child.tiny else 10)


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
    recorder = CudaRecorder(torch.device(child.device))
    text = ""
    try:
        recorder.warm_up(call, 1)
        replay = recorder.record(call)
    except Exception as error:
        text = str(error)[:300]
    if text:
        child.row(case="sample", provider=f"{provider.name}_graph", status="not captured",
                  error_text=text)
        settle(torch.device(child.device))
        return None
    return Provider(f"{provider.name}_graph", provider.dtype, {"all_steps": replay})


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way of taking our steps."""

    precision: str = "bf16"
    channels_last: bool = True
    backend: str = "torch"
    mode: str = "eager"
    rewrites: str = "auto"
    x0_weight: float = 0.0
    l1: float | None = None


CHAINS: dict[str, dict[str, Variant]] = {
    "torch": {
        "bf16": Variant(channels_last=False),
        "no wasted work": Variant("tf32", channels_last=False),
    },
    "compile": {
        "compile": Variant(backend="inductor", mode="compile"),
        "compile+graph": Variant(backend="inductor", mode="compile+graph"),
    },
}
_ON = [name for name, on in dataclasses.asdict(Rewrites()).items() if on]
CHAINS["rewrites"] = {
    f"without {name}": Variant(rewrites=", ".join(other for other in _ON if other != name))
    for name in _ON
} | {"with joint_d": Variant(rewrites=", ".join([*_ON, "joint_d"]))}
CHAINS["objectives"] = {"with D0": Variant(x0_weight=1.0), "with l1": Variant(l1=1.0)}
for _kernels in ("triton", "cuda"):
    CHAINS[_kernels] = {
        f"{_kernels}": Variant(backend=_kernels),
        f"{_kernels}, graph": Variant(backend=_kernels, mode="graph"),
    }
    CHAINS[f"{_kernels}, compiled"] = {
        f"{_kernels}, compile": Variant(backend=_kernels, mode="compile"),
        f"{_kernels}, compile+graph": Variant(backend=_kernels, mode="compile+graph"),
    }


def _ablation(child: Child, chain: str) -> None:
    """Variants of the step side by side; every chain holds the best one of plain torch."""
    variants = {"bf16 channels_last, torch": Variant()} | CHAINS[chain]
    if child.device == "cpu":
        variants = {k: v for k, v in variants.items() if "graph" not in v.mode}
    batch, recipes = (4 if child.tiny else 32), ("recipe",) if chain == "torch" else ()
    _time_variants(child, "ablation", "celebahq256", batch, variants, recipes, chain=chain)


def _time_variants(
    child: Child,
    case: str,
    preset: str,
    batch: int,
    variants: dict[str, Variant],
    recipes: tuple[str, ...],
    **columns: str,
) -> None:
    """Time variants of our step and recipes in turns, after comparing one with the recipe."""
    device = torch.device(child.device)
    preset = tiny_preset(child, preset)
    options = Options(preset, batch, device, "reference")
    if any("compile" in variant.mode for variant in variants.values()):
        torch._dynamo.reset()  # the code of earlier units, whose networks are gone
    # Graphs of one pool: beside the recipe in float32 there is no room for several.
    recorder = CudaRecorder(device) if device.type == "cuda" else None
    poison = child.poison()
    with contextlib.ExitStack() as stack:
        base = step._configuration(options)
        providers: list[Provider] = []
        steppers: dict[str, step.Stepper] = {}
        memory: dict[str, Memory] = {}
        for name, variant in variants.items():
            if (variant.backend,) in poison:
                continue
            child.trying(variant.backend)
            began = time.perf_counter()
            text = ""
            try:
                steppers[name] = _stepper(base, variant, device, stack, recorder)
            except Exception as error:
                text = str(error)[:300]
            settle(device)
            if text:
                child.row(case=case, provider=name, status="failed", error_text=text,
                          preset=Path(preset).stem, batch=batch, **columns)
                continue
            providers.append(_provider(name, steppers[name], variant))
            memory[name] = _memory_of(steppers[name], recorder)
            if "compile" in variant.mode:
                child.row(case="compile", provider=name, preset=Path(preset).stem, batch=batch,
                          seconds=round(time.perf_counter() - began, 1))
        child.trying("all of them")
        if not steppers:
            raise RuntimeError("no variant works")
        recipe = None
        first = next(iter(steppers))
        if recipes:
            recipe = step.woken(base, steppers[first], device)
            real = to_model_input(steppers[first].batch.images, steppers[first].batch.flip,
                                  channels_last=False)
            call = partial(recipe.step, real, False)
            filters = fastest(call, gpu_recipe.filters(child), device)
            providers += [gpu_recipe.provider(name, recipe, real, filters) for name in recipes]
            memory |= dict.fromkeys(recipes, Memory(partial(gpu_recipe.tensors_of, recipe)))
        interval = base.loss.lazy_reg
        shares = {"with_r1": 1 / interval, "without_r1": 1 - 1 / interval}
        facts = {"preset": preset, "batch": batch, **columns}
        timed = Case(case, providers, shares, batch, device, facts,
                     partial(_disagreements, steppers[first], variants[first], recipe))
        # Other objectives are other arithmetic.
        flops = 0.0 if columns.get("chain") == "objectives" else _flops(child, preset, batch)
        wrong = {}
        if recipe is not None and columns.get("chain") == "eager":
            wrong = _wrong_backends(steppers[first], variants, list(steppers)[1:], recipe)
        time_case(child, timed, _rounds(child, batch), flops, memory, wrong)


def _stepper(
    base: Config,
    variant: Variant,
    device: torch.device,
    stack: contextlib.ExitStack,
    recorder: CudaRecorder | None,
) -> step.Stepper:
    """A run that has taken a step of each kind: what compiles or fails has done so."""
    cfg = from_dict(to_dict(base))
    run = cfg.run
    run.precision, run.channels_last = variant.precision, variant.channels_last
    run.engine, run.rewrites = variant.mode, variant.rewrites
    cfg.loss.x0_weight = variant.x0_weight
    cfg.loss.terms = {} if variant.l1 is None else {"l1": variant.l1}
    stepper = step.Stepper(cfg, device, stack)
    with use_backend(variant.backend), stepper.engine.precision.settings():
        if variant.mode != "eager":
            stepper.engine.switch(variant.mode, stepper.batch, recorder)
        for kind in stepper.engine.kinds:
            stepper.step(kind)
    return stepper


def _memory_of(stepper: step.Stepper, recorder: CudaRecorder | None) -> Memory:
    engine = stepper.engine
    if recorder is not None and "graph" in engine.mode:
        return Memory(engine._changing, recorder.held_bytes())  # gradients lie in the pool
    return Memory(lambda: [*engine._changing(), *gpu_recipe.gradients(*engine.modules.values())])


def _provider(name: str, stepper: step.Stepper, variant: Variant) -> Provider:
    def call(penalize: bool) -> None:
        with use_backend(variant.backend):
            stepper.step(penalize)

    parts = {"with_r1": partial(call, True), "without_r1": partial(call, False)}
    return Provider(name, stepper.engine.precision.name, parts)


def _disagreements(
    stepper: step.Stepper, variant: Variant, recipe: ReferenceRecipe | None
) -> Iterator[str]:
    if recipe is None:  # the part "step" compares the step of every backend with the recipe
        return
    real = to_model_input(stepper.batch.images, stepper.batch.flip, channels_last=False)
    with use_backend(variant.backend):
        yield from step.differences(stepper, recipe, real)


def _wrong_backends(
    stepper: step.Stepper, variants: dict[str, Variant], names: list[str], recipe: ReferenceRecipe
) -> dict[str, str]:
    """What the backends of other variants get wrong, with the weights of one stepper."""
    device = stepper.engine.ranks.device
    found = {
        name: problem(partial(_disagreements, stepper, variants[name], recipe), device)
        for name in names
    }
    return {name: text for name, text in found.items() if text}


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
    log = read_records(run_dir / LOG)
    child.row(case="train", preset=preset, steps=result.step, finished=result.finished,
              engine=result.engine, seconds=round(result.seconds, 2), log=log[-20:])
    if not result.finished:
        raise RuntimeError("the run stopped early")
