"""Generator and discriminator, built from a configuration."""

from __future__ import annotations

from torch import nn

from ..config import Config, ModelConfig, RunConfig
from .classifier import build_classifier
from .dense import DenseDiscriminator
from .discriminator import Discriminator
from .generator import Generator
from .rewrites import Rewrites
from .toy import PointDiscriminator, PointGenerator

__all__ = [
    "DenseDiscriminator",
    "Discriminator",
    "Generator",
    "PointDiscriminator",
    "PointGenerator",
    "Rewrites",
    "build_discriminator",
    "build_generator",
    "build_networks",
]


def build_generator(cfg: Config | ModelConfig) -> nn.Module:
    """The generator G(x_{t+1} [N, C, H, W], t [N], z [N, nz]) -> x_0 of x_{t+1}'s shape.

    A whole configuration also decides its rewrites and what it recomputes (``run``), and with
    ``loss.kind`` "classifier" that it is a classifier (x_{t+1}, t) -> logits instead.
    """
    if isinstance(cfg, Config) and cfg.loss.kind == "classifier":
        return build_classifier(cfg)
    run = cfg.run if isinstance(cfg, Config) else RunConfig()
    model = cfg.model if isinstance(cfg, Config) else cfg
    if model.kind == "mlp":
        return PointGenerator(model)
    return Generator(model, Rewrites.parse(run.rewrites), run.recompute)


def build_discriminator(cfg: Config, images: int = 2) -> nn.Module:
    """The discriminator D(x_t [N, C, H, W], t [N], x_{t+1}) -> logits [N, 1].

    With ``images`` 1 it sees x_t alone: D(x_t, t).
    """
    d, channels, classes = cfg.discriminator, cfg.model.num_channels, cfg.model.num_classes
    if d.kind == "mlp":
        return PointDiscriminator(d, channels, images, classes)
    if d.kind == "dense":
        return DenseDiscriminator(d, channels, cfg.model.image_size, images, classes)
    rewrites = Rewrites.parse(cfg.run.rewrites)
    return Discriminator(d, channels, rewrites, cfg.run.recompute, images, classes)


def build_networks(cfg: Config) -> dict[str, nn.Module]:
    """All networks that a run trains: "generator", and as the loss asks for them "discriminator"
    and "discriminator_x0"."""
    networks = {"generator": build_generator(cfg)}
    if cfg.loss.kind == "gan":
        networks["discriminator"] = build_discriminator(cfg)
    if cfg.loss.x0_weight > 0:
        # Last: the initial weights of the others stay those of a run without it.
        networks["discriminator_x0"] = build_discriminator(cfg, images=1)
    return networks
