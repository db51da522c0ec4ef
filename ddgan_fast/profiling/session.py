"""Real training steps for the profiler: engine, loader, and steps of either kind on demand."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from ..config import Config
from ..data import build_dataset
from ..training import choosing
from ..training.engine import Engine
from ..training.feed import Feed
from ..training.memory import fit_micro_batch
from ..training.parallel import start
from ..validation import FILE_SOURCES
from .phases import WAIT, marked
from .timeline import REST, Step, Timeline

Say = Callable[[str], None]


def prepared(cfg: Config, say: Say) -> Config:
    """The configuration as it is profiled; what is changed is told.

    Raises:
        ValueError: the precision is for tests only.
    """
    if cfg.run.precision == "fp64":
        raise ValueError("run.precision is 'fp64', which is for tests: profile fp32 or bf16.")
    if cfg.data.path is None and cfg.data.source in (*FILE_SOURCES, "auto"):
        cfg.data.source = "synthetic"
        say("Data: synthetic images, as no --data was given: the data wait is not that of a run.")
    if cfg.run.engine == "auto":
        cfg.run.engine = "eager"
    return cfg


class Session:
    """The engine of a run and its data, without a run directory.

    Args:
        cfg: as ``prepared`` gives it.
        device: "cpu", "cuda" or "cuda:0"; default a GPU when there is one.
        stack: closes what the session holds.
        say: told what is chosen.

    Attributes:
        kinds: the kinds of step that occur, with R1 (True) or without.
        timeline: the steps taken.
    """

    def __init__(
        self, cfg: Config, device: str | None, stack: contextlib.ExitStack, say: Say
    ) -> None:
        self.cfg = cfg
        self.dataset = build_dataset(cfg)
        self.ranks = stack.enter_context(start(device, cfg.run.timeout_s, cfg.run.reduction))
        self.device = self.ranks.device
        choosing.refuse(cfg, self.device)
        if cfg.run.threads is not None:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(cfg.run.threads)
        self.feed = Feed(cfg, self.dataset, self.ranks)
        self.engine = Engine(cfg, self.ranks, self.feed.positions())
        stack.callback(self.engine.drop_graphs)
        stack.enter_context(self.engine.precision.settings())
        if cfg.run.micro_batch == "auto":
            say(fit_micro_batch(self.engine))
        stack.callback(self.feed.close)
        self.feed.open()
        say(self.feed.loader.note)
        self.batch = self.feed.next_batch()
        choosing.settle(self.engine, self.batch, cfg.run.steps, say)
        self.kinds = self.engine.kinds if cfg.loss.kind == "gan" else (False,)
        self.timeline = Timeline(self.device)
        stack.enter_context(marked(self.engine, self.timeline))

    def share(self, penalize: bool) -> float:
        """The part of a run's steps that are of this kind."""
        if len(self.kinds) == 1:
            return 1.0
        r1 = 1 / self.cfg.loss.lazy_reg
        return r1 if penalize else 1 - r1

    def step(self, penalize: bool, mark: bool) -> None:
        """One step as a run takes it, data included."""
        engine, timeline = self.engine, self.timeline
        timeline.start(penalize, mark, WAIT)
        began = time.perf_counter()
        self.batch = self.feed.next_batch()
        timeline.waited(time.perf_counter() - began)
        timeline.mark(REST)
        # The number of the step decides about R1, and the rates that follow from it are no matter.
        engine.step = 0 if penalize or engine.cfg.loss.lazy_reg == 1 else 1
        engine.take_step(self.batch)

    def rounds(self, count: int) -> list[Step]:
        """Steps of each kind, marked and unmarked ones in turns, so that both see the same machine.

        Returns:
            ``count`` steps of each kind with marks, and as many without.
        """
        first = len(self.timeline.steps)
        for i in range(count):
            for penalize in self.kinds:
                for mark in (False, True) if i % 2 else (True, False):
                    self.step(penalize, mark)
        self.timeline.finish()
        return self.timeline.steps[first:]

    def operator_step(self, penalize: bool) -> None:
        """One step operator by operator, uncompiled and unrecorded, on the last batch."""
        with _paused(self.engine.train_step.parts):
            self.timeline.start(penalize, True, REST)
            images, flip = self.engine.network_input(self.batch)
            self.engine.update_both(images, flip, penalize)
            self.engine.ema.update(1)
            self.timeline.finish()


@contextlib.contextmanager
def _paused(parts: Sequence[object]) -> Iterator[None]:
    for part in parts:
        part.paused = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for part in parts:
            part.paused = False  # type: ignore[attr-defined]
