"""Adaptive group norm + SiLU against loops in float64 and plain torch."""

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

from ddgan_fast.kernels import ada_group_norm_silu

# shape, groups
CASES = {
    "image": ((2, 8, 5, 3), 2),
    "one group": ((3, 4, 4, 4), 1),
    "every channel": ((2, 4, 3, 5), 4),
    "one pixel": ((2, 8, 1, 1), 2),
    "rows": ((3, 8), 2),
    "sequence": ((2, 6, 7), 3),
    "volume": ((2, 4, 2, 3, 2), 2),
    "one sample": ((1, 4, 3, 3), 2),
}
cases = pytest.mark.parametrize(("shape", "groups"), CASES.values(), ids=CASES.keys())
both = pytest.mark.parametrize("silu", [True, False], ids=["silu", "linear"])


def inputs(shape, dtype=torch.float64):
    scale, shift = (randn(*shape[:2], seed=i, dtype=dtype) for i in (1, 2))
    return randn(*shape, dtype=dtype), scale, shift


def looped(x, scale, shift, groups, eps, silu):
    x = np.asarray(x.double())
    out = np.zeros(x.shape)
    width = x.shape[1] // groups
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            g = c // width
            values = x[n, g * width : (g + 1) * width]
            xhat = (x[n, c] - values.mean()) / np.sqrt(values.var() + eps)
            a = float(scale[n, c]) * xhat + float(shift[n, c])
            out[n, c] = a / (1 + np.exp(-a)) if silu else a
    return out


def plain(x, scale, shift, groups, eps=1e-6, silu=True):
    ones = [1] * (x.ndim - 2)
    y = F.group_norm(x, groups, eps=eps)
    y = y * scale.reshape(*scale.shape, *ones) + shift.reshape(*shift.shape, *ones)
    return F.silu(y) if silu else y


@cases
@both
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_equals_the_loop(shape, groups, silu, eps):
    x, scale, shift = inputs(shape)
    y = ada_group_norm_silu(x, scale, shift, groups, eps=eps, silu=silu)
    want = looped(x, scale, shift, groups, eps, silu)
    np.testing.assert_allclose(y.numpy(), want, rtol=0, atol=1e-12)


def test_defaults():
    x, scale, shift = inputs((2, 8, 3, 3))
    want = looped(x * 1e-3, scale, shift, 2, 1e-6, True)
    got = ada_group_norm_silu(x * 1e-3, scale, shift, 2)
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-12)


@both
@pytest.mark.parametrize(
    ("shape", "groups", "order"),
    [
        ((2, 4, 2, 2), 2, torch.contiguous_format),
        ((2, 4, 2, 2), 2, torch.channels_last),
        ((2, 4), 2, torch.contiguous_format),
        ((1, 4, 3), 4, torch.contiguous_format),
    ],
    ids=str,
)
def test_gradcheck(shape, groups, order, silu):
    x, scale, shift = inputs(shape)
    x = x.contiguous(memory_format=order)
    leaves = [v.requires_grad_() for v in (x, scale, shift)]
    # Away from the smallest eps, where finite differences would be inexact.
    function = lambda *v: ada_group_norm_silu(*v, groups, eps=0.1, silu=silu)  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@cases
@both
def test_first_and_second_derivatives_equal_plain_torch(shape, groups, silu):
    grad, v = randn(*shape, seed=3), [randn(*s, seed=4) for s in (shape, shape[:2], shape[:2])]

    def run(function):
        leaves = [t.requires_grad_() for t in inputs(shape)]
        y = function(*leaves, groups, silu=silu)
        upstream = grad.clone().requires_grad_()
        first = torch.autograd.grad(y, leaves, upstream, create_graph=True)
        value = sum((a * b).sum() for a, b in zip(first, v, strict=True))
        second = torch.autograd.grad(value, [*leaves, upstream], materialize_grads=True)
        return [*first, *second]

    for got, want in zip(run(ada_group_norm_silu), run(plain), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * want.abs().max().item())


