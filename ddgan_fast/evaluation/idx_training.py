"""Training of the classifier of an IDX set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ddgan_fast import __version__
from ddgan_fast.data.records_idx import ArrayRecords, idx_folder, open_idx, stacked_triples
from ddgan_fast.evaluation.class_modes import ClassModes
from ddgan_fast.evaluation.idx_classifier import About, Classifier, Network, make_classifier
from ddgan_fast.training.precision import Precision

EPOCHS = 6
MOST_CLASSES = 255

_BATCH = 128
_RATE = 3e-3
_AT_ONCE = 1000
_HELD_OUT = 10  # one image in so many, where a set has no test split
_LEAST_SIDE = 8


@dataclass(frozen=True)
class _Part:
    images: torch.Tensor  # uint8 [N, 1, S, S]
    labels: torch.Tensor  # int64 [N]

    def chosen(self, numbers: torch.Tensor) -> _Part:
        return _Part(self.images[numbers], self.labels[numbers])


def train_classifier(
    path: str | os.PathLike[str],
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> Classifier:
    """Train on an IDX set, and measure the accuracy on its test split.

    A set without one, or a single file of images, has every tenth image held out. The same seed
    gives the same weights on the same kind of machine.

    Args:
        path: the set, as for ``open_idx``; 28x28 images are padded to 32x32.
        epochs: passes over the training images.
        seed: of the weights, the order, and the images held out.
        device: where to train.
        say: told of every epoch.

    Raises:
        FileNotFoundError: there are no such files.
        ValueError: no labels, one class or more than 255, images that are not square or smaller
            than 8x8, a damaged file, or fewer epochs than 1.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}: it must be at least 1.")
    path, device = Path(path).expanduser(), torch.device(device)
    records = open_idx(path, "train")
    seen = _part(records, device)
    counts = _counts(records)
    test, tested_on = _test_part(path, device), "its test split"
    if test is None:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(seen.labels)))
        held_out = max(1, len(order) // _HELD_OUT)
        test, seen = seen.chosen(order[:held_out]), seen.chosen(order[held_out:])
        tested_on = "held out"
    size = seen.images.shape[-1]
    if test.images.shape[-1] != size:
        raise ValueError(f"{path}: its training and test images differ in size.")
    with _repeatable(seed, device):
        network = Network(size, len(counts)).to(device)
        _train(network, seen, epochs, lambda k: say(_told(k, epochs, network, test)))
        accuracy = _accuracy(network, test)
        stacked = _stacked(_verdicts(network, test), len(counts))
    about = About(
        size,
        len(counts),
        counts,
        accuracy,
        f"{len(test.labels):,} images, {tested_on}",
        int(stacked["modes"]),
        stacked["kl"],
        path.resolve().name,
        records.fingerprint,
        epochs,
        seed,
        __version__,
    )
    return make_classifier(network, about)


def _part(records: ArrayRecords, device: torch.device) -> _Part:
    pixels, labels = records.pixels(), records.labels
    if labels is None:
        raise ValueError(
            f"{records.path} has no labels: put the file of the labels, such as "
            "train-labels-idx1-ubyte.gz, beside that of the images."
        )
    height, width = pixels.shape[1:3]
    if height != width or height < _LEAST_SIDE:
        raise ValueError(
            f"{records.path} has images of {height}x{width} pixels: a classifier takes square "
            f"ones of at least {_LEAST_SIDE}x{_LEAST_SIDE}."
        )
    images = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)
    return _Part(images.to(device), torch.from_numpy(labels).to(device))


def _counts(records: ArrayRecords) -> tuple[int, ...]:
    """Images of each class."""
    assert records.labels is not None
    counts = np.bincount(records.labels)
    if np.count_nonzero(counts) < 2 or len(counts) > MOST_CLASSES:
        raise ValueError(
            f"{records.path} has labels from {records.labels.min()} to {records.labels.max()}: a "
            f"classifier needs at least two classes, with numbers below {MOST_CLASSES}."
        )
    return tuple(counts.tolist())


def _test_part(path: Path, device: torch.device) -> _Part | None:
    """The images of the files t10k or test; None where there are none beside those of training."""
    folder = None if path.is_file() else idx_folder(path)
    if folder is None:
        return None
    try:
        records = open_idx(path, "validation")
    except FileNotFoundError:
        return None
    return None if records.labels is None else _part(records, device)


@contextmanager
def _repeatable(seed: int, device: torch.device) -> Iterator[None]:
    """Draws follow from the seed, and sums on a GPU have one order."""
    cudnn = torch.backends.cudnn
    devices = [device] if device.type == "cuda" else []
    before = cudnn.deterministic
    with torch.random.fork_rng(devices=devices), Precision("fp32", device.type).settings():
        torch.manual_seed(seed)
        cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        finally:
            cudnn.deterministic = before


def _train(network: Network, part: _Part, epochs: int, done: Callable[[int], None]) -> None:
    count = len(part.labels)
    batch = min(_BATCH, count)
    steps = epochs * (count // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        network.train()
        order = torch.randperm(count).to(part.labels.device)
        for numbers in order.split(batch)[: count // batch]:
            logits = network(_scaled(part.images[numbers]))
            loss = F.cross_entropy(logits, part.labels[numbers])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        done(epoch)


def _told(epoch: int, epochs: int, network: Network, test: _Part) -> str:
    return f"Epoch {epoch + 1} of {epochs}: {_accuracy(network, test):.2%} right."


def _accuracy(network: Network, part: _Part) -> float:
    return float((_verdicts(network, part) == part.labels).float().mean())


@torch.no_grad()
def _verdicts(network: Network, part: _Part) -> torch.Tensor:
    network.eval()
    found = [network(_scaled(images)).argmax(1) for images in part.images.split(_AT_ONCE)]
    return torch.cat(found)


def _stacked(verdicts: torch.Tensor, classes: int) -> dict[str, float]:
    """Modes and divergence of real images stacked: what perfect samples are judged to be."""
    modes = ClassModes(classes, 3)
    triples = verdicts.cpu()[torch.from_numpy(stacked_triples(len(verdicts)))]
    return modes.scores(modes.counts(F.one_hot(triples, classes).flatten(1)))


def _scaled(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1.0
