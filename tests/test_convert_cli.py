"""``ddgan-fast convert`` in every direction: each tensor keeps every bit."""

import argparse
from pathlib import Path

import pytest
import torch

from ddgan_fast import convert
from ddgan_fast.cli import main
from ddgan_fast.config import Config, ModelConfig, save_yaml, to_dict
from ddgan_fast.models import build_generator
from ddgan_fast.sampling import load_generator
from ddgan_fast.training.checkpoint import load_ema, save_ema

GOLDEN = Path(__file__).parent / "data/golden/checkpoint_ref"


def published(path):
    return torch.load(path, weights_only=True)


def assert_same(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


@pytest.fixture
def recipe(tmp_path):
    """The configuration of the golden checkpoint as a file."""
    args = convert.read_published(GOLDEN / "content.pth")["args"]
    path = tmp_path / "recipe.yaml"
    save_yaml(convert.config_of_args(args), path)
    return str(path)


def test_published_to_ours_and_back(tmp_path, recipe, capsys):
    ours, back = str(tmp_path / "ours.safetensors"), str(tmp_path / "sub/back.pth")
    assert main(["convert", str(GOLDEN / "netG_0.pth"), ours, "--recipe", recipe]) == 0
    assert capsys.readouterr().out.startswith(f"{GOLDEN / 'netG_0.pth'} -> {ours}: ")
    assert main(["convert", ours, back]) == 0
    original = published(GOLDEN / "netG_0.pth")
    assert all(name.startswith("module.") for name in original)
    assert_same(published(back), original)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_content_to_ours(tmp_path, weights):
    ours, back = str(tmp_path / "ours.safetensors"), str(tmp_path / "back.pth")
    content = str(GOLDEN / "content.pth")
    assert main(["convert", content, ours, "--weights", weights]) == 0
    tensors, config, step = load_ema(ours)
    assert step == 2 and config["model"]["num_channels_dae"] == 8
    direct = load_generator(content, weights=weights).network.state_dict()
    assert_same({name: tensors[name] for name in direct}, direct)
    assert main(["convert", ours, back]) == 0
    expected = published(GOLDEN / "netG_0.pth")
    if weights == "raw":
        with torch.serialization.safe_globals([argparse.Namespace]):
            expected = dict(published(content)["netG_dict"])
    assert_same(published(back), expected)


def test_ours_to_published_and_back(tmp_path):
    torch.manual_seed(0)
    model = ModelConfig(image_size=8, num_channels_dae=8, ch_mult=(1, 2), attn_resolutions=(4,))
    cfg = Config(preset="tiny", model=model)
    weights = build_generator(cfg).state_dict()
    path = save_ema(tmp_path, 5, weights, to_dict(cfg))
    save_yaml(cfg, tmp_path / "tiny.yaml")
    theirs, back = str(tmp_path / "netG_5.pth"), str(tmp_path / "back.safetensors")
    assert main(["convert", str(tmp_path), theirs]) == 0
    assert list(published(theirs)) == [f"module.{n}" for n in convert.generator_names(cfg).values()]
    assert main(["convert", theirs, back, "--recipe", str(tmp_path / "tiny.yaml")]) == 0
    assert_same(load_ema(back)[0], load_ema(path)[0])
    assert load_ema(back)[1]["model"] == to_dict(cfg)["model"]


@pytest.mark.parametrize(
    ("output", "recipe_given", "sentence"),
    [
        ("out.ckpt", True, "the suffix '.ckpt' of out.ckpt is unknown: use .safetensors"),
        ("out.safetensors", False, "name the preset or YAML file"),
    ],
)
def test_refusals_write_nothing(
    tmp_path, monkeypatch, capsys, recipe, output, recipe_given, sentence
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    options = ["--recipe", recipe] if recipe_given else []
    assert main(["convert", str(GOLDEN / "netG_0.pth"), output, *options]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("ddgan-fast: ") and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_points_have_no_published_format(tmp_path, capsys):
    cfg = Config(model=ModelConfig(kind="mlp", num_channels=2, tanh=False, hidden=8))
    save_ema(tmp_path, 1, build_generator(cfg).state_dict(), to_dict(cfg))
    assert main(["convert", str(tmp_path), str(tmp_path / "out.pth")]) == 2
    assert 'only kind "ncsnpp" has a published format' in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()
