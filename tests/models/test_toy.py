"""The networks for 2-D points."""

import pytest
import torch

from ddgan_fast.config import Config, DiscriminatorConfig, ModelConfig
from ddgan_fast.models import build_discriminator, build_generator


def networks(features=6, tanh=False):
    cfg = Config(
        model=ModelConfig(
            kind="mlp",
            num_channels=2,
            nz=3,
            hidden=16,
            hidden_layers=3,
            point_features=features,
            tanh=tanh,
        ),
        discriminator=DiscriminatorConfig(
            kind="mlp", t_emb_dim=8, hidden=12, hidden_layers=2, point_features=features
        ),
    )
    torch.manual_seed(0)
    return build_generator(cfg), build_discriminator(cfg)


def inputs(n=5, dtype=torch.float32):
    random = torch.Generator().manual_seed(1)
    draw = lambda width: torch.randn(n, width, generator=random).to(dtype)  # noqa: E731
    return draw(2), torch.arange(n) % 4, draw(2), draw(3)


@pytest.mark.parametrize("features", [0, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shapes_and_gradients(features, dtype):
    generator, discriminator = (net.to(dtype) for net in networks(features))
    x, t, x_next, z = inputs(dtype=dtype)
    y, logits = generator(x_next, t, z), discriminator(x, t, x_next)
    assert y.shape == (5, 2) and logits.shape == (5, 1) and y.dtype == logits.dtype == dtype
    (y.sum() + logits.sum()).backward()
    for net in (generator, discriminator):
        for name, p in net.named_parameters():
            trains = name != "features.frequencies"
            assert p.requires_grad == trains, name
            assert (p.grad is not None) == trains, name


def test_everything_matters():
    generator, discriminator = networks()
    x, t, x_next, z = inputs()
    y, logits = generator(x_next, t, z), discriminator(x, t, x_next)
    for other in (
        generator(x_next + 1, t, z),
        generator(x_next, (t + 1) % 4, z),
        generator(x_next, t, z + 1),
    ):
        assert not torch.allclose(y, other)
    for other in (
        discriminator(x + 1, t, x_next),
        discriminator(x, (t + 1) % 4, x_next),
        discriminator(x, t, x_next + 1),
    ):
        assert not torch.allclose(logits, other)


def test_features_are_sines_of_random_projections():
    generator, _ = networks()
    x = inputs()[0]
    features = generator.features
    phase = x @ features.frequencies
    want = torch.cat([x, phase.sin(), phase.cos()], 1)
    torch.testing.assert_close(features(x), want)
    assert features.width == want.shape[1] == 14
    assert "features.frequencies" in generator.state_dict(), "a snapshot must carry them"


def test_tanh_bounds_the_output():
    generator, _ = networks(tanh=True)
    with torch.no_grad():
        generator.layers[-1].bias.fill_(50.0)
    x, t, _, z = inputs()
    assert (generator(x, t, z) == 1).all()


def test_samples_do_not_mix():
    """No batch statistic: R1 and micro-batches act on single samples."""
    generator, discriminator = networks()
    x, t, x_next, z = inputs()
    torch.testing.assert_close(generator(x[2:3], t[2:3], z[2:3]), generator(x, t, z)[2:3])
    part = discriminator(x[2:3], t[2:3], x_next[2:3])
    torch.testing.assert_close(part, discriminator(x, t, x_next)[2:3])
