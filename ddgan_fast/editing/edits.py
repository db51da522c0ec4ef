"""The edits: each says where denoising starts, what it draws and what it keeps.

Sources: noise-then-denoise and strokes, Meng et al., "SDEdit" (ICLR 2022); known pixels replaced
at every noise level, Lugmayr et al., "RePaint" (CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..sampling import LoadedGenerator
from .loop import check_images, check_mask, check_model, check_size, denoise, in_batches, noised
from .noise import MOVES, Between, Draws


def noise_then_denoise(
    model: LoadedGenerator,
    images: np.ndarray,
    strength: int,
    *,
    seed: int = 0,
    start: int = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Bring images to noise level ``strength`` and denoise them from there.

    Args:
        model: an image model from ``load_generator``.
        images: uint8 [N, H, W, C] of any size that ``check_size`` allows.
        strength: from 0 (the images come back) to T (nothing of them is left: new samples).
        seed: picks the noise.
        start: sample number of the first image; equal images with other numbers vary.
        batch_size: how many at once; default what the memory is thought to hold.

    Returns:
        uint8 [N, H, W, C].

    Raises:
        ValueError: a model of points, images that do not fit it, or a number out of range.
    """
    return strokes_to_image(model, images, strength, seed=seed, start=start, batch_size=batch_size)


