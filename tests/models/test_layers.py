"""Parts of the networks by themselves, where a formula or a convention could slip."""

import math

import pytest
import torch
import torch.nn.functional as F

from ddgan_fast.models import layers
from ddgan_fast.models.blocks import ResidualBlock


def randn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def refill(module, seed=10):
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(randn(*p.shape, seed=seed + i))
    return module.double()


@pytest.mark.parametrize("dim", [4, 5, 7, 32, 129])
def test_timestep_embedding(dim):
    t = torch.tensor([0, 1, 3, 999])
    got = layers.timestep_embedding(t, dim)
    assert got.shape == (4, dim) and got.dtype == torch.float32
    half = dim // 2
    for n, step in enumerate(t.tolist()):
        for j in range(half):
            phase = step * math.exp(-j * math.log(10000) / (half - 1))
            # float32 phases: their rounding grows with t.
            assert abs(got[n, j] - math.sin(phase)) < 1e-7 * (1 + 3 * step)
            assert abs(got[n, half + j] - math.cos(phase)) < 1e-7 * (1 + 3 * step)
    if dim % 2:
        assert not got[:, -1].any()


def test_fourier_embedding_starts_at_one():
    embedding = layers.FourierEmbedding(5, 16.0)
    assert not embedding.frequencies.requires_grad
    got = embedding(torch.tensor([1, 3, 0]))
    assert got.shape == (3, 10)
    phase = math.log(3) * embedding.frequencies * 2 * math.pi
    torch.testing.assert_close(got[1], torch.cat([phase.sin(), phase.cos()]))
    torch.testing.assert_close(got[0], torch.tensor([0.0] * 5 + [1.0] * 5))
    assert torch.isnan(got[2]).all()


def test_pixel_norm():
    z = randn(3, 7)
    z[1] = 0.0
    got = layers.PixelNorm()(z)
    for row, want in zip(got, z, strict=True):
        torch.testing.assert_close(row, want / math.sqrt(want.pow(2).mean().item() + 1e-8))


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_attention_is_a_softmax_over_all_positions(rescale, order):
    n, c, h, w = 2, 8, 3, 5
    attention = refill(layers.Attention(c, rescale))
    x = randn(n, c, h, w, seed=1).contiguous(memory_format=order)
    normed = F.group_norm(x, 2, attention.norm.weight, attention.norm.bias, eps=1e-6)

    def project(layer, v):
        return torch.einsum("bihw,io->bohw", v, layer.weight) + layer.bias[:, None, None]

    q, k, v = (
        project(layer, normed).flatten(2)
        for layer in (attention.query, attention.key, attention.value)
    )
    want = torch.zeros(n, c, h * w, dtype=torch.float64)
    for b in range(n):
        for i in range(h * w):
            logits = torch.stack([q[b, :, i] @ k[b, :, j] for j in range(h * w)]) / math.sqrt(c)
            weights = logits.exp() / logits.exp().sum()
            want[b, :, i] = sum(weights[j] * v[b, :, j] for j in range(h * w))
    want = x + project(attention.out, want.reshape(n, c, h, w))
    if rescale:
        want = want / math.sqrt(2)
    torch.testing.assert_close(attention(x), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 1), (1, 2, 1), (5, 1, 2, 3, 4), None])
def test_an_up_block_filters_before_its_shortcut(taps):
    """The 1x1 shortcut runs at the low resolution; image borders must not notice."""
    block = refill(ResidualBlock(8, 4, time_width=6, latent_width=5, taps=taps, resample="up"))
    x, time, latent = randn(2, 8, 4, 3), randn(2, 6, seed=1), randn(2, 5, seed=2)
    got = block(x, time, latent)
    h = block.resample.up(block.norm0(x, latent, silu=True))
    h = block.conv0(h) + block.time_proj(F.silu(time))[:, :, None, None]
    h = block.conv1(block.norm1(h, latent, silu=True))
    want = (block.skip(block.resample.up(x)) + h) / math.sqrt(2)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 1), (1, 2, 1), (1, 2, 3, 4, 5), None])
@pytest.mark.parametrize("size", [(4, 6), (8, 2)])
def test_resampling_keeps_constants_and_sizes(taps, size):
    resampler = layers.Resampler(taps)
    x = torch.ones(1, 2, *size)
    up, down = resampler.up(x), resampler.down(x)
    assert up.shape[2:] == (2 * size[0], 2 * size[1])
    assert down.shape[2:] == (size[0] // 2, size[1] // 2)
    assert resampler.fir == (taps is not None)
    if taps == (1, 3, 3, 1):
        torch.testing.assert_close(up[:, :, 2:-2, 2:-2], torch.ones_like(up[:, :, 2:-2, 2:-2]))


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.0])
def test_initial_bounds(scale):
    torch.manual_seed(0)
    weight = torch.empty(30, 50, 3, 3)
    effective = scale or 1e-10
    layers.init_fan_average(weight, scale)
    bound = math.sqrt(3 * effective / (9 * 40))
    assert 0.99 * bound < weight.abs().max() <= bound
    layers.init_fan_out(weight, scale)
    bound = math.sqrt(3 * effective / (9 * 30))
    assert 0.99 * bound < weight.abs().max() <= bound * (1 + 1e-6)


def test_initial_style_is_the_identity():
    norm = layers.AdaptiveGroupNorm(2, 8, 5)
    assert norm.style.bias.tolist() == [1.0] * 8 + [0.0] * 8
    block = layers.AffineGroupNorm(8)
    assert (block.weight == 1).all() and not block.bias.any()


@pytest.mark.parametrize(
    ("channels", "groups"), [(4, 1), (64, 16), (128, 32), (192, 32), (512, 32)]
)
def test_group_count(channels, groups):
    assert layers.group_count(channels) == groups
