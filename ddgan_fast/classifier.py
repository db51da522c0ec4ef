"""A trained classifier of diffused samples, which guides a DDPM to a class."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from .config import Config
from .fitting import Tensors, check_shapes
from .models import build_generator
from .sampling import read_checkpoint
from .training.parallel import choose_device

_DIFFUSION = ("num_timesteps", "schedule", "beta_min", "beta_max")
_SHAPE = ("kind", "image_size", "num_channels")


class LoadedClassifier(nn.Module):
    """A classifier in evaluation mode, without gradients for its weights.

    Args:
        cfg: its configuration, with ``loss.kind`` "classifier".
        weights: its tensors.
        source: the file it comes from.

    Raises:
        ValueError: the file holds no classifier, or its tensors do not fit.
    """

    def __init__(self, cfg: Config, weights: Tensors, source: Path) -> None:
        super().__init__()
        if cfg.loss.kind != "classifier":
            raise ValueError(
                f"{source} holds no classifier, but a model trained with loss.kind "
                f'"{cfg.loss.kind}": train one with the preset digits_classifier, or with '
                "--loss.kind classifier."
            )
        with torch.random.fork_rng(devices=[]):  # the initial weights are drawn in vain
            network = build_generator(cfg)
        check_shapes(dict(network.state_dict()), weights, cfg, source)
        network.load_state_dict(weights)
        self.cfg, self.source, self.network = cfg, source, network
        self.requires_grad_(False).eval()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Logits [N, K] of x_{t+1} [N, ...] and t int64 [N]."""
        return self.network(x, t)

    def check(self, cfg: Config) -> None:
        """Refuse to guide a model that it was not trained for.

        Raises:
            ValueError: says what does not fit.
        """
        if cfg.loss.kind != "ddpm":
            raise ValueError(
                "a classifier moves predicted noise, so it guides a DDPM, and this model is a "
                "denoising diffusion GAN: leave the classifier out (a GAN trained with classes "
                "takes --class and --guidance)."
            )
        own, model = self.cfg.model, cfg.model
        names = _DIFFUSION + (_SHAPE if model.kind != "mlp" else ("kind",))
        if model.num_classes:
            names += ("num_classes",)
        for name in names:
            theirs, ours = getattr(model, name), getattr(own, name)
            if theirs != ours:
                raise ValueError(
                    f"{self.source} was trained with model.{name} = {ours}, and the model that it "
                    f"is to guide with {theirs}: they must agree, so train a classifier for it."
                )


def load_classifier(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> LoadedClassifier:
    """Load a classifier: a run directory (its newest average), ``ema-*.safetensors`` or state.

    Raises:
        FileNotFoundError: no such file, or no checkpoint in the directory.
        ValueError: a file that holds no classifier of ours.
        UnreadableError: a damaged file.
    """
    cfg, weights, _, file = read_checkpoint(path)
    return LoadedClassifier(cfg, weights, file).to(choose_device(str(device)))
