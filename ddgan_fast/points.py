"""Points in the plane as files: an array or a scatter picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .files import atomic_open
from .images import save_png

_SUFFIXES = (".npz", ".npy", ".png")
_PIXELS = 600


def check_output(path: Path | str) -> None:
    """Refuse a path that ``write_points`` could not write.

    Raises:
        ValueError: unknown suffix.
    """
    suffix = Path(path).suffix
    if suffix not in _SUFFIXES:
        raise ValueError(
            f"the suffix {suffix!r} of {path} does not suit points: use .npz or .npy for an array, "
            "or .png for a scatter picture."
        )


def write_points(batches: Iterable[np.ndarray], path: Path | str) -> int:
    """Write points [b, 2] batch by batch: float32 [n, 2] (``arr_0`` in ``.npz``) or a picture.

    Returns:
        The number of points.

    Raises:
        ValueError: unknown suffix.
    """
    check_output(path)
    path = Path(path)
    points = np.concatenate(list(batches))
    if path.suffix == ".png":
        save_png(path, scatter(points))
        return len(points)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        (np.savez if path.suffix == ".npz" else np.save)(file, points)
    return len(points)


def scatter(points: np.ndarray) -> np.ndarray:
    """Dots on white, darker where they overlap, uint8 [H, W]; the axes reach to a whole number.

    Args:
        points: [n, 2]; x to the right, y upwards.
    """
    finite = points[np.isfinite(points).all(1)]
    reach = max(1, math.ceil(np.abs(finite).max(initial=0)))
    column, row = ((finite / reach + 1) / 2 * (_PIXELS - 1)).round().astype(int).T
    ink = np.zeros((_PIXELS + 2, _PIXELS + 2))
    for dy in range(3):
        for dx in range(3):
            np.add.at(ink, (_PIXELS - 1 - row + dy, column + dx), 1.0)
    return (255 * 0.7 ** ink[1:-1, 1:-1]).round().astype(np.uint8)
