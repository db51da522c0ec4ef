"""The CUDA kernels on a device: against plain torch, on streams, in graphs, on huge tensors."""

import pytest
import torch
import torch.nn.functional as F
from kernel_helpers import DTYPES, assert_as_good_as_plain, laid_out, randn

from ddgan_fast.kernels import (
    ada_group_norm_silu,
    ada_group_norm_silu_resample,
    backend_report,
    bias_leaky_relu,
    bias_leaky_relu_down,
    cuda_library,
    philox,
    q_sample_pair,
    sample_posterior,
    upfirdn2d,
    use_backend,
)

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("gpu")]

TAPS = torch.tensor([0.1, 0.4, 0.3, 0.2])
ODD = torch.tensor([0.2, 0.5, 0.3])
SQUARE = torch.tensor([[0.1, 0.2, 0.3], [0.15, 0.05, 0.2]])


@pytest.fixture(autouse=True)
def cuda_backend():
    with use_backend("cuda"):
        yield


def test_the_library_is_usable():
    assert cuda_library.why_not() is None
    reasons = {r["op"]: r["why_not"] for r in backend_report() if r["backend"] == "cuda"}
    assert not any(reasons.values()), reasons


OPS = {
    "up": lambda x, r: upfirdn2d(x, TAPS.to(x), up=2, padding=(2, 1), gain=4.0),
    "down": lambda x, r: upfirdn2d(x, TAPS.to(x), down=2, padding=(1, 1)),
    "same": lambda x, r: upfirdn2d(x, TAPS.to(x), padding=(2, 1)),
    "odd taps": lambda x, r: upfirdn2d(x, ODD.to(x), up=2, down=3, padding=(2, -1)),
    "square": lambda x, r: upfirdn2d(x, SQUARE.to(x), up=(1, 2), padding=(2, 1, 0, 3), flip=True),
    "act": lambda x, r: bias_leaky_relu(x, r, 0.2, 2**0.5),
    "act of channels": lambda x, r: bias_leaky_relu(x, r[0]),
    "act down": lambda x, r: bias_leaky_relu_down(x, r, TAPS.to(x)),
    "act down, odd taps": lambda x, r: bias_leaky_relu_down(x, r, ODD.to(x)),
    "norm": lambda x, r: ada_group_norm_silu(x, r + 1, r, x.shape[1] // 4),
    "norm, linear": lambda x, r: ada_group_norm_silu(x, r + 1, r, 2, silu=False),
    "norm up": lambda x, r: resampled(x, r, "up")[0],
    "norm down": lambda x, r: torch.cat(resampled(x, r, "down")),
}


def resampled(x, r, way):
    groups = x.shape[1] // 4
    return ada_group_norm_silu_resample(x, r + 1, r, groups, TAPS.to(x), resample=way)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("size", [(2, 64, 32, 32), (3, 24, 37, 29), (2, 20, 9, 5)], ids=str)
def test_forward_and_derivatives(name, dtype, layout, size):
    x = laid_out(randn(*size), layout).to("cuda", dtype)
    row = randn(*size[:2], seed=1).to("cuda", dtype)
    cotangents = {}

    def orders(x, row):
        x, row = x.clone().requires_grad_(), row.clone().requires_grad_()
        y = OPS[name](x, row)
        if not cotangents:
            cotangents["y"] = randn(*y.shape, seed=2).to("cuda")
            cotangents["x"] = randn(*size, seed=3).to("cuda")
        g, b = torch.autograd.grad(
            y, (x, row), cotangents["y"].to(y.dtype).requires_grad_(), create_graph=True,
            allow_unused=True,
        )
        results = [y, g] if b is None else [y, g, b]
        if g.requires_grad:
            v = cotangents["x"].to(g.dtype)
            second = torch.autograd.grad(g, (x, row), v, allow_unused=True)
            results += [s for s in second if s is not None]
        assert y.stride() == torch.empty_like(y, memory_format=torch.preserve_format).stride()
        return [r.detach() for r in results]

    got = orders(x, row)
    with use_backend("torch"):
        plain, truth = orders(x, row), orders(x.double(), row.double())
    for a, b, c in zip(got, truth, plain, strict=True):
        assert a.stride() == c.stride() and a.dtype == c.dtype
        assert_as_good_as_plain(a.cpu(), b.cpu(), c.cpu(), dtype)


@pytest.mark.parametrize("size", [(4, 256, 64, 64), (2, 128, 128, 128), (1, 64, 256, 256)], ids=str)
@pytest.mark.parametrize("name", ["up", "down", "act down", "norm", "norm up", "norm down"])
def test_real_shapes_in_bfloat16(name, size):
    x = laid_out(randn(*size), "channels_last").to("cuda", torch.bfloat16)
    row = randn(*size[:2], seed=1).to("cuda")
    row.requires_grad_()

    def run(x):
        x = x.clone().requires_grad_()
        y = OPS[name](x, row.to(x.dtype))
        (g,) = torch.autograd.grad(y, x, torch.ones_like(y))
        return y.detach(), g

    got = run(x)
    with use_backend("torch"):
        plain, truth = run(x), run(x.double())
    for a, b, c in zip(got, truth, plain, strict=True):
        assert_as_good_as_plain(a.cpu(), b.cpu(), c.cpu(), torch.bfloat16)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_random_numbers_equal_the_cpus(layout):
    x0, x1 = (laid_out(randn(5, 3, 17, 9, seed=i, dtype=torch.float32), layout) for i in (0, 1))
    images = (randn(5, 17, 9, 3) * 50 + 128).clamp(0, 255).byte()
    t, tables = torch.tensor([0, 3, 1, 2, 0]), torch.rand(4, 4)
    seed, index = torch.tensor([-(2**61) + 3]), torch.tensor([7, 2**40, 1, 0, 2])
    flip = torch.tensor([True, False, True, True, False])

    def run(device):
        move = lambda v: v.to(device)  # noqa: E731
        random = {"seed": move(seed), "index": move(index)}
        return [
            sample_posterior(move(x0), move(x1), move(t), move(tables[:, :3]), **random),
            *q_sample_pair(move(x0), move(t), move(tables), **random),
            *q_sample_pair(move(images), move(t), move(tables), flip=move(flip), **random),
        ]

    got = run("cuda")
    with use_backend("torch"):
        want = run("cpu")
    for a, b in zip(got, want, strict=True):
        assert (a.cpu() - b).abs().max() <= 2e-6
        assert a.stride() == b.stride()


def test_philox_integers_are_the_same_bits():
    seed, index = torch.tensor([-987654321987654321]), torch.tensor([0, 5, 2**32 + 3, 2**62])
    words = torch.empty(4, 1000, 4, dtype=torch.int64, device="cuda")
    normals = torch.empty(4, 1000, 4, device="cuda")
    torch.ops.ddgan_fast_c.philox(seed.cuda(), index.cuda(), 1, words, normals)
    assert torch.equal(words.cpu(), torch.stack(philox.integers4(seed, index, 1000, 1), 2))
    want = philox.normal(seed, index, (4000,), stream=1)
    assert (normals.cpu().flatten(1) - want).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["norm", "norm up", "norm down", "act down", "up"])
