"""What every source of training data offers."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Dataset(ABC):
    """Records of one shape, fetched by number; ``fetch`` may be called from several threads."""

    shape: tuple[int, ...]
    """Shape of a record: (H, W, C) for images, (2,) for points."""
    dtype: np.dtype[Any]
    """uint8 for images, float32 for points."""
    flips: bool
    """Whether a mirrored record is as good as the original."""
    labels: NDArray[np.int64] | None = None
    """Class of each record, where the source knows classes."""
    digest: str
    """Fingerprint of the records and how they are prepared, the same on every machine."""
    array: NDArray[Any] | None = None
    """All records, [N, *shape], when they are held in memory."""
    workers: int = 1
    """Threads in which fetching is worth its while."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """The records with these numbers, [len(indices), *shape], as a fresh array."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the user: what, how many, how large, from where."""


class ArrayDataset(Dataset):
    """Records held in memory.

    Args:
        array: [N, *shape].
        description: What ``describe`` says.
        labels: [N] or None.
        flips: Whether mirroring makes sense.
        digest: Fingerprint; by default that of the array.
    """

    def __init__(
        self,
        array: NDArray[Any],
        description: str,
        *,
        labels: NDArray[np.int64] | None = None,
        flips: bool,
        digest: str | None = None,
    ) -> None:
        self.array: NDArray[Any] = np.ascontiguousarray(array)
        self.shape = self.array.shape[1:]
        self.dtype = self.array.dtype
        self.labels = labels
        self.flips = flips
        self.digest = digest or array_digest(self.array)
        self._description = description

    def __len__(self) -> int:
        return len(self.array)

    def fetch(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return self.array[indices]

    def describe(self) -> str:
        return self._description


def array_digest(array: NDArray[Any], note: str = "") -> str:
    """SHA-256 of an array's type, shape and values (little-endian), and of a note."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    head = f"{little.dtype.str} {little.shape} {note}\n".encode()
    return hashlib.sha256(head + little.tobytes()).hexdigest()
