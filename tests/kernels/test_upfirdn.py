"""upfirdn2d against zero stuffing in numpy, its adjoint, memory orders, dtypes and messages."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kernel_helpers import (
    DTYPES,
    LAYOUTS,
    assert_as_good_as_plain,
    expected_order,
    laid_out,
    randn,
)

from ddgan_fast.kernels import upfirdn2d

CASES = {
    # name: (x size (h, w), taps, up, down, padding, flip, gain)
    "up2": ((5, 7), (4,), 2, 1, (2, 1), False, 4.0),
    "down2": ((7, 6), (4,), 1, 2, (1, 1), False, 1.0),
    "before a stride-2 convolution": ((6, 5), (4,), 1, 1, (2, 2), False, 1.0),
    "one tap": ((3, 4), (1,), 1, 1, 0, False, 1.0),
    "two taps up": ((3, 4), (2,), 2, 1, (1, 0), False, 1.0),
    "odd taps down": ((9, 7), (5,), 1, 2, (2, 1), False, 1.0),
    "rectangular taps": ((6, 5), (2, 5), 1, 1, (1, 2, 3, 0), False, 1.0),
    "flipped rectangular taps": ((6, 5), (2, 5), 1, 1, (1, 2, 3, 0), True, 0.5),
    "unequal factors up": ((4, 5), (3, 2), (3, 2), 1, (2, 1, 0, 3), False, 1.0),
    "unequal factors down": ((9, 11), (3, 2), 1, (3, 2), (2, 1, 0, 3), True, 1.0),
    "up one axis, down the other": ((8, 5), (4,), (2, 1), (1, 3), (2, 1), False, 1.0),
    "up and down": ((5, 6), (3,), 3, 2, (1, 2), False, 2.0),
    "up and down, unequal": ((5, 6), (4, 3), (2, 3), (3, 2), (0, 1, 2, 3), True, 1.0),
    "crop": ((9, 8), (3,), 1, 1, (-1, -2), False, 1.0),
    "crop and pad": ((9, 8), (4,), 2, 1, (-3, 2, 4, -2), False, 1.0),
    "crop and pad down": ((9, 8), (4,), 1, 2, (3, -1, -2, 4), True, 1.0),
    "padded beyond the taps": ((3, 4), (2,), 2, 1, (5, 6, 7, 4), False, 1.0),
    "zeros beside the taps": ((3, 3), (2,), 4, 1, (0, 3), False, 1.0),
    "fewer taps than up": ((3, 2), (2,), 4, 1, 3, False, 1.0),
    "8 taps": ((9, 10), (8,), 1, 2, 3, False, 1.0),
    "9 taps": ((10, 9), (9,), 2, 1, (4, 5), False, 2.0),
    "16 taps down": ((18, 17), (16,), 1, 2, (8, 7), True, 0.7),
    "16 taps up": ((5, 4), (16,), 2, 1, (8, 7), False, 4.0),
    "16 x 16 taps": ((17, 16), (16, 16), 1, 1, (3, 2, 1, 0), False, 1.0),
    "one pixel": ((1, 1), (4,), 2, 1, (2, 1), False, 1.0),
    "one output": ((4, 4), (4,), 1, 1, 0, False, 1.0),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def four(padding):
    if isinstance(padding, int):
        return (padding,) * 4
    return padding * 2 if len(padding) == 2 else padding


def stuffed(x, taps, up, down, padding, flip, gain):
    """The definition: stuff with zeros, pad or crop, convolve, keep every down-th sample."""
    up_x, up_y = (up, up) if isinstance(up, int) else up
    down_x, down_y = (down, down) if isinstance(down, int) else down
    x0, x1, y0, y1 = four(padding)
    x, taps = np.asarray(x), np.asarray(taps)
    taps = np.outer(taps, taps) if taps.ndim == 1 else taps
    n, c, h, w = x.shape
    z = np.zeros((n, c, h * up_y, w * up_x))
    z[:, :, ::up_y, ::up_x] = x
    z = np.pad(z, ((0, 0), (0, 0), (max(y0, 0), max(y1, 0)), (max(x0, 0), max(x1, 0))))
    z = z[:, :, max(-y0, 0) :, max(-x0, 0) :]
    z = z[:, :, : z.shape[2] - max(-y1, 0), : z.shape[3] - max(-x1, 0)]
    kh, kw = taps.shape
    out = np.zeros((n, c, z.shape[2] - kh + 1, z.shape[3] - kw + 1))
    for i, j in itertools.product(range(kh), range(kw)):
        tap = taps[i, j] if flip else taps[kh - 1 - i, kw - 1 - j]
        out += tap * z[:, :, i : i + out.shape[2], j : j + out.shape[3]]
    return gain * out[:, :, ::down_y, ::down_x]


def plain(x, taps, up, down, padding, flip, gain):
    """What plain torch makes of it in x's dtype."""
    up_x, up_y = (up, up) if isinstance(up, int) else up
    down_x, down_y = (down, down) if isinstance(down, int) else down
    taps = torch.outer(taps, taps) if taps.ndim == 1 else taps
    taps = (taps * gain).to(x.dtype)
    n, c, h, w = x.shape
    z = x.new_zeros(n, c, h * up_y, w * up_x)
    z[:, :, ::up_y, ::up_x] = x
    z = F.pad(z, four(padding)).reshape(n * c, 1, -1, z.shape[3] + sum(four(padding)[:2]))
    kernel = taps if flip else taps.flip(0, 1)
    y = F.conv2d(z, kernel[None, None])
    return y.reshape(n, c, *y.shape[2:])[:, :, ::down_y, ::down_x]


