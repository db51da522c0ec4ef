"""Blocks that run again in the backward pass: equal gradients, fewer tensors kept."""

from collections import Counter

import pytest
import torch
from network_results import (
    assert_equal,
    discriminator,
    discriminator_inputs,
    discriminator_results,
    generator,
    generator_inputs,
    generator_results,
    gradients,
)

from ddgan_fast.models import layers
from ddgan_fast.models.blocks import ResidualBlock
from ddgan_fast.models.discriminator import DiscriminatorBlock
from ddgan_fast.models.layers import DropoutDraws
from ddgan_fast.training.steps import DiscriminatorLoss

needs_tracing = pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch cannot trace R1"
)


@pytest.fixture
def sides(monkeypatch):
    """The larger sides in pixels of all blocks that run, in order."""
    found = []

    def watch(kind, method):
        original = getattr(kind, method)

        def noting(self, x, *rest):
            up = getattr(self, "resample_by", None) == "up"
            found.append(x.shape[2] * (2 if up else 1))
            return original(self, x, *rest)

        monkeypatch.setattr(kind, method, noting)

    watch(ResidualBlock, "_modulated")
    watch(DiscriminatorBlock, "_biased")
    return found


@pytest.mark.parametrize("recompute", [(8,), (4,), (8, 4)])
def test_generator(recompute, sides):
    """Bit for bit: the same operators run on the same numbers."""
    inputs = generator_inputs()
    want = generator_results(generator(), inputs)
    once = dict(Counter(sides))
    assert once == {8: 5, 4: 5}
    sides.clear()
    got = generator_results(generator(recompute=recompute), inputs)
    assert_equal(got, want, 0.0)
    assert Counter(sides) == {side: n * (1 + (side in recompute)) for side, n in once.items()}


@pytest.mark.parametrize("recompute", [(10,), (5,), (10, 5)])
def test_discriminator_with_r1(recompute, sides):
    inputs = discriminator_inputs()
    want = discriminator_results(discriminator(), inputs)
    sides.clear()
    got = discriminator_results(discriminator(recompute=recompute), inputs)
    assert_equal(got, want, 0.0)
    for side in (10, 5):
        assert (sides.count(side) > 1) == (side in recompute), side


def test_bf16_autocast():
    for make, given, results in (
        (generator, generator_inputs(dtype=torch.float32), generator_results),
        (discriminator, discriminator_inputs(dtype=torch.float32), discriminator_results),
    ):
        found = []
        for recompute in ((), (10, 8, 5, 4)):
            network = make(dtype=torch.float32, recompute=recompute)
            with torch.autocast("cpu", torch.bfloat16):
                found.append(results(network, given))
        wide = results(make(dtype=torch.float32), given)
        assert not torch.equal(found[0]["x"], wide["x"]), "autocast does nothing here"
        assert_equal(found[1], found[0], 0.0)


@pytest.mark.parametrize("drawn", [True, False])
def test_dropout_masks_repeat(drawn):
    """From the draws, and from torch's generator."""
    inputs, found = generator_inputs(), []
    for recompute in ((), (8, 4)):
        network = generator({"dropout": 0.4}, recompute=recompute)
        drop = DropoutDraws(torch.tensor([3]), torch.arange(3)) if drawn else None
        torch.manual_seed(5)
        found.append(generator_results(network, inputs, drop=drop))
    assert_equal(found[1], found[0], 0.0)


def test_nothing_is_kept_to_run_again_without_gradients(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("checkpointed")

    monkeypatch.setattr(layers, "checkpoint", refuse)
    with torch.no_grad():
        generator(recompute=(8, 4))(*generator_inputs())
    with pytest.raises(AssertionError, match="checkpointed"):
        generator(recompute=(8, 4))(*generator_inputs())


def traced(module):
    return torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=False)


@pytest.fixture
def tracing():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield
    torch._dynamo.reset()


def test_a_traced_generator(tracing):
    changes = {"attn_resolutions": (), "ch_mult": (1,), "dropout": 0.4}
    inputs = generator_inputs(2)
    drop = DropoutDraws(torch.tensor([3]), torch.arange(2))
    want = generator_results(generator(changes), inputs, drop=drop)
    network = generator(changes, recompute=(8,))
    got = generator_results(traced(network), inputs, drop=drop)
    assert_equal({k.removeprefix("_orig_mod."): v for k, v in got.items()}, want, 1e-10)


def loss_gradients(network, penalize, compiler=lambda module: module):
    x_t, t, x_next = discriminator_inputs(dtype=torch.float32)
    fake = x_t.flip(0)
    network.zero_grad()
    loss = compiler(DiscriminatorLoss(network, 2.0))
    value, _ = loss(x_t.requires_grad_(penalize), x_next, t, fake, penalize)
    value.backward()
    return gradients(network)


@needs_tracing
@pytest.mark.parametrize("penalize", [False, True])
def test_a_traced_discriminator(tracing, penalize):
    network = discriminator(dtype=torch.float32, recompute=(10,))
    want = loss_gradients(discriminator(dtype=torch.float32), penalize)
    assert_equal(loss_gradients(network, penalize, traced), want, 1e-5)
