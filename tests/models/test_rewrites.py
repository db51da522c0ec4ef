"""Every exact rewrite against the published order: values, gradients, R1's gradients."""

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
)
from torch.utils._python_dispatch import TorchDispatchMode

from ddgan_fast.models import Rewrites

PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)
OPTIONS = {
    "one adagn": {"resblock_type": "biggan_oneadagn"},
    "ddpm": {"resblock_type": "ddpm", "resamp_with_conv": False},
    "no fir": {"fir": False},
    "unconditional": {"conditional": False},
    "output skip": {"progressive": "output_skip", "progressive_input": "input_skip"},
}


def test_names():
    assert Rewrites.parse("auto") == Rewrites()
    assert Rewrites.parse("none") == Rewrites(False, False, False, False)
    assert Rewrites.parse("all") == Rewrites(True, True, True, True)
    assert Rewrites.parse("sdpa, joint_d") == Rewrites(False, False, True, True)
    with pytest.raises(ValueError, match=r'run\.rewrites is "sdpa, flash": there is no .*flash'):
        Rewrites.parse("sdpa, flash")
    with pytest.raises(ValueError, match=r'run\.rewrites is "sdpa,all": there is no rewrite'):
        Rewrites.parse("sdpa,all")


@PRECISIONS
@pytest.mark.parametrize("name", ["skip_low", "joint_styles", "sdpa"])
def test_generator(name, dtype, tolerance):
    assert_rewritten_equals_plain(name, {}, dtype, tolerance)


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("name", ["skip_low", "joint_styles", "sdpa"])
def test_other_generators(name, changes):
    assert_rewritten_equals_plain(name, changes, torch.float64, 1e-10)


def assert_rewritten_equals_plain(name, changes, dtype, tolerance):
    inputs = generator_inputs(dtype=dtype)
    plain, rewritten = (generator(changes, dtype, rewrites=words) for words in ("none", name))
    assert rewritten.state_dict().keys() == plain.state_dict().keys()
    want = generator_results(plain, inputs)
    assert_equal(generator_results(rewritten, inputs), want, tolerance)


class Operators(TorchDispatchMode):
    """Notes the names of all operators."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_generator_rewrites_are_others_than_the_published_order():
    """Or the tests above would compare a thing with itself."""
    x, t, z = generator_inputs()

    def operators(words):
        network = generator(rewrites=words)
        with Operators() as seen, torch.no_grad():
            network(x, t, z)
        return seen.names

    none = operators("none")
    assert "_softmax" in none and "_softmax" not in operators("sdpa")
    assert operators("joint_styles").count("addmm") < none.count("addmm") - 8
    assert operators("skip_low").count("upfirdn2d") == none.count("upfirdn2d") + 1


@PRECISIONS
@pytest.mark.parametrize("kind", ["custom", "small"])
def test_discriminator_styles(kind, dtype, tolerance):
    inputs = discriminator_inputs(dtype=dtype, shape=(3, 16, 16))
    changes = {"kind": kind}
    want = discriminator_results(discriminator(changes, dtype, rewrites="none"), inputs)
    got = discriminator_results(discriminator(changes, dtype, rewrites="joint_styles"), inputs)
    assert "R1 blocks.0.conv1.weight" in want
    assert_equal(got, want, tolerance)


KINDS = {
    "convolutional": ({}, (3, 10, 10)),
    "dense": ({"kind": "dense", "hidden": 16, "hidden_layers": 2}, (3, 10, 10)),
    "points": ({"kind": "mlp", "hidden": 16, "hidden_layers": 2, "point_features": 3}, (3,)),
}


@PRECISIONS
@pytest.mark.parametrize("n", [4, 8, 6, 5, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_two_halves_of_a_batch(kind, n, dtype, tolerance):
    """Real and fake images at once: logits, gradients, and R1 of the first half only."""
    changes, shape = KINDS[kind]
    network = discriminator(changes, dtype)
    inputs = discriminator_inputs(2 * n, shape, dtype)
    halves = [tuple(v[k * n : (k + 1) * n] for v in inputs) for k in range(2)]

    def run(forward):
        network.zero_grad()
        real_x = halves[0][0].clone().requires_grad_()
        real, fake = forward((real_x, *halves[0][1:]), halves[1])
        (g,) = torch.autograd.grad(real.sum(), real_x, create_graph=True)
        (g.square().sum() + real.square().sum() + fake.exp().sum()).backward()
        return {"real": real, "fake": fake, "g": g} | {
            name: p.grad.clone() for name, p in network.named_parameters() if p.requires_grad
        }

    def joint(*pair):
        both = [torch.cat(parts) for parts in zip(*pair, strict=True)]
        return network(*both, chunks=2).chunk(2)

    want = run(lambda *pair: [network(*half) for half in pair])
    assert_equal(run(joint), want, tolerance)
    if kind != "points" and n > 1:
        naive = network(*inputs)[:n]
        assert (naive - want["real"]).abs().max() > 1e-6, "the halves must matter to each other"


def test_the_generator_traces_with_all():
    network, inputs = generator({"attn_resolutions": ()}, rewrites="all"), generator_inputs(2)
    want = generator_results(network, inputs)
    torch._dynamo.reset()
    traced = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
    got = generator_results(traced, inputs)
    torch._dynamo.reset()
    assert_equal({k.removeprefix("_orig_mod."): v for k, v in got.items()}, want, 1e-10)
