"""The reference recipe in the GPU suite: its memory, and the backend that its filter runs on."""

from __future__ import annotations

from functools import partial

import torch

from ddgan_fast.kernels import backend_report, use_backend
from ddgan_fast.training.optim import adam_tensors

from .gpu_timing import fastest
from .gpu_units import Child
from .reference_recipe import ReferenceRecipe
from .runner import Provider


def usable(child: Child) -> list[str]:
    """Our other backends that run every op here."""
    if child.device == "cpu":
        return []
    rows = backend_report()
    names = ("triton", "cuda")
    return [n for n in names if any(r["backend"] == n and r["usable"] for r in rows)]


def tensors_of(recipe: ReferenceRecipe) -> list[torch.Tensor]:
    """All that it keeps from step to step."""
    networks = (recipe.generator, recipe.discriminator)
    tensors: list[torch.Tensor] = [p for network in networks for p in network.parameters()]
    tensors += [*gradients(*networks), *recipe.average.average.values()]
    for optimizer in (recipe.optimizer_g, recipe.optimizer_d):
        tensors += adam_tensors(optimizer)
    return tensors


def gradients(*networks: torch.nn.Module) -> list[torch.Tensor]:
    """That lie there now."""
    return [p.grad for network in networks for p in network.parameters() if p.grad is not None]


def filters(child: Child) -> list[str]:
    """Backends that the recipe's filter may run on, for which the published code has a kernel."""
    return ["torch", *(n for n in usable(child) if n == "cuda" and (n,) not in child.poison())]


def provider(name: str, recipe: ReferenceRecipe, real: torch.Tensor, backend: str) -> Provider:
    """The published step, with TF32 in convolutions as torch has it by default, or without."""

    def call(penalize: bool) -> None:
        with (
            use_backend(backend),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=name == "recipe"),
        ):
            recipe.step(real, penalize)

    parts = {"with_r1": partial(call, True), "without_r1": partial(call, False)}
    return Provider(name, "tf32" if name == "recipe" else "fp32", parts)


def with_fastest_filter(child: Child, reference: Provider) -> Provider:
    """The published sampling, its filter by the fastest backend and its convolutions by TF32."""
    draw = reference.parts["all_steps"]
    chosen = fastest(draw, filters(child), torch.device(child.device))

    def call() -> None:
        with use_backend(chosen):
            draw()

    dtype = "tf32" if child.device == "cuda" else reference.dtype
    return Provider(reference.name, dtype, {"all_steps": call})
