"""One training step against the algorithm written out plainly, and what it must leave alone."""

import contextlib

import pytest
import torch
from plain_step import (
    GAMMA,
    NZ,
    SIZE,
    T,
    assert_close,
    gradients,
    handed_in,
    networks,
    plain_discriminator_step,
    plain_generator_step,
    points,
    randn,
)
from torch import nn

from ddgan_fast.kernels import philox
from ddgan_fast.models.layers import DropoutDraws
from ddgan_fast.training import steps
from ddgan_fast.training.draws import DRAWS_PER_STEP, Draws, MicroBatch, counter_draws
from ddgan_fast.training.steps import GeneratorLoss, TrainStep

MAKERS = pytest.mark.parametrize(
    ("make", "shape"), [(networks, (3, SIZE, SIZE)), (points, (2,))], ids=["images", "points"]
)


@MAKERS
@pytest.mark.parametrize("penalize", [True, False])
def test_discriminator_step_is_the_published_one(make, shape, penalize):
    g, d, diffusion = make()
    images, draws = randn(8, *shape, seed=50), handed_in(8, 60, shape)
    want, want_grads = plain_discriminator_step(g, d, diffusion, images, draws, penalize)
    parts = [values for name, values in want.items() if not name.endswith("_acc")]
    assert all(values.mean() > 1e-3 for values in parts), "or a part would not show"
    step = TrainStep(g, d, diffusion, GAMMA)
    got = step.discriminator_gradients([MicroBatch(images, None, draws)], penalize)
    assert_close(got, want)
    assert_close(gradients(d), want_grads)
    assert all(not v.requires_grad and v.shape == (8,) for v in got.values())
    assert ("D/r1" in got) == penalize


@MAKERS
def test_generator_step_is_the_published_one(make, shape):
    g, d, diffusion = make()
    images, draws = randn(8, *shape, seed=50), handed_in(8, 60, shape)
    want, want_grads = plain_generator_step(g, d, diffusion, images, draws)
    step = TrainStep(g, d, diffusion, GAMMA)
    got = step.generator_gradients([MicroBatch(images, None, draws)])
    assert_close(got, {"G/loss": want})
    assert_close(gradients(g), want_grads)
    assert not got["G/loss"].requires_grad


def test_the_penalty_enters_with_half_gamma_and_nothing_else():
    """Lazy regularisation does not multiply it: its gradient is gamma / 2 that of E |grad|^2."""
    g, d, diffusion = networks()
    micro = MicroBatch(randn(4, 3, SIZE, SIZE, seed=50), None, handed_in(4, 60))
    found = {}
    for gamma, penalize in ((0.0, False), (0.0, True), (1.0, True), (5.0, True)):
        TrainStep(g, d, diffusion, gamma).discriminator_gradients([micro], penalize)
        found[gamma, penalize] = gradients(d)
    assert_close(found[0.0, True], found[0.0, False])
    for name, base in found[0.0, False].items():
        one = found[1.0, True][name] - base
        five = found[5.0, True][name] - base
        torch.testing.assert_close(five, 5 * one, rtol=1e-8, atol=1e-10)
    moved = max((found[1.0, True][n] - b).norm() for n, b in found[0.0, False].items())
    assert moved > 1e-3, "the penalty must matter here, or this test shows nothing"


