"""Images that are held in memory: IDX files (MNIST, Fashion-MNIST) and StackedMNIST."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.data.plan import permutations
from ddgan_fast.data.records import Records

_PREFIX = {"train": "train", "validation": "(?:t10k|test)"}
SPLITS = {"train": ("train",), "validation": ("validation",), "both": ("train", "validation")}
_MOST_BYTES = 1 << 32
_PUBLISHED_SIDE = 28


class Images(NamedTuple):
    """What a file or a set of files holds."""

    pixels: NDArray[np.uint8]
    """[N, H, W, C]."""
    labels: NDArray[np.int64] | None
    """[N]."""


class ArrayRecords(Records):
    """Images that are read at once. Another process that gets them reads them again.

    Args:
        kind: What ``data.source`` calls it.
        path: Where they lie.
        load: Reads them.
        flips: Whether mirroring makes sense.
        class_names: Names of the classes.
    """

    def __init__(
        self,
        kind: str,
        path: Path,
        load: Callable[[], Images],
        *,
        flips: bool,
        class_names: tuple[str, ...] = (),
    ) -> None:
        self.kind, self.path, self.flips, self.class_names = kind, path, flips, class_names
        self._load = load
        images = load()
        self._pixels: NDArray[np.uint8] | None = images.pixels
        self.labels = images.labels
        digest = hashlib.sha256(f"{kind} {images.pixels.shape}\n".encode())
        digest.update(np.ascontiguousarray(images.pixels).data)
        if images.labels is not None:
            digest.update(images.labels.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.pixels())

    def name(self, i: int) -> str:
        return f"{self.path}, image {i}"

    def read(self, i: int) -> NDArray[np.uint8]:
        return self.pixels()[i]

    def pixels(self) -> NDArray[np.uint8]:
        if self._pixels is None:
            self._pixels = self._load().pixels
        return self._pixels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}


class StackedRecords(Records):
    """StackedMNIST: three digits as the R, G and B of one image, twice as many as there are digits.

    Each channel goes through all digits twice, in two orders that are the same in every run. Image
    i has the class 100 a + 10 b + c of its digits.
    """

    kind = "stacked_mnist"
    flips = False

    def __init__(self, digits: ArrayRecords) -> None:
        self.path = digits.path
        self._digits = digits
        self.triples = stacked_triples(len(digits))
        if digits.labels is not None:
            self.labels = digits.labels[self.triples] @ np.array([100, 10, 1])
            self.class_names = tuple(f"{i:03}" for i in range(1000))
        self.fingerprint = hashlib.sha256(
            f"{self.kind} {digits.fingerprint}\n".encode()
        ).hexdigest()

    def __len__(self) -> int:
        return len(self.triples)

    def name(self, i: int) -> str:
        triple = ", ".join(str(digit) for digit in self.triples[i])
        return f"{self.path}, stacked image {i} of the digits {triple}"

    def read(self, i: int) -> NDArray[np.uint8]:
        return np.stack([self._digits.read(int(digit))[..., 0] for digit in self.triples[i]], -1)

    def pixels(self) -> NDArray[np.uint8]:
        return np.stack([self._digits.pixels()[digits, ..., 0] for digits in self.triples.T], -1)


def stacked_triples(n: int) -> NDArray[np.int64]:
    """The numbers of the R, G and B digit of every image stacked from n digits, [2 n, 3]."""
    return np.stack(
        [permutations(n, channel, np.arange(2)).reshape(-1) for channel in range(3)], axis=1
    )


def open_idx(
    path: str | os.PathLike[str], split: str = "train", size: int | None = None
) -> ArrayRecords:
    """The grey images of IDX files, such as train-images-idx3-ubyte.gz, and their labels.

    Images of 28x28 pixels get two black pixels on every side, as published for 32x32 networks,
    except for a network of 28x28.

    Args:
        path: The folder of the files, or one that has it as raw/, MNIST/raw/ or FashionMNIST/raw/;
            or the file of the images.
        split: "train", "validation" (files named t10k or test) or "both".
        size: Side of the images that are wanted, where it is known.

    Raises:
        FileNotFoundError: If there are no such files.
        ValueError: If a file is not what its name says, or damaged.
    """
    path = Path(path)
    load = partial(_load_split, path, split, size != _PUBLISHED_SIDE)
    names = tuple("0123456789")
    records = ArrayRecords("idx", path, load, flips=False)
    if records.labels is not None and records.labels.max(initial=0) < len(names):
        records.class_names = names
    return records


def idx_folder(path: Path) -> Path | None:
    """Where below ``path`` the IDX files lie."""
    places = [path, path / "raw", *sorted(path.glob("*/raw"))]
    return next((place for place in places if place.is_dir() and _images_in(place)), None)


def is_idx(path: Path) -> bool:
    """Whether a path is an IDX file of images or a folder of such."""
    return (
        bool(_images_pattern().fullmatch(path.name))
        if path.is_file()
        else bool(path.is_dir() and idx_folder(path))
    )


def _images_pattern(prefix: str = "train|t10k|test") -> re.Pattern[str]:
    return re.compile(rf"(.*)\b({prefix})-images[-.]idx3-ubyte(\.gz)?")


def _images_in(folder: Path, prefix: str = "train|t10k|test") -> list[Path]:
    pattern = _images_pattern(prefix)
    return sorted(place for place in folder.iterdir() if pattern.fullmatch(place.name))


def _load_split(path: Path, split: str, pad: bool) -> Images:
    if split not in SPLITS:
        raise ValueError(f'data.split is "{split}"; allowed are {", ".join(SPLITS)}.')
    parts = [_load_pair(place) for place in _places(path, split)]
    sides = {part.pixels.shape[1:] for part in parts}
    if len(sides) > 1:
        raise ValueError(f"{path}: its parts hold images of several sizes; load one split.")
    pixels = np.concatenate([part.pixels for part in parts])
    labels = [part.labels for part in parts if part.labels is not None]
    if pad and pixels.shape[1:3] == (_PUBLISHED_SIDE, _PUBLISHED_SIDE):
        pixels = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)))
    return Images(pixels, np.concatenate(labels) if len(labels) == len(parts) else None)


def _places(path: Path, split: str) -> list[Path]:
    """The files of images that a split consists of."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: check the spelling of the data's path.")
    if path.is_file():
        return [path]
    folder = idx_folder(path)
    if folder is None:
        raise ValueError(
            f"{path} holds no IDX files (such as train-images-idx3-ubyte.gz): give their folder, "
            "or say what it holds by --data.source."
        )
    found = []
    for part in SPLITS[split]:
        places = _images_in(folder, _PREFIX[part])
        if not places:
            raise FileNotFoundError(f'{folder} has no images of the split "{part}".')
        stems = {place.name.removesuffix(".gz") for place in places}
        if len(stems) > 1:
            raise ValueError(
                f"{folder} holds several sets ({', '.join(sorted(stems))}): "
                "give one of these files as the data's path."
            )
        found.append(places[0])
    return found


