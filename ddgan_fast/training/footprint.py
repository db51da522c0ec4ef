"""The memory of a training step, found by running it on tensors without memory."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..config import Config
from ..diffusion import Diffusion
from ..models import build_networks
from ..models.layers import set_memory_format
from .denoising import DenoisingStep
from .draws import Draws, MicroBatch
from .objective import build_step
from .precision import Precision
from .steps import TrainStep


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step on one device."""

    weights: int
    gradients: int
    adam: int
    ema: int
    activations: int
    """All that a step makes beyond these, at its peak: what the backward passes keep, their own
    gradients, and the images."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.adam + self.ema + self.activations


class LiveBytes(TorchDispatchMode):
    """Follows the memory behind the tensors that operators make: now, and at its peak.

    What an operator allocates and frees inside is not seen.

    Attributes:
        highest: largest ``now`` since somebody set it back.
        owner: whom what is made from now on belongs to.
        owned: live bytes by owner.
        at_peak: these at the peak.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self.highest = 0
        self.owner = ""
        self.owned: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self._blocks: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return result

    def add(self, tensor: torch.Tensor) -> None:
        """Count the tensor's memory from now on, until it is freed."""
        storage = tensor.untyped_storage()
        block, size = storage._cdata, storage.nbytes()
        if block in self._blocks:
            return
        owner = self.owner

        def freed(_: object) -> None:
            del self._blocks[block]
            self.now -= size
            self.owned[owner] -= size

        self._blocks[block] = weakref.ref(storage, freed)
        self.now += size
        self.owned[owner] += size
        self.highest = max(self.highest, self.now)
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, self.owned.copy()


def estimate_memory(cfg: Config, micro_batch: int, precision: str, micros: int = 1) -> Memory:
    """Memory of a step with R1, the largest kind, and ``micro_batch`` images at once.

    The step runs operator by operator, as without a compiler. What operators need inside (cuDNN's
    workspaces), what the allocator loses between blocks and what CUDA itself takes comes on top.

    Args:
        cfg: the configuration.
        micro_batch: images per forward pass.
        precision: "fp32", "tf32", "bf16", "fp16" or "fp64".
        micros: micro-batches in a step.
    """
    with FakeTensorMode():
        step, batch, networks = _step(cfg, micro_batch, precision)
        # Gradients of the first micro-batch lie there while the second runs; later ones are alike.
        parts = [batch] * min(micros, 2)
        with LiveBytes() as live:
            for parameter in step.generator.parameters():
                parameter.grad = torch.empty_like(parameter)  # left by the step before
            if isinstance(step, TrainStep):
                step.discriminator_gradients(parts, penalize=True)
                if step.judge is not None:
                    step.judge_gradients(parts, penalize=True)
            step.generator_gradients(parts)
        weights = sum(_bytes(network) for network in networks.values())
        return Memory(
            weights=weights,
            gradients=weights,
            adam=2 * weights,
            ema=_bytes(step.generator),
            activations=max(live.peak - weights, 0),
        )


def _step(
    cfg: Config, images: int, precision: str
) -> tuple[TrainStep | DenoisingStep, MicroBatch, dict[str, nn.Module]]:
    """A training step of a configuration, a micro-batch for it, and its networks."""
    choice = Precision(precision, "cpu")
    dtype = choice.dtype
    networks = build_networks(cfg)
    layout = torch.channels_last if cfg.run.channels_last else torch.contiguous_format
    for module in networks.values():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.to(dtype)  # Module.to fails on fake tensors
        set_memory_format(module, layout)
    model = cfg.model
    size = () if model.kind == "mlp" else (model.image_size, model.image_size)
    x = torch.empty(images, model.num_channels, *size, dtype=dtype)
    if size:
        x = x.contiguous(memory_format=layout)
    draws = Draws(
        t=torch.zeros(images, dtype=torch.int64),
        z=torch.empty(images, model.nz, dtype=dtype),
        label=torch.zeros(images, dtype=torch.int64) if model.num_classes else None,
        pair_noise=(x, x),
        posterior_noise=x,
    )
    diffusion = Diffusion.from_config(model)
    step = build_step(cfg, networks, diffusion, autocast=choice.autocast)
    return step, MicroBatch(x, None, draws), networks


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
