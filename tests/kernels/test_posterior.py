"""Posterior sampling against loops; noise handed in or counted from a seed."""

import numpy as np
import pytest
import torch
from kernel_helpers import LAYOUTS, expected_order, laid_out, randn

from ddgan_fast.kernels import philox, sample_posterior

TABLES = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.3, 0.7], [0.2, 0.5, 0.9]])
SHAPES = [(4, 2, 3, 5), (4, 2), (4, 3, 7)]
SEED = torch.tensor([-(2**62) - 12345])


def inputs(shape, dtype=torch.float64):
    t = torch.tensor([0, 2, 1, 2])[: shape[0]]
    x0, x_next, noise = (randn(*shape, seed=i, dtype=dtype) for i in range(3))
    return x0, x_next, t, noise


def looped(x0, x_next, t, noise, tables=TABLES):
    a, b, c = (v.double().numpy() for v in (x0, x_next, noise))
    out = np.zeros(a.shape)
    for n, k in enumerate(t.tolist()):
        out[n] = float(tables[k, 0]) * a[n] + float(tables[k, 1]) * b[n]
        if k:
            out[n] += float(tables[k, 2]) * c[n]
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)], ids=str
)
def test_equals_the_loop(shape, dtype, tolerance):
    x0, x_next, t, noise = inputs(shape, dtype)
    y = sample_posterior(x0, x_next, t, TABLES, noise=noise)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.numpy(), looped(x0, x_next, t, noise), atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_becomes_float32(dtype):
    """The result feeds the next step, whose noise is finer than half precision."""
    x0, x_next, t, noise = inputs(SHAPES[0], dtype)
    y = sample_posterior(x0.requires_grad_(), x_next.float(), t, TABLES, noise=noise)
    assert y.dtype == torch.float32
    want = looped(x0.detach(), x_next, t, noise)
    np.testing.assert_allclose(y.detach().numpy(), want, atol=1e-6)
    y.sum().backward()
    assert x0.grad.dtype == dtype
    assert sample_posterior(x0, x_next, t, TABLES, noise=noise).dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("drawn", [True, False], ids=["seed", "noise"])
def test_gradcheck(shape, drawn):
    x0, x_next, t, noise = inputs(shape)
    random = {"seed": SEED} if drawn else {"noise": noise}
    function = lambda a, b: sample_posterior(a, b, t, TABLES, **random)  # noqa: E731
    leaves = (x0.requires_grad_(), x_next.requires_grad_())
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_gradients_are_the_coefficients():
    x0, x_next, t, noise = inputs((3, 2))
    x0.requires_grad_(), x_next.requires_grad_()
    sample_posterior(x0, x_next, t, TABLES, noise=noise).sum().backward()
    want = TABLES[t].double()
    torch.testing.assert_close(x0.grad, want[:, :1].expand(3, 2))
    torch.testing.assert_close(x_next.grad, want[:, 1:2].expand(3, 2))


