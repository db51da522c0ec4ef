"""The ops of the kernels at the shapes that the presets give them, with their byte minima."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ddgan_fast import kernels
from ddgan_fast.kernels import philox

TAPS = (0.125, 0.375, 0.375, 0.125)
SLOPE = 0.2
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PASSES = ("forward", "backward", "double_backward")

Tensors = dict[str, torch.Tensor]
Function = Callable[[Tensors], tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Op:
    """One op: its inputs, our call, and the same mathematics in plain torch.

    Attributes:
        name: as in ``ddgan_fast.kernels``.
        make: inputs for a case; those in ``differentiable`` get gradients.
        ours: the registered op, whose backend the registry chooses.
        plain: the eager composition of torch operators, differentiable by autograd.
        passes: tensors read and written by each pass, each once but as the comment says, in units
            of the input.
        differentiable: inputs with gradients, the large one first.
        others: further baselines by name.
    """

    name: str
    make: Callable[[KernelCase, torch.device], Tensors]
    ours: Function
    plain: Function
    passes: Mapping[str, float]
    differentiable: tuple[str, ...] = ()
    others: Mapping[str, Function] = field(default_factory=dict)


@dataclass(frozen=True)
class KernelCase:
    """One op at one shape.

    Attributes:
        op: key of ``OPS``.
        shape: of the input [N, C, H, W].
        preset: where this shape occurs.
        dtype: "bf16" or "fp32"; of the input.
        channels_last: memory order.
        compiled: torch.compile is worth its compile time here.
    """

    op: str
    shape: tuple[int, int, int, int]
    preset: str
    dtype: str = "bf16"
    channels_last: bool = True
    compiled: bool = False

    @property
    def name(self) -> str:
        """Unique in a list of cases."""
        order = "nhwc" if self.channels_last else "nchw"
        return f"{self.op} {'x'.join(map(str, self.shape))} {self.dtype} {order}"

    def passes(self) -> tuple[str, ...]:
        """The passes that this op has."""
        return tuple(p for p in PASSES if p in OPS[self.op].passes)

    def bytes_min(self, which: str) -> int:
        """Fewest bytes that a pass reads and writes in device memory."""
        size = 1 if self.op == "q_sample_uint8" else DTYPES[self.dtype].itemsize
        return round(math.prod(self.shape) * size * OPS[self.op].passes[which])


def _images(case: KernelCase, device: torch.device) -> torch.Tensor:
    x = torch.randn(case.shape, device=device, dtype=DTYPES[case.dtype])
    order = torch.channels_last if case.channels_last else torch.contiguous_format
    return x.contiguous(memory_format=order)


def _with_taps(case: KernelCase, device: torch.device) -> Tensors:
    return {"x": _images(case, device), "taps": torch.tensor(TAPS, device=device)}


def _with_bias(case: KernelCase, device: torch.device) -> Tensors:
    bias = torch.randn(case.shape[:2], device=device).to(DTYPES[case.dtype])
    return _with_taps(case, device) | {"bias": bias}


def _with_style(case: KernelCase, device: torch.device) -> Tensors:
    x = _images(case, device)
    scale, shift = (torch.randn(case.shape[:2], device=device).to(x.dtype) for _ in range(2))
    return {"x": x, "scale": scale + 1, "shift": shift}


def _random(case: KernelCase, device: torch.device, columns: int) -> Tensors:
    n = case.shape[0]
    return {
        "t": torch.arange(n, device=device) % 2,
        "tables": torch.rand(2, columns, device=device) + 0.1,
        "seed": torch.tensor([20_240_229], device=device),
        "index": philox.positions(n, device),
    }


def _posterior_inputs(case: KernelCase, device: torch.device) -> Tensors:
    x = {"x": _images(case, device), "x_next": _images(case, device)}
    return x | _random(case, device, 3)


def _pair_inputs(case: KernelCase, device: torch.device) -> Tensors:
    return {"x": _images(case, device)} | _random(case, device, 4)


def _byte_inputs(case: KernelCase, device: torch.device) -> Tensors:
    n, c, h, w = case.shape
    images = torch.randint(0, 256, (n, h, w, c), dtype=torch.uint8, device=device)
    flip = torch.arange(n, device=device) % 2 == 1
    return {"x": images, "flip": flip} | _random(case, device, 4)


def groups_of(channels: int) -> int:
    """Groups of every norm in the generator."""
    return min(channels // 4, 32)


def _spread(values: torch.Tensor) -> torch.Tensor:
    return values[:, :, None, None]


def _outer(v: Tensors) -> torch.Tensor:
    taps = v["taps"].to(v["x"].dtype)
    return torch.outer(taps, taps)


def _grouped(x: torch.Tensor, kernel: torch.Tensor, factor: int, pad: int) -> torch.Tensor:
    """One convolution with a group for every channel; the taps are symmetric."""
    c = x.shape[1]
    weight = kernel.expand(c, 1, *kernel.shape)
    if factor == 2:
        return F.conv_transpose2d(x, weight * 4, stride=2, padding=1, groups=c)
    return F.conv2d(x, weight, stride=2, padding=pad, groups=c)


def _stuffed_up(v: Tensors) -> tuple[torch.Tensor, ...]:
    x = v["x"]
    n, c, h, w = x.shape
    x = F.pad(x.reshape(n * c, 1, h, 1, w, 1), (0, 1, 0, 0, 0, 1)).reshape(n * c, 1, 2 * h, 2 * w)
    y = F.conv2d(F.pad(x, (2, 1, 2, 1)), _outer(v)[None, None] * 4)
    return (y.reshape(n, c, 2 * h, 2 * w),)


def _merged_down(v: Tensors) -> tuple[torch.Tensor, ...]:
    x = v["x"]
    n, c, h, w = x.shape
    y = F.conv2d(F.pad(x.reshape(n * c, 1, h, w), (1, 1, 1, 1)), _outer(v)[None, None], stride=2)
    return (y.reshape(n, c, *y.shape[2:]),)


def _plain_norm(v: Tensors) -> tuple[torch.Tensor, ...]:
    x = v["x"]
    y = F.group_norm(x, groups_of(x.shape[1]), eps=1e-6)
    return (F.silu(_spread(v["scale"]) * y + _spread(v["shift"])),)


def _with_style_and_taps(case: KernelCase, device: torch.device) -> Tensors:
    return _with_style(case, device) | _with_taps(case, device)


def _norm_fir(v: Tensors, way: str) -> tuple[torch.Tensor, ...]:
    """Down: of both branches, up: of the normalised one alone, as in the generator."""
    x, groups = v["x"], groups_of(v["x"].shape[1])
    found = kernels.ada_group_norm_silu_resample(
        x, v["scale"], v["shift"], groups, v["taps"], resample=way, both=way == "down"
    )
    return tuple(y for y in found if y is not None)


def _norm_then_fir(v: Tensors, way: str) -> tuple[torch.Tensor, ...]:
    x, taps = v["x"], v["taps"]
    h = kernels.ada_group_norm_silu(x, v["scale"], v["shift"], groups_of(x.shape[1]))
    if way == "up":
        return (kernels.upfirdn2d(h, taps, up=2, padding=_UP_PADDING, gain=4.0),)
    return tuple(kernels.upfirdn2d(y, taps, down=2, padding=_DOWN_PADDING) for y in (h, x))


def _noise(v: Tensors, like: torch.Tensor, stream: str) -> torch.Tensor:
    """Handed in where results are compared; else drawn by torch, as published."""
    found = v.get(f"noise{stream}")
    return torch.randn_like(like) if found is None else found


def _columns(v: Tensors) -> tuple[torch.Tensor, ...]:
    picked = v["tables"].index_select(0, v["t"])
    return tuple(c.reshape(-1, 1, 1, 1) for c in picked.unbind(1))


def _plain_posterior(v: Tensors) -> tuple[torch.Tensor, ...]:
    a, b, deviation = _columns(v)
    return (a * v["x"] + b * v["x_next"] + deviation * _noise(v, v["x"], "1"),)


def _plain_pair(v: Tensors) -> tuple[torch.Tensor, ...]:
    x = v["x"]
    if not x.is_floating_point():
        x = torch.where(v["flip"].reshape(-1, 1, 1, 1), x.flip(2), x)
        # The tables carry the precision that is asked for.
        x = (x.to(v["tables"].dtype) / 127.5 - 1).permute(0, 3, 1, 2)
    signal, sigma, signal_next, sigma_next = _columns(v)
    x_t = signal * x + sigma * _noise(v, x, "2")
    return x_t, signal_next * x_t + sigma_next * _noise(v, x, "1")


def _pair(v: Tensors) -> tuple[torch.Tensor, ...]:
    return kernels.q_sample_pair(
        v["x"], v["t"], v["tables"], flip=v.get("flip"), seed=v["seed"], index=v["index"]
    )


_DOWN_PADDING = (1, 1)
_UP_PADDING = (2, 1)
_RESAMPLED_DOWN = dict.fromkeys(PASSES, 1.25)
# Where a (sample, group) is larger than what one multiprocessor holds, the statistics and the
# result both read the input: three passes forward, five backward.
_NORM_PASSES = {"forward": 3.0, "backward": 5.0}

OPS: dict[str, Op] = {
    "bias_leaky_relu": Op(
        "bias_leaky_relu",
        _with_bias,
        lambda v: (kernels.bias_leaky_relu(v["x"], v["bias"], SLOPE),),
        lambda v: (F.leaky_relu(v["x"] + _spread(v["bias"]), SLOPE),),
        {"forward": 2.0, "backward": 3.0, "double_backward": 3.0},
        ("x", "bias"),
    ),
    "bias_leaky_relu_down": Op(
        "bias_leaky_relu_down",
        _with_bias,
        lambda v: (
            kernels.bias_leaky_relu_down(v["x"], v["bias"], v["taps"], negative_slope=SLOPE),
        ),
        lambda v: (
            _grouped(F.leaky_relu(v["x"] + _spread(v["bias"]), SLOPE), _outer(v), 1, 1),
        ),
        {"forward": 1.25, "backward": 2.25, "double_backward": 2.25},
        ("x", "bias"),
    ),
    "fir_down": Op(
        "upfirdn2d",
        _with_taps,
        lambda v: (kernels.upfirdn2d(v["x"], v["taps"], down=2, padding=_DOWN_PADDING),),
        _merged_down,
        _RESAMPLED_DOWN,
        ("x",),
        {"grouped_conv": lambda v: (_grouped(v["x"], _outer(v), 1, 1),)},
    ),
    "fir_up": Op(
        "upfirdn2d",
        _with_taps,
        lambda v: (kernels.upfirdn2d(v["x"], v["taps"], up=2, padding=_UP_PADDING, gain=4.0),),
        _stuffed_up,
        dict.fromkeys(PASSES, 5.0),
        ("x",),
        {"grouped_conv": lambda v: (_grouped(v["x"], _outer(v), 2, 1),)},
    ),
    "ada_group_norm_silu": Op(
        "ada_group_norm_silu",
        _with_style,
        lambda v: (
            kernels.ada_group_norm_silu(
                v["x"], v["scale"], v["shift"], groups_of(v["x"].shape[1])
            ),
        ),
        _plain_norm,
        _NORM_PASSES,
        ("x", "scale", "shift"),
    ),
    "norm_down": Op(
        "ada_group_norm_silu_resample",
        _with_style_and_taps,
        lambda v: _norm_fir(v, "down"),
        lambda v: (
            _grouped(_plain_norm(v)[0], _outer(v), 1, 1), _grouped(v["x"], _outer(v), 1, 1),
        ),
        # The statistics, then two results of a quarter; back, once to sum and once to write.
        {"forward": 2.5, "backward": 3.75},
        ("x", "scale", "shift"),
        {"separate": lambda v: _norm_then_fir(v, "down")},
    ),
    "norm_up": Op(
        "ada_group_norm_silu_resample",
        _with_style_and_taps,
        lambda v: _norm_fir(v, "up"),
        lambda v: (_grouped(_plain_norm(v)[0], _outer(v), 2, 1),),
        # Back, the gradient is filtered once: it is larger than what is left of it.
        {"forward": 6.0, "backward": 9.0},
        ("x", "scale", "shift"),
        {"separate": lambda v: _norm_then_fir(v, "up")},
    ),
    "sample_posterior": Op(
        "sample_posterior",
        _posterior_inputs,
        lambda v: (
            kernels.sample_posterior(
                v["x"], v["x_next"], v["t"], v["tables"], seed=v["seed"], index=v["index"]
            ),
        ),
        _plain_posterior,
        {"forward": 3.0, "backward": 2.0},
        ("x",),
    ),
    "q_sample_pair": Op("q_sample_pair", _pair_inputs, _pair, _plain_pair, {"forward": 3.0}),
    # Reads bytes, writes two float32 images.
    "q_sample_uint8": Op("q_sample_pair", _byte_inputs, _pair, _plain_pair, {"forward": 9.0}),
}


def _image_op(
    op: str, preset: str, *shapes: tuple[int, int, int, int], first: bool = True
) -> list[KernelCase]:
    """The cases of one op; the first shape is compiled, too."""
    dtype = "fp32" if "sample" in op else "bf16"
    return [
        KernelCase(op, shape, preset, dtype, compiled=first and i == 0)
        for i, shape in enumerate(shapes)
    ]


def cases() -> list[KernelCase]:
    """All cases, the most valuable first."""
    down, norm, celeba, cifar = (
        "bias_leaky_relu_down", "ada_group_norm_silu", "celebahq256", "cifar10",
    )
    n = 32
    large = [
        *_image_op(norm, celeba, (n, 64, 256, 256)),
        *_image_op(down, celeba, (n, 256, 256, 256)),
        *_image_op("fir_down", celeba, (n, 128, 256, 256)),
        *_image_op("fir_up", celeba, (n, 64, 128, 128)),
        *_image_op("norm_down", celeba, (n, 64, 256, 256)),
        *_image_op("norm_up", celeba, (n, 64, 128, 128)),
        *_image_op("sample_posterior", celeba, (n, 3, 256, 256)),
        *_image_op("q_sample_uint8", celeba, (n, 3, 256, 256)),
        *_image_op("bias_leaky_relu", celeba, (n, 128, 256, 256)),
    ]
    small = [
        *_image_op(norm, celeba, (n, 64, 128, 128), (n, 128, 64, 64), (n, 128, 32, 32),
                   (n, 256, 16, 16), first=False),
        *_image_op(norm, cifar, (256, 128, 32, 32), (256, 256, 16, 16), (64, 256, 32, 32)),
        *_image_op(down, celeba, (n, 512, 128, 128), (n, 512, 64, 64), (n, 512, 32, 32),
                   first=False),
        *_image_op(down, cifar, (256, 256, 32, 32), (64, 512, 16, 16), first=False),
        *_image_op("fir_down", celeba, (n, 256, 128, 128), (n, 64, 256, 256), first=False),
        *_image_op("fir_down", cifar, (256, 128, 32, 32), first=False),
        *_image_op("fir_up", celeba, (n, 128, 64, 64), first=False),
        *_image_op("fir_up", cifar, (256, 256, 16, 16), first=False),
        *_image_op("norm_down", celeba, (n, 64, 128, 128), (n, 128, 64, 64), first=False),
        *_image_op("norm_down", cifar, (256, 128, 32, 32), first=False),
        *_image_op("norm_up", celeba, (n, 128, 64, 64), first=False),
        *_image_op("norm_up", cifar, (256, 256, 16, 16), first=False),
        *_image_op("bias_leaky_relu", cifar, (256, 128, 32, 32), first=False),
        *_image_op("q_sample_pair", celeba, (n, 3, 256, 256), first=False),
        *_image_op("sample_posterior", cifar, (256, 3, 32, 32), (64, 3, 32, 32), first=False),
        *_image_op("q_sample_uint8", cifar, (256, 3, 32, 32), first=False),
        *_image_op(norm, "lsun_church256", (8, 64, 256, 256), first=False),
        *_image_op(down, "lsun_church256", (8, 256, 256, 256), first=False),
    ]
    other = [
        KernelCase(op, shape, celeba, dtype, channels_last)
        for op, shape in (
            (norm, (n, 64, 256, 256)), (down, (n, 256, 256, 256)),
            ("fir_down", (n, 128, 256, 256)), ("fir_up", (n, 64, 128, 128)),
            ("norm_down", (n, 64, 256, 256)),
        )
        for dtype, channels_last in (("fp32", True), ("bf16", False))
    ]
    return large + small + other


def tiny_cases() -> list[KernelCase]:
    """Every op once, for machines without a GPU and for one pass under a sanitizer."""
    return [
        KernelCase(op, (2, 3 if "sample" in op else 8, 8, 8), "none", dtype)
        for op in OPS
        for dtype in (("fp32",) if "sample" in op else ("fp32", "bf16"))
    ]
