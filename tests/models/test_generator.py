"""The generator against a plain second implementation, for every option that has a behaviour."""

import math

import pytest
import torch
from spec_networks import DEFAULTS, SpecGenerator, options

from ddgan_fast import convert
from ddgan_fast.config import ModelConfig, load_config
from ddgan_fast.kernels import philox
from ddgan_fast.models import build_discriminator, build_generator
from ddgan_fast.models.layers import DropoutDraws

DDPM = {"resblock_type": "ddpm", "resamp_with_conv": False}
OPTIONS = {
    "published": {},
    "input none": {"progressive_input": "none"},
    "input skip sum": {"progressive_input": "input_skip"},
    "input skip cat": {"progressive_input": "input_skip", "progressive_combine": "cat"},
    "output skip": {"progressive": "output_skip"},
    "output skip, input none": {"progressive": "output_skip", "progressive_input": "none"},
    "output skip, input skip cat": {
        "progressive": "output_skip",
        "progressive_input": "input_skip",
        "progressive_combine": "cat",
    },
    "one adagn": {"resblock_type": "biggan_oneadagn"},
    "one adagn, input skip, output skip": {
        "resblock_type": "biggan_oneadagn",
        "progressive": "output_skip",
        "progressive_input": "input_skip",
    },
    "ddpm": DDPM,
    "ddpm, input none": DDPM | {"progressive_input": "none"},
    "ddpm, input skip cat": DDPM
    | {"progressive_input": "input_skip", "progressive_combine": "cat"},
    "ddpm, output skip": DDPM | {"progressive": "output_skip"},
    "no fir": {"fir": False},
    "no fir, input none": {"fir": False, "progressive_input": "none"},
    "no fir, input skip": {"fir": False, "progressive_input": "input_skip"},
    "no fir, input skip cat": {
        "fir": False,
        "progressive_input": "input_skip",
        "progressive_combine": "cat",
    },
    "no fir, one adagn": {"fir": False, "resblock_type": "biggan_oneadagn"},
    "unconditional": {"conditional": False},
    "unconditional, ddpm": DDPM | {"conditional": False},
    "fourier": {"embedding_type": "fourier"},
    "fourier, unconditional": {"embedding_type": "fourier", "conditional": False},
    "grey": {"num_channels": 1},
    "four channels": {"num_channels": 4},
    "two res blocks": {"num_res_blocks": 2},
    "three res blocks": {"num_res_blocks": 3, "progressive": "output_skip"},
    "no attention": {"attn_resolutions": ()},
    "attention everywhere": {"attn_resolutions": (8, 4), "num_res_blocks": 2},
    "no tanh": {"tanh": False},
    "no rescaling": {"skip_rescale": False},
    "not centered": {"centered": False},
    "2 taps": {"fir_kernel": (1, 1)},
    "3 taps": {"fir_kernel": (1, 2, 1)},
    "5 taps": {"fir_kernel": (1, 4, 6, 4, 1), "progressive": "output_skip"},
    "asymmetric taps": {"fir_kernel": (1, 2, 3, 4), "progressive_input": "input_skip"},
    "5 asymmetric taps": {"fir_kernel": (5, 1, 2, 3, 4), "progressive": "output_skip"},
    "12 taps": {"fir_kernel": tuple(range(1, 13))},
    "one resolution": {"ch_mult": (1,), "attn_resolutions": (8,)},
    "ddpm with convolutions at one resolution": {"resblock_type": "ddpm", "ch_mult": (2,)},
    "three resolutions": {"ch_mult": (1, 1, 2), "image_size": 16},
    "28 pixels": {"image_size": 28, "ch_mult": (1, 1, 2), "attn_resolutions": (14,)},
    "96 pixels": {
        "image_size": 96,
        "num_channels_dae": 4,
        "ch_mult": (1, 1, 1, 1),
        "attn_resolutions": (12,),
    },
    "deep mapping": {"n_mlp": 4},
    "shallow mapping": {"n_mlp": 0},
    "odd embedding": {"num_channels_dae": 20},
}
every_option = pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())


