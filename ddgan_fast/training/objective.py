"""From a configuration and its networks to the training step that its loss asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from torch import nn

from ..config import Config
from ..diffusion import Diffusion
from ..models import Rewrites
from .classifying import STEPS
from .denoising import DenoisingStep
from .second_judge import SecondJudge
from .steps import TrainStep
from .terms import weighted_terms


def build_step(
    cfg: Config,
    networks: Mapping[str, nn.Module],
    diffusion: Diffusion,
    *,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
) -> TrainStep | DenoisingStep:
    """The training step of a configuration.

    Args:
        cfg: the configuration, validated.
        networks: as ``build_networks`` returned them.
        diffusion: the forward process.
        wrap: what turns a loss module into a data-parallel one; default none.
        autocast: context for the forward passes; default none.
    """
    generator, loss = networks["generator"], cfg.loss
    if loss.kind in STEPS:
        return STEPS[loss.kind](generator, diffusion, wrap=wrap, autocast=autocast)
    joint = Rewrites.parse(cfg.run.rewrites).joint_d
    judge = None
    if "discriminator_x0" in networks:
        gamma = loss.r1_gamma if loss.x0_r1_gamma is None else loss.x0_r1_gamma
        judge = SecondJudge(
            networks["discriminator_x0"],
            loss.x0_weight,
            gamma,
            wrap=wrap,
            autocast=autocast,
            joint=joint,
        )
    return TrainStep(
        generator,
        networks["discriminator"],
        diffusion,
        loss.r1_gamma,
        wrap=wrap,
        autocast=autocast,
        joint=joint,
        terms=weighted_terms(loss.terms),
        judge=judge,
    )
