"""Checks of the Triton backend against torch that run on a GPU and in the interpreter alike."""

from itertools import islice

import torch
from kernel_helpers import FLOOR, assert_as_good_as_plain, laid_out, randn
from test_op_registration import SAMPLES

from ddgan_fast.kernels import (
    ada_group_norm_silu_resample,
    bias_leaky_relu_down,
    q_sample_pair,
    sample_posterior,
    upfirdn2d,
    use_backend,
)

SAMPLE_LAYOUTS = ("nchw", "channels_last")
# Sizes that fill several tiles: odd, not a multiple of eight channels, and one that is.
LARGER = ((2, 24, 37, 21), (1, 64, 32, 36))


def moved(value, device, dtype):
    """A sample's argument on a device: the 4-D tensors in ``dtype``, order and leaf kept."""
    if not isinstance(value, torch.Tensor):
        return value
    to = dtype if value.is_floating_point() and value.ndim == 4 else value.dtype
    if value.is_floating_point() and dtype == torch.float64:
        to = dtype
    return value.detach().to(device, to).requires_grad_(value.requires_grad)


def derivatives(op, arguments):
    """Outputs, first and second derivatives of an op, all as plain tensors."""
    outputs = torch.utils._pytree.tree_leaves(op(*arguments))
    everything = [y.detach() for y in outputs]
    outputs = [y for y in outputs if y.requires_grad]
    inputs = [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad]
    if not outputs:
        return everything
    # Statistics beside the result take no part in the derivative.
    several = {"backward": 3, "pair": 2, "resample": 2}
    outputs = outputs[: next((n for part, n in several.items() if part in str(op)), 1)]
    given = [cotangent(y, 11 + i).requires_grad_() for i, y in enumerate(outputs)]
    first = torch.autograd.grad(outputs, inputs, given, create_graph=True, allow_unused=True)
    first = [g for g in first if g is not None]
    everything += [g.detach() for g in first]
    vectors = [cotangent(g, 21 + i) for i, g in enumerate(first)]
    linear = [(g, v) for g, v in zip(first, vectors, strict=True) if g.requires_grad]
    second = torch.autograd.grad(
        [g for g, _ in linear], [*given, *inputs], [v for _, v in linear], allow_unused=True
    )
    return everything + [g for g in second if g is not None]


def cotangent(y, seed):
    return randn(*y.shape, seed=seed).to(y.device, y.dtype)


def check_op(name, layout, dtype, device, samples=None):
    """Forward, backward, double backward: as near to float64 as torch in the same dtype.

    ``samples``: how many of the op's samples, all by default.
    """
    op = getattr(torch.ops.ddgan_fast, name).default
    for sample in islice(SAMPLES[name](layout), samples):
        with use_backend("torch"):
            exact = [moved(moved(a, "cpu", dtype), "cpu", torch.float64) for a in sample]
            truth = derivatives(op, exact)
            plain = derivatives(op, [moved(a, device, dtype) for a in sample])
        with use_backend("triton"):
            got = derivatives(op, [moved(a, device, dtype) for a in sample])
        assert len(got) == len(truth)
        # Drawn numbers are float32 whatever the dtype of the rest.
        drawn = any(isinstance(a, torch.Tensor) and a.shape == (1,) for a in sample)
        floor = torch.float32 if drawn and dtype == torch.float64 else dtype
        for g, t, p in zip(got, truth, plain, strict=True):
            assert (g.dtype, g.stride()) == (p.dtype, p.stride())
            assert_as_good_as_plain(g.cpu(), t, p.cpu(), floor)


