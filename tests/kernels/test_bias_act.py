"""Bias + leaky ReLU, alone and with FIR downsampling, against loops and plain torch."""

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

from ddgan_fast.kernels import bias_leaky_relu, bias_leaky_relu_down

SHAPES = {
    "image": (2, 3, 5, 4),
    "rows": (4, 3),
    "sequence": (2, 3, 7),
    "volume": (2, 3, 2, 3, 2),
    "square": (3, 3, 3, 3),
}
BIASES = ("none", "channel", "sample")
TAPS = {
    k: torch.tensor(v, dtype=torch.float64)
    for k, v in {
        "1331": [0.125, 0.375, 0.375, 0.125],
        "odd": [0.2, 0.5, 0.3],
        "two": [0.4, 0.6],
        "asymmetric": [0.1, 0.2, 0.3, 0.15, 0.25],
        "sixteen": [i / 136 for i in range(1, 17)],
    }.items()
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
biases = pytest.mark.parametrize("kind", BIASES)
tapses = pytest.mark.parametrize("taps", TAPS.values(), ids=TAPS.keys())


def make_bias(kind, shape, dtype=torch.float64):
    if kind == "none":
        return None
    return randn(*(shape[1:2] if kind == "channel" else shape[:2]), seed=7, dtype=dtype)


def looped(x, bias, slope, scale):
    """The definition, one number at a time."""
    x = np.asarray(x)
    out = np.zeros(x.shape)
    for at in np.ndindex(*x.shape):
        v = x[at]
        if bias is not None:
            v = v + float(bias[at[1]] if bias.ndim == 1 else bias[at[0], at[1]])
        out[at] = scale * (v if v > 0 else slope * v)
    return out


def plain(x, bias, slope=0.2, scale=1.0):
    if bias is not None:
        x = x + bias.reshape(-1 if bias.ndim == 2 else 1, x.shape[1], *[1] * (x.ndim - 2))
    return F.leaky_relu(x, slope) * scale


def plain_down(x, bias, taps, slope=0.2):
    y = plain(x, bias, slope)
    rest = taps.shape[0] - 2
    y = F.pad(y, [(rest + 1) // 2, rest // 2] * 2)
    kernel = torch.outer(taps, taps).flip(0, 1).to(x.dtype)
    return F.conv2d(y, kernel.expand(x.shape[1], 1, -1, -1), stride=2, groups=x.shape[1])


@shapes
@biases
@pytest.mark.parametrize(("slope", "scale"), [(0.2, 1.0), (0.2, 2**0.5), (0.0, 0.5), (1.3, 3.0)])
def test_equals_the_loop(shape, kind, slope, scale):
    x, bias = randn(*shape), make_bias(kind, shape)
    y = bias_leaky_relu(x, bias, slope, scale)
    np.testing.assert_allclose(y.numpy(), looped(x, bias, slope, scale), rtol=0, atol=1e-14)


@biases
@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 3)])
@tapses
def test_down_equals_filtering_the_activation(kind, size, taps):
    x = randn(2, 3, *size)
    bias = make_bias(kind, x.shape)
    y = bias_leaky_relu_down(x, bias, taps, negative_slope=0.3)
    a = looped(x, bias, 0.3, 1.0)
    before = (taps.shape[0] - 1) // 2
    want = np.zeros(y.shape)
    for n, c, i, j in np.ndindex(*y.shape):
        for p in range(taps.shape[0]):
            for q in range(taps.shape[0]):
                # Output 2 i of the full-size convolution; tap p meets sample 2 i + k - 1 - p.
                row = 2 * i - before + taps.shape[0] - 1 - p
                column = 2 * j - before + taps.shape[0] - 1 - q
                if 0 <= row < size[0] and 0 <= column < size[1]:
                    want[n, c, i, j] += float(taps[p] * taps[q]) * a[n, c, row, column]
    np.testing.assert_allclose(y.numpy(), want, rtol=0, atol=1e-13)
    assert y.shape[2:] == (size[0] // 2, size[1] // 2)


@shapes
@biases
@pytest.mark.parametrize(("slope", "scale"), [(0.2, 1.0), (0.0, 2**0.5)])
def test_gradcheck(shape, kind, slope, scale):
    inputs = [randn(*shape).requires_grad_()]
    if kind != "none":
        inputs.append(make_bias(kind, shape).requires_grad_())
    function = lambda x, bias=None: bias_leaky_relu(x, bias, slope, scale)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@biases
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("size", "taps"), [((4, 4), "1331"), ((5, 3), "odd"), ((4, 3), "1331")])
def test_gradcheck_down(kind, layout, size, taps):
    x = laid_out(randn(2, 2, *size), layout).requires_grad_()
    inputs = [x]
    if kind != "none":
        inputs.append(make_bias(kind, x.shape).requires_grad_())
    function = lambda x, bias=None: bias_leaky_relu_down(x, bias, TAPS[taps])  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", ["bias_leaky_relu", "bias_leaky_relu_down"])
