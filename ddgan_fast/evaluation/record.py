"""What an evaluation leaves behind: one JSON line with all that is needed to repeat it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddgan_fast import __version__
from ddgan_fast.files import atomic_open


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Of everything that numbers depend on."""
    return {
        "ddgan_fast": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to a JSON-lines file in one write; a line that was cut short stays by itself.

    Raises:
        OSError: the file cannot be written; it is then as it was.
    """
    line = (to_json(record) + "\n").encode()
    with open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        try:
            if file.write(line) != len(line):
                raise OSError(f"{path}: the disk is full.")
        except OSError:
            file.truncate(size)
            raise


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record as a JSON file, which appears when it is complete.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        file.write((to_json(record, 2) + "\n").encode())


def to_json(record: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON in which numbers that it has no words for are text such as "nan"."""
    return json.dumps(_plain(record), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
