"""The networks taken apart: time, arithmetic, parameters and kept activations of every module."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..flops import Counter
from ..training.classifying import ClassifyingStep
from ..training.steps import TrainStep
from .session import Session

_ROUNDS = 5


@dataclass
class ModuleUse:
    """One module in one forward pass; what it contains is included.

    Attributes:
        name: path in its network, whose letter comes first: "G.down.0.blocks.1".
        kind: its class.
        unit: whether it is the outermost module under its network that is called.
        ms: forward pass as part of a training step; on a GPU with the gaps between its kernels.
        flops: two per multiply-add.
        parameters: how many.
        kept_bytes: what it keeps for the backward pass, weights not counted.
    """

    name: str
    kind: str
    unit: bool = False
    ms: float = 0.0
    flops: float = 0.0
    parameters: int = 0
    kept_bytes: int = 0


def measure(session: Session) -> list[dict[str, Any]]:
    """Modules of all networks in the order in which they run, the network itself first."""
    engine = session.engine
    images, flip = engine.network_input(session.batch)
    seeds = engine.seeds()
    micro = engine.micro_batches(images, flip, seeds["G"])[0]
    draws = micro.draws
    if isinstance(engine.train_step, TrainStep):
        x_t, x_next = engine.diffusion.q_sample_pair(
            micro.images, draws.t, flip=micro.flip, seed=draws.pair_seed, index=draws.index
        )
    else:
        x_next, x_t = engine.train_step.diffuse(micro)
    inputs: tuple[Any, ...] = (x_next, draws.t)
    if not isinstance(engine.train_step, ClassifyingStep):
        inputs += draws.z, draws.drop
    found = _measure(session, "G", engine.generator, inputs)
    if "discriminator" in engine.modules:
        found += _measure(session, "D", engine.discriminator, (x_t, draws.t, x_next))
    if "discriminator_x0" in engine.modules:
        found += _measure(session, "D0", engine.modules["discriminator_x0"], (x_t, draws.t))
    return [asdict(use) for use in found]


def _measure(
    session: Session, letter: str, network: nn.Module, inputs: tuple[Any, ...]
) -> list[ModuleUse]:
    def run() -> None:
        with session.engine.train_step.autocast():
            network(*inputs)

    uses = {
        name: ModuleUse(f"{letter}.{name}".rstrip("."), type(module).__name__)
        for name, module in network.named_modules()
    }
    for name, module in network.named_modules():
        uses[name].parameters = sum(p.numel() for p in module.parameters())
    called: list[str] = []
    with _following(network, called) as stack, _Arithmetic(uses, stack), _keeping(uses, stack):
        run()
    for name in called:
        uses[name].unit = name != "" and not any(name.startswith(f"{n}.") for n in called if n)
    times: dict[str, list[float]] = {name: [] for name in called}
    for _ in range(_ROUNDS):
        with _timed(network, session.device) as read:
            run()
        for name, seconds in read().items():
            times[name].append(seconds)
    for name, values in times.items():
        uses[name].ms = 1e3 * statistics.median(values)
    return [uses[name] for name in dict.fromkeys(called)]


@contextlib.contextmanager
def _following(network: nn.Module, called: list[str]) -> Iterator[list[str]]:
    """Names of the modules that are running, outermost first; ``called`` has all that ran."""
    stack: list[str] = []
    with contextlib.ExitStack() as hooks:
        for name, module in network.named_modules():

            def enter(*_: Any, name: str = name) -> None:
                stack.append(name)
                called.append(name)

            def leave(*_: Any) -> None:
                stack.pop()

            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        yield stack


class _Arithmetic(Counter):
    """Counts operations for all modules that are running."""

    def __init__(self, uses: dict[str, ModuleUse], stack: list[str]) -> None:
        super().__init__()
        self._uses, self._stack = uses, stack

    def saw(self, func: Any, args: Any, kwargs: Any, result: Any, flops: int) -> None:
        super().saw(func, args, kwargs, result, flops)
        for name in set(self._stack):
            self._uses[name].flops += flops


def _keeping(
    uses: dict[str, ModuleUse], stack: list[str]
) -> contextlib.AbstractContextManager[None]:
    """Counts what autograd keeps, each piece of memory once."""
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        block = tensor.untyped_storage().data_ptr()
        if block not in seen and not isinstance(tensor, nn.Parameter) and not _is_weight(tensor):
            seen[block] = tensor  # held, so that no other tensor gets the address
            for name in set(stack):
                uses[name].kept_bytes += tensor.untyped_storage().nbytes()
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


def _is_weight(tensor: torch.Tensor) -> bool:
    return tensor._base is not None and isinstance(tensor._base, nn.Parameter)


@contextlib.contextmanager
def _timed(network: nn.Module, device: torch.device) -> Iterator[Callable[[], dict[str, float]]]:
    """Seconds of every module's forward passes, once the block has ended."""
    spans: list[tuple[str, Any, Any]] = []
    running: list[Any] = []
    cuda = device.type == "cuda"

    def stamp() -> Any:
        if not cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read() -> dict[str, float]:
        if cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for name, begin, end in spans:
            seconds = begin.elapsed_time(end) / 1e3 if cuda else end - begin
            found[name] = found.get(name, 0.0) + seconds
        return found

    with contextlib.ExitStack() as hooks:
        for name, module in network.named_modules():

            def enter(*_: Any) -> None:
                running.append(stamp())

            def leave(*_: Any, name: str = name) -> None:
                spans.append((name, running.pop(), stamp()))

            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        yield read
