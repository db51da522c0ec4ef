"""LMDB databases as records: CelebA-HQ as published with NVAE, and LSUN."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.data.records import Records, fingerprint_of, printable

_PARTS = {"train": ("train",), "validation": ("validation",), "both": ("train", "validation")}
_LSUN_NAME = re.compile(r"(.+)_(train|val|test)_lmdb")
_NOTES = {b"length", b"num-samples", b"__len__", b"__keys__", b"keys", b"meta", b"classnames"}
_SMALLEST = 8192  # an empty database has two pages
_Status = tuple[int, int, int]


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
        self._starts = np.cumsum([0, *(len(part.lengths) for part in self._parts)])
        lengths = np.concatenate([part.lengths for part in self._parts])
        if not len(lengths):
            raise ValueError(f"{', '.join(map(str, places))}: no records in it; copy it again.")
        self.side = _raw_side(lengths)
        self.fingerprint = fingerprint_of(
            self.kind,
            ((part.key(k), part.lengths[k]) for part in self._parts for k in range(len(part))),
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, i: int) -> str:
        part, k = self._locate(i)
        return f"{part.path}, key {printable(part.key(k).decode('latin-1'))}"

    def read(self, i: int) -> bytes | NDArray[np.uint8]:
        part, k = self._locate(i)
        with _reading(part.path, self.name(i), part.status) as transaction:
            value = transaction.get(part.key(k))
            data = None if value is None else bytes(value)
        if data is None:
            raise OSError(f"{self.name(i)}: gone since the database was opened; start again.")
        if self.side is None:
            return data
        if len(data) != 3 * self.side**2:
            raise ValueError(
                f"{self.name(i)} has {len(data):,} bytes, but the set holds pixels "
                f"{self.side}x{self.side}x3: replace it or take it out of the data."
            )
        return np.frombuffer(data, np.uint8).reshape(self.side, self.side, 3)

    def _locate(self, i: int) -> tuple[_Part, int]:
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self._parts[number], i - int(self._starts[number])


@dataclass
class _Part:
    """One database: its keys, joined because Python objects for millions of them are large."""

    path: Path
    status: _Status
    keys: bytes
    ends: NDArray[np.int64]
    lengths: NDArray[np.int64]

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


def _raw_side(lengths: NDArray[np.int64]) -> int | None:
    """Side of raw square RGB images, or None for encoded ones."""
    values, counts = np.unique(lengths, return_counts=True)
    common = int(values[counts.argmax()])
    side = math.isqrt(common // 3)
    most = 2 * counts.max() > len(lengths)
    return side if most and common and 3 * side * side == common else None


def _scan(path: Path) -> _Part:
    """Reads all keys and the lengths of their values; the values' own pages are not touched."""
    keys: list[bytes] = []
    lengths: list[int] = []
    status = _status(path)
    with _reading(path, str(path), status) as transaction:
        for key, value in transaction.cursor().iternext(keys=True, values=True):
            if bytes(key) not in _NOTES:
                keys.append(bytes(key))
                lengths.append(len(value))
    if keys and all(key.isdigit() and len(key) < 19 for key in keys):
        order = np.argsort(np.array([int(key) for key in keys], np.int64), kind="stable")
        keys = [keys[i] for i in order]
        lengths = [lengths[i] for i in order]
    ends = np.cumsum([len(key) for key in keys], dtype=np.int64)
    return _Part(path, status, b"".join(keys), ends, np.array(lengths, np.int64))


# A process may open a database only once, and a forked one goes on with what its parent opened.
_ENVIRONMENTS: dict[str, tuple[_Status, Any]] = {}
_LOCK = threading.Lock()


@contextmanager
def _reading(path: Path, name: str, status: _Status) -> Iterator[Any]:
    """A read transaction, with the package's errors as OSError that names the record."""
    lmdb = _package(path)
    try:
        with _environment(lmdb, path, status).begin(buffers=True) as transaction:
            yield transaction
    except lmdb.Error as error:
        raise OSError(
            f"{name} cannot be read ({error}): the database is damaged; copy it again."
        ) from error


def _environment(lmdb: ModuleType, path: Path, status: _Status) -> Any:
    # Also because a file that was cut since would kill the process.
    if _status(path) != status:
        raise OSError(f"{path} has changed since its keys were read: start again.")
    where = os.path.realpath(path)
    with _LOCK:
        known = _ENVIRONMENTS.get(where)
        if known is not None and known[0] == status:
            return known[1]
        if known is not None:  # another file has taken its place
            del _ENVIRONMENTS[where]
            known[1].close()
        environment = _open(lmdb, path, status[1])
        _ENVIRONMENTS[where] = (status, environment)
        return environment


def _status(path: Path) -> _Status:
    status = os.stat(path / "data.mdb" if path.is_dir() else path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _open(lmdb: ModuleType, path: Path, size: int) -> Any:
    if size < _SMALLEST:
        raise OSError(f"{path} is no database: its file has {size:,} bytes; copy it again.")
    environment = lmdb.open(
        str(path), subdir=path.is_dir(), readonly=True, lock=False, create=False, readahead=False
    )
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < needed:  # reading the missing pages of the memory map would kill the process
        environment.close()
        raise OSError(
            f"{path} is cut short: it has {size:,} of at least {needed:,} bytes; copy it again."
        )
    return environment


def _package(path: Path) -> ModuleType:
    try:
        import lmdb
    except ImportError as error:
        raise RuntimeError(
            f"{path} is an LMDB database, and the package that reads it is missing: "
            'pip install "ddgan_fast[lmdb]".'
        ) from error
    return lmdb
