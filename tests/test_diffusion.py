"""The diffusion's tables and the sampling loop."""

import math

import numpy as np
import pytest
import torch

from ddgan_fast import diffusion as module
from ddgan_fast.config import ModelConfig
from ddgan_fast.diffusion import Diffusion
from ddgan_fast.kernels import philox

SCHEDULES = {
    "vp": {},
    "vp, other rates": {"beta_min": 0.5, "beta_max": 10.0},
    "geometric": {"schedule": "geometric", "beta_min": 0.01, "beta_max": 0.9},
}
every_schedule = pytest.mark.parametrize("rates", SCHEDULES.values(), ids=SCHEDULES.keys())


def seed_of(value):
    return torch.tensor([value])


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def variance(s, schedule="vp", beta_min=0.1, beta_max=20.0):
    if schedule == "geometric":
        return beta_min * (beta_max / beta_min) ** s
    return 1 - math.exp(2 * (-0.25 * s * s * (beta_max - beta_min) - 0.5 * s * beta_min))


@every_schedule
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_tables(rates, steps):
    """The definition, one step at a time, in Python floats from the float32 rates."""
    d = Diffusion(steps, **rates)
    kept = [1 - variance(i / steps * (1 - 1e-3) + 1e-3, **rates) for i in range(steps + 1)]
    betas = [1e-8] + [1 - kept[i] / kept[i - 1] for i in range(1, steps + 1)]
    betas = [float(np.float32(b)) for b in betas]
    assert d.q_tables.shape == (steps, 4) and d.posterior_tables.shape == (steps, 3)
    assert d.q_tables.dtype == d.posterior_tables.dtype == torch.float32
    signal = math.sqrt(1 - betas[0])
    cum = 1.0
    for t in range(steps):
        next_signal, next_sigma = math.sqrt(1 - betas[t + 1]), math.sqrt(betas[t + 1])
        sigma = math.sqrt(max(1 - signal**2, 0)) if t else 0.0
        want = [signal, sigma, next_signal, next_sigma]
        np.testing.assert_allclose(d.q_tables[t].tolist(), want, rtol=2e-5, atol=1e-6)
        before, cum = cum, cum * (1 - betas[t + 1])
        spread = betas[t + 1] * (1 - before) / (1 - cum)
        want = [
            betas[t + 1] * math.sqrt(before) / (1 - cum),
            (1 - before) * math.sqrt(1 - betas[t + 1]) / (1 - cum),
            math.sqrt(spread) if t else 0.0,
        ]
        np.testing.assert_allclose(d.posterior_tables[t].tolist(), want, rtol=3e-4, atol=3e-5)
        signal *= next_signal


def test_published_values():
    """Numbers of the specification for four steps."""
    d = Diffusion(4)
    close = {"rtol": 0, "atol": 2e-6}
    a_s_cum = [1, 0.72231901, 0.28049237, 0.05855665]
    np.testing.assert_allclose(d.q_tables[:, 0].tolist(), a_s_cum, **close)
    assert d.q_tables[0, 1] == 0
    coefficients = [1.0000001, 0.66577846, 0.26919085, 0.05782156]
    np.testing.assert_allclose(d.posterior_tables[:, 0].tolist(), coefficients, **close)
    coefficients = [0, 0.20157626, 0.19300087, 0.11185222]
    np.testing.assert_allclose(d.posterior_tables[:, 1].tolist(), coefficients, **close)
    spread = np.sqrt([0, 0.44081914, 0.88420242, 0.98406076])
    np.testing.assert_allclose(d.posterior_tables[:, 2].tolist(), spread, **close)


@every_schedule
def test_the_posterior_inverts_the_forward_process(rates):
    """Bayes: mean and variance of x_t given x_0 and x_{t+1} follow from the forward tables."""
    d = Diffusion(4, **rates).double()
    for t in range(1, 4):
        signal, sigma, step_signal, step_sigma = d.q_tables[t].tolist()
        precision = 1 / sigma**2 + step_signal**2 / step_sigma**2
        want = [signal / sigma**2 / precision, step_signal / step_sigma**2 / precision]
        got = d.posterior_tables[t].tolist()
        np.testing.assert_allclose(got, [*want, precision**-0.5], rtol=1e-3, atol=1e-6)


def test_tables_move_with_the_module_and_are_no_state():
    d = Diffusion(4)
    assert not d.state_dict() and not list(d.parameters())
    assert {name for name, _ in d.named_buffers()} == {"q_tables", "posterior_tables"}
    assert d.to("meta").q_tables.device.type == "meta"


