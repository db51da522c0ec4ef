"""The Triton kernels on a GPU: against torch, in CUDA graphs, under torch.compile."""

from importlib.util import find_spec

import pytest
import torch
from kernel_helpers import DTYPES, randn
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
    bias_leaky_relu,
    bias_leaky_relu_down,
    sample_posterior,
    upfirdn2d,
    use_backend,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
]


@pytest.fixture(autouse=True)
def exact_convolutions():
    """Rounded to TF32, plain torch would be no measure."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", SAMPLE_LAYOUTS)
@pytest.mark.parametrize("name", _library.op_names)
def test_agrees_with_torch(name, layout, dtype):
    check_op(name, layout, dtype, "cuda")


def test_drawn_numbers_agree_with_torch():
    check_drawn("cuda")


def test_borders_agree_with_torch():
    check_borders("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_larger_tensors_agree_with_torch(dtype):
    check_larger("cuda", dtype)


def test_a_graph_draws_anew_when_its_seed_changes():
    """A seed that the kernel got as a number would be frozen at capture."""
    x = torch.randn(4, 3, 16, 16, device="cuda")
    t = torch.tensor([0, 1, 2, 1], device="cuda")
    tables = torch.rand(3, 3, device="cuda") + 0.1
    seed = torch.tensor([1], device="cuda")
    with use_backend("triton"):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            sample_posterior(x, x, t, tables, seed=seed)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = sample_posterior(x, x, t, tables, seed=seed)
        drawn = []
        for value in (1, 2, 1):
            seed.fill_(value)
            graph.replay()
            drawn.append(y.clone())
            assert torch.equal(y, sample_posterior(x, x, t, tables, seed=seed))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compiled_gradient_penalty(layout):
    """Forward, backward and double backward of a small network in one graph."""
    taps = torch.tensor([0.125, 0.375, 0.375, 0.125], device="cuda")
    x = randn(2, 8, 16, 16, dtype=torch.float32).cuda().contiguous(memory_format=layout)
    bias = randn(2, 8, seed=1, dtype=torch.float32).cuda().requires_grad_()

    def loss(x):
        h = bias_leaky_relu_down(bias_leaky_relu(x, bias), bias, taps)
        h = upfirdn2d(h, taps, up=2, padding=(2, 1), gain=4.0)
        y = ada_group_norm_silu(h, bias, bias, 4).sigmoid()
        (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return g.square().sum() + y.mean()

    with use_backend("torch"):
        (want,) = torch.autograd.grad(loss(x.clone().requires_grad_()), bias)
    torch._dynamo.reset()
    with use_backend("triton"), torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(loss, fullgraph=True)
        (got,) = torch.autograd.grad(compiled(x.clone().requires_grad_()), bias)
        (eager,) = torch.autograd.grad(loss(x.clone().requires_grad_()), bias)
    torch.testing.assert_close(eager, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_works_on_the_current_stream():
    x = torch.zeros(1 << 24, device="cuda").view(1, 1, 4096, 4096)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with use_backend("triton"), torch.cuda.stream(side):
        for _ in range(8):
            x += 1
        y = bias_leaky_relu(x)
    side.synchronize()
    assert (y == 8).all()
