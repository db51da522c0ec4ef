"""Raw records: what a source of images holds before anything is decoded."""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.data.images import PUBLISHED, Geometry, decode_image, prepare_pixels

LARGEST_RECORD = 1 << 28
"""Bytes of a record above which it is taken for an attack or a damaged length."""


class Records(ABC):
    """The images of one source, by number, each as an encoded file or as pixels.

    Objects can be pickled: a process that gets one opens the files anew. ``read`` may be called
    from several threads. Nothing is ever written beside the source.
    """

    kind: str
    """"folder", "zip", "lmdb", ...: what ``data.source`` calls it."""
    path: Path
    """Where the source lies."""
    flips: bool = True
    """Whether a mirrored image is as good as the original."""
    labels: NDArray[np.int64] | None = None
    """Class of each record [N], where the source knows classes."""
    class_names: tuple[str, ...] = ()
    """Name of each class, where the source knows names."""
    fingerprint: str
    """Hex SHA-256 of what tells this source from another one without reading all of it: the names
    and sizes of its records, say; the same for a copy on another machine."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, i: int) -> str:
        """How messages call record i: enough to find it again."""

    @abstractmethod
    def read(self, i: int) -> bytes | NDArray[np.uint8]:
        """Record i: an encoded image file, or pixels uint8 [H, W, C].

        Raises:
            OSError: it cannot be read; the message names the file and the record.
            ValueError: what was read is damaged (a checksum that the source keeps, a length).
        """

    def pixels(self) -> NDArray[np.uint8] | None:
        """All records at once, [N, H, W, C], where they are held in memory anyway."""
        return None

    def describe(self) -> str:
        """One line for the user: what, how many, from where."""
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        return f"{self.kind} {self.path}: {len(self):,} images{classes}"


def decode(
    records: Records, i: int, size: int, channels: int, geometry: Geometry = PUBLISHED
) -> NDArray[np.uint8]:
    """Record i as the networks see it, uint8 [size, size, channels].

    Raises:
        OSError: it cannot be read.
        ValueError: it cannot be used as an image; the message names it.
    """
    data = records.read(i)
    if isinstance(data, np.ndarray):
        return prepare_pixels(data, records.name(i), size, channels, geometry)
    return decode_image(data, records.name(i), size, channels, geometry)


def pread(descriptor: int, length: int, offset: int, name: str) -> bytes:
    """Exactly ``length`` bytes at ``offset``; unlike a memory map, a cut file is an error here.

    Raises:
        OSError: the file ends before.
    """
    parts, missing = [], length
    while missing:
        part = os.pread(descriptor, missing, offset + length - missing)
        if not part:
            raise OSError(
                f"{name}: the file ends {missing:,} bytes before the end of the record: "
                "it is cut short; copy it again."
            )
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class SourceFile:
    """A file that records are cut out of: opened at first use, and anew in every process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size, self.changed = self._status(os.stat(path))
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def read(self, length: int, offset: int, name: str) -> bytes:
        """Exactly ``length`` bytes at ``offset``; safe in threads.

        Raises:
            OSError: the file is gone, cut short, or not the one whose index was read.
        """
        if self._descriptor is None:
            with self._lock:
                if self._descriptor is None:
                    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
                    self._descriptor = os.open(self.path, flags)
        # Every time: a file may be written anew under an open descriptor.
        if self._status(os.fstat(self._descriptor)) != (self.size, self.changed):
            raise OSError(f"{self.path} has changed since its index was read: start again.")
        return pread(self._descriptor, length, offset, name)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size, "changed": self.changed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _descriptor=None, _lock=threading.Lock())

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)

    @staticmethod
    def _status(status: os.stat_result) -> tuple[int, int]:
        return status.st_size, status.st_mtime_ns


def fingerprint_of(kind: str, records: Iterable[tuple[str | bytes, object]]) -> str:
    """SHA-256 of a source's kind, and of the name and a property of each of its records."""
    digest = hashlib.sha256(f"{kind}\n".encode())
    for name, fact in records:
        digest.update(os.fsencode(name) + f"\0{fact}\n".encode())
    return digest.hexdigest()


def printable(name: str) -> str:
    """A name out of an archive as messages may show it: no control characters."""
    return name if name.isprintable() else ascii(name)
