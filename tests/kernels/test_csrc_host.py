"""The compiled kernels' mathematics, as plain loops on the CPU: the suites of all ops once more,
and what only the library has.

The device runs the same functions, one call for each thread.
"""

import inspect

import pytest
import test_ada_norm
import test_ada_norm_fir
import test_bias_act
import test_op_registration
import test_posterior
import test_q_sample
import test_template
import test_upfirdn
import torch
from kernel_helpers import assert_as_good_as_plain, laid_out, randn

from ddgan_fast.kernels import (
    _build,
    ada_group_norm_silu,
    bias_leaky_relu_down,
    cuda_library,
    philox,
    sample_posterior,
    upfirdn2d,
    use_backend,
)

pytestmark = [
    pytest.mark.xdist_group("csrc"),
    pytest.mark.skipif(_build._compiler() is None, reason="needs a C++ compiler"),
]

ELSEWHERE = {
    # The same numbers from another backend's own draw: equal to 1e-6 only, and tested below.
    "test_noise_from_a_seed_is_philox",
    "test_noise_from_a_seed_is_two_philox_streams",
    # The plain torch implementation's own shortcoming.
    "test_says_that_nothing_is_left_of_one_column",
}


@pytest.fixture(autouse=True)
def loops(tmp_path_factory, monkeypatch):
    """Backend "cuda" on CPU tensors; the library is built once for all test processes."""
    if not torch.cuda.is_available():
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp().parent))
    with cuda_library.cpu_loops() as library, use_backend("cuda"):
        yield library


def suite(module, chosen=lambda name: True):
    """The test functions of a module, to be collected here under the fixture above."""
    functions = {
        name: staticmethod(value)
        for name, value in vars(module).items()
        if name.startswith("test_") and inspect.isfunction(value)
        if name not in ELSEWHERE and chosen(name)
    }
    assert functions
    return type("Suite", (), functions)


TestTemplate = suite(test_template)
TestUpfirdn = suite(test_upfirdn)
TestBiasAct = suite(test_bias_act)
TestAdaNorm = suite(test_ada_norm)
TestAdaNormFir = suite(test_ada_norm_fir)
TestPosterior = suite(test_posterior)
TestQSample = suite(test_q_sample)
TestRegistration = suite(
    test_op_registration,
    {"test_the_fake_promises_the_real_strides", "test_repeats_bit_for_bit"}.__contains__,
)

TAPS = torch.tensor([0.1, 0.4, 0.3, 0.2])


@pytest.mark.parametrize("stream", [0, 1])
def test_philox_integers_are_the_same_bits(stream):
    seed = torch.tensor([-987654321987654321])
    index = torch.tensor([0, 1, 5, 2**32 - 1, 2**32 + 3, 2**62 + 1])
    words = torch.empty(6, 100, 4, dtype=torch.int64)
    normals = torch.empty(6, 100, 4)
    torch.ops.ddgan_fast_c.philox(seed, index, stream, words, normals)
    assert torch.equal(words, torch.stack(philox.integers4(seed, index, 100, stream), 2))
    want = philox.normal(seed, index, (400,), stream=stream)
    assert (normals.flatten(1) - want).abs().max() <= 1e-6


