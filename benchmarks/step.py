"""The case "step": one training step, both networks updated, as a run takes it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ddgan_fast.config import Config, load_config
from ddgan_fast.data import build_dataset
from ddgan_fast.data.device import to_model_input
from ddgan_fast.data.torch_loader import Batch
from ddgan_fast.kernels import philox, use_backend
from ddgan_fast.training import choosing
from ddgan_fast.training.draws import Draws, MicroBatch, counter_draws
from ddgan_fast.training.engine import Engine
from ddgan_fast.training.parallel import start
from ddgan_fast.training.steps import TrainStep
from ddgan_fast.training.trainer import Run

from .agreement import FLOAT32_ERROR, distance, wake
from .reference_filters import our_filter
from .reference_recipe import ReferenceRecipe
from .runner import Case, Options, Provider

OUR_FILTER = "our_filter"
"""Ends the name of the recipe that runs with our filter in place of its own."""


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
    choosing.refuse(cfg, options.device)
    stepper = Stepper(cfg, options.device, stack)
    with stepper.engine.precision.settings():
        choosing.settle(stepper.engine, stepper.batch, cfg.run.steps, print)
    interval = cfg.loss.lazy_reg
    shares = {"with_r1": 1 / interval}
    if interval > 1:
        shares["without_r1"] = 1 - 1 / interval
    providers = [
        Provider(
            "ddgan_fast",
            stepper.engine.precision.name,
            {"with_r1": lambda: stepper.step(True), "without_r1": lambda: stepper.step(False)},
        )
    ]
    facts = {
        "preset": options.preset,
        "batch": options.batch,
        "r1_every": interval,
        "engine": stepper.engine.mode,
    }
    if options.baseline is None:
        return Case("step", providers, shares, options.batch, options.device, facts)
    recipe = woken(cfg, stepper, options.device)
    real = to_model_input(stepper.batch.images, stepper.batch.flip, channels_last=False)
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
    if options.device.type == "cpu":
        # How much of the difference is the published filter's path on CPUs, and nothing else.
        def step(penalize: bool) -> None:
            with our_filter():
                recipe.step(real, penalize)

        parts = {"with_r1": lambda: step(True), "without_r1": lambda: step(False)}
        providers.append(Provider(f"{options.baseline}_{OUR_FILTER}", "fp32", parts))

    def compare() -> Iterator[str]:
        yield from differences(stepper, recipe, real)
        if options.device.type == "cpu":
            with our_filter():
                yield from differences(stepper, recipe, real)

    return Case(
        "step",
        providers,
        shares,
        options.batch,
        options.device,
        facts,
        compare,
    )


def _configuration(options: Options) -> Config:
    changes = {"run.batch_size": options.batch, "run.engine": options.engine}
    if options.precision:
        changes["run.precision"] = options.precision
    cfg = load_config(options.preset, changes)
    if cfg.model.kind == "mlp" and options.baseline is not None:
        raise ValueError(
            f"the reference recipe is for images, and {options.preset} is for points: "
            "leave --baseline away."
        )
    if cfg.loss.kind != "gan" and options.baseline is not None:
        raise ValueError(
            f"the reference recipe trains GANs, and {options.preset} is a {cfg.loss.kind}: "
            "leave --baseline away."
        )
    if cfg.model.kind != "mlp":
        cfg.data.source, cfg.data.path = "synthetic", None
    if cfg.run.precision == "fp64":
        raise ValueError("run.precision is 'fp64', which is for tests: time fp32 or bf16.")
    cfg.run.tensorboard = False
    cfg.run.sample_every = 0
    return cfg


class Stepper:
    """A run of ours whose steps are taken by hand, on one batch."""

    def __init__(self, cfg: Config, device: torch.device, stack: contextlib.ExitStack) -> None:
        run_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="ddgan-bench-"))
        ranks = stack.enter_context(start(str(device)))
        self.run = Run(cfg, build_dataset(cfg), ranks, Path(run_dir), True, stack)
        self.engine = self.run.engine
        wake(self.engine.generator, 0)
        wake(self.engine.discriminator, 1)
        indices, flip = self.run.feed.plan.batch(0)
        images = torch.from_numpy(self.run.dataset.fetch(indices)).to(device)
        mirror = torch.from_numpy(flip).to(device) if images.dtype == torch.uint8 else None
        labels = self.run.feed.labels
        self.batch = Batch(images, mirror, 0, None if labels is None else labels.at(0))

    def step(self, penalize: bool) -> None:
        """One training step, with R1 or without."""
        self.engine.step = 0 if penalize else 1
        with self.engine.precision.settings():
            self.engine.take_step(self.batch)


def woken(base: Config, stepper: Stepper, device: torch.device) -> ReferenceRecipe:
    """The recipe with a stepper's weights."""
    recipe = ReferenceRecipe(base, device)
    recipe.generator.load_state_dict(stepper.engine.generator.state_dict())
    recipe.discriminator.load_state_dict(stepper.engine.discriminator.state_dict())
    return recipe