def test_second_derivative_when_only_some_inputs_need_one():
    x, scale, shift = inputs((2, 4, 3, 3))
    for wanted in ((x,), (scale,), (shift,), (x, shift)):
        for v in (x, scale, shift):
            v.requires_grad_(any(v is w for w in wanted))

        def second(function, wanted=wanted):
            y = function(x, scale, shift, 2)
            first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
            return torch.autograd.grad(sum(g.pow(2).sum() for g in first), wanted)

        for got, want in zip(second(ada_group_norm_silu), second(plain), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_third_derivative_is_refused_or_right():
    x, scale, shift = inputs((2, 4, 3, 3))
    x.requires_grad_()

    def third(function):
        value = function(x, scale, shift, 2).square().sum()
        for _ in range(2):
            (g,) = torch.autograd.grad(value, x, create_graph=True)
            value = g.square().sum()
        return torch.autograd.grad(value, x)[0]

    try:
        got = third(ada_group_norm_silu)
    except RuntimeError:
        return
    torch.testing.assert_close(got, third(plain))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@both
def test_is_as_exact_as_plain_torch(dtype, layout, silu):
    x, scale, shift = inputs((3, 16, 6, 4), dtype)
    x = laid_out(x, layout)
    grad = randn(*x.shape, seed=3, dtype=dtype)

    def run(function, dtype):
        leaves = [v.detach().to(dtype).requires_grad_() for v in (x, scale, shift)]
        y = function(*leaves, 4, silu=silu)
        assert y.dtype == dtype
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))]

    results = run(ada_group_norm_silu, dtype), run(plain, torch.float64), run(plain, dtype)
    for got, truth, other in zip(*results, strict=True):
        assert got.dtype == dtype
        assert_as_good_as_plain(got, truth, other, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_wide_statistics(dtype):
    """The sum of squares of a group overflows fp16 and drowns in bf16."""
    x = (300 + 10 * randn(1, 4, 64, 64)).to(dtype)
    scale, shift = torch.ones(1, 4), torch.zeros(1, 4)
    y = ada_group_norm_silu(x, scale, shift, 1, silu=False)
    want = looped(x, scale, shift, 1, 1e-6, False)
    assert y.dtype == dtype
    assert np.abs(y.double().numpy() - want).max() < 0.02


def test_scale_and_shift_may_be_wider_than_x():
    x, scale, shift = inputs((2, 8, 4, 4), torch.float32)
    x = x.bfloat16().requires_grad_()
    leaves = [x, scale.requires_grad_(), shift.requires_grad_()]
    y = ada_group_norm_silu(*leaves, 2)
    assert y.dtype == torch.bfloat16
    gradients = torch.autograd.grad(y.float().sum(), leaves)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    want = looped(x.detach(), scale.detach(), shift.detach(), 2, 1e-6, True)
    assert np.abs(y.detach().double().numpy() - want).max() < 0.02


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_order_follows_the_input(layout):
    x, scale, shift = inputs((2, 8, 6, 4))
    x = laid_out(x, layout).detach().requires_grad_()
    scale, shift = scale[:1].expand(2, -1), shift.t().contiguous().t()
    y = ada_group_norm_silu(x, scale, shift, 2)
    want = looped(x.detach(), scale, shift, 2, 1e-6, True)
    np.testing.assert_allclose(y.detach().numpy(), want, rtol=0, atol=1e-12)
    if layout in ("nchw", "channels_last"):
        assert y.is_contiguous(memory_format=expected_order(x))
    g = randn(*x.shape, seed=5)
    (got,) = torch.autograd.grad(y, x, laid_out(g, "channels_last"))
    (want,) = torch.autograd.grad(plain(x, scale, shift, 2), x, g)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (0, 4)])
def test_batch_of_none(shape):
    leaves = [v.requires_grad_() for v in inputs(shape)]
    y = ada_group_norm_silu(*leaves, 2)
    assert y.shape == shape
    y.sum().backward()
    assert [v.grad.shape for v in leaves] == [shape, (0, 4), (0, 4)]


def test_does_not_touch_its_inputs():
    values = inputs((2, 8, 4, 4))
    copies = [v.clone() for v in values]
    ada_group_norm_silu(*values, 2).fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(values, copies, strict=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": torch.zeros(4)}, r"x must be floating-point \[N, C, ...\], got .*\[4\]"),
        ({"x": torch.zeros(2, 8, 3, 3, dtype=torch.uint8)}, "uint8"),
        ({"scale": torch.zeros(8)}, r"scale and shift must be \[2, 8\] .*got \[8\] and \[2, 8\]"),
        ({"shift": torch.zeros(1, 8)}, r"got \[2, 8\] and \[1, 8\]"),
        ({"groups": 3}, "8 channels do not divide into 3 groups"),
        ({"groups": 0}, "do not divide into 0 groups"),
    ],
)
def test_says_what_is_wrong(arguments, words):
    good = {"x": torch.zeros(2, 8, 3, 3), "scale": torch.ones(2, 8), "shift": torch.ones(2, 8)}
    good["groups"] = 2
    with pytest.raises(ValueError, match="ada_group_norm_silu: .*" + words):
        ada_group_norm_silu(**(good | arguments))
