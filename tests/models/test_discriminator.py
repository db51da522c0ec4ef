"""The discriminators against a plain second implementation; the minibatch statistic."""

import math

import pytest
import torch
from spec_networks import spec_discriminator, stddev_channel

from ddgan_fast import convert
from ddgan_fast.config import Config, DiscriminatorConfig, ModelConfig
from ddgan_fast.models import build_discriminator
from ddgan_fast.models.discriminator import minibatch_stddev

KINDS = {
    "small": ({"kind": "small"}, 16, (False, True, True, True)),
    "large": ({"kind": "large"}, 64, (True,) * 6),
    "custom": (
        {"kind": "custom", "block_mults": (2, 3), "block_downs": (True, False)},
        10,
        (True, False),
    ),
}
every_kind = pytest.mark.parametrize(("kind", "size", "downs"), KINDS.values(), ids=KINDS.keys())


def randn(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def make(kind, channels=3, dtype=torch.float64):
    cfg = Config(
        model=ModelConfig(num_channels=channels),
        discriminator=DiscriminatorConfig(**kind, ngf=4, t_emb_dim=7),
    )
    discriminator = build_discriminator(cfg)
    with torch.no_grad():
        for seed, p in enumerate(discriminator.parameters()):
            fan_in = math.prod(p.shape[1:]) if p.ndim > 1 else 10
            p.copy_(1.4 * randn(*p.shape, seed=seed) / math.sqrt(fan_in))
    return discriminator.to(dtype), cfg


def inputs(size, n=4, channels=3):
    x_t, x_next = (randn(n, channels, size, size, seed=s) for s in (100, 101))
    return x_t, torch.arange(n) % 4, x_next


@every_kind
@pytest.mark.parametrize(("n", "channels"), [(4, 3), (8, 1), (3, 4), (1, 3)])
def test_equals_the_plain_implementation(kind, size, downs, n, channels):
    """Output, gradient in x_t, R1 and R1's parameter gradients, in float64."""
    discriminator, cfg = make(kind, channels)
    x_t, t, x_next = inputs(size, n, channels)
    x_t.requires_grad_()
    published = convert.discriminator_to_published(dict(discriminator.named_parameters()), cfg)

    def run(function):
        out = function(x_t, t, x_next)
        (g,) = torch.autograd.grad(out.sum(), x_t, create_graph=True)
        penalty = g.square().sum()
        values = list(published.values())
        first = torch.autograd.grad(out.sum(), values, retain_graph=True)
        second = torch.autograd.grad(penalty, values, allow_unused=True, materialize_grads=True)
        return [out, g, *first, *second]

    plain = run(lambda *v: spec_discriminator(published, downs, *v))
    for got, want in zip(run(discriminator), plain, strict=True):
        assert got.shape == want.shape
        # The time embedding is rounded to float32 by definition.
        torch.testing.assert_close(got, want, rtol=0, atol=1e-7 * want.abs().max().item() + 1e-12)
    assert plain[0].shape == (n, 1)


@every_kind
def test_channels_last_gives_the_same(kind, size, downs):
    discriminator, _ = make(kind)
    x_t, t, x_next = inputs(size)

    def run(x_t, x_next):
        discriminator.zero_grad()
        x_t = x_t.clone().requires_grad_()
        out = discriminator(x_t, t, x_next)
        (g,) = torch.autograd.grad(out.sum(), x_t, create_graph=True)
        (g.square().sum() + out.sum()).backward()
        return [out.detach(), g.detach(), *(p.grad for p in discriminator.parameters())]

    want = run(x_t, x_next)
    discriminator.to(memory_format=torch.channels_last)
    got = run(*(v.contiguous(memory_format=torch.channels_last) for v in (x_t, x_next)))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@every_kind
def test_every_initial_weight_gets_a_gradient(kind, size, downs):
    torch.manual_seed(0)
    cfg = Config(discriminator=DiscriminatorConfig(**kind, ngf=4, t_emb_dim=8))
    discriminator = build_discriminator(cfg)
    x_t, t, x_next = (v if v.dtype == torch.int64 else v.float() for v in inputs(size))
    discriminator(x_t, t, x_next).sum().backward()
    for name, p in discriminator.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name


def test_order_of_the_pair_matters():
    discriminator, _ = make(KINDS["small"][0])
    x_t, t, x_next = inputs(16)
    assert not torch.allclose(discriminator(x_t, t, x_next), discriminator(x_next, t, x_t))


def test_bf16_autocast_with_penalty():
    """R1's gradients under autocast are as exact as the plain implementation's."""
    discriminator, cfg = make(KINDS["small"][0], dtype=torch.float32)
    x_t, t, x_next = inputs(16)
    published = convert.discriminator_to_published(dict(discriminator.named_parameters()), cfg)

    def run(function, dtype, values, autocast):
        x = x_t.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = function(x, t, x_next.to(dtype))
            (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        gradients = torch.autograd.grad(g.square().sum(), values, materialize_grads=True)
        assert all(torch.isfinite(v).all() for v in gradients)
        return torch.cat([v.double().flatten() for v in gradients])

    def plain(state):
        return lambda *v: spec_discriminator(state, KINDS["small"][2], *v)

    exact = {name: p.detach().double().requires_grad_() for name, p in published.items()}
    want = run(plain(exact), torch.float64, list(exact.values()), False)
    values = list(published.values())
    allowed = (run(plain(published), torch.float32, values, True) - want).norm()
    error = (run(discriminator, torch.float32, values, True) - want).norm()
    assert error < 2 * allowed + 0.02 * want.norm()
    assert error < 0.5 * want.norm()


# Minibatch standard deviation


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 12, 16])
def test_published_groups(n):
    h = randn(n, 3, 4, 5, seed=n)
    got = minibatch_stddev(h)
    assert got.shape == (n, 4, 4, 5)
    assert torch.equal(got[:, :3], h)
    torch.testing.assert_close(got[:, 3:], stddev_channel(h), rtol=0, atol=1e-14)
    assert minibatch_stddev(h[:0]).shape == (0, 4, 4, 5)
    if n == 1:
        torch.testing.assert_close(got[:, 3], torch.full_like(got[:, 3], 1e-4))


