"""LMDB databases as records: CelebA-HQ as published with NVAE, and LSUN."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.data.index_cache import CachedIndex
from ddgan_fast.data.lmdb_files import Status, data_file, keys_of, status_of, value_of
from ddgan_fast.data.records import Records, fingerprint_of, printable

_PARTS = {"train": ("train",), "validation": ("validation",), "both": ("train", "validation")}
_LSUN_NAME = re.compile(r"(.+)_(train|val|test)_lmdb")
_NOTES = {b"length", b"num-samples", b"__len__", b"__keys__", b"keys", b"meta", b"classnames"}
_SAMPLE = 64  # values whose lengths tell what the set holds


class LmdbRecords(Records):
    """The records of one database, or of a training and a validation part one after the other.

    Keys that are all numbers are taken in numeric order, others in the database's order. Whether
    the values are pixels or encoded images is decided once for the set: they are RGB pixels when
    most of them have one length that is 3 times a square. A value's first bytes say nothing: some
    raw images begin like a JPEG.

    Args:
        path: A database, or a folder of train.lmdb and validation.lmdb, or of LSUN's
            CLASS_train_lmdb and CLASS_val_lmdb.
        split: "train", "validation" or "both".
        lsun_class: Which LSUN category, where the folder holds several.

    Raises:
        FileNotFoundError: If there is no such database.
        ValueError: If it is empty, or not the split or the class that was asked for.
        OSError: If it cannot be read, or is cut short.
        RuntimeError: If the package lmdb is missing.
    """

    kind = "lmdb"

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str = "train",
        lsun_class: str | None = None,
    ) -> None:
        self.path = Path(path)
        places = _find(self.path, split, lsun_class)
        self._parts = [_scan(place) for place in places]
        self._starts = np.cumsum([0, *map(len, self._parts)])
        if not len(self):
            raise ValueError(f"{', '.join(map(str, places))}: no records in it; copy it again.")
        # Not of all: to ask for a value's length reads the whole value from the disk.
        sample = np.unique(np.linspace(0, len(self) - 1, _SAMPLE).astype(np.int64))
        lengths = [len(self._value(int(i))) for i in sample]
        self.side = _raw_side(lengths)
        keys = ((part.keys, part.ends.astype("<i8").tobytes().hex()) for part in self._parts)
        self.fingerprint = fingerprint_of(f"{self.kind} {lengths}", keys)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, i: int) -> str:
        part, k = self._locate(i)
        return f"{part.path}, key {printable(part.key(k).decode('latin-1'))}"

    def read(self, i: int) -> bytes | NDArray[np.uint8]:
        data = self._value(i)
        if self.side is None:
            return data
        if len(data) != 3 * self.side**2:
            raise ValueError(
                f"{self.name(i)} has {len(data):,} bytes, but the set holds pixels "
                f"{self.side}x{self.side}x3: replace it or take it out of the data."
            )
        return np.frombuffer(data, np.uint8).reshape(self.side, self.side, 3)

    def _value(self, i: int) -> bytes:
        part, k = self._locate(i)
        return value_of(part.path, part.status, part.key(k), self.name(i))

    def _locate(self, i: int) -> tuple[_Part, int]:
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self._parts[number], i - int(self._starts[number])


@dataclass
class _Part:
    """One database: its keys, joined because Python objects for millions of them are large."""

    path: Path
    status: Status
    keys: bytes
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def key(self, k: int) -> bytes:
        return self.keys[int(self.ends[k - 1]) if k else 0 : int(self.ends[k])]


def is_lmdb(path: Path) -> bool:
    """Whether a path is a database or a folder of databases in one of the known layouts."""
    return _is_database(path) or (path.is_dir() and bool(_databases_in(path)))


def _is_database(path: Path) -> bool:
    return (path / "data.mdb").is_file() or (path.is_file() and path.suffix in (".mdb", ".lmdb"))


def _databases_in(root: Path) -> dict[str, Path]:
    """Known databases below a folder by name: "train", "validation", "CLASS_train_lmdb", ..."""
    found = {name: root / f"{name}.lmdb" for name in ("train", "validation")}
    found = {name: place for name, place in found.items() if place.exists()}
    for place in sorted(root.glob("*_lmdb")):
        if _LSUN_NAME.fullmatch(place.name) and _is_database(place):
            found[place.name] = place
    return found


def _find(path: Path, split: str, lsun_class: str | None) -> list[Path]:
    if split not in _PARTS:
        raise ValueError(f'data.split is "{split}"; allowed are {", ".join(_PARTS)}.')
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: check the spelling of the data's path.")
    if _is_database(path):
        return [_check_single(path.parent if path.name == "data.mdb" else path, split, lsun_class)]
    found = _databases_in(path) if path.is_dir() else {}
    if not found:
        raise ValueError(
            f"{path} is no LMDB database and holds none: expected data.mdb, train.lmdb, "
            "validation.lmdb or CLASS_train_lmdb."
        )
    if any(name in found for name in ("train", "validation")):
        names = list(_PARTS[split])
    else:
        names = _lsun_names(path, found, split, lsun_class)
    for name in names:
        if name not in found:
            wanted = name if name.endswith("_lmdb") else f"{name}.lmdb"
            raise FileNotFoundError(
                f'{path} has no {wanted} for data.split "{split}"; it holds '
                f"{', '.join(place.name for place in found.values())}."
            )
    return [found[name] for name in names]


def _check_single(path: Path, split: str, lsun_class: str | None) -> Path:
    match = _LSUN_NAME.fullmatch(path.name)
    if match and lsun_class not in (None, match[1]):
        raise ValueError(
            f'{path} holds "{match[1]}", but data.lsun_class is "{lsun_class}": '
            f"give the other database, or --data.lsun_class {match[1]}."
        )
    if split == "both" or (split == "validation" and "val" not in path.name):
        raise ValueError(
            f'{path} is one database, but data.split is "{split}": give the folder that holds '
            "the parts, or leave data.split out."
        )
    return path


def _lsun_names(
    path: Path, found: dict[str, Path], split: str, lsun_class: str | None
) -> list[str]:
    matches = [match for name in found if (match := _LSUN_NAME.fullmatch(name))]
    classes = sorted({match[1] for match in matches})
    if lsun_class is None:
        if len(classes) > 1:
            raise ValueError(
                f"{path} holds the categories {', '.join(classes)}: "
                "choose one by --data.lsun_class."
            )
        lsun_class = classes[0]
    short = {"train": "train", "validation": "val"}
    return [f"{lsun_class}_{short[part]}_lmdb" for part in _PARTS[split]]


def _raw_side(lengths: list[int]) -> int | None:
    """Side of raw square RGB images, or None for encoded ones."""
    values, counts = np.unique(lengths, return_counts=True)
    common = int(values[counts.argmax()])
    side = math.isqrt(common // 3)
    most = 2 * counts.max() > len(lengths)
    return side if most and common and 3 * side * side == common else None


def _scan(path: Path) -> _Part:
    """All keys of a database, in the order of the records."""
    status = status_of(path)
    cached = CachedIndex(LmdbRecords.kind, data_file(path))
    arrays = cached.load("keys", "ends")
    if arrays is None:
        keys = [key for key in keys_of(path, status) if key not in _NOTES]
        if all(key.isdigit() and len(key) < 19 for key in keys):
            keys.sort(key=int)
        ends = np.cumsum([len(key) for key in keys], dtype=np.int64)
        arrays = [np.frombuffer(b"".join(keys), np.uint8), ends]
        cached.save(keys=arrays[0], ends=ends)
    return _Part(path, status, arrays[0].tobytes(), arrays[1])
