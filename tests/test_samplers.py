"""Samplers of noise predictors: closed forms of Gaussian data, diffusers' schedulers, refusals."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ddgan_fast.config import Config, LossConfig, ModelConfig
from ddgan_fast.diffusion import Diffusion
from ddgan_fast.kernels import philox
from ddgan_fast.samplers import NAMES, Sampler, _Path, choose, for_preview

MEAN, WIDTH = 0.3, 0.2
SEED = torch.tensor([11])


def index(n):
    return torch.arange(n)


def gaussian(diffusion):
    """The exact noise of data N(MEAN, WIDTH^2), in the data's precision."""
    levels = torch.from_numpy(diffusion.levels())

    def network(x, t):
        a, s = (levels[t + 1, k].to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) for k in (0, 1))
        return s * (x - a * MEAN) / (a**2 * WIDTH**2 + s**2)

    return network


def errors(name, steps, end, monkeypatch):
    """Distances from the flow at x_end: (x - a m) / sqrt(a^2 c^2 + s^2) is conserved by the ODE."""
    diffusion = Diffusion(1000)
    (a, s), (b, r) = diffusion.levels()[[1000, end]]
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    v, w = (p**2 * WIDTH**2 + q**2 for p, q in ((a, s), (b, r)))
    want = b * MEAN + math.sqrt(w / v) * (x - a * MEAN)
    found = []
    for n in steps:
        times = [round(end + (1000 - end) * k / n) for k in range(n, -1, -1)]
        monkeypatch.setattr(_Path, "steps", lambda path, times=times: pairwise(times))
        sampler = Sampler(name, n, clip=False)
        got = sampler.solve(gaussian(diffusion), diffusion, x, SEED, index(9))
        found.append(float((got - want).abs().max()))
    return found


def test_levels_are_the_marginals_of_the_sde():
    """At T = 1000, too, where float32 leaves few digits of the first steps' noise."""
    for total in (4, 1000):
        diffusion = Diffusion(total)
        levels = diffusion.levels()
        assert levels.shape == (total + 1, 2) and tuple(levels[0]) == (1.0, 0.0)
        s = np.linspace(0, 1, total + 1) * (1 - 1e-3) + 1e-3
        log = -0.25 * s**2 * 19.9 - 0.05 * s
        signal = np.exp(log - log[0])
        np.testing.assert_allclose(levels[:, 0], signal, rtol=5e-6)
        # The betas are rounded to float32: a relative error of 2^-24 each.
        np.testing.assert_allclose(levels[1:, 1] ** 2, -np.expm1(2 * (log - log[0]))[1:], rtol=1e-6)
        np.testing.assert_allclose((levels**2).sum(1), 1.0, rtol=1e-12)
        tables = diffusion.q_tables.double().numpy()
        np.testing.assert_allclose(tables[:, :2], levels[:-1], rtol=1e-3, atol=1e-12)


