"""Every registered op: torch's own checks, torch.compile, and derivatives that must not be silent.

The ops come from the registry, so that none can be forgotten.
"""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
import torch.utils._pytree as pytree
from kernel_helpers import laid_out, randn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

import ddgan_fast.kernels
import ddgan_fast.kernels.template.op  # registered for its tests only
from ddgan_fast.kernels import (
    _library,
    ada_group_norm_silu,
    ada_group_norm_silu_resample,
    bias_leaky_relu,
    bias_leaky_relu_down,
    q_sample_pair,
    sample_posterior,
    upfirdn2d,
)

TAPS = torch.tensor([0.125, 0.375, 0.375, 0.125])
TAPS_2D = torch.tensor([[0.1, 0.2, 0.3], [0.15, 0.05, 0.2]])
T = torch.tensor([0, 2])
TABLES_3 = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
TABLES_4 = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
SEED, INDEX = torch.tensor([123456789012345]), torch.tensor([4, 9])
FLIP = torch.tensor([True, False])


def leaf(layout, *shape, seed=0):
    x = randn(*shape, seed=seed, dtype=torch.float32)
    return (laid_out(x, layout) if len(shape) == 4 else x).requires_grad_()


def identity_samples(layout):
    yield (leaf(layout, 2, 4, 5, 6),)
    yield (leaf(layout, 2, 4),)


def upfirdn2d_samples(layout):
    x = leaf(layout, 2, 4, 5, 6)
    yield x, TAPS, [2, 2], [1, 1], [2, 1, 2, 1], False, 4.0
    yield x, TAPS, [1, 1], [2, 2], [1, 1, 1, 1], True, 1.0
    yield x, TAPS_2D, [2, 1], [1, 3], [2, -1, 3, 0], False, 0.5


def bias_leaky_relu_samples(layout):
    x = leaf(layout, 2, 4, 5, 6)
    for bias in (None, leaf(layout, 4), leaf(layout, 2, 4)):
        yield x, bias, 0.2, 1.5
    yield leaf(layout, 2, 4), leaf(layout, 2, 4, seed=1), 0.2, 1.0


def bias_leaky_relu_grad_samples(layout):
    yield leaf(layout, 2, 4, 5, 6), leaf(layout, 2, 4, 5, 6, seed=1).detach(), 0.2, 1.5
    yield leaf("nchw", 2, 4, 5, 6), leaf(layout, 2, 4, 5, 6, seed=1).detach(), 0.2, 1.0


def down_samples(layout):
    x = leaf(layout, 2, 4, 6, 5)
    for bias in (None, leaf(layout, 4), leaf(layout, 2, 4)):
        yield x, bias, TAPS, 0.2


def down_grad_samples(layout):
    x = leaf(layout, 2, 4, 6, 5).detach()
    for bias in (None, leaf(layout, 2, 4).detach()):
        yield leaf(layout, 2, 4, 3, 2, seed=1), x, bias, TAPS, 0.2


def down_tangent_samples(layout):
    x = leaf(layout, 2, 4, 6, 5).detach()
    for bias in (None, leaf(layout, 2, 4).detach()):
        yield leaf(layout, 2, 4, 6, 5, seed=1), x, bias, TAPS, 0.2


def ada_samples(layout):
    vectors = leaf(layout, 2, 4, seed=1), leaf(layout, 2, 4, seed=2)
    yield leaf(layout, 2, 4, 5, 6), *vectors, 2, 1e-6, True
    yield leaf(layout, 2, 4, 5, 6), *vectors, 1, 1e-6, False


def ada_backward_samples(layout):
    x, scale, shift, *rest = next(ada_samples(layout))
    _, mean, rstd = torch.ops.ddgan_fast.ada_group_norm_silu(
        x.detach(), scale.detach(), shift.detach(), *rest
    )
    yield leaf(layout, *x.shape, seed=5), x, scale, shift, mean, rstd, *rest


def ada_resample_samples(layout):
    vectors = leaf(layout, 2, 4, seed=1), leaf(layout, 2, 4, seed=2)
    x, odd = leaf(layout, 2, 4, 6, 5), torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1])
    for taps, up, both in ((TAPS, True, True), (TAPS, False, True), (odd, False, False)):
        yield x, *vectors, taps, 2, up, both, 1e-6, both
    # One pixel lies alike in every memory order, but for its strides.
    yield leaf(layout, 2, 4, 2, 2), *vectors, TAPS, 2, False, True, 1e-6, True