def strokes_to_image(
    model: LoadedGenerator,
    strokes: np.ndarray,
    strength: int,
    *,
    painted: np.ndarray | None = None,
    seed: int = 0,
    start: int = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Make images of coarse paintings; the strength says how far they may leave them.

    Args:
        model, strength, seed, start, batch_size: as for ``noise_then_denoise``.
        strokes: uint8 [N, H, W, C], paintings, or photographs that were painted on.
        painted: bool [N, H, W], where; all other pixels come back exactly. Default: everywhere.

    Returns:
        uint8 [N, H, W, C].

    Raises:
        ValueError: as for ``noise_then_denoise``, or a mask that does not fit the images.
    """
    steps = model.diffusion.num_timesteps
    if not 0 <= strength <= steps:
        raise ValueError(
            f"the strength is {strength}: it must be from 0 (the image comes back) to {steps}, the "
            "model's number of steps (nothing of it is left)."
        )
    return _edit(model, strokes, painted, strength, seed, start, batch_size)


def inpaint(
    model: LoadedGenerator,
    images: np.ndarray,
    missing: np.ndarray,
    *,
    seed: int = 0,
    start: int = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Fill in missing pixels; the known ones come back exactly.

    At every noise level t the known pixels are replaced by a draw from q(x_t | x_0) of the given
    image.

    Args:
        model, seed, start, batch_size: as for ``noise_then_denoise``.
        images: uint8 [N, H, W, C]; what they hold at missing pixels does not matter.
        missing: bool [N, H, W].

    Returns:
        uint8 [N, H, W, C].

    Raises:
        ValueError: as for ``noise_then_denoise``, or a mask that does not fit the images.
    """
    steps = model.diffusion.num_timesteps
    return _edit(model, images, missing, steps, seed, start, batch_size)


def _edit(
    model: LoadedGenerator,
    images: np.ndarray,
    edited: np.ndarray | None,
    strength: int,
    seed: int,
    start: int,
    batch_size: int | None,
) -> np.ndarray:
    """Denoise from level ``strength`` of the images; pixels that are not edited stay theirs."""
    check_images(model, images)
    if edited is not None:
        check_mask(edited, images)
    shape = (images.shape[3], *images.shape[1:3])
    everything = strength == model.diffusion.num_timesteps

    def work(index: torch.Tensor) -> torch.Tensor:
        rows = (index - start).cpu()
        x0 = torch.from_numpy(images)[rows].to(index.device).permute(0, 3, 1, 2) / 127.5 - 1.0
        noise = Draws(model, seed, index, shape)
        first = noise.first()
        x = noised(model, x0, strength, first)
        if edited is None:
            return denoise(model, noise, first if everything else x, strength)
        change = torch.from_numpy(edited)[rows].to(index.device)[:, None]
        if everything:  # what is to be new starts as a sample does, from noise alone
            x = torch.where(change, first, x)

        def keep(t: int, predicted: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
            # The posterior's noise was used at the other pixels only.
            return torch.where(change, x_t, noised(model, x0, t, noise.posterior(t)))

        return denoise(model, noise, x, strength, keep)

    return in_batches(
        model, len(images), work, shape=shape, seed=seed, start=start, batch_size=batch_size
    )


def interpolate(
    model: LoadedGenerator,
    samples: Sequence[int],
    frames: int,
    *,
    move: str = "both",
    seed: int = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Images on the way from sample to sample, by slerp of their noise.

    Args:
        model, seed, batch_size: as for ``noise_then_denoise``.
        samples: numbers of at least two samples, as ``generate`` counts them.
        frames: images on each way, its beginning included.
        move: "both"; "x" (x_T and the posterior's noise, while the latents z stay the first
            sample's); or "z" (the latents alone).

    Returns:
        uint8 [frames * (len(samples) - 1) + 1, H, W, C]. With "both" frame ``i * frames`` is sample
        ``samples[i]``.

    Raises:
        ValueError: a model of points, or an argument out of range.
    """
    check_model(model)
    if len(samples) < 2 or min(samples) < 0 or frames < 1:
        raise ValueError(
            "interpolation needs the numbers of at least two samples, from 0 on, and at least one "
            f"frame on each way, not {list(samples)} and {frames}."
        )
    if move not in MOVES:
        raise ValueError(f'move is {move!r}: choose "both", "x" or "z".')
    ways = len(samples) - 1
    numbers = torch.tensor(samples, dtype=torch.int64, device=model.device)

    def work(frame: torch.Tensor) -> torch.Tensor:
        way = torch.clamp(frame // frames, max=ways - 1)
        start, end, rest = (
            Draws(model, seed, numbers[at], model.sample_shape) for at in (way, way + 1, way * 0)
        )
        weight = (frame - way * frames).double() / frames
        noise = Between(start, end, rest, weight, move)
        return denoise(model, noise, noise.first())

    return in_batches(
        model,
        frames * ways + 1,
        work,
        shape=model.sample_shape,
        seed=seed,
        batch_size=batch_size,
    )


def sample_at(
    model: LoadedGenerator,
    n: int,
    height: int,
    width: int,
    *,
    seed: int = 0,
    start: int = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Samples of another size than the model was trained for.

    Args:
        model, seed, start, batch_size: as for ``noise_then_denoise``.
        n: how many.
        height: in pixels, as ``check_size`` allows.
        width: likewise.

    Returns:
        uint8 [n, height, width, C].

    Raises:
        ValueError: a size that the network does not allow, or a number out of range.
    """
    check_size(model, height, width)
    shape = (model.cfg.model.num_channels, height, width)

    def work(index: torch.Tensor) -> torch.Tensor:
        noise = Draws(model, seed, index, shape)
        return denoise(model, noise, noise.first())

    return in_batches(model, n, work, shape=shape, seed=seed, start=start, batch_size=batch_size)


def trajectories(
    model: LoadedGenerator,
    n: int,
    *,
    seed: int = 0,
    start: int = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """What sampling passes through on its way.

    Args:
        model, seed, start, batch_size: as for ``noise_then_denoise``.
        n: how many samples.

    Returns:
        uint8 [n, 2T, H, W, C]: x_T; then the predicted x_0 and the drawn x_t of each step; of the
        last step the sample alone.

    Raises:
        ValueError: a model of points, or a number out of range.
    """
    check_model(model)
    shape = model.sample_shape

    def work(index: torch.Tensor) -> torch.Tensor:
        noise = Draws(model, seed, index, shape)
        stages = [noise.first()]

        def watch(t: int, predicted: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            stages.extend([predicted, x] if t else [x])
            return x

        denoise(model, noise, stages[0], after=watch)
        return torch.stack(stages, 1)

    return in_batches(model, n, work, shape=shape, seed=seed, start=start, batch_size=batch_size)