def both_steps(step, micros, penalize=True):
    d = step.discriminator_gradients(micros, penalize)
    d_grads = gradients(step.discriminator)
    g = step.generator_gradients(micros)
    return {**d, **g}, {**d_grads, **gradients(step.generator)}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_equal_the_whole_batch(dropout, parts):
    """Dealt interleaved, with 4 samples in each (or multiples): equal gradients, R1 included."""
    g, d, diffusion = networks(dropout=dropout)
    n = 4 * parts
    images, index = randn(n, 3, SIZE, SIZE, seed=50), torch.arange(n) + 3
    seeds = philox.step_seeds(7, torch.tensor([11]), DRAWS_PER_STEP)[:5]

    def micro(rows):
        return MicroBatch(
            images[rows], None, counter_draws(seeds, index[rows], T, NZ, torch.float64)
        )

    step = TrainStep(g, d, diffusion, GAMMA)
    whole, whole_grads = both_steps(step, [micro(slice(None))])
    order = torch.cat([torch.arange(n)[k::parts] for k in range(parts)])
    split = [micro(slice(k, None, parts)) for k in range(parts)]
    got, got_grads = both_steps(step, split)
    assert_close(got_grads, whole_grads, 1e-10)
    assert_close(got, {name: values[order] for name, values in whole.items()}, 1e-10)


def test_neighbouring_micro_batches_would_not_equal_it():
    """Why they are dealt interleaved: the sets of the minibatch statistic are strided."""
    g, d, diffusion = networks()
    images, draws = randn(8, 3, SIZE, SIZE, seed=50), handed_in(8, 60)

    def micro(rows):
        pair = tuple(v[rows] for v in draws.pair_noise)
        part = Draws(
            t=draws.t[rows],
            z=draws.z[rows],
            pair_noise=pair,
            posterior_noise=draws.posterior_noise[rows],
        )
        return MicroBatch(images[rows], None, part)

    step = TrainStep(g, d, diffusion, GAMMA)
    whole = both_steps(step, [micro(slice(None))])[0]["D/real"]
    interleaved = both_steps(step, [micro(slice(k, None, 2)) for k in (0, 1)])[0]["D/real"]
    halves = both_steps(step, [micro(slice(0, 4)), micro(slice(4, 8))])[0]["D/real"]
    assert (halves - whole).abs().max() > 1e-5
    torch.testing.assert_close(interleaved, torch.cat([whole[0::2], whole[1::2]]))


def test_a_step_leaves_the_other_network_alone():
    g, d, diffusion = networks()
    micro = MicroBatch(randn(4, 3, SIZE, SIZE, seed=50), None, handed_in(4, 60))
    weights = [p.detach().clone() for p in (*g.parameters(), *d.parameters())]
    traced = []
    g.register_forward_hook(lambda *_: traced.append(torch.is_grad_enabled()))
    step = TrainStep(g, d, diffusion, GAMMA)

    step.discriminator_gradients([micro], True)
    assert traced == [False], "G runs without a graph in D's step"
    assert all(p.grad is None for p in g.parameters())
    assert all(p.grad is not None for p in d.parameters())

    before = gradients(d)
    step.generator_gradients([micro])
    assert traced == [False, True]
    after = gradients(d)
    assert all(torch.equal(before[name], after[name]) for name in before)
    d.zero_grad()
    step.generator_gradients([micro])
    assert all(p.grad is None for p in d.parameters())
    assert all(p.requires_grad for p in (*g.parameters(), *d.parameters()))
    now = (*g.parameters(), *d.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, now, strict=True))


def test_gradients_do_not_pile_up():
    g, d, diffusion = networks()
    micro = MicroBatch(randn(4, 3, SIZE, SIZE, seed=50), None, handed_in(4, 60))
    step = TrainStep(g, d, diffusion, GAMMA)
    first, second = both_steps(step, [micro])[1], both_steps(step, [micro])[1]
    assert all(torch.equal(first[name], second[name]) for name in first)
    # What R1 left behind is gone in the next step without it.
    without = both_steps(TrainStep(g, d, diffusion, GAMMA), [micro], False)[1]
    again = both_steps(step, [micro], False)[1]
    assert all(torch.equal(without[name], again[name]) for name in without)


def test_the_real_images_stay_as_they_are():
    g, d, diffusion = networks()
    images = randn(4, 3, SIZE, SIZE, seed=50)
    copy = images.clone()
    both_steps(TrainStep(g, d, diffusion, GAMMA), [MicroBatch(images, None, handed_in(4, 60))])
    assert torch.equal(images, copy)
    assert not images.requires_grad and images.grad is None


