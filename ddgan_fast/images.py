"""Pictures as files: a grid, a folder or zip of PNGs, an npz array."""

from __future__ import annotations

import io
import math
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddgan_fast.files import atomic_open

READABLE = 48
_CHANNELS = (1, 3, 4)
_SUFFIXES = (".png", ".zip", ".npz", "")


def to_uint8(x: Any) -> np.ndarray:
    """Turn a network's output into pixels, halves rounded up.

    Args:
        x: array or tensor [N, C, H, W] in [-1, 1]; values beyond are clipped.

    Returns:
        uint8 [N, H, W, C].

    Raises:
        ValueError: wrong shape, or values that are not numbers.
    """
    if hasattr(x, "detach"):  # a tensor, from whatever device, in whatever precision
        x = x.detach().cpu()
        x = (x if x.element_size() > 2 else x.float()).numpy()
    x = np.asarray(x)
    if x.ndim != 4:
        raise ValueError(f"images must have the shape [N, C, H, W], not {list(x.shape)}")
    if np.isnan(x).any():
        raise ValueError("the images hold NaN: the network that made them has diverged")
    values = np.clip(np.floor((x + 1) / 2 * 255 + 0.5), 0, 255)
    return np.ascontiguousarray(values.astype(np.uint8).transpose(0, 2, 3, 1))


def readable_scale(size: int) -> int:
    """The integer factor that brings ``size`` pixels near a cell one can read, at least 1."""
    return max(1, READABLE // size)


def grid(
    images: np.ndarray,
    columns: int | None = None,
    border: int = 1,
    scale: int = 1,
    border_value: int = 128,
    smooth: bool = False,
) -> np.ndarray:
    """Lay images out in rows, each with a border around it.

    Args:
        images: uint8 [N, H, W, C] with 1, 3 or 4 channels.
        columns: images per row; default: as square as possible.
        border: width in pixels of the result.
        scale: integer factor of enlargement.
        border_value: brightness of borders and empty cells, which are opaque.
        smooth: enlarge by bicubic interpolation, not by repeating pixels: small images are easier
            to recognise so.

    Returns:
        uint8 [H', W', C].
    """
    _check_images(images)
    count, height, width, channels = images.shape
    if count == 0:
        raise ValueError("a grid needs at least one image")
    columns = columns or math.ceil(math.sqrt(count))
    if min(columns, scale) < 1 or border < 0:
        raise ValueError(
            "a grid needs columns and scale of at least 1 and border of at least 0, not "
            f"{columns}, {scale} and {border}"
        )
    rows = math.ceil(count / columns)
    step_y, step_x = height * scale + border, width * scale + border
    shape = (rows * step_y + border, columns * step_x + border, channels)
    result = np.full(shape, border_value, np.uint8)
    if channels == 4:
        result[..., 3] = 255
    for i, image in enumerate(images):
        y, x = border + i // columns * step_y, border + i % columns * step_x
        cell = _enlarged(image, scale, smooth)
        result[y : y + height * scale, x : x + width * scale] = cell
    return result


def _enlarged(image: np.ndarray, scale: int, smooth: bool) -> np.ndarray:
    if not smooth or scale == 1:
        return image.repeat(scale, axis=0).repeat(scale, axis=1)
    size = image.shape[1] * scale, image.shape[0] * scale
    channels = [
        np.asarray(Image.fromarray(image[..., c]).resize(size, Image.Resampling.BICUBIC))
        for c in range(image.shape[2])
    ]
    return np.stack(channels, 2)


def save_png(path: Path | str, array: np.ndarray) -> None:
    """Write a PNG file atomically.

    Args:
        path: of the file; its folder is made when absent.
        array: uint8 [H, W] or [H, W, C] with 1, 3 or 4 channels.
    """
    path = Path(path)
    data = _png(array)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        file.write(data)


def check_output(out_path: Path | str, more: str = "") -> str:
    """What ``write_images`` would make of a path, to be asked before the images are made.

    Args:
        out_path: the path.
        more: further suffixes that the caller takes, as the refusal lists them.

    Returns:
        ".png", ".zip" or ".npz", or "" for a folder.

    Raises:
        ValueError: unknown suffix, or a folder that is not empty.
    """
    path = Path(out_path)
    if path.is_dir():
        if any(path.iterdir()):
            raise ValueError(f"the folder {path} is not empty: give a new one, or empty it first")
        return ""
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(
            f"the suffix {path.suffix} of {path} is unknown: use .png for a grid, {more}.zip for "
            "a zip of PNGs, .npz for an array, or no suffix for a folder of PNGs"
        )
    return suffix


def write_images(
    images: np.ndarray | Iterable[np.ndarray],
    out_path: Path | str,
    *,
    columns: int | None = None,
    scale: int | None = None,
) -> int:
    """Write images as the path's suffix says; the file appears only when it is complete.

    ``.png`` is a grid, ``.zip`` a zip of 000000.png, 000001.png, …, ``.npz`` holds uint8
    [N, H, W, C] as ``arr_0``, and no suffix means a folder of PNGs. Zip and folder keep one batch
    in memory at a time. Equal images make equal files.

    Args:
        images: uint8 [N, H, W, C] with 1, 3 or 4 channels, or an iterator of such batches.
        out_path: file or folder; folders on the way are made.
        columns: images per row of a grid; default: as square as possible.
        scale: enlargement of a grid by whole pixels; default: smoothly, by ``readable_scale``.

    Returns:
        The number of images.

    Raises:
        ValueError: unknown suffix, a folder that is not empty, or images of a wrong shape or type.
    """
    path = Path(out_path)
    suffix = check_output(path)
    batches = _checked([images] if isinstance(images, np.ndarray) else images)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not suffix:
        return _write_folder(batches, path)
    if suffix == ".png":
        everything = np.concatenate(list(batches))
        zoom = scale or readable_scale(min(everything.shape[1:3]))
        save_png(path, grid(everything, columns, scale=zoom, smooth=scale is None))
        return len(everything)
    with atomic_open(path) as file:
        return (_write_zip if suffix == ".zip" else _write_npz)(batches, file)


def _write_zip(batches: Iterator[np.ndarray], file: Any) -> int:
    # PNGs are compressed already. A fixed date makes equal images equal files.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        count = 0
        for image in _each(batches):
            archive.writestr(
                zipfile.ZipInfo(f"{count:06d}.png", (1980, 1, 1, 0, 0, 0)), _png(image)
            )
            count += 1
    return count


def _write_npz(batches: Iterator[np.ndarray], file: Any) -> int:
    everything = np.concatenate(list(batches))
    np.savez(file, everything)
    return len(everything)


def _write_folder(batches: Iterator[np.ndarray], path: Path) -> int:
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        count = 0
        for image in _each(batches):
            (temporary / f"{count:06d}.png").write_bytes(_png(image))
            count += 1
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return count


def _checked(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    empty = True
    for batch in batches:
        _check_images(batch)
        empty = False
        yield batch
    if empty:
        raise ValueError("there are no images to write")


def _each(batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for batch in batches:
        yield from batch


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in _CHANNELS:
        raise ValueError(
            f"images must be uint8 [N, H, W, C] with 1, 3 or 4 channels, not {images.dtype} "
            f"{list(images.shape)}"
        )


def _png(array: np.ndarray) -> bytes:
    pixels = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if pixels.dtype != np.uint8 or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in _CHANNELS)
    ):
        raise ValueError(
            f"a PNG needs uint8 [H, W] or [H, W, C] with 1, 3 or 4 channels, not {array.dtype} "
            f"{list(array.shape)}"
        )
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()
