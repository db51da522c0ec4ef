"""Reading LMDB files so that no file can kill the process, with one open database per process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

Status = tuple[int, int, int]
_SMALLEST = 8192  # bytes; an empty database has two pages

# A process may open a database only once, and a forked one goes on with what its parent opened.
_ENVIRONMENTS: dict[str, tuple[Status, Any]] = {}
_LOCK = threading.Lock()


def value_of(path: Path, status: Status, key: bytes, name: str) -> bytes:
    """The value of a key; ``name`` is how messages call it.

    Raises:
        OSError: If it cannot be read, or the file is not the one that ``status`` was of.
        RuntimeError: If the package lmdb is missing.
    """
    with _errors(name) as lmdb, _environment(lmdb, path, status).begin(buffers=True) as transaction:
        value = transaction.get(key)
        if value is None:
            raise OSError(f"{name}: gone since the database was opened; start again.")
        return bytes(value)


def keys_of(path: Path, status: Status) -> list[bytes]:
    """All keys in the database's order; raises as ``value_of``."""
    with _errors(str(path)) as lmdb, _LOCK:
        known = _ENVIRONMENTS.get(os.path.realpath(path))
        if known is not None and known[0] == status:
            return _keys(known[1])
        _forget(path)
        # One page of each value is touched, and with readahead all its neighbours would be read.
        environment = _open(lmdb, path, status[1], readahead=False)
        try:
            return _keys(environment)
        finally:
            environment.close()


def _keys(environment: Any) -> list[bytes]:
    with environment.begin() as transaction:
        return list(transaction.cursor().iternext(keys=True, values=False))


@contextmanager
def _errors(name: str) -> Iterator[ModuleType]:
    """The package, whose errors become OSError that names the record."""
    lmdb = _package(name)
    try:
        yield lmdb
    except lmdb.Error as error:
        raise OSError(
            f"{name} cannot be read ({error}): the database is damaged; copy it again."
        ) from error


def _environment(lmdb: ModuleType, path: Path, status: Status) -> Any:
    # Also because a file that was cut since would kill the process.
    if status_of(path) != status:
        raise OSError(f"{path} has changed since its keys were read: start again.")
    where = os.path.realpath(path)
    with _LOCK:
        known = _ENVIRONMENTS.get(where)
        if known is None or known[0] != status:
            _forget(path)
            known = status, _open(lmdb, path, status[1], readahead=True)
            _ENVIRONMENTS[where] = known
        return known[1]


def _forget(path: Path) -> None:
    """Closes the database whose place another file has taken."""
    known = _ENVIRONMENTS.pop(os.path.realpath(path), None)
    if known is not None:
        known[1].close()


def data_file(path: Path) -> Path:
    """The file of a database, which may be a folder."""
    return path / "data.mdb" if path.is_dir() else path


def status_of(path: Path) -> Status:
    """What tells the file from another one that takes its place."""
    status = os.stat(data_file(path))
    return status.st_ino, status.st_size, status.st_mtime_ns


def _open(lmdb: ModuleType, path: Path, size: int, *, readahead: bool) -> Any:
    if size < _SMALLEST:
        raise OSError(f"{path} is no database: its file has {size:,} bytes; copy it again.")
    environment = lmdb.open(
        str(path),
        subdir=path.is_dir(),
        readonly=True,
        lock=False,
        create=False,
        readahead=readahead,
    )
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < needed:  # reading the missing pages of the memory map would kill the process
        environment.close()
        raise OSError(
            f"{path} is cut short: it has {size:,} of at least {needed:,} bytes; copy it again."
        )
    return environment


def _package(name: str) -> ModuleType:
    try:
        import lmdb
    except ImportError as error:
        raise RuntimeError(
            f"{name} is in an LMDB database, and the package that reads it is missing: "
            'pip install "ddgan_fast[lmdb]".'
        ) from error
    return lmdb
