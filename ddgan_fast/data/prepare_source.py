"""The source that ``prepare`` reads: any kind of records, prepared ones included."""

from __future__ import annotations

from pathlib import Path

from ddgan_fast.data.open import open_records
from ddgan_fast.data.records import Records
from ddgan_fast.data.shards import is_shards, open_shards


def open_source(path: Path, kind: str, split: str, lsun_class: str | None, size: int) -> Records:
    """Opens what lies at ``path``; see ``open_records``."""
    if kind == "shards" or (kind == "auto" and is_shards(path)):
        return open_shards(path)
    return open_records(path, kind, split=split, lsun_class=lsun_class, size=size)
