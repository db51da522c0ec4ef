"""Both networks and what updates them: one training step on one rank."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import Config
from ..data.device import to_model_input
from ..data.torch_loader import Batch
from ..diffusion import Diffusion
from ..kernels import philox
from ..models import build_networks
from ..models.layers import set_memory_format
from . import run_state
from .accumulation import losses_of
from .draws import DRAWS_PER_STEP, MicroBatch, counter_draws
from .ema import WeightAverage
from .graphs import (
    WARM_UP,
    WARM_UP_RANKS,
    CudaRecorder,
    Recorder,
    StepGraphs,
    on_capture_stream,
)
from .guard import FiniteGuard, step_unless
from .labels import StepLabels
from .monitor import DeviceStats
from .objective import build_step
from .optim import adam_tensors, cosine_rate, make_adam, set_rate
from .parallel import Ranks
from .precision import Precision
from .rollback import Returns
from .steps import TrainStep

NETWORKS = {"D": "discriminator", "D0": "discriminator_x0", "G": "generator"}


class Engine:
    """Networks, optimisers, averages and statistics of a run, and the step that moves them.

    A step reads nothing back from the device and takes from the host only the batch and the
    learning rates, so that it can be recorded as a CUDA graph.

    Args:
        cfg: the run's configuration.
        ranks: this process among its peers.
        index: int64 [N] on the device, this rank's positions in the global batch.

    Attributes:
        modules: the networks that are trained, by name, as ``build_networks`` makes them.
        networks: their names by what updates are called, "D", "D0" and "G", in their order.
        step: finished steps.
        returns: to earlier states; the data of a step must be ``returns.ahead`` steps ahead.
        mode: "eager", "compile", "graph" or "compile+graph".
    """

    def __init__(self, cfg: Config, ranks: Ranks, index: torch.Tensor) -> None:
        self.cfg, self.ranks, self.index = cfg, ranks, index
        self.micros = micro_count(len(index), cfg.run.micro_batch)
        self.precision = Precision.choose(cfg.run.precision, ranks.device.type)
        self.dtype = self.precision.dtype
        self.labels = StepLabels.of(cfg, index)
        self._build_networks()
        self.step = 0
        self.step_on_device = torch.tensor([0], device=ranks.device)
        self.returns = Returns()
        self._ahead = torch.tensor([0], device=ranks.device)
        self.guard = FiniteGuard(ranks.device, cfg.run.max_skipped)
        self.stats = DeviceStats(ranks.device)
        self.scales = {name: self.precision.loss_scale(ranks.device) for name in self.networks}
        self.mode = "eager"
        self._met: set[tuple[str, bool]] = set()
        self._is_new = True
        self._graphs: StepGraphs | None = None

    def _build_networks(self) -> None:
        cfg, device = self.cfg, self.ranks.device
        torch.manual_seed(cfg.run.seed)
        layout = torch.channels_last if cfg.run.channels_last else torch.contiguous_format
        self.modules = {
            name: module.to(device, self.dtype) for name, module in build_networks(cfg).items()
        }
        self.generator = self.modules["generator"]
        for module in self.modules.values():
            set_memory_format(module, layout)
        self.networks = {k: name for k, name in NETWORKS.items() if name in self.modules}
        self.diffusion = Diffusion.from_config(cfg.model).to(device)
        autocast = self.precision.autocast
        self.train_step = build_step(
            cfg, self.modules, self.diffusion, wrap=self._wrap, autocast=autocast
        )
        o = cfg.optim
        self.optimizers = {
            name: self._adam(module, o.lr_g if name == "generator" else o.lr_d)
            for name, module in self.modules.items()
        }
        self.ema = WeightAverage(self.generator, o.ema_decay, o.ema_warmup)

    def _wrap(self, loss: nn.Module) -> nn.Module:
        """Data-parallel where there are other ranks."""
        if "graph" not in self.cfg.run.engine or self.ranks.device.type != "cuda":
            return self.ranks.wrap(loss)
        # DistributedDataParallel accumulates gradients on the stream that it is made on, and the
        # default stream cannot be recorded.
        with on_capture_stream(self.ranks.device):
            return self.ranks.wrap(loss)

    @property
    def discriminator(self) -> nn.Module:
        """D; a KeyError where there is none."""
        return self.modules["discriminator"]

    def _adam(self, network: nn.Module, rate: float) -> torch.optim.Optimizer:
        o = self.cfg.optim
        on_device = "graph" in self.cfg.run.engine or (
            self.cfg.run.engine == "auto"
            and self.ranks.device.type == "cuda"
            and o.backend in ("auto", "torch")
        )
        return make_adam(
            network.parameters(),
            rate,
            (o.beta1, o.beta2),
            o.eps,
            o.backend,
            rate_on_device=on_device,
        )

    def take_step(self, batch: Batch) -> None:
        """One update of each network, G's last."""
        for name, network in self.networks.items():
            set_rate(self.optimizers[network], self.learning_rate(name))
        images, flip = self.network_input(batch)
        penalize = self.step % self.cfg.loss.lazy_reg == 0
        self._is_new = (self.mode, penalize) not in self._met
        self._met.add((self.mode, penalize))
        self.run_step(images, flip, penalize)
        self.ema.update(self.step)
        self.step += 1

    def run_step(self, images: torch.Tensor, flip: torch.Tensor | None, penalize: bool) -> None:
        """All updates, in the engine's mode."""
        if self._graphs is not None:
            self.ranks.watchdog.enter("step")
            self._graphs(images, flip, penalize)
        else:
            self.update_both(images, flip, penalize)

    def update_both(
        self, images: torch.Tensor, flip: torch.Tensor | None, penalize: bool
    ) -> None:
        """The part of a step that is a function of tensors on the device alone."""
        seeds = self.seeds()
        for name in self.networks:
            # The first step of a kind may compile, or choose algorithms.
            self.ranks.watchdog.enter("warming up" if self._is_new else f"{name} step")
            if name in seeds:  # D0 judges what G predicted for D
                micros = self.micro_batches(images, flip, seeds[name])
            stats = self.gradients(name, micros, penalize)
            self.update(name, stats, torch.cat([m.draws.t for m in micros]))
        self.step_on_device += 1

    def gradients(
        self, name: str, micros: list[MicroBatch], penalize: bool
    ) -> dict[str, torch.Tensor]:
        """Set the gradients of network ``name``, times its loss scale; per-sample statistics."""
        scale, step = self.scales[name], self.train_step
        factor = None if scale is None else scale.value
        if name == "G":
            return step.generator_gradients(micros, factor)
        assert isinstance(step, TrainStep)
        judge = step.discriminator_gradients if name == "D" else step.judge_gradients
        return judge(micros, penalize, factor)

    def network_input(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A batch as the step takes it: bytes with flips, or finished images without."""
        if self.labels is not None:
            self.labels.take(batch)
        images, flip = batch.images, batch.flip
        channels_last = self.cfg.run.channels_last
        if images.dtype == torch.uint8 and self.dtype != torch.float64 and channels_last:
            # The forward diffusion reads bytes and writes channels_last images itself.
            return images, flip
        return to_model_input(images, flip, self.dtype, channels_last), None

    @property
    def position(self) -> torch.Tensor:
        """int64[1]: the step whose data and draws the current step takes."""
        return self.step_on_device + self._ahead

    def seeds(self) -> dict[str, torch.Tensor]:
        """Seeds of the current step's draws, by the update that draws: "D" and "G"."""
        seeds = philox.step_seeds(self.cfg.run.seed, self.position, DRAWS_PER_STEP)
        return dict(zip(("D", "G"), seeds.chunk(2), strict=True))

    def micro_batches(
        self, images: torch.Tensor, flip: torch.Tensor | None, seeds: torch.Tensor
    ) -> list[MicroBatch]:
        """Deal the local batch to micro-batches, interleaved like the global one to ranks."""
        model, m = self.cfg.model, self.micros
        label = None if self.labels is None else self.labels.drawn(self.position)
        micros = []
        for k in range(m):
            own = self.index[k::m]
            draws = counter_draws(seeds, own, model.num_timesteps, model.nz, self.dtype)
            draws.label = None if label is None else label[k::m]
            micros.append(MicroBatch(images[k::m], None if flip is None else flip[k::m], draws))
        return micros

    def update(self, name: str, stats: dict[str, torch.Tensor], t: torch.Tensor) -> None:
        """Apply the gradients of network ``name``, and count its statistics."""
        optimizer, scale = self.optimizers[NETWORKS[name]], self.scales[name]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        losses = torch.stack(losses_of(stats)).sum(0)
        excused = None
        if scale is not None:
            scale.unscale(gradients)
            excused = scale.may_overflow()
        found_inf = self.guard.check(
            self.step_on_device[0], name, gradients, losses, t, excused=excused
        )
        step_unless(optimizer, found_inf)
        good = 1.0 - found_inf
        if scale is not None:
            scale.update(found_inf)
            self.stats.add(f"{name}/loss_scale", scale.value)
        self.stats.add(f"{name}/grad_norm", self.guard.grad_norm[name], weight=good)
        for key, values in stats.items():
            self.stats.add_samples(key, values, t, self.cfg.model.num_timesteps, weight=good)

    def learning_rate(self, name: str) -> float:
        """Rate of network "D", "D0" or "G" at the current step."""
        o, steps = self.cfg.optim, self.cfg.run.steps
        rate = o.lr_g if name == "G" else o.lr_d
        if o.lr_decay == "none":
            return rate
        return cosine_rate(self.step, rate, o.lr_min, steps, o.lr_interval)

    def switch(self, mode: str, batch: Batch, recorder: Recorder | None = None) -> None:
        """Run further steps in another mode; compiling and recording leave the state as it is.

        Args:
            mode: "eager", "compile", "graph" or "compile+graph".
            batch: any batch of the run.
            recorder: what records graphs; default CUDA's.
        """
        self._graphs = None
        self.ranks.watchdog.enter("compiling")
        for part in self.train_step.parts:
            if "compile" in mode:
                part.compile_by(self.cfg.run.compiler)
            else:
                part.compile_no_more()
        if "graph" in mode:
            recorder = recorder or CudaRecorder(self.ranks.device)
            parallel = isinstance(self.train_step.g_loss, DistributedDataParallel)
            times = WARM_UP_RANKS if parallel else WARM_UP
            graphs = StepGraphs(self.update_both, recorder, times)
            with self.rehearsal():
                graphs.record(*self.network_input(batch), self.kinds)
            self._graphs = graphs
        self.mode = mode

    def drop_graphs(self) -> None:
        """Forget recorded steps; NCCL cannot be left before the graphs that hold its work."""
        if self._graphs is not None:
            self._graphs, self.mode = None, self.mode.removesuffix("graph").rstrip("+") or "eager"

    @property
    def kinds(self) -> tuple[bool, ...]:
        """The kinds of step that occur: with R1, without."""
        return (True,) if self.cfg.loss.lazy_reg == 1 else (True, False)

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Steps taken inside leave no trace: weights, moments and counts are put back in place."""
        step = self.step
        saved = {id(tensor): (tensor, tensor.detach().clone()) for tensor in self._changing()}
        averaged = bool(self.ema.average)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor in self._changing():
                    before = saved.get(id(tensor))
                    # What the rehearsal made, moments and sums, starts at 0.
                    tensor.zero_() if before is None else tensor.copy_(before[1])
            if not averaged:
                self.ema.average = []
            self.step = step

    def _changing(self) -> list[torch.Tensor]:
        tensors: list[torch.Tensor] = []
        for module in self.modules.values():
            tensors += module.parameters()
        tensors += self.ema.average
        for optimizer in self.optimizers.values():
            tensors += adam_tensors(optimizer)
        for scale in self.scales.values():
            tensors += [] if scale is None else scale.tensors()
        tensors += [self.step_on_device, *self.guard.tensors(), *self.stats.tensors()]
        return tensors

    def payload(self, data_digest: str) -> dict[str, Any]:
        """Everything a state holds."""
        parts = (self.modules, self.ema, self.optimizers)
        content = run_state.payload(self.cfg, *parts, data_digest)
        for name, scale in self.scales.items():
            if scale is not None:
                content.setdefault("loss_scales", {})[name] = scale.tensors()
        if self.returns.count:
            content["returns"] = asdict(self.returns)
        return content

    def restore(self, saved: dict[str, Any]) -> None:
        """Put a state back; ``run_state.check`` comes first."""
        parts = (self.modules, self.ema, self.optimizers)
        run_state.restore(saved, *parts)
        for name, values in saved.get("loss_scales", {}).items():
            scale = self.scales[name]
            for own, value in zip([] if scale is None else scale.tensors(), values, strict=False):
                own.copy_(value)
        self.step = int(saved["step"])
        self.step_on_device.fill_(self.step)
        self.returns = Returns.of(saved)
        self._ahead.fill_(self.returns.ahead)

    def go_back(self, saved: dict[str, Any], returns: Returns) -> None:
        """Put an earlier state of this run back, and forget which updates were skipped."""
        self.restore({**saved, "returns": asdict(returns)})
        self.guard.reset()


def micro_count(local_batch: int, micro_batch: int | str | None) -> int:
    """How many micro-batches the local batch takes.

    Raises:
        ValueError: the sizes do not divide.
    """
    if not isinstance(micro_batch, int) or micro_batch >= local_batch:
        return 1
    if local_batch % micro_batch:
        raise ValueError(
            f"run.micro_batch is {micro_batch}, but each rank has {local_batch} images per step: "
            "choose a divisor of it."
        )
    return local_batch // micro_batch


def gradients_of(module: nn.Module, scale: torch.Tensor | None = None) -> torch.Tensor:
    """All gradients of a network as one float64 vector, divided by ``scale`` []."""
    found = [p.grad for p in module.parameters() if p.grad is not None]
    vector = torch.cat([gradient.detach().double().flatten() for gradient in found])
    return vector if scale is None else vector / scale
