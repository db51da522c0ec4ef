"""Run directories of untrained generators, for the tests of ``ddgan-fast evaluate``."""

from pathlib import Path

import torch

from ddgan_fast.config import from_dict, load_config, to_dict
from ddgan_fast.models import build_generator
from ddgan_fast.training.checkpoint import save_ema

IMAGES = {
    "model.num_channels_dae": 8,
    "model.ch_mult": [1, 2],
    "model.num_res_blocks": 1,
    "model.attn_resolutions": [],
    "model.num_timesteps": 2,
    "model.nz": 4,
    "model.z_emb_dim": 8,
}
"""Overrides that make a preset's generator of images small."""


def save_run(folder: Path, preset: str, overrides: dict) -> Path:
    """A snapshot of an untrained generator whose samples differ from one another."""
    cfg = from_dict(to_dict(load_config(preset, overrides)))
    random = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = build_generator(cfg).state_dict()
    weights = {k: v + 0.1 * torch.randn(v.shape, generator=random) for k, v in weights.items()}
    folder.mkdir(exist_ok=True)
    save_ema(folder, 7, weights, to_dict(cfg))
    return folder
