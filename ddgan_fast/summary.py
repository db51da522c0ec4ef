"""What a run would be, found without data, weights or a device: sizes, costs and choices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .config import Config, to_dict
from .doctor import kernel_lines
from .models import build_networks
from .options import to_yaml
from .tables import align
from .training.checkpoint import list_states, step_of
from .training.engine import micro_count
from .training.footprint import Memory, estimate_memory
from .training.memory import available_bytes, estimated_micro_batch
from .training.precision import Precision


def dry_run(cfg: Config, device: str | None = None, world: int = 1) -> str:
    """The text of ``--dry-run``: a YAML file of the configuration, the rest as its comments.

    Args:
        cfg: the configuration.
        device: as for training; it decides the precision.
        world: number of ranks.

    Raises:
        ValueError: no such device, or a batch that the ranks cannot share.
    """
    from .flops import training_flops
    from .training.parallel import choose_device

    if cfg.run.batch_size % world:
        raise ValueError(
            f"run.batch_size is {cfg.run.batch_size}: {world} ranks cannot share it evenly; choose "
            f"a multiple of {world}."
        )
    chosen = choose_device(device)
    local = cfg.run.batch_size // world
    precision = Precision.choose(cfg.run.precision, chosen.type).name
    micro = _micro_batch(cfg, local, precision, chosen)
    memory = estimate_memory(cfg, micro, precision, local // micro)
    sections = [
        _networks(cfg),
        _costs(training_flops(cfg)),
        _memory_lines(cfg, memory, micro, precision, chosen.type),
        ["Kernels", *kernel_lines()],
        [f"Run directory: {_run_directory(cfg)}", "Nothing was trained or written."],
    ]
    comments = "\n#\n".join("\n".join(f"# {line}" for line in lines) for lines in sections)
    return f"{to_yaml(to_dict(cfg))}\n{comments}"


def _micro_batch(cfg: Config, local: int, precision: str, device: torch.device) -> int:
    asked = cfg.run.micro_batch
    if asked == "auto":
        return estimated_micro_batch(cfg, local, precision, available_bytes(device))
    return local // micro_count(local, asked)


def parameter_counts(cfg: Config) -> dict[str, int]:
    """Numbers of parameters of the networks that a run trains, by name."""
    with torch.device("meta"):
        networks = build_networks(cfg)
    return {name: sum(p.numel() for p in n.parameters()) for name, n in networks.items()}


def _networks(cfg: Config) -> list[str]:
    rows = [(name, f"{count:,}") for name, count in parameter_counts(cfg).items()]
    return ["Parameters", *align(rows)]


def _costs(flops: dict[str, Any]) -> list[str]:
    names = {
        "generator_forward": "generator forward",
        "discriminator_forward": "discriminator forward",
        "r1": "one application of R1",
        "training_image": "training" + (", R1 at its interval" if "r1" in flops else ""),
    }
    known = [(key, label) for key, label in names.items() if key in flops]
    rows = [(label, f"{flops[key] / 1e9:,.4g} GFLOP") for key, label in known]
    return ["Arithmetic per image (a multiply-add counts 2)", *align(rows)]


def _memory_lines(
    cfg: Config, memory: Memory, micro: int, precision: str, device: str
) -> list[str]:
    rows = [
        ("weights", size_of(memory.weights)),
        ("gradients", size_of(memory.gradients)),
        ("Adam's moments", size_of(memory.adam)),
        ("averaged generator", size_of(memory.ema)),
        (f"activations of {micro} images", size_of(memory.activations)),
        ("together", size_of(memory.total)),
    ]
    lines = [
        f"Memory of a step on one {device} device in {precision}: an estimate, from a step on",
        "tensors without memory; libraries' workspaces and the data come on top",
        *align(rows),
    ]
    if cfg.run.micro_batch == "auto":
        lines.append(f"{micro} images is the largest micro-batch of which the estimate fits here")
    if cfg.run.recompute:
        sides = ", ".join(str(pixels) for pixels in cfg.run.recompute)
        lines.append(f"Blocks at {sides} pixels run again in the backward pass")
    return lines


def _run_directory(cfg: Config) -> str:
    folder = Path(cfg.run.dir or f"runs/{cfg.preset}")
    states = list_states(folder)
    if states:
        return f"{folder} (holds a run at step {step_of(states[-1]):,}, which would go on)"
    return f"{folder} (a new run)"


def size_of(count: int) -> str:
    """Bytes in binary units."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
