"""The classes that a training step tells the networks."""

from __future__ import annotations

import torch

from ..config import Config
from ..data.torch_loader import Batch
from ..kernels import philox

# Number of the draw that drops labels, beyond those of the networks' updates.
_DRAW = 63


class StepLabels:
    """The current step's classes, at one place in memory, so that recorded steps find them.

    All updates of a step see the same labels.

    Args:
        cfg: the run's configuration.
        index: int64 [N] on the device, this rank's positions in the global batch.
    """

    def __init__(self, cfg: Config, index: torch.Tensor) -> None:
        self._seed, self._index = cfg.run.seed, index
        self._null = cfg.model.num_classes
        self._dropout = 0.0 if cfg.loss.kind == "classifier" else cfg.model.label_dropout
        self._current = torch.zeros_like(index)

    @classmethod
    def of(cls, cfg: Config, index: torch.Tensor) -> StepLabels | None:
        """None where the networks know no classes."""
        return cls(cfg, index) if cfg.model.num_classes else None

    def take(self, batch: Batch) -> None:
        """Make a batch's classes those of the current step.

        Raises:
            ValueError: the batch brings none.
        """
        if batch.label is None:
            raise ValueError(
                f"the networks know {self._null} classes, but the batch of step {batch.step} has "
                "no labels: set Batch.label (data.labels.Labels makes them)."
            )
        self._current.copy_(batch.label, non_blocking=True)

    def drawn(self, position: torch.Tensor) -> torch.Tensor:
        """Classes int64 [N], a share of them replaced by the null class.

        Args:
            position: int64[1], the step whose draws these are.
        """
        if not self._dropout:
            return self._current
        seed = philox.step_seeds(self._seed, position, _DRAW + 1)[_DRAW:]
        kept = philox.uniform(seed, self._index, (1,))[:, 0] >= self._dropout
        return torch.where(kept, self._current, self._null)