def ada_resample_backward_samples(layout):
    for x, scale, shift, taps, groups, up, both, eps, silu in ada_resample_samples(layout):
        detached = (v.detach() for v in (x, scale, shift))
        op = torch.ops.ddgan_fast.ada_group_norm_silu_resample
        h, _, mean, rstd = op(*detached, taps, groups, up, both, eps, silu)
        grads = (leaf("nchw" if silu else layout, *h.shape, seed=i) for i in (5, 6))
        yield *grads, x, scale, shift, taps, mean, rstd, groups, up, eps, silu


def posterior_samples(layout):
    x0, x_next = leaf(layout, 2, 3, 4, 5), leaf(layout, 2, 3, 4, 5, seed=1)
    yield x0, x_next, T, TABLES_3, leaf(layout, 2, 3, 4, 5, seed=2).detach(), None, None
    yield x0, x_next, T, TABLES_3, None, SEED, INDEX
    yield x0, x_next, T, TABLES_3, None, SEED, None


def q_sample_samples(layout):
    x0 = leaf(layout, 2, 3, 4, 5)
    noise = leaf(layout, 2, 3, 4, 5, seed=1).detach(), leaf(layout, 2, 3, 4, 5, seed=2).detach()
    images = torch.arange(120, dtype=torch.uint8).reshape(2, 4, 5, 3)
    yield x0, T, TABLES_4, None, *noise, None, None
    yield x0, T, TABLES_4, None, None, None, SEED, INDEX
    yield images, T, TABLES_4, FLIP, None, None, SEED, None


SAMPLES = {
    "identity": identity_samples,
    "upfirdn2d": upfirdn2d_samples,
    "bias_leaky_relu": bias_leaky_relu_samples,
    "bias_leaky_relu_grad": bias_leaky_relu_grad_samples,
    "bias_leaky_relu_down": down_samples,
    "bias_leaky_relu_down_grad": down_grad_samples,
    "bias_leaky_relu_down_tangent": down_tangent_samples,
    "ada_group_norm_silu": ada_samples,
    "ada_group_norm_silu_backward": ada_backward_samples,
    "ada_group_norm_silu_resample": ada_resample_samples,
    "ada_group_norm_silu_resample_backward": ada_resample_backward_samples,
    "sample_posterior": posterior_samples,
    "q_sample_pair": q_sample_samples,
}


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("name", _library.op_names)
def test_opcheck(name, layout):
    assert name in SAMPLES, f"op {name} has no sample inputs in this file"
    op = getattr(torch.ops.ddgan_fast, name).default
    for arguments in SAMPLES[name](layout):
        torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("name", _library.op_names)
def test_the_fake_promises_the_real_strides(name):
    """Also for inputs in no particular order, and in half precision, which opcheck never sees."""
    op = getattr(torch.ops.ddgan_fast, name).default
    for layout in ("channels_last", "sliced", "transposed", "expanded"):
        for arguments in SAMPLES[name](layout):
            for dtype in (torch.float32, torch.bfloat16, torch.float64):
                cast = [cast_to(a, dtype) for a in arguments]
                real = pytree.tree_leaves(op(*cast))
                with FakeTensorMode() as mode:
                    fakes = [
                        mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in cast
                    ]
                    fake = pytree.tree_leaves(op(*fakes))
                for a, b in zip(real, fake, strict=True):
                    assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def cast_to(value, dtype):
    """Images in another dtype with the strides they had."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.ndim != 4:
        return value
    if 0 in value.stride():
        return value[:1].detach().to(dtype).expand_as(value)
    copy = torch.empty_strided(value.shape, value.stride(), dtype=dtype)
    return copy.copy_(value.detach())


PUBLIC = {
    "upfirdn2d": lambda x: upfirdn2d(x, TAPS, up=2, down=3, padding=(2, 1), gain=4.0),
    "bias_leaky_relu": lambda x: bias_leaky_relu(x, x[:, :, 0, 0], 0.2, 1.4),
    "bias_leaky_relu_down": lambda x: bias_leaky_relu_down(x, x[0, :, 0, 0], TAPS.to(x.dtype)),
    "ada_group_norm_silu": lambda x: ada_group_norm_silu(x, x[:, :, 0, 0], x[:, :, 1, 1], 2),
    "ada_group_norm_silu_resample": lambda x: sum(
        ada_group_norm_silu_resample(
            x, x[:, :, 0, 0], x[:, :, 1, 1], 2, TAPS.to(x.dtype), resample="down"
        )
    ),
    "sample_posterior": lambda x: sample_posterior(x.sin(), x, T, TABLES_3, seed=SEED),
    "q_sample_pair": lambda x: sum(q_sample_pair(x, T, TABLES_4, seed=SEED, index=INDEX)),
}

TWICE = [name for name in PUBLIC if name not in ("sample_posterior", "q_sample_pair")]
"""Ops that R1 may go through."""


def test_every_public_op_is_tested_here():
    others = {"use_backend", "backend_report"}
    assert set(PUBLIC) == set(ddgan_fast.kernels.__all__) - others
    assert set(PUBLIC) <= set(_library.op_names)


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("name", PUBLIC)
def test_compiles_to_one_graph(name, layout, dynamo):
    x = laid_out(randn(2, 4, 6, 5, dtype=torch.float32), layout)

    def run(function):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        y.square().sum().backward()
        return y.detach(), leaf.grad

    compiled = torch.compile(PUBLIC[name], backend="aot_eager", fullgraph=True)
    for got, want in zip(run(compiled), run(PUBLIC[name]), strict=True):
        torch.testing.assert_close(got, want)
        assert got.stride() == want.stride()


@pytest.mark.parametrize("name", PUBLIC)
def test_compiles_for_any_size(name, dynamo):
    """Dynamic shapes: one compilation serves all sizes."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(PUBLIC[name], backend=counter, fullgraph=True, dynamic=True)
    counts = set()
    for size in ((6, 5), (8, 10), (11, 7)):
        x = randn(2, 4, *size, dtype=torch.float32)
        torch.testing.assert_close(compiled(x), PUBLIC[name](x))
        counts.add(counter.frame_count)
    assert len(counts) == 1


