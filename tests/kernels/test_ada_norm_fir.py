"""Adaptive group norm + SiLU + FIR resampling against loops in float64 and plain torch."""

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
from test_ada_norm import looped as looped_norm
from test_ada_norm import plain as plain_norm

from ddgan_fast.kernels import ada_group_norm_silu_resample

FOUR = (0.1, 0.2, 0.3, 0.4)
# shape, groups, taps
CASES = {
    "even": ((2, 8, 6, 4), 2, FOUR),
    "odd": ((2, 4, 5, 7), 1, FOUR),
    "vectors of channels": ((1, 16, 5, 6), 4, FOUR),
    "two taps": ((2, 4, 4, 5), 4, (0.3, 0.7)),
    "one tap": ((1, 4, 3, 4), 2, (1.0,)),
    "three taps": ((2, 4, 5, 4), 2, (0.2, 0.5, 0.3)),
    "nine taps": ((1, 8, 7, 6), 2, tuple(i / 45 for i in range(1, 10))),
    "16 taps": ((1, 2, 5, 4), 1, tuple(i / 136 for i in range(1, 17))),
    "smallest": ((2, 4, 2, 2), 2, FOUR),
    "a column": ((1, 4, 9, 2), 2, FOUR),
}
cases = pytest.mark.parametrize(("shape", "groups", "taps"), CASES.values(), ids=CASES.keys())
ways = pytest.mark.parametrize("way", ["up", "down"])
branches = pytest.mark.parametrize("both", [True, False], ids=["both", "alone"])


def inputs(shape, dtype=torch.float64):
    scale, shift = (randn(*shape[:2], seed=i, dtype=dtype) for i in (1, 2))
    return randn(*shape, dtype=dtype) * 2 + 1, scale, shift


def padding(taps, way):
    """(before, after) the stuffed or the plain samples: the filter's middle stays in place."""
    rest = len(taps) - 2
    return (rest + 1) // 2 + (way == "up"), rest // 2


def looped_fir(x, taps, way):
    """The definition: zeros between (up), zeros around, every output a sum over the taps."""
    n, c, height, width = x.shape
    if way == "up":
        stuffed = np.zeros((n, c, 2 * height, 2 * width))
        stuffed[:, :, ::2, ::2] = x
        x, step, gain = stuffed, 1, 4.0
    else:
        step, gain = 2, 1.0
    before, _ = padding(taps, way)
    height, width = x.shape[2] // step, x.shape[3] // step
    out = np.zeros((n, c, height, width))
    last = len(taps) - 1
    for oy in range(height):
        for ox in range(width):
            for j, wy in enumerate(taps):
                for i, wx in enumerate(taps):
                    y, z = step * oy - before + last - j, step * ox - before + last - i
                    if 0 <= y < x.shape[2] and 0 <= z < x.shape[3]:
                        out[:, :, oy, ox] += gain * wy * wx * x[:, :, y, z]
    return out


def plain_fir(x, taps, way):
    if way == "up":
        shape = x.shape
        x = torch.stack([x, torch.zeros_like(x)], -1).reshape(*shape[:3], 2 * shape[3])
        x = torch.stack([x, torch.zeros_like(x)], 3)
        x = x.reshape(*shape[:2], 2 * shape[2], 2 * shape[3])
    kernel = torch.outer(taps, taps).flip(0, 1).to(x.dtype) * (4.0 if way == "up" else 1.0)
    before, after = padding(taps, way)
    x = F.pad(x, (before, after, before, after))
    weight = kernel.expand(x.shape[1], 1, *kernel.shape)
    return F.conv2d(x, weight, stride=1 if way == "up" else 2, groups=x.shape[1])


def plain(x, scale, shift, groups, taps, *, resample, both=True, eps=1e-6, silu=True):
    h = plain_fir(plain_norm(x, scale, shift, groups, eps, silu), taps, resample)
    return h, plain_fir(x, taps, resample) if both else None


def results(function, x, scale, shift, groups, taps, way, both=True, **options):
    """One or two results."""
    taps = torch.as_tensor(taps, dtype=torch.float64)
    found = function(x, scale, shift, groups, taps, resample=way, both=both, **options)
    assert len(found) == 2 and (found[1] is None) == (not both)
    return found[: 1 + both]


