"""How long a checkpoint holds up training: written at once, and by the writer's thread.

python -m benchmarks.checkpointing --preset celebahq256 --dir /tmp/checkpoints
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ddgan_fast.config import load_config
from ddgan_fast.training.checkpoint import save_ema, save_state
from ddgan_fast.training.engine import Engine
from ddgan_fast.training.parallel import Ranks, choose_device
from ddgan_fast.training.writer import CheckpointWriter


def content_of(preset: str, device: torch.device) -> dict[str, Any]:
    """What a run of the preset saves: weights, averages and moments."""
    cfg = load_config(preset, {"run.engine": "eager"})
    engine = Engine(cfg, Ranks(0, 1, device), torch.arange(1, device=device))
    for optimizer in engine.optimizers.values():
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad()
    engine.ema.update(0)
    return engine.payload("none")


def at_once(folder: Path, content: dict[str, Any], rounds: int) -> list[float]:
    """Seconds of each checkpoint that the training thread writes itself."""
    times = []
    for step in range(rounds):
        began = time.perf_counter()
        save_ema(folder, step, content["ema"], content["config"])
        save_state(folder, step, content, keep=3)
        times.append(time.perf_counter() - began)
    return times


def beside(folder: Path, content: dict[str, Any], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds in ``save``, and the longest time per checkpoint that another thread stood still."""
    times, gaps = [], []
    device = content["ema"][next(iter(content["ema"]))].device
    with CheckpointWriter(folder, 3, 0, device) as writer:
        writer.reserve(content)
        for step in range(rounds):
            began = time.perf_counter()
            writer.save(step, content)
            last = time.perf_counter()
            times.append(last - began)
            longest = 0.0
            while writer._pending is not None and not writer._pending.done():
                time.sleep(0.0005)
                now = time.perf_counter()
                longest, last = max(longest, now - last), now
            gaps.append(longest)
    return times, gaps


def main() -> None:
    """Print medians of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="celebahq256")
    parser.add_argument("--dir", type=Path, required=True, help="on the disk to write to")
    parser.add_argument("--device")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content = content_of(arguments.preset, choose_device(arguments.device))
    folder = arguments.dir / "checkpointing"
    try:
        alone = at_once(folder, content, arguments.rounds)
        times, gaps = beside(folder, content, arguments.rounds)
        size = next(folder.glob("state-*.pt")).stat().st_size
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"state of {size / 1e6:,.0f} MB; medians of {arguments.rounds}, ms:")
    print(f"  written at once, training waits  {1e3 * statistics.median(alone):,.0f}")
    print(f"  written beside, training waits   {1e3 * statistics.median(times):,.0f}")
    print(f"  longest halt of a busy thread    {1e3 * statistics.median(gaps):,.0f}")


if __name__ == "__main__":
    main()
