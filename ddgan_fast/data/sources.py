"""The data set that a configuration asks for: digits, 25 Gaussians, noise, or images in files."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddgan_fast.config import DataConfig, ModelConfig
from ddgan_fast.data.dataset import ArrayDataset, Dataset, array_digest
from ddgan_fast.data.decoded import Decoded
from ddgan_fast.data.open import open_records
from ddgan_fast.data.plan import splitmix64
from ddgan_fast.validation import FILE_SOURCES, SOURCES


def build(data: DataConfig, model: ModelConfig) -> Dataset:
    """Opens the source ``data`` describes; see ``ddgan_fast.data.build_dataset``."""
    source = data.source
    if source not in SOURCES:
        raise ValueError(f'data.source is "{source}"; allowed are {", ".join(SOURCES)}.')
    from_files = source in FILE_SOURCES
    if from_files and data.path is None:
        raise ValueError(f'data.source "{source}" needs the place of the data: give --data PATH.')
    if not from_files and data.path is not None:
        raise ValueError(
            f'data.source "{source}" reads no files, but data.path is "{data.path}": '
            "set --data.source auto to train on it, or leave --data out."
        )
    if (source == "gaussians25") != (model.kind == "mlp"):
        raise ValueError(
            f'data.source "{source}" does not fit model.kind "{model.kind}": gaussians25 holds '
            'points for "mlp", every other source holds images.'
        )
    if data.limit is not None and data.limit < 1:
        raise ValueError(f"data.limit is {data.limit}; it must be at least 1.")
    if source == "gaussians25":
        return gaussians25(data.limit)
    size, channels = model.image_size, model.num_channels
    if channels not in (1, 3, 4):
        raise ValueError(f"model.num_channels is {channels}; images have 1, 3 or 4.")
    if source == "digits":
        return digits(size, channels, data.limit)
    if source == "synthetic":
        return Synthetic(size, channels, data.limit or 50_000)
    records = open_records(
        str(data.path),
        source,
        split=data.split,
        lsun_class=data.lsun_class,
        limit=data.limit,
        size=size,
    )
    return Decoded(records, size, channels, cache=data.cache, workers=data.workers)


def digits(size: int = 8, channels: int = 1, limit: int | None = None) -> ArrayDataset:
    """The 1,797 handwritten digits of scikit-learn, 8x8 or enlarged to 16x16 or 32x32.

    Raises:
        RuntimeError: If scikit-learn is missing.
        ValueError: If the size or the number of channels is not offered.
    """
    if size not in (8, 16, 32):
        raise ValueError(f"model.image_size is {size}; digits come in 8, 16 or 32 pixels.")
    if channels not in (1, 3):
        raise ValueError(f"model.num_channels is {channels}; digits have 1 (grey) or 3 (repeated).")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeError(
            'data.source "digits" needs scikit-learn: pip install "ddgan_fast[demo]".'
        ) from error
    bunch = load_digits()
    native = np.rint(bunch.images[:limit] * (255 / 16)).astype(np.uint8)
    images = native
    if size != 8:
        images = np.stack(
            [
                np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))
                for image in native
            ]
        )
    return ArrayDataset(
        np.repeat(images[..., None], channels, axis=3),
        f"digits: {len(images):,} images {size}x{size}x{channels}, 10 classes, from scikit-learn",
        labels=bunch.target[:limit].astype(np.int64),
        flips=False,
        # Of the originals: enlarged pixels may move by one between versions of Pillow.
        digest=array_digest(native, f"digits {size} {channels}"),
    )


def gaussians25(limit: int | None = None) -> ArrayDataset:
    """100,000 points around the 25 centres {-4, -2, 0, 2, 4}², standard deviation 0.05.

    Float32 [n, 2]; the label is the centre's number: 5 * row of x + row of y.
    """
    n = 100_000 if limit is None else min(100_000, limit)
    bits = splitmix64(np.arange(2 * n, dtype=np.uint64)).reshape(n, 2) >> np.uint64(11)
    uniform = (bits.astype(np.float64) + 0.5) / 2.0**53
    radius = np.sqrt(-2 * np.log(uniform[:, 0]))
    angle = 2 * np.pi * uniform[:, 1]
    noise = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    labels = np.arange(n, dtype=np.int64) % 25
    centres = np.stack([labels // 5, labels % 5], axis=1) * 2.0 - 4.0
    return ArrayDataset(
        (centres + 0.05 * noise).astype(np.float32),
        f"gaussians25: {n:,} points around 25 centres, standard deviation 0.05",
        labels=labels,
        flips=False,
    )


class Synthetic(Dataset):
    """Noise images that cost no more than a copy: the ceiling for any loader."""

    def __init__(self, size: int, channels: int, n: int) -> None:
        self.shape = (size, size, channels)
        self.dtype = np.dtype(np.uint8)
        self.flips = True
        self._n = n
        length = size * size * channels
        words = splitmix64(np.arange(-(-(length + n) // 8), dtype=np.uint64))
        # Image i is the window that starts at byte i, so n images need n + one image bytes.
        self._windows = np.lib.stride_tricks.sliding_window_view(
            words.astype("<u8").view(np.uint8), length
        )
        self.digest = hashlib.sha256(f"synthetic {self.shape} {n}".encode()).hexdigest()

    def __len__(self) -> int:
        return self._n

    def fetch(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._windows[indices].reshape(-1, *self.shape)

    def describe(self) -> str:
        return f"synthetic: {self._n:,} noise images {'x'.join(map(str, self.shape))}"
