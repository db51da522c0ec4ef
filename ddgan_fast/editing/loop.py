"""What all edits share: the denoising loop, batches, and the checks before them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..drawing import to_bytes
from ..sampling import LoadedGenerator, guess_batch
from ..training.precision import Precision
from .noise import Noise

MAX_TOKENS = 16_384
"""Most positions that self-attention may compare with one another: 1 GiB of float32 an image."""

After = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]


def denoise(
    model: LoadedGenerator,
    noise: Noise,
    x: torch.Tensor,
    steps: int | None = None,
    after: After | None = None,
) -> torch.Tensor:
    """From x at level ``steps`` (default T) to x_0, all [N, C, H, W].

    Args:
        model: the generator.
        noise: all draws.
        x: where to start.
        steps: how many steps to take.
        after: called after each step with t, the predicted x_0 and the drawn x_t; what it returns
            takes the place of x_t.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    for i in reversed(range(model.diffusion.num_timesteps if steps is None else steps)):
        t = torch.full((len(x),), i, dtype=torch.int64, device=x.device)
        predicted = model(x, t, noise.latent(i))
        x = model.diffusion.sample_posterior(predicted, x, t, noise=noise.posterior(i))
        if after is not None:
            x = after(i, predicted, x)
    return x


def noised(
    model: LoadedGenerator, x0: torch.Tensor, level: int, noise: torch.Tensor
) -> torch.Tensor:
    """x_level ~ q(x_level | x_0), all [N, C, H, W]; level 0 to T, 0 returns x0 exactly."""
    tables = model.diffusion.tables
    signal, sigma = (float(tables[name][level]) for name in ("a_s_cum", "sigmas_cum"))
    return signal * x0 + sigma * noise


def in_batches(
    model: LoadedGenerator,
    n: int,
    work: Callable[[torch.Tensor], torch.Tensor],
    *,
    shape: Sequence[int],
    seed: int,
    start: int = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Pixels of samples ``start`` to ``start + n - 1``.

    Args:
        model: the generator.
        n: how many.
        work: makes images [N, C, H, W], or rows of them [N, S, C, H, W], of numbers int64 [N].
        shape: (C, H, W).
        seed, start, batch_size: as the edits were given them.

    Returns:
        uint8 [n, H, W, C] or [n, S, H, W, C].

    Raises:
        ValueError: a number out of range, or images that hold NaN.
    """
    for name, value, least in (("n", n, 1), ("seed", seed, 0), ("start", start, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}: it must be at least {least}.")
    if seed >= 2**63:
        raise ValueError(f"seed is {seed}: it must be below 2**63.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"the batch size is {batch_size}: it must be at least 1.")
    size = batch_size or _guess(model, shape)
    numbers = torch.arange(start, start + n, dtype=torch.int64, device=model.device)
    found = []
    with torch.no_grad(), Precision("fp32", model.device.type).settings():
        for index in numbers.split(size):
            images = work(index)
            pixels, bad = to_bytes(images.flatten(0, -4))
            if bad is not None and bad.item():
                raise ValueError(
                    f"the images hold NaN: the network in {model.source} has diverged."
                )
            found.append(pixels.reshape(*images.shape[:-3], *pixels.shape[1:]).cpu().numpy())
    return np.concatenate(found)


def _guess(model: LoadedGenerator, shape: Sequence[int]) -> int:
    """How many at once, by what sampling thinks of the model's own size."""
    usual = int(np.prod(model.sample_shape))
    return max(1, min(guess_batch(model), guess_batch(model) * usual // int(np.prod(shape))))


def check_size(model: LoadedGenerator, height: int, width: int) -> None:
    """Refuse a size in pixels at which the network cannot work.

    Raises:
        ValueError: says why, and which sizes can.
    """
    check_model(model)
    cfg = model.cfg.model
    coarsest = len(cfg.ch_mult) - 1
    factor = 2**coarsest
    if min(height, width) < factor or height % factor or width % factor:
        raise ValueError(
            f"the size {height}x{width} does not fit: height and width must be multiples of "
            f"{factor}, because the model has {coarsest + 1} resolutions."
        )
    # The coarsest level always has attention, the others where their usual size is listed.
    with_attention = [
        level for level in range(coarsest) if cfg.image_size >> level in cfg.attn_resolutions
    ]
    finest = min([*with_attention, coarsest])
    tokens = (height >> finest) * (width >> finest)
    if tokens > MAX_TOKENS:
        raise ValueError(
            f"the size {height}x{width} costs too much: self-attention would compare {tokens:,} "
            f"positions with one another, and {MAX_TOKENS:,} are the most; choose a size of at "
            f"most {MAX_TOKENS << 2 * finest:,} pixels."
        )


def check_model(model: LoadedGenerator) -> None:
    """Refuse models of points, and those that predict noise.

    Raises:
        ValueError: says so.
    """
    if model.cfg.model.kind == "mlp":
        raise ValueError(f"{model.source} makes points, and editing needs a model of images.")
    if model.cfg.loss.kind != "gan":
        raise ValueError(
            f"{model.source} is a {model.cfg.loss.kind}, which predicts noise, and editing needs a "
            "generator of images (loss.kind gan)."
        )


def check_images(model: LoadedGenerator, images: np.ndarray) -> None:
    """Refuse images that the model cannot take.

    Raises:
        ValueError: says why.
    """
    check_model(model)
    channels = model.cfg.model.num_channels
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != channels:
        raise ValueError(
            f"images must be uint8 [N, H, W, {channels}] for this model, not {images.dtype} "
            f"{list(images.shape)}."
        )
    check_size(model, *images.shape[1:3])


def check_mask(mask: np.ndarray, images: np.ndarray) -> None:
    """Refuse a mask that does not belong to the images.

    Raises:
        ValueError: says why.
    """
    if mask.dtype != np.bool_ or mask.shape != images.shape[:3]:
        raise ValueError(
            f"a mask must be bool {list(images.shape[:3])} like the images, not {mask.dtype} "
            f"{list(mask.shape)}."
        )
