"""Pictures from and to files as edits need them: images, masks, strokes, animations."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..data.images import MODES, fit, to_mode
from ..files import atomic_open
from ..images import grid, readable_scale

Source = str | os.PathLike[str]
_PAINTED = 128


def read_image(path: Source, size: int, channels: int) -> np.ndarray:
    """An image as the model takes it: shorter side resized, centre cropped, as training data are.

    Args:
        path: any file that Pillow reads.
        size: side of the result in pixels.
        channels: 1, 3 or 4.

    Returns:
        uint8 [size, size, channels].

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no image that can be used.
    """
    image = _open(path, lambda image: to_mode(image, channels))
    return np.asarray(fit(image, size)).reshape(size, size, channels)


def read_mask(path: Source, image: Source, size: int) -> np.ndarray:
    """The bright parts of a mask that belongs to an image.

    Args:
        path: the mask, as large as the image.
        image: the image.
        size: as for ``read_image``.

    Returns:
        bool [size, size]; true also where bright and dark parts meet in a pixel.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no image, or of another size.
    """
    mask = _open(path, lambda image: to_mode(image, 1))
    _same_size(path, mask, image)
    return _any(mask.point(lambda value: 255 * (value >= _PAINTED)), size)


def read_strokes(
    path: Source, photograph: Source | None, size: int, channels: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Strokes, laid over a photograph where their picture is transparent.

    Args:
        path: the strokes.
        photograph: what they are painted on, of the same size; None where they fill the picture.
        size, channels: as for ``read_image``.

    Returns:
        uint8 [size, size, channels], and bool [size, size], where there are strokes; None:
        everywhere.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no images, of different sizes, or nothing below transparent parts.
    """
    strokes = _open(path, lambda image: image.convert("RGBA"))
    alpha = strokes.getchannel("A").point(lambda value: 255 * (value >= _PAINTED))
    if photograph is None:
        if np.asarray(alpha).min() == 0:
            raise ValueError(
                f"{os.fspath(path)} has transparent parts: paint everything, or name by --on the "
                "photograph of the same size that it is painted on."
            )
        return read_image(path, size, channels), None
    below = _open(photograph, lambda image: to_mode(image, channels))
    _same_size(path, strokes, photograph)
    below.paste(strokes.convert(MODES[channels]), mask=alpha)
    merged = np.asarray(fit(below, size)).reshape(size, size, channels)
    return merged, _any(alpha, size)


def _open(path: Source, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no picture {os.fspath(path)}.")
    try:
        with Image.open(path) as image:
            return convert(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise ValueError(f"{os.fspath(path)} cannot be used as a picture: {error}.") from error


def _same_size(path: Source, image: Image.Image, other: Source) -> None:
    size = _open(other, Image.Image.copy).size
    if image.size != size:
        ours, theirs = ("x".join(map(str, sides)) for sides in (image.size, size))
        raise ValueError(
            f"{os.fspath(path)} is {ours} and {os.fspath(other)} is {theirs}: they belong together "
            "and must be of one size."
        )


def _any(mask: Image.Image, size: int) -> np.ndarray:
    """Resized like an image; true wherever a resized pixel holds something of the mask."""
    return np.asarray(fit(mask, size)) > 0


def write_gif(frames: np.ndarray, path: Source, seconds: float) -> None:
    """Write an endless animation; the file appears only when it is complete.

    Args:
        frames: uint8 [F, H, W, C] with 1, 3 or 4 channels (alpha is dropped); small ones are
            enlarged.
        path: the file; folders on the way are made.
        seconds: how long each frame is shown; the last, three times as long.
    """
    scale = readable_scale(min(frames.shape[1:3]))
    pictures = []
    for frame in frames:
        large = grid(frame[None], 1, border=0, scale=scale, smooth=True)
        pixels = large[..., 0] if large.shape[2] == 1 else large[..., :3]
        pictures.append(Image.fromarray(np.ascontiguousarray(pixels)))
    lengths = [round(1000 * seconds)] * len(pictures)
    lengths[-1] *= 3
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        pictures[0].save(
            file,
            "GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=lengths,
            loop=0,
        )
