"""The baselines in the trainer: DDPM, GANs without latent, one-step GANs."""

import json
import re

import pytest
import torch
from replay import ReplayRecorder
from test_graphs import engine_and_batches, everything
from tiny_runs import final_state, record, run_ranks, tensors_of, tiny

from ddgan_fast.config import from_dict, load_config, to_dict
from ddgan_fast.diffusion import Diffusion
from ddgan_fast.editing.loop import check_model
from ddgan_fast.kernels import philox
from ddgan_fast.sampling import generate, load_generator
from ddgan_fast.training import choosing
from ddgan_fast.training.checkpoint import list_states
from ddgan_fast.training.denoising import DenoisingStep
from ddgan_fast.training.draws import Draws, MicroBatch
from ddgan_fast.training.footprint import estimate_memory
from ddgan_fast.training.monitor import DeviceStats
from ddgan_fast.training.trainer import train

DDPM = {
    "loss__kind": "ddpm",
    "loss__lazy_reg": 1,
    "model__nz": 0,
    "model__tanh": False,
    "model__num_timesteps": 50,
}
BASELINES = {"ddpm": DDPM, "noz": {"model__nz": 0}, "oneshot": {"model__num_timesteps": 1}}
every_baseline = pytest.mark.parametrize("options", BASELINES.values(), ids=BASELINES)


