"""Terms that join the generator's adversarial loss: a registry of functions by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch


@dataclass
class TermContext:
    """What a term may look at, each of it of N samples and in float32 at least.

    Attributes:
        x0_prediction: x_0' = G(x_{t+1}, t, z), [N, ...]; the gradient flows through it.
        x0: the data [N, ...] that x_{t+1} was made of, mirrored as it was there.
        x_t: the real x_t [N, ...] of the pair.
        x_next: x_{t+1} [N, ...].
        t: int64 [N], target timesteps.
        label: int64 [N], classes as the networks are told them; None where they know none.
    """

    x0_prediction: torch.Tensor
    x0: torch.Tensor
    x_t: torch.Tensor
    x_next: torch.Tensor
    t: torch.Tensor
    label: torch.Tensor | None = None


Term = Callable[[TermContext], "torch.Tensor"]
_Function = TypeVar("_Function", bound=Term)


@dataclass(frozen=True)
class WeightedTerm:
    """A term of the generator's loss.

    Attributes:
        name: its statistic is "G/<name>", before the weight.
        weight: its factor in the loss.
        function: per-sample losses [N] of a context.
    """

    name: str
    weight: float
    function: Term


_TERMS: dict[str, Term] = {}
# Statistics of the generator that are no terms.
_TAKEN = ("loss", "x0", "grad_norm", "loss_scale", "ema_distance")


def register(name: str) -> Callable[[_Function], _Function]:
    """Decorator that makes a function a term, for ``loss.terms`` to give it a weight.

    Call it before the configuration is loaded. The function maps a ``TermContext`` to losses [N],
    one per sample. With an engine other than "eager" torch.compile traces it or a CUDA graph
    records it: it must not read values back to the host.

    Args:
        name: a word, for options and statistics.

    Raises:
        ValueError: the name is no word, or means something already.
    """
    if not name.isidentifier():
        raise ValueError(f"the name of a term is {name!r}: it must be a word.")
    if name in _TERMS or name in _TAKEN:
        raise ValueError(f"the name {name!r} of a term is taken: choose another one.")

    def keep(function: _Function) -> _Function:
        _TERMS[name] = function
        return function

    return keep


def known_terms() -> list[str]:
    """Names that ``loss.terms`` accepts, in alphabetical order."""
    return sorted(_TERMS)


def weighted_terms(weights: dict[str, float]) -> list[WeightedTerm]:
    """The terms of a validated ``loss.terms``."""
    return [WeightedTerm(name, weight, _TERMS[name]) for name, weight in weights.items()]


@register("l1")
def l1(context: TermContext) -> torch.Tensor:
    """Mean absolute error of the prediction, as in WaveDiff (Phung et al., CVPR 2023)."""
    return (context.x0_prediction - context.x0).abs().flatten(1).mean(1)


@register("l2")
def l2(context: TermContext) -> torch.Tensor:
    """Mean squared error of the prediction."""
    return (context.x0_prediction - context.x0).square().flatten(1).mean(1)
