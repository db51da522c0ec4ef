"""The source that ``prepare`` reads, from where the command line says it lies."""

from __future__ import annotations

from pathlib import Path

from ddgan_fast.data.records import Records
from ddgan_fast.data.shards import is_shards, open_shards
from ddgan_fast.data.sources import list_images


class _Folder(Records):
    kind = "folder"

    def __init__(self, path: Path) -> None:
        import hashlib

        from ddgan_fast.data.sources import _classes

        self.path = path
        self.files = list_images(path)
        names, self.labels = _classes([name for name, _ in self.files])
        self.class_names = tuple(names)
        self.fingerprint = hashlib.sha256(repr(self.files).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        return str(self.path / self.files[i][0])

    def read(self, i: int) -> bytes:
        return (self.path / self.files[i][0]).read_bytes()


def open_source(path: Path, kind: str, split: str, lsun_class: str | None, size: int) -> Records:
    """Opens a source of any kind, a prepared set included."""
    if kind in ("auto", "shards") and is_shards(path):
        return open_shards(path)
    try:
        from ddgan_fast.data.open import open_records
    except ModuleNotFoundError:
        return _Folder(path)
    return open_records(path, kind, split=split, lsun_class=lsun_class, size=size)
