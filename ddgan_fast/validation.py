"""Which configurations can work: every refusal is one sentence with the field, value and reason."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .refusals import (
    at_least,
    fraction,
    one_of,
    positive,
    positive_list,
    require,
    show,
)
from .validation_loss import validate_loss, validate_optim

if TYPE_CHECKING:
    from ddgan_fast.config import (
        Config,
        DataConfig,
        DiscriminatorConfig,
        ModelConfig,
        RunConfig,
    )

FILE_SOURCES = (
    "auto",
    "folder",
    "zip",
    "tar",
    "parquet",
    "lmdb",
    "cifar10",
    "idx",
    "stacked_mnist",
    "shards",
)
SOURCES = ("digits", "gaussians25", "synthetic", *FILE_SOURCES)
LOADERS = ("auto", "ring", "workers", "dali", "resident")
CACHES = ("auto", "gpu", "ram", "none")
DALI_DEVICES = ("cpu", "mixed")
RUN_CHOICES = {
    "precision": ("auto", "fp32", "tf32", "bf16", "fp16", "fp64"),
    "engine": ("auto", "eager", "compile", "graph", "compile+graph"),
    "compiler": ("inductor", "aot_eager"),
    "reduction": ("fp32", "bf16"),
    "on_divergence": ("stop", "rollback"),
}

LSUN_SCENES = (
    "bedroom",
    "bridge",
    "church_outdoor",
    "classroom",
    "conference_room",
    "dining_room",
    "kitchen",
    "living_room",
    "restaurant",
    "tower",
)


def validate(config: Config) -> None:
    """Refuses a configuration that cannot work.

    Raises:
        ValueError: names the field, its value, what is allowed and, where it is not plain, why.
    """
    validate_model(config.model)
    validate_loss(config)
    if config.loss.kind in ("gan", "classifier"):
        _discriminator(config.discriminator, config.model)
    validate_optim(config.optim, config.loss.kind == "gan")
    _data(config.data, config.model)
    _run(config.run)
    _rewrites(config.run.rewrites)
    _recompute(config)


def validate_model(model: ModelConfig) -> None:
    """Refuses a generator or a diffusion that cannot work; raises ValueError as ``validate``."""
    one_of("model.kind", model.kind, ("ncsnpp", "mlp"))
    for name in ("image_size", "num_timesteps", "z_emb_dim", "hidden", "hidden_layers"):
        at_least(f"model.{name}", getattr(model, name), 1)
    for name in ("nz", "n_mlp", "point_features", "num_classes"):
        at_least(f"model.{name}", getattr(model, name), 0)
    require(
        model.embedding_type != "fourier",
        "model.embedding_type",
        model.embedding_type,
        'it must be "positional", because the Fourier embedding takes log t, and t runs from 0 to '
        "num_timesteps - 1 (log 0 is minus infinity)",
    )
    one_of("model.embedding_type", model.embedding_type, ("positional",))
    fraction("model.label_dropout", model.label_dropout)
    require(
        model.conditional or not model.num_classes,
        "model.conditional",
        model.conditional,
        f"it must be true with model.num_classes {model.num_classes}, because the class joins the "
        "timestep's embedding",
    )
    _schedule(model)
    if model.kind == "mlp":
        one_of("model.num_channels", model.num_channels, (2,), "a point has two coordinates")
    else:
        _image_generator(model)


def _schedule(model: ModelConfig) -> None:
    one_of("model.schedule", model.schedule, ("vp", "geometric"))
    low, high = model.beta_min, model.beta_max
    if model.schedule == "vp":
        require(low >= 0, "model.beta_min", low, 'it must be at least 0 for schedule "vp"')
    else:
        rule = 'for schedule "geometric", whose rates are variances'
        require(0 < low < 1, "model.beta_min", low, f"it must lie between 0 and 1 {rule}")
        require(0 < high < 1, "model.beta_max", high, f"it must lie between 0 and 1 {rule}")
    require(low < high, "model.beta_max", high, f"it must be above model.beta_min, which is {low}")

    def kept(i: int) -> float:
        s = i / model.num_timesteps * (1 - 1e-3) + 1e-3
        if model.schedule == "vp":
            return math.exp(-0.5 * s * s * (high - low) - s * low)
        return 1 - low * (high / low) ** s

    # Up to the step before the last, which alone may destroy everything.
    require(
        kept(model.num_timesteps - 1) > 2**-53,
        "model.beta_max",
        high,
        "it must be smaller, because no signal would be left before the last step",
    )
    # Noise grows from step to step, so the first step adds the least; below 2**-25 float32 loses
    # it, and the posterior of that step would be 0 / 0.
    require(
        1 - kept(1) / kept(0) > 2**-25,
        "model.num_timesteps",
        model.num_timesteps,
        f"with beta_min {low} and beta_max {high} the first step would add no noise in float32; "
        "it must be smaller, or the rates larger",
    )


def _image_generator(model: ModelConfig) -> None:
    one_of("model.num_channels", model.num_channels, (1, 3, 4))
    _embedding_width("model.num_channels_dae", model.num_channels_dae)
    at_least("model.num_res_blocks", model.num_res_blocks, 1)
    positive_list("model.ch_mult", model.ch_mult)
    levels = len(model.ch_mult)
    require(
        model.image_size % 2 ** (levels - 1) == 0,
        "model.image_size",
        model.image_size,
        f"it must be divisible by {2 ** (levels - 1)}, because ch_mult has {levels} resolutions",
    )
    require(
        all(pixels >= 1 for pixels in model.attn_resolutions),
        "model.attn_resolutions",
        model.attn_resolutions,
        "each entry must be at least 1",
    )
    fraction("model.dropout", model.dropout)
    require(
        abs(sum(model.fir_kernel)) > 1e-6,
        "model.fir_kernel",
        model.fir_kernel,
        "its taps must not sum to 0, because they are divided by their sum",
    )
    _blocks_and_pyramids(model, resampled=levels > 1)
    for width, place in group_norm_widths(model):
        groups = min(width // 4, 32)
        require(
            groups > 0 and width % groups == 0,
            "model.num_channels_dae",
            model.num_channels_dae,
            f"with ch_mult {show(model.ch_mult)} a group norm {place} gets {width} channels, "
            + (
                f"which its {groups} groups (a quarter of the channels, at most 32) do not divide"
                if groups
                else "and it must get at least 4"
            )
            + "; multiples of 32 always work",
        )


def _blocks_and_pyramids(model: ModelConfig, resampled: bool) -> None:
    blocks = ("biggan", "biggan_oneadagn", "ddpm")
    one_of("model.resblock_type", model.resblock_type, blocks)
    require(
        model.progressive != "residual",
        "model.progressive",
        model.progressive,
        'it must be "none" or "output_skip", because the residual output pyramid fails in the '
        "published code as soon as there are two resolutions, so nothing says what it should do",
    )
    one_of("model.progressive", model.progressive, ("none", "output_skip"))
    one_of("model.progressive_input", model.progressive_input, ("none", "input_skip", "residual"))
    one_of("model.progressive_combine", model.progressive_combine, ("sum", "cat"))
    if not resampled:
        return
    if model.resblock_type == "ddpm":
        require(
            not model.resamp_with_conv,
            "model.resamp_with_conv",
            model.resamp_with_conv,
            'it must be false with resblock_type "ddpm", because upsampling with a convolution '
            "fails in the published code, so nothing says what it should do",
        )
        require(
            model.fir,
            "model.fir",
            model.fir,
            'it must be true with resblock_type "ddpm", because upsampling without the FIR filter '
            "fails in the published code, so nothing says what it should do",
        )
    if model.progressive == "output_skip":
        require(
            model.fir,
            "model.fir",
            model.fir,
            'it must be true with progressive "output_skip", because the output pyramid is '
            "upsampled with the FIR filter",
        )


def group_norm_widths(model: ModelConfig) -> Iterator[tuple[int, str]]:
    """Channels and place of the image generator's group norms, in the order of its modules."""
    widths = [model.num_channels_dae * multiplier for multiplier in model.ch_mult]
    width = model.num_channels_dae
    skips = [width]
    last = len(widths) - 1
    doubles = model.progressive_input == "input_skip" and model.progressive_combine == "cat"
    for level, out in enumerate(widths):
        place = f"at {model.image_size >> level} pixels on the way down"
        for _ in range(model.num_res_blocks):
            yield width, place
            yield out, place
            width = out
            skips.append(width)
        if level < last:
            width *= 2 if doubles else 1
            skips.append(width)
    yield width, "in the middle"
    for level in range(last, -1, -1):
        place = f"at {model.image_size >> level} pixels on the way up"
        for _ in range(model.num_res_blocks + 1):
            yield width + skips.pop(), f"{place} (with the skip connection)"
            width = widths[level]
            yield width, place


