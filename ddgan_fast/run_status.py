"""Where a run stands, from its directory alone: progress, state, newest faults and metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddgan_fast.run_log import (
    CONFIG,
    LOG,
    METRICS,
    Follower,
    Record,
    option,
    read_config,
    read_records,
    value_of,
)
from ddgan_fast.training.faults import ENDS, read_faults
from ddgan_fast.training.sinks import Pace

QUIET_S, QUIET_TICKS = 120.0, 10
"""Without a word for so long, and for the time of so many ticks, a run counts as ended."""
STARTING_S = 900.0
"""The first tick may wait for a compiler."""


@dataclass
class Status:
    """A run at one moment.

    Attributes:
        running: whether more is to be expected.
        state: the same as a sentence.
        step: finished steps.
        steps: planned ones, or None.
        left: time left as text, "" where it makes no sense.
        config: the run's.
        log: its lines.
        metrics: the measurements, oldest first.
        faults: what went wrong, oldest first.
    """

    running: bool
    state: str
    step: int
    steps: int | None
    left: str
    config: dict[str, Any]
    log: list[Record]
    metrics: list[Record] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)


class Watcher:
    """Looks at a run directory again and again.

    Args:
        run_dir: the directory.

    Raises:
        FileNotFoundError: there is none, or it holds no run.
    """

    def __init__(self, run_dir: Path) -> None:
        if not run_dir.is_dir():
            raise FileNotFoundError(
                f"there is no folder {run_dir}: give a run directory, such as runs/digits."
            )
        if not ((run_dir / LOG).is_file() or (run_dir / CONFIG).is_file()):
            raise FileNotFoundError(
                f"{run_dir} is no run directory: it holds neither {LOG} nor {CONFIG}."
            )
        self._dir = run_dir
        self._log = Follower(run_dir / LOG)

    def look(self) -> Status:
        """The run as it is now."""
        self._log.look()
        records = self._log.records
        config = read_config(self._dir)
        planned = option(config, "run.steps")
        steps = planned if isinstance(planned, int) else None
        step = records[-1]["step"] if records else 0
        faults = read_faults(self._dir)
        running, state = self._state(step, steps, faults)
        left = ""
        if running and steps is not None and records:
            left = _time_left(records, steps)
        metrics = read_records(self._dir / METRICS)
        return Status(running, state, step, steps, left, config, records, metrics, faults)

    def _state(
        self, step: int, steps: int | None, faults: list[dict[str, Any]]
    ) -> tuple[bool, str]:
        done = steps is not None and step >= steps
        if is_locked(self._dir / ".lock"):
            return True, "finishing" if done else "training" if step else "starting"
        if done:
            return False, "finished"
        ends = [fault for fault in faults if fault.get("kind") in (*ENDS, "resume")]
        if ends and ends[-1]["kind"] in ENDS:
            return False, f"ended: {ends[-1].get('sentence', '')}"
        # A run on another machine holds its lock there.
        quiet = time.time() - self._newest()
        if quiet > self._patience():
            minutes = round(quiet / 60)
            return False, f"no word for {minutes:,} min: it was killed, or waits for something"
        return True, "training" if step else "starting"

    def _newest(self) -> float:
        paths = [self._dir / LOG, self._dir / CONFIG]
        return max(path.stat().st_mtime for path in paths if path.exists())

    def _patience(self) -> float:
        records = self._log.records
        if len(records) < 2:
            return STARTING_S
        ticks = records[-1]["step"] - records[-2]["step"]
        seconds = value_of(records[-1], "sec_per_step") or 0.0
        return max(QUIET_S, QUIET_TICKS * ticks * seconds)


def _time_left(records: list[Record], steps: int) -> str:
    pace, left = Pace(steps), ""
    for record in records[-20:]:
        known = value_of(record, "sec_per_step")
        left = pace.eta(record["step"], {} if known is None else {"sec_per_step": known})
    return left


def is_locked(path: Path, table: Path = Path("/proc/locks")) -> bool:
    """Whether a process of this machine holds a lock on a file, without touching the lock.

    Args:
        path: the file.
        table: the kernel's list of locks, as on Linux; elsewhere nothing is known to be locked.
    """
    try:
        inode = path.stat().st_ino
        lines = table.read_text().splitlines()
    except OSError:
        return False
    # File systems have numbers of their own there, so the file's alone must do.
    held = (line.split() for line in lines if "->" not in line)
    return any(len(words) > 5 and words[5].endswith(f":{inode}") for words in held)