def test_posterior_tables_of_many_steps():
    """Float32 tables of T = 1000 against float64 ones."""
    diffusion = Diffusion(1000)
    levels = diffusion.levels()
    (a0, s0), (a1, s1) = levels[:-1].T, levels[1:].T
    beta = 1 - (a1 / a0) ** 2
    want = np.stack([beta * a0 / s1**2, s0**2 * a1 / a0 / s1**2, np.sqrt(beta) * s0 / s1], 1)
    np.testing.assert_allclose(diffusion.posterior_tables.numpy(), want, rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp", 2), ("heun", 2)])
def test_deterministic_samplers_converge_to_the_flow(name, order, monkeypatch):
    """Twice the steps, and the error falls by two to the order.

    The last step, to no noise at all, is of first order in all of them: the network knows no x_0.
    """
    coarse, fine = errors(name, (50, 100), 200, monkeypatch)
    assert 0.85 * 2**order < coarse / fine < 1.25 * 2**order
    coarse, fine = errors(name, (100, 1000), 0, monkeypatch)
    assert fine < 0.005 and fine < coarse / 7
    if name != "ddim":
        assert coarse < 0.01 < errors("ddim", (100,), 0, monkeypatch)[0]


def test_ddim_of_gaussian_data():
    """Every step is linear, so that all of them together have a closed form."""
    diffusion = Diffusion(10)
    levels = diffusion.levels()
    x = want = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for i in range(10, 0, -2):
        (a, s), (b, r) = levels[i], levels[i - 2]
        v = a**2 * WIDTH**2 + s**2
        want = b * MEAN + (want - a * MEAN) * (b * a * WIDTH**2 + r * s) / v
    sampler = Sampler("ddim", 5, clip=False)
    got = sampler.solve(gaussian(diffusion), diffusion, x, SEED, index(9))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ancestral", "ddim"])
def test_noisy_samplers_of_gaussian_data(name):
    """Mean and variance follow the recursion of the linear steps: 20,000 samples, 4 sigma."""
    diffusion, n = Diffusion(20), 20_000
    levels = diffusion.levels()
    mean, variance = 0.0, 1.0
    for i in range(20, 0, -1):
        (a, s), (b, r) = levels[i], levels[i - 1]
        beta = 1 - (a / b) ** 2
        gain = a * WIDTH**2 / (a**2 * WIDTH**2 + s**2)  # of E[x_0 | x_i]
        c0, c1 = beta * b / s**2, r**2 * a / b / s**2
        mean = c0 * (MEAN + gain * (mean - a * MEAN)) + c1 * mean
        variance = (c0 * gain + c1) ** 2 * variance + beta * r**2 / s**2
    sampler = Sampler(name, 20, eta=1.0, clip=False)
    x = sampler.draw(gaussian(diffusion), diffusion, (1,), SEED, index(n))
    assert float(x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / n))
    assert float(x.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / n))


