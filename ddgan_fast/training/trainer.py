"""A training run: assembles the parts, loops over steps and ticks, saves and resumes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..config import Config, save_yaml, to_dict, validate
from ..data import Dataset, build_dataset
from ..data.labels import check_labels
from ..data.torch_loader import Batch, Loader
from ..evaluation.during import Quality
from . import choosing, run_state
from .checkpoint import CheckpointError, latest_state, load_state
from .engine import Engine
from .feed import Feed
from .guard import Preemption
from .memory import fit_micro_batch
from .monitor import Monitor
from .parallel import Ranks, Vote, start
from .preview import Preview
from .rollback import Returns
from .stragglers import RankTimes
from .watch import Watch
from .writer import CheckpointWriter


@dataclass(frozen=True)
class RunResult:
    """How a call of ``train`` ended."""

    run_dir: Path
    step: int
    finished: bool
    """False when a signal stopped the run early."""
    seconds: float
    engine: str
    """How its last steps were taken: what was asked for, or what worked."""


def train(cfg: Config, *, device: str | None = None, quiet: bool = False) -> RunResult:
    """Train until ``cfg.run.steps``; the same call goes on where the run directory left off.

    Under torchrun every rank makes this call.

    Args:
        cfg: the configuration.
        device: "cpu", "cuda" or "cuda:0"; default a GPU when there is one.
        quiet: print nothing.

    Raises:
        ValueError: the configuration, the data or the saved state do not fit.
        RuntimeError: the gradients stopped being finite, another run uses the directory, or
            another rank ended.
        CheckpointError: no saved state is readable, or the last one could not be written.
    """
    validate(cfg)
    began = time.perf_counter()
    run_dir = Path(cfg.run.dir or f"runs/{cfg.preset}")
    dataset = build_dataset(cfg)  # before anything is written
    check_labels(dataset, cfg.model.num_classes)
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(start(device, cfg.run.timeout_s, cfg.run.reduction))
        choosing.refuse(cfg, ranks.device)
        facts = {"ddgan_fast": __version__, "torch": torch.__version__, "data": dataset.digest}
        ranks.agree(to_dict(cfg), facts)
        if cfg.run.threads is not None:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(cfg.run.threads)
        if ranks.rank == 0:
            stack.enter_context(run_state.only_run_in(run_dir))
        stop = stack.enter_context(Preemption())
        run = Run(cfg, dataset, ranks, run_dir, quiet, stack)
        with run.engine.precision.settings(), run.watch.errors():
            run.loop(stop)
        seconds, mode = time.perf_counter() - began, run.engine.mode
        return RunResult(run_dir, run.step, run.step >= cfg.run.steps, seconds, mode)


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
        self.feed = Feed(cfg, dataset, ranks)
        self.engine = Engine(cfg, ranks, self.feed.positions())
        stack.callback(self.engine.drop_graphs)
        notes: list[str] = []
        self.monitor: Monitor | None = None
        self.watch = Watch(self, self._resume(notes.append), notes.append)
        if cfg.run.micro_batch == "auto":
            notes.append(fit_micro_batch(self.engine))
        self.quality = Quality(self)
        if ranks.rank == 0:
            self.monitor = stack.enter_context(
                Monitor(
                    run_dir,
                    cfg.run.steps,
                    self.step,
                    batch_size=cfg.run.batch_size,
                    tensorboard=cfg.run.tensorboard,
                    console=not quiet,
                    wandb=cfg.run.wandb,
                    config=to_dict(cfg),
                )
            )
            save_yaml(cfg, run_dir / "config.yaml")
        self._introduce(notes)
        stack.callback(self.feed.close)
        self._open_feed()
        self.say(self.feed.loader.note)
        self.writer: CheckpointWriter | None = None
        if ranks.rank == 0:
            self.writer = stack.enter_context(
                CheckpointWriter(run_dir, cfg.run.keep, self.step, ranks.device)
            )
        self.rank_times = RankTimes(ranks)
        self.preview = Preview(self, stack)

    @property
    def step(self) -> int:
        """Finished steps."""
        return self.engine.step

    def _open_feed(self) -> None:
        self.feed.open(self.step + self.engine.returns.ahead)

    def go_back(self, saved: dict[str, Any], returns: Returns) -> None:
        """Go on from an earlier state, with data and draws from where ``returns`` says."""
        self.engine.go_back(saved, returns)
        self._open_feed()
        if self.monitor is not None:
            self.monitor.go_back(self.step)
        # From here on a restart knows of the return.
        self._save(must=False)
        self.finish_saving()

    def _resume(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """Load the newest good state on every rank; return it if an earlier call wrote it."""
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
            try:
                found = Path(path), load_state(path)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"rank 0 goes on from {path}, which this rank's machine does not have: run.dir "
                    "must be on a file system that all machines share."
                ) from error
        saved: dict[str, Any] = found[1]
        # An imported run does not say what it was trained on, and never ended here.
        imported = saved["data_digest"] is None
        if imported:
            saved["data_digest"] = self.dataset.digest
        run_state.check(saved, self.cfg, self.dataset.digest, self.run_dir, say)
        self.engine.restore(saved)
        say(f"Going on from {path}.")
        return None if imported else saved

    def _introduce(self, notes: list[str]) -> None:
        ranks = self.ranks
        sizes = " and ".join(
            f"{name} {sum(p.numel() for p in module.parameters()):,}"
            for name, module in self.engine.modules.items()
        )
        self.say(
            f"{self.cfg.preset}: {sizes} parameters, "
            f"T = {self.cfg.model.num_timesteps}, batch {self.cfg.run.batch_size} on "
            f"{ranks.world} x {ranks.device.type}."
        )
        if self.cfg.loss.kind == "ddpm":
            self.say(
                "Denoising alone: the options discriminator, loss.r1_gamma and optim.lr_d have no "
                "effect."
            )
        if self.cfg.loss.kind == "classifier":
            self.say(
                "A classifier of diffused samples (the generator, in all names) with the trunk of "
                "the option discriminator: it guides a DDPM, ddgan-fast sample --classifier."
            )
        self.say(self.engine.precision.describe())
        if ranks.world > 1:
            self.say(ranks.describe())
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
        clock = TickClock(self.feed.loader)
        vote, watchdog = Vote(self.ranks), self.ranks.watchdog
        watchdog.enter("data wait", self.step)
        first = self.feed.next_batch()
        watchdog.enter("compiling", self.step)
        began = time.perf_counter()
        choosing.settle(self.engine, first, run.steps - self.step, self.say)
        clock.leave_out(time.perf_counter() - began)
        batch: Batch | None = first
        while self.step < run.steps:
            watchdog.enter("data wait", self.step)
            self.engine.take_step(batch or self.feed.next_batch())
            batch = None
            if self.writer is not None and not self.writer.reserved:
                # Now, with the first step's moments there, and not in the middle of the run.
                self.writer.reserve(self.engine.payload(self.dataset.digest))
            stopping = vote(stop.requested)
            last = stopping or self.step >= run.steps
            saving = last or self.step % run.checkpoint_every == 0
            measuring = self.quality.is_due(self.step)
            if saving or measuring or self.step % run.tick == 0:
                watchdog.enter("statistics", self.step)
                if self._tick(clock):
                    clock = TickClock(self.feed.loader)
                    continue
            if saving:
                watchdog.enter("saving", self.step)
                self._save(must=last)
            if run.sample_every and (self.step % run.sample_every == 0 or last):
                watchdog.enter("sampling", self.step)
                self.preview.draw()
            if measuring:
                watchdog.enter("evaluating", self.step)
                self.quality.measure()
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
        by_rank, straggler = self.rank_times.read(seconds, waited)
        if self.monitor is not None:
            rates = {name: self.engine.learning_rate(name) for name in self.engine.networks}
            shown = {**values, **by_rank, "G/ema_distance": float(self.engine.ema.distance())}
            self.monitor.tick(self.step, shown, seconds=seconds, wait_seconds=waited, lr=rates)
            self.monitor.histograms(self.step, self.engine.stats.histograms())
        if straggler:
            self.say(straggler)
        self._tell(self.writer.news() if self.writer else [])
        return self.watch.look(values)

    def _save(self, must: bool) -> None:
        """Have rank 0 write a checkpoint beside the next steps; the last one, wait for it."""
        failed: str | None = None
        if self.writer is not None:
            self._tell(self.writer.save(self.step, self.engine.payload(self.dataset.digest)))
            failed = self.writer.finish() if must else None
        if must and (failed := self.ranks.share(failed)):
            raise CheckpointError(f"{failed}.")

    def finish_saving(self) -> None:
        """Wait for a checkpoint that is being written."""
        if self.writer is not None:
            self._tell(self.writer.settle())

    def _tell(self, news: list[str]) -> None:
        """Say what became of checkpoints, and keep what went wrong."""
        for text in news:
            self.say(text)
            if text.startswith("Could not save"):
                self.watch.fault("save", text)


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