def arguments(case, seed=0):
    size, taps, up, down, padding, flip, gain = case
    options = {"up": up, "down": down, "padding": padding, "flip": flip, "gain": gain}
    return randn(2, 3, *size, seed=seed), randn(*taps, seed=seed + 1), options


@cases
def test_equals_zero_stuffing(case):
    x, taps, options = arguments(case)
    got = upfirdn2d(x, taps, **options)
    want = stuffed(x, taps, **options)
    assert got.shape == want.shape
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("seed", range(6))
def test_equals_zero_stuffing_for_random_arguments(seed):
    random = np.random.default_rng(seed)
    done = 0
    while done < 25:
        h, w = random.integers(1, 10, 2)
        taps_shape = random.integers(1, 12, random.integers(1, 3))
        up, down = (tuple(int(v) for v in random.integers(1, 4, 2)) for _ in range(2))
        padding = tuple(int(v) for v in random.integers(-3, 8, 4))
        options = {"up": up, "down": down, "padding": padding}
        options |= {"flip": bool(random.integers(2)), "gain": float(random.uniform(0.5, 3))}
        rows = h * up[1] + padding[2] + padding[3] - taps_shape[0] + 1
        columns = w * up[0] + padding[0] + padding[1] - taps_shape[-1] + 1
        cropped = h * up[1] + min(padding[2], 0) + min(padding[3], 0) < 1
        cropped |= w * up[0] + min(padding[0], 0) + min(padding[1], 0) < 1
        if rows < 1 or columns < 1 or cropped:
            continue
        x = torch.from_numpy(random.standard_normal((2, 2, h, w)))
        taps = torch.from_numpy(random.standard_normal(taps_shape))
        got, want = upfirdn2d(x, taps, **options), stuffed(x, taps, **options)
        assert got.shape == want.shape, options
        assert np.abs(got.numpy() - want).max() < 1e-11 * max(np.abs(want).max(), 1), options
        done += 1


@cases
def test_gradient_is_the_adjoint_and_its_gradient_the_op_again(case):
    x, taps, options = arguments(case)
    x.requires_grad_()
    y = upfirdn2d(x, taps, **options)
    g, v = randn(*y.shape, seed=2).requires_grad_(), randn(*x.shape, seed=3)
    (gx,) = torch.autograd.grad(y, x, g, create_graph=True)
    forward = stuffed(v, taps, **options)
    torch.testing.assert_close(
        (gx * v).sum(), (g * torch.from_numpy(forward)).sum(), rtol=1e-10, atol=1e-10
    )
    (gg,) = torch.autograd.grad(gx, g, v)
    np.testing.assert_allclose(gg.numpy(), forward, rtol=0, atol=1e-11 * np.abs(forward).max())


