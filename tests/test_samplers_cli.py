"""DDPMs on the command line: what a run would be, and samples by any sampler."""

import json

import numpy as np
import pytest
import torch

from ddgan_fast.cli import main
from ddgan_fast.config import load_config, to_dict
from ddgan_fast.models import build_generator
from ddgan_fast.training.checkpoint import save_ema


def snapshot(preset, path):
    cfg = load_config(preset)
    torch.manual_seed(0)
    save_ema(path, 3, build_generator(cfg).state_dict(), to_dict(cfg))
    return str(path)


def test_samples_by_name_and_steps(tmp_path):
    file = snapshot("gaussians25_ddpm", tmp_path / "ema-000000003.safetensors")
    drawn = {}
    for words in ("--sampler ddim --steps 4", "--steps 4", "--sampler dpmpp --steps 4", ""):
        out = tmp_path / "points.npz"
        assert main(["sample", file, "-n", "5", "-o", str(out), *words.split()]) == 0
        drawn[words] = np.load(out)["arr_0"]
    first, short, other, ancestral = drawn.values()
    assert np.array_equal(first, short)
    assert (first != other).any() and (first != ancestral).any()


@pytest.mark.parametrize(
    ("preset", "words", "sentence"),
    [
        ("digits_noz", "--sampler ddim", "sampler is 'ddim', but this model is a denoising"),
        ("digits_oneshot", "--steps 4", "samples with the T = 1 that it was trained for"),
        ("digits_ddpm", "--sampler plms", "the sampler is 'plms': choose one of ancestral, ddim"),
        ("digits_ddpm", "--steps 201", "the model was trained with 200 steps"),
    ],
)
def test_refusals_are_one_sentence_and_leave_nothing(tmp_path, capsys, preset, words, sentence):
    file = snapshot(preset, tmp_path / "ema-000000003.safetensors")
    out = tmp_path / "grid.png"
    assert main(["sample", file, "-n", "4", "-o", str(out), *words.split()]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not out.exists()


def test_evaluations_name_their_sampler_and_count_its_calls(tmp_path, capsys):
    file = snapshot("gaussians25_ddpm", tmp_path / "ema-000000003.safetensors")
    options = ["--metrics", "modes", "-n", "64", "--time-batches", "8"]
    entries = []
    for words in ("--sampler heun --steps 3", "--steps 2 --eta 0.5"):
        assert main(["evaluate", file, *options, *words.split()]) == 0
        entries.append(json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1]))
    heun, ddim = entries
    assert (heun["nfe"], heun["sampler"]["name"], ddim["nfe"]) == (5, "heun", 2)
    assert (ddim["sampler"]["name"], ddim["sampler"]["eta"]) == ("ddim", 0.5)
    assert len(ddim["sampling"]) == 1


def test_dry_run_of_a_ddpm_has_one_network(capsys):
    assert main(["train", "digits_ddpm", "--dry-run", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "generator forward" in said and "training, R1" not in said
    assert "#   discriminator" not in said and "#   generator " in said
