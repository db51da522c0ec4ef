"""The dry run: what it prints, and that it writes and allocates nothing."""

import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensor

from ddgan_fast import summary
from ddgan_fast.cli import main
from ddgan_fast.commands.train import parse
from ddgan_fast.config import Config, ModelConfig, load_config
from ddgan_fast.training import memory


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

    def uniform(x, *_, **__):
        return x if x.is_meta or isinstance(x, FakeTensor) else refuse()

    monkeypatch.setattr(torch.Tensor, "uniform_", uniform)
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


def test_dry_run_finds_the_micro_batch_and_names_what_runs_again(monkeypatch):
    cfg = tiny_images()
    cfg.run.batch_size, cfg.run.micro_batch, cfg.run.recompute = 24, "auto", (16, 8)
    asked = []

    def estimate(cfg, micro, precision, micros):
        asked.append((micro, precision, micros))
        return summary.Memory(1, 1, 1, 1, 2**20 * micro)

    monkeypatch.setattr(summary, "estimate_memory", estimate)
    monkeypatch.setattr(memory, "estimate_memory", estimate)
    monkeypatch.setattr(summary, "available_bytes", lambda device: 2**23 + 4)
    text = summary.dry_run(cfg, "cpu", world=2)
    assert asked == [(12, "fp32", 1), (4, "fp32", 3), (4, "fp32", 3)]
    assert "activations of 4 images  4.0 MiB" in text
    assert "4 images is the largest micro-batch" in text
    assert "Blocks at 16, 8 pixels run again" in text


def test_micro_batch_is_an_option_by_itself():
    for words, want in ((["--micro-batch", "auto"], "auto"), (["--micro-batch=8"], 8)):
        assert parse(["cifar10", *words]).config.run.micro_batch == want
