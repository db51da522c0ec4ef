"""From an encoded image to the uint8 array the networks see: colour rules and geometry.

The geometry is torchvision's Resize + CenterCrop (the published preprocessing) with Pillow's
antialiased bilinear filter.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_REFUSED_EXTENSIONS = (".gif", ".avif", ".heic", ".heif", ".jxl")
TRANSFORM = "exif, alpha dropped, shorter side bilinear, centre crop"
"""Name of what ``decode_image`` does; part of a data set's digest."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for images of so many channels."""
_Turn = Image.Transpose
_TURNS = {
    2: _Turn.FLIP_LEFT_RIGHT,
    3: _Turn.ROTATE_180,
    4: _Turn.FLIP_TOP_BOTTOM,
    5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270,
    7: _Turn.TRANSVERSE,
    8: _Turn.ROTATE_90,
}
_ADVICE = "replace it or take it out of the data"
_PNG_END = b"IEND\xaeB`\x82"
_LARGEST_RESIZED = 1 << 28  # pixels of an image after resizing, before the crop
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
CROPS = ("center", "none")


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a square."""

    filter: str = "bilinear"
    """Antialiased filter that resizes: a key of ``FILTERS``."""
    crop: str = "center"
    """"center": the middle of the longer side; "none": refuse what is not square."""


PUBLISHED = Geometry()
"""What the published preprocessing does."""


def is_image(name: str, where: str) -> bool:
    """Whether a file's name is that of an image.

    Raises:
        ValueError: If it is that of an image of a kind that is not read; ``where`` names the file.
    """
    extension = os.path.splitext(name)[1].lower()
    if extension in _REFUSED_EXTENSIONS:
        raise ValueError(
            f"{where} is of a kind that is not read: convert it to png or webp, "
            "or take it out of the data."
        )
    return extension in EXTENSIONS


def decode_image(
    data: bytes, name: str, size: int, channels: int, geometry: Geometry = PUBLISHED
) -> NDArray[np.uint8]:
    """Decodes, turns upright, converts, resizes the shorter side to ``size`` and crops the centre.

    Args:
        data: The encoded file.
        name: How messages call it.
        size: Side of the result in pixels.
        channels: 1 (grey), 3 (RGB, alpha dropped) or 4 (RGBA).
        geometry: Filter and crop.

    Returns:
        uint8 [size, size, channels].

    Raises:
        ValueError: If the image cannot be decoded or is of a kind that is not supported.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # MPO, the camera's JPEG with a preview appended, is an ordinary photograph.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise _Refused("it holds several frames or pages")
            image.load()
            if image.format == "PNG" and data.rfind(_PNG_END) < 0:  # Pillow does without it
                raise _Refused("it is cut short")
            upright = _upright(to_mode(image, channels), _orientation(image))
            return np.asarray(fit(upright, size, geometry)).reshape(size, size, channels)
    except UnidentifiedImageError:
        reason = f"its {len(data):,} bytes are no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
    except Image.DecompressionBombError:
        reason = f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        reason = str(error) or type(error).__name__
    raise ValueError(f"{name} cannot be used as an image ({reason}): {_ADVICE}.")


def prepare_pixels(
    pixels: NDArray[np.uint8],
    name: str,
    size: int,
    channels: int,
    geometry: Geometry = PUBLISHED,
) -> NDArray[np.uint8]:
    """Pixels [H, W, C] converted, resized and cropped as ``decode_image`` does.

    Raises:
        ValueError: If they are no image of 1, 3 or 4 channels.
    """
    colours = pixels.ndim == 3 and pixels.dtype == np.uint8 and pixels.shape[2] in MODES
    if not (colours and pixels.size):
        raise ValueError(
            f"{name} is no image: expected uint8 [H, W, 1, 3 or 4], got {pixels.dtype} "
            f"{list(pixels.shape)}: {_ADVICE}."
        )
    if pixels.shape == (size, size, channels):
        return pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    try:
        square = fit(to_mode(image, channels), size, geometry)
        return np.asarray(square).reshape(size, size, channels)
    except _Refused as error:
        raise ValueError(f"{name} cannot be used as an image ({error}): {_ADVICE}.") from None


class _Refused(Exception):
    """A readable image that training would misunderstand."""


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata of a good image: it counts as upright
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Converts to grey, RGB or RGBA; 16-bit grey keeps its upper byte, alpha is dropped."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        upper = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(upper.clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise _Refused(f'its 32-bit pixels (mode "{image.mode}") have no defined range')
    target = MODES[channels]
    if image.mode in ("P", "PA", "LA", "La", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode not in ("1", "L", "RGB", "RGBA"):
        image = image.convert("RGB")
    return image if image.mode == target else image.convert(target)


def fit(image: Image.Image, size: int, geometry: Geometry = PUBLISHED) -> Image.Image:
    """Resizes the shorter side to ``size`` and crops the centre square, as torchvision does."""
    width, height = image.size
    if geometry.crop == "none" and width != height:
        raise _Refused(f"it is {width}x{height}, not square, and nothing may be cropped")
    short, long = min(width, height), max(width, height)
    longer = int(size * long / short)
    if size * longer > _LARGEST_RESIZED:
        raise _Refused(f"it is {width}x{height}, too elongated for a square")
    new = (size, longer) if width <= height else (longer, size)
    if new != image.size:
        image = image.resize(new, FILTERS[geometry.filter])
    left, top = (int(round((side - size) / 2.0)) for side in new)  # noqa: RUF046
    return image.crop((left, top, left + size, top + size))
