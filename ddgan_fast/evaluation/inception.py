"""The Inception network behind FID, for the weight file that pytorch-fid publishes.

The graph is Inception v3 (Szegedy et al., "Rethinking the Inception Architecture", 2016) as the
TensorFlow model of 2015-12-05 has it, which differs from the paper's in three pooling branches:
average pools do not count their padding, and the last block takes the maximum.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

FEATURES = 2048
CLASSES = 1008
SIZE = 299
"""Side of the images that the network sees."""
PUBLISHED_SHA256 = "6726825d"
"""First digits of the hash of pt_inception-2015-12-05-6726825d.pth."""

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.pth?$")


class _Layer(NamedTuple):
    """A convolution of a chain; one that forks shares its input with the layer after it."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    forks: bool = False


_Chain = tuple[_Layer, ...]
_3x3, _5x5, _1x7, _7x1, _1x3, _3x1 = (3, 3), (5, 5), (1, 7), (7, 1), (1, 3), (3, 1)


class _Convolution(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Chains of convolutions and a pooling branch side by side, their channels concatenated.

    Args:
        inputs: channels of the input.
        chains: the branches of convolutions.
        pool: "average" or "max" (then a 1x1 convolution of ``pool_width``), or "halve": the last
            layer of each chain and the pool have stride 2.
        pool_width: channels of the pooling branch; unused with "halve".
    """

    def __init__(
        self, inputs: int, chains: tuple[_Chain, ...], pool: str, pool_width: int = 0
    ) -> None:
        super().__init__()
        self.chains, self.pool = chains, pool
        self.width = inputs if pool == "halve" else pool_width
        for chain in chains:
            width = inputs
            for layer in chain:
                halves = pool == "halve" and layer is chain[-1]
                padding = (0, 0) if halves else (layer.kernel[0] // 2, layer.kernel[1] // 2)
                module = _Convolution(width, layer.width, layer.kernel, 1 + halves, padding)
                self.add_module(f"branch{layer.name}", module)
                if not layer.forks:
                    width = layer.width
            self.width += layer.width + sum(item.width for item in chain if item.forks)
        if pool != "halve":
            self.branch_pool = _Convolution(inputs, pool_width, (1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = []
        for chain in self.chains:
            h = x
            for layer in chain:
                result = self.get_submodule(f"branch{layer.name}")(h)
                if layer.forks:
                    outputs.append(result)
                else:
                    h = result
            outputs.append(h)
        return torch.cat([*outputs, self._pooled(x)], 1)

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool == "halve":
            return F.max_pool2d(x, 3, 2)
        if self.pool == "max":
            return self.branch_pool(F.max_pool2d(x, 3, 1, 1))
        return self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


def _block_a(inputs: int, pool_width: int) -> _Mixed:
    double = (_Layer("3x3dbl_1", 64), _Layer("3x3dbl_2", 96, _3x3), _Layer("3x3dbl_3", 96, _3x3))
    five = (_Layer("5x5_1", 48), _Layer("5x5_2", 64, _5x5))
    return _Mixed(inputs, ((_Layer("1x1", 64),), five, double), "average", pool_width)


def _block_b(inputs: int) -> _Mixed:
    double = (_Layer("3x3dbl_1", 64), _Layer("3x3dbl_2", 96, _3x3), _Layer("3x3dbl_3", 96, _3x3))
    return _Mixed(inputs, ((_Layer("3x3", 384, _3x3),), double), "halve")


def _block_c(inputs: int, c: int) -> _Mixed:
    seven = (_Layer("7x7_1", c), _Layer("7x7_2", c, _1x7), _Layer("7x7_3", 192, _7x1))
    double = (
        _Layer("7x7dbl_1", c),
        _Layer("7x7dbl_2", c, _7x1),
        _Layer("7x7dbl_3", c, _1x7),
        _Layer("7x7dbl_4", c, _7x1),
        _Layer("7x7dbl_5", 192, _1x7),
    )
    return _Mixed(inputs, ((_Layer("1x1", 192),), seven, double), "average", 192)


def _block_d(inputs: int) -> _Mixed:
    three = (_Layer("3x3_1", 192), _Layer("3x3_2", 320, _3x3))
    seven = (
        _Layer("7x7x3_1", 192),
        _Layer("7x7x3_2", 192, _1x7),
        _Layer("7x7x3_3", 192, _7x1),
        _Layer("7x7x3_4", 192, _3x3),
    )
    return _Mixed(inputs, (three, seven), "halve")


def _block_e(inputs: int, pool: str) -> _Mixed:
    three = (
        _Layer("3x3_1", 384),
        _Layer("3x3_2a", 384, _1x3, forks=True),
        _Layer("3x3_2b", 384, _3x1),
    )
    double = (
        _Layer("3x3dbl_1", 448),
        _Layer("3x3dbl_2", 384, _3x3),
        _Layer("3x3dbl_3a", 384, _1x3, forks=True),
        _Layer("3x3dbl_3b", 384, _3x1),
    )
    return _Mixed(inputs, ((_Layer("1x1", 320),), three, double), pool, 192)


class InceptionV3(nn.Module):
    """FID's Inception: images -> features [N, 2048] and logits [N, 1008].

    The logits leave out the bias of the last layer, as the TensorFlow graph's do from which the
    Inception Score is computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, _3x3, 2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, _3x3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, _3x3, 1, (1, 1))
        self.Conv2d_3b_1x1 = _Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Convolution(80, 192, _3x3)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(768, 128)
        self.Mixed_6c = _block_c(768, 160)
        self.Mixed_6d = _block_c(768, 160)
        self.Mixed_6e = _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, "average")
        self.Mixed_7c = _block_e(2048, "max")
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [N, 3, H, W] in [0, 1], resized bilinearly without antialiasing to 299x299."""
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(2.0 * x - 1.0))
        x = F.max_pool2d(self.Conv2d_2b_3x3(x), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = x.mean((2, 3))
        return features, F.linear(features, self.fc.weight)


def load_inception(path: str | os.PathLike[str]) -> tuple[InceptionV3, str]:
    """The network with the weights of a file, and the file's SHA-256; no code in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not what its name says, cannot be read, or holds other tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no Inception weight file {path}: get pytorch-fid's "
            f"pt_inception-2015-12-05-{PUBLISHED_SHA256}.pth and name it by --inception."
        )
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    named = _HASH_IN_NAME.search(path.name)
    if named and not sha256.startswith(named[1]):
        raise ValueError(
            f"{path} is damaged or another file: its SHA-256 begins with {sha256[:8]}, and its "
            f"name promises {named[1]}; download it again."
        )
    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn in vain
        network = InceptionV3()
    load_weights(network, path, "pytorch-fid's Inception weights")
    return network, sha256


