"""The counter against costs worked out by hand, and the published costs of whole training steps."""

import pytest
import torch
import torch.nn.functional as F

from ddgan_fast.benchmarks.reference_recipe import ReferenceRecipe
from ddgan_fast.config import load_config
from ddgan_fast.flops import count, training_flops


def test_layers_count_two_operations_per_multiply_add_and_filters_none():
    x = torch.empty(2, 6, 10, 10, device="meta", requires_grad=True)
    weight = torch.empty(8, 6, 3, 3, device="meta", requires_grad=True)
    forward = 2 * (2 * 8 * 8 * 8) * (6 * 9)
    assert count(lambda: F.conv2d(x, weight)) == forward
    assert count(lambda: F.conv2d(x, weight).sum().backward()) == 3 * forward
    assert count(lambda: F.conv2d(x.detach(), weight).sum().backward()) == 2 * forward
    depthwise = torch.empty(6, 1, 4, 4, device="meta")
    assert count(lambda: F.conv2d(x, depthwise, groups=6).sum().backward()) == 0
    planes = x.reshape(12, 1, 10, 10)
    assert count(lambda: F.conv2d(planes, depthwise[:1]).sum().backward()) == 0
    grey = torch.empty(8, 1, 3, 3, device="meta")
    assert count(lambda: F.conv2d(planes, grey)) == 2 * (12 * 8 * 8 * 8) * 9
    line = torch.empty(5, 7, device="meta")
    assert count(lambda: F.linear(torch.empty(3, 7, device="meta"), line)) == 2 * 3 * 7 * 5


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_attention_counts_on_every_device(device):
    q, k, v = (torch.zeros(2, 1, 16, 8, device=device, requires_grad=True) for _ in range(3))
    forward = 2 * 2 * (2 * 16 * 16 * 8)
    assert count(lambda: F.scaled_dot_product_attention(q, k, v)) == forward
    both = count(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    assert 3 * forward <= both <= 3.5 * forward, "backward, with or without recomputing the scores"


# GFLOP: G forward, D forward, one application of R1, training image by the published recipe,
# without its wasted backward pass, and without any waste.
PUBLISHED = {
    "cifar10": (14.1, 2.95, 14.7, 109.0, 80.9, 80.5),
    "celebahq256": (140.8, 151.1, 755.0, 2131.9, 1850.2, 1819.8),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_costs(preset):
    cfg = load_config(preset)
    ours = training_flops(cfg)
    theirs = _recipe_flops(cfg)
    generator, discriminator, r1, whole, without_backward, least = (
        1e9 * value for value in PUBLISHED[preset]
    )
    assert theirs["generator_forward"] == pytest.approx(generator, rel=0.01)
    assert theirs["r1"] == pytest.approx(r1, rel=0.01)
    assert theirs["training_image"] == pytest.approx(whole, rel=0.01)

    assert ours["discriminator_forward"] == pytest.approx(discriminator, rel=0.01)
    # Ours runs some 1x1 convolutions before the upsampling, on a quarter of the pixels.
    assert 0.98 * generator < ours["generator_forward"] <= generator
    assert ours["r1"] == pytest.approx(0.6 * r1, rel=0.01), "two of five passes are shared"
    assert ours["training_image"] == pytest.approx(least, rel=0.01)
    assert ours["training_image"] < without_backward


def test_a_model_of_points_costs_its_matrix_products():
    cfg = load_config("gaussians25")
    hidden, depth = cfg.model.hidden, cfg.model.hidden_layers
    inside = 2 * hidden * hidden * (depth - 1)
    assert inside < training_flops(cfg)["generator_forward"] < 1.5 * inside


def test_blocks_that_run_again_count_once():
    small = {"model.num_channels_dae": 16, "model.ch_mult": [1, 2], "discriminator.ngf": 8}
    again = load_config("cifar10", small | {"run.recompute": [32, 16]})
    assert training_flops(again) == training_flops(load_config("cifar10", small))
    assert again.run.recompute == (32, 16)


def _recipe_flops(cfg):
    recipe = ReferenceRecipe(cfg, "meta")
    size = cfg.model.image_size
    real = torch.empty(1, cfg.model.num_channels, size, size, device="meta")
    draws = recipe.draw(real)
    plain = count(lambda: recipe.discriminator_gradients(real, draws, penalize=False))
    r1 = count(lambda: recipe.discriminator_gradients(real, draws, penalize=True)) - plain
    update_g = count(lambda: recipe.generator_gradients(real, draws))
    return {
        "generator_forward": count(lambda: recipe.generator(real, draws.t, draws.z)),
        "r1": r1,
        "training_image": plain + update_g + r1 / cfg.loss.lazy_reg,
    }
