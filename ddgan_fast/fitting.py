"""Whether a checkpoint's tensors and a configuration belong together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from . import convert
from .config import Config, ModelConfig, list_presets, load_config
from .models import build_generator

Tensors = Mapping[str, torch.Tensor]


def need(given: Config | None, file: Path, values: Tensors | None = None) -> Config:
    if given is not None:
        return given
    fitting = [] if values is None else [name for name in list_presets() if fits(name, values)]
    hint = f" (its tensors fit {', '.join(fitting)})" if fitting else ""
    raise ValueError(
        f"{file} holds weights without their configuration: name the preset or YAML file it was "
        f"trained with{hint} by --recipe, or config=... in Python."
    )


def fits(preset: str, values: Tensors) -> bool:
    """Whether published tensors have the names and shapes of a preset's generator."""
    cfg = load_config(preset)
    found = revealed(values)  # rules most presets out, without building them
    if cfg.model.kind == "mlp" or not cfg.model.nz or cfg.model.num_classes:
        return False
    if any(getattr(cfg.model, k) != v for k, v in found.items()):
        return False
    with torch.device("meta"):
        ours = build_generator(cfg).state_dict()
    expected = convert.generator_to_published({k: v.shape for k, v in ours.items()}, cfg)
    return expected == {name: value.shape for name, value in values.items()}


def revealed(values: Tensors) -> dict[str, int]:
    """Model options that published tensors give away by their shapes."""
    found: dict[str, int] = {}
    convs = [v for k, v in values.items() if k.startswith("all_modules.") and v.ndim == 4]
    if convs:  # the first one takes the image
        found["num_channels_dae"], found["num_channels"] = convs[0].shape[:2]
    if "z_transform.1.weight" in values:
        found["z_emb_dim"], found["nz"] = values["z_transform.1.weight"].shape
        layers = [k for k in values if k.startswith("z_transform.") and k.endswith(".weight")]
        found["n_mlp"] = len(layers) - 1
    return found


def check_revealed(found: Mapping[str, int], cfg: Config, file: Path) -> None:
    for name, value in found.items():
        asked = getattr(cfg.model, name)
        if asked != value:
            raise ValueError(
                f"{file} does not fit the configuration {cfg.preset!r}: its tensors were made "
                f"with model.{name} = {value}, and the configuration has {asked}; choose the one "
                "that the model was trained with."
            )


def check_shapes(own: Tensors, weights: Tensors, cfg: Config, file: Path) -> None:
    names = [*(name for name in own if name not in weights), *(n for n in weights if n not in own)]
    if names:
        holder = "the configuration" if names[0] in own else "the file"
        detail = f"{len(names)} tensors differ in name; only {holder} has {names[0]}"
    else:
        wrong = [name for name in own if own[name].shape != weights[name].shape]
        if not wrong:
            return
        theirs, ours = (list(side[wrong[0]].shape) for side in (weights, own))
        detail = f"{wrong[0]} is {theirs} in the file and {ours} in the configuration"
    raise ValueError(
        f"{file} does not fit the configuration {cfg.preset!r}: {detail}; choose the one that the "
        "model was trained with."
    )


def check_agreement(own: Config, given: Config | None, file: Path) -> None:
    """A configuration beside a file that holds its own must describe the same model."""
    if given is None:
        return
    for name in vars(ModelConfig()):
        stored, asked = getattr(own.model, name), getattr(given.model, name)
        if stored != asked:
            raise ValueError(
                f"{file} does not fit the configuration {given.preset!r}: it was trained with "
                f"model.{name} = {stored}, and the configuration has {asked}; leave the "
                "configuration out, because the file holds its own."
            )


def check_single(cfg: Config, weights: str, file: Path) -> None:
    """Files with a single set of weights hold the average, if the run kept one."""
    if weights == "raw" and cfg.optim.ema_decay > 0:
        raise ValueError(
            f"{file} holds averaged weights only: the raw ones are in state-*.pt (ours) or "
            "content.pth (published)."
        )