def check_drawn(device):
    """Both drawing ops equal their torch backends to 1e-6, at 64-bit positions too."""
    seed = torch.tensor([-0x123456789ABCDEF], device=device)
    index = torch.tensor([0, 2**40 + 3, 7], device=device)
    t = torch.tensor([0, 2, 1], device=device)
    posterior = torch.tensor([[0.3, 0.6, 0.0], [0.2, 0.7, 0.4], [0.0, 0.0, 1.0]], device=device)
    pair = torch.tensor([[1.0, 0, 0.9, 0.4], [0.9, 0.4, 0.5, 0.8], [0, 1, 0, 1]], device=device)
    images = torch.randint(0, 256, (3, 12, 10, 3), generator=torch.Generator().manual_seed(0))
    images = images.to(device, torch.uint8)
    flip = torch.tensor([True, False, True], device=device)
    for shape in ((3, 3, 17, 13), (3, 2), (3, 5, 7)):
        for layout in ("nchw", "channels_last") if len(shape) == 4 else ("nchw",):
            x = randn(*shape, dtype=torch.float32)
            x = (laid_out(x, layout) if len(shape) == 4 else x).to(device)
            both = {}
            for backend in ("torch", "triton"):
                with use_backend(backend):
                    both[backend] = (
                        sample_posterior(x, x * 2, t, posterior, seed=seed, index=index),
                        *q_sample_pair(x, t, pair, seed=seed, index=index),
                        *q_sample_pair(images, t, pair, flip=flip, seed=seed),
                    )
            for got, want in zip(both["triton"], both["torch"], strict=True):
                assert got.stride() == want.stride()
                torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    # What Triton draws does not depend on the layout or the split of the batch, bit for bit.
    x = randn(3, 3, 8, 8, dtype=torch.float32).to(device)
    last = x.contiguous(memory_format=torch.channels_last)
    with use_backend("triton"):
        whole = sample_posterior(x, x, t, posterior, seed=seed, index=index)
        nhwc = sample_posterior(last, last, t, posterior, seed=seed, index=index)
        assert torch.equal(nhwc, whole)
        part = sample_posterior(x[1:], x[1:], t[1:], posterior, seed=seed, index=index[1:])
        assert torch.equal(part, whole[1:])


def check_borders(device):
    """Every remainder of the width, where neighbouring columns are made in pairs."""
    taps = torch.tensor([0.1, 0.2, 0.3, 0.4], device=device)
    for width in range(2, 9):
        x = laid_out(randn(1, 2, 4, width, dtype=torch.float32), "channels_last").to(device)
        bias = torch.tensor([3.0, -3.0], device=device)
        affine = bias[None], 1 - bias[None]
        both = {}
        for backend in ("torch", "triton"):
            with use_backend(backend):
                both[backend] = (
                    bias_leaky_relu_down(x, bias, taps),
                    upfirdn2d(x, taps, padding=(2, 1)),
                    upfirdn2d(x, taps, up=2, padding=(width % 3 - 1, 3)),
                    *ada_group_norm_silu_resample(x, *affine, 1, taps, resample="up"),
                    *ada_group_norm_silu_resample(x, *affine, 2, taps, resample="down"),
                )
        for got, want in zip(both["triton"], both["torch"], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def check_larger(device, dtype):
    """Tensors of several tiles, at the models' own settings."""
    ops = torch.ops.ddgan_fast
    taps = torch.tensor([0.125, 0.375, 0.375, 0.125], device=device)
    for shape in LARGER:
        for layout in SAMPLE_LAYOUTS:
            x = laid_out(randn(*shape, dtype=dtype), layout).to(device)
            vector = randn(*shape[:2], seed=3, dtype=torch.float32).to(device)
            calls = {
                "up": lambda: ops.upfirdn2d(x, taps, [2, 2], [1, 1], [2, 1] * 2, False, 4.0),  # noqa: B023
                "down": lambda: ops.upfirdn2d(x, taps, [1, 1], [2, 2], [1] * 4, False, 1.0),  # noqa: B023
                "same": lambda: ops.upfirdn2d(x, taps, [1, 1], [1, 1], [2] * 4, False, 1.0),  # noqa: B023
                "act": lambda: ops.bias_leaky_relu(x, vector, 0.2, 1.0),  # noqa: B023
                "act down": lambda: ops.bias_leaky_relu_down(x, vector, taps, 0.2),  # noqa: B023
                "norm up": lambda: ops.ada_group_norm_silu_resample(
                    x, vector, vector, taps, 8, True, False, 1e-6, True  # noqa: B023
                )[0],
                "norm down": lambda: torch.cat(
                    ops.ada_group_norm_silu_resample(
                        x, vector, vector, taps, 8, False, True, 1e-6, True  # noqa: B023
                    )[:2]
                ),
                "norm": lambda: ops.ada_group_norm_silu(x, vector, vector, 8, 1e-6, True)[0],  # noqa: B023
            }
            for name, call in calls.items():
                with use_backend("torch"):
                    want = call()
                with use_backend("triton"):
                    got = call()
                assert got.stride() == want.stride(), name
                error = (got - want).abs().max().item() / want.abs().max().item()
                assert error <= 2 * FLOOR[dtype] + 1e-5 * (dtype == torch.float32), (name, shape)
