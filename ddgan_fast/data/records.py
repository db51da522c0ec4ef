"""Raw records: what a source of images holds before anything is decoded."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.data.images import PUBLISHED, Geometry, decode_image, prepare_pixels


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