@pytest.mark.parametrize("make", [networks, points])
def test_requires_grad_returns_after_a_failure(make):
    g, d, diffusion = make()
    step = TrainStep(g, d, diffusion, GAMMA)
    trainable = [p.requires_grad for p in d.parameters()]
    assert any(trainable)

    class BoomError(Exception):
        pass

    def boom(*_):
        raise BoomError

    shape = (4, 2) if make is points else (4, 3, SIZE, SIZE)
    micro = MicroBatch(randn(*shape, seed=50), None, handed_in(4, 60, shape[1:]))
    hook = d.register_forward_pre_hook(boom)
    with pytest.raises(BoomError):
        step.generator_gradients([micro])
    hook.remove()
    assert [p.requires_grad for p in d.parameters()] == trainable
    step.discriminator_gradients([micro], True)
    assert [p.grad is not None for p in d.parameters()] == trainable


def test_frozen_parameters_stay_frozen():
    """The frequencies of the points' features are drawn once and never trained."""
    g, d, diffusion = points()
    step = TrainStep(g, d, diffusion, GAMMA)
    micro = MicroBatch(randn(4, 2, seed=50), None, handed_in(4, 60, (2,)))
    for _ in range(2):
        both_steps(step, [micro])
        for net in (g, d):
            assert not net.features.frequencies.requires_grad
            assert net.features.frequencies.grad is None


def test_bytes_with_flips_equal_floats_mirrored():
    g, d, diffusion = networks(torch.float32)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8, generator=random)
    flip = torch.tensor([True, False, False, True])
    seeds = philox.step_seeds(7, torch.tensor([0]), DRAWS_PER_STEP)[:5]
    draws = lambda: counter_draws(seeds, torch.arange(4), T, NZ, torch.float32)  # noqa: E731
    mirrored = images.clone()
    mirrored[flip] = mirrored[flip].flip(2)
    floats = (mirrored.double() / 127.5 - 1).permute(0, 3, 1, 2).float()
    step = TrainStep(g, d, diffusion, GAMMA)
    got = both_steps(step, [MicroBatch(images, flip, draws())])
    want = both_steps(step, [MicroBatch(floats, None, draws())])
    assert_close(got[0], want[0], 1e-4)


def test_a_step_is_a_function_of_batch_and_draws():
    g, d, diffusion = networks(torch.float32, dropout=0.3)
    images = randn(4, 3, SIZE, SIZE, seed=50).float()
    step = TrainStep(g, d, diffusion, GAMMA)

    def run():
        seeds = philox.step_seeds(7, torch.tensor([3]), DRAWS_PER_STEP)[:5]
        draws = counter_draws(seeds, torch.arange(4), T, NZ, torch.float32)
        return both_steps(step, [MicroBatch(images, None, draws)])

    state = torch.get_rng_state()
    first = run()
    assert torch.equal(state, torch.get_rng_state()), "the global generator was used"
    torch.manual_seed(999)
    second = run()
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_wrapped_modules_return_the_whole_loss():
    """What data-parallel training reduces: one module, one loss, one backward for each network."""
    g, d, diffusion = networks()
    wrapped = []

    class Counting(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.calls = inner, 0
            wrapped.append(self)

        def forward(self, *args):
            self.calls += 1
            return self.inner(*args)

    step = TrainStep(g, d, diffusion, GAMMA, wrap=Counting)
    micro = MicroBatch(randn(4, 3, SIZE, SIZE, seed=50), None, handed_in(4, 60))
    got = both_steps(step, [micro])
    want = both_steps(TrainStep(g, d, diffusion, GAMMA), [micro])
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)
    for_d, for_g = wrapped
    assert (for_d.calls, for_g.calls) == (1, 1)
    assert {id(p) for p in for_d.parameters()} == {id(p) for p in d.parameters()}
    assert {id(p) for p in for_g.parameters()} == {id(p) for p in g.parameters()}
    assert isinstance(for_g.inner.inner, GeneratorLoss)


