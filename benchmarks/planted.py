"""Does the profiler name what slows a step down? Slow-downs planted on purpose, and its hints.

``python -m benchmarks.planted --measure`` profiles a preset as it is, then with each slow-down, and
writes results/planted-cpu.json; without ``--measure`` the table of docs/profiling.md is written
anew from that file.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ddgan_fast import tables
from ddgan_fast.config import load_config
from ddgan_fast.data.torch_loader import Batch, Loader
from ddgan_fast.profiling import profile
from ddgan_fast.profiling.phases import PASS, WAIT
from ddgan_fast.training.steps import DiscriminatorLoss

from . import facts, readme
from .cpu_tables import RESULTS, machine_of, rows_of

DOC = readme.README.parent / "docs" / "profiling.md"
BEGIN = "<!-- written by `python -m benchmarks.planted` -->"
END = "<!-- end of the planted slow-downs -->"
FILE = RESULTS / "planted-cpu.json"
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {},
    "cifar10": {"run.batch_size": 2},
}
SLEEP_S = 0.5

Row = dict[str, Any]


@contextlib.contextmanager
def sleep_in_loader() -> Iterator[None]:
    """Every batch comes late."""
    take = Loader.__next__

    def late(self: Loader) -> Batch:
        time.sleep(SLEEP_S)
        return take(self)

    with mock.patch.object(Loader, "__next__", late):
        yield


@contextlib.contextmanager
def extra_pass() -> Iterator[None]:
    """The discriminator sees the fake once more than it must."""
    forward = DiscriminatorLoss.forward

    def wasteful(
        self: DiscriminatorLoss, x_t: Any, x_next: Any, t: Any, fake_x_t: Any, *rest: Any
    ) -> Any:
        result = forward(self, x_t, x_next, t, fake_x_t, *rest)
        with torch.no_grad():
            self.discriminator(fake_x_t, t, x_next)
        return result

    with mock.patch.object(DiscriminatorLoss, "forward", wasteful):
        yield


PLANTS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "nothing": contextlib.nullcontext,
    f"a sleep of {1e3 * SLEEP_S:.0f} ms in the loader": sleep_in_loader,
    "one more pass through D": extra_pass,
}
_NAMED = (" data wait (", "pass(es) too many")
"""What the hints about the plants say."""


def measure(preset: str, plant: str, steps: int) -> Row:
    """The row of one profile."""
    options = PRESETS[preset] | {"run.threads": 1}
    cfg = load_config(preset, options)
    with PLANTS[plant](), tempfile.TemporaryDirectory(prefix="ddgan-planted-") as folder:
        found = profile(cfg, Path(folder), device="cpu", steps=steps)
    passes = [p for p in found["phases"] if p["phase"].startswith(PASS)]
    return {
        "case": "planted",
        "preset": preset,
        "variant": plant,
        "batch": cfg.run.batch_size,
        **found["step"],
        "sum_over_step": found["sum_over_step"],
        "data_wait_ms": next(p["ms"] for p in found["phases"] if p["phase"] == WAIT),
        "d_passes_ms": sum(p["ms"] for p in passes),
        "hints": found["hints"],
        "machine": facts.machine(torch.device("cpu")) | {"threads": 1},
        "versions": facts.versions(),
        "command": "python -m benchmarks.planted --measure",
        "when": facts.now(),
    }


def named(row: Row) -> str:
    """What the hints say of a plant, and at which place."""
    for place, hint in enumerate(row["hints"], 1):
        if any(words in hint for words in _NAMED):
            return f"{place}. {hint}"
    return "nothing of the kind"


def written() -> str:
    """The table in Markdown, with its conditions."""
    rows = rows_of(FILE)
    header = ["preset", "planted", "ms per step", "phases together", "the hints say"]
    lines = [
        [
            f"`{row['preset']}`, batch {row['batch']}",
            row["variant"],
            f"{row['ms_p50']:,.0f}",
            f"{row['sum_over_step']:.1%}",
            named(row),
        ]
        for row in rows
    ]
    load = max(row["machine"]["load"][0] for row in rows)
    return tables.markdown(header, lines) + (
        f"\n{machine_of(rows[0])}, one thread, load at most {load:g}. Command: "
        f"`{rows[0]['command']}`.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure if asked, then write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="profile anew")
    arguments = parser.parse_args(argv)
    if arguments.measure:
        threads = torch.get_num_threads()
        rows = [
            measure(preset, plant, 20 if preset == "digits" else 3)
            for preset in PRESETS
            for plant in PLANTS
        ]
        torch.set_num_threads(threads)
        facts.write(FILE, rows)
    readme.write(BEGIN, END, written(), DOC)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
