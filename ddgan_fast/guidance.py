"""Samples of chosen classes: labels by sample number, and the two ways to insist on them.

Classifier-free guidance (Ho and Salimans, 2022) extrapolates from the prediction for the null class
to that for the class; classifier guidance (Dhariwal and Nichol, 2021) moves the predicted noise by
the gradient of a classifier of diffused images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from .config import Config
from .diffusion import Diffusion, Generator
from .kernels import philox

Conditional = Callable[..., torch.Tensor]
"""A generator (x, t, z) that also takes ``label=`` int64 [N]."""
Classifier = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x_{t+1} [N, ...], t int64 [N]) -> logits [N, K]."""


class Guide(Protocol):
    """A classifier with what it was trained for: ``classifier.LoadedClassifier``."""

    cfg: Config
    source: Path

    def check(self, cfg: Config) -> None:
        """Refuse a model that it does not fit."""

    def to(self, device: torch.device) -> Any:
        """Move it."""

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Logits [N, K] of x_{t+1} [N, ...] and t int64 [N]."""


@dataclass(frozen=True)
class Guidance:
    """Which classes samples are to show, and how strongly.

    Attributes:
        labels: classes of the samples 0, 1, ..., and again from the first; empty: every sample's
            class is drawn uniformly, from seed and sample number.
        scale: w of null + w (conditional - null): 1 follows the class as trained at the cost of one
            evaluation, 0 ignores it, more insists on it.
        classifier: of diffused images, for a DDPM.
        classifier_scale: s, by which its gradient counts.
    """

    labels: tuple[int, ...] = ()
    scale: float = 1.0
    classifier: Guide | None = None
    classifier_scale: float = 1.0


class Condition:
    """A guidance on a device, for one model; ``bind`` makes it.

    Attributes:
        evaluations: of the generator in each step of a sampler.
        at_once: samples that pass through the generator for each one asked for.
    """

    def __init__(self, cfg: Config, guidance: Guidance, device: torch.device) -> None:
        self._guidance = guidance
        self._null = cfg.model.num_classes
        self._labels: torch.Tensor | None = None
        self._classes = self._null
        if guidance.classifier is not None:
            guidance.classifier.to(device)
            self._classes = guidance.classifier.cfg.model.num_classes
        if guidance.labels:
            # Made here, since a recorded graph cannot take numbers from the host.
            self._labels = torch.tensor(guidance.labels, dtype=torch.int64, device=device)
        self.evaluations = self.at_once = 1 if guidance.scale in (0.0, 1.0) else 2
        levels = Diffusion.from_config(cfg.model).levels()[1:, 1]
        self._noise = torch.from_numpy(levels).to(device, torch.float32)

    def facts(self) -> dict[str, Any]:
        """What a record says of it."""
        asked = self._guidance
        found: dict[str, Any] = {"labels": list(asked.labels) or "uniform"}
        if self._null:
            found["guidance"] = asked.scale
        if asked.classifier is not None:
            found["classifier"] = asked.classifier.source.name
            found["classifier_scale"] = asked.classifier_scale
        return found

    def labels(self, seed: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Classes int64 [N] of the samples ``index`` int64 [N] of a seed int64[1]."""
        if self._labels is None:
            return philox.integers(philox.split(seed, 2)[1:], index, self._classes)
        return self._labels.index_select(0, index % len(self._labels))

    def guided(self, generator: Conditional, label: torch.Tensor) -> Generator:
        """The generator's prediction for classes int64 [N], guided."""
        own: Generator = generator
        asked = self._guidance
        if self._null:
            own = classifier_free(generator, label, self._null, asked.scale)
        if asked.classifier is None:
            return own
        return by_classifier(own, asked.classifier, label, self._noise, asked.classifier_scale)


def grid_columns(n: int, classes: int) -> int | None:
    """Images per row so that n samples of so many classes in turn have a class in each column."""
    if not 1 < classes <= n:
        return None
    return classes * max(1, round(math.sqrt(n) / classes))


def classifier_free(
    generator: Conditional, label: torch.Tensor, null: int, scale: float
) -> Generator:
    """null + scale (conditional - null), both predicted in one call where both are needed.

    Args:
        generator: predicts x_0 or noise.
        label: classes int64 [N].
        null: number of the null class.
        scale: w.
    """
    nothing = torch.full_like(label, null)
    if scale in (0.0, 1.0):
        single = label if scale else nothing
        return lambda x, t, z: generator(x, t, z, label=single)
    both = torch.cat((label, nothing))

    def predict(x: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        twice = (torch.cat((value, value)) for value in (x, t, z))
        told, untold = generator(*twice, label=both).chunk(2)
        return untold + scale * (told - untold)

    return predict


def by_classifier(
    generator: Generator,
    classifier: Classifier,
    label: torch.Tensor,
    noise: torch.Tensor,
    scale: float,
) -> Generator:
    """eps - scale sqrt(1 - abar) grad log p(label | x_{t+1}, t), of a generator that predicts eps.

    The score of x_{t+1} is -eps / sqrt(1 - abar), and that of the class is added to it.

    Args:
        generator: predicts the noise.
        classifier: logits of diffused samples.
        label: classes int64 [N].
        noise: [T], sqrt(1 - abar) of x_{t+1} for every t.
        scale: s.
    """

    def predict(x: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            logits = classifier(leaf, t)
            wide = torch.promote_types(logits.dtype, torch.float32)
            chosen = logits.to(wide).log_softmax(1).gather(1, label[:, None])
            (gradient,) = torch.autograd.grad(chosen.sum(), leaf)
        sigma = noise.index_select(0, t).reshape(-1, *[1] * (x.ndim - 1))
        return generator(x, t, z) - (scale * sigma * gradient).to(x.dtype)

    return predict


def bind(
    cfg: Config, guidance: Guidance | None, device: torch.device | str
) -> Condition | None:
    """A guidance for a model, checked; None for a model without classes.

    Args:
        cfg: the model's configuration.
        guidance: what is asked for; default: uniformly drawn classes, where the model knows any.
        device: where samples are drawn.

    Raises:
        ValueError: the model, or the classifier, cannot do what is asked.
    """
    known = cfg.model.num_classes
    if guidance is None:
        return Condition(cfg, Guidance(), torch.device(device)) if known else None
    for name, value in (
        ("guidance", guidance.scale),
        ("classifier scale", guidance.classifier_scale),
    ):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"the {name} is {value}: it must be a number of at least 0.")
    if guidance.classifier is not None:
        guidance.classifier.check(cfg)
        if not known and guidance.scale != 1.0:
            raise ValueError(
                f"the guidance is {guidance.scale}, but the model itself knows no classes "
                "(model.num_classes 0): leave it out, and set the classifier scale."
            )
        known = guidance.classifier.cfg.model.num_classes
    elif not known:
        if guidance == Guidance():
            return None
        raise ValueError(
            "classes or guidance are asked for, but the model knows no classes "
            "(model.num_classes 0): leave them out, or guide a DDPM by a classifier."
        )
    for label in guidance.labels:
        if not 0 <= label < known:
            raise ValueError(f"the class {label} does not exist: classes are 0 to {known - 1}.")
    return Condition(cfg, guidance, torch.device(device))
