"""FID's Inception written out block by block with torch.nn modules, and weights from a seed."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs: int, outputs: int, kernel, stride=1, padding=0) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
            bn=nn.BatchNorm2d(outputs, eps=0.001),
            relu=nn.ReLU(),
        )
    )


class A(nn.Module):
    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = conv(inputs, 64, 1)
        self.branch5x5_1 = conv(inputs, 48, 1)
        self.branch5x5_2 = conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = conv(inputs, 64, 1)
        self.branch3x3dbl_2 = conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = conv(96, 96, 3, padding=1)
        self.branch_pool = conv(inputs, pooled, 1)
        self.average = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x):
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(self.average(x))], 1)


class B(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = conv(288, 384, 3, 2)
        self.branch3x3dbl_1 = conv(288, 64, 1)
        self.branch3x3dbl_2 = conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = conv(96, 96, 3, 2)

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, nn.MaxPool2d(3, 2)(x)], 1)


class C(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.branch1x1 = conv(768, 192, 1)
        self.branch7x7_1 = conv(768, c, 1)
        self.branch7x7_2 = conv(c, c, (1, 7), padding=(0, 3))
        self.branch7x7_3 = conv(c, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = conv(768, c, 1)
        self.branch7x7dbl_2 = conv(c, c, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = conv(c, c, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = conv(c, c, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = conv(c, 192, (1, 7), padding=(0, 3))
        self.branch_pool = conv(768, 192, 1)
        self.average = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x):
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(self.average(x))], 1)


class D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = conv(768, 192, 1)
        self.branch3x3_2 = conv(192, 320, 3, 2)
        self.branch7x7x3_1 = conv(768, 192, 1)
        self.branch7x7x3_2 = conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = conv(192, 192, 3, 2)

    def forward(self, x):
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, self.branch7x7x3_4(seven), nn.MaxPool2d(3, 2)(x)], 1)


class E(nn.Module):
    def __init__(self, inputs: int, pool: nn.Module) -> None:
        super().__init__()
        self.branch1x1 = conv(inputs, 320, 1)
        self.branch3x3_1 = conv(inputs, 384, 1)
        self.branch3x3_2a = conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = conv(inputs, 448, 1)
        self.branch3x3dbl_2 = conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = conv(inputs, 192, 1)
        self.pool = pool

    def forward(self, x):
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(three),
                self.branch3x3_2b(three),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(self.pool(x)),
            ],
            1,
        )


class PlainInception(nn.Sequential):
    """Everything up to the pooled features, [N, 3, 299, 299] in [-1, 1] -> [N, 2048]."""

    def __init__(self) -> None:
        average = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        super().__init__(
            OrderedDict(
                Conv2d_1a_3x3=conv(3, 32, 3, 2),
                Conv2d_2a_3x3=conv(32, 32, 3),
                Conv2d_2b_3x3=conv(32, 64, 3, padding=1),
                first_pool=nn.MaxPool2d(3, 2),
                Conv2d_3b_1x1=conv(64, 80, 1),
                Conv2d_4a_3x3=conv(80, 192, 3),
                second_pool=nn.MaxPool2d(3, 2),
                Mixed_5b=A(192, 32),
                Mixed_5c=A(256, 64),
                Mixed_5d=A(288, 64),
                Mixed_6a=B(),
                Mixed_6b=C(128),
                Mixed_6c=C(160),
                Mixed_6d=C(160),
                Mixed_6e=C(192),
                Mixed_7a=D(),
                Mixed_7b=E(1280, average),
                Mixed_7c=E(2048, nn.MaxPool2d(3, 1, 1)),
                last_pool=nn.AdaptiveAvgPool2d(1),
                flat=nn.Flatten(),
            )
        )


def seeded_weights(network: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights under which activations neither die nor grow, with the last layer's under ``fc``."""
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in network.state_dict().items():
        if name.endswith("conv.weight"):
            scale = (2.0 / value[0].numel()) ** 0.5
            weights[name] = scale * torch.randn(value.shape, generator=random)
        elif value.ndim == 0:
            weights[name] = torch.tensor(1)
        else:
            low = 0.0 if name.endswith(("bias", "mean")) else 1.0
            weights[name] = low + 0.1 * torch.rand(value.shape, generator=random)
    weights["fc.weight"] = 0.05 * torch.randn(1008, 2048, generator=random)
    weights["fc.bias"] = torch.randn(1008, generator=random)
    return weights


def preprocess(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, H, W, 3] as pytorch-fid hands them to the network."""
    x = images.permute(0, 3, 1, 2).float() / 255
    x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False, antialias=False)
    return 2 * x - 1
