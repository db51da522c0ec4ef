"""The choice "inductor": compiled code replaces ops by torch operators that compute the same."""

import pytest
import torch
from kernel_helpers import DTYPES, assert_as_good_as_plain, laid_out, randn
from test_op_registration import SAMPLES
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.fx.experimental.proxy_tensor import make_fx

from ddgan_fast.kernels import (
    _library,
    ada_group_norm_silu,
    backend_report,
    bias_leaky_relu,
    bias_leaky_relu_down,
    registry,
    upfirdn2d,
    use_backend,
)

TAPS = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
SQUARE = torch.tensor([[0.1, 0.2, 0.3], [0.15, 0.05, 0.2]], dtype=torch.float64)
T = torch.tensor([2, 0])
TABLES = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
SIZE = (2, 3, 7, 6)
FLIP = torch.tensor([True, False])
IMAGES = torch.randint(0, 256, (2, 7, 6, 3), dtype=torch.uint8)

# up, down, padding, flip, gain
RESAMPLING = {
    "up": ([2, 2], [1, 1], [2, 1, 2, 1], False, 4.0),
    "down": ([1, 1], [2, 2], [1, 1, 1, 1], False, 1.0),
    "down, flipped": ([1, 1], [2, 2], [1, 1, 1, 1], True, 0.5),
    "same size": ([1, 1], [1, 1], [2, 1, 1, 2], False, 1.0),
    "up and down": ([3, 2], [2, 3], [4, -1, 0, 5], False, 1.0),
    "up and down, flipped": ([1, 2], [3, 1], [-2, 3, 2, -1], True, 2.0),
    "cropped": ([1, 1], [2, 1], [-1, 2, 3, -2], True, 1.0),
    "up, far outside": ([2, 2], [1, 1], [9, -3, -2, 8], False, 1.0),
}


def bias(*shape):
    return randn(*shape, seed=7)


def small(layout):
    """What the discriminator's ops get as their adjoint's input: a downsampled gradient."""
    return laid_out(randn(2, 3, 3, 3, seed=5), layout)


def cases(layout):
    """(op, arguments) in float64."""
    x, v = (laid_out(randn(*SIZE, seed=s), layout) for s in (0, 1))
    for name, rest in RESAMPLING.items():
        for taps in (TAPS, SQUARE) if "up" in name else (SQUARE,):
            yield "upfirdn2d", (x, taps, *rest)
    for b in (None, bias(3), bias(2, 3)):
        for slope in (0.2, 0.0, 1.5) if b is None else (0.2,):
            yield "bias_leaky_relu", (x, b, slope, 1.4)
            yield "bias_leaky_relu_down", (x, b, TAPS, slope)
            yield "bias_leaky_relu_down_grad", (small(layout), x, b, TAPS, slope)
            yield "bias_leaky_relu_down_tangent", (v, x, b, TAPS, slope)
        yield "bias_leaky_relu_down", (x, b, TAPS[:3], 0.2)
        yield "bias_leaky_relu_down_grad", (small("nchw"), x, b, TAPS[:3], 0.2)
    yield "bias_leaky_relu_grad", (x, v, 0.2, 1.4)
    yield "bias_leaky_relu_grad", (x.contiguous(), v, 0.2, 1.0)
    yield "bias_leaky_relu", (x[:, :, 0, 0], bias(2, 3), 0.2, 1.0)
    yield "sample_posterior", (x, v, T, TABLES[:, :3].contiguous(), v.sin(), None, None)
    yield "q_sample_pair", (x, T, TABLES, None, v, v.sin(), None, None)
    yield "q_sample_pair", (IMAGES, T, TABLES, FLIP, v.float(), v.sin().float(), None, None)


def op(name):
    return getattr(torch.ops.ddgan_fast, name).default


def twin(name):
    return getattr(torch.ops.ddgan_fast_inline, name).default


def traced(name, arguments):
    """The op's twin as the compiler gets to see it: the ops that it calls, and its results."""
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]

    def call(*tensors):
        left = iter(tensors)
        return twin(name)(*(next(left) if isinstance(a, torch.Tensor) else a for a in arguments))

    graph = make_fx(call, tracing_mode="fake")(*tensors)
    return ours(graph), as_tuple(graph(*tensors))


def ours(graph):
    """The calls of a graph to ops of this package."""
    calls = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
    return {call.removesuffix(".default") for call in calls if call.startswith("ddgan_fast")}


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def test_every_decomposition_is_tested_here():
    assert {name for name, _ in cases("nchw")} == set(registry._decomposed)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