@cases
@ways
@pytest.mark.parametrize(("eps", "silu"), [(1e-6, True), (0.3, False)])
def test_equals_the_loop(shape, groups, taps, way, eps, silu):
    given = inputs(shape)
    options = {"eps": eps, "silu": silu}
    h, skip = results(ada_group_norm_silu_resample, *given, groups, taps, way, **options)
    want = looped_fir(looped_norm(*given, groups, eps, silu), taps, way)
    np.testing.assert_allclose(h.numpy(), want, rtol=0, atol=1e-12)
    want = looped_fir(given[0].numpy(), taps, way)
    np.testing.assert_allclose(skip.numpy(), want, rtol=0, atol=1e-12)
    (alone,) = results(
        ada_group_norm_silu_resample, *given, groups, taps, way, both=False, **options
    )
    assert torch.equal(alone, h)


@ways
@pytest.mark.parametrize("taps", [FOUR, (0.1, 0.3, 0.4, 0.1, 0.1)], ids=len)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_zeros_lie_outside_the_norm(way, taps, layout):
    """A zero that went through the norm would come out as silu(shift): no border would show."""
    x = laid_out(randn(2, 4, 6, 6), layout) + 100
    shift = torch.full((2, 4), 5.0, dtype=torch.float64)
    (h,) = results(
        ada_group_norm_silu_resample, x, torch.zeros_like(shift), shift, 2, taps, way, both=False
    )
    level = 5.0 / (1 + np.exp(-5.0))
    want = level * looped_fir(np.ones((2, 4, 6, 6)), taps, way)
    np.testing.assert_allclose(h.numpy(), want, rtol=0, atol=1e-9)
    assert np.abs(want[0, 0, 0, 0]) < 0.95 * level, "the border must show"


def test_defaults():
    x, scale, shift = inputs((1, 4, 4, 4))
    taps = torch.tensor(FOUR, dtype=torch.float64)
    got = ada_group_norm_silu_resample(x * 1e-3, scale, shift, 2, taps, resample="down")
    norm = looped_norm(x * 1e-3, scale, shift, 2, 1e-6, True)
    np.testing.assert_allclose(got[0].numpy(), looped_fir(norm, FOUR, "down"), rtol=0, atol=1e-12)
    assert got[1] is not None


@ways
def test_gradcheck(way):
    x, scale, shift = inputs((1, 2, 2, 2))
    leaves = [v.requires_grad_() for v in (laid_out(x, "channels_last"), scale, shift)]
    function = lambda *v: results(  # noqa: E731
        ada_group_norm_silu_resample, *v, 1, FOUR, way, eps=0.1
    )
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@cases
@ways
@branches
def test_first_and_second_derivatives_equal_plain_torch(shape, groups, taps, way, both):
    v = [randn(*s, seed=4) for s in (shape, shape[:2], shape[:2])]

    def run(function):
        leaves = [t.requires_grad_() for t in inputs(shape)]
        outputs = results(function, *leaves, groups, taps, way, both)
        upstream = [randn(*y.shape, seed=6 + i).requires_grad_() for i, y in enumerate(outputs)]
        first = torch.autograd.grad(outputs, leaves, upstream, create_graph=True)
        value = sum((a * b).sum() for a, b in zip(first, v, strict=True))
        second = torch.autograd.grad(value, [*leaves, *upstream], materialize_grads=True)
        return [*first, *second]

    for got, want in zip(run(ada_group_norm_silu_resample), run(plain), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * want.abs().max().item())