def test_ddim_with_all_noise_and_steps_is_ancestral():
    diffusion = Diffusion(20)
    results = [
        Sampler(name, 20, eta=1.0).draw(gaussian(diffusion), diffusion, (2, 4, 4), SEED, index(6))
        for name in ("ancestral", "ddim")
    ]
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_a_function_of_seed_and_number(name):
    diffusion = Diffusion(10)
    sampler = Sampler(name, 10, eta=0.5)

    def draw(seed, numbers):
        key = torch.tensor([seed])
        return sampler.draw(gaussian(diffusion), diffusion, (3, 4, 4), key, torch.tensor(numbers))

    whole = draw(5, [0, 1, 2, 3])
    torch.testing.assert_close(draw(5, [3, 1]), whole[[3, 1]], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(draw(6, [0]), whole[:1], atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_sees_its_training_convention(name):
    """x_i goes with t = i - 1; the evaluations are as many as announced."""
    diffusion, seen = Diffusion(12), []
    exact = gaussian(diffusion)

    def network(x, t):
        assert t.dtype == torch.int64 and t.unique().numel() == 1
        seen.append(int(t[0]))
        return exact(x, t)

    sampler = Sampler(name, 12 if name == "ancestral" else 4)
    sampler.draw(network, diffusion, (1,), SEED, index(2))
    assert len(seen) == sampler.evaluations
    want = list(range(11, -1, -1)) if name == "ancestral" else [11, 8, 5, 2]
    assert seen == ([11, 8, 8, 5, 5, 2, 2] if name == "heun" else want)


def test_clipping_holds_x0_and_leaves_the_path_consistent():
    """After clipping, the noise is what remains of x_i."""
    diffusion, seen = Diffusion(8), []
    huge = Sampler("ddim", 2)

    def network(x, t):
        seen.append(x)
        return torch.full_like(x, -50.0)

    x = huge.draw(network, diffusion, (1, 4, 4), SEED, index(2))
    assert torch.equal(x, torch.ones_like(x))
    (a, s), (b, r) = diffusion.levels()[[8, 4]]
    torch.testing.assert_close(seen[1], b + r / s * (seen[0] - a), rtol=1e-5, atol=1e-6)
    free = Sampler("ddim", 8, clip=False).draw(network, diffusion, (1, 4, 4), SEED, index(2))
    assert float(free.min()) > 50


def scheduler(kind, diffusion, **options):
    diffusers = pytest.importorskip("diffusers")
    betas = diffusion.tables["betas"].numpy()
    common = {"num_train_timesteps": len(betas), "trained_betas": betas}
    return getattr(diffusers, kind)(**common, prediction_type="epsilon", **options)


def wavy(x, t):
    """A predictor that is neither linear nor right."""
    return torch.sin(3 * x) + 0.3 * x + 0.01 * t.reshape(-1, *[1] * (x.ndim - 1))


def by_diffusers(made, x, **options):
    for t in made.timesteps:
        noise = wavy(x, torch.full((len(x),), int(t)))
        x = made.step(noise, t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("steps", [4, 10, 50, 200])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim_is_that_of_diffusers(steps, clip):
    diffusion = Diffusion(200)
    made = scheduler(
        "DDIMScheduler",
        diffusion,
        timestep_spacing="trailing",
        clip_sample=clip,
        set_alpha_to_one=True,
    )
    made.set_timesteps(steps)
    x = philox.normal(SEED, index(3), (2, 4, 4), torch.float64)
    want = by_diffusers(made, x, eta=0.0, use_clipped_model_output=clip)
    got = Sampler("ddim", steps, clip=clip).solve(wavy, diffusion, x, SEED, index(3))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [4, 10, 20, 50])
def test_dpmpp_is_that_of_diffusers(steps):
    diffusion = Diffusion(200)
    made = scheduler(
        "DPMSolverMultistepScheduler",
        diffusion,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    made.set_timesteps(steps)
    x = philox.normal(SEED, index(3), (2, 4, 4), torch.float64)
    want = by_diffusers(made, x)
    got = Sampler("dpmpp", steps, clip=False).solve(wavy, diffusion, x, SEED, index(3))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("clip", [False, True])
def test_ancestral_is_that_of_diffusers(clip, monkeypatch):
    """With diffusers' noise replaced by ours, step for step."""
    diffusion = Diffusion(20)
    made = scheduler(
        "DDPMScheduler", diffusion, clip_sample=clip, timestep_spacing="trailing"
    )
    made.set_timesteps(20)
    x = philox.normal(SEED, index(3), (2, 4, 4), torch.float64)
    seeds = philox.split(SEED, 40)
    want = x
    for t in made.timesteps:
        noise = philox.normal(seeds[2 * int(t) + 1][None], index(3), (2, 4, 4), torch.float64)
        module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
        monkeypatch.setattr(module, lambda *args, noise=noise, **options: noise)
        predicted = wavy(want, torch.full((3,), int(t)))
        want = made.step(predicted, t, want).prev_sample
    got = Sampler("ancestral", 20, clip=clip).solve(wavy, diffusion, x, SEED, index(3))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def config(kind, total=200):
    model = ModelConfig(num_timesteps=total, nz=0, tanh=False)
    return Config(model=model, loss=LossConfig(kind=kind))


def test_choice():
    ddpm = config("ddpm")
    assert choose(ddpm) == Sampler("ancestral", 200)
    assert choose(ddpm, steps=50) == Sampler("ddim", 50)
    assert choose(ddpm, "ddim", eta=1.0) == Sampler("ddim", 200, 1.0)
    assert choose(ddpm, "heun", 10).evaluations == 19
    assert choose(config("gan")) is None and for_preview(config("gan")) is None
    assert for_preview(ddpm) == Sampler("ddim", 50)
    assert for_preview(config("ddpm", 4)) == Sampler("ddim", 4)
    points = config("ddpm")
    points.model.kind = "mlp"
    assert not choose(points).clip


@pytest.mark.parametrize(
    ("kind", "asked", "words"),
    [
        ("gan", {"name": "ddim"}, "sampler is 'ddim', but this model is a denoising diffusion GAN"),
        ("gan", {"steps": 10}, "steps is 10, but this model is a denoising diffusion GAN"),
        ("gan", {"eta": 0.0}, "eta is 0.0, but this model is a denoising diffusion GAN"),
        ("ddpm", {"name": "euler"}, "the sampler is 'euler': choose one of ancestral, ddim, dpmpp"),
        ("ddpm", {"steps": 0}, "steps is 0: the model was trained with 200 steps"),
        ("ddpm", {"steps": 201}, "steps is 201: the model was trained with 200 steps"),
        ("ddpm", {"name": "ancestral", "steps": 50}, "ancestral sampling takes all 200 steps"),
        ("ddpm", {"name": "heun", "eta": 0.5}, "eta is 0.5: only the sampler ddim has it"),
        ("ddpm", {"name": "ddim", "eta": 1.5}, "eta is 1.5: it must lie between 0 and 1"),
    ],
)
def test_refusals(kind, asked, words):
    with pytest.raises(ValueError, match=words):
        choose(config(kind), **asked)
