"""The extractor ``idx``: a classifier of grey images looks at each channel by itself."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F

from ddgan_fast.evaluation.class_modes import ClassModes
from ddgan_fast.evaluation.features import Extractor
from ddgan_fast.evaluation.idx_classifier import FEATURES, STACKED_CLASSES, load_classifier

_AT_ONCE = {"cuda": 4000, "cpu": 500}
_BORDER = 2  # of black pixels, around images of 28x28 in networks for 32x32


def idx_extractor(
    path: str | os.PathLike[str], size: int, channels: int, device: torch.device
) -> Extractor:
    """The extractor of a classifier's file.

    Features are those of the channels one after the other, [N, 128 C]; logits likewise, [N, C K].

    Args:
        path: what ``ddgan-fast classifier`` wrote.
        size: side of the images to be judged.
        channels: of these, 1 or 3.
        device: where it computes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or another file, or does not fit the images.
    """
    classifier = load_classifier(path)
    about, network = classifier.about, classifier.network.to(device)
    border = _BORDER if size + 2 * _BORDER == about.size else 0
    if size + 2 * border != about.size:
        raise ValueError(
            f"{path} is of images of {about.size}x{about.size} pixels, and those to be judged have "
            f"{size}x{size}: train a classifier on the set that they are of."
        )
    if channels not in (1, 3):
        raise ValueError(
            f"the images have {channels} channels, and the extractor idx judges grey ones or three "
            "stacked ones: choose another extractor."
        )
    if channels == 3 and about.classes > STACKED_CLASSES:
        raise ValueError(
            f"{path} has {about.classes} classes, and stacked images are of modes 100 R + 10 G + B "
            f"with at most {STACKED_CLASSES} in a channel: use a classifier of such a set."
        )

    def look(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grey = F.pad(x / 127.5 - 1.0, (border,) * 4, value=-1.0).flatten(0, 1)[:, None]
        features = network.features(grey)
        logits = network.out(features)
        return features.view(len(x), -1), logits.view(len(x), -1)

    # In stacked images every class meets every other one; the classes of a grey set have shares.
    shares = tuple(n / sum(about.counts) for n in about.counts) if channels == 1 else None
    modes = ClassModes(about.classes, channels, shares=shares)
    padded = f", {border} black pixels on every side" if border else ""
    return Extractor(
        "idx",
        look,
        FEATURES * channels,
        classifier.sha256,
        f"each channel by itself{padded}, to [-1, 1]",
        at_once=_AT_ONCE[device.type],
        device=device,
        channels=channels,
        modes=modes,
        facts={
            "accuracy": about.accuracy,
            "tested_on": about.tested_on,
            "trained_on": about.data,
            "trained_on_digest": about.data_digest,
            "modes_in_all": modes.total,
            "found_from": "one sample",
            "real_stacked": {"modes": about.stacked_modes, "kl": about.stacked_kl},
            "kl_from": "uniform modes" if shares is None else "the training split's classes",
        },
    )