def _load_pair(path: Path) -> Images:
    """A file of images and, where it lies beside it, that of their labels."""
    pixels = read_idx(path, 3)[..., None]
    stem = path.name.removesuffix(".gz").replace("-images", "-labels").replace("idx3", "idx1")
    beside = [path.with_name(stem), path.with_name(f"{stem}.gz")]
    place = next((place for place in beside if place.is_file()), None)
    if place is None:
        return Images(pixels, None)
    labels = read_idx(place, 1).astype(np.int64)
    if len(labels) != len(pixels):
        raise ValueError(
            f"{place} has {len(labels):,} labels for the {len(pixels):,} images of {path.name}: "
            "they do not belong together."
        )
    return Images(pixels, labels)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes, plain or packed by gzip.

    Raises:
        ValueError: If it is none, has other dimensions, or is cut short or damaged.
    """
    head = 4 + 4 * dimensions
    try:
        # By the first bytes, because unpacked files often keep their name.
        with open(path, "rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as file:
            header = file.read(head)
            if len(header) < head or header[:4] != bytes((0, 0, 8, dimensions)):
                raise ValueError(
                    f"{path} is no IDX file of bytes in {dimensions} dimensions: "
                    f"it begins with {header[:4].hex(' ') or 'nothing'}."
                )
            shape = tuple(int(n) for n in np.frombuffer(header, ">u4", dimensions, 4))
            length = int(np.prod([float(n) for n in shape]))
            if not 0 < length <= _MOST_BYTES:
                raise ValueError(f"{path} claims to hold an array of {list(shape)}.")
            data = file.read(length + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is cut short or damaged ({error}): copy it again.") from error
    if len(data) != length:
        more = "more" if len(data) > length else f"{len(data):,}"
        raise ValueError(
            f"{path} claims an array of {list(shape)}, {length:,} bytes, but has {more}: "
            "copy it again."
        )
    return np.frombuffer(data, np.uint8).reshape(shape)
