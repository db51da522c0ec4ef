"""The fully connected discriminator for images of a few pixels."""

import pytest
import torch
import torch.nn.functional as F

from ddgan_fast.config import load_config
from ddgan_fast.models import build_discriminator
from ddgan_fast.models.discriminator import minibatch_stddev


def make(channels=3, layers=3, **options):
    cfg = load_config(
        "digits",
        {
            "model.image_size": 4,
            "model.num_channels": channels,
            "data.source": "synthetic",
            "discriminator.kind": "dense",
            "discriminator.hidden": 12,
            "discriminator.hidden_layers": layers,
            "discriminator.t_emb_dim": 8,
            **options,
        },
    )
    torch.manual_seed(0)
    return build_discriminator(cfg).double()


def inputs(n=4, channels=3):
    random = torch.Generator().manual_seed(1)
    x_t, x_next = torch.randn(2, n, channels, 4, 4, generator=random, dtype=torch.float64)
    return x_t, torch.arange(n) % 4, x_next


@pytest.mark.parametrize("n", [1, 3, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_formula(n, channels):
    """Residual layers over all pixels of both images, the time and the published statistic."""
    net = make(channels, layers=2)
    x_t, t, x_next = inputs(n, channels)
    frequencies = torch.exp(torch.arange(4) * (-torch.log(torch.tensor(1e4)) / 3)).double()
    phase = t[:, None] * frequencies
    deviation = minibatch_stddev(x_t)[:, -1, 0, 0]
    rows = [x_t.reshape(n, -1), x_next.reshape(n, -1), phase.sin(), phase.cos(), deviation[:, None]]
    h = F.leaky_relu(torch.cat(rows, 1) @ net.first.weight.T + net.first.bias, 0.2)
    (layer,) = net.layers
    h = h + F.leaky_relu(h @ layer.weight.T + layer.bias, 0.2)
    want = h @ net.out.weight.T + net.out.bias
    assert net(x_t, t, x_next).shape == (n, 1)
    torch.testing.assert_close(net(x_t, t, x_next), want, rtol=1e-6, atol=1e-6)


def test_memory_order_does_not_matter():
    net = make()
    x_t, t, x_next = inputs()
    last = [x.contiguous(memory_format=torch.channels_last) for x in (x_t, x_next)]
    assert torch.equal(net(x_t, t, x_next), net(last[0], t, last[1]))


def test_penalty_has_gradients():
    """R1 differentiates twice through every layer."""
    net = make(channels=1, layers=2)
    x_t, t, x_next = inputs(channels=1)
    x_t.requires_grad_()
    (g,) = torch.autograd.grad(net(x_t, t, x_next).sum(), x_t, create_graph=True)
    assert (g.abs() > 0).all()
    g.square().sum().backward()
    for name, parameter in net.named_parameters():
        last = name in ("layers.0.bias", "first.bias", "out.bias")
        assert last or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("wrong", [{"model.kind": "mlp"}], ids=["points"])
def test_refused_for_points(wrong):
    with pytest.raises(ValueError, match=r'discriminator\.kind is "dense".*must be "mlp"'):
        load_config("gaussians25", {"discriminator.kind": "dense", **wrong})


def test_no_published_format():
    from ddgan_fast import convert

    cfg = load_config("digits", {"discriminator.kind": "dense"})
    with pytest.raises(ValueError, match=r'published format, not "dense"'):
        convert.discriminator_names(cfg)