def differences(stepper: Stepper, recipe: ReferenceRecipe, real: torch.Tensor) -> Iterator[str]:
    """Compare losses and gradients at equal weights, batch and draws."""
    images, flip = stepper.engine.network_input(stepper.batch)
    # Float32 convolutions on a GPU may be rounded to TF32 while timed, but not here.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for what, penalize in (("D with R1", True), ("D without R1", False), ("G", None)):
            own, draws = _draws(stepper.engine, real, "G" if penalize is None else "D")
            truth = _published(recipe, real, draws, penalize)
            allowed = dict.fromkeys(truth, FLOAT32_ERROR)
            settings: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if stepper.engine.precision.name in ("bf16", "fp16"):
                # Otherwise what is compiled would be compiled anew for other settings.
                settings = stepper.engine.precision.settings()
                # Backward threads of a GPU know no autocast dtype: they would take float16.
                with (
                    torch.autocast(real.device.type, torch.bfloat16),
                    torch.autograd.set_multithreading_enabled(False),
                ):
                    coarse = _published(recipe, real, draws, penalize)
                errors = {name: distance(value, truth[name]) for name, value in coarse.items()}
                for name, value in coarse.items():
                    # One number may come out right by luck; a gradient hardly can, and losses are
                    # about as far off as it is.
                    likely = errors[name] if value.ndim else max(errors.values())
                    allowed[name] = max(FLOAT32_ERROR, 2 * likely)
            with settings:
                ours = _ours(stepper.engine, MicroBatch(images, flip, own), penalize)
            for name, value in truth.items():
                found = distance(ours[name], value)
                if not found <= allowed[name]:
                    yield f"{what}: {name} is off by {found:.1e}, {allowed[name]:.1e} is allowed"


def _draws(engine: Engine, real: torch.Tensor, update: str) -> tuple[Draws, Draws]:
    """An update's draws by seeds, as a run takes them, and the same noise handed in."""
    model = engine.cfg.model
    seeds = engine.seeds()[update]
    own = counter_draws(seeds, engine.index, model.num_timesteps, model.nz, engine.dtype)
    assert own.index is not None and own.pair_seed is not None and own.posterior_seed is not None
    shape = real.shape[1:]
    # As the ops draw them: for x_{t+1}, for x_t, and for x_t'.
    pair = [philox.normal(own.pair_seed, own.index, shape, real.dtype, k) for k in (0, 1)]
    posterior = philox.normal(own.posterior_seed, own.index, shape, real.dtype)
    return own, Draws(own.t, own.z, pair_noise=(pair[0], pair[1]), posterior_noise=posterior)


def _published(
    recipe: ReferenceRecipe, real: torch.Tensor, draws: Draws, penalize: bool | None
) -> dict[str, torch.Tensor]:
    # Its filter is our op on a GPU, and must not be what is compared.
    with use_backend("torch"):
        if penalize is None:
            return _outcome(recipe.generator_gradients(real, draws), recipe.generator)
        losses = recipe.discriminator_gradients(real, draws, penalize)
        return _outcome(losses, recipe.discriminator)


def _ours(engine: Engine, micro: MicroBatch, penalize: bool | None) -> dict[str, torch.Tensor]:
    if penalize is None:
        return _outcome(engine.train_step.generator_gradients([micro]), engine.generator)
    assert isinstance(engine.train_step, TrainStep)
    losses = engine.train_step.discriminator_gradients([micro], penalize)
    return _outcome(losses, engine.discriminator)


def _outcome(losses: dict[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """Mean losses by name, and the network's gradient."""
    gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    means = {f"loss {name}": values.mean() for name, values in losses.items()}
    return means | {"the gradient": torch.cat(gradients)}
