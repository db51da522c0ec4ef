"""Equal training time: how many steps of each method fit into it."""

from __future__ import annotations

import contextlib
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ddgan_fast.config import Config
from ddgan_fast.data import build_dataset
from ddgan_fast.training import choosing
from ddgan_fast.training.parallel import Ranks, start
from ddgan_fast.training.trainer import Run

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_BLOCK_S = 0.5
_ROUNDS = 7


def parse_budget(text: str) -> float:
    """Seconds of a time such as "90s", "10m" or "1.5h".

    Raises:
        ValueError: it is none, or not positive.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh])", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not seconds > 0:
        raise ValueError(
            f"the budget is {text!r}: it must be a time such as 90s, 10m or 1.5h (for each "
            "training)."
        )
    return seconds


def seconds_per_step(
    configs: Mapping[str, Config], device: str | None, say: Callable[[str], None]
) -> dict[str, tuple[float, str]]:
    """How long a training step of each configuration takes, R1 weighted by its interval.

    On a CPU blocks of steps alternate between the configurations, so that what else the machine
    does slows all of them down alike; on a GPU one follows the other. Compiling does not count.

    Args:
        configs: by name.
        device: as of ``train``.
        say: told how it goes.

    Returns:
        By name: the median over the blocks, in seconds, and the engine that was timed.
    """
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(start(device))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ddgan_fast-")))
        if ranks.device.type == "cuda":
            found: dict[str, tuple[float, str]] = {}
            for name, cfg in configs.items():
                found |= _measure({name: cfg}, ranks, folder, say)
            return found
        return _measure(configs, ranks, folder, say)


def _measure(
    configs: Mapping[str, Config], ranks: Ranks, folder: Path, say: Callable[[str], None]
) -> dict[str, tuple[float, str]]:
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        blocks = {
            name: _Block(cfg, ranks, folder / name, stack, say) for name, cfg in configs.items()
        }
        times: dict[str, list[float]] = {name: [] for name in blocks}
        for _ in range(_ROUNDS):
            for name, block in blocks.items():
                times[name].append(block.take())
        return {
            name: (statistics.median(times[name]), block.run.engine.mode)
            for name, block in blocks.items()
        }


class _Block:
    """A run that takes a few steps at a time; nothing of it stays."""

    def __init__(
        self,
        cfg: Config,
        ranks: Ranks,
        folder: Path,
        stack: contextlib.ExitStack,
        say: Callable[[str], None],
    ) -> None:
        options = replace(cfg.run, tensorboard=False, evaluate_every=0, dir=str(folder))
        self.cfg = replace(cfg, run=options)
        self.threads = cfg.run.threads or torch.get_num_threads()
        self.device = ranks.device
        own = stack.enter_context(contextlib.ExitStack())
        self.run = Run(self.cfg, build_dataset(self.cfg), ranks, folder, True, own)
        choosing.settle(self.run.engine, self.run.feed.next_batch(), self.cfg.run.steps, say)
        self.steps = cfg.loss.lazy_reg
        self.take()
        self.steps *= max(1, math.ceil(_BLOCK_S / (self.take() * self.steps)))

    def take(self) -> float:
        """Seconds per step of a block of steps."""
        torch.set_num_threads(self.threads)
        with self.run.engine.precision.settings():
            self._wait()
            began = time.perf_counter()
            for _ in range(self.steps):
                self.run.engine.take_step(self.run.feed.next_batch())
            self._wait()
        return (time.perf_counter() - began) / self.steps

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