def test_repeats_bit_for_bit(name):
    x = laid_out(randn(8, 64, 64, 64), "channels_last").to("cuda", torch.bfloat16)
    row = randn(8, 64, seed=1).to("cuda", torch.bfloat16)

    def run():
        leaf, b = x.clone().requires_grad_(), row.clone().requires_grad_()
        y = OPS[name](leaf, b)
        return [y, *torch.autograd.grad(y.sum(), (leaf, b), allow_unused=True)]

    for a, b in zip(run(), run(), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_works_on_the_current_stream():
    """A kernel on another stream would read x before the long work that makes it is done."""
    x = torch.zeros(8, 64, 64, 64, device="cuda")
    weight = torch.randn(4096, 4096, device="cuda")
    stream = torch.cuda.Stream()
    bias_leaky_relu(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(30):
            weight = weight @ weight * 1e-3
        x.fill_(3.0)
        y = bias_leaky_relu(x)
    stream.synchronize()
    assert (y == 3).all()


def test_replays_of_a_graph_draw_anew():
    x = torch.zeros(4, 3, 16, 16, device="cuda")
    t = torch.ones(4, dtype=torch.int64, device="cuda")
    tables = torch.tensor([[0.0, 0, 0], [0, 0, 1]], device="cuda")
    seed = torch.tensor([1], device="cuda")
    for _ in range(2):
        sample_posterior(x, x, t, tables, seed=seed)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = sample_posterior(x, x, t, tables, seed=seed)
        seed.add_(1)
    first, second = (graph.replay() or y.clone() for _ in range(2))
    assert not torch.equal(first, second)
    want = sample_posterior(x, x, t, tables, seed=torch.tensor([2], device="cuda"))
    assert torch.equal(second, want)


def test_graph_capture_of_a_training_step():
    x = laid_out(randn(4, 64, 16, 16), "channels_last").to("cuda", torch.bfloat16)
    x.requires_grad_()
    row = randn(4, 64).to("cuda", torch.bfloat16).requires_grad_()

    def step():
        y = OPS["act down"](OPS["norm"](OPS["up"](x, row), row), row)
        return torch.autograd.grad(y.sum(), (x, row))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            want = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    graph.replay()
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def free_bytes():
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("name", ["up", "down", "act", "act down", "act down, odd taps", "norm"])
def test_more_than_two_to_the_31_elements(name, layout):
    """The last sample, beyond 32-bit offsets, equals the same sample alone."""
    if free_bytes() < 40 << 30:
        pytest.skip("needs 40 GB of device memory")
    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    n = 33
    x = torch.empty(n, 64, 1024, 1024, dtype=torch.bfloat16, device="cuda", memory_format=order)
    assert x.numel() > 2**31
    x.zero_()
    last = torch.randn(1, 64, 1024, 1024, device="cuda").to(torch.bfloat16)
    x[-1:] = last
    if name == "up":
        # Its result is four times as large.
        x = x[-9:].contiguous(memory_format=order)
        last, n = x[-1:], 9
    row = torch.randn(n, 64, device="cuda")
    y = OPS[name](x, row)
    alone = OPS[name](last.contiguous(memory_format=order), row[-1:])
    assert torch.equal(y[-1:], alone)


def test_two_devices_are_refused_and_another_one_works():
    x = torch.randn(2, 8, 8, 8, device="cuda")
    with pytest.raises(RuntimeError, match="all tensors must be on one device"):
        torch.ops.ddgan_fast_c.upfirdn2d(
            x, TAPS, [1, 1], [2, 2], [1, 1, 1, 1], False, 1.0, x[:, :, ::2, ::2].contiguous()
        )
    if torch.cuda.device_count() > 1:
        there = x.to("cuda:1")
        assert torch.equal(OPS["down"](there, None).cpu(), OPS["down"](x, None).cpu())


def test_compiled_step_equals_eager():
    """A discriminator-like step with its gradient penalty, the ops opaque inside."""
    weight = torch.randn(32, 32, 3, 3, device="cuda").mul_(0.1).requires_grad_()
    x = laid_out(randn(2, 32, 16, 16, dtype=torch.float32), "channels_last").cuda()
    row = torch.randn(2, 32, device="cuda")

    def loss(x):
        y = OPS["act down"](F.conv2d(x, weight, padding=1), row)
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return g.square().sum() + y.mean()

    (want,) = torch.autograd.grad(loss(x.clone().requires_grad_()), weight)
    torch._dynamo.reset()
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this torch cannot trace autograd.grad")
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(loss, fullgraph=True)
        (got,) = torch.autograd.grad(compiled(x.clone().requires_grad_()), weight)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
