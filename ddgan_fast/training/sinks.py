"""Where a run's statistics go: a JSON-lines file, TensorBoard, the terminal."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ddgan_fast.files import atomic_open

if TYPE_CHECKING:
    from ddgan_fast.training.histograms import Histogram

LINE_INTERVAL_S = 10.0
SMOOTHING = 0.7
LOSSES = {
    "D": ("D/real", "D/fake"),
    "D0": ("D0/real", "D0/fake"),
    "G": ("G/loss",),
    "R1": ("D/r1",),
}
"""What the console calls a loss, and the statistics whose sum it is."""

Say = Callable[[str], None]


class LogFile:
    """One JSON object per line; opening drops lines beyond ``start_step`` and broken ones.

    Numbers that JSON has no words for become "nan", "inf" and "-inf", which ``float`` reads.
    """

    def __init__(self, path: Path, start_step: int, say: Say) -> None:
        self._path = path
        self._say = say
        self._open(start_step)

    def _open(self, start_step: int) -> None:
        if self._path.exists():
            old = self._path.read_bytes()
            kept = b"".join(
                line for line in old.splitlines(keepends=True) if _belongs(line, start_step)
            )
            if kept != old:
                with atomic_open(self._path) as file:
                    file.write(kept)
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - open until close()

    def go_back(self, step: int) -> None:
        """Drop the lines beyond ``step``."""
        self._file.close()
        self._open(step)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line at once; when the disk is full, say so and leave the file as it was."""
        line = json.dumps({key: _json_value(value) for key, value in record.items()}) + "\n"
        size = self._file.seek(0, 2)
        try:
            data = line.encode()
            if self._file.write(data) != len(data):
                raise OSError("the disk is full")
        except OSError as error:
            self._file.truncate(size)
            self._say(f"Could not write to {self._path} ({error.strerror or error}); going on.")

    def close(self) -> None:
        self._file.close()


class Board(Protocol):
    """Shows a run in a browser; never raises because of what it cannot show."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def histograms(self, step: int, values: Mapping[str, Histogram]) -> None: ...
    def image(self, name: str, step: int, pixels: np.ndarray) -> None: ...
    def go_back(self, step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files; says so and is silent without the package or when they cannot be written."""

    def __init__(self, folder: Path, start_step: int, say: Say) -> None:
        self._folder = folder
        self._say = say
        self._writer: Any = None
        try:
            self._open(start_step)
        except ImportError as error:
            say(
                f"No TensorBoard events are written ({error}): install tensorboard, or set "
                "run.tensorboard to false."
            )

    def _open(self, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Hides events beyond the step where the run goes on; they come again.
        self._writer = SummaryWriter(str(self._folder), purge_step=start_step + 1)

    def go_back(self, step: int) -> None:
        """Hide the events beyond ``step``."""

        def reopen() -> None:
            self._writer.close()
            self._open(step)

        self._guarded(reopen)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        def write() -> None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

        self._guarded(write)

    def histograms(self, step: int, values: Mapping[str, Histogram]) -> None:
        def write() -> None:
            for name, (counts, edges) in values.items():
                middles = (edges[:-1] + edges[1:]) / 2
                self._writer.add_histogram_raw(
                    name,
                    min=edges[0],
                    max=edges[-1],
                    num=counts.sum(),
                    sum=counts @ middles,
                    sum_squares=counts @ middles**2,
                    bucket_limits=edges[1:].tolist(),
                    bucket_counts=counts.tolist(),
                    global_step=step,
                )

        self._guarded(write)

    def image(self, name: str, step: int, pixels: np.ndarray) -> None:
        layout = "HW" if pixels.ndim == 2 else "HWC"
        self._guarded(lambda: self._writer.add_image(name, pixels, step, dataformats=layout))

    def close(self) -> None:
        self._guarded(lambda: self._writer.close())

    def _guarded(self, action: Callable[[], object]) -> None:
        if self._writer is None:
            return
        try:
            action()
        except OSError as error:
            self._writer = None
            self._say(f"TensorBoard events end here ({error.strerror or error}); going on.")


class Console(Protocol):
    """Shows progress and says things."""

    def update(self, step: int, values: Mapping[str, float]) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


def open_console(total_steps: int, start_step: int, show: bool) -> Console:
    """A bar in a terminal, lines elsewhere, or nothing."""
    if not show:
        return Silence()
    from rich.console import Console as RichConsole

    if sys.stdout.isatty() and not (console := RichConsole()).is_dumb_terminal:
        return Bar(total_steps, start_step, console)
    return Lines(total_steps)


class Silence:
    """No console."""

    def update(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """A plain line at most every LINE_INTERVAL_S seconds, and the last one: for files and CI."""

    def __init__(self, total_steps: int) -> None:
        self._total = total_steps
        self._pace = Pace(total_steps)
        self._due = -math.inf
        self._pending: str | None = None

    def update(self, step: int, values: Mapping[str, float]) -> None:
        figures = _figures(values, self._pace.eta(step, values))
        self._pending = "  ".join([f"step {step:,}/{self._total:,}", *figures])
        if time.monotonic() >= self._due or step >= self._total:
            self._print_pending()

    def say(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        self._print_pending()

    def _print_pending(self) -> None:
        if self._pending is not None:
            print(self._pending, flush=True)
            self._pending = None
            self._due = time.monotonic() + LINE_INTERVAL_S


class Bar:
    """A progress bar at the bottom of the terminal."""

    def __init__(self, total_steps: int, start_step: int, console: Any) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._pace = Pace(total_steps)
        self._bar = RichProgress(
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            expand=True,
            auto_refresh=False,  # a thread that wakes up ten times a second would cost training
        )
        self._task = self._bar.add_task(
            "", total=total_steps, completed=start_step, figures="starting"
        )
        self._bar.start()
        self._bar.refresh()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        figures = _figures(values, self._pace.eta(step, values))
        self._bar.update(self._task, completed=step, figures="  ".join(figures), refresh=True)

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


class Pace:
    """Estimates the time left from a smoothed time per step."""

    def __init__(self, total_steps: int) -> None:
        self._total = total_steps
        self._seconds_per_step: float | None = None

    def eta(self, step: int, values: Mapping[str, float]) -> str:
        """Time left as H:MM:SS, or "?" before anything was measured."""
        if (new := values.get("sec_per_step")) is not None:
            old = new if self._seconds_per_step is None else self._seconds_per_step
            self._seconds_per_step = SMOOTHING * old + (1 - SMOOTHING) * new
        if self._seconds_per_step is None:
            return "?"
        left = round(max(self._total - step, 0) * self._seconds_per_step)
        days, seconds = divmod(left, 86_400)
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        return f"{days} d {clock}" if days else clock


def _figures(values: Mapping[str, float], eta: str) -> list[str]:
    """Speed, time left, losses and the share of time spent waiting for data, as far as known."""
    figures = []
    if (speed := values.get("img_s")) is not None:
        figures.append(f"{speed:,.0f} img/s" if speed >= 100 else f"{speed:.3g} img/s")
    figures.append(f"ETA {eta}")  # before what a narrow terminal may cut off
    for label, names in LOSSES.items():
        if known := [values[name] for name in names if name in values]:
            figures.append(f"{label} {sum(known):.3g}")
    if (wait := values.get("wait_share")) is not None:
        figures.append(f"data {wait:.0%}")
    return figures


def _belongs(line: bytes, start_step: int) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        return json.loads(line)["step"] <= start_step
    except (ValueError, TypeError, KeyError):
        return False


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value
