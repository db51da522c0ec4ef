"""Finds the borders of phases in a training step from outside: the step's code knows nothing of it.

What is compiled is left alone, so that the same code runs: the marks stand around the parts that
torch.compile takes over, and inside only where a part runs operator by operator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..data.ring import CudaCopies
from ..training.engine import Engine
from ..training.steps import DiscriminatorLoss, TrainStep
from .timeline import REST, Timeline

WAIT, COPY, DRAWS, Q_SAMPLE = "data wait", "copy to device", "draws", "q_sample"
FAKE, REAL, SEEN_FAKE, JOINT = "G forward in D step", "D real", "D fake", "D real + fake"
D_LOSS, R1, D_BACKWARD = "D losses", "R1 inner gradient", "D backward"
G_FORWARD, G_SEEN, G_BACKWARD = "G step: G forward", "G step: D forward", "G step: backward"
D0_LOSS, D0_BACKWARD = "D0 losses", "D0 backward"
OPTIMISER, EMA, RECORDED = "optimiser", "EMA", "recorded step"
PASS = "D, pass "
"""Beginning of the names of passes through D that the algorithm does not need."""


@contextlib.contextmanager
def marked(engine: Engine, timeline: Timeline) -> Iterator[None]:
    """Let the engine's steps mark their phases; afterwards it is as before."""
    with contextlib.ExitStack() as stack:
        marks = _Marks(engine, timeline, stack)
        marks.around(engine, "network_input", COPY)
        marks.around(engine, "seeds", DRAWS)
        marks.around(engine, "micro_batches", DRAWS)
        marks.around(engine, "update", OPTIMISER)
        marks.around(engine.ema, "update", EMA)
        if engine.ranks.device.type == "cuda":
            marks.around(CudaCopies, "receive", COPY, back=WAIT)
        if "graph" in engine.mode:
            # Marks inside are passed only where the step is taken operator by operator after all.
            marks.around(engine, "run_step", RECORDED)
        if isinstance(engine.train_step, TrainStep):
            marks.gan(engine.train_step)
        else:
            marks.around(engine.train_step, "inputs", Q_SAMPLE)
            marks.generator_loss(engine.train_step.parts[0])
        yield


class _Marks:
    """Wraps functions and hooks modules for as long as the stack is open."""

    def __init__(
        self, engine: Engine, timeline: Timeline, stack: contextlib.ExitStack
    ) -> None:
        self._engine, self._timeline, self._stack = engine, timeline, stack
        self._compiled = "compile" in engine.mode
        self._in_d_loss = False
        self._penalize = False
        self._passes = 0

    def around(self, owner: Any, name: str, phase: str, back: str = REST) -> None:
        """Calls of a method are a phase, and ``back`` is on after them."""
        function: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._timeline.mark(phase)
            result = function(*args, **kwargs)
            self._timeline.mark(back)
            return result

        self._replace(owner, name, call)

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        own = vars(owner).get(name)
        if own is None:
            self._stack.callback(delattr, owner, name)
        else:
            self._stack.callback(setattr, owner, name, own)
        setattr(owner, name, value)

    def hook(self, module: nn.Module, phase: str, back: str) -> None:
        """The module's forward pass is a phase."""
        self._before(module, lambda *_: self._timeline.mark(phase))
        self._after(module, lambda *_: self._timeline.mark(back))

    def _before(self, module: nn.Module, run: Callable[..., None]) -> None:
        self._stack.callback(module.register_forward_pre_hook(run).remove)

    def _after(self, module: nn.Module, run: Callable[..., None]) -> None:
        self._stack.callback(module.register_forward_hook(run).remove)

    def gan(self, step: TrainStep) -> None:
        """Both updates."""
        d_loss, g_loss, fake, *judge = step.parts
        self.around(step.diffusion, "q_sample_pair", Q_SAMPLE)
        self.hook(fake, FAKE, REST)
        self._before(d_loss, self._begin_d_loss)
        self._after(d_loss, self._end_d_loss)
        self.generator_loss(g_loss)
        for part in judge:
            self.hook(part, D0_LOSS, D0_BACKWARD)
        if self._compiled:
            return
        if step.judge is not None:
            self._before(step.judge.network, self._count("discriminator_x0"))
        assert isinstance(d_loss.inner, DiscriminatorLoss)
        self._joint = d_loss.inner.joint
        self._before(step.discriminator, self._begin_pass)
        self._after(step.discriminator, self._end_pass)
        gradient = torch.autograd.grad

        def inner_gradient(*args: Any, **kwargs: Any) -> Any:
            if self._in_d_loss:
                self._timeline.mark(R1)
            return gradient(*args, **kwargs)

        self._replace(torch.autograd, "grad", inner_gradient)

    def generator_loss(self, g_loss: nn.Module) -> None:
        """G's update, in which D looks at the images if there is one."""
        self._before(g_loss, lambda *_: self._timeline.mark(G_FORWARD))
        self._after(g_loss, lambda *_: self._timeline.mark(G_BACKWARD))
        if not self._compiled:
            self._before(self._engine.generator, self._count("generator"))

    def _count(self, network: str) -> Callable[..., None]:
        return lambda module, args: self._timeline.saw(network, len(args[0]))

    def _begin_d_loss(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._in_d_loss, self._penalize, self._passes = True, bool(args[4]), 0
        self._timeline.mark(D_LOSS)

    def _end_d_loss(self, *_: Any) -> None:
        self._in_d_loss = False
        self._timeline.mark(D_BACKWARD)

    def _begin_pass(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._timeline.saw("discriminator", len(args[0]))
        if self._in_d_loss:
            names = (JOINT,) if self._joint and not self._penalize else (REAL, SEEN_FAKE)
            own = names[self._passes : self._passes + 1]
            self._passes += 1
            self._timeline.mark(own[0] if own else f"{PASS}{self._passes}")
        else:
            self._timeline.mark(G_SEEN)

    def _end_pass(self, *_: Any) -> None:
        if self._in_d_loss:
            self._timeline.mark(D_LOSS)
