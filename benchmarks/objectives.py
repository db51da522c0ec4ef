"""What other objectives change: small trainings on a CPU, and the table of docs/objectives.md.

``python -m benchmarks.objectives --measure`` trains and evaluates what results/objectives-cpu.json
lacks; without ``--measure`` the table is written anew from that file.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddgan_fast import cli, tables
from ddgan_fast.config import load_config
from ddgan_fast.files import atomic_open

from . import facts, readme

DOC = readme.README.parent / "docs" / "objectives.md"
RESULTS = Path(__file__).resolve().parent / "results" / "objectives-cpu.json"
BEGIN = "<!-- written by `python -m benchmarks.objectives` -->"
END = "<!-- end of the table of objectives -->"
OBJECTIVES = {
    "DDGAN": [],
    "+ D0": ["--loss.x0_weight", "1"],
    "+ 0.1 D0": ["--loss.x0_weight", "0.1"],
    "+ l1": ["--loss.terms", "{l1: 0.3}"],
}
SEEDS = {"digits": (1024, 1), "gaussians25": (1024,)}
EVALUATE = {
    "digits": ["--extractor", "digits", "--metrics", "fid,pr,modes", "-n", "5000"],
    "gaussians25": ["--metrics", "modes"],
}
# Columns: what evaluate calls a number, its title, and how it is written.
COLUMNS = {
    "fd_digits": ("Fréchet distance", "{:.1f}"),
    "precision_digits": ("precision", "{:.3f}"),
    "recall_digits": ("recall", "{:.3f}"),
    "modes": ("modes", "{:.0f}"),
    "kl": ("KL to uniform", "{:.3f}"),
    "near": ("near a mode", "{:.1%}"),
}

Row = dict[str, Any]


def measure(preset: str, objective: str, seed: int) -> Row:
    """Train and evaluate one of them; the row says by which commands."""
    with tempfile.TemporaryDirectory(prefix="ddgan-objectives-") as folder:
        run_dir = str(Path(folder, "run"))
        train = ["train", preset, "--run.seed", str(seed), *OBJECTIVES[objective]]
        evaluate = ["evaluate", "RUN", *EVALUATE[preset], "--time-batches", "none"]
        quiet = ["--run.sample_every", "0", "--run.tensorboard", "false", "--device", "cpu"]
        ours = ["--run.dir", run_dir, *quiet]
        for command in ([*train, *ours], [run_dir if w == "RUN" else w for w in evaluate]):
            if cli.main(command):
                raise RuntimeError(f"this failed: ddgan-fast {shlex.join(command)}")
        steps = load_config(preset).run.steps
        line = json.loads(Path(run_dir, "metrics.jsonl").read_text().splitlines()[-1])
    if line["step"] != steps:
        raise RuntimeError(f"a signal stopped this run after {line['step']} of {steps} steps")
    return {
        "preset": preset,
        "objective": objective,
        "seed": seed,
        "step": line["step"],
        "metrics": line["metrics"],
        "commands": [
            f"ddgan-fast {shlex.join([*train, '--run.dir', 'RUN'])}",
            f"ddgan-fast {shlex.join(evaluate)}",
        ],
    }


def table(rows: Sequence[Row]) -> str:
    """One table per preset, in Markdown."""
    parts = []
    for preset in SEEDS:
        chosen = [row for row in rows if row["preset"] == preset]
        if not chosen:
            continue
        names = [name for name in COLUMNS if any(name in row["metrics"] for row in chosen)]
        lines = [
            [row["objective"], str(row["seed"])]
            + [COLUMNS[name][1].format(row["metrics"][name]) for name in names]
            for objective in OBJECTIVES
            for row in chosen
            if row["objective"] == objective
        ]
        header = ["objective", "seed", *(COLUMNS[name][0] for name in names)]
        title = f"`{preset}`, {chosen[0]['step']:,} steps:"
        parts.append(f"{title}\n\n{tables.markdown(header, lines)}")
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure if asked, then write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="train what the results lack")
    parser.add_argument("--only", help="such as digits,DDGAN,1024")
    arguments = parser.parse_args(argv)
    wanted = [(p, o, s) for o in OBJECTIVES for p in SEEDS for s in SEEDS[p]]
    for preset, objective, seed in wanted if arguments.measure else []:
        found = [(r["preset"], r["objective"], r["seed"]) for r in load()["rows"]]
        key = (preset, objective, seed)
        if key in found or arguments.only not in (None, ",".join(map(str, key))):
            continue
        row = measure(preset, objective, seed)
        content = load()  # another process may have added rows meanwhile
        content["rows"].append(row)
        with atomic_open(RESULTS) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
    readme.write(BEGIN, END, table(load()["rows"]), DOC)
    return 0


def load() -> dict[str, Any]:
    """The results so far."""
    if RESULTS.exists():
        return json.loads(RESULTS.read_text())
    return {
        "command": "python -m benchmarks.objectives --measure",
        "machine": facts.machine(torch.device("cpu")),
        "versions": facts.versions(),
        "rows": [],
    }


if __name__ == "__main__":
    raise SystemExit(main())
