"""Square patches of photographs: what a loader's decoders meet in training."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp"}


def patches(count: int, size: int, folder: Path | None = None) -> tuple[NDArray[np.uint8], str]:
    """Patches from the photographs of a folder, of the cache, or of scikit-learn.

    The photographs are halved before they are cut, where they are large enough: their finest
    detail is the sensor's noise.

    Args:
        count: How many; they begin anew, shifted, when the photographs are used up.
        size: Side in pixels.
        folder: Photographs; default those that tools/photographs.sh has fetched, else the two
            that come with scikit-learn.

    Returns:
        uint8 [count, size, size, 3], and where they are from.

    Raises:
        ValueError: The folder holds no photograph of that size.
        RuntimeError: There is no photograph on this machine.
    """
    images, origin = _photographs(folder)
    large = [image for image in images if min(image.shape[:2]) >= size]
    if not large:
        raise ValueError(
            f"{origin}: none of the {len(images)} photographs reaches {size} x {size} pixels: give "
            "others with --images."
        )
    result = np.empty((count, size, size, 3), np.uint8)
    done, shift = 0, 0
    while done < count:
        for image in large:
            height, width = image.shape[:2]
            for top in range(min(shift, height - size), height - size + 1, size):
                for left in range(min(shift, width - size), width - size + 1, size):
                    result[done] = image[top : top + size, left : left + size]
                    done += 1
                    if done == count:
                        return result, origin
        shift += size // 7
    raise AssertionError


def _photographs(folder: Path | None) -> tuple[list[NDArray[np.uint8]], str]:
    cached = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    cached = cached / "ddgan_fast" / "photographs"
    if folder is not None:
        return _read(folder), f"photographs of {folder.name}"
    if cached.is_dir():
        return _read(cached), "photographs of Debian's mate-backgrounds"
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        raise RuntimeError(
            "there are no photographs here: run tools/photographs.sh, install scikit-learn (which "
            "has two), or give a folder with --images."
        ) from None
    return list(load_sample_images().images), "two photographs of scikit-learn"


def _read(folder: Path) -> list[NDArray[np.uint8]]:
    names = sorted(p for p in folder.iterdir() if p.suffix.lower() in _EXTENSIONS)
    if not names:
        raise ValueError(f"{folder} holds no photographs (jpg, png, webp).")
    images = []
    for name in names:
        with Image.open(name) as image:
            half = image.reduce(2) if min(image.size) >= 1024 else image
            images.append(np.asarray(half.convert("RGB")))
    return images
