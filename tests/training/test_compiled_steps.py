"""The discriminator's steps under torch.compile, with and without R1: gradients equal eager's."""

import shutil

import pytest
import torch
from torch import nn

from ddgan_fast.config import Config, DiscriminatorConfig, ModelConfig
from ddgan_fast.kernels import (
    bias_leaky_relu,
    bias_leaky_relu_down,
    upfirdn2d,
    use_backend,
)
from ddgan_fast.models import build_discriminator
from ddgan_fast.training.steps import DiscriminatorLoss

needs_tracing = pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch cannot trace R1"
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
# Plain loops by one process: quick to compile.
QUICK = {"cpp.vec_isa_ok": False, "compile_threads": 1}


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Empty ones, also on disk."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def discriminator():
    """Ours with one block."""
    cfg = Config(
        model=ModelConfig(num_channels=3),
        discriminator=DiscriminatorConfig(
            kind="custom", ngf=4, t_emb_dim=4, block_mults=(2,), block_downs=(True,)
        ),
    )
    torch.manual_seed(0)
    return build_discriminator(cfg)


class Miniature(nn.Module):
    """Two convolutions and the discriminator's ops: much less code to compile."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(6, 4, 1, bias=False), nn.Conv2d(4, 1, 4)
        self.bias = nn.Parameter(torch.randn(2, 4))
        self.register_buffer("taps", torch.tensor([0.125, 0.375, 0.375, 0.125]))

    def forward(self, x_t, t, x_next):
        h = self.first(torch.cat([x_t, x_next], 1))
        h = bias_leaky_relu_down(h, self.bias[t], self.taps) + upfirdn2d(
            h, self.taps, down=2, padding=(1, 1)
        )
        return self.last(h).flatten(1)


def gradients(network, penalize, **options):
    """Gradients of one step in the network's parameters, compiled by options, or eager."""
    loss = DiscriminatorLoss(network, 2.0)
    if options:
        loss = torch.compile(loss, fullgraph=True, dynamic=False, **options)
    x_t, x_next, fake = (
        randn(4, 3, 8, 8, seed=s).contiguous(memory_format=torch.channels_last) for s in range(3)
    )
    network.zero_grad()
    # The compiler wants the leaf made outside.
    value, stats = loss(x_t.requires_grad_(penalize), x_next, torch.arange(4) % 2, fake, penalize)
    value.backward()
    assert ("D/r1" in stats) == penalize
    return {n: p.grad.clone() for n, p in network.named_parameters()}


def assert_equal(network, penalize, **options):
    want = gradients(network, penalize)
    for name, got in gradients(network, penalize, **options).items():
        assert (got - want[name]).norm() <= 1e-5 * want[name].norm() + 1e-8, name


@pytest.fixture
def tracing():
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield


@needs_tracing
@pytest.mark.parametrize("choice", ["auto", "inductor"])
def test_traced_steps(tracing, choice):
    network = discriminator()
    with use_backend(choice):
        for penalize in (False, True):
            assert_equal(network, penalize, backend="aot_eager")


@needs_tracing
@needs_compiler
def test_a_compiled_step(tracing):
    """With R1 and with the ops decomposed, so that the compiler's own code computes them."""
    with use_backend("inductor"):
        assert_equal(Miniature(), True, options=QUICK)


@pytest.mark.slow
@needs_tracing
@needs_compiler
@pytest.mark.parametrize(("choice", "penalize"), [("auto", False), ("inductor", True)])
def test_compiled_steps(tracing, choice, penalize):
    with use_backend(choice):
        assert_equal(discriminator(), penalize, options=QUICK)


@needs_compiler
def test_the_compilers_caches_tell_the_choices_apart():
    """Each process reads the choice anew, and the caches on disk outlive it."""
    from torch._dynamo.utils import counters

    x = randn(4, 3, seed=0)
    hits = []
    with torch._functorch.config.patch(enable_autograd_cache=True):
        for choice in ("auto", "inductor", "inductor", "auto"):
            torch._dynamo.reset()
            counters.clear()
            compiled = torch.compile(lambda x: bias_leaky_relu(x), options=QUICK)
            with use_backend(choice):
                torch.testing.assert_close(compiled(x), bias_leaky_relu(x))
            hits.append(counters["aot_autograd"]["autograd_cache_hit"])
    assert hits == [0, 0, 1, 1]
