"""Small data sets for the tests of the loaders."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ddgan_fast.data.dataset import Dataset
from ddgan_fast.data.records import Records, decode

ENCODINGS = {
    "jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "jpeg420": ("JPEG", {"quality": 90, "subsampling": 2}),
    "progressive": ("JPEG", {"quality": 90, "progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"quality": 90}),
    "lossless_webp": ("WEBP", {"lossless": True}),
}


def pictures(n: int, size: int = 24, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth images with some noise, uint8 [n, size, size, channels]: JPEG has work to do."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 3, 3, channels), dtype=np.uint8)
    large = [
        np.asarray(Image.fromarray(c[..., 0] if channels == 1 else c).resize((size, size)))
        for c in coarse
    ]
    noise = rng.integers(-8, 9, (n, size, size, channels))
    smooth = np.stack(large).reshape(n, size, size, channels).astype(np.int64)
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, encoding: str) -> bytes:
    """One image as a file."""
    kind, options = ENCODINGS[encoding]
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, kind, **options)
    return file.getvalue()


class Files(Records):
    """Encoded images held in a list."""

    kind, path, fingerprint = "files", Path("files"), "x"

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        return f"files, image {i:03}"

    def read(self, i: int) -> bytes:
        return self.files[i]


class Encoded(Dataset):
    """Decodes its records with Pillow at every fetch."""

    def __init__(self, records: Records, size: int, channels: int = 3, workers: int = 2) -> None:
        self.records, self.shape = records, (size, size, channels)
        self.dtype, self.flips, self.digest = np.dtype(np.uint8), True, "x"
        self.workers = workers

    def __len__(self) -> int:
        return len(self.records)

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        size, channels = self.shape[0], self.shape[2]
        return np.stack([decode(self.records, int(i), size, channels) for i in indices])

    def describe(self) -> str:
        return self.records.describe()


class Pixels(Dataset):
    """Raw images that are read one by one, as a prepared set does."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.shape, self.dtype = images, images.shape[1:], images.dtype
        self.flips, self.digest = True, "x"

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        return self.images[indices]

    def describe(self) -> str:
        return "pixels"
