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
from ..data.loading import make_loader
from ..data.plan import Plan
from ..data.torch_loader import Batch, Loader
from . import choosing, run_state
from .checkpoint import CheckpointError, latest_state, load_state, save_ema, save_state
from .engine import Engine
from .guard import Preemption
from .memory import fit_micro_batch
from .monitor import Monitor
from .parallel import Ranks, start
from .preview import Preview
from .rollback import Returns
from .watch import Watch

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
        with run.engine.precision.settings(), run.watch.errors():
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
        choosing.refuse(cfg, ranks.device)
        index = torch.from_numpy(self.plan.positions(0, ranks.rank, ranks.world))
        self.engine = Engine(cfg, ranks, index.to(ranks.device))
        notes: list[str] = []
        self.monitor: Monitor | None = None
        self.watch = Watch(self, self._resume(notes.append), notes.append)
        if cfg.run.micro_batch == "auto":
            notes.append(fit_micro_batch(self.engine))
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
        self._loaders = stack.enter_context(contextlib.ExitStack())
        self.loader = self._open_loader()
        self.say(self.loader.note)
        self.preview = Preview(self, stack)

    @property
    def step(self) -> int:
        """Finished steps."""
        return self.engine.step

    def _open_loader(self) -> Loader:
        data, ranks = self.cfg.data, self.ranks
        return self._loaders.enter_context(
            make_loader(
                self.dataset,
                self.plan,
                ranks.device,
                ranks.rank,
                ranks.world,
                self.step + self.engine.returns.ahead,
                loader=data.loader,
                cache=data.cache,
                dali_device=data.dali_device,
            )
        )

    def go_back(self, saved: dict[str, Any], returns: Returns) -> None:
        """Go on from an earlier state, with data and draws from where ``returns`` says."""
        self.engine.go_back(saved, returns)
        self._loaders.close()
        self.loader = self._open_loader()
        if self.monitor is not None:
            self.monitor.go_back(self.step)
        # From here on a restart knows of the return.
        self._save(self.step, must=False)

    def _resume(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """Load the newest good state on every rank, if there is one, and return it."""
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
            return None
        if found is None:
            found = Path(path), load_state(path)
        saved: dict[str, Any] = found[1]
        run_state.check(saved, self.cfg, self.dataset.digest, self.run_dir, say)
        self.engine.restore(saved)
        say(f"Going on from {path}.")
        return saved

    def _introduce(self, notes: list[str]) -> None:
        g, d = (
            sum(p.numel() for p in module.parameters())
            for module in (self.engine.generator, self.engine.discriminator)
        )
        ranks = self.ranks
        self.say(
            f"{self.cfg.preset}: generator {g:,} and discriminator {d:,} parameters, "
            f"T = {self.cfg.model.num_timesteps}, batch {self.cfg.run.batch_size} on "
            f"{ranks.world} x {ranks.device.type}."
        )
        self.say(self.engine.precision.describe())
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
        first = next(self.loader)
        began = time.perf_counter()
        choosing.settle(self.engine, first, run.steps - self.step, self.say)
        clock.leave_out(time.perf_counter() - began)
        batch: Batch | None = first
        while self.step < run.steps:
            self.engine.take_step(batch or next(self.loader))
            batch = None
            stopping = False
            if self.ranks.world == 1 or self.step % _VOTE_EVERY == 0:
                stopping = self.ranks.any(stop.requested)
            last = stopping or self.step >= run.steps
            saving = last or self.step % run.checkpoint_every == 0
            if (saving or self.step % run.tick == 0) and self._tick(clock):
                clock, saved_at = TickClock(self.loader), self.step
                continue
            if saving:
                saved_at = self._save(saved_at, must=last)
            if run.sample_every and (self.step % run.sample_every == 0 or last):
                self.preview.draw()
            clock.resume()
            if stopping:
                sentence = (
                    f"Stopped by {stop.signal_name or 'a signal on another rank'} after step "
                    f"{self.step:,}; the state is saved. The same command goes on from here."
                )
                self.say(sentence)
                self.watch.fault("signal", sentence)
                return

    def _tick(self, clock: TickClock) -> bool:
        """The one place where the host reads from the device.

        Returns:
            Whether the run has gone back to an earlier step.
        """
        values = self.engine.stats.read(reduce=self.ranks.world > 1)
        seconds, waited = clock.read()
        if self.monitor is not None:
            rates = {name: self.engine.learning_rate(name) for name in ("D", "G")}
            shown = {**values, "G/ema_distance": float(self.engine.ema.distance())}
            self.monitor.tick(self.step, shown, seconds=seconds, wait_seconds=waited, lr=rates)
        return self.watch.look(values)

    def _save(self, saved_at: int, must: bool) -> int:
        """Write snapshot and state on rank 0; returns the step of the newest state."""
        failed: str | None = None
        if self.ranks.rank == 0:
            try:
                config = to_dict(self.cfg)
                save_ema(self.run_dir, self.step, self.engine.ema.weights(), config)
                content = self.engine.payload(self.dataset.digest)
                save_state(self.run_dir, self.step, content, self.cfg.run.keep)
            except CheckpointError as error:
                failed = str(error)
        failed = self.ranks.share(failed)
        if failed is None:
            return self.step
        if must:
            raise CheckpointError(f"{failed} (the newest state is that of step {saved_at}).")
        self.watch.fault("save", failed)
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

    def leave_out(self, seconds: float) -> None:
        """Do not count so much of the time since the last look."""
        assert self._since is not None
        self._since += seconds

    def read(self) -> tuple[float, float]:
        """Seconds, and seconds of them spent waiting for data; counting stops until resume."""
        assert self._since is not None
        seconds = time.perf_counter() - self._since
        waited = self._loader.wait_seconds - self._waited
        self._since = None
        return seconds, waited