def make(changes, dtype=torch.float64, seed=0, **more):
    """A generator whose every weight matters: none at its initial 0 or 1e-10."""
    cfg = ModelConfig(**(DEFAULTS | changes | more))
    generator = build_generator(cfg).to(dtype)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in generator.parameters():
            values = torch.randn(p.shape, generator=random, dtype=torch.float64)
            fan_in = math.prod(p.shape[1:]) if p.ndim > 1 else 100
            p.copy_(values / math.sqrt(fan_in) + (1.0 if p.ndim == 1 else 0.0))
    return generator


def inputs(generator, n=3, dtype=torch.float64, seed=1):
    cfg, random = generator.cfg, torch.Generator().manual_seed(seed)
    shape = (n, cfg.num_channels, cfg.image_size, cfg.image_size)
    x = torch.randn(shape, generator=random, dtype=torch.float64)
    z = torch.randn(n, cfg.nz, generator=random, dtype=torch.float64)
    t = torch.tensor([1, 3, 2, 1, 2, 3])[:n]
    return x.to(dtype), t if cfg.embedding_type == "fourier" else t - 1, z.to(dtype)


@every_option
def test_equals_the_plain_implementation(changes):
    """Output, gradients of inputs and of all parameters, in float64, under published names."""
    generator = make(changes)
    x, t, z = inputs(generator, n=2)
    x.requires_grad_(), z.requires_grad_()
    parameters = dict(generator.named_parameters())
    published = convert.generator_to_published(parameters, generator.cfg)
    plain = SpecGenerator(options(**changes), published)
    leaves = [x, z, *(p for p in published.values() if p.requires_grad)]
    names = ["x", "z", *(k for k, p in published.items() if p.requires_grad)]

    def run(function):
        y = function(x, t, z)
        weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
        gradients = torch.autograd.grad((weight * y).sum(), leaves, allow_unused=True)
        return y, dict(zip(names, gradients, strict=True))

    (got, got_grads), (want, want_grads) = run(generator), run(plain)
    assert got.shape == x.shape and torch.isfinite(got).all()
    # The time embedding is rounded to float32 by definition.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * want.abs().max().item())
    largest = max(g.norm() for g in want_grads.values())
    for name in names:
        a, b = got_grads[name], want_grads[name]
        assert a is not None and b is not None, f"no gradient reaches {name}"
        # Softmax does not see the bias of the keys.
        assert b.norm() > 1e-6 * largest or name.endswith("NIN_1.b"), f"{name} shows nothing"
        assert (a - b).norm() < 1e-6 * b.norm() + 1e-12 * largest, name


@every_option
def test_training_from_the_initial_weights(changes):
    """At the initial weights: a finite output, and a gradient for all that learns."""
    torch.manual_seed(0)
    generator = build_generator(ModelConfig(**(DEFAULTS | changes)))
    generator(*inputs(generator, dtype=torch.float32)).square().sum().backward()
    for name, p in generator.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        if p.grad is not None:
            assert torch.isfinite(p.grad).all(), name
    frozen = {name for name, p in generator.named_parameters() if not p.requires_grad}
    expected = set()
    if not generator.cfg.conditional:
        expected |= {name for name in dict(generator.named_parameters()) if ".time_proj." in name}
    if generator.cfg.embedding_type == "fourier":
        expected.add("fourier.frequencies")
    assert frozen == expected


@pytest.mark.parametrize(
    "name", ["published", "output skip", "ddpm", "no fir", "input skip cat", "5 asymmetric taps"]
)
def test_channels_last_gives_the_same(name):
    generator = make(OPTIONS[name])
    x, t, z = inputs(generator)

    def run(x):
        generator.zero_grad()
        x = x.clone().requires_grad_()
        y = generator(x, t, z)
        y.square().sum().backward()
        return [y.detach(), x.grad, *(p.grad for p in generator.parameters())]

    want = run(x)
    generator.to(memory_format=torch.channels_last)
    got = run(x.contiguous(memory_format=torch.channels_last))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_time_and_the_latent_matter():
    generator = make({})
    x, t, z = inputs(generator)
    y = generator(x, t, z)
    assert not torch.allclose(y, generator(x, (t + 1) % 4, z))
    assert not torch.allclose(y, generator(x, t, z.flip(0)))
    unconditional = make({"conditional": False})
    assert torch.equal(unconditional(x, t, z), unconditional(x, (t + 1) % 4, z))


