"""A run's fault log: what went wrong, when, and how the run before this one ended."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

NAME = "faults.jsonl"
ENDS = ("signal", "error")
"""The kinds that end a run."""


class FaultLog:
    """Appends to ``faults.jsonl``; the file is made by the first fault.

    Every rank may write: a line is written at once, under a lock.

    Args:
        run_dir: the run's directory.
        rank: that writes.
        say: called with a sentence when a line cannot be written; training goes on.
    """

    def __init__(self, run_dir: Path | str, rank: int, say: Callable[[str], None]) -> None:
        self._path = Path(run_dir) / NAME
        self._rank = rank
        self._say = say

    def add(self, kind: str, step: int, sentence: str, **details: Any) -> None:
        """Record a fault.

        Args:
            kind: one of "skipped" (updates), "sign" (of divergence), "return" (to an earlier
                state), "save" (that failed), "signal", "error" and "resume".
            step: finished steps.
            sentence: what happened.
            details: further plain values.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"step": step, "time": now, "rank": self._rank, "kind": kind, **details}
        line = json.dumps(record | {"sentence": sentence}).encode() + b"\n"
        try:
            self._append(line)
        except OSError as error:
            self._say(f"Could not write to {self._path} ({error.strerror or error}); going on.")

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            # What a machine that went down left of a line must not swallow this one.
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError("the disk is full")
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def read_faults(run_dir: Path | str) -> list[dict[str, Any]]:
    """All records of a run, oldest first; broken lines are left out."""
    path = Path(run_dir) / NAME
    return _records(path.read_bytes()) if path.exists() else []


def previous_end(run_dir: Path | str, step: int, steps: int) -> str:
    """How the run that is resumed ended, as a sentence.

    Args:
        run_dir: its directory, before this run has written to it.
        step: finished steps in the state that is resumed.
        steps: the length that the run was to have.
    """
    for record in reversed(read_faults(run_dir)):
        if record.get("kind") == "resume":
            break
        if record.get("kind") in ENDS:
            return f"It ended at step {record['step']:,}: {record['sentence']}"
    last = max(_last_logged(Path(run_dir) / "log.jsonl"), step)
    if step >= steps:
        return f"It ended as planned, after step {step:,}."
    return (
        f"It ended without a word after step {last:,} or later: it was killed, or the machine went "
        "down."
    )


def _last_logged(path: Path) -> int:
    """The newest step in a log, or 0."""
    try:
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 65_536, 0))
            records = _records(file.read())
    except OSError:
        return 0
    return max((int(record.get("step", 0)) for record in records), default=0)


def _records(data: bytes) -> list[dict[str, Any]]:
    records = []
    for line in data.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
