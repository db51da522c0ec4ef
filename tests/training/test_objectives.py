"""The second discriminator and the terms of the loss, against the step written out plainly."""

import pytest
import torch
from plain_step import (
    GAMMA,
    NZ,
    SIZE,
    T,
    assert_close,
    fill,
    gradients,
    handed_in,
    networks,
    plain_discriminator_step,
    plain_fake,
    plain_pair,
    points,
    randn,
    softplus,
)

from ddgan_fast.config import Config, DiscriminatorConfig, ModelConfig
from ddgan_fast.kernels import philox
from ddgan_fast.models import build_discriminator
from ddgan_fast.training import terms
from ddgan_fast.training.draws import DRAWS_PER_STEP, MicroBatch, counter_draws
from ddgan_fast.training.second_judge import SecondJudge
from ddgan_fast.training.steps import TrainStep
from ddgan_fast.training.terms import WeightedTerm, known_terms, register, weighted_terms

MAKERS = pytest.mark.parametrize(
    ("make", "shape"), [(networks, (3, SIZE, SIZE)), (points, (2,))], ids=["images", "points"]
)
X0_WEIGHT, X0_GAMMA, WEIGHTS = 0.7, 2.0, {"l2": 0.5, "l1": 1.5}


def judge_network(make, dtype=torch.float64):
    of_points = {"kind": "mlp", "t_emb_dim": 8, "hidden": 8, "point_features": 3}
    of_images = {"kind": "custom", "ngf": 4, "t_emb_dim": 8}
    of_images |= {"block_mults": (2, 2), "block_downs": (True, False)}
    chosen = of_points if make is points else of_images
    cfg = Config(
        model=ModelConfig(num_channels=2 if make is points else 3),
        discriminator=DiscriminatorConfig(**chosen),
    )
    judge = fill(build_discriminator(cfg, images=1), 2000).to(dtype)
    if make is networks:
        with torch.no_grad():
            judge.linear_out.weight.mul_(0.1)
            judge.linear_out.bias.zero_()
    return judge


def parts(make, dtype=torch.float64, joint=False, **model):
    g, d, diffusion = networks(dtype, **model) if make is networks else make()
    d0 = judge_network(make, dtype)
    judge = SecondJudge(d0, X0_WEIGHT, X0_GAMMA, joint=joint)
    step = TrainStep(
        g, d, diffusion, GAMMA, terms=weighted_terms(WEIGHTS), judge=judge, joint=joint
    )
    return g, d, d0, diffusion, step


def plain_judge_step(g, d0, diffusion, images, draws, penalize):
    """Three backward passes over E softplus(-D0(x0)), E softplus(D0(x0')) and R1 at x0."""
    d0.zero_grad()
    _, x_next = plain_pair(diffusion.tables, images, draws)
    now = torch.zeros_like(draws.t)
    x0 = images.clone().requires_grad_()
    real = d0(x0, now)
    softplus(-real).mean().backward(retain_graph=True)
    values = {"D0/real": softplus(-real).flatten(), "D0/real_acc": (real > 0).flatten().float()}
    if penalize:
        (slope,) = torch.autograd.grad(real.sum(), x0, create_graph=True)
        penalty = slope.flatten(1).norm(dim=1) ** 2
        (X0_GAMMA / 2 * penalty.mean()).backward()
        values |= {"D0/r1": penalty, "D0/r1_norm": penalty.sqrt()}
    with torch.no_grad():
        predicted = g(x_next, draws.t, draws.z)
    fake = d0(predicted, now)
    softplus(fake).mean().backward()
    values |= {"D0/fake": softplus(fake).flatten(), "D0/fake_acc": (fake < 0).flatten().float()}
    return values, gradients(d0)