@pytest.mark.parametrize("name", TWICE)
def test_gradient_penalty_in_one_graph(name, dynamo):
    """R1 of the op inside the compiled region; the leaf is made outside."""
    x = randn(2, 4, 6, 6)
    weight = randn(4, 4, 3, 3, seed=1).requires_grad_()

    def loss(x):
        y = PUBLIC[name](F.conv2d(x, weight, padding=1)).sigmoid()
        (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return g.square().sum() + y.mean()

    (want,) = torch.autograd.grad(loss(x.clone().requires_grad_()), weight)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        (got,) = torch.autograd.grad(compiled(x.clone().requires_grad_()), weight)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", PUBLIC)
def test_forward_mode_is_refused_or_right(name):
    x, v = randn(2, 4, 6, 5), randn(2, 4, 6, 5, seed=1)
    want = torch.autograd.functional.jvp(PUBLIC[name], x, v)[1]
    try:
        with forward_ad.dual_level():
            got = forward_ad.unpack_dual(PUBLIC[name](forward_ad.make_dual(x, v))).tangent
    except (NotImplementedError, RuntimeError):
        return
    assert got is not None
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", PUBLIC)
def test_forward_mode_by_function_transforms_is_refused_or_right(name):
    x, v = randn(2, 4, 6, 5), randn(2, 4, 6, 5, seed=1)
    try:
        got = torch.func.jvp(PUBLIC[name], (x,), (v,))[1]
    except (NotImplementedError, RuntimeError):
        return
    torch.testing.assert_close(got, torch.autograd.functional.jvp(PUBLIC[name], x, v)[1])


@pytest.mark.parametrize("name", TWICE)
def test_forward_mode_through_backward_is_refused_or_right(name):
    x = randn(2, 4, 6, 5).requires_grad_()
    y = PUBLIC[name](x)
    g = randn(*y.shape, seed=1)
    want = torch.autograd.grad(y, x, g, retain_graph=True)[0]
    try:
        with forward_ad.dual_level():
            # The derivative of a linear map along g, at g, is the map itself.
            (gradient,) = torch.autograd.grad(y, x, forward_ad.make_dual(g, g))
            got = forward_ad.unpack_dual(gradient).tangent
    except (NotImplementedError, RuntimeError):
        return
    assert got is not None
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", PUBLIC)
def test_function_transforms_are_refused(name):
    """torch.func.grad over registered ops cannot work: it must say so."""
    x = randn(2, 4, 6, 5)
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda x: PUBLIC[name](x).sum())(x)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("name", PUBLIC)
def test_repeats_bit_for_bit(name, layout):
    x = laid_out(randn(2, 4, 6, 5, dtype=torch.float32), layout)
    assert torch.equal(PUBLIC[name](x), PUBLIC[name](x))
