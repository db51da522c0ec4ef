"""Where a run's statistics go: a JSON-lines file, TensorBoard, the terminal."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ddgan_fast.files import atomic_open

LINE_INTERVAL_S = 10.0
SMOOTHING = 0.7

Say = Callable[[str], None]


class LogFile:
    """One JSON object per line; opening drops lines beyond ``start_step`` and broken ones.

    Numbers that JSON has no words for are written as "nan", "inf" and "-inf", which ``float`` reads.
    """

    def __init__(self, path: Path, start_step: int, say: Say) -> None:
        self._path = path
        self._say = say
        if path.exists():
            old = path.read_bytes()
            kept = b"".join(
                line for line in old.splitlines(keepends=True) if _belongs(line, start_step)
            )
            if kept != old:
                with atomic_open(path) as file:
                    file.write(kept)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - stays open until close()

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


class TensorBoard:
    """Event files; without the package, or when they cannot be written, it says so and is silent."""

    def __init__(self, folder: Path, start_step: int, say: Say) -> None:
        self._say = say
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            say(
                f"No TensorBoard events are written ({error}): install tensorboard, or set "
                "run.tensorboard to false."
            )
            return
        # Hides events beyond the step where the run goes on; they come again.
        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        def write() -> None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

        self._guarded(write)

    def image(self, name: str, step: int, image: Path | str | np.ndarray) -> None:
        if not isinstance(image, np.ndarray):
            from PIL import Image

            with Image.open(image) as opened:
                image = np.asarray(opened)
        pixels = image
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


class Progress(NamedTuple):
    """What the console shows of a tick."""

    step: int
    steps: int
    """Steps since the last tick."""
    seconds: float
    """Wall time of these steps; 0 when it was not measured."""
    values: Mapping[str, float]


class Console(Protocol):
    """Shows progress and says things."""

    def update(self, progress: Progress) -> None: ...
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

    def update(self, progress: Progress) -> None:
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

    def update(self, progress: Progress) -> None:
        step, eta = progress.step, self._pace.eta(progress)
        self._pending = "  ".join(
            [f"step {step:,}/{self._total:,}", *_figures(progress.values), f"ETA {eta}"]
        )
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

    def update(self, progress: Progress) -> None:
        figures = [*_figures(progress.values), self._pace.eta(progress)]
        self._bar.update(
            self._task, completed=progress.step, figures="  ".join(figures), refresh=True
        )

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


class Pace:
    """Estimates the time left from a smoothed time per step."""

    def __init__(self, total_steps: int) -> None:
        self._total = total_steps
        self._seconds_per_step: float | None = None

    def eta(self, progress: Progress) -> str:
        """Time left as H:MM:SS, or "?" before anything was measured."""
        if progress.seconds > 0:
            new = progress.seconds / progress.steps
            old = new if self._seconds_per_step is None else self._seconds_per_step
            self._seconds_per_step = SMOOTHING * old + (1 - SMOOTHING) * new
        if self._seconds_per_step is None:
            return "?"
        left = round(max(self._total - progress.step, 0) * self._seconds_per_step)
        days, seconds = divmod(left, 86_400)
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        return f"{days} d {clock}" if days else clock


def _figures(values: Mapping[str, float]) -> list[str]:
    """Speed, losses and the share of time spent waiting for data."""
    figures = []
    if math.isfinite(speed := values.get("img_s", math.nan)):
        figures.append(f"{speed:,.0f} img/s" if speed >= 100 else f"{speed:.3g} img/s")
    losses = {
        "D": values.get("D/loss", values.get("D/real", math.nan) + values.get("D/fake", math.nan)),
        "G": values.get("G/loss"),
        "R1": values.get("D/r1"),
    }
    figures += [f"{name} {loss:.3g}" for name, loss in losses.items() if loss is not None]
    if math.isfinite(wait := values.get("wait_share", math.nan)):
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
