"""Floating-point operations of the networks: two per multiply-add of layers and attention.

Resampling filters, norms and activations are not counted: their cost is memory traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .config import Config
from .diffusion import Diffusion
from .models import build_networks
from .training.draws import Draws, MicroBatch
from .training.objective import build_step
from .training.steps import TrainStep

_aten = torch.ops.aten
_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    # Torch's own table lacks the attention kernels of the CPU.
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_flash_attention
    ],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}
# Positions of the weight and of the number of groups among the arguments.
_CONVOLUTIONS = {_aten.convolution: (1, 8), _aten.convolution_backward: (2, 9)}


class Counter(TorchDispatchMode):
    """Adds up the cost of all operators; torch's own counter fails on R1's inner gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        op, flops = func.overloadpacket, 0
        if op in _FORMULAS and not _is_filter(op, args):
            flops = _FORMULAS[op](*args, **kwargs, out_val=result)
        self.saw(func, args, kwargs, result, flops)
        return result

    def saw(self, func: Any, args: Any, kwargs: Any, result: Any, flops: int) -> None:
        """Called after each operator."""
        self.total += flops


def _is_filter(op: Any, args: Any) -> bool:
    if op not in _CONVOLUTIONS:
        return False
    weight, groups = (args[i] for i in _CONVOLUTIONS[op])
    return weight.shape[1] == 1 and weight.shape[0] == groups


def count(function: Callable[[], Any]) -> int:
    """Floating-point operations of the convolutions and matrix products in one call.

    Convolutions with one input and one output channel per group are filters, not network layers,
    and count nothing. On tensors of the meta device no arithmetic is done.

    Args:
        function: called once, without arguments; backward passes inside it count too.
    """
    with Counter() as counter:
        function()
    return counter.total


def training_flops(cfg: Config) -> dict[str, float]:
    """What training a configuration costs per image, found by running its step without data.

    Blocks that run again in the backward pass count once: it is the same work for the model.

    Returns:
        "generator_forward", "discriminator_forward", "r1" (what one application of R1 adds), and
        "training_image": an update of both networks, R1 weighted by its interval. For a DDPM
        "generator_forward" and "training_image".
    """
    cfg = replace(cfg, run=replace(cfg.run, recompute=()))
    with torch.device("meta"):
        networks = build_networks(cfg)
        micro = _image(cfg)
    x, t, z = micro.images, micro.draws.t, micro.draws.z
    diffusion = Diffusion.from_config(cfg.model).to("meta")
    with torch.no_grad():
        forward = count(lambda: networks["generator"](x, t, z))
    step = build_step(cfg, networks, diffusion)
    update_g = count(lambda: step.generator_gradients([micro]))
    if not isinstance(step, TrainStep):
        return {"generator_forward": forward, "training_image": update_g}

    def judge(penalize: bool) -> None:
        step.discriminator_gradients([micro], penalize)
        if step.judge is not None:
            step.judge_gradients([micro], penalize)

    update_d = count(lambda: judge(False))
    r1 = count(lambda: judge(True)) - update_d
    with torch.no_grad():
        return {
            "generator_forward": forward,
            "discriminator_forward": count(lambda: networks["discriminator"](x, t, x)),
            "r1": r1,
            "training_image": update_d + update_g + r1 / cfg.loss.lazy_reg,
        }


def _image(cfg: Config) -> MicroBatch:
    """One image and its draws, on the current default device."""
    model = cfg.model
    size = () if model.kind == "mlp" else (model.image_size, model.image_size)
    x = torch.empty(1, model.num_channels, *size)
    t = torch.zeros(1, dtype=torch.int64)
    draws = Draws(t=t, z=torch.empty(1, model.nz), pair_noise=(x, x), posterior_noise=x)
    draws.label = t if model.num_classes else None
    return MicroBatch(x, None, draws)