def _discriminator(disc: DiscriminatorConfig, model: ModelConfig) -> None:
    kinds = ("mlp",) if model.kind == "mlp" else ("small", "large", "custom", "dense")
    one_of("discriminator.kind", disc.kind, kinds, f'model.kind is "{model.kind}"')
    for name in ("ngf", "hidden", "hidden_layers"):
        at_least(f"discriminator.{name}", getattr(disc, name), 1)
    at_least("discriminator.point_features", disc.point_features, 0)
    _embedding_width("discriminator.t_emb_dim", disc.t_emb_dim)
    if disc.kind in ("dense", "mlp"):
        return
    halvings = _halvings(disc)
    if disc.kind == "custom":
        positive_list("discriminator.block_mults", disc.block_mults)
        require(
            len(disc.block_downs) == len(disc.block_mults),
            "discriminator.block_downs",
            disc.block_downs,
            f"it must have as many entries as discriminator.block_mults, {len(disc.block_mults)}",
        )
    require(
        model.image_size % 2**halvings == 0,
        "model.image_size",
        model.image_size,
        f"it must be divisible by {2**halvings}, because the {disc.kind} discriminator halves it "
        f'{halvings} times (discriminator.kind "custom" takes other sizes)',
    )


def _halvings(disc: DiscriminatorConfig) -> int:
    """How often a convolutional discriminator halves the resolution; 0 for others."""
    return {"small": 3, "large": 6, "custom": sum(disc.block_downs)}.get(disc.kind, 0)