def test_philox_known_answers():
    """Of the generator's published test vectors: all counters and keys zero."""
    words = torch.empty(1, 1, 4, dtype=torch.int64)
    zero = torch.zeros(1, dtype=torch.int64)
    torch.ops.ddgan_fast_c.philox(zero, zero, 0, words, torch.empty(1, 1, 4))
    assert [f"{w:08x}" for w in words.flatten()] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize("op", ["posterior", "q_sample", "images"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_drawn_noise_equals_plain_torch(op, layout):
    x0, x1 = (laid_out(randn(3, 3, 5, 7, seed=i, dtype=torch.float32), layout) for i in (0, 1))
    images = (randn(3, 5, 7, 3) * 50 + 128).clamp(0, 255).byte()
    t, tables = torch.tensor([0, 2, 1]), torch.rand(3, 4)
    seed, index = torch.tensor([2**45 + 7]), torch.tensor([9, 2**33, 0])
    flip = torch.tensor([True, False, True])
    ops = torch.ops.ddgan_fast
    run = {
        "posterior": lambda: (
            ops.sample_posterior(x0, x1, t, tables[:, :3].contiguous(), None, seed, index),
        ),
        "q_sample": lambda: ops.q_sample_pair(x0, t, tables, None, None, None, seed, index),
        "images": lambda: ops.q_sample_pair(images, t, tables, flip, None, None, seed, index),
    }[op]
    got = run()
    with use_backend("torch"):
        want = run()
    for a, b in zip(got, want, strict=True):
        assert a.stride() == b.stride()
        assert (a - b).abs().max() <= 2e-6


def fir_case(name, x, bias):
    return {
        "down": lambda: upfirdn2d(x, TAPS.to(x.dtype), down=2, padding=(1, 1)),
        "down, cropped": lambda: upfirdn2d(x, TAPS.to(x.dtype), down=2, padding=(-1, 3, 2, -2)),
        "up": lambda: upfirdn2d(x, TAPS.to(x.dtype), up=2, padding=(2, 1), gain=4.0),
        "up, flipped": lambda: upfirdn2d(x, TAPS.to(x.dtype), up=2, padding=(1, 2), flip=True),
        "up, cropped": lambda: upfirdn2d(x, TAPS.to(x.dtype), up=2, padding=(-3, 4, 5, -2)),
        "fused": lambda: bias_leaky_relu_down(x, bias, TAPS.to(x.dtype)),
    }[name]()


@pytest.mark.parametrize(
    "name", ["down", "down, cropped", "up", "up, flipped", "up, cropped", "fused"]
)
@pytest.mark.parametrize("channels", [8, 16, 5])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rolling_windows_over_many_strips(name, channels, layout, dtype):
    """Vectors of channels and single ones, several strips of rows; forward, once and twice back."""
    x = laid_out(randn(2, channels, 19, 13), layout)
    bias = randn(2, channels, seed=3)

    def orders(x, bias):
        x = x.clone().requires_grad_()
        y = fir_case(name, x, bias)
        (g,) = torch.autograd.grad(y.square().sum() / 2, x, create_graph=True)
        (gg,) = torch.autograd.grad(g.square().sum() / 2, x)
        return y.detach(), g.detach(), gg

    got = orders(x.to(dtype), bias.to(dtype))
    with use_backend("torch"):
        plain = orders(x.to(dtype), bias.to(dtype))
        truth = orders(x.to(dtype).double(), bias.to(dtype).double())
    assert_as_good_as_plain(got[0], truth[0], plain[0], dtype)
    for a, b, c in zip(got[1:], truth[1:], plain[1:], strict=True):
        # The activation's sign may flip where its argument rounds to zero.
        assert (a.double() - b).norm() <= 2 * (c.double() - b).norm() + 1e-2 * b.norm()
        assert a.stride() == c.stride()


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norm_of_several_chunks(layout, dtype):
    """Chunks of pixels and of channels that the small shapes of the suite never fill."""
    shape, groups = (2, 24, 61, 47), 6
    x, grad = (laid_out(randn(*shape, seed=i), layout) for i in (0, 1))
    # A mean far from zero, on which plain sums of squares would fail.
    x = (x + 50).to(dtype)
    grad = grad.to(dtype)
    scale, shift = randn(2, 24, seed=2), randn(2, 24, seed=3)

    def run(x, grad):
        wide = torch.promote_types(x.dtype, torch.float32)
        leaves = [v.clone().requires_grad_() for v in (x, scale.to(wide), shift.to(wide))]
        y = ada_group_norm_silu(*leaves, groups)
        return y.detach(), *torch.autograd.grad(y, leaves, grad)

    got = run(x, grad)
    with use_backend("torch"):
        plain, truth = run(x, grad), run(x.double(), grad.double())
    for a, b, c in zip(got, truth, plain, strict=True):
        assert_as_good_as_plain(a, b, c, dtype)


def test_unaligned_tensors():
    """A view that starts in the middle of a vector."""
    x = torch.randn(2 * 8 * 6 * 6 + 1)[1:].view(2, 6, 6, 8).permute(0, 3, 1, 2)
    y = upfirdn2d(x, TAPS, down=2, padding=(1, 1))
    with use_backend("torch"):
        torch.testing.assert_close(y, upfirdn2d(x, TAPS, down=2, padding=(1, 1)))


def test_errors_are_sentences():
    ops = torch.ops.ddgan_fast_c
    x = torch.randn(2, 4, 6, 6)
    with pytest.raises(RuntimeError, match=r"^bias_leaky_relu: bias must be \[4\] or \[2, 4\]"):
        ops.bias_leaky_relu(x, torch.ones(3), 0.2, 1.0, x.clone())
    with pytest.raises(RuntimeError, match=r"^upfirdn2d: out must be \[2, 4, 3, 3\], got"):
        ops.upfirdn2d(x, TAPS, [1, 1], [2, 2], [1, 1, 1, 1], False, 1.0, x.clone())
    with pytest.raises(RuntimeError, match=r"^upfirdn2d: x must lie densely in memory"):
        ops.upfirdn2d(x[..., ::2], TAPS, [1, 1], [2, 2], [1, 1, 1, 1], False, 1.0, x)
    with pytest.raises(RuntimeError, match=r"^bias_leaky_relu: out must lie in memory as x does"):
        out = torch.empty_like(x, memory_format=torch.channels_last)
        ops.bias_leaky_relu(x, None, 0.2, 1.0, out)
    with pytest.raises(RuntimeError, match=r"^ada_group_norm_silu_resample: skip must be \[2, 4"):
        row, statistics = torch.ones(2, 4), torch.empty(2, 2)
        ops.ada_group_norm_silu_resample(
            x, row, row, TAPS, 2, [1, 1], [2, 2], [1, 1, 1, 1], 1.0, 1e-6, True,
            torch.empty(2, 1, 4, 2), statistics, statistics.clone(), torch.empty(2, 4, 3, 3), x,
        )
    with pytest.raises(RuntimeError, match=r"^sample_posterior: t is 3 at sample 1, and"):
        t, tables = torch.tensor([0, 3]), torch.rand(3, 3)
        sample_posterior(x, x, t, tables, seed=torch.tensor([1]))


def test_the_library_has_every_op(loops):
    """And the library's schemas are what the adapters call."""
    names = {n.split("::")[1].split(".")[0] for n in torch._C._dispatch_get_all_op_names()
             if n.startswith("ddgan_fast_c::")}
    from ddgan_fast.kernels import _library

    # Its adapter calls the library's ops for the filter and for the norm in turn.
    composed = {"ada_group_norm_silu_resample_backward"}
    assert names == {*_library.op_names, "philox"} - composed
    assert set(cuda_library.description(loops)) == {"cuda", "archs"}
