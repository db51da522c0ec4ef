"""Extractors: from uint8 images, real or generated, to features and class probabilities."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ddgan_fast.evaluation import inception, lite
from ddgan_fast.evaluation.class_modes import ClassModes
from ddgan_fast.training.precision import Precision

EXTRACTORS = ("inception", "lite0", "digits", "idx")

# What the metrics named after Inception are called on other features: Fréchet distance, kernel
# distance, classifier score.
_STAND_IN = {"fid": "fd", "kid": "kd", "kid_std": "kd_std", "is": "cs", "is_std": "cs_std"}

Network = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Extractor:
    """A network that turns images into features.

    Args:
        name: one of ``EXTRACTORS``.
        network: float32 [N, C, H, W] in [0, 255] -> features [N, D] and logits [N, K].
        dim: D.
        sha256: of its weights.
        transform: what happens to an image on its way to the features, in words.
        at_once: images in a forward pass.
        device: where it computes.
        channels: C; grey images are repeated in all of them.
        modes: what its logits stand for, where modes can be counted by them.
        facts: what else a record should say of it.

    Attributes:
        name, dim, sha256, transform, at_once, device, channels, modes, facts: as given.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        dim: int,
        sha256: str,
        transform: str,
        *,
        at_once: int,
        device: torch.device,
        channels: int = 3,
        modes: ClassModes | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.dim, self.sha256, self.transform = name, dim, sha256, transform
        self.at_once, self.device = at_once, device
        self.channels, self.modes, self.facts = channels, modes, dict(facts or {})
        self._network = network
        self._precision = Precision("fp32", device.type)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [N, D] and logits [N, K] of uint8 images [N, H, W, C].

        Grey is repeated in all channels, and the fourth channel, alpha, is dropped.
        """
        results = []
        with self._precision.settings():
            for part in images.split(self.at_once):
                x = part.to(self.device)[..., : self.channels].permute(0, 3, 1, 2).float()
                if x.shape[1] == 1:
                    x = x.expand(-1, self.channels, -1, -1)
                results.append(self._network(x))
        features, logits = zip(*results, strict=True)
        return torch.cat(features), torch.cat(logits)

    def title(self, metric: str) -> str:
        """How a metric on these features is called: FID and its kin on Inception's alone."""
        if self.name == "inception":
            return metric
        return f"{_STAND_IN.get(metric, metric)}_{self.name}"

    def note(self) -> str | None:
        """What a reader of the numbers must know of the weights; None where all is as published."""
        if self.name != "inception" or self.sha256.startswith(inception.PUBLISHED_SHA256):
            return None
        return (
            f"the Inception weights (SHA-256 {self.sha256[:8]}) are not pytorch-fid's "
            f"({inception.PUBLISHED_SHA256}): these numbers compare with no published ones."
        )


def build_extractor(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    classifier: str | os.PathLike[str] | None = None,
    size: int = 32,
    channels: int = 3,
    device: torch.device | str = "cpu",
) -> Extractor:
    """The extractor of this name, from local files only.

    Args:
        name: "inception" (FID's), "lite0" (EfficientNet-Lite0), "digits" (a small classifier
            trained now) or "idx" (a classifier of ``ddgan-fast classifier``).
        weights: pytorch-fid's weight file, for "inception".
        classifier: the classifier's file, for "idx".
        size: side of the images, which a classifier must fit.
        channels: of the images, likewise.
        device: where it computes.

    Raises:
        ValueError: no such extractor, or a file that is missing, damaged, another or too many.
        FileNotFoundError: no such file.
        RuntimeError: a package is missing.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"the extractor is {name!r}: choose one of {', '.join(EXTRACTORS)}.")
    device = torch.device(device)
    if classifier is not None and name != "idx":
        raise ValueError(f"a classifier is named, but the extractor is {name}: leave one out.")
    if name == "inception":
        if weights is None:
            raise ValueError(
                "the extractor inception needs its weights: name pytorch-fid's file pt_inception-"
                f"2015-12-05-{inception.PUBLISHED_SHA256}.pth by --inception, or choose "
                "--extractor lite0, digits or idx (during training run.evaluate_inception and "
                "run.evaluate_extractor)."
            )
        network, sha256 = inception.load_inception(weights)
        return _from_module(
            name,
            network,
            inception.FEATURES,
            sha256,
            "RGB / 255, bilinear to 299 without antialiasing, to [-1, 1]",
            device,
            255.0,
        )
    if weights is not None:
        raise ValueError(f"--inception names weights, but the extractor is {name}: leave one out.")
    if name == "lite0":
        lite0, sha256 = lite.load_lite0()
        transform = "RGB, bilinear to 224 with antialiasing, (x - 127) / 128"
        return _from_module(name, lite0, lite.FEATURES, sha256, transform, device, 1.0)
    if name == "digits":
        return _digits()
    if classifier is None:
        raise ValueError(
            "the extractor idx needs a classifier: train one by ddgan-fast classifier, and name "
            "its file by --classifier (during training run.evaluate_classifier)."
        )
    from ddgan_fast.evaluation.idx_extractor import idx_extractor

    return idx_extractor(classifier, size, channels, device)


def _from_module(
    name: str,
    module: nn.Module,
    dim: int,
    sha256: str,
    transform: str,
    device: torch.device,
    scale: float,
) -> Extractor:
    module.to(device)
    at_once = 128 if device.type == "cuda" else 32
    return Extractor(
        name,
        lambda x: module(x / scale),
        dim,
        sha256,
        transform,
        at_once=at_once,
        device=device,
    )


def _digits() -> Extractor:
    from ddgan_fast.evaluation.digits import CLASSES, RECOGNISED_FROM, digit_judge, to_judged_size

    classifier = digit_judge().classifier
    digest = hashlib.sha256()
    for value in classifier.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())

    def network(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = classifier.features(to_judged_size(x / 127.5 - 1.0))
        return features, classifier.out(features)

    return Extractor(
        "digits",
        network,
        classifier.hidden.out_features,
        digest.hexdigest(),
        "grey, mean over cells to 8x8, to [-1, 1]",
        at_once=1000,
        device=torch.device("cpu"),
        modes=ClassModes(CLASSES, found_from=RECOGNISED_FROM),
    )