@pytest.mark.parametrize("name", ["published", "output skip", "ddpm", "no fir", "5 taps"])
def test_float32_is_close_to_float64(name):
    double, single = make(OPTIONS[name]), make(OPTIONS[name], torch.float32)
    want = double(*inputs(double))
    got = single(*inputs(double, dtype=torch.float32))
    assert got.dtype == torch.float32
    scale = want.abs().max().item()
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-3 * scale)


def test_bf16_autocast():
    generator = make({}, torch.float32)
    x, t, z = inputs(generator, dtype=torch.float32)
    want = generator(x, t, z)
    with torch.autocast("cpu", torch.bfloat16):
        got = generator(x, t, z)
    assert torch.isfinite(got).all()
    assert (got.float() - want).norm() < 0.1 * want.norm()
    got.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in generator.parameters())


# Dropout


def drop(seed, index):
    return DropoutDraws(torch.tensor([seed]), index)


def test_dropout_is_a_function_of_seed_and_position():
    generator = make({"dropout": 0.3, "num_res_blocks": 2})
    x, t, z = inputs(generator, n=6)
    index = torch.tensor([4, 11, 0, 7, 2**33, 5])
    whole = generator(x, t, z, drop(99, index))
    assert torch.equal(whole, generator(x, t, z, drop(99, index)))
    for rows in ([0, 1, 2], [5, 3], [2]):
        part = generator(x[rows], t[rows], z[rows], drop(99, index[rows]))
        torch.testing.assert_close(part, whole[rows], rtol=1e-9, atol=1e-9)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(generator(last, t, z, drop(99, index)), whole, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(generator(x, t, z, drop(98, index)), whole)
    assert not torch.allclose(generator(x, t, z, drop(99, index + 1)), whole)
    before = torch.get_rng_state()
    generator(x, t, z, drop(99, index))
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_in_evaluation_and_without_draws():
    generator, without = make({"dropout": 0.3}), make({})
    x, t, z = inputs(generator)
    want = without(x, t, z)
    torch.manual_seed(0)
    assert not torch.allclose(generator(x, t, z), want)
    generator.eval()
    assert torch.equal(generator(x, t, z), want)
    assert torch.equal(generator(x, t, z, drop(99, torch.arange(3))), want)
    generator.train()
    zero = make({"dropout": 0.0})
    assert torch.equal(zero(x, t, z, drop(99, torch.arange(3))), want)


def test_dropout_masks_keep_the_mean_and_differ_by_layer():
    draws = drop(5, torch.arange(50))
    x = torch.ones(50, 8, 16, 16)
    first, second = draws(x, 0.25), draws(x, 0.25)
    for y in (first, second):
        # Kept values are scaled by exactly 4/3; 102,400 of them: 5 standard deviations.
        assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
        assert abs((y == 0).double().mean() - 0.25) < 5 * math.sqrt(0.1875 / y.numel())
    both = ((first == 0) & (second == 0)).double().mean()
    assert abs(both - 0.0625) < 0.005
    words = philox.uniform(torch.tensor([6]), torch.arange(50), (8, 16, 16))
    assert torch.equal(first == 0, words < 0.25)


# Sizes of the published networks


@pytest.mark.parametrize(
    ("preset", "generator", "discriminator"),
    [
        ("cifar10", 48_432_515, 12_741_633),
        ("celebahq256", 39_726_979, 27_737_217),
        ("lsun_church256", 39_726_979, 27_737_217),
    ],
)
def test_published_parameter_counts(preset, generator, discriminator):
    cfg = load_config(preset)
    with torch.device("meta"):
        networks = build_generator(cfg), build_discriminator(cfg)
    counts = [sum(p.numel() for p in net.parameters()) for net in networks]
    assert counts == [generator, discriminator]
    assert not any(net.state_dict().keys() - dict(net.named_parameters()) for net in networks)


def test_filter_taps_are_no_state():
    generator = build_generator(ModelConfig(**DEFAULTS))
    assert set(generator.state_dict()) == set(dict(generator.named_parameters()))
    assert any(name.endswith("taps") for name, _ in generator.named_buffers())
