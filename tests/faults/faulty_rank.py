"""One rank of a run with a fault: ``faulty_rank.py CONFIG.yaml [WHAT WHO PHASE STEP MARKER]``.

The fault strikes when rank WHO enters a phase of a step, and only once: a file MARKER.RANK is made
first. With WHO "all" it strikes every rank, each one step later than the one before. WHAT is
"sleep" or a signal's name, which the process sends to itself. In CONFIG, {rank} stands for the
rank.
"""

import os
import signal
import sys
import time
from pathlib import Path

from ddgan_fast import cli
from ddgan_fast.training.watchdog import Watchdog


def plant(what: str, who: str, phase: str, step: str, marker: str) -> None:
    """Make the fault wait for its moment."""
    rank = os.environ.get("RANK", "0")
    if who not in (rank, "all"):
        return
    moment = phase, int(step) + (int(rank) if who == "all" else 0)
    enter = Watchdog.enter
    struck = Path(f"{marker}.{rank}")

    def strike(self: Watchdog, name: str, at: int | None = None) -> None:
        enter(self, name, at)
        if self._now == moment and not struck.exists():
            struck.touch()
            if what == "sleep":
                time.sleep(3600)
            os.kill(os.getpid(), signal.Signals[what])

    Watchdog.enter = strike


def main(config: str, *fault: str) -> int:
    """Train; returns the exit code of the command line."""
    if fault:
        plant(*fault)
    config = config.replace("{rank}", os.environ.get("RANK", "0"))
    return cli.main(["train", config, "--device", "cpu"])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
