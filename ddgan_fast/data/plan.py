"""The stateless sampler: which record is at which position of the run, and whether it is mirrored.

Every number is a function of (seed, global position), built from integers alone. Nothing has to be
saved but the step, the number of ranks does not matter, and no library's random stream is involved.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_FLIP_STREAM = _MASK


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The SplitMix64 generator's output for each state: a bijection of 64-bit integers."""
    z = x + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))


def key(seed: int, stream: int) -> int:
    """The 64-bit key of one stream of a seed (stream = epoch number for the permutations)."""
    # An array, because numpy warns when scalar arithmetic wraps around, and here it must.
    mixed = int(splitmix64(np.array([seed & _MASK], np.uint64))[0])
    return int(splitmix64(np.array([mixed ^ (stream & _MASK)], np.uint64))[0])


def permutations(n: int, seed: int, epochs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order of the n records in each of the epochs, [E, n]."""
    keys = np.array([key(seed, int(e)) for e in epochs], np.uint64)
    return np.argsort(splitmix64(np.arange(n, dtype=np.uint64) ^ keys[:, None]), kind="stable")


class Plan:
    """Deals the records to the steps of a run.

    Args:
        n: Number of records.
        seed: Decides the order and the flips.
        global_batch: Records per step over all ranks.
        mode: "stream" shows every record exactly once per n positions, across step borders;
            "epoch" drops the incomplete batch at the end of every epoch.
        flip: Whether half of the records are mirrored; otherwise all flips are false.

    Raises:
        ValueError: If n or global_batch is below 1, the mode is unknown, or mode "epoch" has
            fewer records than one batch.
    """

    _BACKGROUND_FROM = 1 << 17  # records from which sorting an epoch would be felt in a step

    def __init__(
        self, n: int, seed: int, global_batch: int, mode: str = "stream", flip: bool = True
    ) -> None:
        if n < 1:
            raise ValueError(f"The data set has {n} records; training needs at least one.")
        if global_batch < 1:
            raise ValueError(f"The global batch is {global_batch}; it must be at least 1.")
        if mode not in ("stream", "epoch"):
            raise ValueError(f'data.mode is "{mode}"; allowed are "stream" and "epoch".')
        if mode == "epoch" and n < global_batch:
            raise ValueError(
                f'data.mode "epoch" drops incomplete batches, and {n} records do not fill one '
                f'batch of {global_batch}: use data.mode "stream" or a smaller run.batch_size.'
            )
        self.n = n
        self.seed = seed
        self.global_batch = global_batch
        self.mode = mode
        self.flip = flip
        self.steps_per_epoch = max(1, n // global_batch)
        self._flip_key = np.uint64(key(seed, _FLIP_STREAM))
        self._lock = threading.Lock()
        self._cache: dict[int, Future[NDArray[np.int64]]] = {}

    def positions(self, step: int, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
        """Global positions of a rank's records in a step, [global_batch / world].

        Raises:
            ValueError: If the batch does not divide by the ranks, or step or rank is out of range.
        """
        if step < 0 or not 0 <= rank < world:
            raise ValueError(f"No batch for step {step} and rank {rank} of {world}.")
        if self.global_batch % world:
            raise ValueError(
                f"The global batch of {self.global_batch} does not divide by {world} ranks: "
                f"choose run.batch_size as a multiple of {world}."
            )
        start = step * self.global_batch
        return np.arange(start + rank, start + self.global_batch, world, dtype=np.int64)

    def batch(
        self, step: int, rank: int = 0, world: int = 1
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Record numbers and flips of a rank's part of a step, each [global_batch / world].

        Safe to call from several threads.

        Raises:
            ValueError: As for ``positions``.
        """
        positions = self.positions(step, rank, world)
        if self.mode == "epoch":
            epoch, first = divmod(step, self.steps_per_epoch)
            epochs = np.full_like(positions, epoch)
            offsets = positions - (step - first) * self.global_batch
        else:
            epochs, offsets = np.divmod(positions, self.n)
        if self.flip:
            bits = splitmix64(positions.astype(np.uint64) ^ self._flip_key) >> np.uint64(63)
            flips = bits.astype(np.bool_)
        else:
            flips = np.zeros(len(positions), np.bool_)
        return self._records(epochs, offsets), flips

    def _records(self, epochs: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        first, last = int(epochs[0]), int(epochs[-1])
        if last - first > 1:  # a set smaller than the batch: many small permutations at once
            table = permutations(self.n, self.seed, np.arange(first, last + 1))
            return table[epochs - first, offsets]
        records = self._permutation(first)[offsets]
        if last != first:
            later = epochs == last
            records[later] = self._permutation(last)[offsets[later]]
        # Not before the second half: until then the epoch before may still be asked for.
        if self.n >= self._BACKGROUND_FROM and int(offsets[-1]) >= self.n // 2:
            self._prepare(last + 1)
        return records

    def _prepare(self, epoch: int) -> None:
        with self._lock:
            known = epoch in self._cache
        if not known:
            threading.Thread(
                target=self._permutation, args=(epoch,), name="ddgan-plan", daemon=True
            ).start()

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        with self._lock:
            future = self._cache.get(epoch)
            mine = future is None
            if future is None:
                future = self._cache[epoch] = Future()
                while len(self._cache) > 2:
                    del self._cache[next(iter(self._cache))]
        if mine:
            try:
                future.set_result(permutations(self.n, self.seed, np.array([epoch]))[0])
            except BaseException as error:
                with self._lock:
                    self._cache.pop(epoch, None)
                future.set_exception(error)
        return future.result()
