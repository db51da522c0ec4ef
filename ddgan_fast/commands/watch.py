"""``ddgan-fast watch``: a run in the terminal, live."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import Parser

if TYPE_CHECKING:
    from ..run_status import Watcher

_EPILOG = """\
Follows a run until it ends, or until Ctrl-C, which leaves the run alone. Of a run that has ended,
and where the output is no terminal, the state is printed once.

example:
  ddgan-fast watch runs/digits
"""


def main(argv: Sequence[str]) -> int:
    """Show or follow."""
    from ..run_status import Watcher

    arguments = _parse(argv)
    watcher = Watcher(Path(arguments.run))
    if not sys.stdout.isatty():
        _print(watcher, arguments.run)
        return 0
    with contextlib.suppress(KeyboardInterrupt):
        _follow(watcher, arguments.run, arguments.every, arguments.once)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("watch", "Follow a run in the terminal.", _EPILOG)
    parser.add_argument("run", metavar="RUN", help="run directory, such as runs/digits")
    parser.add_argument(
        "--every", type=float, default=1.0, metavar="S", help="seconds between looks (default: 1)"
    )
    parser.add_argument("--once", action="store_true", help="show the state and end")
    arguments = parser.parse_args(argv)
    if not 0.05 <= arguments.every <= 3600:
        raise ValueError(f"--every is {arguments.every:g}: it must be from 0.05 to 3600 seconds.")
    return arguments


def _print(watcher: Watcher, folder: str) -> None:
    """The state as plain text."""
    from ..live import news, progress, summary, title
    from ..tables import print_table

    status = watcher.look()
    print(title(status, folder))
    print(progress(status))
    if rows := summary(status):
        print_table("Statistics", ("", "now", "first", "lowest", "highest"), rows)
    for line in news(status):
        print(line)


def _follow(watcher: Watcher, folder: str, every: float, once: bool) -> None:
    """The dashboard, renewed until the run ends; the last state stays on the screen."""
    from rich.console import Console
    from rich.live import Live

    from ..live import dashboard

    console = Console(highlight=False)
    if not console.encoding.lower().startswith("utf"):  # it could not show the bars
        _print(watcher, folder)
        return
    status = watcher.look()
    follow = status.running and not once
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        live.update(dashboard(status, folder, console.width), refresh=True)
        while follow:
            time.sleep(every)
            status = watcher.look()
            follow = status.running
            live.update(dashboard(status, folder, console.width), refresh=True)
