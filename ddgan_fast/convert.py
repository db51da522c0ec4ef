"""Published checkpoints to ours and back.

Parameters have the published shapes, so conversion renames tensors and nothing else; it serves
weights, gradients and optimiser moments alike.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from .config import Config, DiscriminatorConfig, LossConfig, ModelConfig, OptimConfig
from .models import build_generator
from .models.blocks import ResidualBlock
from .models.discriminator import BLOCKS
from .models.generator import Generator
from .models.layers import Attention, ConvDownsample, FourierEmbedding, Resampler

V = TypeVar("V")

_RESIDUAL = {
    "norm0.style": "GroupNorm_0.style",
    "conv0": "Conv_0",
    "time_proj": "Dense_0",
    "norm1.style": "GroupNorm_1.style",
    "norm1": "GroupNorm_1",
    "conv1": "Conv_1",
}
_ATTENTION = {"norm": "GroupNorm_0", "query": "NIN_0", "key": "NIN_1", "value": "NIN_2"}
_ATTENTION["out"] = "NIN_3"


def generator_names(cfg: Config | ModelConfig) -> dict[str, str]:
    """Our parameter name -> published name, in the published order."""
    with torch.device("meta"):
        generator = build_generator(cfg)
    if not isinstance(generator, Generator):
        raise ValueError('only kind "ncsnpp" has a published format; this model is "mlp".')
    if not generator.cfg.nz:
        raise ValueError("model.nz is 0: every generator in the published format has a latent.")
    if generator.cfg.num_classes:
        raise ValueError(
            f"model.num_classes is {generator.cfg.num_classes}: the published format has no place "
            "for classes; ours keeps them (ema-*.safetensors)."
        )
    names = {}
    for i, (ours, module) in enumerate(generator.construction_order()):
        for suffix, theirs in _inside(module, ours):
            names[f"{ours}.{suffix}"] = f"all_modules.{i}.{theirs}"
    for i in range(len(generator.mapping.layers)):
        for leaf in ("weight", "bias"):
            names[f"mapping.layers.{i}.{leaf}"] = f"z_transform.{2 * i + 1}.{leaf}"
    return names


def discriminator_names(cfg: Config | DiscriminatorConfig) -> dict[str, str]:
    """Our parameter name -> published name, in the published order."""
    d = cfg.discriminator if isinstance(cfg, Config) else cfg
    if d.kind in ("dense", "mlp"):
        raise ValueError(
            f'only convolutional discriminators have a published format, not "{d.kind}".'
        )
    blocks = len(BLOCKS[d.kind][0]) if d.kind in BLOCKS else len(d.block_mults)
    stems = {"time_embed.layers.0": "t_embed.main.0", "time_embed.layers.1": "t_embed.main.2"}
    stems["conv_in"] = "start_conv"
    for i in range(blocks):
        for ours, theirs in (
            ("conv1", "conv1.0"),
            ("conv2", "conv2.0"),
            ("time_proj", "dense_t1"),
            ("skip", "skip.0"),
        ):
            stems[f"blocks.{i}.{ours}"] = f"conv{i + 1}.{theirs}"
    stems |= {"conv_out": "final_conv", "linear_out": "end_linear"}
    return {
        f"{ours}.{leaf}": f"{theirs}.{leaf}"
        for ours, theirs in stems.items()
        for leaf in ("weight", "bias")
        if not (leaf == "bias" and theirs.endswith("skip.0"))
    }


def _inside(module: nn.Module, name: str) -> Iterator[tuple[str, str]]:
    """(our name, published name) of the parameters within one part of the generator."""
    for ours, _ in module.named_parameters():
        stem, _, leaf = ours.rpartition(".")
        if isinstance(module, FourierEmbedding):
            yield ours, "W"
        elif isinstance(module, Attention):
            if stem != "norm":
                leaf = {"weight": "W", "bias": "b"}[leaf]
            yield ours, f"{_ATTENTION[stem]}.{leaf}"
        elif isinstance(module, ResidualBlock):
            if stem == "skip" and not isinstance(module.skip, nn.Conv2d):
                yield ours, {"weight": "NIN_0.W", "bias": "NIN_0.b"}[leaf]
            else:
                yield ours, f"{'Conv_2' if stem == 'skip' else _RESIDUAL[stem]}.{leaf}"
        elif isinstance(module, ConvDownsample):
            yield ours, f"{'Conv2d_0' if module.resample.fir else 'Conv_0'}.{leaf}"
        elif isinstance(module, nn.Conv2d) and name.endswith(".pyramid"):
            yield ours, f"Conv_0.{leaf}"
        elif not isinstance(module, Resampler):
            yield ours, ours


def _rename(
    values: Mapping[str, V], names: Mapping[str, str], what: str, strict: bool
) -> dict[str, V]:
    missing = [name for name in names if name not in values]
    unknown = [name for name in values if name not in names]
    if unknown or (strict and missing):
        raise ValueError(
            f"these {what} tensors do not fit the configuration: {len(missing)} missing "
            f"{missing[:3]}, {len(unknown)} unknown {unknown[:3]}; choose the configuration that "
            "the model was trained with."
        )
    return {theirs: values[ours] for ours, theirs in names.items() if ours in values}


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}


def _strip(values: Mapping[str, V]) -> dict[str, V]:
    return {key.removeprefix("module."): value for key, value in values.items()}


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items()
    )


def generator_from_published(
    values: Mapping[str, V], cfg: Config | ModelConfig, strict: bool = True
) -> dict[str, V]:
    """Published generator tensors (with or without "module.") under our names.

    Raises:
        ValueError: unknown names, or missing ones unless ``strict`` is off.
    """
    return _rename(_strip(values), _inverse(generator_names(cfg)), "published generator", strict)


def generator_to_published(
    values: Mapping[str, V], cfg: Config | ModelConfig, strict: bool = True
) -> dict[str, V]:
    """Our generator tensors under published names, in the published order."""
    return _rename(values, generator_names(cfg), "generator", strict)


def discriminator_from_published(
    values: Mapping[str, V], cfg: Config | DiscriminatorConfig, strict: bool = True
) -> dict[str, V]:
    """Published discriminator tensors under our names."""
    names = _inverse(discriminator_names(cfg))
    return _rename(_strip(values), names, "published discriminator", strict)


def discriminator_to_published(
    values: Mapping[str, V], cfg: Config | DiscriminatorConfig, strict: bool = True
) -> dict[str, V]:
    """Our discriminator tensors under published names, in the published order."""
    return _rename(values, discriminator_names(cfg), "discriminator", strict)


def read_published(path: str | Path) -> dict[str, Any]:
    """The contents of a published ``netG_*.pth`` or ``content.pth``, read without running code.

    Returns:
        For ``netG_*.pth``: the generator's tensors, without "module.". For ``content.pth``: its
        dict (epoch, global_step, args, netG_dict, netD_dict, optimizerG, optimizerD, schedulerG,
        schedulerD) with "module." removed and args as a dict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a published checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whose text is about torch.load, and may advise to run the code
        raise ValueError(
            f"{path} cannot be read as a checkpoint of tensors and plain values "
            f"({path.stat().st_size:,} bytes): is it complete, and really a published DDGAN "
            "checkpoint?"
        ) from error
    if isinstance(content, dict) and all(isinstance(key, str) for key in content):
        args = content.get("args")
        states = (content.get("netG_dict"), content.get("netD_dict"))
        if all(map(_is_state_dict, states)) and isinstance(args, argparse.Namespace | None):
            stripped = {key: _strip(content[key]) for key in ("netG_dict", "netD_dict")}
            return {**content, **stripped, "args": vars(args) if args is not None else {}}
        generator = _strip(content)
        if _is_state_dict(content) and any(k.startswith("all_modules.") for k in generator):
            return generator
    raise ValueError(
        f"{path} is neither a published generator (netG_*.pth) nor a published training state "
        "(content.pth): it lacks their names."
    )


