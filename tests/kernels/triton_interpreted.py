"""What test_triton_interpreter.py runs in a process of its own, in Triton's interpreter."""

import pytest
import torch
import triton
import triton.language as tl
from kernel_helpers import DTYPES, laid_out, randn
from triton_agreement import (
    SAMPLE_LAYOUTS,
    check_borders,
    check_drawn,
    check_larger,
    check_op,
)

from ddgan_fast.kernels import (
    _library,
    ada_group_norm_silu,
    ada_group_norm_silu_resample,
    backend_report,
    bias_leaky_relu,
    philox,
    triton_philox,
    triton_support,
    upfirdn2d,
    use_backend,
)

assert triton.knobs.runtime.interpret, "collect this file through test_triton_interpreter.py"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", SAMPLE_LAYOUTS)
@pytest.mark.parametrize("name", _library.op_names)
def test_agrees_with_torch(name, layout, dtype):
    check_op(name, layout, dtype, "cpu")


@pytest.mark.parametrize("name", _library.op_names)
def test_one_sample_in_bfloat16(name):
    check_op(name, "channels_last", torch.bfloat16, "cpu", samples=1)


def test_drawn_numbers_agree_with_torch():
    check_drawn("cpu")


def test_borders_agree_with_torch():
    check_borders("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_larger_tensors_agree_with_torch(dtype):
    check_larger("cpu", dtype)


@pytest.mark.parametrize(
    ("shape", "layout", "way"),
    [
        ((1, 64, 10, 36), "channels_last", "down"),
        ((1, 12, 13, 9), "nchw", "down"),
        ((1, 12, 13, 9), "nchw", "up"),
    ],
    ids=str,
)
def test_norm_and_resampling_cut_as_on_a_gpu(shape, layout, way, monkeypatch):
    """Into strips, blocks and chunks, where the interpreter takes all at once."""
    from ddgan_fast.kernels.ada_norm import triton_impl as ada_norm
    from ddgan_fast.kernels.upfirdn import triton_impl as upfirdn

    for module in (ada_norm, upfirdn):
        monkeypatch.setattr(module, "INTERPRET", False)
    monkeypatch.setattr(triton_support, "_INTERPRETER_BLOCK", 1024)
    cut = upfirdn.rolling_cut(1, 64, (21, 10), rows_first=False)
    assert (cut.across, cut.strips) == (2, 3)
    taps = torch.tensor([0.1, 0.2, 0.3, 0.4])

    def run():
        vectors = (randn(*shape[:2], seed=i, dtype=torch.float32) for i in (1, 2))
        leaves = [laid_out(randn(*shape, dtype=torch.float32), layout), *vectors]
        leaves = [v.requires_grad_() for v in leaves]
        outputs = ada_group_norm_silu_resample(*leaves, 4, taps, resample=way)
        grads = [randn(*y.shape, seed=5 + i, dtype=torch.float32) for i, y in enumerate(outputs)]
        return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]

    with use_backend("triton"):
        got = run()
    with use_backend("torch"):
        want = run()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_every_op_has_a_triton_kernel_that_is_usable_here():
    rows = [row for row in backend_report() if row["backend"] == "triton"]
    assert {row["op"] for row in rows} == set(_library.op_names)
    assert all(row["usable"] for row in rows)


@triton.jit
def words_kernel(seed_ptr, index_ptr, out_ptr, N: tl.constexpr, B: tl.constexpr, S: tl.constexpr):
    n, block = tl.arange(0, N)[:, None], tl.arange(0, B)[None, :]
    words = triton_philox.words4(seed_ptr, tl.load(index_ptr + n), block, S)
    for i in tl.static_range(4):
        tl.store(out_ptr + (n * B + block) * 4 + i, words[i].to(tl.int64))


@pytest.mark.parametrize("stream", [0, 1, 0xFFFFFFFF])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
def test_philox_integers_are_equal_bit_for_bit(seed, stream):
    seed = torch.tensor([seed])
    index = torch.tensor([0, 1, 2**32 - 1, 2**32, 2**63 - 1, 12345, -1, 7])
    out = torch.empty(8, 64, 4, dtype=torch.int64)
    words_kernel[(1,)](seed, index, out, N=8, B=64, S=stream)
    want = torch.stack(philox.integers4(seed, index, 64, stream), 2)
    assert torch.equal(out, want)


@triton.jit
def box_muller_kernel(a_ptr, b_ptr, cos_ptr, sin_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    a, b = tl.load(a_ptr + at).to(tl.uint32), tl.load(b_ptr + at).to(tl.uint32)
    cos, sin = triton_philox._box_muller(a, b)
    tl.store(cos_ptr + at, cos)
    tl.store(sin_ptr + at, sin)


def test_normals_are_exact_at_the_ends_of_the_integers():
    """A radius near 0 is where an approximate logarithm fails; angles near 2 pi a short pi."""
    small = [2**i + d for i in range(32) for d in (-1, 0, 1) if 0 <= 2**i + d < 2**32]
    ends = small + [2**32 - 1 - v for v in small]
    a = torch.tensor(ends[:128] + ends[-128:])
    for b in (a, a.flip(0), a.roll(37)):
        cos, sin = torch.empty(2, 256).unbind()
        box_muller_kernel[(1,)](a, b, cos, sin, BLOCK=256)
        want_cos, want_sin = philox._box_muller(a, b)
        torch.testing.assert_close(cos, want_cos, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(sin, want_sin, rtol=1e-6, atol=1e-6)
        radius = torch.hypot(cos, sin)
        torch.testing.assert_close(radius, torch.hypot(want_cos, want_sin), rtol=1e-6, atol=1e-9)


def one_ulp(x):
    """The distance between neighbouring bfloat16 numbers at x."""
    return torch.exp2(torch.floor(torch.log2(x.abs().clamp_min(1e-30))) - 7)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_is_right_to_one_ulp(layout):
    """The interpreter truncates where a GPU rounds; arithmetic in bfloat16 itself is garbage."""
    x = torch.randn(2, 8, 6, 10, generator=torch.Generator().manual_seed(0)) * 3
    x = x.bfloat16().contiguous(memory_format=layout)
    taps, bias = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8, torch.linspace(-2, 2, 8)
    vectors = torch.linspace(-2, 3, 16).view(2, 8), torch.linspace(1, -1, 16).view(2, 8)
    calls = (
        lambda x: upfirdn2d(x, taps, up=2, padding=(2, 1), gain=4.0),
        lambda x: bias_leaky_relu(x, bias),
        lambda x: ada_group_norm_silu(x, *vectors, 4),
    )
    for call in calls:
        with use_backend("triton"):
            got = call(x)
        with use_backend("torch"):
            exact = call(x.double())
        assert ((got.double() - exact).abs() <= one_ulp(exact) * 1.0001 + 1e-6).all()


def test_a_step_outside_the_tables_is_refused():
    from ddgan_fast.kernels import sample_posterior

    x, tables = torch.zeros(2, 3), torch.zeros(4, 3)
    with use_backend("triton"), pytest.raises(IndexError, match=r"t must lie in \[0, 4\), got"):
        sample_posterior(x, x, torch.tensor([0, 4]), tables, noise=x)


def test_more_taps_than_the_kernels_take_are_refused():
    x = torch.zeros(1, 1, 20, 20)
    with use_backend("triton"), pytest.raises(RuntimeError, match="up to 16 taps"):
        upfirdn2d(x, torch.ones(17))
