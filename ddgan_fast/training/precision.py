"""What a run computes in: parameters, autocast, TF32, and the loss scale of float16."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_GROWTH_INTERVAL = 2000
_INITIAL_SCALE = 2.0**16


@dataclass(frozen=True)
class Precision:
    """Numbers of a run. Parameters, moments and averages are float32 in all but "fp64".

    Attributes:
        name: "fp32", "tf32", "bf16", "fp16" or "fp64".
        device_type: "cpu" or "cuda".
    """

    name: str
    device_type: str

    @classmethod
    def choose(cls, name: str, device_type: str) -> Precision:
        """The precision of an option's value; "auto" is bf16 on GPUs and fp32 elsewhere."""
        if name == "auto":
            name = "bf16" if device_type == "cuda" else "fp32"
        return cls(name, device_type)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return torch.float64 if self.name == "fp64" else torch.float32

    def autocast(self, cache: bool = True) -> contextlib.AbstractContextManager[None]:
        """For forward passes; without ``cache`` weights are cast anew each time they are used."""
        if self.name not in _AUTOCAST:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, _AUTOCAST[self.name], cache_enabled=cache)

    def loss_scale(self, device: torch.device) -> LossScale | None:
        """A loss scale where gradients would vanish without."""
        return LossScale(device) if self.name == "fp16" else None

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """Set what torch decides for the whole process; afterwards it is as before.

        TF32 is off for "fp32", and on for what stays float32 elsewhere. cuDNN tries its algorithms,
        as all shapes repeat.
        """
        tf32 = self.name not in ("fp32", "fp64")
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = tf32, tf32, True
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before

    def describe(self) -> str:
        """One line for the user."""
        words = {
            "fp32": "float32 without TF32",
            "tf32": "float32, TF32 in convolutions and matrix products",
            "bf16": "bfloat16 autocast over float32 weights",
            "fp16": "float16 autocast over float32 weights, dynamic loss scale",
            "fp64": "float64",
        }
        text = f"Precision: {self.name} ({words[self.name]})"
        if self.device_type == "cuda":
            text += f", cuDNN {torch.backends.cudnn.version()} picks its algorithms by timing"
        return f"{text}."


class LossScale:
    """Factor on the loss that keeps float16 gradients from vanishing, found as training goes.

    Halved when a gradient overflows, whose update is skipped; doubled after 2,000 good updates.
    All of it stays on the device. Ranks agree without asking: they look at reduced gradients.

    Attributes:
        value: float32 [], the factor.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.value = torch.full((), _INITIAL_SCALE, device=device)
        self._good = torch.zeros((), dtype=torch.int32, device=device)

    @torch.no_grad()
    def unscale(self, gradients: list[torch.Tensor]) -> None:
        """Divide gradients of a scaled loss, in place."""
        torch._foreach_mul_(gradients, 1.0 / self.value)

    def may_overflow(self) -> torch.Tensor:
        """bool []: an overflow is the scale's doing, not the run's."""
        return self.value > 1.0

    @torch.no_grad()
    def update(self, found_inf: torch.Tensor) -> None:
        """Take in whether the last gradient overflowed (1) or not (0)."""
        bad = found_inf.reshape(()) > 0
        good = torch.where(bad, 0, self._good + 1)
        grown = good >= _GROWTH_INTERVAL
        factor = torch.where(bad, 0.5, torch.where(grown, 2.0, 1.0))
        self.value.copy_((self.value * factor).clamp(min=1.0, max=2.0**24))
        self._good.copy_(torch.where(grown, 0, good))

    def tensors(self) -> list[torch.Tensor]:
        """Everything that changes, for who saves it and puts it back in place."""
        return [self.value, self._good]
