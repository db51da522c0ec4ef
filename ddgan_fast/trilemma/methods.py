"""The methods compared: a preset's DDGAN, and the baselines that belong to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddgan_fast.config import Config, list_presets, load_config

DEFAULT = ("ddgan", "ddpm200", "ddpm1000", "oneshot")
KNOWN = "ddgan, oneshot, noz, or ddpm and its number of steps, such as ddpm200"

_FEW = 50
_DDPM = re.compile(r"ddpm([1-9][0-9]*)")

# Ho et al.'s linear rates in continuous time, their loss, and the Adam they used. The network is
# the preset's own without latent.
_DDPM_OPTIONS: dict[str, Any] = {
    "model.schedule": "vp",
    "model.beta_min": 0.1,
    "model.beta_max": 20.0,
    "model.nz": 0,
    "model.tanh": False,
    "loss.kind": "ddpm",
    "loss.r1_gamma": 0.0,
    "loss.lazy_reg": 1,
    "loss.terms": {},
    "loss.x0_weight": 0.0,
    "optim.lr_g": 2e-4,
    "optim.beta1": 0.9,
    "optim.beta2": 0.999,
}
# One step from noise, in whose input hardly any signal is left.
_ONESHOT_OPTIONS: dict[str, Any] = {
    "model.num_timesteps": 1,
    "model.schedule": "vp",
    "model.beta_min": 0.1,
    "model.beta_max": 20.0,
}
# What tells a method from the DDGAN, so that the user's value is the DDGAN's alone.
_DDGAN_ONLY = ("num_timesteps", "schedule", "beta_min", "beta_max", "nz")


@dataclass(frozen=True)
class Drawing:
    """One way to sample from a method; a row of the report.

    Attributes:
        title: what the report calls it.
        sampler, steps: as of ``samplers.choose``; None for a GAN.
    """

    title: str
    sampler: str | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Method:
    """One training, and the ways to sample from it.

    Attributes:
        name: on the command line.
        title: in the report.
        cfg: its configuration; the comparison sets seed, steps and directory.
        drawings: the report's own row first; with it the training's progress is measured, too.
    """

    name: str
    title: str
    cfg: Config
    drawings: tuple[Drawing, ...]


def build_methods(
    preset: str, names: Sequence[str], overrides: Mapping[str, Any] | None = None
) -> list[Method]:
    """The methods of these names, made from a preset.

    A preset NAME_ddpm, NAME_oneshot or NAME_noz is taken where there is one. Otherwise a baseline
    is the preset with as little changed as makes the method. Overrides hold for all methods, but
    those of the number of steps, schedule and latent are the DDGAN's, and the options of
    objective, optimiser and discriminator are the GANs'.

    Args:
        preset: of a DDGAN.
        names: see ``KNOWN``.
        overrides: dotted options.

    Raises:
        ValueError: an unknown method, a preset that is no DDGAN's, or options that cannot work.
    """
    base = load_config(preset, overrides)
    if base.loss.kind != "gan" or base.model.num_timesteps < 2:
        raise ValueError(
            f"{preset} is no denoising diffusion GAN of two or more steps, with which baselines "
            "are compared: name such a preset, digits say."
        )
    few = base.model.num_timesteps
    return [_method(preset, base, name, dict(overrides or {}), few) for name in names]


def _method(
    preset: str, base: Config, name: str, overrides: dict[str, Any], few: int
) -> Method:
    if name == "ddgan":
        title = f"DDGAN, T = {few}"
        return Method(name, title, base, (Drawing(title),))
    shared = {k: v for k, v in overrides.items() if k.split(".")[-1] not in _DDGAN_ONLY}
    if name == "oneshot":
        title = "one-shot GAN"
        cfg = _variant(preset, "oneshot", _ONESHOT_OPTIONS, shared)
        return Method(name, title, cfg, (Drawing(title),))
    if name == "noz":
        title = f"DDGAN without latent, T = {few}"
        all_but_latent = {k: v for k, v in overrides.items() if k != "model.nz"}
        cfg = _variant(preset, "noz", {"model.nz": 0}, all_but_latent)
        return Method(name, title, cfg, (Drawing(title),))
    found = _DDPM.fullmatch(name)
    if found is None:
        raise ValueError(f"the method {name!r} is unknown: choose {KNOWN}.")
    total = int(found[1])
    for_all = {k: v for k, v in shared.items() if k.split(".")[0] in ("model", "data", "run")}
    timesteps = {"model.num_timesteps": total}
    cfg = _variant(preset, "ddpm", _DDPM_OPTIONS, for_all | timesteps)
    return Method(name, f"DDPM, T = {total}", cfg, tuple(_drawings(total, few)))


def _drawings(total: int, few: int) -> list[Drawing]:
    """All steps where they are few hundreds, DDIM otherwise; then as few steps as the DDGAN's."""
    title, steps = f"DDPM-{total}", min(_FEW, total)
    short = Drawing(f"{title}, DDIM-{steps}", "ddim", steps)
    fewest = [Drawing(f"{title}, DDIM-{few}", "ddim", few)] if few < steps else []
    if total > 10 * _FEW:
        return [short, *fewest]
    return [Drawing(title, "ancestral"), *([short] if steps < total else []), *fewest]


def _variant(
    preset: str, kind: str, options: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Config:
    """The baseline's own preset, or the DDGAN's with these options."""
    own = f"{preset}_{kind}"
    if own in list_presets():
        return load_config(own, overrides)
    return load_config(preset, {**options, **overrides})
