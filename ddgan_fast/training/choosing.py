"""How a run takes its steps: checks what was asked for, or measures the ways there are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from ..config import Config
from ..data.torch_loader import Batch
from . import compiling
from .engine import Engine, gradients_of
from .precision import Precision

# Compiling takes minutes, which shorter runs do not earn back.
_WORTH_COMPILING = 2000
_TIMED_STEPS = 5
# Relative distance between gradients that rounding explains in float32.
_ROUNDING = 1e-3

Say = Callable[[str], None]


def refuse(cfg: Config, device: torch.device) -> None:
    """Refuse an engine that cannot run here.

    Raises:
        ValueError: CUDA graphs are asked for without a GPU, or for ranks that share one.
    """
    if "graph" in cfg.run.engine and device.type != "cuda":
        raise ValueError(
            f"run.engine is {cfg.run.engine!r}, but CUDA graphs need a GPU and this run is on "
            f'{device.type}: choose "eager", "compile" or "auto".'
        )
    if "graph" in cfg.run.engine and dist.is_initialized() and dist.get_backend() == "gloo":
        raise ValueError(
            f"run.engine is {cfg.run.engine!r}, but the ranks exchange gradients by gloo, which "
            'CUDA graphs cannot hold: choose "eager" or "compile", or give each rank its own GPU.'
        )


def settle(engine: Engine, batch: Batch, steps_left: int, say: Say) -> None:
    """Put the engine into its mode before the first step; the run's state stays as it is.

    Args:
        engine: of the run.
        batch: its next batch.
        steps_left: how many steps a choice pays off over.
        say: told what was chosen, and why.
    """
    asked = engine.cfg.run.engine
    if asked == "auto" and engine.ranks.device.type == "cuda":
        _choose(engine, batch, steps_left, say)
    elif asked == "auto":
        say("Engine: eager (the others were made for GPUs; --run.engine compile works here, too).")
    elif asked == "eager":
        say("Engine: eager.")
    else:
        trial = _try(engine, asked, batch)
        if trial.problem:
            say(f"Engine: eager, because {asked} does not work: {trial.problem}.")
            engine.switch("eager", batch)
        else:
            say(f"Engine: {asked}{trial.cost()}.")


@dataclass
class _Trial:
    """What became of a mode."""

    mode: str
    problem: str = ""
    seconds: float = 0.0
    """Compiling and recording."""
    cached: tuple[int, int] = (0, 0)
    ms: dict[bool, float] = field(default_factory=dict)

    def cost(self) -> str:
        hits, misses = self.cached
        if "compile" not in self.mode:
            return ""
        text = f" (compiled in {self.seconds:.0f} s"
        return f"{text}, {hits} of {hits + misses} pieces from the cache)" if hits else f"{text})"


def _choose(engine: Engine, batch: Batch, steps_left: int, say: Say) -> None:
    """Time the modes and take the fastest."""
    modes = ["eager"]
    notes = []
    graphs = engine.ranks.world == 1 and engine.cfg.optim.backend in ("auto", "torch")
    if graphs:
        modes.append("graph")
    if steps_left >= _WORTH_COMPILING:
        modes += ["compile", "compile+graph"] if graphs else ["compile"]
    else:
        notes.append(f"with {steps_left:,} steps to go compiling would not pay")
    trials = []
    for mode in modes:
        trials.append(_try(engine, mode, batch, timed=True))
    interval = engine.cfg.loss.lazy_reg

    def mean(trial: _Trial) -> float:
        return (trial.ms[True] + (interval - 1) * trial.ms.get(False, 0.0)) / interval

    # Every rank must take the same one: the first rank's clock decides.
    working = [trial for trial in trials if not trial.problem]
    if not working:
        engine.switch("eager", batch)
        say(f"Engine: eager, untimed, because of {trials[0].problem}.")
        return
    best = engine.ranks.share(min(working, key=mean).mode)
    if engine.mode != best:
        engine.switch(best, batch)
    others = [f"{t.mode} {mean(t):.1f}" for t in working if t.mode != best]
    notes += [f"{t.mode} does not work: {t.problem}" for t in trials if t.problem]
    chosen = next(t for t in trials if t.mode == best)
    say(
        f"Engine: {best}, {mean(chosen):.1f} ms per step{chosen.cost()}"
        + (f"; {', '.join(others)} ms" if others else "")
        + "".join(f"; {note}" for note in notes)
        + "."
    )


def _try(engine: Engine, mode: str, batch: Batch, timed: bool = False) -> _Trial:
    """Switch, compare compiled code with eager, time; whether it works all ranks agree on."""
    trial = _Trial(mode)
    began = time.perf_counter()
    before = compiling.cache_counts()
    try:
        if "compile" in mode:
            trial.problem = compiling.missing() or ""
            if not trial.problem:
                compiling.keep_caches()
                # Graphs are recorded of code that is known to be right.
                engine.switch("compile", batch)
                trial.problem = wrong_gradients(engine, batch) or ""
        if not trial.problem and mode != engine.mode:
            engine.switch(mode, batch)
        if timed and not trial.problem:
            with engine.rehearsal():
                trial.ms = {kind: _milliseconds(engine, batch, kind) for kind in engine.kinds}
    except Exception as error:
        # Compilers fail in many ways and graphs take memory; training without is slower, not wrong.
        trial.problem = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")
    if engine.ranks.any(bool(trial.problem)):
        trial.problem = trial.problem or "it failed on another rank"
    after = compiling.cache_counts()
    trial.cached = after[0] - before[0], after[1] - before[1]
    trial.seconds = time.perf_counter() - began
    return trial


def wrong_gradients(engine: Engine, batch: Batch) -> str | None:
    """What the compiled parts get wrong, in words; None where their gradients are eager's.

    All layers get weights that let gradients through: at the start of a run some are nearly 0.
    """
    step = engine.train_step
    images, flip = engine.network_input(batch)
    with engine.rehearsal():
        _wake(engine)
        compiled = _gradients(engine, images, flip)
        for part in step.parts:
            part.paused = True
        try:
            eager = _gradients(engine, images, flip)
            lowered, step.autocast = step.autocast, Precision("fp32", images.device.type).autocast
            try:
                with Precision("fp32", images.device.type).settings():
                    truth = _gradients(engine, images, flip)
            finally:
                step.autocast = lowered
        finally:
            for part in step.parts:
                part.paused = False
    for name, want in truth.items():
        allowed = max(_ROUNDING, 2 * _distance(eager[name], want))
        found = _distance(compiled[name], want)
        if not found <= allowed:
            return (
                f"the compiled gradient of {name} is off by {found:.1e} "
                f"({allowed:.1e} would be rounding)"
            )
    return None


def _gradients(
    engine: Engine, images: torch.Tensor, flip: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Gradients of every kind of update, of the first micro-batch."""
    found = {}
    seeds = engine.seeds()
    for name, network in engine.networks.items():
        scale = engine.scales[name]
        factor = None if scale is None else scale.value
        micro = engine.micro_batches(images, flip, seeds["G" if name == "G" else "D"])[:1]
        for kind in engine.kinds if name != "G" else [False]:
            if name == "D0":  # it judges what D's update leaves
                engine.gradients("D", micro, kind)
            engine.gradients(name, micro, kind)
            with_r1 = "" if name == "G" else f" {'with' if kind else 'without'} R1"
            found[f"the {network}{with_r1}"] = gradients_of(engine.modules[network], factor)
    return found


def _wake(engine: Engine) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in engine.modules.values():
            for p in module.parameters():
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float32)
                p.add_(noise.to(p), alpha=0.02)


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def _milliseconds(engine: Engine, batch: Batch, kind: bool) -> float:
    """Median time of a step of one kind."""
    images, flip = engine.network_input(batch)
    times = []
    for i in range(_TIMED_STEPS + 2):
        _wait(engine.ranks.device)
        began = time.perf_counter()
        engine.run_step(images, flip, kind)
        _wait(engine.ranks.device)
        if i >= 2:
            times.append(1e3 * (time.perf_counter() - began))
    return sorted(times)[len(times) // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
