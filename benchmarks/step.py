"""The case "step": one training step, both networks updated, as a run takes it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ddgan_fast.config import Config, load_config
from ddgan_fast.data.device import to_model_input
from ddgan_fast.data.torch_loader import Batch
from ddgan_fast.training.parallel import start
from ddgan_fast.training.steps import MicroBatch
from ddgan_fast.training.trainer import Run

from .agreement import TOLERANCE, distance, wake
from .reference_recipe import ReferenceRecipe
from .runner import Case, Options, Provider


def build(options: Options, stack: contextlib.ExitStack) -> Case:
    """The case for a preset with synthetic data that is on the device already.

    Steps with and without R1 are timed separately and weighted by R1's interval.

    Args:
        options: what to build.
        stack: closes what the case holds.

    Raises:
        ValueError: a preset or baseline that cannot be timed.
    """
    cfg = _configuration(options)
    engine = Engine(cfg, options.device, stack)
    interval = cfg.loss.lazy_reg
    shares = {"with_r1": 1 / interval}
    if interval > 1:
        shares["without_r1"] = 1 - 1 / interval
    providers = [
        Provider(
            "ddgan_fast",
            engine.run.precision,
            {"with_r1": lambda: engine.step(True), "without_r1": lambda: engine.step(False)},
        )
    ]
    facts = {"preset": options.preset, "batch": options.batch, "r1_every": interval}
    if options.baseline is None:
        return Case("step", providers, shares, options.batch, options.device, facts)
    recipe = ReferenceRecipe(cfg, options.device)
    recipe.generator.load_state_dict(engine.run.generator.state_dict())
    recipe.discriminator.load_state_dict(engine.run.discriminator.state_dict())
    real = to_model_input(engine.batch.images, engine.batch.flip, channels_last=False)
    providers.append(
        Provider(
            options.baseline,
            "fp32",
            {
                "with_r1": lambda: recipe.step(real, True),
                "without_r1": lambda: recipe.step(real, False),
            },
        )
    )
    return Case(
        "step",
        providers,
        shares,
        options.batch,
        options.device,
        facts,
        lambda: differences(engine, recipe, real),
    )


def _configuration(options: Options) -> Config:
    cfg = load_config(options.preset, {"run.batch_size": options.batch})
    if cfg.model.kind == "mlp" and options.baseline is not None:
        raise ValueError(
            f"the reference recipe is for images, and {options.preset} is for points: "
            "leave --baseline away."
        )
    if cfg.model.kind != "mlp":
        cfg.data.source, cfg.data.path = "synthetic", None
    cfg.run.tensorboard = False
    cfg.run.sample_every = 0
    return cfg


class Engine:
    """A run of ours whose steps are taken by hand, on one batch."""

    def __init__(self, cfg: Config, device: torch.device, stack: contextlib.ExitStack) -> None:
        run_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="ddgan-bench-"))
        ranks = stack.enter_context(start(str(device)))
        self.run = Run(cfg, ranks, Path(run_dir), True, stack)
        wake(self.run.generator, 0)
        wake(self.run.discriminator, 1)
        indices, flip = self.run.plan.batch(0)
        images = torch.from_numpy(self.run.dataset.fetch(indices)).to(device)
        mirror = torch.from_numpy(flip).to(device) if images.dtype == torch.uint8 else None
        self.batch = Batch(images, mirror, 0)

    def step(self, penalize: bool) -> None:
        """One training step, with R1 or without."""
        self.run.step = 0 if penalize else 1
        self.run._take_step(self.batch)


def differences(engine: Engine, recipe: ReferenceRecipe, real: torch.Tensor) -> Iterator[str]:
    """Compare losses and gradients at equal weights, batch and draws."""
    step, tolerance = engine.run.train_step, TOLERANCE[engine.run.precision]
    parts = [("D with R1", True), ("D without R1", False), ("G", None)]
    # Float32 convolutions on a GPU may be rounded to TF32 while timed, but not here.
    with torch.backends.cudnn.flags(allow_tf32=False):
        for what, penalize in parts:
            draws = recipe.draw(real)
            micro = [MicroBatch(engine.batch.images, engine.batch.flip, draws)]
            if penalize is None:
                ours = step.generator_gradients(micro)
                theirs = recipe.generator_gradients(real, draws)
                networks = engine.run.generator, recipe.generator
            else:
                ours = step.discriminator_gradients(micro, penalize)
                theirs = recipe.discriminator_gradients(real, draws, penalize)
                networks = engine.run.discriminator, recipe.discriminator
            for name, loss in theirs.items():
                found = distance(ours[name].mean(), loss)
                if not found <= tolerance:
                    yield f"{what}: loss {name} is off by {found:.1e} of its size"
            found = distance(_gradients(networks[0]), _gradients(networks[1]))
            if not found <= tolerance:
                yield f"{what}: the gradient is off by {found:.1e} of its length"


def _gradients(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