def plain_generator_step(g, d, d0, diffusion, images, draws):
    g.zero_grad()
    _, x_next = plain_pair(diffusion.tables, images, draws)
    predicted = g(x_next, draws.t, draws.z)
    fake = d(plain_fake(lambda *_: predicted, diffusion.tables, x_next, draws), draws.t, x_next)
    error = (predicted - images).flatten(1)
    values = {
        "G/loss": softplus(-fake).flatten(),
        "G/x0": softplus(-d0(predicted, torch.zeros_like(draws.t))).flatten(),
        "G/l2": (error**2).mean(1),
        "G/l1": error.abs().mean(1),
    }
    factors = {"G/loss": 1.0, "G/x0": X0_WEIGHT, "G/l2": 0.5, "G/l1": 1.5}
    sum(factors[name] * value.mean() for name, value in values.items()).backward()
    return values, gradients(g)


@MAKERS
@pytest.mark.parametrize(("penalize", "joint"), [(True, False), (False, False), (False, True)])
def test_the_steps_are_those_written_out(make, shape, penalize, joint):
    g, d, d0, diffusion, step = parts(make, joint=joint)
    images, draws = randn(8, *shape, seed=50).clamp(-1, 1), handed_in(8, 60, shape)
    wants = [
        plain_discriminator_step(g, d, diffusion, images, draws, penalize),
        plain_judge_step(g, d0, diffusion, images, draws, penalize),
        plain_generator_step(g, d, d0, diffusion, images, draws),
    ]
    copy, micro = images.clone(), MicroBatch(images, None, draws)
    found = step.discriminator_gradients([micro], penalize)
    gots = [(found, gradients(d))]
    found = step.judge_gradients([micro], penalize)
    gots.append((found, gradients(d0)))
    gots.append((step.generator_gradients([micro]), gradients(g)))
    for (got, got_gradients), (want, want_gradients) in zip(gots, wants, strict=True):
        assert_close(got, want)
        assert_close(got_gradients, want_gradients)
        assert all(not v.requires_grad and v.shape == (8,) for v in got.values())
        assert all(v.mean() > 1e-4 for k, v in want.items() if not k.endswith("_acc"))
    assert torch.equal(images, copy) and not images.requires_grad


def all_steps(step, micros, penalize=True):
    stats = step.discriminator_gradients(micros, penalize)
    stats |= step.judge_gradients(micros, penalize)
    found = {f"d.{k}": v for k, v in gradients(step.discriminator).items()}
    found |= {f"d0.{k}": v for k, v in gradients(step.judge.network).items()}
    stats |= step.generator_gradients(micros)
    return stats, found | {f"g.{k}": v for k, v in gradients(step.generator).items()}


def test_micro_batches_equal_the_whole_batch():
    *_, step = parts(networks, dropout=0.4)
    images, index = randn(8, 3, SIZE, SIZE, seed=50), torch.arange(8) + 3
    seeds = philox.step_seeds(7, torch.tensor([11]), DRAWS_PER_STEP)[:5]

    def micro(rows):
        draws = counter_draws(seeds, index[rows], T, NZ, torch.float64)
        return MicroBatch(images[rows], None, draws)

    whole, whole_gradients = all_steps(step, [micro(slice(None))])
    got, got_gradients = all_steps(step, [micro(slice(k, None, 2)) for k in (0, 1)])
    order = torch.cat([torch.arange(8)[k::2] for k in (0, 1)])
    assert_close(got_gradients, whole_gradients, 1e-10)
    assert_close(got, {name: values[order] for name, values in whole.items()}, 1e-10)


def test_bytes_with_flips_equal_floats_mirrored():
    """Terms and D0 see the image that the forward diffusion saw."""
    *_, step = parts(networks, torch.float32)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8, generator=random)
    flip = torch.tensor([True, False, False, True])
    seeds = philox.step_seeds(7, torch.tensor([0]), DRAWS_PER_STEP)[:5]
    mirrored = images.clone()
    mirrored[flip] = mirrored[flip].flip(2)
    floats = (mirrored.double() / 127.5 - 1).permute(0, 3, 1, 2).float()
    one, other = (
        all_steps(
            step,
            [MicroBatch(x, f, counter_draws(seeds, torch.arange(4), T, NZ, torch.float32))],
        )
        for x, f in ((images, flip), (floats, None))
    )
    assert_close(one[0], other[0], 1e-4)
    for network in ("d.", "d0.", "g."):  # single ones, as of a key's bias, may be rounding alone
        pair = (
            torch.cat([v.flatten() for k, v in found.items() if k.startswith(network)])
            for found in (one[1], other[1])
        )
        torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-5)