@pytest.mark.parametrize(
    ("n", "sets"),
    [
        (5, [[0, 2, 4], [1, 3]]),
        (6, [[0, 2, 4], [1, 3, 5]]),
        (7, [[0, 2, 4, 6], [1, 3, 5]]),
        (9, [[0, 3, 6], [1, 4, 7], [2, 5, 8]]),
        (10, [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]),
        (11, [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8]]),
    ],
)
def test_groups_of_other_batches(n, sets):
    """Sample i belongs to set i mod ceil(n / 4)."""
    h = randn(n, 3, 2, 2, seed=n).requires_grad_()
    got = minibatch_stddev(h)[:, 3, 0, 0]
    want = torch.zeros(n, dtype=torch.float64)
    for members in sets:
        values = h.detach()[members]
        variance = (values - values.mean(0)).square().mean(0)
        want[members] = torch.sqrt(variance + 1e-8).mean()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(minibatch_stddev, h)


@pytest.mark.parametrize(("world", "local"), [(2, 4), (2, 8), (4, 4), (3, 4), (3, 8)])
def test_interleaved_ranks_keep_the_groups(world, local):
    """Rank r holds positions r + W j of the global batch; its sets are global sets."""
    h = randn(world * local, 2, 3, 3, seed=0)
    whole = minibatch_stddev(h)
    for rank in range(world):
        torch.testing.assert_close(
            minibatch_stddev(h[rank::world]), whole[rank::world], rtol=0, atol=1e-14
        )


@pytest.mark.parametrize("n", [4, 6, 8])
def test_statistic_in_half_precision_and_any_memory_order(n):
    h = (50 + randn(n, 3, 4, 5, seed=n)).to(torch.float16)
    want = stddev_channel(h.double()) if n != 6 else minibatch_stddev(h.double())[:, 3:]
    for x in (h, h.contiguous(memory_format=torch.channels_last)):
        got = minibatch_stddev(x)
        assert got.dtype == torch.float16
        torch.testing.assert_close(got[:, 3:].double(), want, rtol=1e-3, atol=0)


@pytest.mark.parametrize("n", [4, 8, 6, 1])
def test_second_derivative_of_the_statistic(n):
    h = randn(n, 2, 2, 2, seed=n).requires_grad_()
    assert torch.autograd.gradcheck(minibatch_stddev, h)
    assert torch.autograd.gradgradcheck(minibatch_stddev, h)


def test_penalty_in_one_graph():
    """R1 inside the compiled region equals eager; the leaf is made outside."""
    kind = {"kind": "custom", "block_mults": (2,), "block_downs": (True,)}
    discriminator, _ = make(kind)
    x_t, t, x_next = inputs(10)

    def loss(x, t, x_next):
        out = discriminator(x, t, x_next)
        (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return torch.nn.functional.softplus(-out).mean() + g.square().sum()

    def gradients(function):
        discriminator.zero_grad()
        value = function(x_t.clone().requires_grad_(), t, x_next)
        value.backward()
        return [value.detach(), *(p.grad.clone() for p in discriminator.parameters())]

    want = gradients(loss)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        got = gradients(torch.compile(loss, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-12
