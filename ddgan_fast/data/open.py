"""Opens whatever source of images lies at a path."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.data.images import EXTENSIONS
from ddgan_fast.data.records import Records
from ddgan_fast.data.records_cifar import is_cifar10, open_cifar10
from ddgan_fast.data.records_folder import FolderRecords
from ddgan_fast.data.records_idx import StackedRecords, is_idx, open_idx
from ddgan_fast.data.records_lmdb import LmdbRecords, is_lmdb
from ddgan_fast.data.records_parquet import ParquetRecords, is_parquet
from ddgan_fast.data.records_tar import TarRecords, is_tar
from ddgan_fast.data.records_zip import ZipRecords
from ddgan_fast.validation import FILE_SOURCES

_UNDERSTOOD = (
    "a folder of images, a zip archive, tars of WebDataset, an LMDB database (or a folder of "
    "train.lmdb and validation.lmdb, or of LSUN's CLASS_train_lmdb), CIFAR-10, IDX files, "
    "parquet files"
)
_SHOWN = 5  # names from a folder that a message lists


def open_records(
    path: str | os.PathLike[str],
    source: str = "auto",
    *,
    split: str = "train",
    lsun_class: str | None = None,
    limit: int | None = None,
    size: int | None = None,
) -> Records:
    """Opens a source of images.

    Args:
        path: Where it lies.
        source: Its kind, as for ``data.source``; "auto" finds it out.
        split: "train", "validation" or "both", for sources that have parts.
        lsun_class: The LSUN category, where the path holds several.
        limit: Use only the first so many records.
        size: Side of the images that are wanted, where it is known: 28x28 digits are padded to
            32x32 unless it is 28.

    Raises:
        FileNotFoundError: If there is nothing there, or a part is missing.
        NotADirectoryError: If source "folder" is not one.
        ValueError: If it is of no known kind, empty, or damaged where that can be seen at once.
        OSError: If it cannot be read.
        RuntimeError: If a package is missing.
    """
    path = Path(path).expanduser()
    if limit is not None and limit < 1:
        raise ValueError(f"data.limit is {limit}; it must be at least 1.")
    kind = detect(path) if source == "auto" else source
    records: Records
    if kind == "folder":
        records = FolderRecords(path)
    elif kind == "zip":
        records = ZipRecords(path)
    elif kind == "tar":
        records = TarRecords(path)
    elif kind == "parquet":
        records = ParquetRecords(path, split)
    elif kind == "lmdb":
        records = LmdbRecords(path, split, lsun_class)
    elif kind == "cifar10":
        records = open_cifar10(path, split)
    elif kind == "idx":
        records = open_idx(path, split, size)
    elif kind == "stacked_mnist":
        records = StackedRecords(open_idx(path, split, size))
    else:
        raise ValueError(f'data.source is "{source}"; allowed are {", ".join(FILE_SOURCES)}.')
    return records if limit is None or limit >= len(records) else _First(records, limit)


def detect(path: Path) -> str:
    """The kind of the source at ``path``, as ``data.source`` calls it.

    Raises:
        FileNotFoundError: If there is nothing there.
        ValueError: If it is of no known kind, or might be of two.
    """
    if not path.exists() and not (is_tar(path) and "{" in str(path)):
        raise FileNotFoundError(f"{path} does not exist: check the spelling of the data's path.")
    tests = {
        "lmdb": is_lmdb,
        "cifar10": is_cifar10,
        "idx": is_idx,
        "tar": is_tar,
        "parquet": is_parquet,
    }
    kinds = [kind for kind, test in tests.items() if test(path)]
    if path.is_file() and not kinds and zipfile.is_zipfile(path):
        kinds = ["zip"]
    if path.is_dir() and _images_at_top(path):
        kinds.append("folder")
    if len(kinds) > 1:
        raise ValueError(
            f"{path} may be meant as {' or '.join(kinds)}: choose one by --data.source."
        )
    if kinds:
        return kinds[0]
    if path.is_dir() and any(_subfolders(path)):
        return "folder"
    raise ValueError(
        f"{path} is no source of images: {_found(path)}; understood are {_UNDERSTOOD}."
    )


def _images_at_top(path: Path) -> bool:
    with os.scandir(path) as entries:
        return any(os.path.splitext(entry.name)[1].lower() in EXTENSIONS for entry in entries)


def _subfolders(path: Path) -> list[str]:
    return [place.name for place in path.iterdir() if place.is_dir() and place.name[0] != "."]


def _found(path: Path) -> str:
    if path.is_file():
        return f"a file of {path.stat().st_size:,} bytes"
    names = sorted(place.name for place in path.iterdir() if place.name[0] != ".")
    if not names:
        return "an empty folder"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"a folder of {', '.join(names[:_SHOWN])}{more}"


class _First(Records):
    """The first n of other records."""

    def __init__(self, whole: Records, n: int) -> None:
        self._whole, self._n = whole, n
        self.kind, self.path, self.flips = whole.kind, whole.path, whole.flips
        self.labels = None if whole.labels is None else whole.labels[:n]
        self.class_names = whole.class_names
        self.fingerprint = hashlib.sha256(
            f"first {n} of {whole.fingerprint}\n".encode()
        ).hexdigest()

    def __len__(self) -> int:
        return self._n

    def name(self, i: int) -> str:
        return self._whole.name(i)

    def read(self, i: int) -> bytes | NDArray[np.uint8]:
        return self._whole.read(i)

    def pixels(self) -> NDArray[np.uint8] | None:
        pixels = self._whole.pixels()
        return None if pixels is None else pixels[: self._n]
