"""Diagrams: losses of a run, lines over bands. They need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddgan_fast import run_log
from ddgan_fast.files import atomic_open

_CURVES = {
    "D on real": "D/real",
    "D on fake": "D/fake",
    "G": "G/loss",
    "R1 (before gamma/2)": "D/r1",
}


def loss_curve(log_path: Path | str, out_path: Path | str) -> None:
    """Draw the losses over the steps from a run's log.jsonl as a PNG.

    Raises:
        FileNotFoundError: there is no such log.
        ValueError: the log has no line with a loss.
        RuntimeError: matplotlib is missing.
    """
    log_path = Path(log_path)
    if not log_path.is_file():
        raise FileNotFoundError(f"there is no log {log_path}")
    records = run_log.read_records(log_path)
    curves = {label: run_log.points(records, name) for label, name in _CURVES.items()}
    curves = {label: points for label, points in curves.items() if points}
    if not curves:
        raise ValueError(f"{log_path} holds no losses yet: train for at least one tick")
    figure = new_figure(width=8, height=4.5)
    axes = figure.add_subplot()
    for label, points in curves.items():
        if label.startswith("R1"):
            # The penalty spans orders of magnitude and has an axis of its own.
            right = axes.twinx()
            right.plot(*zip(*points, strict=True), color="0.6", linewidth=1, zorder=0)
            right.set_yscale("log")
            right.set_ylabel(label, color="0.4")
        else:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.12), frameon=False)
    save_figure(figure, out_path)


def bands(
    panels: Mapping[str, tuple[Any, tuple[Any, Any], Any]],
    out_path: Path | str,
    *,
    band: str,
    line: str,
) -> None:
    """Draw one panel per name: a line over a band, as a PNG.

    Args:
        panels: name -> (x [n], (lower [n], upper [n]), line [n]).
        out_path: the picture.
        band: what the band is.
        line: what the line is.

    Raises:
        RuntimeError: matplotlib is missing.
    """
    figure = new_figure(width=4 * len(panels), height=3.4)
    for number, (name, (x, (lower, upper), values)) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        axes.fill_between(x, lower, upper, alpha=0.25, label=band)
        axes.plot(x, values, linewidth=1.4, label=line)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if number == 0:
            axes.legend(frameon=False, fontsize=8)
    save_figure(figure, out_path)


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, at 120 pixels each.

    Raises:
        RuntimeError: matplotlib is missing.
    """
    try:
        # Not pyplot: it would choose a window system for the whole process.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError(
            "drawing diagrams needs matplotlib: pip install 'ddgan_fast[demo]'"
        ) from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save_figure(figure: Any, out_path: Path | str) -> None:
    """Write a figure as a PNG, which appears when it is complete."""
    out_path = Path(out_path)
    out_path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(out_path) as file:
        figure.savefig(file, format="png")
