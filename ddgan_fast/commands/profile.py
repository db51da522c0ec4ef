"""``ddgan-fast profile``: a training step taken apart."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import Parser

_EPILOG = """\
Takes real training steps, and says where their time and memory go: phases, operators against what
the machine can do, modules, memory, and what could be tried. All options of `train` are known; the
engine is eager unless --run.engine says otherwise, as phases inside a CUDA graph cannot be told
apart. Nothing is trained: the weights are dropped.

examples:
  ddgan-fast profile digits
  ddgan-fast profile cifar10 --run.batch_size 4 --device cpu --steps 3
  ddgan-fast profile celebahq256 --data shards/ --run.micro_batch 32 --json profile.json
"""


def main(argv: Sequence[str]) -> int:
    """Profile, print, and write."""
    parser = Parser("profile", "Take a training step apart.", _EPILOG)
    parser.usage = (
        "ddgan-fast profile PRESET|FILE.yaml [--data PATH]\n"
        "                          [--section.option VALUE ...] [--steps N]\n"
        "                          [--out DIR] [--json FILE] [--device DEVICE]"
    )
    parser.add_argument(
        "--steps", type=int, default=10, help="timed steps of each kind (default: 10)"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="for traces and profile.json (default: runs/profile-PRESET)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the profile there, too")
    own, rest = parser.parse_known_args(argv)
    if own.steps < 1:
        raise ValueError(f"--steps is {own.steps}: it must be at least 1.")
    if own.json and not Path(own.json).parent.is_dir():
        raise FileNotFoundError(f"--json: there is no folder {Path(own.json).parent}.")
    from .train import parse

    if not rest or rest[0].startswith("-"):
        raise ValueError("profile what? Give a preset (`ddgan-fast presets`) or a YAML file first.")
    request = parse(rest)
    if request.dry_run:
        raise ValueError("--dry-run belongs to train: a profile trains nothing anyway.")
    import torch

    from ..benchmarks import facts
    from ..profiling import profile, report
    from ..training.parallel import choose_device

    first = os.environ.get("RANK", "0") == "0"
    cfg = request.config
    out = Path(own.out or f"runs/profile-{cfg.preset}")
    if not first:
        out = out / f"rank-{os.environ['RANK']}"
    say = (lambda text: print(text, flush=True)) if first else (lambda text: None)
    threads = cfg.run.threads or torch.get_num_threads()
    machine = facts.machine(choose_device(request.device)) | {"threads": threads}
    origin = {
        "machine": machine,
        "versions": facts.versions(),
        "command": shlex.join(["ddgan-fast", "profile", *argv]),
        "when": facts.now(),
    }
    found = profile(cfg, out, device=request.device, steps=own.steps, say=say)
    files = [out / "profile.json", *([Path(own.json)] if own.json and first else [])]
    for path in files:
        report.write(path, found, origin)
    if first:
        report.show(found)
        _warn_if_busy(machine)
        print(f"\nWrote {', '.join(map(str, [*files, *found['files']]))}.")
        print("The traces open in https://ui.perfetto.dev or chrome://tracing.")
    return 0


def _warn_if_busy(machine: dict[str, Any]) -> None:
    load, cores = machine.get("load", [0.0])[0], machine["cores"] or 1
    if load > cores:
        print(
            f"  - The machine was busy when this began (load {load:g} on {cores} cores): shares "
            "say more than times."
        )
