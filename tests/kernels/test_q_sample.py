"""The diffused pair against loops: float data, and uint8 images with mirroring."""

import numpy as np
import pytest
import torch
from kernel_helpers import LAYOUTS, expected_order, laid_out, randn

from ddgan_fast.kernels import philox, q_sample_pair

TABLES = torch.tensor([[1.0, 0.0, 0.9, 0.3], [0.6, 0.3, 0.5, 0.7], [0.2, 0.5, 0.1, 0.95]])
SHAPES = [(4, 2, 3, 5), (4, 2), (4, 3, 7)]
SEED = torch.tensor([2**61 + 7])


def inputs(shape, dtype=torch.float64):
    t = torch.tensor([0, 2, 1, 2])[: shape[0]]
    return randn(*shape, dtype=dtype), t, tuple(randn(*shape, seed=i, dtype=dtype) for i in (1, 2))


def looped(x0, t, noise, tables=TABLES):
    """noise = (for x_{t+1}, for x_t)."""
    x0, noise_next, noise_t = (np.asarray(v.double()) for v in (x0, *noise))
    x_t, x_next = np.zeros(x0.shape), np.zeros(x0.shape)
    for n, k in enumerate(t.tolist()):
        signal, sigma, signal_next, sigma_next = (float(v) for v in tables[k])
        x_t[n] = signal * x0[n] + sigma * noise_t[n]
        x_next[n] = signal_next * x_t[n] + sigma_next * noise_next[n]
    return x_t, x_next


def from_bytes(images, flip):
    """[N, H, W, C] bytes to [N, C, H, W] in [-1, 1], one number at a time."""
    n, h, w, c = images.shape
    out = np.zeros((n, c, h, w))
    for i, y, x, k in np.ndindex(n, h, w, c):
        column = w - 1 - x if flip is not None and flip[i] else x
        out[i, k, y, x] = int(images[i, y, column, k]) / 127.5 - 1
    return torch.from_numpy(out)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)], ids=str
)
def test_equals_the_loop(shape, dtype, tolerance):
    x0, t, noise = inputs(shape, dtype)
    pair = q_sample_pair(x0, t, TABLES, noise=noise)
    for got, want in zip(pair, looped(x0, t, noise), strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got.numpy(), want, atol=tolerance)


def test_the_first_noise_is_that_of_x_next():
    x0, t = torch.zeros(1, 2), torch.tensor([0])
    ones, zeros = torch.ones(1, 2), torch.zeros(1, 2)
    x_t, x_next = q_sample_pair(x0, t, TABLES, noise=(ones, zeros))
    assert not x_t.any() and (x_next == TABLES[0, 3]).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("flip", [None, torch.tensor([True, False, True, False])])
def test_bytes_are_scaled_and_mirrored(channels, flip):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (4, 3, 5, channels), dtype=torch.uint8, generator=generator)
    images[0, 0, 0, 0], images[0, 0, 1, 0] = 0, 255
    t = torch.tensor([0, 2, 1, 2])
    noise = tuple(randn(4, channels, 3, 5, seed=i, dtype=torch.float32) for i in (1, 2))
    pair = q_sample_pair(images, t, TABLES, flip=flip, noise=noise)
    for got, want in zip(pair, looped(from_bytes(images, flip), t, noise), strict=True):
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), want, atol=1e-6)
        assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_becomes_float32(dtype):
    x0, t, noise = inputs(SHAPES[0], dtype)
    pair = q_sample_pair(x0.requires_grad_(), t, TABLES, noise=noise)
    for got, want in zip(pair, looped(x0.detach(), t, noise), strict=True):
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.detach().numpy(), want, atol=1e-6)
    (pair[0].sum() + pair[1].sum()).backward()
    assert x0.grad.dtype == dtype


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("drawn", [True, False], ids=["seed", "noise"])
def test_gradcheck(shape, drawn):
    x0, t, noise = inputs((3, *shape[1:3]))
    random = {"seed": SEED} if drawn else {"noise": noise}
    function = lambda x: q_sample_pair(x, t, TABLES, **random)  # noqa: E731
    assert torch.autograd.gradcheck(function, x0.requires_grad_())
    assert torch.autograd.gradgradcheck(function, x0)


