"""Which objectives and optimisers can work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import unknown
from .refusals import at_least, fraction, one_of, positive, require
from .training.terms import known_terms

if TYPE_CHECKING:
    from ddgan_fast.config import Config, OptimConfig


def validate_loss(config: Config) -> None:
    """Refuses an objective that cannot work, or that does not fit the model."""
    loss = config.loss
    one_of("loss.kind", loss.kind, ("gan", "ddpm", "classifier"))
    at_least("loss.r1_gamma", loss.r1_gamma, 0)
    require(
        loss.lazy_reg >= 1,
        "loss.lazy_reg",
        loss.lazy_reg,
        "it must be at least 1 (every step); loss.r1_gamma 0 turns R1 off",
    )
    for name in loss.terms:
        if name not in known_terms():
            listed = f"there are {', '.join(known_terms())}"
            raise ValueError(unknown("term", name, known_terms(), listed, " in loss.terms"))
        at_least(f"loss.terms.{name}", loss.terms[name], 0)
    at_least("loss.x0_weight", loss.x0_weight, 0)
    if loss.x0_r1_gamma is not None:
        at_least("loss.x0_r1_gamma", loss.x0_r1_gamma, 0)
    if loss.kind == "ddpm":
        _noise_predictor(config)
    if loss.kind == "classifier":
        _classifier(config)


def _noise_predictor(config: Config) -> None:
    model = config.model
    why = 'with loss.kind "ddpm", whose network'
    require(model.nz == 0, "model.nz", model.nz, f"it must be 0 {why} takes no latent")
    require(
        not model.tanh, "model.tanh", model.tanh, f"it must be false {why} predicts unbounded noise"
    )
    require(
        model.centered,
        "model.centered",
        model.centered,
        'it must be true with loss.kind "ddpm", whose samplers clip images to [-1, 1]',
    )
    require(
        config.loss.lazy_reg == 1,
        "loss.lazy_reg",
        config.loss.lazy_reg,
        'it must be 1 with loss.kind "ddpm": without a discriminator there is no R1 to leave out',
    )
    _without_terms(config, "predicts noise and no x_0")


def _without_terms(config: Config, what: str) -> None:
    for name in ("x0_weight", "terms"):
        value = getattr(config.loss, name)
        rule = f'must stay off with loss.kind "{config.loss.kind}", which {what}'
        require(not value, f"loss.{name}", value, f"it {rule}")


def _classifier(config: Config) -> None:
    model, run = config.model, config.run
    require(
        model.num_classes >= 2,
        "model.num_classes",
        model.num_classes,
        'it must be at least 2 with loss.kind "classifier", which tells classes apart',
    )
    require(
        model.centered,
        "model.centered",
        model.centered,
        'it must be true with loss.kind "classifier", which sees what a DDPM sees',
    )
    for name, value, allowed in (
        ("loss.lazy_reg", config.loss.lazy_reg, 1),
        ("run.evaluate_every", run.evaluate_every, 0),
    ):
        why = "there is no R1 to leave out" if allowed else "a classifier draws no samples"
        rule = f'it must be {allowed} with loss.kind "classifier": {why}'
        require(value == allowed, name, value, rule)
    _without_terms(config, "tells classes apart and predicts no x_0")


def validate_optim(optim: OptimConfig, adversarial: bool) -> None:
    """Refuses rates and averages that cannot work; lr_d counts only where there is a D."""
    for name in ("lr_g", "lr_d", "eps"):
        positive(f"optim.{name}", getattr(optim, name))
    for name in ("beta1", "beta2", "ema_decay"):
        fraction(f"optim.{name}", getattr(optim, name))
    one_of("optim.lr_decay", optim.lr_decay, ("cosine", "none"))
    at_least("optim.lr_min", optim.lr_min, 0)
    rates = {"optim.lr_g": optim.lr_g} | ({"optim.lr_d": optim.lr_d} if adversarial else {})
    lowest = min(rates.values())
    which = "the smaller of " if adversarial else ""
    require(
        optim.lr_decay == "none" or optim.lr_min <= lowest,
        "optim.lr_min",
        optim.lr_min,
        f"it must be at most {which}{' and '.join(rates)}, {lowest}, because the cosine falls to "
        "it",
    )
    at_least("optim.lr_interval", optim.lr_interval, 1)
    one_of("optim.backend", optim.backend, ("auto", "torch", "apex", "foreach", "loop"))
