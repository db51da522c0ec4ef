"""A small classifier for the grey images of an IDX set, trained once and kept in a file."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ddgan_fast.files import atomic_open
from ddgan_fast.training.archive import bytes_of, write_safetensors

FEATURES = 128
STACKED_CLASSES = 10
"""At most, of a channel of stacked images, whose modes are 100 R + 10 G + B."""

_FORMAT = "ddgan_fast idx classifier"
_VERSION = "1"
_AGAIN = "make it again by ddgan-fast classifier"


class Network(nn.Module):
    """Grey images [N, 1, S, S] in [-1, 1] -> 128 features, not negative -> logits.

    Args:
        size: S.
        classes: number of logits.
    """

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        widths, kernels = (1, 32, 64, 128), (5, 3, 3)
        layers: list[nn.Module] = []
        # Strides instead of pools, whose gradient on GPUs is summed in no fixed order.
        for inputs, outputs, kernel in zip(widths, widths[1:], kernels, strict=False):
            layers += [
                nn.Conv2d(inputs, outputs, kernel, 2, kernel // 2, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.hidden = nn.Linear(widths[-1] * (-(-size // 8)) ** 2, FEATURES)
        self.out = nn.Linear(FEATURES, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 128]."""
        return F.relu(self.hidden(self.body(x).flatten(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.dropout(self.features(x), 0.3, self.training))


@dataclass(frozen=True)
class About:
    """What is known of a classifier.

    Attributes:
        size: side of its images in pixels.
        classes: number of classes.
        counts: images of each class in the training split.
        accuracy: share of the test images that it gets right.
        tested_on: which images these are, and how many.
        stacked_modes: out of ``classes ** 3``, that it finds in the test images when these are
            stacked, twice as many as there are.
        stacked_kl: of their shares from even ones.
        data: folder or file of the set, by its name.
        data_digest: fingerprint of the images and labels that it was trained on.
        epochs: passes over them.
        seed: of the weights and the order.
        version: of ddgan_fast.
    """

    size: int
    classes: int
    counts: tuple[int, ...]
    accuracy: float
    tested_on: str
    stacked_modes: int
    stacked_kl: float
    data: str
    data_digest: str
    epochs: int
    seed: int
    version: str


@dataclass(frozen=True)
class Classifier:
    """A trained network, what is known of it, and the SHA-256 of both."""

    network: Network
    about: About
    sha256: str


def make_classifier(network: Network, about: About) -> Classifier:
    """The classifier of a network that is trained, on the CPU."""
    network.to("cpu").requires_grad_(False).eval()
    return Classifier(network, about, _digest(network.state_dict(), _to_json(about)))


def save_classifier(classifier: Classifier, path: str | os.PathLike[str]) -> None:
    """Write weights and what is known of them to a file, which appears when it is complete.

    Raises:
        ValueError: the name does not end in .safetensors.
        OSError: the file cannot be written.
    """
    check_target(path)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "about": _to_json(classifier.about),
        "sha256": classifier.sha256,
    }
    tensors = {k: v.cpu().contiguous() for k, v in classifier.network.state_dict().items()}
    with atomic_open(path) as file:
        write_safetensors(tensors, metadata, file)


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a name that ``save_classifier`` could not write; to be asked before the work.

    Raises:
        ValueError: the suffix is not .safetensors, or no file can be made there.
    """
    place = Path(path).absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(
            f"{os.fspath(path)} cannot be written, as {place} is no folder that you may write to: "
            "choose another place."
        )
    if Path(path).suffix != ".safetensors":
        raise ValueError(
            f"a classifier is written as a .safetensors file, and {os.fspath(path)} is none."
        )


def load_classifier(path: str | os.PathLike[str]) -> Classifier:
    """Read and verify a classifier.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else.
    """
    from safetensors import safe_open

    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no classifier {path}: {_AGAIN}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the library has an exception of its own for each language
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is no classifier, or it is cut short: "
            f"{_AGAIN}."
        ) from error
    if metadata.get("format") != _FORMAT or metadata.get("format_version") != _VERSION:
        what = " ".join(metadata.get(key, "") for key in ("format", "format_version")).strip()
        raise ValueError(
            f"{path} is no classifier of this version ({what or 'a safetensors file of others'}): "
            f"{_AGAIN}."
        )
    if _digest(tensors, metadata.get("about", "")) != metadata.get("sha256"):
        raise ValueError(f"{path} is damaged: its bytes changed after it was written; {_AGAIN}.")
    try:
        about = _from_json(metadata["about"])
        with torch.random.fork_rng(devices=[]):  # the initial weights are drawn in vain
            network = Network(about.size, about.classes)
        network.load_state_dict(tensors)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds another network than this version's: {_AGAIN}.") from error
    return Classifier(network.requires_grad_(False).eval(), about, metadata["sha256"])


def _to_json(about: About) -> str:
    return json.dumps(asdict(about))


def _from_json(text: str) -> About:
    values: dict[str, Any] = json.loads(text)
    return About(**{**values, "counts": tuple(values["counts"])})


def _digest(tensors: dict[str, torch.Tensor], about: str) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {_VERSION} {about}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
