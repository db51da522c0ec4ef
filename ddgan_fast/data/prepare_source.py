"""The source that ``prepare`` reads: any kind of records, prepared ones included."""

from __future__ import annotations

import re
from pathlib import Path

from ddgan_fast.data.open import open_records
from ddgan_fast.data.records import Records
from ddgan_fast.data.shards import is_shards, open_shards

_OPTION = re.compile(r"(?:--)?\bdata\.(source|split|lsun_class)\b")


def open_source(path: Path, kind: str, split: str, lsun_class: str | None, size: int) -> Records:
    """Opens what lies at ``path``; see ``open_records``."""
    if kind == "shards" or (kind == "auto" and is_shards(path)):
        return open_shards(path)
    try:
        return open_records(path, kind, split=split, lsun_class=lsun_class, size=size)
    except (ValueError, FileNotFoundError) as error:
        # Its messages name the options of training.
        sentence = _OPTION.sub(lambda match: "--" + match[1].replace("_", "-"), str(error))
        raise type(error)(sentence) from error