def test_equals_the_op(layout):
    """In float64: values, dtypes and strides, from operators of torch alone."""
    for name, arguments in list(cases(layout))[:: 1 if layout == "nchw" else 2]:
        calls, got = traced(name, arguments)
        assert not calls, name
        for a, b in zip(got, as_tuple(op(name)(*arguments)), strict=True):
            assert (a.dtype, a.stride()) == (b.dtype, b.stride()), name
            tolerance = 1e-13 if b.dtype == torch.float64 else 1e-6
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("orders", [("nchw", "channels_last"), ("channels_last", "nchw")])
def test_a_sample_has_the_memory_order_of_the_one_before(orders):
    x0, x_next = (laid_out(randn(*SIZE, seed=s), order) for s, order in enumerate(orders))
    arguments = (x0, x_next, T, TABLES[:, :3].contiguous(), x0.sin(), None, None)
    _, (got,) = traced("sample_posterior", arguments)
    want = op("sample_posterior")(*arguments)
    assert got.stride() == want.stride() == x_next.stride()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_rounds_as_well_as_the_op(dtype):
    for name, arguments in list(cases("channels_last"))[::4]:
        if not arguments[0].is_floating_point():
            continue
        low = [
            a.to(dtype) if isinstance(a, torch.Tensor) and a.dtype == torch.float64 else a
            for a in arguments
        ]
        wide = [
            a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in low
        ]
        _, got = traced(name, low)
        results = zip(got, as_tuple(op(name)(*wide)), as_tuple(op(name)(*low)), strict=True)
        for a, truth, plain in results:
            assert a.dtype == plain.dtype
            assert_as_good_as_plain(a, truth, plain, dtype)