def test_noise_gets_a_gradient_or_is_refused():
    x0, x_next, t, noise = inputs((3, 2))
    try:
        y = sample_posterior(x0.requires_grad_(), x_next, t, TABLES, noise=noise.requires_grad_())
    except ValueError:
        return
    y.sum().backward()
    torch.testing.assert_close(noise.grad, TABLES[t][:, 2:].double().expand(3, 2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_noise_from_a_seed_is_philox(shape):
    x0, x_next, t, _ = inputs(shape, torch.float32)
    index = torch.tensor([7, 2**40 + 3, 0, 12])
    noise = philox.normal(SEED, index, shape[1:])
    y = sample_posterior(x0, x_next, t, TABLES, seed=SEED, index=index)
    assert torch.equal(y, sample_posterior(x0, x_next, t, TABLES, noise=noise))
    by_default = sample_posterior(x0, x_next, t, TABLES, seed=SEED)
    zero_on = sample_posterior(x0, x_next, t, TABLES, seed=SEED, index=torch.arange(4))
    assert torch.equal(by_default, zero_on)
    assert not torch.equal(y, by_default)


def test_drawn_noise_depends_on_the_position_alone():
    x0, x_next, t, _ = inputs(SHAPES[0], torch.float32)
    index = torch.tensor([5, 9, 2, 30])
    whole = sample_posterior(x0, x_next, t, TABLES, seed=SEED, index=index)
    for rows in ([0], [1, 3], [2, 0]):
        part = sample_posterior(
            x0[rows], x_next[rows], t[rows], TABLES, seed=SEED, index=index[rows]
        )
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-6)
    nhwc = [v.contiguous(memory_format=torch.channels_last) for v in (x0, x_next)]
    last = sample_posterior(*nhwc, t, TABLES, seed=SEED, index=index)
    torch.testing.assert_close(last, whole, rtol=0, atol=1e-6)


def test_the_global_generator_is_not_used():
    x0, x_next, t, _ = inputs(SHAPES[0])
    before = torch.get_rng_state()
    sample_posterior(x0, x_next, t, TABLES, seed=SEED)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_order_follows_x_next(layout):
    x0, x_next, t, noise = inputs((4, 3, 6, 4))
    x_next = laid_out(x_next, layout)
    for other in ("nchw", "channels_last"):
        y = sample_posterior(laid_out(x0, other), x_next, t, TABLES, noise=noise)
        np.testing.assert_allclose(y.numpy(), looped(x0, x_next, t, noise), atol=1e-14)
        if layout in ("nchw", "channels_last"):
            assert y.is_contiguous(memory_format=expected_order(x_next))


@pytest.mark.parametrize("random", [{"seed": SEED}, {"noise": torch.zeros(0, 2, 3, 3)}])
def test_batch_of_none(random):
    x = torch.zeros(0, 2, 3, 3, requires_grad=True)
    y = sample_posterior(x, x, torch.zeros(0, dtype=torch.int64), TABLES, **random)
    assert y.shape == x.shape
    y.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"noise": None}, "pass exactly one of noise=... and seed=..."),
        ({"seed": SEED}, "pass exactly one of noise=... and seed=..."),
        ({"noise": None, "seed": torch.zeros(2, dtype=torch.int64)}, r"seed must be int64\[1\]"),
        ({"noise": None, "seed": torch.zeros(1)}, r"seed must be int64\[1\], got torch.float32"),
        ({"x_next": torch.zeros(2, 3)}, r"equal shapes \[N, ...\], got \[2, 2\] and \[2, 3\]"),
        ({"noise": torch.zeros(2, 3)}, r"noise must be \[2, 2\], got \[2, 3\]"),
        ({"tables": torch.zeros(3, 4)}, r"tables must be \[T, 3\], got \[3, 4\]"),
        ({"t": torch.zeros(2)}, r"t must be int64 \[2\], got torch.float32 \[2\]"),
        ({"t": torch.zeros(3, dtype=torch.int64)}, r"t must be int64 \[2\], got .*\[3\]"),
        ({"index": torch.zeros(3, dtype=torch.int64)}, r"index must be int64 \[2\]"),
    ],
)
def test_says_what_is_wrong(arguments, words):
    good = {"x0": torch.zeros(2, 2), "x_next": torch.zeros(2, 2), "noise": torch.zeros(2, 2)}
    good |= {"t": torch.zeros(2, dtype=torch.int64), "tables": TABLES}
    with pytest.raises(ValueError, match="sample_posterior: .*" + words):
        sample_posterior(**(good | arguments))


@pytest.mark.parametrize("t", [3, -1])
def test_a_step_outside_the_tables_is_refused(t):
    x = torch.zeros(1, 2)
    with pytest.raises((IndexError, RuntimeError)):
        sample_posterior(x, x, torch.tensor([t]), TABLES, noise=x)
