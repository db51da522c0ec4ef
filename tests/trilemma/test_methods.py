"""Which trainings a comparison consists of."""

import pytest

from ddgan_fast.trilemma.methods import DEFAULT, build_methods


def by_name(preset, names=DEFAULT, overrides=None):
    return {method.name: method for method in build_methods(preset, names, overrides)}


def test_baselines_with_a_preset_of_their_own_are_those():
    found = by_name("digits", (*DEFAULT, "noz"))

    assert found["ddpm1000"].cfg.preset == "digits_ddpm"
    assert found["ddpm1000"].cfg.model.num_timesteps == 1000
    assert found["ddpm1000"].cfg.optim.lr_g == 1e-3
    assert found["oneshot"].cfg.preset == "digits_oneshot"
    assert found["noz"].cfg.preset == "digits_noz"


@pytest.mark.parametrize("preset", ["cifar10", "stacked_mnist", "celebahq256", "gaussians25_paper"])
def test_other_presets_change_as_little_as_makes_the_baseline(preset):
    found = by_name(preset, ("ddgan", "ddpm200", "oneshot", "noz"))
    base = found["ddgan"].cfg

    ddpm = found["ddpm200"].cfg
    assert (ddpm.loss.kind, ddpm.model.nz, ddpm.model.num_timesteps) == ("ddpm", 0, 200)
    assert not ddpm.model.tanh
    oneshot = found["oneshot"].cfg
    assert (oneshot.loss.kind, oneshot.model.num_timesteps) == ("gan", 1)
    assert oneshot.model.nz == base.model.nz
    noz = found["noz"].cfg
    assert (noz.model.nz, noz.model.num_timesteps) == (0, base.model.num_timesteps)
    for method in found.values():
        cfg = method.cfg
        assert cfg.model.num_channels_dae == base.model.num_channels_dae
        assert cfg.run.batch_size == base.run.batch_size
        assert cfg.data == base.data


def test_options_reach_the_methods_they_can_mean():
    overrides = {
        "model.num_timesteps": 2,
        "model.num_channels_dae": 32,
        "optim.lr_g": 0.5,
        "data.limit": 100,
    }
    found = by_name("digits", (*DEFAULT, "noz"), overrides)

    assert [m.cfg.model.num_timesteps for m in found.values()] == [2, 200, 1000, 1, 2]
    assert {m.cfg.model.num_channels_dae for m in found.values()} == {32}
    assert {m.cfg.data.limit for m in found.values()} == {100}
    # A rate for a game is none for a regression.
    assert [m.cfg.optim.lr_g for m in found.values()] == [0.5, 1e-3, 1e-3, 0.5, 0.5]


def test_a_ddpm_leaves_the_terms_of_a_gan_out(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: digits\nloss:\n  x0_weight: 0.5\n  terms: {l1: 0.3}\n")

    found = by_name(str(recipe), ("ddgan", "ddpm200"))

    assert (found["ddgan"].cfg.loss.x0_weight, found["ddgan"].cfg.loss.terms) == (0.5, {"l1": 0.3})
    assert (found["ddpm200"].cfg.loss.x0_weight, found["ddpm200"].cfg.loss.terms) == (0.0, {})


def test_a_ddpm_is_drawn_by_all_steps_or_ddim_and_by_as_few_as_the_ddgan():
    found = by_name("digits")

    assert [d.title for d in found["ddpm200"].drawings] == [
        "DDPM-200",
        "DDPM-200, DDIM-50",
        "DDPM-200, DDIM-4",
    ]
    assert [(d.sampler, d.steps) for d in found["ddpm1000"].drawings] == [("ddim", 50), ("ddim", 4)]
    assert len(found["ddgan"].drawings) == len(found["oneshot"].drawings) == 1


@pytest.mark.parametrize("name", ["ddpm", "ddpm0", "vae", "ddpm-200", ""])
def test_an_unknown_method_is_named(name):
    with pytest.raises(ValueError, match=f"method '{name}' is unknown: choose ddgan, oneshot"):
        build_methods("digits", [name])


@pytest.mark.parametrize("preset", ["digits_ddpm", "digits_oneshot"])
def test_a_baseline_has_no_baselines(preset):
    with pytest.raises(ValueError, match=f"{preset} is no denoising diffusion GAN"):
        build_methods(preset, DEFAULT)
