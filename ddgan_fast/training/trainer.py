"""A training run: assembles the parts, loops over steps and ticks, saves and resumes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import Config, save_yaml, to_dict, validate
from ..data import Dataset, build_dataset
from ..data.device import to_model_input
from ..data.loading import make_loader
from ..data.plan import Plan
from ..data.torch_loader import Batch, Loader
from ..diffusion import Diffusion
from ..kernels import philox
from ..models import build_discriminator, build_generator
from ..models.layers import set_memory_format
from . import run_state
from .checkpoint import CheckpointError, latest_state, load_state, save_ema, save_state
from .ema import WeightAverage
from .guard import FiniteGuard, Preemption, step_unless
from .monitor import DeviceStats, Monitor
from .optim import cosine_rate, make_adam
from .parallel import Ranks, start
from .preview import Preview
from .steps import DRAWS_PER_STEP, MicroBatch, TrainStep, counter_draws

# Steps between two votes of several ranks on whether to stop; one process looks at every step.
_VOTE_EVERY = 10


@dataclass(frozen=True)
class RunResult:
    """How a call of ``train`` ended."""

    run_dir: Path
    step: int
    finished: bool
    """False when a signal stopped the run early."""
    seconds: float


def train(cfg: Config, *, device: str | None = None, quiet: bool = False) -> RunResult:
    """Train until ``cfg.run.steps``; the same call goes on where the run directory left off.

    Under torchrun every rank makes this call.

    Args:
        cfg: the configuration.
        device: "cpu", "cuda" or "cuda:0"; default a GPU when there is one.
        quiet: print nothing.

    Raises:
        ValueError: the configuration, the data or the saved state do not fit.
        RuntimeError: the gradients stopped being finite, or another run uses the directory.
        CheckpointError: no saved state is readable, or the last one could not be written.
    """
    validate(cfg)
    began = time.perf_counter()
    run_dir = Path(cfg.run.dir or f"runs/{cfg.preset}")
    dataset = build_dataset(cfg)  # before anything is written
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(start(device))
        if cfg.run.threads is not None:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(cfg.run.threads)
        if ranks.rank == 0:
            stack.enter_context(run_state.only_run_in(run_dir))
        stop = stack.enter_context(Preemption())
        run = Run(cfg, dataset, ranks, run_dir, quiet, stack)
        run.loop(stop)
        return RunResult(
            run_dir, run.step, run.step >= cfg.run.steps, time.perf_counter() - began
        )


class Run:
    """The state of a run on one rank."""

    def __init__(
        self,
        cfg: Config,
        dataset: Dataset,
        ranks: Ranks,
        run_dir: Path,
        quiet: bool,
        stack: contextlib.ExitStack,
    ) -> None:
        self.cfg, self.ranks, self.run_dir = cfg, ranks, run_dir
        self.dataset = dataset
        flip = cfg.data.flip and self.dataset.flips
        self.plan = Plan(
            len(self.dataset), cfg.run.seed, cfg.run.batch_size, cfg.data.mode, flip
        )
        self.index = torch.from_numpy(self.plan.positions(0, ranks.rank, ranks.world))
        self.micros = _micro_count(len(self.index), cfg.run.micro_batch)
        self.index = self.index.to(ranks.device)
        self._build_networks()
        notes: list[str] = []
        self.step = self._resume(notes.append)
        self.step_on_device = torch.tensor([self.step], device=ranks.device)
        self.monitor: Monitor | None = None
        if ranks.rank == 0:
            self.monitor = stack.enter_context(
                Monitor(
                    run_dir,
                    cfg.run.steps,
                    self.step,
                    batch_size=cfg.run.batch_size,
                    tensorboard=cfg.run.tensorboard,
                    console=not quiet,
                )
            )
            save_yaml(cfg, run_dir / "config.yaml")
        self._introduce(notes)
        self.loader = stack.enter_context(
            make_loader(
                self.dataset,
                self.plan,
                ranks.device,
                ranks.rank,
                ranks.world,
                self.step,
                loader=cfg.data.loader,
                cache=cfg.data.cache,
                dali_device=cfg.data.dali_device,
            )
        )
        self.say(self.loader.note)
        self.guard = FiniteGuard(ranks.device, cfg.run.max_skipped)
        self.stats = DeviceStats(ranks.device)
        self.preview = Preview(self, stack)

    def _build_networks(self) -> None:
        cfg, device = self.cfg, self.ranks.device
        torch.manual_seed(cfg.run.seed)
        layout = torch.channels_last if cfg.run.channels_last else torch.contiguous_format
        precision = cfg.run.precision
        if precision == "auto":
            precision = "bf16" if device.type == "cuda" else "fp32"
        self.precision = precision
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.generator = build_generator(cfg).to(device, self.dtype)
        self.discriminator = build_discriminator(cfg).to(device, self.dtype)
        for module in (self.generator, self.discriminator):
            set_memory_format(module, layout)
        self.diffusion = Diffusion.from_config(cfg.model).to(device)
        autocast: Callable[[], contextlib.AbstractContextManager[None]] | None = None
        if precision == "bf16":
            autocast = lambda: torch.autocast(device.type, torch.bfloat16)  # noqa: E731
        self.train_step = TrainStep(
            self.generator,
            self.discriminator,
            self.diffusion,
            cfg.loss.r1_gamma,
            wrap=self.ranks.wrap,
            autocast=autocast,
        )
        o = cfg.optim
        betas = (o.beta1, o.beta2)
        self.optimizers = {
            "generator": make_adam(self.generator.parameters(), o.lr_g, betas, o.eps, o.backend),
            "discriminator": make_adam(
                self.discriminator.parameters(), o.lr_d, betas, o.eps, o.backend
            ),
        }
        self.ema = WeightAverage(self.generator, o.ema_decay, o.ema_warmup)

    def _resume(self, say: Callable[[str], None]) -> int:
        """Load the newest good state on every rank; returns the step it ends at."""
        # Rank 0 alone looks and cleans up, so that all ranks load the same file, or none.
        found, problem = None, None
        if self.ranks.rank == 0:
            try:
                found = latest_state(self.run_dir, say)
            except CheckpointError as error:
                problem = str(error)
        path, problem = self.ranks.share((str(found[0]) if found else None, problem))
        if problem:
            raise CheckpointError(problem)
        if path is None:
            return 0
        if found is None:
            found = Path(path), load_state(path)
        saved: dict[str, Any] = found[1]
        run_state.check(saved, self.cfg, self.dataset.digest, self.run_dir, say)
        run_state.restore(
            saved, self.generator, self.discriminator, self.ema, self.optimizers
        )
        say(f"Going on from {path}.")
        return int(saved["step"])

    def _introduce(self, notes: list[str]) -> None:
        g, d = (
            sum(p.numel() for p in module.parameters())
            for module in (self.generator, self.discriminator)
        )
        ranks = self.ranks
        self.say(
            f"{self.cfg.preset}: generator {g:,} and discriminator {d:,} parameters, "
            f"T = {self.cfg.model.num_timesteps}, batch {self.cfg.run.batch_size} on "
            f"{ranks.world} x {ranks.device.type}, {self.precision}."
        )
        self.say(f"Data: {self.dataset.describe()}. Run directory: {self.run_dir}.")
        for note in notes:
            self.say(note)

    def say(self, text: str) -> None:
        """Tell the user, once for all ranks."""
        if self.monitor is not None:
            self.monitor.say(text)

    def loop(self, stop: Preemption) -> None:
        """Take steps until the end or a signal."""
        run = self.cfg.run
        if self.step >= run.steps:
            self.say(f"The run is finished: {self.step:,} steps. Raise --run.steps to go on.")
            return
        clock = TickClock(self.loader)
        saved_at = self.step
        while self.step < run.steps:
            self._take_step(next(self.loader))
            stopping = False
            if self.ranks.world == 1 or self.step % _VOTE_EVERY == 0:
                stopping = self.ranks.any(stop.requested)
            last = stopping or self.step >= run.steps
            saving = last or self.step % run.checkpoint_every == 0
            if saving or self.step % run.tick == 0:
                self._tick(clock)
            if saving:
                saved_at = self._save(saved_at, must=last)
            if run.sample_every and (self.step % run.sample_every == 0 or last):
                self.preview.draw()
            clock.resume()
            if stopping:
                self.say(
                    f"Stopped by {stop.signal_name or 'a signal on another rank'} after step "
                    f"{self.step:,}; the state is saved. The same command goes on from here."
                )
                return

    def _take_step(self, batch: Batch) -> None:
        """One update of D, one of G."""
        cfg = self.cfg
        seeds = philox.step_seeds(cfg.run.seed, self.step_on_device, DRAWS_PER_STEP)
        half = DRAWS_PER_STEP // 2
        penalize = self.step % cfg.loss.lazy_reg == 0
        images, flip = self._network_input(batch)
        for name, network, gradients in (
            ("D", "discriminator", lambda m: self.train_step.discriminator_gradients(m, penalize)),
            ("G", "generator", self.train_step.generator_gradients),
        ):
            own = seeds[:half] if name == "D" else seeds[half:]
            micros = self._micro_batches(images, flip, own)
            stats = gradients(micros)
            self._update(name, network, stats, torch.cat([m.draws.t for m in micros]))
        self.ema.update(self.step)
        self.step += 1
        self.step_on_device += 1

    def _network_input(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        images, flip = batch.images, batch.flip
        if images.dtype == torch.uint8 and self.precision != "fp64" and self.cfg.run.channels_last:
            # The forward diffusion reads bytes and writes channels_last images itself.
            return images, flip
        return to_model_input(images, flip, self.dtype, self.cfg.run.channels_last), None

    def _micro_batches(
        self, images: torch.Tensor, flip: torch.Tensor | None, seeds: torch.Tensor
    ) -> list[MicroBatch]:
        """Deal the local batch to micro-batches, interleaved like the global one to ranks."""
        model, m = self.cfg.model, self.micros
        return [
            MicroBatch(
                images[k::m],
                None if flip is None else flip[k::m],
                counter_draws(
                    seeds, self.index[k::m], model.num_timesteps, model.nz, self.dtype
                ),
            )
            for k in range(m)
        ]

    def _update(
        self, name: str, network: str, stats: dict[str, torch.Tensor], t: torch.Tensor
    ) -> None:
        optimizer = self.optimizers[network]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        losses = torch.stack([value for key, value in stats.items() if key != "D/r1"]).sum(0)
        found_inf = self.guard.check(self.step, name, gradients, losses, t)
        optimizer.param_groups[0]["lr"] = self.learning_rate(name)
        step_unless(optimizer, found_inf)
        good = 1.0 - found_inf
        self.stats.add(f"{name}/grad_norm", self.guard.grad_norm[name], weight=good)
        for key, values in stats.items():
            self.stats.add_samples(key, values, t, self.cfg.model.num_timesteps, weight=good)

    def learning_rate(self, name: str) -> float:
        """Rate of network "D" or "G" at the current step."""
        o, steps = self.cfg.optim, self.cfg.run.steps
        rate = o.lr_d if name == "D" else o.lr_g
        if o.lr_decay == "none":
            return rate
        return cosine_rate(self.step, rate, o.lr_min, steps, o.lr_interval)

    def _tick(self, clock: TickClock) -> None:
        """The one place where the host reads from the device."""
        message = self.guard.at_tick()
        values = self.stats.read(reduce=self.ranks.world > 1)
        seconds, waited = clock.read()
        if self.monitor is not None:
            rates = {name: self.learning_rate(name) for name in ("D", "G")}
            self.monitor.tick(self.step, values, seconds=seconds, wait_seconds=waited, lr=rates)
        if message:
            self.say(message)

    def _save(self, saved_at: int, must: bool) -> int:
        """Write snapshot and state on rank 0; returns the step of the newest state."""
        failed: str | None = None
        if self.ranks.rank == 0:
            try:
                config = to_dict(self.cfg)
                save_ema(self.run_dir, self.step, self.ema.weights(), config)
                parts = (self.generator, self.discriminator, self.ema, self.optimizers)
                content = run_state.payload(self.cfg, *parts, self.dataset.digest)
                save_state(self.run_dir, self.step, content, self.cfg.run.keep)
            except CheckpointError as error:
                failed = str(error)
        failed = self.ranks.share(failed)
        if failed is None:
            return self.step
        if must:
            raise CheckpointError(f"{failed} (the newest state is that of step {saved_at}).")
        self.say(f"Could not save: {failed}. Training goes on; the next checkpoint tries again.")
        return saved_at


class TickClock:
    """Time spent training since the last tick; saving and sampling do not count."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self.resume()

    def resume(self) -> None:
        """Start counting, unless it already counts."""
        if getattr(self, "_since", None) is None:
            self._since: float | None = time.perf_counter()
            self._waited = self._loader.wait_seconds

    def read(self) -> tuple[float, float]:
        """Seconds, and seconds of them spent waiting for data; counting stops until resume."""
        assert self._since is not None
        seconds = time.perf_counter() - self._since
        waited = self._loader.wait_seconds - self._waited
        self._since = None
        return seconds, waited


def _micro_count(local_batch: int, micro_batch: int | None) -> int:
    """How many micro-batches the local batch takes.

    Raises:
        ValueError: the sizes do not divide.
    """
    if micro_batch is None or micro_batch >= local_batch:
        return 1
    if local_batch % micro_batch:
        raise ValueError(
            f"run.micro_batch is {micro_batch}, but each rank has {local_batch} images per step: "
            "choose a divisor of it."
        )
    return local_batch // micro_batch
