"""The reader of prepared sets: any image by one positioned read, from any number of threads."""

from __future__ import annotations

import hashlib
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.data.dataset import Dataset
from ddgan_fast.data.images import decode_image
from ddgan_fast.data.records import Records
from ddgan_fast.data.shards_format import (
    FORMAT,
    INDEX,
    LABELS,
    MANIFEST,
    NPY_HEADER,
    PROGRESS,
    TAR_HEADER,
    Manifest,
    key,
    npy_header,
    preadv,
    read_manifest,
    shard_name,
    stride,
)

_AUTO_CACHE_BYTES = 1 << 30
_KEPT_OPEN = 512  # files; half of what a process may usually have
_COPY = "copy it again, or delete the folder and prepare it again"


def is_shards(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a prepared set, be it unfinished or with a damaged manifest."""
    folder = Path(path).expanduser()
    if (folder / PROGRESS).is_dir():
        return True
    try:
        with open(folder / MANIFEST, "rb") as file:
            return FORMAT.encode() in file.read(4096) or (folder / shard_name(0)).is_file()
    except OSError:
        return False


def lost_shards(folder: Path, manifest: Manifest) -> Iterator[Exception]:
    """What is to be said of each shard that is missing or of another size than it should be."""
    for shard in manifest.shards:
        path = folder / shard.shard
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            yield FileNotFoundError(f"{path} is missing: {_COPY}.")
            continue
        if size != shard.bytes:
            yield ValueError(
                f"{path} has {size:,} bytes, but {MANIFEST} says {shard.bytes:,}: {_COPY}."
            )


def open_shards(
    path: str | os.PathLike[str],
    size: int | None = None,
    channels: int | None = None,
    *,
    limit: int | None = None,
    cache: str = "none",
    workers: int = 2,
) -> ShardSet:
    """Opens a prepared set, and checks that it is what the model wants.

    Args:
        path: The folder that ``ddgan-fast prepare`` wrote.
        size: Side in pixels that the images must have; None: any.
        channels: Number of channels that they must have; None: any.
        limit: Use only the first so many images.
        cache: "ram" reads everything now and keeps it, "none" and "gpu" read as needed, "auto" is
            "ram" when the images take at most 1 GiB.
        workers: Threads that decode an encoded set.

    Raises:
        FileNotFoundError: There is no manifest, or a shard is missing.
        ValueError: The set is unfinished, damaged or of another size.
    """
    opened = ShardSet(path, limit=limit, cache="none", workers=workers)
    height, width, depth = opened.shape
    if (size or height, size or width, channels or depth) != opened.shape:
        raise ValueError(
            f"{opened.path} holds images {height}x{width}x{depth}, but the model is for "
            f"{size or height}x{size or width}x{channels or depth}: prepare the source again with "
            f"--resolution {size or height} --channels {channels or depth}, or change "
            "model.image_size and model.num_channels."
        )
    opened.keep(cache)
    return opened


class ShardSet(Dataset, Records):
    """A prepared set; see ``open_shards``.

    Files are opened when they are first read, in each process anew; reading is safe in threads.
    """

    kind = "shards"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        limit: int | None = None,
        cache: str = "none",
        workers: int = 2,
    ) -> None:
        self.path = Path(path).expanduser()
        self.manifest: Manifest = read_manifest(self.path)
        manifest = self.manifest
        self.shape: tuple[int, ...] = manifest.shape
        self.dtype = np.dtype(np.uint8)
        self.flips = manifest.flips
        self.class_names = manifest.classes
        self.encoding = manifest.encoding
        self.workers = 1 if self.encoding == "npy" else max(1, workers)
        self._n = manifest.n if limit is None else min(limit, manifest.n)
        self._ends = list(accumulate(shard.n for shard in manifest.shards))
        self._stride = stride(self.shape)
        self._npy_header = npy_header(self.shape)
        for fault in lost_shards(self.path, manifest):
            raise fault
        self.spans = self._index()
        self.labels = self._labels()
        whole = manifest.digest
        if self._n < manifest.n:
            whole = hashlib.sha256(f"first {self._n} of {whole}".encode()).hexdigest()
        self.digest = self.fingerprint = whole
        self._open_files()
        self.keep(cache)

    def __len__(self) -> int:
        return self._n

    def fetch(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images with these numbers.

        Args:
            indices: [N].

        Returns:
            uint8 [N, H, W, C], a fresh array.

        Raises:
            OSError: A shard cannot be read or ends too early; the message names shard and key.
            ValueError: What lies there is not the image; likewise.
        """
        if self.array is not None:
            return np.asarray(self.array[indices])
        result = np.empty((len(indices), *self.shape), np.uint8)
        self.fetch_into(indices, result)
        return result

    def fetch_into(self, indices: NDArray[np.int64], target: NDArray[np.uint8]) -> None:
        """Like ``fetch``, into the memory of a contiguous array [N, H, W, C]."""
        for row, index in zip(target, indices, strict=True):
            i = self._number(index)
            if self.array is not None:
                row[:] = self.array[i]
            elif self.encoding == "npy":
                self._read_pixels(i, memoryview(row).cast("B"))
            else:
                row[:] = self._decode(i)

    def read(self, i: int) -> bytes | NDArray[np.uint8]:
        """Image i: pixels [H, W, C], or the encoded file of an encoded set."""
        return self.encoded(i) if self.encoding == "image" else self.fetch(np.array([i]))[0]

    def encoded(self, i: int) -> bytes:
        """The png, jpg or webp file of image i of an encoded set.

        Raises:
            OSError, ValueError: As for ``fetch``.
            TypeError: The set holds pixels.
        """
        if self.spans is None:
            raise TypeError(f"{self.path} holds pixels, no encoded images.")
        offset, length = self.spans[self._number(i), 1:].tolist()
        data = bytearray(length)
        self._fill(int(i), offset - TAR_HEADER, bytearray(TAR_HEADER), memoryview(data))
        return bytes(data)

    def _decode(self, i: int) -> NDArray[np.uint8]:
        _, size, channels = self.shape
        return decode_image(self.encoded(i), self.name(i), size, channels)

    def name(self, i: int) -> str:
        """Shard and key of image i, for messages."""
        return f"{self.path / self.manifest.shards[self._shard_of(i)].shard}, image {key(i)}"

    def describe(self) -> str:
        """One line for the user: what, how many, how large, from where."""
        classes = len(self.class_names)
        if not classes and self.labels is not None:
            classes = len(np.unique(self.labels))
        many = f", {classes:,} classes" if classes else ""
        kept = ", in memory" if self.array is not None else ""
        shape = "x".join(map(str, self.shape))
        return f"shards {self.path}: {len(self):,} images {shape}{many}{kept}"

    def keep(self, cache: str) -> None:
        """Reads everything into memory as ``cache`` of ``open_shards`` says."""
        if cache not in ("auto", "ram", "none", "gpu"):
            raise ValueError(f'data.cache is "{cache}"; allowed are auto, ram, none and gpu.')
        nbytes = len(self) * int(np.prod(self.shape))
        if cache == "ram" or (cache == "auto" and nbytes <= _AUTO_CACHE_BYTES):
            self.array = self.fetch(np.arange(len(self)))

    def close(self) -> None:
        """Closes the files; they are opened again when needed."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_lock"], state["_descriptors"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_files()

    def __del__(self) -> None:
        if hasattr(self, "_descriptors"):  # else opening failed
            self.close()

    def _open_files(self) -> None:
        self._lock = threading.Lock()
        self._descriptors: dict[int, int] = {}

    def _companion(self, name: str, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """One of the arrays beside the shards."""
        path = self.path / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing: {_COPY}.") from None
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name]:
            raise ValueError(f"{path} is not the file that {MANIFEST} describes: {_COPY}.")
        array = np.load(path, allow_pickle=False)
        if array.shape != shape or array.dtype != np.int64:
            raise ValueError(f"{path} holds {array.dtype} {list(array.shape)}: {_COPY}.")
        return array

    def _labels(self) -> NDArray[np.int64] | None:
        if LABELS not in self.manifest.files:
            return None
        return self._companion(LABELS, (self.manifest.n,))[: self._n]

    def _index(self) -> NDArray[np.int64] | None:
        if self.encoding == "npy":
            return None
        if INDEX not in self.manifest.files:
            raise ValueError(f"{self.path / MANIFEST} names no {INDEX}: {_COPY}.")
        return self._companion(INDEX, (self.manifest.n, 3))

    def _number(self, i: Any) -> int:
        if not 0 <= i < self._n:
            raise IndexError(f"There is no image {i} in {self.path}: it holds {self._n:,}.")
        return int(i)

    def _shard_of(self, i: int) -> int:
        return bisect_right(self._ends, i)

    def _read_pixels(self, i: int, target: memoryview) -> None:
        shard = self._shard_of(i)
        before = self._ends[shard - 1] if shard else 0
        head = bytearray(TAR_HEADER + NPY_HEADER)
        self._fill(i, (i - before) * self._stride, head, target)
        if head[TAR_HEADER:] != self._npy_header:
            raise ValueError(f"{self.name(i)} is no uint8 {list(self.shape)}: {_COPY}.")

    def _fill(self, i: int, offset: int, head: bytearray, target: memoryview) -> None:
        """Reads headers and content of image i, and checks that it is this image."""
        with self._descriptor(self._shard_of(i)) as descriptor:
            try:
                count = preadv(descriptor, [memoryview(head), target], offset)
            except OSError as error:
                raise OSError(f"{self.name(i)} cannot be read ({error.strerror}).") from error
        missing = len(head) + len(target) - count
        if missing:
            raise OSError(f"{self.name(i)}: the file ends {missing:,} bytes too early: {_COPY}.")
        if not head.startswith(key(i).encode() + b"."):
            raise ValueError(f"{self.name(i)} is not where it should be: {_COPY}.")

    @contextmanager
    def _descriptor(self, shard: int) -> Iterator[int]:
        descriptor = self._descriptors.get(shard)
        if descriptor is not None:
            yield descriptor
            return
        path = self.path / self.manifest.shards[shard].shard
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing: {_COPY}.") from None
        with self._lock:
            kept = shard not in self._descriptors and len(self._descriptors) < _KEPT_OPEN
            if kept:
                self._descriptors[shard] = descriptor
        try:
            yield descriptor
        finally:
            if not kept:
                os.close(descriptor)