def test_from_config():
    cfg = ModelConfig(num_timesteps=3, schedule="geometric", beta_min=0.02, beta_max=0.8)
    got = Diffusion.from_config(cfg)
    want = Diffusion(3, "geometric", 0.02, 0.8)
    assert got.num_timesteps == 3
    assert torch.equal(got.q_tables, want.q_tables)
    assert torch.equal(got.posterior_tables, want.posterior_tables)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"schedule": "cosine"}, "schedule is 'cosine': choose"),
        ({"num_timesteps": 0}, "num_timesteps is 0: it must be at least 1"),
        ({"schedule": "geometric"}, "geometric schedule needs 0 < beta_min < beta_max < 1"),
        ({"schedule": "geometric", "beta_min": 0.1, "beta_max": 1.0}, "got 0.1 and 1.0"),
        ({"schedule": "geometric", "beta_min": 0.0, "beta_max": 0.5}, "got 0.0 and 0.5"),
        ({"schedule": "geometric", "beta_min": 0.6, "beta_max": 0.5}, "got 0.6 and 0.5"),
    ],
)
def test_refuses_what_has_no_tables(arguments, words):
    with pytest.raises(ValueError, match=words):
        Diffusion(**({"num_timesteps": 4} | arguments))


def test_q_sample_at_zero_returns_the_data():
    d, x0 = Diffusion(4).double(), randn(2, 3, 4, 4)
    t = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(d.q_sample(x0, t, randn(2, 3, 4, 4, seed=1)), x0)
    x_t, _ = d.q_sample_pair(x0, t, seed=seed_of(3))
    assert torch.equal(x_t, x0)


def test_q_sample_is_the_first_half_of_the_pair():
    d, x0, n0, n1 = Diffusion(4).double(), *(randn(4, 2, 3, 3, seed=i) for i in range(3))
    t = torch.tensor([0, 1, 2, 3])
    x_t, x_next = d.q_sample_pair(x0, t, noise=(n1, n0))
    torch.testing.assert_close(d.q_sample(x0, t, n0), x_t)
    points = d.q_sample(x0[:, 0, 0], t, n0[:, 0, 0])
    torch.testing.assert_close(points, x_t[:, 0, 0])
    assert x_next.std() > 0


# Sampling


def linear(x, t, z):
    """A stand-in generator in which everything shows."""
    shift = 0.3 * z.mean(1) + 0.1 * t
    return 0.5 * x + shift.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)


