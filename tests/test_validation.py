"""Which configurations are refused, with which words, and which are not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ddgan_fast.config import load_config, validate
from ddgan_fast.validation import group_norm_widths

DDPM = {"model.resblock_type": "ddpm", "model.resamp_with_conv": False}
CUSTOM = {"discriminator.kind": "custom"}
TWO_BLOCKS = CUSTOM | {
    "discriminator.block_mults": [2, 4],
    "discriminator.block_downs": [True, True],
}
ONE_HALVING = {"discriminator.block_mults": [2], "discriminator.block_downs": [True]}
GEOMETRIC = {"model.schedule": "geometric", "model.beta_max": 0.9}
PIXELS = "model.image_size"
WIDTH = "model.num_channels_dae"
MULTS = "model.ch_mult"
ONE_LEVEL = {MULTS: [1]}
NOISE = {"loss.kind": "ddpm", "loss.lazy_reg": 1, "model.nz": 0, "model.tanh": False}

REFUSED = {
    "cifar10": [
        ({"model.kind": "unet"}, 'model.kind is "unet": it must be "ncsnpp" or "mlp".'),
        ({"model.num_channels": 2}, "model.num_channels is 2: it must be 1, 3 or 4."),
        ({PIXELS: 0}, "model.image_size is 0: it must be at least 1."),
        (
            CUSTOM | ONE_HALVING | {PIXELS: 30},
            "model.image_size is 30: it must be divisible by 8, because ch_mult has 4 resolutions.",
        ),
        ({"model.num_timesteps": 0}, "model.num_timesteps is 0: it must be at least 1."),
        ({"model.num_timesteps": 10**7, "model.beta_min": 0}, "no noise in float32"),
        ({"model.nz": -1}, "model.nz is -1: it must be at least 0."),
        ({"loss.kind": "vae"}, 'loss.kind is "vae": it must be "gan", "ddpm" or "classifier".'),
        (NOISE | {"model.nz": 4}, 'model.nz is 4: it must be 0 with loss.kind "ddpm"'),
        (NOISE | {"model.tanh": True}, "model.tanh is true: it must be false with loss.kind"),
        (NOISE | {"model.centered": False}, "model.centered is false: it must be true with"),
        (NOISE | {"loss.lazy_reg": 2}, "loss.lazy_reg is 2: it must be 1 with loss.kind"),
        (
            NOISE | {"optim.lr_g": 1e-6},
            "optim.lr_min is 1e-05: it must be at most optim.lr_g, 1e-06, because the cosine",
        ),
        ({"model.z_emb_dim": 0}, "model.z_emb_dim is 0: it must be at least 1."),
        ({"model.n_mlp": -1}, "model.n_mlp is -1: it must be at least 0."),
        ({"model.num_res_blocks": 0}, "model.num_res_blocks is 0: it must be at least 1."),
        ({MULTS: []}, "model.ch_mult is []: it must be a list of at least one number"),
        ({MULTS: [1, 0]}, "model.ch_mult is [1, 0]: it must be a list"),
        ({"model.attn_resolutions": [16, 0]}, "model.attn_resolutions is [16, 0]: each entry"),
        ({"model.dropout": 1}, "model.dropout is 1.0: it must be at least 0 and below 1."),
        ({"model.dropout": -0.1}, "model.dropout is -0.1: it must be at least 0 and below 1."),
        ({"model.fir_kernel": [1, -1]}, "model.fir_kernel is [1.0, -1.0]: its taps must not sum"),
        ({"model.fir_kernel": []}, "model.fir_kernel is []: its taps must not sum to 0"),
        ({WIDTH: 2}, "model.num_channels_dae is 2: it must be at least 4, because the timestep"),
        ({WIDTH: 3}, "the timestep embedding divides by (width // 2 - 1)."),
        (
            {WIDTH: 36, MULTS: [4]},
            "with ch_mult [4] a group norm at 32 pixels on the way down gets",
        ),
        ({WIDTH: 100, MULTS: [2]}, "gets 200 channels, which its 32 groups"),
        # 68 channels can be normalised, but not the 136 that a skip connection makes of them.
        ({WIDTH: 68, MULTS: [1]}, "on the way up (with the skip connection) gets 136 channels"),
        ({WIDTH: 9, MULTS: [1]}, "gets 9 channels, which its 2 groups"),
        ({"model.embedding_type": "fourier"}, "embedding takes log t, and t runs from 0"),
        ({"model.embedding_type": "learned"}, 'is "learned": it must be "positional".'),
        (
            {"model.progressive": "residual"},
            'it must be "none" or "output_skip", because the resid',
        ),
        (
            {"model.progressive": "x"},
            'model.progressive is "x": it must be "none" or "output_skip".',
        ),
        ({"model.progressive_input": "x"}, 'it must be "none", "input_skip" or "residual".'),
        ({"model.progressive_combine": "x"}, 'it must be "sum" or "cat".'),
        ({"model.resblock_type": "x"}, 'it must be "biggan", "biggan_oneadagn" or "ddpm".'),
        ({"model.resblock_type": "ddpm"}, "model.resamp_with_conv is true: it must be false with"),
        (
            DDPM | {"model.fir": False},
            'model.fir is false: it must be true with resblock_type "ddpm',
        ),
        (
            {"model.progressive": "output_skip", "model.fir": False},
            'model.fir is false: it must be true with progressive "output_skip"',
        ),
        ({"model.schedule": "x"}, 'model.schedule is "x": it must be "vp" or "geometric".'),
        ({"model.schedule": "geometric"}, "model.beta_max is 20.0: it must lie between 0 and 1"),
        (GEOMETRIC | {"model.beta_min": 0}, "model.beta_min is 0.0: it must lie between 0 and 1"),
        (GEOMETRIC | {"model.beta_max": 1}, "model.beta_max is 1.0: it must lie between 0 and 1"),
        (
            GEOMETRIC | {"model.beta_min": 0.95},
            "model.beta_max is 0.9: it must be above model.beta",
        ),
        ({"model.beta_min": -0.1}, "model.beta_min is -0.1: it must be at least 0 for"),
        ({"model.beta_min": 20}, "it must be above model.beta_min, which is 20.0."),
        ({"model.beta_min": 0, "model.beta_max": 1e-9}, "the first step would add no noise"),
        ({"model.beta_max": 2000}, "model.beta_max is 2000.0: it must be smaller, because no sig"),
        ({"model.beta_max": 1e300}, "no signal would be left before the last step."),
        ({"discriminator.kind": "mlp"}, 'it must be "small", "large", "custom" or "dense", bec'),
        ({"discriminator.ngf": 0}, "discriminator.ngf is 0: it must be at least 1."),
        ({"discriminator.t_emb_dim": 2}, "discriminator.t_emb_dim is 2: it must be at least 4"),
        ({"discriminator.t_emb_dim": 3}, "discriminator.t_emb_dim is 3: it must be at least 4"),
        ({"discriminator.kind": "large"}, "it must be divisible by 64, because the large discrim"),
        (CUSTOM, "discriminator.block_mults is []: it must be a list of at least one number"),
        ({"loss.r1_gamma": -1}, "loss.r1_gamma is -1.0: it must be at least 0."),
        ({"loss.lazy_reg": 0}, "loss.lazy_reg is 0: it must be at least 1 (every step)"),
        ({"optim.lr_g": 0}, "optim.lr_g is 0.0: it must be above 0."),
        ({"optim.lr_d": -1}, "optim.lr_d is -1.0: it must be above 0."),
        ({"optim.eps": 0}, "optim.eps is 0.0: it must be above 0."),
        ({"optim.beta1": 1}, "optim.beta1 is 1.0: it must be at least 0 and below 1."),
        ({"optim.beta2": -0.1}, "optim.beta2 is -0.1: it must be at least 0 and below 1."),
        ({"optim.ema_decay": 1}, "optim.ema_decay is 1.0: it must be at least 0 and below 1."),
        ({"optim.lr_decay": "linear"}, 'is "linear": it must be "cosine" or "none".'),
        ({"optim.lr_min": -1}, "optim.lr_min is -1.0: it must be at least 0."),
        ({"optim.lr_min": 1.3e-4}, "at most the smaller of optim.lr_g and optim.lr_d, 0.000125"),
        ({"optim.lr_interval": 0}, "optim.lr_interval is 0: it must be at least 1."),
        ({"optim.backend": "x"}, 'it must be "auto", "torch", "apex", "foreach" or "loop".'),
        ({"data.source": "hdf5"}, 'is "hdf5": it must be "digits", "gaussians25", "synthetic",'),
        ({"data.split": "test"}, 'is "test": it must be "train", "validation" or "both".'),
        ({"data.source": "gaussians25"}, "which takes images, but gaussians25 has points."),
        ({"data.mode": "x"}, 'data.mode is "x": it must be "stream" or "epoch".'),
        ({"data.cache": "x"}, 'data.cache is "x": it must be "auto", "gpu", "ram" or "none".'),
        ({"data.workers": -1}, "data.workers is -1: it must be at least 0."),
        ({"data.limit": 0}, "data.limit is 0: it must be at least 1."),
        ({"data.lsun_class": "church"}, 'it must be "bedroom", "bridge", "church_outdoor",'),
        ({"run.steps": 0}, "run.steps is 0: it must be at least 1."),
        ({"run.batch_size": 0}, "run.batch_size is 0: it must be at least 1."),
        ({"run.micro_batch": 0}, "run.micro_batch is 0: it must divide run.batch_size"),
        ({"run.micro_batch": 48}, "it must divide run.batch_size, which is 256."),
        ({"run.tick": 0}, "run.tick is 0: it must be at least 1."),
        ({"run.checkpoint_every": 0}, "run.checkpoint_every is 0: it must be at least 1."),
        ({"run.sample_every": -1}, "run.sample_every is -1: it must be at least 0."),
        ({"run.sample_count": 0}, "run.sample_count is 0: it must be at least 1."),
        ({"run.max_skipped": -1}, "run.max_skipped is -1: it must be at least 0."),
        ({"run.keep": 2}, "run.keep is 2: it must be at least 3."),
        ({"run.seed": -1}, "run.seed is -1: it must lie between 0 and 2**63 - 1."),
        ({"run.seed": 2**63}, "run.seed is 9223372036854775808: it must lie between"),
        ({"run.micro_batch": "none"}, 'it must be "auto", because else it is a number.'),
        ({"run.engine": "fast"}, 'it must be "auto", "eager", "compile", "graph" or "comp'),
        ({"run.timeout_s": 0}, "run.timeout_s is 0.0: it must be above 0."),
        ({"run.recompute": [0]}, "is 0: it must be 32, 16, 8 or 4, because the networks have bl"),
        ({"run.rewrites": "sdpa, fast"}, "there is no rewrite 'fast'; choose skip_low, joint_"),
        ({"run.precision": "fp8"}, 'it must be "auto", "fp32", "tf32", "bf16", "fp16" or "fp64".'),
    ],
    "digits": [
        ({PIXELS: 28, "discriminator.kind": "small"}, "divisible by 8, because the small discrim"),
        (TWO_BLOCKS | {"discriminator.block_mults": [2, 0]}, "block_mults is [2, 0]: it must"),
        (TWO_BLOCKS | {"discriminator.block_downs": [True]}, "is [true]: it must have as many"),
        (
            TWO_BLOCKS | {PIXELS: 6},
            "divisible by 4, because the cust",
        ),
    ],
    "gaussians25": [
        ({"model.num_channels": 3}, "model.num_channels is 3: it must be 2, because a point has"),
        ({"model.hidden": 0}, "model.hidden is 0: it must be at least 1."),
        ({"run.recompute": [4]}, "is 4: points have no resolution, so leave it empty"),
        ({"model.hidden_layers": 0}, "model.hidden_layers is 0: it must be at least 1."),
        ({"model.point_features": -1}, "model.point_features is -1: it must be at least 0."),
        ({"model.tanh": True}, "model.tanh is true: it must be false for gaussians25"),
        ({"data.source": "digits"}, 'takes points, and only "gaussians25" has them.'),
        ({"discriminator.kind": "small"}, 'it must be "mlp", because model.kind is "mlp".'),
        ({"discriminator.t_emb_dim": 3}, "discriminator.t_emb_dim is 3: it must be at least 4"),
        ({"discriminator.hidden": 0}, "discriminator.hidden is 0: it must be at least 1."),
        ({"discriminator.hidden_layers": 0}, "discriminator.hidden_layers is 0: it must be"),
        ({"discriminator.point_features": -1}, "discriminator.point_features is -1: it must"),
    ],
}


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [(preset, *case) for preset, cases in REFUSED.items() for case in cases],
)
def test_what_cannot_work_is_refused(preset: str, overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_config(preset, overrides)
    message = str(caught.value)
    assert words in message and message.endswith(".") and "\n" not in message, message


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("cifar10", {"run.batch_size": 5, "loss.r1_gamma": 0, "optim.ema_decay": 0}),
        ("cifar10", {"optim.lr_decay": "none", "optim.lr_g": 1e-6}),
        ("cifar10", {"data.source": "synthetic", "data.limit": 10, "data.mode": "epoch"}),
        ("cifar10", {"run.micro_batch": 64, "run.seed": 0, "run.sample_every": 0}),
        ("cifar10", {"run.seed": 2**63 - 1, "run.max_skipped": 0, "data.workers": 0}),
        ("lsun256", {"data.lsun_class": "bedroom"}),
        ("digits", {PIXELS: 28, MULTS: [1, 2, 2]}),
        ("digits", {"discriminator.kind": "small"}),
        ("celebahq256", {PIXELS: 64, "model.num_timesteps": 4}),
        ("gaussians25", {MULTS: [], PIXELS: 31, WIDTH: 3}),
    ],
)
def test_what_works_is_accepted(preset: str, overrides: dict[str, object]) -> None:
    validate(load_config(preset, overrides))


INPUTS = [
    {"model.progressive_input": "none"},
    {"model.progressive_input": "residual"},
    {"model.progressive_input": "input_skip"},
    {"model.progressive_input": "input_skip", "model.progressive_combine": "cat"},
    {"model.progressive_input": "residual", "model.progressive_combine": "cat"},
]
BLOCKS = [
    {"model.resblock_type": "biggan"},
    {"model.resblock_type": "biggan_oneadagn"},
    {"model.resblock_type": "biggan", "model.fir": False},
    {"model.resblock_type": "biggan_oneadagn", "model.fir": False},
    DDPM,
]
NETWORKS = [
    blocks | pyramid | {"model.progressive": output}
    for blocks in BLOCKS
    for pyramid in INPUTS
    for output in ("none", "output_skip")
    if output == "none" or blocks.get("model.fir", True)
]
NETWORKS += [
    {"model.conditional": False},
    {"model.num_channels": 1},
    {"model.num_channels": 4},
    {"model.num_res_blocks": 3},
    {"model.attn_resolutions": []},
    {"model.attn_resolutions": [8, 32, 7]},
    {"model.dropout": 0.1, "model.tanh": False, "model.skip_rescale": False},
    {"model.centered": False},
    {"model.fir_kernel": [1, 1]},
    {"model.fir_kernel": [1, 2, 4, 2, 0.5]},
    {"model.num_timesteps": 1},
    {PIXELS: 96},
    ONE_LEVEL | {WIDTH: 36},
    ONE_LEVEL | {WIDTH: 5},
    ONE_LEVEL | {"model.resblock_type": "ddpm", "model.fir": False},
    ONE_LEVEL | {"model.progressive": "output_skip", "model.fir": False},
]
SMALL = {WIDTH: 32, MULTS: [1, 2, 3, 3], "model.z_emb_dim": 4, "model.nz": 4, "model.n_mlp": 1}


@pytest.mark.parametrize("overrides", NETWORKS)
def test_checked_group_norms_are_those_of_the_network(overrides: dict[str, object]) -> None:
    import torch

    from ddgan_fast.models import build_generator
    from ddgan_fast.models.layers import AdaptiveGroupNorm, AffineGroupNorm

    config = load_config("cifar10", SMALL | overrides)
    with torch.device("meta"):
        network = build_generator(config)
    built = {
        module.style.out_features // 2
        if isinstance(module, AdaptiveGroupNorm)
        else module.num_channels
        for module in network.modules()
        if isinstance(module, AdaptiveGroupNorm | AffineGroupNorm)
    }
    assert {width for width, _ in group_norm_widths(config.model)} == built


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.num_timesteps": 1},
        {"model.num_timesteps": 1000},
        {"model.num_timesteps": 1_000_000},
        {"model.beta_min": 0},
        {"model.beta_min": 0, "model.beta_max": 1e-4},
        {"model.beta_max": 60},
        GEOMETRIC,
        GEOMETRIC | {"model.beta_min": 1e-6, "model.beta_max": 0.999999},
    ],
)
def test_accepted_schedules_have_finite_tables(overrides: dict[str, object]) -> None:
    model = load_config("cifar10", overrides).model
    n, low, high = model.num_timesteps, model.beta_min, model.beta_max
    s = np.arange(n + 1) / n * (1 - 1e-3) + 1e-3
    if model.schedule == "vp":
        kept = 1 - (1 - np.exp(-0.5 * s * s * (high - low) - s * low))
    else:
        kept = 1 - low * (high / low) ** s
    betas = (1 - kept[1:] / kept[:-1]).astype(np.float32)
    remaining = np.cumprod(1 - betas)
    variance = betas * (1 - np.append(np.float32(1), remaining[:-1])) / (1 - remaining)
    assert np.isfinite(variance).all() and math.isclose(variance[0], 0)
