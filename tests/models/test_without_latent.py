"""Generators without latent: the same U-Net with learned scales and shifts."""

import pytest
import torch

from ddgan_fast import convert
from ddgan_fast.config import Config, ModelConfig, RunConfig
from ddgan_fast.models import build_generator
from ddgan_fast.models.layers import AdaptiveGroupNorm, AffineGroupNorm

SMALL = {
    "image_size": 8,
    "num_channels_dae": 8,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (4,),
    "z_emb_dim": 6,
}
OPTIONS = [
    {},
    {"resblock_type": "biggan_oneadagn"},
    {"resblock_type": "ddpm", "resamp_with_conv": False},
    {"fir": False},
    {"conditional": False},
]


def filled(rewrites, **options):
    """A generator whose every weight matters."""
    cfg = Config(model=ModelConfig(**SMALL, **options), run=RunConfig(rewrites=rewrites))
    generator = build_generator(cfg).double()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in generator.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=random, dtype=torch.float64))
    return generator


@pytest.mark.parametrize("rewrites", ["all", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_network_whose_latent_says_nothing(options, rewrites):
    """With style weights of 0, a style's bias is a learned scale and shift."""
    plain = filled(rewrites, nz=0, **options)
    latent = filled(rewrites, nz=4, **options)
    names = {name for name, m in latent.named_modules() if isinstance(m, AdaptiveGroupNorm)}
    weights = plain.state_dict()
    assert not any("style" in name or name.startswith("mapping") for name in weights)
    expected = {}
    for name, value in latent.state_dict().items():
        norm = name.rpartition(".style.")[0]
        if norm in names and norm:
            scale, shift = weights[f"{norm}.weight"], weights[f"{norm}.bias"]
            bias = name.endswith("bias")
            expected[name] = torch.cat([scale, shift]) if bias else torch.zeros_like(value)
        else:
            expected[name] = value if name.startswith("mapping") else weights[name]
    latent.load_state_dict(expected)
    random = torch.Generator().manual_seed(2)
    x = torch.randn(3, 3, 8, 8, generator=random, dtype=torch.float64)
    z = torch.randn(3, 4, generator=random, dtype=torch.float64)
    t = torch.tensor([0, 1, 3])
    got, want = plain(x, t, z[:, :0]), latent(x, t, z)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    got.square().sum().backward()
    dead = [k for k, p in plain.named_parameters() if p.requires_grad and p.grad is None]
    assert not dead


def test_norms_start_at_one_and_zero():
    generator = build_generator(ModelConfig(**SMALL, nz=0))
    norms = [m for m in generator.modules() if isinstance(m, AffineGroupNorm)]
    assert not any(isinstance(m, AdaptiveGroupNorm) for m in generator.modules())
    assert len(norms) > 10
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)


def test_points_need_no_latent():
    cfg = ModelConfig(kind="mlp", num_channels=2, nz=0, tanh=False, hidden=8)
    x = torch.randn(5, 2)
    assert build_generator(cfg)(x, torch.arange(5) % 4, torch.empty(5, 0)).shape == (5, 2)


def test_the_published_format_has_a_latent():
    cfg = ModelConfig(**SMALL, nz=0)
    with pytest.raises(ValueError, match="every generator in the published format has a latent"):
        convert.generator_to_published(build_generator(cfg).state_dict(), cfg)