def test_autocast_covers_the_forward_passes_and_losses_stay_wide():
    g, d, diffusion = networks(torch.float32)
    entered = []

    @contextlib.contextmanager
    def autocast():
        entered.append(torch.is_grad_enabled())
        with torch.autocast("cpu", torch.bfloat16):
            yield

    micro = MicroBatch(randn(4, 3, SIZE, SIZE, seed=50).float(), None, handed_in(4, 60))
    micro.draws.z = micro.draws.z.float()
    dtypes, backwards = [], []

    def look(module, inputs, output):
        dtypes.append(output.dtype)
        if output.requires_grad:
            output.register_hook(lambda g: backwards.append(torch.is_autocast_enabled("cpu")))

    d.conv_in.register_forward_hook(look)
    logits = []
    d.register_forward_hook(lambda module, inputs, output: logits.append(output.dtype))
    step = TrainStep(g, d, diffusion, GAMMA, autocast=autocast)
    stats, grads = both_steps(step, [micro])
    assert entered == [False, True, True]
    assert set(dtypes) == {torch.bfloat16}
    assert set(logits) == {torch.float32}  # of the last layer
    assert backwards and not any(backwards)
    assert {v.dtype for v in stats.values()} == {torch.float32}
    assert {v.dtype for v in grads.values()} == {torch.float32}
    assert all(torch.isfinite(v).all() for v in (*stats.values(), *grads.values()))


# Draws


def test_draws_of_a_step():
    assert DRAWS_PER_STEP == 10
    seeds = philox.step_seeds(1, torch.tensor([5]), DRAWS_PER_STEP)
    index = torch.arange(4000)
    for_d, for_g = (
        counter_draws(part, index, T, NZ, torch.float64) for part in (seeds[:5], seeds[5:])
    )
    for draws in (for_d, for_g):
        assert draws.t.dtype == torch.int64
        assert torch.bincount(draws.t, minlength=T).min() > 850 and draws.t.max() == T - 1
        assert draws.z.shape == (4000, NZ) and draws.z.dtype == torch.float64
        assert abs(draws.z.mean()) < 0.04 and abs(draws.z.std() - 1) < 0.03
        assert draws.pair_noise is None and draws.posterior_noise is None
    assert not torch.equal(for_d.t, for_g.t) and not torch.equal(for_d.z, for_g.z)
    part = counter_draws(seeds[:5], index[7::3], T, NZ, torch.float64)
    assert torch.equal(part.t, for_d.t[7::3]) and torch.equal(part.z, for_d.z[7::3])


def test_no_two_draws_of_neighbouring_steps_share_a_key():
    """Dropout counts its layers upwards from its seed: those keys must be free, too."""
    keys = []
    for step in range(300):
        seeds = philox.step_seeds(1, torch.tensor([step]), DRAWS_PER_STEP)
        for part in (seeds[:5], seeds[5:]):
            draws = counter_draws(part, torch.arange(1), T, NZ, torch.float32)
            drop = draws.drop.seed.item()
            assert isinstance(draws.drop, DropoutDraws)
            keys += [part[0].item(), part[2].item(), drop]
            keys += [draws.pair_seed.item(), draws.posterior_seed.item()]
            keys += [drop + layer for layer in range(1, 100)]
    assert len(set(keys)) == len(keys)


def test_micro_batches_of_unequal_size_count_by_their_samples():
    shares = [share for _, share, _ in steps.shares([micro_of(6), micro_of(2)])]
    assert shares == [0.75, 0.25]


def micro_of(n):
    t = torch.zeros(n, dtype=torch.int64)
    return MicroBatch(torch.zeros(n, 1), None, Draws(t=t, z=torch.zeros(n, 1)))
