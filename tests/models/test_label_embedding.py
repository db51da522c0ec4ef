"""Classes in the networks: what the label changes, what it leaves, and the null class."""

import pytest
import torch

from ddgan_fast.config import Config, DiscriminatorConfig, ModelConfig
from ddgan_fast.models import build_discriminator, build_generator

TINY = {
    "image_size": 8,
    "num_channels": 1,
    "nz": 4,
    "z_emb_dim": 8,
    "n_mlp": 0,
    "num_channels_dae": 8,
    "ch_mult": (1,),
    "num_res_blocks": 1,
    "attn_resolutions": (),
}
POINTS = {"kind": "mlp", "num_channels": 2, "nz": 2, "tanh": False, "hidden": 16}
MODELS = {"ncsnpp": TINY, "mlp": POINTS}
DISCRIMINATORS = {
    "custom": DiscriminatorConfig(
        kind="custom", ngf=4, t_emb_dim=8, block_mults=(2,), block_downs=(True,)
    ),
    "small": DiscriminatorConfig(kind="small", ngf=4, t_emb_dim=8),
    "dense": DiscriminatorConfig(kind="dense", hidden=16, t_emb_dim=8),
    "mlp": DiscriminatorConfig(kind="mlp", hidden=16, t_emb_dim=8),
}
CLASSES = 3


def built(kind, classes, build, d="custom"):
    torch.manual_seed(0)
    model = ModelConfig(**MODELS[kind], num_classes=classes)
    network = build(Config(model=model, discriminator=DISCRIMINATORS[d]))
    wake(network)
    return network


def wake(network):
    """Some layers start at 0, and would hide what comes before them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "label" not in name:
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(kind):
    shape = (4, 2) if kind == "mlp" else (4, 1, 8, 8)
    return randn(*shape, seed=2), torch.tensor([0, 1, 2, 3]), randn(*shape, seed=3)


@pytest.mark.parametrize("kind", ["ncsnpp", "mlp"])
def test_generator_and_its_class(kind):
    g = built(kind, CLASSES, build_generator)
    x, t, _ = inputs(kind)
    z = randn(4, g.cfg.nz, seed=4)
    label = torch.tensor([0, 1, 2, 3])
    out = g(x, t, z, label=label)
    null = g(x, t, z)
    assert torch.equal(out[3], null[3])
    assert all(not torch.allclose(out[i], null[i]) for i in range(3))
    # Each class is a row of its own: the same inputs with permuted classes.
    assert not torch.allclose(g(x, t, z, label=label.roll(1))[:3], out[:3])
    plain = built(kind, 0, build_generator)
    assert not any("label" in name for name in plain.state_dict())
    # With an embedding of zeros the networks are the same, from the same initial weights.
    with torch.no_grad():
        g.label_embed.weight.zero_()
    torch.testing.assert_close(g(x, t, z, label=label), plain(x, t, z), rtol=0, atol=0)
    with pytest.raises(ValueError, match="network without classes"):
        plain(x, t, z, label=label)


@pytest.mark.parametrize("d", DISCRIMINATORS)
def test_discriminator_and_its_class(d):
    kind = "mlp" if d == "mlp" else "ncsnpp"
    network = built(kind, CLASSES, build_discriminator, d)
    x, t, x_next = inputs(kind)
    label = torch.tensor([0, 1, 2, 3])
    out = network(x, t, x_next, label=label)
    null = network(x, t, x_next)
    assert torch.equal(network(x, t, x_next, label=torch.full_like(t, CLASSES)), null)
    assert all(not torch.allclose(out[i], null[i]) for i in range(3))
    twice = network(*(torch.cat((v, v)) for v in (x, t, x_next)), chunks=2, label=label.repeat(2))
    torch.testing.assert_close(twice, out.repeat(2, 1))
    plain = built(kind, 0, build_discriminator, d)
    assert not any("label" in name for name in plain.state_dict())
    with torch.no_grad():
        network.label_embed.weight.zero_()
    torch.testing.assert_close(
        network(x, t, x_next, label=label), plain(x, t, x_next), rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="network without classes"):
        plain(x, t, x_next, label=label)


def test_every_row_gets_a_gradient():
    g = built("ncsnpp", CLASSES, build_generator)
    x, t, _ = inputs("ncsnpp")
    g(x, t, randn(4, 4, seed=4), label=torch.tensor([0, 1, 3, 3])).square().sum().backward()
    moved = g.label_embed.weight.grad.abs().sum(1) > 0
    assert moved.tolist() == [True, True, False, True]