def ema_of_content(
    content: Mapping[str, Any], cfg: Config | ModelConfig
) -> dict[str, torch.Tensor]:
    """The averaged generator in a ``content.pth``, under our names.

    The published optimiser numbers parameters in state-dict order and keeps the average beside
    its moments; a parameter without one (it never got a gradient) keeps its weight.

    Raises:
        ValueError: the run kept no average.
    """
    state = content["optimizerG"]["state"]
    if not any("ema" in entry for entry in state.values()):
        raise ValueError("this content.pth holds no EMA weights: its run had no use_ema; use raw.")
    raw = content["netG_dict"]
    average = {
        name: state.get(i, {}).get("ema", weight) for i, (name, weight) in enumerate(raw.items())
    }
    return generator_from_published(average, cfg)


def config_of_args(args: Mapping[str, Any]) -> Config:
    """Our configuration of a published run from the arguments stored in its ``content.pth``."""
    fields = {f.name for f in dataclasses.fields(ModelConfig)}
    model = {key: value for key, value in args.items() if key in fields}
    for key in ("ch_mult", "attn_resolutions", "fir_kernel"):
        if key in model:
            model[key] = tuple(model[key])
    model["tanh"] = not args.get("not_use_tanh", False)
    model["schedule"] = "geometric" if args.get("use_geometric", False) else "vp"
    kind = "small" if args.get("dataset") in ("cifar10", "stackmnist") else "large"
    cfg = Config(preset="published", model=ModelConfig(**model))
    cfg.discriminator = DiscriminatorConfig(
        kind=kind, ngf=args.get("ngf", 64), t_emb_dim=args.get("t_emb_dim", 256)
    )
    cfg.loss = LossConfig(
        r1_gamma=args.get("r1_gamma", 0.05), lazy_reg=args.get("lazy_reg") or 1
    )
    cfg.optim = OptimConfig(
        lr_g=args.get("lr_g", 1.5e-4),
        lr_d=args.get("lr_d", 1e-4),
        beta1=args.get("beta1", 0.5),
        beta2=args.get("beta2", 0.9),
        lr_decay="none" if args.get("no_lr_decay", False) else "cosine",
        ema_decay=args.get("ema_decay", 0.9999) if args.get("use_ema", False) else 0.0,
    )
    cfg.run.batch_size = args.get("batch_size", 128) * args.get("world_size", 1)
    return cfg