def load_weights(network: nn.Module, path: Path, what: str) -> None:
    """Put the tensors of a file into a network that then only evaluates.

    Args:
        network: whose tensors have the file's names.
        path: a file of ``torch.save``.
        what: how messages call what the file should hold.

    Raises:
        ValueError: the file cannot be read, or its tensors differ in name or shape.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise ValueError(
            f"{path} cannot be read as {what} ({type(error).__name__}): it is cut short or another "
            "file; download it again."
        ) from error
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds no tensors by name, so it is not {what}.")
    own = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    given = {k: v for k, v in weights.items() if not str(k).endswith("num_batches_tracked")}
    names = [*(k for k in own if k not in given), *(k for k in given if k not in own)]
    if names:
        side = "lacks" if names[0] in own else "has besides"
        raise ValueError(
            f"{path} is not {what}: tensors differ in name ({len(names)}); it {side} {names[0]}."
        )
    for name, tensor in own.items():
        if not isinstance(given[name], torch.Tensor) or given[name].shape != tensor.shape:
            shape = list(getattr(given[name], "shape", []))
            raise ValueError(
                f"{path} is not {what}: {name} is {shape} instead of {list(tensor.shape)}."
            )
    network.load_state_dict(given, strict=False)
    network.requires_grad_(False).eval()
