"""Indexes of large sources, kept in the user's cache folder so that they are made only once."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.files import atomic_open

_VERSION = 1


class CachedIndex:
    """The place of the index of one file as it is now; whatever changes the file gives another.

    Args:
        kind: What the index is of; another kind has another place.
        path: The file.
    """

    def __init__(self, kind: str, path: Path) -> None:
        status = os.stat(path)
        # The time of the last change of any kind, too, because copies often keep the other one.
        times = f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino} {status.st_size}"
        facts = f"{_VERSION} {kind} {os.path.realpath(path)} {times}"
        name = hashlib.sha256(os.fsencode(facts)).hexdigest()[:32]
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self.path = Path(home) / "ddgan_fast" / "index" / f"{name}.npz"

    def load(self, *names: str) -> list[NDArray] | None:
        """The arrays that were saved, or None where there are none that can be read."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                return [file[name] for name in names]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, **arrays: NDArray) -> None:
        """Keeps the arrays, where that is possible; otherwise it only costs time."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_open(self.path) as file:
                np.savez(file, allow_pickle=False, **arrays)
        except OSError:
            pass
