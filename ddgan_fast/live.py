"""A run's state for the terminal: progress, courses as little bars, newest faults and metrics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ddgan_fast.run_log import Record, option, points, timesteps, value_of
from ddgan_fast.run_status import Status

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

SHOWN = {
    "D/real": "D's loss, real",
    "D/fake": "D's loss, fake",
    "D0/real": "D0's loss, real",
    "D0/fake": "D0's loss, fake",
    "G/loss": "G's loss",
    "G/x0": "G's loss by D0",
    "D/r1": "R1",
    "D0/r1": "R1 of D0",
    "D/real_acc": "D right, real",
    "D/fake_acc": "D right, fake",
    "D/grad_norm": "gradient norm, D",
    "G/grad_norm": "gradient norm, G",
    "G/ema_distance": "average's distance",
    "img_s": "img/s",
    "wait_share": "waits for data",
}
"""The statistics that are shown, where the run has them, and what they are called."""
SHARES = ("D/real_acc", "D/fake_acc", "wait_share")
BY_TIMESTEP = ("D/real", "D/fake", "G/loss")
BARS = "▁▂▃▄▅▆▇█"
_WIDTH, _NARROW = 40, 14
_FAULTS, _METRICS = 3, 2


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The course of a statistic, oldest first, in so many characters or fewer.

    Neighbours are averaged. "!" stands where a value is no number or infinite.
    """
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [_mean(values[a:b]) for a, b in itertools.pairwise(edges)]
    known = [value for value in means if value is not None]
    if not known:
        return "!" * count
    low, height = min(known), max(known) - min(known)
    return "".join(
        "!" if value is None
        else BARS[0 if height <= 0 else min(int((value - low) / height * len(BARS)), 7)]
        for value in means
    )


def _mean(values: Sequence[float | None]) -> float | None:
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return math.fsum(value for value in values if value is not None) / len(values)


def text_of(name: str, value: float | None) -> str:
    """A statistic's value as it is shown."""
    if value is None:
        return "-"
    if name in SHARES and math.isfinite(value):
        return f"{value:.1%}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.3g}"


def course(log: Sequence[Record], name: str) -> list[float | None]:
    """All values of a statistic, None where a line's is no number at all."""
    return [value_of(record, name) for record in log if name in record]


def summary(status: Status) -> list[tuple[str, ...]]:
    """For printing once: statistic, newest value, and first, lowest and highest of all."""
    rows = []
    for name, called in SHOWN.items():
        finite = [value for _, value in points(status.log, name)]
        if name in _newest(status.log) and finite:
            now = value_of(_newest(status.log), name)
            numbers = (now, finite[0], min(finite), max(finite))
            rows.append((called, *(text_of(name, number) for number in numbers)))
    return rows


def _newest(log: Sequence[Record]) -> Record:
    """The newest value of every statistic: not all of them are in every line."""
    found: Record = {}
    for record in log[-50:]:
        found |= record
    return found


def progress(status: Status) -> str:
    """Steps, share and time left in words."""
    parts = [f"step {status.step:,}"]
    if status.steps:
        share = min(1.0, status.step / status.steps)  # the end may have been moved to the front
        parts = [f"step {status.step:,} of {status.steps:,}", f"{share:.0%}"]
    if status.left:
        parts.append(f"{status.left} left")
    newest = _newest(status.log)
    if (speed := value_of(newest, "img_s")) is not None:
        parts.append(f"{text_of('img_s', speed)} img/s")
    if (wait := value_of(newest, "wait_share")) is not None:
        parts.append(f"waits for data {wait:.1%}")
    return ", ".join(parts)


def title(status: Status, folder: str) -> str:
    """Preset, folder and state."""
    return f"{option(status.config, 'preset') or 'run'} in {folder}: {status.state}"


def news(status: Status) -> list[str]:
    """The newest measurements and faults, a sentence each."""
    lines = []
    for record in status.metrics[-_METRICS:]:
        metrics = record.get("metrics")
        values = metrics.items() if isinstance(metrics, dict) else ()
        told = ", ".join(f"{k} {_number(v)}" for k, v in values if not isinstance(v, dict | list))
        lines.append(f"metrics at step {record['step']:,}: {told}")
    for fault in status.faults[-_FAULTS:]:
        lines.append(f"{fault.get('kind', 'fault')} at step {fault.get('step', '?')}: "
                     f"{fault.get('sentence', '')}")
    return lines


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, int | float) else str(value)


def dashboard(status: Status, folder: str, width: int) -> Group:
    """Everything, for a terminal of so many columns."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    parts: list[RenderableType] = [
        Text(title(status, folder), style="bold"),
        Text(progress(status)),
    ]
    if status.steps:
        parts.append(ProgressBar(total=status.steps, completed=status.step, width=width))
    if status.log:
        parts += [Text(), _statistics(status, width), *_timesteps(status, width)]
    else:
        parts.append(Text("No step is logged yet."))
    for line in news(status):
        parts.append(Text(line))
    return Group(*parts)


def _table() -> Any:
    from rich.table import Table

    return Table(box=None, padding=(0, 2, 0, 0), header_style="dim")


def _statistics(status: Status, width: int) -> Any:
    table = _table()
    table.add_column("", no_wrap=True)
    table.add_column("now", justify="right", no_wrap=True)
    table.add_column("course", no_wrap=True)
    room = max(8, min(_WIDTH, width - 34))
    newest = _newest(status.log)
    for name, called in SHOWN.items():
        if name in newest:
            line = sparkline(course(status.log, name), room)
            table.add_row(called, text_of(name, value_of(newest, name)), line)
    return table


def _timesteps(status: Status, width: int) -> list[Any]:
    """One row per timestep, as many losses side by side as fit."""
    from rich.text import Text

    names = [name for name in BY_TIMESTEP if timesteps(status.log[-50:], name)]
    names = names[: max(1, (width - 5) // (_NARROW + 12))]
    if not names:
        return []
    keys = [timesteps(status.log[-50:], name) for name in names]
    table = _table()
    table.add_column("by t", no_wrap=True)
    for name in names:
        table.add_column(SHOWN[name], justify="right", no_wrap=True)
        table.add_column("", no_wrap=True, min_width=_NARROW)
    newest = _newest(status.log)
    for row in zip(*keys, strict=False):
        cells = [row[0].rpartition("/")[2]]
        for key in row:
            cells += [
                text_of(key, value_of(newest, key)),
                sparkline(course(status.log, key), _NARROW),
            ]
        table.add_row(*cells)
    return [Text(), table]