def _data(data: DataConfig, model: ModelConfig) -> None:
    one_of("data.source", data.source, SOURCES)
    points = model.kind == "mlp"
    require(
        (data.source == "gaussians25") == points,
        "data.source",
        data.source,
        'model.kind "mlp" takes points, and only "gaussians25" has them'
        if points
        else f'model.kind is "{model.kind}", which takes images, but gaussians25 has points',
    )
    require(
        not (points and model.tanh),
        "model.tanh",
        model.tanh,
        "it must be false for gaussians25, whose points reach from -4 to 4",
    )
    one_of("data.mode", data.mode, ("stream", "epoch"))
    one_of("data.loader", data.loader, LOADERS)
    one_of("data.cache", data.cache, CACHES)
    one_of("data.dali_device", data.dali_device, DALI_DEVICES)
    at_least("data.workers", data.workers, 0)
    one_of("data.split", data.split, ("train", "validation", "both"))
    if data.lsun_class is not None:
        one_of("data.lsun_class", data.lsun_class, LSUN_SCENES)
    if data.limit is not None:
        at_least("data.limit", data.limit, 1)


def _run(run: RunConfig) -> None:
    for name in ("steps", "batch_size", "tick", "checkpoint_every", "sample_count"):
        at_least(f"run.{name}", getattr(run, name), 1)
    for name in ("sample_every", "evaluate_every", "max_skipped"):
        at_least(f"run.{name}", getattr(run, name), 0)
    at_least("run.evaluate_n", run.evaluate_n, 100)
    if run.threads is not None:
        at_least("run.threads", run.threads, 1)
    at_least("run.keep", run.keep, 3)
    require(0 <= run.seed < 2**63, "run.seed", run.seed, "it must lie between 0 and 2**63 - 1")
    if isinstance(run.micro_batch, str):
        one_of("run.micro_batch", run.micro_batch, ("auto",), "else it is a number")
    elif run.micro_batch is not None:
        require(
            run.micro_batch >= 1 and run.batch_size % run.micro_batch == 0,
            "run.micro_batch",
            run.micro_batch,
            f"it must divide run.batch_size, which is {run.batch_size}",
        )
    for name, allowed in RUN_CHOICES.items():
        one_of(f"run.{name}", getattr(run, name), allowed)
    positive("run.timeout_s", run.timeout_s)
    at_least("run.max_rollbacks", run.max_rollbacks, 0)


def _rewrites(text: str) -> None:
    if text not in ("auto", "all", "none"):
        from .models.rewrites import Rewrites  # takes torch, so only where it is needed

        Rewrites.parse(text)


def _recompute(config: Config) -> None:
    model = config.model
    halvings = len(model.ch_mult) - 1
    if config.loss.kind == "gan":
        halvings = max(halvings, _halvings(config.discriminator))
    sides = tuple(model.image_size >> i for i in range(halvings + 1))
    for pixels in config.run.recompute:
        if model.kind == "mlp":
            require(False, "run.recompute", pixels, "points have no resolution, so leave it empty")
        one_of("run.recompute", pixels, sides, "the networks have blocks at these alone")


def _embedding_width(name: str, value: int) -> None:
    require(
        value >= 4,
        name,
        value,
        "it must be at least 4, because the timestep embedding divides by (width // 2 - 1)",
    )
