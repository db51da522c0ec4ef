"""How far ``prepare`` is: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

_LINE_EVERY_S = 15.0


class Meter:
    """Shows images done, images per second and the time left, on standard error.

    Args:
        total: Images in all.
        done: Images that an earlier run has done.
        verb: What is going on.
    """

    def __init__(self, total: int, done: int = 0, verb: str = "preparing") -> None:
        self._verb = verb
        self._total, self._before, self._done = total, done, done
        self._began = self._spoke = time.monotonic()
        self._bar: Any = None

    def advance(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, figures=self._figures())
        elif time.monotonic() - self._spoke >= _LINE_EVERY_S:
            self._spoke = time.monotonic()
            far = f"{self._done:,} of {self._total:,} images"
            print(f"{self._verb}: {far}, {self._figures()} left", file=sys.stderr, flush=True)

    def speed(self) -> float:
        """Images per second of this run."""
        return (self._done - self._before) / max(time.monotonic() - self._began, 1e-9)

    def __enter__(self) -> Meter:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn(self._verb),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]} left"),
                console=Console(stderr=True),
                transient=True,
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "", total=self._total, completed=self._done, figures="? img/s, ?"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _figures(self) -> str:
        if self._done == self._before:
            return "? img/s, ?"
        speed = self.speed()
        return f"{speed:,.0f} img/s, {clock((self._total - self._done) / speed)}"


def clock(seconds: float) -> str:
    """H:MM:SS."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
