"""IDX sets for tests, whose classes are told apart by the place of a bright patch."""

import gzip
from pathlib import Path

import numpy as np

CLASSES = 10


def pictures(labels: np.ndarray, side: int = 12, seed: int = 0) -> np.ndarray:
    """Images uint8 [N, side, side] of these classes, with some noise."""
    images = np.random.default_rng(seed).integers(0, 40, (len(labels), side, side), np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = 3 * (label // 4), 3 * (label % 4)
        image[top : top + 3, left : left + 3] = 255
    return images


def write_split(
    folder: Path, part: str, images: np.ndarray, labels: np.ndarray | None
) -> Path:
    """The files of a split, packed by gzip."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"images-idx3": images, "labels-idx1": labels}
    for name, array in arrays.items():
        if array is not None:
            array = np.asarray(array, np.uint8)
            head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return folder


def write_set(
    folder: Path, n: int = 600, n_test: int = 100, classes: int = CLASSES, side: int = 12
) -> Path:
    """A set with a training and, unless ``n_test`` is 0, a test split; its classes take turns."""
    for seed, (part, count) in enumerate({"train": n, "t10k": n_test}.items()):
        if count:
            labels = np.arange(count) % classes
            write_split(folder, part, pictures(labels, side, seed), labels)
    return folder
