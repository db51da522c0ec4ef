"""The dry run: what it prints, that it writes and allocates nothing, and its estimate of memory."""

import torch
import yaml
from torch.autograd.graph import saved_tensors_hooks

from ddgan_fast import summary
from ddgan_fast.cli import main
from ddgan_fast.commands.train import parse
from ddgan_fast.config import Config, ModelConfig, load_config
from ddgan_fast.diffusion import Diffusion
from ddgan_fast.models import build_discriminator, build_generator
from ddgan_fast.training.steps import Draws, MicroBatch, TrainStep


def tiny_images():
    model = ModelConfig(
        image_size=16, num_timesteps=2, nz=4, num_channels_dae=8, ch_mult=(1, 2), num_res_blocks=1
    )
    cfg = Config(preset="tiny", model=model)
    cfg.discriminator.ngf = 4
    return cfg


def test_dry_run_is_a_configuration_file_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "cifar10", "--dry-run", "--run.steps", "5", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    for words in ("48,432,515", "12,741,633", "GFLOP", "an estimate", "upfirdn2d", "runs/cifar10"):
        assert words in out
    assert "activations of 256 images" in out
    assert yaml.safe_load(out)["run"]["steps"] == 5
    (tmp_path / "mine.yaml").write_text(out)
    assert parse(["mine.yaml"]).config == parse(["cifar10", "--run.steps", "5"]).config


def test_dry_run_of_the_largest_network_allocates_nothing(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("allocated weights")

    monkeypatch.setattr(torch.Tensor, "uniform_", lambda x, *_, **__: x if x.is_meta else refuse())
    text = summary.dry_run(load_config("celebahq256"), "cpu", world=4)
    assert "39,726,979" in text and "activations of 8 images" in text


def test_dry_run_says_when_a_run_would_go_on(tmp_path):
    (tmp_path / "state-000000040.pt").touch()
    cfg = load_config("gaussians25", {"run.dir": str(tmp_path)})
    assert "holds a run at step 40, which would go on" in summary.dry_run(cfg, "cpu")


def test_dry_run_counts_the_ranks(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main(["train", "gaussians25", "--dry-run"]) == 2
    assert "512: 3 ranks cannot share it evenly" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(["train", "gaussians25", "--dry-run", "--run.micro_batch", "32"]) == 0
    assert "activations of 32 images" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "gaussians25", "--dry-run"]) == 0
    assert capsys.readouterr().out == ""


def test_the_estimate_of_activations_is_what_autograd_keeps():
    """The estimate comes from the meta device; here the same step runs for real."""
    cfg = tiny_images()
    generator, discriminator = build_generator(cfg), build_discriminator(cfg)
    step = TrainStep(generator, discriminator, Diffusion.from_config(cfg.model), 0.1)
    x = torch.randn(1, 3, 16, 16)
    draws = Draws(
        t=torch.zeros(1, dtype=torch.int64),
        z=torch.randn(1, cfg.model.nz),
        pair_noise=(x.clone(), x.clone()),
        posterior_noise=x.clone(),
    )
    parameters = {p.data_ptr() for m in (generator, discriminator) for p in m.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so no address comes twice
        return tensor

    def total():
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    phases = []
    micro = [MicroBatch(x, None, draws)]
    for phase in (
        lambda: step.discriminator_gradients(micro, penalize=True),
        lambda: step.generator_gradients(micro),
    ):
        kept.clear()
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            phase()
        phases.append(total())
    # Here everything a phase ever kept is counted, also what it had let go of before its end.
    estimate = summary.saved_bytes(cfg)
    assert 0.7 * max(phases) < estimate <= 1.01 * max(phases)


def test_memory_grows_with_what_it_consists_of():
    cfg = tiny_images()
    g, d = summary.parameter_counts(cfg)
    one, four = (summary.estimate_memory(cfg, n) for n in (1, 4))
    assert one.weights == one.gradients == 4 * (g + d) and one.ema == 4 * g
    assert one.adam == 8 * (g + d)
    assert four.activations == 4 * one.activations > 0
    assert four.total == one.total + 3 * one.activations
    assert summary.estimate_memory(cfg, 4, "cuda").activations == four.activations // 2