def test_third_derivatives(name):
    """The companions of each op are differentiable themselves."""
    taps = TAPS["1331"]
    ours, theirs = {
        "bias_leaky_relu": (bias_leaky_relu, plain),
        "bias_leaky_relu_down": (
            lambda x, b: bias_leaky_relu_down(x, b, taps),
            lambda x, b: plain_down(x, b, taps),
        ),
    }[name]

    def third(op):
        x, b = randn(2, 3, 4, 6).requires_grad_(), randn(2, 3, seed=1).requires_grad_()
        value = op(x**3, b * x.mean()).pow(3).sum()
        for order in range(3):
            gradients = torch.autograd.grad(value, (x, b), create_graph=True)
            value = sum(g.pow(2).sum() for g in gradients) if order < 2 else None
        return gradients

    for got, want in zip(third(ours), third(theirs), strict=True):
        assert want.abs().max() > 1
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@biases
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_is_as_exact_as_plain_torch(dtype, kind, layout):
    x = laid_out(randn(3, 4, 6, 8, dtype=dtype), layout)
    bias = make_bias(kind, x.shape, dtype)
    grad = randn(3, 4, 6, 8, seed=3, dtype=dtype)
    inputs = [x] if bias is None else [x, bias]

    def run(function, dtype, grad=grad):
        leaves = [v.detach().to(dtype).requires_grad_() for v in inputs]
        y = function(leaves[0], leaves[1] if len(leaves) > 1 else None)
        assert y.dtype == dtype
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))]

    def compare(ours, theirs, grad=grad):
        results = (run(ours, dtype, grad), run(theirs, torch.float64, grad))
        for got, truth, other in zip(*results, run(theirs, dtype, grad), strict=True):
            assert got.dtype == dtype
            assert_as_good_as_plain(got, truth, other, dtype)

    compare(lambda x, b: bias_leaky_relu(x, b, 0.2, 1.4), lambda x, b: plain(x, b, 0.2, 1.4))
    taps = TAPS["1331"].float()
    compare(
        lambda x, b: bias_leaky_relu_down(x, b, taps),
        lambda x, b: plain_down(x, b, taps),
        grad[:, :, :3, :4],
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bias_gradient_of_many_terms_is_summed_wide(dtype):
    x = torch.zeros(8, 1, 64, 64, dtype=dtype)
    for bias in (torch.full((1,), 0.5), torch.full((8, 1), 0.5, dtype=dtype)):
        bias.requires_grad_()
        gain = torch.full((), 2.0**-8, dtype=dtype)
        (bias_leaky_relu(x, bias) * gain).sum().backward()
        assert bias.grad.dtype == bias.dtype
        assert (bias.grad == 2.0**-8 * x.numel() / bias.numel()).all()


def test_the_kink_is_found_before_rounding():
    """In half precision x + bias rounds; its sign must not."""
    x = torch.full((1, 1, 2, 2), -1.0, dtype=torch.bfloat16).requires_grad_()
    bias = torch.tensor([1.0 + 2**-12])
    bias_leaky_relu(x, bias).sum().backward()
    assert (x.grad == 1.0).all()
    x.grad = None
    bias_leaky_relu_down(x, bias, torch.tensor([1.0, 1.0])).sum().backward()
    assert (x.grad == 1.0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@biases
def test_memory_order_follows_the_input(layout, kind):
    x = laid_out(randn(2, 3, 6, 4), layout)
    bias = make_bias(kind, x.shape)
    y = bias_leaky_relu(x, bias)
    torch.testing.assert_close(y, plain(x, bias), rtol=0, atol=1e-14)
    y_down = bias_leaky_relu_down(x, bias, TAPS["1331"])
    torch.testing.assert_close(y_down, plain_down(x, bias, TAPS["1331"]), rtol=0, atol=1e-14)
    if layout in ("nchw", "channels_last"):
        assert y.is_contiguous(memory_format=expected_order(x))
    assert y_down.is_contiguous(memory_format=expected_order(x))


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "transposed"])
def test_gradients_arrive_in_any_memory_order(layout):
    x = randn(2, 3, 6, 4).requires_grad_()
    bias = randn(2, 3, seed=1).requires_grad_()
    for y in (bias_leaky_relu(x, bias), bias_leaky_relu_down(x, bias, TAPS["1331"])):
        g = randn(*y.shape, seed=2)
        want = torch.autograd.grad(y, (x, bias), g, retain_graph=True)
        got = torch.autograd.grad(y, (x, bias), laid_out(g, layout))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def test_expanded_bias_and_gradient():
    x = randn(2, 3, 4, 4).requires_grad_()
    row = randn(1, 3, seed=1).requires_grad_()
    bias_leaky_relu(x, row.expand(2, -1)).sum().backward()
    want = torch.where(x.detach() + row.detach()[:, :, None, None] > 0, 1.0, 0.2)
    torch.testing.assert_close(x.grad, want.double())
    torch.testing.assert_close(row.grad, want.double().sum((0, 2, 3))[None])


