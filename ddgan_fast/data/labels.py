"""The classes of the records that a step takes, whichever loader brings the records themselves."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ddgan_fast.data.dataset import Dataset
from ddgan_fast.data.plan import Plan


def check_labels(dataset: Dataset, num_classes: int) -> None:
    """Refuse data that cannot teach a model its classes.

    Args:
        dataset: Where the records come from.
        num_classes: Of the model; 0 asks for nothing.

    Raises:
        ValueError: The data has no classes, or one that the model does not have.
    """
    if not num_classes:
        return
    asked = f"model.num_classes is {num_classes}, but the data ({dataset.describe()})"
    if dataset.labels is None:
        raise ValueError(f"{asked} has no classes: set it to 0, or take data with classes.")
    low, high = int(dataset.labels.min()), int(dataset.labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        advice = f"set it to {high + 1}" if low >= 0 else "number the classes from 0"
        raise ValueError(f"{asked} has a record of class {wrong}: {advice}.")


class Labels:
    """A rank's labels of any step of a plan: the plan alone says which records a step takes.

    Args:
        labels: Class of each record, int64 [n].
        plan: Which records a step takes.
        device: Where the labels of a step go.
        rank: This process's rank.
        world: Number of ranks.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        plan: Plan,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._labels, self._plan = labels, plan
        self._device = torch.device(device)
        self._rank, self._world = rank, world

    def at(self, step: int) -> torch.Tensor:
        """Classes of the records of ``torch_loader.Batch`` ``step``, int64 [B] on the device."""
        records, _ = self._plan.batch(step, self._rank, self._world)
        labels = torch.from_numpy(self._labels[records])
        if self._device.type == "cuda":
            labels = labels.pin_memory()
        return labels.to(self._device, non_blocking=True)
