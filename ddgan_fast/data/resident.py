"""Batches of a data set that lies wholly on the device: an index_select, and no thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddgan_fast.data.dataset import Dataset
from ddgan_fast.data.plan import Plan

LIMIT_BYTES = 1 << 30
"""Size up to which a set that is in memory goes to a GPU by itself."""
_CHUNK = 256  # records fetched at a time


def fits(dataset: Dataset, device: torch.device) -> bool:
    """Whether the data set is in memory, and is there already or small enough to be moved."""
    if dataset.array is None:
        return False
    return device.type == "cpu" or dataset.array.nbytes <= LIMIT_BYTES


class Resident:
    """Serves a rank's batches from one tensor on the device.

    Raises:
        RuntimeError: The device has no room for the data set.
    """

    def __init__(
        self, dataset: Dataset, plan: Plan, device: torch.device, rank: int, world: int
    ) -> None:
        self._plan, self._rank, self._world = plan, rank, world
        self._flip = plan.flip and dataset.flips
        try:
            self._records = _load(dataset, device)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"{device} has no room for the whole data set ({dataset.describe()}): "
                "set data.cache to none."
            ) from error

    def get(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Records and flips of a step."""
        indices, flips = self._plan.batch(step, self._rank, self._world)
        mask = torch.from_numpy(flips) if self._flip else None
        if isinstance(self._records, np.ndarray):
            # Not torch's index_select: it would wake a thread pool for every batch.
            return torch.from_numpy(self._records[indices]), mask
        images = self._records.index_select(0, self._upload(torch.from_numpy(indices)))
        return images, None if mask is None else self._upload(mask)

    def stop(self) -> None:
        """Nothing runs in the background."""

    def _upload(self, host: Tensor) -> Tensor:
        assert isinstance(self._records, Tensor)
        return host.pin_memory().to(self._records.device, non_blocking=True)


def _load(dataset: Dataset, device: torch.device) -> NDArray[Any] | Tensor:
    """All records, [N, *shape], piece by piece unless they are where they should be."""
    on_cpu = device.type == "cpu"
    if on_cpu and dataset.array is not None:
        return dataset.array
    dtype = torch.from_numpy(np.empty(0, dataset.dtype)).dtype
    records = torch.empty((len(dataset), *dataset.shape), dtype=dtype, device=device)

    def chunk(start: int) -> None:
        part = torch.from_numpy(
            dataset.fetch(np.arange(start, min(start + _CHUNK, len(dataset))))
        )
        records[start : start + len(part)].copy_(part)

    pool = ThreadPoolExecutor(max(1, dataset.workers), "ddgan-resident")
    try:
        # In order, so that of several bad records it is always the first that is named.
        for _ in pool.map(chunk, range(0, len(dataset), _CHUNK)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return records.numpy() if on_cpu else records
