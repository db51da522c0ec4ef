"""The published training step written out plainly, and small networks to try it on."""

import math

import torch

from ddgan_fast.config import Config, DiscriminatorConfig, ModelConfig
from ddgan_fast.diffusion import Diffusion
from ddgan_fast.models import build_discriminator, build_generator
from ddgan_fast.training.draws import Draws

GAMMA, T, NZ, SIZE = 3.0, 4, 6, 8


def randn(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def fill(module, seed):
    """Weights that all matter: the initial ones are partly 1e-10."""
    with torch.no_grad():
        for i, p in enumerate(p for p in module.parameters() if p.requires_grad):
            fan_in = math.prod(p.shape[1:]) if p.ndim > 1 else 10
            p.copy_(randn(*p.shape, seed=seed + i) / math.sqrt(fan_in))
    return module


def networks(dtype=torch.float64, **model):
    base = {"image_size": SIZE, "num_channels": 3, "num_channels_dae": 8, "ch_mult": (1, 2)}
    base |= {"num_res_blocks": 1, "attn_resolutions": (4,), "nz": NZ, "z_emb_dim": 8, "n_mlp": 1}
    cfg = Config(
        model=ModelConfig(**(base | model)),
        discriminator=DiscriminatorConfig(
            kind="custom", ngf=4, t_emb_dim=8, block_mults=(2, 2), block_downs=(True, False)
        ),
    )
    generator = fill(build_generator(cfg), 0).to(dtype)
    discriminator = fill(build_discriminator(cfg), 1000).to(dtype)
    with torch.no_grad():
        # Logits near 0: each part of the loss has a gradient.
        discriminator.linear_out.weight.mul_(0.1)
        discriminator.linear_out.bias.zero_()
    return generator, discriminator, Diffusion(T)


def points():
    cfg = Config(
        model=ModelConfig(
            kind="mlp", num_channels=2, nz=NZ, hidden=8, point_features=3, tanh=False
        ),
        discriminator=DiscriminatorConfig(kind="mlp", t_emb_dim=8, hidden=8, point_features=3),
    )
    generator, discriminator = build_generator(cfg), build_discriminator(cfg)
    return fill(generator, 0).double(), fill(discriminator, 1000).double(), Diffusion(T)


def handed_in(n, seed, shape=(3, SIZE, SIZE)):
    """Draws with the noise itself."""
    t = torch.tensor([0, 3, 1, 2, 2, 0, 3, 1])[:n]
    pair = tuple(randn(n, *shape, seed=seed + i) for i in (1, 2))
    posterior = randn(n, *shape, seed=seed + 3)
    return Draws(t=t, z=randn(n, NZ, seed=seed), pair_noise=pair, posterior_noise=posterior)


def column(values, like):
    return values.double().reshape(-1, *[1] * (like.ndim - 1))


def plain_pair(tables, images, draws):
    noise_next, noise_t = draws.pair_noise
    t = draws.t
    x_t = column(tables["a_s_cum"][t], images) * images
    x_t = x_t + column(tables["sigmas_cum"][t], images) * noise_t
    x_next = column(tables["a_s"][t + 1], x_t) * x_t
    return x_t, x_next + column(tables["sigmas"][t + 1], x_t) * noise_next


def plain_fake(generator, tables, x_next, draws):
    t = draws.t
    mean = column(tables["posterior_mean_coef1"][t], x_next) * generator(x_next, t, draws.z)
    mean = mean + column(tables["posterior_mean_coef2"][t], x_next) * x_next
    std = torch.exp(0.5 * tables["posterior_log_variance_clipped"][t]) * (t != 0)
    return mean + column(std, x_next) * draws.posterior_noise


def softplus(x):
    return torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0)


def plain_discriminator_step(generator, discriminator, diffusion, images, draws, penalize):
    """The published order: three backward passes, one after another, the last also through G."""
    discriminator.zero_grad()
    x_t, x_next = plain_pair(diffusion.tables, images, draws)
    x_t.requires_grad_()
    real = discriminator(x_t, draws.t, x_next)
    softplus(-real).mean().backward(retain_graph=True)
    penalty = None
    if penalize:
        (g,) = torch.autograd.grad(real.sum(), x_t, create_graph=True)
        penalty = g.flatten(1).norm(dim=1) ** 2
        (GAMMA / 2 * penalty.mean()).backward()
    fake = discriminator(plain_fake(generator, diffusion.tables, x_next, draws), draws.t, x_next)
    softplus(fake).mean().backward()
    generator.zero_grad()
    values = {"D/real": softplus(-real).flatten(), "D/fake": softplus(fake).flatten()}
    values["D/real_acc"] = (real > 0).flatten().float()
    values["D/fake_acc"] = (fake < 0).flatten().float()
    if penalize:
        values |= {"D/r1": penalty, "D/r1_norm": penalty.sqrt()}
    return values, gradients(discriminator)


def plain_generator_step(generator, discriminator, diffusion, images, draws):
    generator.zero_grad()
    _, x_next = plain_pair(diffusion.tables, images, draws)
    fake = discriminator(plain_fake(generator, diffusion.tables, x_next, draws), draws.t, x_next)
    softplus(-fake).mean().backward()
    discriminator.zero_grad()
    return softplus(-fake).flatten(), gradients(generator)


def gradients(module):
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def assert_close(got, want, tolerance=1e-9):
    assert got.keys() == want.keys()
    for name in want:
        a, b = got[name], want[name]
        assert a.shape == b.shape
        assert (a - b).norm() <= tolerance * b.norm() + 1e-13, name