@ways
@pytest.mark.parametrize("which", [0, 1], ids=["of the norm", "of x"])
def test_a_gradient_from_one_branch_alone(way, which):
    def run(function):
        leaves = [t.requires_grad_() for t in inputs((2, 4, 4, 6))]
        y = results(function, *leaves, 2, FOUR, way)[which]
        return torch.autograd.grad(y.square().sum(), leaves, materialize_grads=True)

    for got, want in zip(run(ada_group_norm_silu_resample), run(plain), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(
    ("shape", "groups", "taps"),
    [((2, 16, 13, 9), 4, FOUR), ((1, 12, 8, 14), 3, (0.1, 0.3, 0.4, 0.1, 0.1))],
    ids=["four taps", "five taps"],
)
@ways
def test_is_as_exact_as_plain_torch(dtype, layout, shape, groups, taps, way):
    """Several strips and tiles, vectors of channels and a rest, a mean far from zero."""
    x, scale, shift = inputs(shape, dtype)
    x = laid_out((x + 10).to(dtype), layout)

    def run(function, dtype):
        leaves = [v.detach().to(dtype).requires_grad_() for v in (x, scale, shift)]
        outputs = results(function, *leaves, groups, taps, way)
        grads = [randn(*y.shape, seed=3 + i).to(dtype) for i, y in enumerate(outputs)]
        return [y.detach() for y in outputs] + [*torch.autograd.grad(outputs, leaves, grads)]

    runs = (
        run(ada_group_norm_silu_resample, dtype), run(plain, torch.float64), run(plain, dtype)
    )
    for got, truth, other in zip(*runs, strict=True):
        assert got.dtype == dtype
        assert_as_good_as_plain(got, truth, other, dtype)


def test_scale_and_shift_may_be_wider_than_x():
    x, scale, shift = inputs((2, 8, 4, 4), torch.float32)
    leaves = [x.bfloat16().requires_grad_(), scale.requires_grad_(), shift.requires_grad_()]
    outputs = results(ada_group_norm_silu_resample, *leaves, 2, FOUR, "down")
    assert [y.dtype for y in outputs] == [torch.bfloat16] * 2
    gradients = torch.autograd.grad(sum(y.float().sum() for y in outputs), leaves)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("layout", LAYOUTS)
@ways
def test_memory_order_follows_the_input(layout, way):
    x, scale, shift = inputs((2, 8, 6, 4))
    x = laid_out(x, layout).detach().requires_grad_()
    scale, shift = scale[:1].expand(2, -1), shift.t().contiguous().t()
    outputs = results(ada_group_norm_silu_resample, x, scale, shift, 2, FOUR, way)
    wants = results(plain, x, scale, shift, 2, FOUR, way)
    for y, want in zip(outputs, wants, strict=True):
        torch.testing.assert_close(y, want, rtol=0, atol=1e-12)
        assert y.is_contiguous(memory_format=expected_order(x))
    grads = [randn(*y.shape, seed=5 + i) for i, y in enumerate(outputs)]
    (got,) = torch.autograd.grad(outputs, x, [laid_out(g, "channels_last") for g in grads])
    (want,) = torch.autograd.grad(wants, x, grads)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@ways
@branches
def test_batch_of_none(way, both):
    leaves = [v.requires_grad_() for v in inputs((0, 4, 6, 4))]
    outputs = results(ada_group_norm_silu_resample, *leaves, 2, FOUR, way, both)
    size = (12, 8) if way == "up" else (3, 2)
    assert all(y.shape == (0, 4, *size) for y in outputs)
    sum(y.sum() for y in outputs).backward()
    assert [v.grad.shape for v in leaves] == [(0, 4, 6, 4), (0, 4), (0, 4)]


@ways
def test_does_not_touch_its_inputs(way):
    values = inputs((2, 8, 4, 4))
    copies = [v.clone() for v in values]
    for y in results(ada_group_norm_silu_resample, *values, 2, (1.0,), way):
        y.fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(values, copies, strict=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": torch.zeros(2, 8, 4)}, r"x must be floating-point images \[N, C, H, W\], got"),
        ({"x": torch.zeros(2, 8, 4, 4, dtype=torch.uint8)}, "uint8"),
        ({"scale": torch.zeros(8)}, r"scale and shift must be \[2, 8\] .*got \[8\] and \[2, 8\]"),
        ({"shift": torch.zeros(1, 8)}, r"got \[2, 8\] and \[1, 8\]"),
        ({"groups": 3}, "8 channels do not divide into 3 groups"),
        ({"groups": 0}, "do not divide into 0 groups"),
        ({"taps": torch.ones(4, 4)}, r"taps must be \[k\], got \[4, 4\]"),
        ({"taps": torch.ones(0)}, r"taps must be \[k\], got \[0\]"),
        ({"resample": "both"}, "resample is 'both': choose up or down"),
        ({"x": torch.zeros(2, 8, 1, 4)}, r"\[2, 8, 1, 4\] resampled down by 2 leaves no output"),
        ({"x": torch.zeros(2, 8, 4, 0), "resample": "up"}, "resampled up by 2 leaves no output"),
    ],
)
def test_says_what_is_wrong(arguments, words):
    good = {"x": torch.zeros(2, 8, 4, 4), "scale": torch.ones(2, 8), "shift": torch.ones(2, 8)}
    good |= {"groups": 2, "taps": torch.tensor(FOUR), "resample": "down"}
    with pytest.raises(ValueError, match="ada_group_norm_silu_resample: .*" + words):
        ada_group_norm_silu_resample(**(good | arguments))