class Linear(torch.nn.Module):
    """Predicts w x_{t+1} + v t."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.v = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, x, t, z, drop=None):
        assert z.shape == (len(x), 0)
        return self.w * x + self.v * t.reshape(-1, *[1] * (x.ndim - 1))


def test_the_loss_is_the_mean_squared_error_of_the_noise():
    """Written out: x_{t+1} = a_{t+1} x_0 + s_{t+1} eps, with the marginals of t + 1 steps."""
    diffusion, random = Diffusion(50), torch.Generator().manual_seed(3)
    x0, eps, other = torch.randn(3, 6, 2, 4, 4, generator=random, dtype=torch.float64)
    t = torch.tensor([0, 1, 10, 25, 48, 49])
    draws = Draws(t=t, z=torch.empty(6, 0), pair_noise=(other, eps))
    network = Linear()
    stats = DenoisingStep(network, diffusion).generator_gradients([MicroBatch(x0, None, draws)])
    kept = torch.cumprod(1 - diffusion.tables["betas"].double(), 0)[t].reshape(-1, 1, 1, 1)
    x = kept.sqrt() * x0 + (1 - kept).sqrt() * eps
    steps = t.reshape(-1, 1, 1, 1)
    error = 0.7 * x + 0.1 * steps - eps
    torch.testing.assert_close(stats["G/loss"], (error**2).mean((1, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(network.w.grad, (2 * error * x).mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(network.v.grad, (2 * error * steps).mean(), rtol=1e-6, atol=0)


def test_noise_and_data_from_seeds_and_bytes():
    """The noise alone is the noise in the mixture, of bytes with flips, too."""
    diffusion, n = Diffusion(50), 8
    images = torch.randint(0, 256, (n, 4, 4, 3), dtype=torch.uint8)
    flip = torch.arange(n) % 2 == 0
    index = torch.arange(n)
    t = torch.arange(n) * 7
    draws = Draws(t=t, z=torch.empty(n, 0), index=index, pair_seed=torch.tensor([9]))
    step = DenoisingStep(Linear(), diffusion)
    x, noise = step.diffuse(MicroBatch(images, flip, draws))
    want = philox.normal(torch.tensor([9]), index, (3, 4, 4), stream=1)
    torch.testing.assert_close(noise, want, rtol=0, atol=0)
    data = torch.where(flip.reshape(-1, 1, 1, 1), images.flip(2), images).permute(0, 3, 1, 2)
    data = data.double() / 127.5 - 1
    level = torch.from_numpy(diffusion.levels())[t + 1].reshape(n, 2, 1, 1, 1)
    torch.testing.assert_close(
        x.double(), level[:, 0] * data + level[:, 1] * want.double(), rtol=1e-5, atol=1e-5
    )


def test_a_ddpm_learns_digits(tmp_path):
    """Predicting nothing costs 1."""
    options = {"run.steps": 40, "run.tick": 10, "run.sample_every": 0, "run.dir": str(tmp_path)}
    train(load_config("digits_ddpm", options), device="cpu", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["G/loss"] for line in lines]
    assert losses[0] > 0.7 and losses[-1] < 0.5
    parts = {key for line in lines for key in line if key.startswith("G/loss/")}
    assert parts == {f"G/loss/t{20 * i}" for i in range(10)}
    assert not any(key.startswith("D/") or key == "lr/D" for line in lines for key in line)


def test_many_timesteps_are_told_apart_in_ranges():
    stats = DeviceStats("cpu")
    stats.add_samples("loss", torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 2, 24]), 25)
    stats.add_samples("few", torch.tensor([1.0, 3.0]), torch.tensor([0, 9]), 10)
    want = {"loss": 3.0, "loss/t0": 2.0, "loss/t23": 5.0, "few": 2.0, "few/t0": 1.0, "few/t9": 3.0}
    assert stats.read() == want


@every_baseline
def test_a_run_goes_on_exactly_and_samples(tmp_path, options):
    common = {**options, "optim__lr_decay": "none", "model__dropout": 0.1, "run__sample_every": 3}
    train(tiny(tmp_path / "whole", **common, run__steps=6), device="cpu", quiet=True)
    for steps in (3, 6):
        train(tiny(tmp_path / "parts", **common, run__steps=steps), device="cpu", quiet=True)
    states = [final_state(tmp_path / name) for name in ("whole", "parts")]
    whole, parts = (tensors_of(state) for state in states)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(parts[key], value) for key, value in whole.items())
    assert ("discriminator" in states[0]) == (options is not DDPM)
    assert set(states[0]["optimizers"]) == set(states[0]) & {"generator", "discriminator"}
    images = next(generate(load_generator(tmp_path / "whole"), 3))
    assert images.shape == (3, 8, 8, 3)
    grids = [tmp_path / name / "samples" / "step-000000006.png" for name in ("whole", "parts")]
    assert grids[0].read_bytes() == grids[1].read_bytes()


def test_another_objective_is_another_run(tmp_path):
    gan = {**DDPM, "loss__kind": "gan", "run__steps": 1}
    train(tiny(tmp_path, **gan), device="cpu", quiet=True)
    with pytest.raises(ValueError, match=re.escape("loss.kind = gan, but loss.kind = ddpm")):
        train(tiny(tmp_path, **{**gan, "loss__kind": "ddpm"}), device="cpu", quiet=True)


def test_what_has_no_effect_is_told(tmp_path, capsys):
    train(tiny(tmp_path, **DDPM, run__steps=1), device="cpu")
    said = capsys.readouterr().out
    assert re.search(r"generator [\d,]+ parameters, T = 50", said)
    assert "the options discriminator, loss.r1_gamma and optim.lr_d have no effect" in said


@pytest.mark.parametrize("mode", ["graph", pytest.param("compile", marks=pytest.mark.slow)])
def test_recorded_and_compiled_steps_are_the_steps(tmp_path, mode):
    options = {**DDPM, "run__precision": "fp64", "run__compiler": "aot_eager"}
    options |= {"run__micro_batch": 4, "model__dropout": 0.1, "model__ch_mult": [1]}
    eager, batches = engine_and_batches(tmp_path, 3, **options)
    assert eager.kinds == (True,) and list(eager.networks) == ["G"]
    other, _ = engine_and_batches(tmp_path, 0, **options)
    other.switch(mode, batches[0], ReplayRecorder() if mode == "graph" else None)
    if mode == "compile":
        assert choosing.wrong_gradients(other, batches[0]) is None
    for batch in batches:
        eager.take_step(batch)
        other.take_step(batch)
    want, got = everything(eager), everything(other)
    assert want.keys() == got.keys()
    assert max(float((got[k] - v).abs().max()) for k, v in want.items()) < 1e-8


def test_parts_of_a_batch_are_the_batch(tmp_path):
    common = {**DDPM, "run__precision": "fp64", "run__steps": 3, "run__batch_size": 8}
    for name, size in (("one", None), ("parts", 4)):
        train(tiny(tmp_path / name, **common, run__micro_batch=size), device="cpu", quiet=True)
    want, got = (tensors_of(final_state(tmp_path / name)) for name in ("one", "parts"))
    assert max(float((got[key] - want[key]).abs().max()) for key in want) < 1e-10


@pytest.mark.slow
@every_baseline
def test_two_ranks_are_one(tmp_path, options):
    common = {**options, "run__precision": "fp64", "run__steps": 10, "run__checkpoint_every": 10}
    record(tiny(tmp_path / "one", **common))
    ranks = run_ranks(tiny(tmp_path / "two", **common), 2, tmp_path / "ranks")
    want, got = (tensors_of(final_state(tmp_path / name)) for name in ("one", "two"))
    assert want.keys() == got.keys()
    assert max(float((got[key] - want[key]).abs().max()) for key in want) < 1e-8
    assert ranks[0]["digests"] == ranks[1]["digests"]


def test_memory_of_a_ddpm_is_that_of_one_network(tmp_path):
    gan = estimate_memory(tiny(tmp_path, model__nz=0), 4, "fp32")
    ddpm = estimate_memory(tiny(tmp_path, **DDPM), 4, "fp32")
    assert ddpm.weights == ddpm.gradients == ddpm.ema < gan.weights
    assert 0 < ddpm.activations < gan.activations


def test_states_say_what_they_predict(tmp_path):
    """A snapshot alone is enough to sample from, with any sampler."""
    train(tiny(tmp_path, **DDPM, run__steps=2), device="cpu", quiet=True)
    (snapshot,) = [p for p in tmp_path.glob("ema-*.safetensors") if "000000002" in p.name]
    for file in (snapshot, list_states(tmp_path)[-1]):
        model = load_generator(file)
        assert model.cfg.loss.kind == "ddpm"
        drawn = {
            name: next(generate(model, 2, seed=4, sampler=name, steps=steps))
            for name, steps in (("ancestral", None), ("ddim", 5), ("dpmpp", 5), ("heun", 5))
        }
        assert all(images.shape == (2, 8, 8, 3) for images in drawn.values())
        assert (drawn["ancestral"] != drawn["ddim"]).any()
    with pytest.raises(ValueError, match="ancestral sampling takes all 50 steps"):
        generate(model, 1, sampler="ancestral", steps=5)
    with pytest.raises(ValueError, match="predicts noise, and editing needs a generator"):
        check_model(model)


def test_a_gan_has_no_sampler(tmp_path):
    train(tiny(tmp_path, run__steps=1), device="cpu", quiet=True)
    with pytest.raises(ValueError, match="sampler is 'ddim', but this model is a denoising"):
        generate(load_generator(tmp_path), 1, sampler="ddim")


def test_old_states_know_no_objective():
    values = to_dict(load_config("digits"))
    del values["loss"]["kind"]
    assert from_dict(values).loss.kind == "gan"