SHAPES = [(3, 4, 4), (2,)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_loop_with_noise_handed_in(shape, steps):
    d = Diffusion(steps).double()
    x_T, z, noise = randn(5, *shape), randn(steps, 5, 6, seed=1), randn(steps, 5, *shape, seed=2)
    want = x_T
    for i in reversed(range(steps)):
        t = torch.full((5,), i)
        a, b, std = d.posterior_tables[i].tolist()
        want = a * linear(want, t, z[i]) + b * want + (std * noise[i] if i else 0)
    as_dict = {i: z[i] for i in range(steps)}
    for handed in (z, list(z), as_dict):
        got = d.sample_loop(linear, x_T, z=handed, noise=noise)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    poisoned = noise.clone()
    poisoned[0] = 1e6
    got = d.sample_loop(linear, x_T, z=z, noise=poisoned)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loop_from_a_seed_equals_its_noise_handed_in(shape, monkeypatch):
    d, x_T, index = Diffusion(4), randn(5, *shape).float(), torch.tensor([3, 2**34, 0, 9, 1])
    keys = []
    real = module.sample_posterior

    def spy(*args, **kwargs):
        keys.append(kwargs["seed"].clone())
        return real(*args, **kwargs)

    latents = {}

    def generator(x, t, z):
        latents[t[0].item()] = z
        return linear(x, t, z)

    monkeypatch.setattr(module, "sample_posterior", spy)
    got = d.sample_loop(generator, x_T, nz=6, seed=seed_of(42), index=index)
    monkeypatch.undo()
    assert all(z.shape == (5, 6) for z in latents.values())
    noise = {3 - i: philox.normal(key, index, shape) for i, key in enumerate(keys)}
    want = d.sample_loop(linear, x_T, z=latents, noise=noise)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def drawn_keys(monkeypatch, seed, steps=4):
    """Every Philox key that one call of draw uses."""
    keys = []
    normal, posterior = philox.normal, module.sample_posterior

    def spy_normal(key, *args, **kwargs):
        keys.append(key.item())
        return normal(key, *args, **kwargs)

    def spy_posterior(*args, **kwargs):
        keys.append(kwargs["seed"].item())
        return posterior(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module.philox, "normal", spy_normal)
        patch.setattr(module, "sample_posterior", spy_posterior)
        # The posterior op draws by itself, through another reference to the same module.
        Diffusion(steps).draw(linear, (3, 2, 2), 6, seed_of(seed), torch.arange(2))
    return keys


def test_no_two_draws_of_a_sample_share_a_key(monkeypatch):
    """Nor do samples of neighbouring seeds, which previews of consecutive steps may use."""
    seen = set()
    for seed in range(-3, 30):
        # x_T, four latents and four times noise; the op's own draw reuses the key it was given.
        used = set(drawn_keys(monkeypatch, seed))
        assert len(used) == 9
        assert not used & seen
        seen |= used


def test_noise_of_different_steps_is_uncorrelated():
    d, index = Diffusion(4), torch.arange(2000)
    latents = {}

    def generator(x, t, z):
        latents[t[0].item()] = z
        return torch.zeros_like(x)

    x = philox.normal(seed_of(8), index, (6,))
    d.sample_loop(generator, x, nz=6, seed=seed_of(8), index=index)
    values = [x, *latents.values()]
    for i, a in enumerate(values):
        for b in values[:i]:
            # 12,000 pairs: five standard deviations are 0.046.
            assert abs((a * b).mean()) < 0.046


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_draw_depends_on_seed_and_position_alone(shape):
    d, index = Diffusion(4), torch.tensor([5, 0, 2**33, 17, 1, 3])

    def draw(index, seed=11):
        return d.draw(linear, shape, 6, seed_of(seed), index)

    whole = draw(index)
    assert whole.shape == (6, *shape) and torch.isfinite(whole).all()
    assert torch.equal(whole, draw(index))
    for rows in ([0], [1, 2, 3], [5, 4]):
        torch.testing.assert_close(draw(index[rows]), whole[rows], rtol=0, atol=1e-6)
    assert not torch.allclose(whole, draw(index, seed=12))
    assert not torch.allclose(whole, draw(index + 1))
    assert len({tuple(v.flatten().tolist()) for v in whole}) == 6
    before = torch.get_rng_state()
    draw(index)
    assert torch.equal(before, torch.get_rng_state())


def test_images_are_drawn_channels_last_and_without_a_graph():
    weight = torch.ones((), requires_grad=True)
    orders = []

    def generator(x, t, z):
        orders.append(x.is_contiguous(memory_format=torch.channels_last))
        return weight * linear(x, t, z)

    got = Diffusion(2).draw(generator, (3, 4, 4), 6, seed_of(1), torch.arange(2))
    assert orders == [True, True] and not got.requires_grad


def test_a_generator_in_bf16_still_gives_float32():
    half = lambda x, t, z: linear(x, t, z).bfloat16()  # noqa: E731
    got = Diffusion(4).draw(half, (3, 4, 4), 6, seed_of(1), torch.arange(2))
    assert got.dtype == torch.float32
    double = Diffusion(4).draw(
        linear, (3, 4, 4), 6, seed_of(1), torch.arange(2), dtype=torch.float64
    )
    assert double.dtype == torch.float64


def test_starting_in_the_middle():
    d, x = Diffusion(4).double(), randn(3, 2, 4, 4)
    z, noise = randn(4, 3, 6, seed=1), randn(4, 3, 2, 4, 4, seed=2)
    seen = []

    def generator(x, t, z):
        seen.append(t.tolist())
        return linear(x, t, z)

    d.sample_loop(generator, x, z=z, noise=noise, start=2)
    assert seen == [[1] * 3, [0] * 3]
    # The later steps draw what they would have drawn in a full loop.
    seen.clear()
    first = d.sample_loop(linear, x, nz=6, seed=seed_of(5), start=2)
    again = d.sample_loop(generator, x, nz=6, seed=seed_of(5), start=2)
    assert torch.equal(first, again) and len(seen) == 2
    assert torch.equal(d.sample_loop(linear, x, nz=6, seed=seed_of(5), start=0), x)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"seed": seed_of(1)}, {"nz": 6}, {"z": [torch.zeros(2, 6)]}, {"noise": [torch.zeros(2)]}],
)
def test_says_what_is_missing(arguments):
    with pytest.raises(ValueError, match=r"pass seed=\.\.\. and nz=\.\.\., or z=\.\.\. and noise"):
        Diffusion(1).sample_loop(linear, torch.zeros(2, 2), **arguments)