def test_infinities_stay_where_they_are():
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[0, 0, 0, 0] = x[0, 0, 3, 3] = float("inf")
    for rest in (RESAMPLING["up"], RESAMPLING["down"]):
        _, (got,) = traced("upfirdn2d", (x, TAPS, *rest))
        torch.testing.assert_close(got, op("upfirdn2d")(x, TAPS, *rest))
    _, (got,) = traced("bias_leaky_relu", (-x, None, 0.2, 1.0))
    torch.testing.assert_close(got, op("bias_leaky_relu")(-x, None, 0.2, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_preactivations_around_zero(dtype):
    """Zeros of both signs count as negative, the smallest positive half as positive."""
    tiny = 6e-8 if dtype == torch.float16 else 1e-37
    x = torch.tensor([0.0, -0.0, tiny, -tiny] * 4, dtype=dtype).reshape(1, 1, 4, 4)
    taps = torch.tensor([0.5, 0.25], dtype=dtype)
    grad, v = torch.ones(1, 1, 2, 2, dtype=dtype), torch.ones_like(x)
    for name, arguments in (
        ("bias_leaky_relu", (x, None, 0.5, 1.0)),
        ("bias_leaky_relu_grad", (v, x, 0.5, 1.0)),
        ("bias_leaky_relu_down_grad", (grad, x, None, taps, 0.5)),
        ("bias_leaky_relu_down_tangent", (v, x, None, taps, 0.5)),
    ):
        _, (got,) = traced(name, arguments)
        assert torch.equal(got, op(name)(*arguments)), name


def test_what_stays_whole():
    """Drawn numbers, which must not depend on the compiler's rounding, and filters too long."""
    seed = torch.tensor([123456789012345])
    x, v = randn(*SIZE).float(), randn(*SIZE, seed=1).float()
    longer = torch.rand(17, generator=torch.Generator().manual_seed(0))
    long = longer[:12]
    for name, arguments in (
        ("sample_posterior", (x, v, T, TABLES[:, :3].contiguous(), None, seed, None)),
        ("q_sample_pair", (IMAGES, T, TABLES, FLIP, None, None, seed, None)),
        ("upfirdn2d", (x, long, [1, 1], [1, 1], [6, 5, 5, 6], False, 1.0)),
        ("bias_leaky_relu_down", (x, None, long, 0.2)),
        ("bias_leaky_relu_down_tangent", (v, x, None, long, 0.2)),
        ("bias_leaky_relu_down_grad", (small("nchw").float(), x, None, longer, 0.2)),
    ):
        calls, got = traced(name, arguments)
        assert calls == {f"ddgan_fast.{name}"}
        for a, b in zip(got, as_tuple(op(name)(*arguments)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", sorted(registry._decomposed))
def test_twins_pass_torchs_own_checks(name):
    """Schema, fake and autograd registration."""
    for arguments in list(SAMPLES[name]("channels_last"))[:2]:
        torch.library.opcheck(twin(name), arguments, test_utils=(
            "test_schema", "test_autograd_registration", "test_faketensor",
        ))


@pytest.fixture
def settings(monkeypatch):
    """For other settings than this process started with."""
    yield monkeypatch
    monkeypatch.undo()
    registry._choose_decompositions()


@pytest.fixture
def seen():
    """Ours among the ops that Dynamo traced, then those of the graphs that get compiled."""
    torch._dynamo.reset()
    yield {"traced": [], "compiled": []}
    torch._dynamo.reset()


def compiling(function, seen):
    def backend(graph, inputs):
        def compiler(graph, inputs):
            seen["compiled"].append(ours(graph))
            return make_boxed_func(graph.forward)

        seen["traced"].append(ours(graph))
        return aot_autograd(fw_compiler=compiler, bw_compiler=compiler)(graph, inputs)

    return torch.compile(function, backend=backend, fullgraph=True)


def test_the_choice_is_read_when_traced(seen):
    """Another choice means another compilation, whose graph tells it to the compiler's caches."""
    function = compiling(lambda x: bias_leaky_relu(x, None, 0.2), seen)
    x = randn(2, 3)
    for choice in ("auto", "inductor", "torch", "auto", "inductor"):
        with use_backend(choice):
            torch.testing.assert_close(function(x), bias_leaky_relu(x))
    assert not registry.decomposes("bias_leaky_relu", "cpu")
    assert seen["traced"] == [{"ddgan_fast.bias_leaky_relu"}, {"ddgan_fast_inline.bias_leaky_relu"}]
    assert seen["compiled"] == [{"ddgan_fast.bias_leaky_relu"}, set()]


def test_an_ops_variable(seen, settings):
    """It covers the op's adjoints; the other ops stay whole."""
    settings.setenv("DDGAN_FAST_BACKEND_BIAS_LEAKY_RELU_DOWN", "inductor")
    settings.setattr(registry, "_environment_per_op", {})
    settings.setattr(registry, "_table", {op: dict(b) for op, b in registry._table.items()})
    for name in ("bias_leaky_relu_down", "bias_leaky_relu_down_grad"):
        registry.register_backend(name, "torch", registry._table[name]["torch"].run)
    registry._choose_decompositions()
    x = randn(*SIZE).requires_grad_()
    function = compiling(
        lambda x: upfirdn2d(bias_leaky_relu_down(x, None, TAPS), TAPS, up=2, padding=(2, 1)), seen
    )
    function(x).sum().backward()
    assert seen["compiled"] == [{"ddgan_fast.upfirdn2d"}] * 2


def test_measured_faster_means_on_cuda(settings):
    settings.setattr(registry.measured, "DECOMPOSED", ("upfirdn2d",))
    with use_backend("auto"):
        assert registry.decomposes("upfirdn2d", "cuda")
        assert not registry.decomposes("upfirdn2d", "cpu")
        assert not registry.decomposes("bias_leaky_relu", "cuda")
    with use_backend("torch"):
        assert not registry.decomposes("upfirdn2d", "cuda")


def test_eager_code_runs_as_with_auto():
    x = randn(2, 4, 5, 6)
    want = ada_group_norm_silu(x, x[:, :, 0, 0], x[:, :, 1, 1], 2), bias_leaky_relu(x)
    with use_backend("inductor"):
        got = ada_group_norm_silu(x, x[:, :, 0, 0], x[:, :, 1, 1], 2), bias_leaky_relu(x)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_report():
    for choice, chosen in (("auto", False), ("inductor", True)):
        with use_backend(choice):
            rows = {r["op"]: r for r in backend_report() if r["backend"] == "inductor"}
        assert set(rows) == set(_library.op_names)
        for name, row in rows.items():
            known = name in registry._decomposed
            assert (row["usable"], row["chosen"]) == (known, known and chosen)
    assert "keeps this op whole" in rows["ada_group_norm_silu"]["why_not"]


GRADIENTS = {
    "upfirdn2d, up": lambda x: upfirdn2d(x, TAPS, up=2, padding=(2, 1), gain=4.0),
    "upfirdn2d, down": lambda x: upfirdn2d(x, TAPS, down=2, padding=(1, 1)),
    "bias_leaky_relu": lambda x: bias_leaky_relu(x, x[:, :, 0, 0], 0.2, 1.4),
    "bias_leaky_relu_down": lambda x: bias_leaky_relu_down(x, x[:, :, 0, 0], TAPS),
}


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch cannot trace R1"
)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_penalty(name, seen):
    """Second derivatives in graphs without any of our ops, as the ops' own formulas have them."""
    x = laid_out(randn(2, 4, 7, 6), "channels_last")

    def loss(x):
        y = GRADIENTS[name](x.sin()).sigmoid()
        (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return g.square().sum() + y.mean()

    def gradient(function):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf)[0]

    with torch._dynamo.config.patch(trace_autograd_ops=True), use_backend("inductor"):
        got = gradient(compiling(loss, seen))
    assert seen["compiled"] == [set(), set()]
    torch.testing.assert_close(got, gradient(loss), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["upfirdn2d, up", "bias_leaky_relu_down"])
def test_compiles_for_any_size(name, seen):
    function = torch.compile(GRADIENTS[name], backend="aot_eager", fullgraph=True, dynamic=True)
    with use_backend("inductor"):
        for size in ((6, 5), (11, 7)):
            x = randn(2, 4, *size)
            torch.testing.assert_close(function(x), GRADIENTS[name](x))