def test_a_step_leaves_the_other_networks_alone():
    g, d, d0, _, step = parts(networks)
    micro = MicroBatch(randn(4, 3, SIZE, SIZE, seed=50), None, handed_in(4, 60))
    calls = []
    g.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    step.discriminator_gradients([micro], True)
    assert all(p.grad is None for net in (g, d0) for p in net.parameters())
    step.judge_gradients([micro], True)
    assert calls == [False], "D0 takes the prediction that D's update has made"
    assert all(p.grad is not None for p in d0.parameters())
    before = gradients(d) | {f"0.{name}": value for name, value in gradients(d0).items()}
    step.generator_gradients([micro])
    after = gradients(d) | {f"0.{name}": value for name, value in gradients(d0).items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.requires_grad for net in (g, d, d0) for p in net.parameters())


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(terms, "_TERMS", dict(terms._TERMS))


def test_a_term_of_ones_own(registry):
    """It sees the pair of the sample, and gets its weight, in the mean over all samples."""
    seen = []

    @register("mine")
    def mine(context):
        seen.append(context)
        return context.x0_prediction.flatten(1).sum(1)

    assert known_terms() == ["l1", "l2", "mine"]
    g, d, diffusion = networks()
    images, draws = randn(8, 3, SIZE, SIZE, seed=50), handed_in(8, 60)
    plain, own = ({}, {"mine": 3.0})
    found = []
    for weights in (plain, own):
        step = TrainStep(g, d, diffusion, GAMMA, terms=weighted_terms(weights))
        stats = step.generator_gradients([MicroBatch(images, None, draws)])
        found.append(gradients(g))
    assert stats.keys() == {"G/loss", "G/mine"}
    (context,) = seen
    x_t, x_next = plain_pair(diffusion.tables, images, draws)
    torch.testing.assert_close(context.x_t, x_t, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(context.x_next, x_next, rtol=1e-6, atol=1e-6)
    assert torch.equal(context.x0, images) and torch.equal(context.t, draws.t)
    g.zero_grad()
    (3.0 * g(context.x_next, draws.t, draws.z).flatten(1).sum(1).mean()).backward()
    added = {name: found[1][name] - value for name, value in found[0].items()}
    assert_close(added, gradients(g))


def test_a_term_that_returns_a_mean_is_refused():
    g, d, diffusion = networks()
    term = WeightedTerm("mine", 1.0, lambda context: context.x0.mean())
    step = TrainStep(g, d, diffusion, GAMMA, terms=[term])
    micro = MicroBatch(randn(4, 3, SIZE, SIZE, seed=50), None, handed_in(4, 60))
    with pytest.raises(ValueError, match=r"'mine' of the loss returned the shape \[\]: it must"):
        step.generator_gradients([micro])


@pytest.mark.parametrize("name", ["l1", "loss", "x0", "grad_norm", "two words"])
def test_names_that_a_term_cannot_have(name):
    with pytest.raises(ValueError, match=rf"'{name}'"):
        register(name)


def test_the_second_discriminator_sees_one_image():
    for make, shape in ((networks, (3, SIZE, SIZE)), (points, (2,))):
        d0 = judge_network(make)
        x, t = randn(4, *shape, seed=1), torch.zeros(4, dtype=torch.int64)
        assert d0(x, t).shape == (4, 1)
    cfg = Config(
        model=ModelConfig(image_size=4, num_channels=1),
        discriminator=DiscriminatorConfig(kind="dense", hidden=8, t_emb_dim=4),
    )
    one, two = build_discriminator(cfg, images=1), build_discriminator(cfg)
    assert two.first.in_features - one.first.in_features == 16
    assert one(torch.randn(4, 1, 4, 4), t).shape == (4, 1)
