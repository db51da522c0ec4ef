"""What can end a run early: a signal to stop, and gradients that are no numbers any more."""

from __future__ import annotations

import math
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import apex_adam

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NOTHING = [0, -1, -1, -1, 0, -1]
_NETWORKS = {"D": "discriminator", "D0": "discriminator of x_0", "G": "generator"}


class Preemption:
    """Turns SIGTERM and SIGINT into a flag, so that the loop can save and stop between two steps.

    A second SIGINT gives Python's own handler back and raises KeyboardInterrupt. Outside the main
    thread, where Python allows no handlers, the flag simply stays down.

    Attributes:
        requested: a signal has arrived.
        signal_name: its name ("SIGTERM"), or None.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal_name: str | None = None
        self._interrupts = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None: the handler was not installed from Python and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self.signal_name = self.signal_name or signal.Signals(number).name
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt


class NonFiniteError(RuntimeError):
    """Too many updates were skipped because the gradient was not finite.

    Attributes:
        step: the first of them.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class FiniteGuard:
    """Finds non-finite gradients on the device, without waiting for it between ticks.

    Args:
        device: where the gradients are.
        max_skipped: ``at_tick`` raises when more steps than this were skipped since the last tick
            without any.

    Attributes:
        grad_norm: l2 norm of the last gradient by network name ("D", "D0", "G"), [] on the device.
    """

    def __init__(self, device: torch.device | str, max_skipped: int) -> None:
        self.max_skipped = max_skipped
        self.grad_norm: dict[str, Tensor] = {}
        # Skipped steps, the last of them, and of the first: step, network, loss, timestep.
        # float64 holds every step number exactly.
        self._record = torch.tensor(_NOTHING, dtype=torch.float64, device=device)
        self._reported = 0

    def reset(self) -> None:
        """Forget what was skipped."""
        self._record.copy_(self._record.new_tensor(_NOTHING))
        self._reported = 0

    @torch.no_grad()
    def check(
        self,
        step: int | Tensor,
        name: str,
        grads: list[Tensor],
        per_sample_loss: Tensor | None = None,
        t: Tensor | None = None,
        *,
        excused: Tensor | None = None,
    ) -> Tensor:
        """Look at one network's gradients before its optimiser's step.

        Under torch.distributed the gradients must be reduced already, so that all ranks agree.

        Args:
            step: the current step; inside a CUDA graph int64 [], as a number would be frozen.
            name: "D", "D0" or "G".
            grads: its gradients. A norm that overflows counts as non-finite, because Adam's second
                moment would overflow with it.
            per_sample_loss: this rank's losses [N], to tell which timestep went wrong.
            t: their timesteps, int64 [N].
            excused: bool [], the update is skipped all the same, but not held against the run.

        Returns:
            float32 [], 1 when the update must be skipped, else 0: for ``step_unless``.
        """
        wide = torch.promote_types(grads[0].dtype, torch.float32)
        norms = torch._foreach_norm(grads, 2, dtype=wide)
        norm = torch.linalg.vector_norm(torch.stack(list(norms)))
        self.grad_norm[name] = norm
        overflow = ~torch.isfinite(norm)
        bad = overflow if excused is None else overflow & ~excused

        record = self._record
        number = step.to(record) if isinstance(step, Tensor) else torch.full_like(record[0], step)
        network = torch.full_like(record[0], list(_NETWORKS).index(name))
        loss, timestep = _first_bad(per_sample_loss, t, record)
        skipped = record[0] + (bad & (number != record[1]))
        last = torch.where(bad, number, record[1])
        first = torch.where(
            bad & (record[0] == 0), torch.stack([number, network, loss, timestep]), record[2:]
        )
        record.copy_(torch.cat([torch.stack([skipped, last]), first]))
        return overflow.to(torch.float32)

    def tensors(self) -> list[Tensor]:
        """Everything that changes, for who puts it back in place."""
        return [self._record]

    def at_tick(self) -> str | None:
        """Read what happened since the last tick; the one place that waits for the device.

        Returns:
            A sentence when steps were skipped since the last call, else None.

        Raises:
            NonFiniteError: too many steps were skipped; on every rank alike.
        """
        skipped, _, step, network, loss, timestep = self._read()
        new = int(skipped) - self._reported
        if new == 0:
            self._record[:2] = self._record.new_tensor([0, -1])
            self._reported = 0
            return None
        self._reported = int(skipped)
        where = "at an unknown timestep"
        if timestep >= 0:
            where = f"at timestep {timestep:.0f}"
        elif math.isfinite(loss):
            where = "finite for every sample"
        what = (
            f"at step {step:.0f} the gradient of the {list(_NETWORKS.values())[int(network)]} was "
            f"not finite (loss {loss:.4g}, {where})"
        )
        if skipped > self.max_skipped:
            raise NonFiniteError(
                f"{what}, and {skipped:.0f} steps were skipped since the last good tick, more than "
                f"the {self.max_skipped} allowed by run.max_skipped: the last good state is kept, "
                "so start the same command again with a lower optim.lr_g and optim.lr_d, a higher "
                "loss.r1_gamma or run.precision fp32",
                int(step),
            )
        return f"Skipped {new} step{'s' if new > 1 else ''}: {what}."

    def _read(self) -> list[float]:
        record = self._record.tolist()
        # The counts are the same on all ranks, so either all of them come here or none.
        if record[0] > self._reported and _distributed():
            gathered = [torch.empty_like(self._record) for _ in range(dist.get_world_size())]
            dist.all_gather(gathered, self._record)
            rows = [row.tolist() for row in gathered]
            record = next((row for row in rows if row[5] >= 0), rows[0])
        return record


def step_unless(optimizer: torch.optim.Optimizer, found_inf: Tensor) -> None:
    """Step, unless ``found_inf`` is 1: then parameters, moments and step counts stay as they are.

    A fused optimiser of torch and a capturable one of apex decide on the device, also inside a CUDA
    graph. Any other one needs the answer on the host and waits for it.

    Raises:
        RuntimeError: an optimiser that is not fused is being captured into a CUDA graph.
    """
    if all(group.get("fused") for group in optimizer.param_groups):
        # The interface that torch.amp.GradScaler uses; the step counts need a tensor without axes.
        fused: Any = optimizer
        fused.found_inf, fused.grad_scale = found_inf.reshape(()), None
        try:
            optimizer.step()
        finally:
            del fused.found_inf, fused.grad_scale
        return
    if apex_adam.skips_on_device(optimizer):
        apex_adam.step_unless(optimizer, found_inf)
        return
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "inside a CUDA graph only a fused optimiser can skip a step with a non-finite "
            "gradient: set optim.backend to torch"
        )
    if not found_inf.item():
        optimizer.step()


def _first_bad(
    per_sample_loss: Tensor | None, t: Tensor | None, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and timestep of the first non-finite loss; the mean and -1 where all are finite."""
    nowhere = torch.full_like(like[0], -1)
    if per_sample_loss is None:
        return torch.full_like(like[0], float("nan")), nowhere
    losses = per_sample_loss.detach().reshape(-1).to(like.dtype)
    count = losses.numel()
    positions = torch.arange(count, device=losses.device)
    first = torch.where(torch.isfinite(losses), count, positions).min()
    any_bad, index = first < count, first.clamp(max=count - 1).reshape(1)
    loss = torch.where(any_bad, losses.index_select(0, index)[0], losses.mean())
    if t is None:
        return loss, nowhere
    return loss, torch.where(any_bad, t.reshape(-1).index_select(0, index)[0].to(like), nowhere)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
