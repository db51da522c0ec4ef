"""What a run would be, found without data, weights or a device: sizes, costs and choices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from .config import Config, to_dict
from .diffusion import Diffusion
from .doctor import kernel_lines
from .models import build_discriminator, build_generator
from .options import to_yaml
from .tables import align
from .training.checkpoint import list_states, step_of
from .training.steps import Draws, MicroBatch, TrainStep

_FLOAT32 = 4


@dataclass(frozen=True)
class Memory:
    """Estimated bytes of a training step on one device."""

    weights: int
    gradients: int
    adam: int
    ema: int
    activations: int
    """What the backward passes keep, at their peak."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.adam + self.ema + self.activations


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
    micro = min(cfg.run.micro_batch or local, local)
    memory = estimate_memory(cfg, micro, chosen.type)
    sections = [
        _networks(cfg),
        _costs(training_flops(cfg)),
        _memory_lines(memory, micro, precision_of(cfg, chosen.type), chosen.type),
        ["Kernels", *kernel_lines()],
        [f"Run directory: {_run_directory(cfg)}", "Nothing was trained or written."],
    ]
    comments = "\n#\n".join("\n".join(f"# {line}" for line in lines) for lines in sections)
    return f"{to_yaml(to_dict(cfg))}\n{comments}"


def parameter_counts(cfg: Config) -> tuple[int, int]:
    """Numbers of parameters of generator and discriminator."""
    with torch.device("meta"):
        return tuple(  # type: ignore[return-value]
            sum(p.numel() for p in build(cfg).parameters())
            for build in (build_generator, build_discriminator)
        )


def precision_of(cfg: Config, device_type: str) -> str:
    """The precision that "auto" means on a device."""
    if cfg.run.precision == "auto":
        return "bf16" if device_type == "cuda" else "fp32"
    return cfg.run.precision


def estimate_memory(cfg: Config, micro_batch: int, device_type: str = "cpu") -> Memory:
    """Memory of a training step with ``micro_batch`` images at once.

    The step runs for one image on the meta device, where nothing is allocated, and hooks add up
    what autograd keeps. In bf16 half of these bytes are assumed. Temporary buffers, the data and
    what libraries reserve are not counted.
    """
    precision = precision_of(cfg, device_type)
    width = 2 * _FLOAT32 if precision == "fp64" else _FLOAT32
    g, d = parameter_counts(cfg)
    scale = {"bf16": 0.5, "fp64": 2.0}.get(precision, 1.0)
    return Memory(
        weights=(g + d) * width,
        gradients=(g + d) * width,
        adam=2 * (g + d) * width,
        ema=g * width,
        activations=int(saved_bytes(cfg) * scale) * micro_batch,
    )


def saved_bytes(cfg: Config) -> int:
    """Most bytes that autograd keeps at any moment of a float32 step with R1, for one image."""
    with torch.device("meta"):
        generator, discriminator = build_generator(cfg), build_discriminator(cfg)
        model = cfg.model
        size = () if model.kind == "mlp" else (model.image_size, model.image_size)
        x = torch.empty(1, model.num_channels, *size)
        draws = Draws(
            t=torch.zeros(1, dtype=torch.int64),
            z=torch.empty(1, model.nz),
            pair_noise=(x, x),
            posterior_noise=x,
        )
    diffusion = Diffusion.from_config(model).to("meta")
    step = TrainStep(generator, discriminator, diffusion, cfg.loss.r1_gamma)
    micro = [MicroBatch(x, None, draws)]
    ledger = _Ledger([generator, discriminator])
    with saved_tensors_hooks(ledger.pack, ledger.unpack):
        step.discriminator_gradients(micro, penalize=cfg.loss.r1_gamma > 0)
        step.generator_gradients(micro)
    return ledger.peak


class _Ledger:
    """Keeps count of the memory behind saved tensors, each block once, weights left out."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.peak = 0
        self.live = 0
        self.holders: dict[int, int] = {}
        self.ignored = {_block(p) for module in modules for p in module.parameters()}

    def pack(self, tensor: torch.Tensor) -> _Held:
        return _Held(self, tensor)

    def unpack(self, held: _Held) -> torch.Tensor:
        return held.tensor


class _Held:
    """A saved tensor; it leaves the ledger when autograd lets go of it."""

    def __init__(self, ledger: _Ledger, tensor: torch.Tensor) -> None:
        self.ledger, self.tensor = ledger, tensor
        block = _block(tensor)
        if block in ledger.ignored:
            return
        count = ledger.holders.get(block, 0)
        ledger.holders[block] = count + 1
        if not count:
            ledger.live += tensor.untyped_storage().nbytes()
            ledger.peak = max(ledger.peak, ledger.live)

    def __del__(self) -> None:
        ledger, block = self.ledger, _block(self.tensor)
        if block in ledger.ignored:
            return
        ledger.holders[block] -= 1
        if not ledger.holders[block]:
            del ledger.holders[block]
            ledger.live -= self.tensor.untyped_storage().nbytes()


def _block(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _networks(cfg: Config) -> list[str]:
    rows = zip(("generator", "discriminator"), parameter_counts(cfg), strict=True)
    return ["Parameters", *align([(name, f"{count:,}") for name, count in rows])]


def _costs(flops: dict[str, Any]) -> list[str]:
    names = {
        "generator_forward": "generator forward",
        "discriminator_forward": "discriminator forward",
        "r1": "one application of R1",
        "training_image": "training, R1 at its interval",
    }
    rows = [(label, f"{flops[key] / 1e9:,.4g} GFLOP") for key, label in names.items()]
    return ["Arithmetic per image (a multiply-add counts 2)", *align(rows)]


def _memory_lines(memory: Memory, micro: int, precision: str, device: str) -> list[str]:
    rows = [
        ("weights", _size(memory.weights)),
        ("gradients", _size(memory.gradients)),
        ("Adam's moments", _size(memory.adam)),
        ("averaged generator", _size(memory.ema)),
        (f"activations of {micro} images", _size(memory.activations)),
        ("together", _size(memory.total)),
    ]
    return [
        f"Memory of a step on one {device} device in {precision}: an estimate, from what autograd",
        f"keeps for one image times {micro}; temporary buffers and the data come on top",
        *align(rows),
    ]


def _run_directory(cfg: Config) -> str:
    folder = Path(cfg.run.dir or f"runs/{cfg.preset}")
    states = list_states(folder)
    if states:
        return f"{folder} (holds a run at step {step_of(states[-1]):,}, which would go on)"
    return f"{folder} (a new run)"


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
