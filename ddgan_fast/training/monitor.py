"""What a run says about itself: statistics gathered on the device, and where they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from ddgan_fast.training.histograms import Histogram, Histograms
from ddgan_fast.training.sinks import Board, LogFile, TensorBoard, open_console
from ddgan_fast.training.wandb_board import WandBoard

# Parts of the timesteps that a statistic is told apart by.
_MOST_PARTS = 10


class DeviceStats:
    """Means of named statistics, added up on the device and read once per tick.

    Adding never waits for the device. Accumulators stay in place from tick to tick, so that a CUDA
    graph may add to them.

    Args:
        device: where the values are.
        histograms: names of statistics whose samples are counted in bins as well.
    """

    def __init__(self, device: torch.device | str, histograms: Iterable[str] = ()) -> None:
        self._device = torch.device(device)
        self._histograms = Histograms(histograms, self._device)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._timesteps: dict[str, int] = {}

    @torch.no_grad()
    def add(self, name: str, value: Tensor | float, weight: Tensor | float | None = None) -> None:
        """Add one value, or one per timestep.

        Args:
            name: of the statistic.
            value: [] or, a mean per timestep, [T].
            weight: how much it counts, broadcast to the value (default 1), such as the number of
                samples per timestep. A value of weight 0 is ignored even if it is not finite.
        """
        if not isinstance(value, Tensor):
            value = torch.full((1,), value, device=self._device)
        values = value.reshape(-1).to(torch.float64)
        sums, counts = self._accumulators(name, values.numel())
        weights = torch.ones_like(values) if weight is None else _weights(weight, values)
        sums += torch.where(weights > 0, values * weights, 0.0)
        counts += weights

    @torch.no_grad()
    def add_samples(
        self,
        name: str,
        values: Tensor,
        t: Tensor | None = None,
        num_timesteps: int = 1,
        weight: Tensor | float | None = None,
    ) -> None:
        """Add one value per sample, told apart by timestep where ``t`` is given.

        More than 10 timesteps are told apart as 10 ranges, each named by its first timestep.

        Args:
            name: of the statistic.
            values: [N].
            t: timesteps, int64 [N].
            num_timesteps: T.
            weight: [] or [N] (default 1); 0 ignores values that are not finite.
        """
        values = values.reshape(-1).to(torch.float64)
        weights = torch.ones_like(values) if weight is None else _weights(weight, values)
        given, values = values, torch.where(weights > 0, values * weights, 0.0)
        if t is None:
            values, weights = values.sum(0, keepdim=True), weights.sum(0, keepdim=True)
            t, num_timesteps = torch.zeros_like(values, dtype=torch.int64), 1
        else:
            if num_timesteps > _MOST_PARTS:
                t = t * _MOST_PARTS // num_timesteps
            parts = min(num_timesteps, _MOST_PARTS)
            self._histograms.add(name, given, t, parts, weights)
        self._timesteps[name] = num_timesteps
        sums, counts = self._accumulators(name, min(num_timesteps, _MOST_PARTS))
        sums.index_add_(0, t, values)
        counts.index_add_(0, t, weights)

    @torch.no_grad()
    def read(self, reduce: bool = False) -> dict[str, float]:
        """Take the means since the last call, with one transfer to the host.

        Args:
            reduce: over all ranks under torch.distributed; every rank must have added the same
                names.

        Returns:
            ``name`` -> mean, and for statistics per timestep also ``name/t0``, ``name/t1``, ….
            What nothing was added to is absent.
        """
        names = sorted(self._sums)
        if not names:
            return {}
        means = [self._sums[n] for n in names] + [self._counts[n] for n in names]
        flat = torch.cat(means + self._histograms.tensors())
        if reduce and dist.is_available() and dist.is_initialized():
            dist.all_reduce(flat)
        end = sum(tensor.numel() for tensor in means)
        read, binned = np.split(flat.cpu().numpy(), [end])
        self._histograms.take(binned)
        sums, counts = np.split(read, 2)
        for name in names:
            self._sums[name].zero_()
            self._counts[name].zero_()
        result: dict[str, float] = {}
        start = 0
        for name in names:
            part = slice(start, start := start + self._sums[name].numel())
            timesteps = self._timesteps.get(name, 0)
            result |= _means(name, sums[part], counts[part], timesteps)
        return result

    def histograms(self) -> dict[str, Histogram]:
        """Those of the last ``read``: ``name/t0``, ``name/t1``, ... -> a histogram."""
        found: dict[str, Histogram] = {}
        for name, rows in self._histograms.last().items():
            first = _first_timesteps(len(rows), self._timesteps[name])
            found |= {f"{name}/t{t}": row for t, row in zip(first, rows, strict=True) if row}
        return found

    def tensors(self) -> list[Tensor]:
        """Everything that changes, for who puts it back in place."""
        return [*self._sums.values(), *self._counts.values(), *self._histograms.tensors()]

    def _accumulators(self, name: str, size: int) -> tuple[Tensor, Tensor]:
        if name not in self._sums:
            self._sums[name] = torch.zeros(size, dtype=torch.float64, device=self._device)
            self._counts[name] = torch.zeros(size, dtype=torch.float64, device=self._device)
        return self._sums[name], self._counts[name]


class Monitor:
    """The run's log file, console, and TensorBoard or W&B; only rank 0 has one.

    Use it as a context manager, so that an exception, too, gives the terminal back.

    Args:
        run_dir: the run's directory; made when absent.
        total_steps: the run's length.
        start_step: steps finished when the run (re)starts; records beyond it are dropped.
        batch_size: global batch, images per step.
        tensorboard: write TensorBoard events; without the package a sentence says so.
        console: show progress; a bar in a terminal, otherwise a line now and then.
        wandb: project of Weights & Biases to show the run in, "" for none.
        config: the run's configuration, for W&B to keep.
    """

    def __init__(
        self,
        run_dir: Path | str,
        total_steps: int,
        start_step: int,
        *,
        batch_size: int,
        tensorboard: bool = True,
        console: bool = True,
        wandb: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        run_dir = Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        self._batch_size = batch_size
        self._last_step = start_step
        self._console = open_console(total_steps, start_step, console)
        self._log = LogFile(run_dir / "log.jsonl", start_step, self.say)
        self._boards: list[Board] = []
        if tensorboard:
            self._boards.append(TensorBoard(run_dir, start_step, self.say))
        if wandb:
            self._boards.append(WandBoard(run_dir, wandb, config or {}, self.say))

    def tick(
        self,
        step: int,
        stats: Mapping[str, float],
        *,
        seconds: float,
        wait_seconds: float,
        lr: float | Mapping[str, float],
    ) -> None:
        """Record what happened since the last tick.

        Args:
            step: number of finished steps.
            stats: means since the last tick, as ``DeviceStats.read`` returns them.
            seconds: wall time since the last tick.
            wait_seconds: the part of it spent waiting for data.
            lr: learning rate, or one per network.
        """
        steps = step - self._last_step
        self._last_step = step
        speed: dict[str, float] = {}
        if steps > 0 and seconds > 0:
            speed = {
                "img_s": steps * self._batch_size / seconds,
                "sec_per_step": seconds / steps,
                "wait_share": wait_seconds / seconds,
            }
        rates = {f"lr/{k}": v for k, v in lr.items()} if isinstance(lr, Mapping) else {"lr": lr}
        scalars = {**speed, **rates, **stats}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._log.append({"step": step, "time": now, "images": step * self._batch_size, **scalars})
        self.scalars(step, scalars)
        self._console.update(step, scalars)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show further numbers in TensorBoard and W&B."""
        for board in self._boards:
            board.scalars(step, values)

    def histograms(self, step: int, values: Mapping[str, Histogram]) -> None:
        """Show distributions in TensorBoard and W&B."""
        # TensorBoard knows one kind of thing per name, and the means have these already.
        named = {f"histograms/{name}": value for name, value in values.items()}
        for board in self._boards:
            board.histograms(step, named)

    def image(self, name: str, step: int, image: Path | str | np.ndarray) -> None:
        """Show a picture in TensorBoard and W&B: a PNG file, or uint8 [H, W] or [H, W, C]."""
        if not self._boards:
            return
        if isinstance(image, np.ndarray):
            pixels = image
        else:
            with Image.open(image) as opened:
                pixels = np.asarray(opened)
        for board in self._boards:
            board.image(name, step, pixels)

    def go_back(self, step: int) -> None:
        """The run goes on from an earlier step: records beyond it are dropped."""
        self._last_step = step
        self._log.go_back(step)
        for board in self._boards:
            board.go_back(step)

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one; nothing with ``console=False``."""
        self._console.say(text)

    def close(self) -> None:
        """Flush everything and give the terminal back."""
        self._console.close()
        self._log.close()
        for board in self._boards:
            board.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _weights(weight: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(weight, Tensor):
        return weight.to(like).reshape(-1).expand_as(like)
    return torch.full_like(like, weight)


def _first_timesteps(parts: int, timesteps: int) -> list[int]:
    """The timestep that each part begins with."""
    return [-(-i * max(timesteps, parts) // parts) for i in range(parts)]


def _means(
    name: str, sums: np.ndarray, counts: np.ndarray, timesteps: int
) -> dict[str, float]:
    if not counts.any():
        return {}
    means = {name: float(sums.sum() / counts.sum())}
    if len(sums) > 1:
        first = _first_timesteps(len(sums), timesteps)
        means |= {f"{name}/t{first[i]}": float(sums[i] / n) for i, n in enumerate(counts) if n}
    return means