@pytest.mark.parametrize("used", [0, 1])
def test_gradient_when_half_of_the_pair_is_used(used):
    x0, t, noise = inputs((3, 2))
    q_sample_pair(x0.requires_grad_(), t, TABLES, noise=noise)[used].sum().backward()
    table = TABLES[t].double()
    want = table[:, 0] * (table[:, 2] if used else 1.0)
    torch.testing.assert_close(x0.grad, want[:, None].expand(3, 2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_noise_from_a_seed_is_two_philox_streams(shape):
    x0, t, _ = inputs(shape, torch.float32)
    index = torch.tensor([7, 2**40 + 3, 0, 12])
    noise = tuple(philox.normal(SEED, index, shape[1:], stream=i) for i in (0, 1))
    assert not torch.equal(*noise)
    got = q_sample_pair(x0, t, TABLES, seed=SEED, index=index)
    want = q_sample_pair(x0, t, TABLES, noise=noise)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    by_default = q_sample_pair(x0, t, TABLES, seed=SEED)
    zero_on = q_sample_pair(x0, t, TABLES, seed=SEED, index=torch.arange(4))
    assert all(torch.equal(a, b) for a, b in zip(by_default, zero_on, strict=True))


def test_bytes_and_floats_draw_the_same_noise():
    """Noise belongs to the element in NCHW order, however the images are stored."""
    images = torch.full((4, 3, 5, 2), 51, dtype=torch.uint8)
    t = torch.tensor([0, 2, 1, 2])
    as_float = from_bytes(images, None).float()
    pairs = (
        q_sample_pair(images, t, TABLES, seed=SEED),
        q_sample_pair(as_float, t, TABLES, seed=SEED),
        q_sample_pair(laid_out(as_float, "channels_last"), t, TABLES, seed=SEED),
    )
    for other in pairs[1:]:
        for a, b in zip(pairs[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_drawn_noise_depends_on_the_position_alone():
    x0, t, _ = inputs(SHAPES[0], torch.float32)
    index = torch.tensor([5, 9, 2, 30])
    whole = q_sample_pair(x0, t, TABLES, seed=SEED, index=index)
    for rows in ([0], [1, 3], [2, 0]):
        part = q_sample_pair(x0[rows], t[rows], TABLES, seed=SEED, index=index[rows])
        for a, b in zip(part, whole, strict=True):
            torch.testing.assert_close(a, b[rows], rtol=0, atol=1e-6)


def test_the_global_generator_is_not_used():
    x0, t, _ = inputs(SHAPES[0])
    before = torch.get_rng_state()
    q_sample_pair(x0, t, TABLES, seed=SEED)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_order_follows_the_input(layout):
    x0, t, noise = inputs((4, 3, 6, 4))
    x0 = laid_out(x0, layout)
    pair = q_sample_pair(x0, t, TABLES, noise=noise)
    for got, want in zip(pair, looped(x0, t, noise), strict=True):
        np.testing.assert_allclose(got.numpy(), want, atol=1e-14)
        if layout in ("nchw", "channels_last"):
            assert got.is_contiguous(memory_format=expected_order(x0))


def test_does_not_touch_its_inputs():
    x0, t, noise = inputs(SHAPES[0])
    copies = [v.clone() for v in (x0, *noise)]
    for y in q_sample_pair(x0, t, TABLES, noise=noise):
        y.fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(copies, (x0, *noise), strict=True))


@pytest.mark.parametrize("x0", [torch.zeros(0, 2, 3, 3), torch.zeros(0, 3, 3, 2).byte()], ids=str)
def test_batch_of_none(x0):
    for y in q_sample_pair(x0, torch.zeros(0, dtype=torch.int64), TABLES, seed=SEED):
        assert y.shape == (0, 2, 3, 3)


NONE = torch.zeros(2, 2)
BYTES = {"x0": torch.zeros(2, 3, 4, 1, dtype=torch.uint8), "noise": None, "seed": SEED}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"noise": None}, "pass exactly one of noise=... and seed=..."),
        ({"seed": SEED}, "pass exactly one of noise=... and seed=..."),
        ({"x0": torch.zeros(2)}, r"x0 must be floating-point \[N, ...\] or uint8 \[N, H, W, C\]"),
        ({"x0": torch.zeros(2, 2, dtype=torch.int64)}, "got torch.int64"),
        ({"x0": torch.zeros(2, 2, dtype=torch.uint8)}, r"uint8 images must be \[N, H, W, C\]"),
        ({"flip": torch.zeros(2, dtype=torch.bool)}, "flip works on uint8 images only"),
        (BYTES | {"flip": torch.zeros(2)}, r"flip must be bool \[2\], got torch.float32"),
        (BYTES | {"flip": torch.zeros(3, dtype=torch.bool)}, r"flip must be bool \[2\], .*\[3\]"),
        ({"noise": (NONE, torch.zeros(2, 3))}, r"each noise must be \[2, 2\], got \[2, 3\]"),
        ({"tables": torch.zeros(3, 3)}, r"tables must be \[T, 4\], got \[3, 3\]"),
        ({"t": torch.zeros(3, dtype=torch.int64)}, r"t must be int64 \[2\], got .*\[3\]"),
        ({"index": torch.zeros(2)}, r"index must be int64 \[2\], got torch.float32"),
    ],
)
def test_says_what_is_wrong(arguments, words):
    good = {"x0": NONE, "noise": (NONE, NONE), "t": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(ValueError, match="q_sample_pair: .*" + words):
        q_sample_pair(**(good | {"tables": TABLES} | arguments))
