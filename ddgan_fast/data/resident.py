"""Batches of a data set that lies wholly on the device: an index_select, and no thread."""

from __future__ import annotations

import torch
from torch import Tensor

from ddgan_fast.data.dataset import Dataset
from ddgan_fast.data.plan import Plan

LIMIT_BYTES = 256 << 20


def fits(dataset: Dataset) -> bool:
    """Whether the data set is in memory and small enough to be put on the device."""
    return dataset.array is not None and dataset.array.nbytes <= LIMIT_BYTES


class Resident:
    """Serves a rank's batches from one tensor on the device."""

    def __init__(
        self, dataset: Dataset, plan: Plan, device: torch.device, rank: int, world: int
    ) -> None:
        assert dataset.array is not None
        self._records = torch.from_numpy(dataset.array).to(device)
        self._plan, self._rank, self._world = plan, rank, world
        self._flip = plan.flip and dataset.flips

    def get(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Records and flips of a step."""
        indices, flips = self._plan.batch(step, self._rank, self._world)
        images = self._records.index_select(0, self._upload(torch.from_numpy(indices)))
        return images, self._upload(torch.from_numpy(flips)) if self._flip else None

    def stop(self) -> None:
        """Nothing runs in the background."""

    def _upload(self, host: Tensor) -> Tensor:
        device = self._records.device
        if device.type == "cuda":
            return host.pin_memory().to(device, non_blocking=True)
        return host
