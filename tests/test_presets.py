"""The presets: complete, sourced, and equal to what was published."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ddgan_fast import config as config_module
from ddgan_fast.config import list_presets, load_config, save_yaml, validate

FOLDER = Path(config_module.__file__).with_name("presets")

# From the published README's commands and the paper's table; batch is global, steps are iterations.
COLUMNS = [
    *("size", "kind", "dae", "ch_mult", "T", "nz", "n_mlp", "gamma", "lazy", "lr_g", "lr_d"),
    *("ema", "batch", "steps", "interval"),
]
NARROW, WIDE = (1, 2, 2, 2), (1, 1, 2, 2, 4, 4)
PUBLISHED = {
    "cifar10": (
        *(32, "small", 128, NARROW, 4, 100, 4, 0.02, 15, 1.6e-4, 1.25e-4, 0.9999),
        *(4 * 64, 1800 * 195, 195),
    ),
    "cifar10_paper": (
        *(32, "small", 128, NARROW, 4, 256, 3, 0.05, 15, 1.6e-4, 1e-4, 0.9999),
        *(128, 400_000, 390),
    ),
    "celebahq256": (
        *(256, "large", 64, WIDE, 2, 100, 3, 2.0, 10, 2e-4, 1e-4, 0.9999),
        *(8 * 4, 800 * 843, 843),
    ),
    "celebahq256_paper": (
        *(256, "large", 64, WIDE, 4, 100, 3, 1.0, 10, 1.6e-4, 1e-4, 0.999),
        *(32, 750_000, 843),
    ),
    "lsun_church256": (
        *(256, "large", 64, WIDE, 4, 100, 3, 1.0, 10, 1.6e-4, 1e-4, 0.999),
        *(8 * 8, 500 * 1875, 1875),
    ),
    "lsun_church256_paper": (
        *(256, "large", 64, WIDE, 4, 100, 3, 1.0, 10, 2e-4, 1e-4, 0.999),
        *(64, 600_000, 1875),
    ),
    "stacked_mnist": (
        *(32, "small", 128, NARROW, 4, 100, 4, 0.02, 15, 1.6e-4, 1.25e-4, 0.0),
        *(64, 100 * 1875, 1875),
    ),
}
BASELINES = ("digits_ddpm", "digits_oneshot", "digits_noz")
BASELINES += ("gaussians25_ddpm", "gaussians25_oneshot")
WITH_CLASSES = ("digits_classes", "digits_ddpm_classes", "digits_classifier")
SOURCES = ("README command", "paper", "published", "student report", "our choice: ", "tuned here: ")


@pytest.mark.parametrize("name", list_presets())
def test_preset_is_valid_and_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    validate(config)
    assert config.preset == name
    save_yaml(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_presets_are_all_there() -> None:
    assert set(list_presets()) == {
        *PUBLISHED,
        *("digits", "gaussians25", "gaussians25_paper", "lsun256"),
        *BASELINES,
        *WITH_CLASSES,
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name: str) -> None:
    c = load_config(name)
    model, optim = c.model, c.optim
    got = (
        *(model.image_size, c.discriminator.kind, model.num_channels_dae, model.ch_mult),
        *(model.num_timesteps, model.nz, model.n_mlp, c.loss.r1_gamma, c.loss.lazy_reg),
        *(optim.lr_g, optim.lr_d, optim.ema_decay, c.run.batch_size, c.run.steps),
        optim.lr_interval,
    )
    pairs = zip(COLUMNS, got, PUBLISHED[name], strict=True)
    assert {key: (ours, want) for key, ours, want in pairs if ours != want} == {}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_defaults(name: str) -> None:
    c = load_config(name)
    model, optim = c.model, c.optim
    assert (model.num_channels, model.z_emb_dim, model.num_res_blocks) == (3, 256, 2)
    assert (model.schedule, model.beta_min, model.beta_max) == ("vp", 0.1, 20.0)
    assert (model.resblock_type, model.progressive, model.dropout) == ("biggan", "none", 0.0)
    assert (model.progressive_input, model.progressive_combine) == ("residual", "sum")
    assert model.attn_resolutions == (16,) and model.fir_kernel == (1.0, 3.0, 3.0, 1.0)
    assert model.conditional and model.fir and model.skip_rescale and model.tanh and model.centered
    assert (c.discriminator.ngf, c.discriminator.t_emb_dim) == (64, 256)
    assert (optim.beta1, optim.beta2, optim.eps) == (0.5, 0.9, 1e-8)
    assert (optim.lr_decay, optim.lr_min, optim.ema_warmup) == ("cosine", 1e-5, False)
    assert c.run.seed == 1024
    stacked = name == "stacked_mnist"
    assert c.data.source == ("stacked_mnist" if stacked else "auto") and c.data.flip != stacked


def test_lsun_takes_any_category() -> None:
    church, any_class = load_config("lsun_church256"), load_config("lsun256")
    assert church.data.lsun_class == "church_outdoor" and church.data.limit == 120_000
    assert any_class.data.lsun_class is None and any_class.data.limit is None
    assert any_class.model == church.model and any_class.optim == church.optim
    assert load_config("lsun256", {"data.lsun_class": "bedroom"}).data.lsun_class == "bedroom"


def test_gaussians25_paper() -> None:
    c = load_config("gaussians25_paper")
    for net in (c.model, c.discriminator):
        assert (net.kind, net.hidden, net.hidden_layers, net.point_features) == ("mlp", 512, 3, 0)
    assert (c.run.batch_size, c.run.steps, c.model.num_timesteps) == (512, 50_000, 4)


def test_baselines_differ_in_what_they_are_named_for() -> None:
    """And in nothing that gives one of them more data, width or steps."""
    for name in BASELINES:
        base, c = load_config(name.split("_")[0]), load_config(name)
        assert (c.data, c.run) == (base.data, base.run)
        assert (c.loss.kind == "ddpm") == name.endswith("_ddpm")
        steps = {"noz": base.model.num_timesteps, "oneshot": 1, "ddpm": 200}
        assert c.model.num_timesteps == steps[name.split("_")[1]]
        assert c.model.nz == (base.model.nz if name.endswith("oneshot") else 0)
        for width in ("num_channels_dae", "ch_mult", "hidden", "hidden_layers", "point_features"):
            assert getattr(c.model, width) == getattr(base.model, width)
        if c.loss.kind == "ddpm":
            longer = load_config(name, {"model.num_timesteps": 1000})
            assert longer.model.num_timesteps == 1000


def test_demos_need_no_data() -> None:
    for name in ("digits", "gaussians25", "gaussians25_paper", *BASELINES):
        c = load_config(name)
        assert c.data.source in ("digits", "gaussians25") and c.data.path is None
        assert not c.data.flip


@pytest.mark.parametrize("name", list_presets())
def test_every_value_has_its_source(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    values = [line for line in lines if re.match(r"\s*\w+:\s*[^\s#]", line)]
    assert len(values) >= 2
    for line in values:
        source = line.partition("  # ")[2]
        assert source.startswith(SOURCES), f"{name}: {line.strip()!r} has no source"
    rest = [line for line in lines if line not in values]
    assert all(not line or line.startswith("#") or re.fullmatch(r"\w+:", line) for line in rest)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_run_is_described(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("\nmodel:")[0]
    assert re.search(r"\d GPUs?\b", text) and "images" in text