@pytest.mark.parametrize("name", ["up2", "down2", "crop and pad", "up and down, unequal"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_gradcheck(name, layout):
    x, taps, options = arguments(CASES[name])
    x = laid_out(x[:1, :2, :5, :5], layout).requires_grad_()
    function = lambda x: upfirdn2d(x, taps, **options)  # noqa: E731
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@cases
def test_is_as_exact_as_plain_torch(case, dtype):
    x, taps, options = arguments(case)
    x, taps = x.to(dtype), taps.to(dtype)
    got = upfirdn2d(x, taps, **options)
    assert got.dtype == dtype
    truth = stuffed(x.double(), taps.double(), **options)
    assert_as_good_as_plain(got, truth, plain(x, taps, **options), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_float32_taps_serve_every_dtype(dtype):
    x, taps = randn(1, 2, 6, 6, dtype=dtype), torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    got = upfirdn2d(x, taps, up=2, padding=(2, 1))
    assert got.dtype == dtype
    truth = stuffed(x.double(), taps.double(), 2, 1, (2, 1), False, 1.0)
    assert_as_good_as_plain(got, truth, plain(x, taps, 2, 1, (2, 1), False, 1.0), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["up2", "down2", "crop and pad", "16 taps up", "16 taps down"])
def test_memory_order_follows_the_input(name, layout):
    x, taps, options = arguments(CASES[name])
    x = laid_out(x, layout)
    y = upfirdn2d(x, taps, **options)
    np.testing.assert_allclose(y.numpy(), stuffed(x, taps, **options), atol=1e-12)
    assert y.is_contiguous(memory_format=expected_order(x))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_gradient_takes_any_memory_order(layout):
    x, taps, options = arguments(CASES["down2"])
    x.requires_grad_()
    y = upfirdn2d(x, taps, **options)
    g = randn(*y.shape, seed=5)
    (want,) = torch.autograd.grad(y, x, g, retain_graph=True)
    (got,) = torch.autograd.grad(y, x, laid_out(g, layout), retain_graph=True)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    # The gradient of a sum is an expanded scalar, with strides 0.
    (ones,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (want,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(ones, want, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("up", "down"), [(2, 1), (1, 2)])
def test_batch_of_none(up, down):
    x = randn(0, 3, 6, 4).requires_grad_()
    y = upfirdn2d(x, randn(4), up=up, down=down, padding=(2, 1))
    assert y.shape == (0, 3, (6 * up + 3 - 4) // down + 1, (4 * up + 3 - 4) // down + 1)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_a_vector_of_taps_means_their_outer_product():
    x = randn(2, 3, 9, 8)
    options = {"up": 2, "down": 3, "padding": (5, 6, 7, 8), "gain": 1.5}
    for length in (4, 12):
        taps = randn(length, seed=length)
        one = upfirdn2d(x, taps, **options)
        two = upfirdn2d(x, torch.outer(taps, taps), **options)
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_rows_of_taps_lie_along_the_height():
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    x[0, 0, 2, 2] = 1.0
    taps = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    y = upfirdn2d(x, taps, padding=(0, 0, 1, 1))
    # A true convolution puts the taps down as they are: first tap on top.
    assert y[0, 0, :, 2].tolist() == [0.0, 1.0, 2.0, 3.0, 0.0]
    y = upfirdn2d(x, taps, padding=(0, 0, 1, 1), flip=True)
    assert y[0, 0, :, 2].tolist() == [0.0, 3.0, 2.0, 1.0, 0.0]


def test_does_not_touch_its_inputs():
    x, taps, options = arguments(CASES["up2"])
    before = x.clone(), taps.clone()
    upfirdn2d(x, taps, **options).fill_(7.0)
    assert torch.equal(x, before[0]) and torch.equal(taps, before[1])
    identity = upfirdn2d(x, torch.ones(1, dtype=torch.float64))
    assert identity.data_ptr() != x.data_ptr()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": torch.zeros(3, 4, 4)}, r"x must be floating-point images \[N, C, H, W\].*\[3, 4, 4"),
        ({"x": torch.zeros(1, 1, 4, 4, dtype=torch.uint8)}, "uint8"),
        ({"taps": torch.zeros(2, 2, 2)}, r"taps must be \[k\] or \[kh, kw\], got \[2, 2, 2\]"),
        ({"taps": torch.zeros(0)}, r"taps must be .* got \[0\]"),
        ({"up": 0}, "up must be a factor of at least 1"),
        ({"down": (1, -1)}, "down must be a factor of at least 1"),
        ({"down": (1, 2, 3)}, "down must be"),
        ({"padding": (1, 2, 3)}, r"padding must be .*got \(1, 2, 3\)"),
        ({"padding": -3}, "leaves no output: -3 x -3"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_says_what_is_wrong(arguments, words):
    good = {"x": torch.zeros(1, 1, 4, 4), "taps": torch.ones(2)}
    with pytest.raises(ValueError, match=words):
        upfirdn2d(**(good | arguments))