def test_rows_do_not_share_their_gradient_with_the_bias():
    x, bias = randn(3, 3).requires_grad_(), randn(3, 3, seed=1).requires_grad_()
    for _ in range(2):
        bias_leaky_relu(x, bias).sum().backward()
    want = 2 * torch.where(x + bias > 0, 1.0, 0.2).double()
    torch.testing.assert_close(x.grad, want)
    torch.testing.assert_close(bias.grad, want)


@biases
def test_batch_of_none(kind):
    x = randn(0, 3, 4, 6).requires_grad_()
    bias = make_bias(kind, x.shape)
    if bias is not None:
        bias.requires_grad_()
    y, z = bias_leaky_relu(x, bias), bias_leaky_relu_down(x, bias, TAPS["1331"])
    assert y.shape == x.shape and z.shape == (0, 3, 2, 3)
    (y.sum() + z.sum()).backward()
    assert x.grad.shape == x.shape
    if bias is not None:
        assert bias.grad.shape == bias.shape and not bias.grad.any()


def test_does_not_touch_its_inputs():
    x, bias = randn(2, 3, 4, 4), randn(3)
    copies = x.clone(), bias.clone()
    for b in (bias, None):
        bias_leaky_relu(x, b, 0.2, 2.0).fill_(7.0)
        bias_leaky_relu_down(x, b, TAPS["1331"]).fill_(7.0)
    assert torch.equal(x, copies[0]) and torch.equal(bias, copies[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": torch.zeros(3)}, r"x must be floating-point \[N, C, ...\], got torch.float32 \[3\]"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, ".*got torch.int64"),
        ({"bias": torch.zeros(2)}, r"bias must be \[3\] or \[2, 3\] for x .*, got \[2\]"),
        ({"bias": torch.zeros(1, 3)}, r"bias must be .*, got \[1, 3\]"),
        ({"bias": torch.zeros(())}, r"bias must be .*, got \[\]"),
        ({"negative_slope": -0.1}, "negative_slope must be at least 0, got -0.1"),
    ],
)
def test_says_what_is_wrong(arguments, words):
    good = {"x": torch.zeros(2, 3, 4, 4), "bias": torch.zeros(3)}
    with pytest.raises(ValueError, match="bias_leaky_relu: " + words):
        bias_leaky_relu(**(good | arguments))
    with pytest.raises(ValueError, match="bias_leaky_relu_down: " + words):
        bias_leaky_relu_down(**(good | {"taps": torch.ones(4)} | arguments))


def test_says_what_else_is_wrong():
    x = torch.zeros(2, 3, 4, 4)
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="scale must be positive"):
            bias_leaky_relu(x, None, 0.2, scale)
    with pytest.raises(ValueError, match=r"x must be \[N, C, H, W\], got \[2, 3\]"):
        bias_leaky_relu_down(torch.zeros(2, 3), None, torch.ones(4))
    for taps in (torch.ones(1), torch.ones(4, 4)):
        with pytest.raises(ValueError, match=r"taps must be \[k\] with k >= 2"):
            bias_leaky_relu_down(x, None, taps)


def test_says_that_nothing_is_left_of_one_column():
    with pytest.raises(ValueError, match="leaves no output"):
        bias_leaky_relu_down(torch.zeros(1, 1, 4, 1), None, TAPS["1331"])
