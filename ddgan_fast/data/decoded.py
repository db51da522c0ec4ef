"""Raw records as a data set: decoded when they are needed, or once into memory."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.data.dataset import Dataset
from ddgan_fast.data.images import TRANSFORM
from ddgan_fast.data.records import Records, decode

_AUTO_CACHE_BYTES = 1 << 30
_CHUNK = 32  # images a thread decodes per task


class Decoded(Dataset):
    """The images of a source in one size, for training without preparing them first.

    Args:
        records: The source.
        size: Side of the images in pixels.
        channels: 1, 3 or 4.
        cache: "ram" decodes everything now and keeps it, "none" decodes as needed, "auto" is
            "ram" when the decoded images take at most 1 GiB.
        workers: Threads that decode.

    Raises:
        ValueError: If a record that is decoded now cannot be used.
        OSError: If one cannot be read.
    """

    def __init__(
        self,
        records: Records,
        size: int,
        channels: int,
        *,
        cache: str = "auto",
        workers: int = 2,
    ) -> None:
        if cache not in ("auto", "ram", "none"):
            raise ValueError(f'data.cache is "{cache}"; allowed are "auto", "ram" and "none".')
        self.records = records
        self.shape = (size, size, channels)
        self.dtype = np.dtype(np.uint8)
        self.flips = records.flips
        self.labels = records.labels
        self.workers = max(1, workers)
        head = f"{records.fingerprint} {self.shape} {TRANSFORM}\n"
        self.digest = hashlib.sha256(head.encode()).hexdigest()
        nbytes = len(records) * size * size * channels
        if cache == "ram" or (cache == "auto" and nbytes <= _AUTO_CACHE_BYTES):
            self.array = self._decode_all()

    def __len__(self) -> int:
        return len(self.records)

    def fetch(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self.array is not None:
            return self.array[indices]
        return np.stack([self._decode(int(i)) for i in indices])

    def describe(self) -> str:
        records = self.records
        classes = f", {len(records.class_names)} classes" if records.class_names else ""
        kept = ", decoded in memory" if self.array is not None else ""
        shape = "x".join(map(str, self.shape))
        return f"{records.kind} {records.path}: {len(self):,} images {shape}{classes}{kept}"

    def verify(self) -> list[str]:
        """Decodes every image and returns a sentence for each one that cannot be used."""

        def check(i: int) -> str | None:
            try:
                self._decode(i)
            except (ValueError, OSError) as error:
                return str(error)
            return None

        with ThreadPoolExecutor(self.workers, "ddgan-verify") as pool:
            return [sentence for sentence in pool.map(check, range(len(self))) if sentence]

    def _decode(self, i: int) -> NDArray[np.uint8]:
        return decode(self.records, i, self.shape[0], self.shape[2])

    def _decode_all(self) -> NDArray[np.uint8]:
        whole = self.records.pixels()
        if whole is not None and whole.shape[1:] == self.shape:
            return whole
        array = np.empty((len(self), *self.shape), np.uint8)

        def chunk(start: int) -> None:
            for i in range(start, min(start + _CHUNK, len(self))):
                array[i] = self._decode(i)

        pool = ThreadPoolExecutor(self.workers, "ddgan-decode")
        try:
            # In order, so that of several bad images it is always the first that is named.
            for _ in pool.map(chunk, range(0, len(self), _CHUNK)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
        return array
