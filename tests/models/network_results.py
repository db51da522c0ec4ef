"""Small networks of which every weight matters, and all that training asks of them."""

import math

import torch
from spec_networks import DEFAULTS

from ddgan_fast.config import Config, DiscriminatorConfig, ModelConfig, RunConfig
from ddgan_fast.models import build_discriminator, build_generator

TIMES = torch.tensor([1, 3, 2, 0, 2, 3, 1, 0])


def randn(*shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def refill(network, dtype):
    """Weights of order 1, none at its initial 0 or 1e-10."""
    with torch.no_grad():
        for seed, p in enumerate(network.parameters()):
            fan_in = math.prod(p.shape[1:]) if p.ndim > 1 else 100
            p.copy_(randn(*p.shape, seed=seed) / math.sqrt(fan_in) + (1.0 if p.ndim == 1 else 0.0))
    return network.to(dtype)


def generator(changes=None, dtype=torch.float64, **run):
    model = ModelConfig(**(DEFAULTS | (changes or {})))
    return refill(build_generator(Config(model=model, run=RunConfig(**run))), dtype)


def discriminator(changes=None, dtype=torch.float64, image_size=10, **run):
    kind = {"kind": "custom", "block_mults": (2, 3), "block_downs": (True, False)}
    cfg = Config(
        model=ModelConfig(image_size=image_size),
        discriminator=DiscriminatorConfig(**({"ngf": 4, "t_emb_dim": 8} | kind | (changes or {}))),
        run=RunConfig(**run),
    )
    return refill(build_discriminator(cfg), dtype)


def generator_inputs(n=3, size=8, dtype=torch.float64):
    return randn(n, 3, size, size, seed=1, dtype=dtype), TIMES[:n], randn(n, 6, seed=2, dtype=dtype)


def discriminator_inputs(n=4, shape=(3, 10, 10), dtype=torch.float64):
    x_t, x_next = (randn(n, *shape, seed=s, dtype=dtype) for s in (100, 101))
    return x_t, TIMES.repeat(2)[:n], x_next


def generator_results(network, inputs, **options):
    """Output and all gradients by name."""
    x, t, z = (v.clone() for v in inputs)
    network.zero_grad()
    y = network(x.requires_grad_(), t, z.requires_grad_(), **options)
    weight = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    (weight * y).sum().backward()
    return {"y": y.detach(), "x": x.grad, "z": z.grad} | gradients(network)


def discriminator_results(network, inputs, **options):
    """Output, gradients, R1's gradient in x_t and what comes of it in the weights."""
    x_t, t, x_next = (v.clone() for v in inputs)
    out = network(x_t.requires_grad_(), t, x_next, **options)
    with torch.autocast("cpu", enabled=False):
        (g,) = torch.autograd.grad(out.sum(), x_t, create_graph=True)
    network.zero_grad()
    g.square().sum().backward(retain_graph=True)
    second = {f"R1 {name}": value for name, value in gradients(network).items()}
    network.zero_grad()
    torch.nn.functional.softplus(out).sum().backward()
    return {"y": out.detach(), "x": g.detach()} | gradients(network) | second


def gradients(network):
    return {
        name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None
    }


def assert_equal(got, want, tolerance):
    """Relative to each tensor's norm; what is but rounding beside the others may differ."""
    assert got.keys() == want.keys()
    largest = max(value.norm() for value in want.values())
    for name, value in want.items():
        # Softmax does not see the bias of the keys, so its gradient is nothing but rounding.
        size = largest if name.endswith("key.bias") else value.norm() + 1e-4 * largest
        error = (got[name] - value).norm()
        assert error <= tolerance * size, f"{name}: {error} of {size}"
