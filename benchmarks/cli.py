"""``ddgan-fast bench``: time this package, alone or against a baseline."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ddgan_fast.commands import Parser
from ddgan_fast.options import unknown

if TYPE_CHECKING:
    from .runner import Case, Options, Row

CASES = {
    "step": "a training step: both networks updated, R1 weighted by its interval",
    "sample": "new images from noise, all denoising steps",
}
"""The module of each case, whose ``build(options, stack)`` makes it, and what it times."""

OTHERS = {
    "kernels": ("kernel_bench", "the ops alone, every backend, pass and baseline"),
    "loader": ("loader", "CPU time per image of every loader"),
    "scaling": ("scaling", "a step on many GPUs: predicted, nothing is run"),
}
"""Cases with options of their own: module, whose ``main(argv)`` runs it, and what it times."""

BASELINES = ("reference",)

_EPILOG = """\
The providers take turns in one process, after a check that their results agree; without agreement
nothing is timed. Medians and 20th and 80th percentiles over --steps rounds.

`bench --compare OLD.json NEW.json` tells what got faster or slower; with one file, against the
newest committed rows of the same type of machine. With --fail-above 1.1 it can fail a check.

examples:
  ddgan-fast bench step --preset cifar10 --batch 4 --baseline reference --json step.json
  ddgan-fast bench --compare before.json after.json --fail-above 1.1
"""


def main(argv: Sequence[str]) -> int:
    """Check, time, print, and write if asked."""
    if any(word.partition("=")[0] == "--compare" for word in argv):
        from . import compare

        return compare.main(argv)
    named = argv[0] if argv else ""
    if named in OTHERS:
        return importlib.import_module(f".{OTHERS[named][0]}", __package__).main(argv[1:])
    if named and not named.startswith("-") and named not in CASES:
        known = (*CASES, *OTHERS)
        raise ValueError(unknown("case of bench", named, known, f"cases are {', '.join(known)}"))
    arguments = _parse(argv)
    output = Path(arguments.json) if arguments.json else None
    if output is not None and not output.parent.is_dir():
        raise FileNotFoundError(f"--json: there is no folder {output.parent}.")
    import torch

    from ddgan_fast.training.parallel import choose_device

    from . import facts, runner

    before = torch.get_num_threads()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    options = runner.Options(
        arguments.preset,
        arguments.batch,
        device,
        arguments.baseline,
        arguments.precision,
        arguments.engine,
    )
    origin = {
        "machine": facts.machine(device),
        "versions": facts.versions(),
        "command": shlex.join(["ddgan-fast", "bench", *argv]),
        "when": facts.now(),
    }
    try:
        with contextlib.ExitStack() as stack:
            case = _builder(arguments.case)(options, stack)
            rows = runner.run(case, arguments.steps, arguments.warmup)
    finally:
        torch.set_num_threads(before)
    rows = [row | origin for row in rows]
    _print(rows)
    if output is not None:
        facts.write(output, rows)
        print(f"Wrote {output}.")
    return 0


def _builder(case: str) -> Callable[[Options, contextlib.ExitStack], Case]:
    module = importlib.import_module(f".{case}", __package__)
    return cast("Callable[[Options, contextlib.ExitStack], Case]", module.build)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    own = {name: f"{what} (bench {name} --help)" for name, (_, what) in OTHERS.items()}
    cases = "\n".join(f"  {name:<8} {what}" for name, what in (CASES | own).items())
    parser = Parser("bench", f"Time a case:\n\n{cases}", _EPILOG)
    parser.usage = "ddgan-fast bench CASE [options]\n       ddgan-fast bench --compare FILE [FILE]"
    parser.add_argument("case", choices=CASES, metavar="CASE", help=" or ".join(CASES))
    parser.add_argument("--preset", default="cifar10", help="networks to time (default: cifar10)")
    parser.add_argument("--batch", type=int, default=4, help="images per step (default: 4)")
    parser.add_argument("--device", help="cpu, cuda or cuda:0 (default: a GPU if there is one)")
    parser.add_argument(
        "--baseline", choices=BASELINES, help="time this, too: the published training recipe"
    )
    parser.add_argument("--precision", help="ours: fp32, tf32, bf16 or fp16 (default: as trained)")
    parser.add_argument(
        "--engine",
        default="eager",
        help="ours: eager, compile, graph, compile+graph or auto (default: eager)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--steps", type=int, default=20, help="timed rounds (default: 20)")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before that (default: 2)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    arguments = parser.parse_args(argv)
    for name, least in (("batch", 1), ("steps", 1), ("warmup", 0), ("threads", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} is {value}: it must be at least {least}.")
    return arguments


def _print(rows: Sequence[Row]) -> None:
    from ddgan_fast.tables import print_table

    first = rows[0]
    print_table(
        f"{first['case']}: {first['preset']}, batch {first['batch']}, {first['device']}",
        ("provider", "dtype", "ms (median)", "ms (20-80 %)", "img/s"),
        [
            (
                row["provider"],
                row["dtype"],
                f"{row['ms_p50']:g}",
                f"{row['ms_p20']:g} - {row['ms_p80']:g}",
                f"{row['img_s']:g}",
            )
            for row in rows
        ],
    )
    for name, ratio in first.get("speedup", {}).items():
        print(
            f"By the medians {first['provider']} is {ratio['p50']:.2f} times as fast as {name}; "
            f"round by round {ratio['p20']:.2f} - {ratio['p80']:.2f} times (20-80 % of "
            f"{first['rounds']})."
        )
