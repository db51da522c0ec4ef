"""The sources of training data: digits, 25 Gaussians, noise, and a folder of images."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddgan_fast.config import DataConfig, ModelConfig
from ddgan_fast.data.dataset import ArrayDataset, Dataset, array_digest
from ddgan_fast.data.images import TRANSFORM, decode_image
from ddgan_fast.data.plan import splitmix64

SOURCES = ("digits", "gaussians25", "folder", "synthetic")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_REFUSED_EXTENSIONS = (".gif", ".avif", ".heic", ".heif", ".jxl")
_AUTO_CACHE_BYTES = 1 << 30
_CHUNK = 32  # images a thread decodes per task


def build(data: DataConfig, model: ModelConfig) -> Dataset:
    """Opens the source ``data`` describes; see ``ddgan_fast.data.build_dataset``."""
    source = data.source
    if source not in SOURCES:
        raise ValueError(f'data.source is "{source}"; allowed are {", ".join(SOURCES)}.')
    if source == "folder" and data.path is None:
        raise ValueError(f'data.source "{source}" needs the place of the data: give --data PATH.')
    if source != "folder" and data.path is not None:
        raise ValueError(
            f'data.source "{source}" reads no files, but data.path is "{data.path}": '
            "set --data.source folder to train on it, or leave --data out."
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
    return Folder(
        str(data.path), size, channels, limit=data.limit, cache=data.cache, workers=data.workers
    )


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


def gaussians25(limit: int | None = None, n: int = 100_000) -> ArrayDataset:
    """Points around the 25 centres {-4, -2, 0, 2, 4}², standard deviation 0.05, float32 [n, 2].

    The label is the centre's number: 5 * row of x + row of y.
    """
    n = n if limit is None else min(n, limit)
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


class Folder(Dataset):
    """All images below a folder, in the order of their relative paths.

    Labels are the names of the first-level sub-folders, where every image lies in one. Hidden
    files and folders are skipped, links are followed.

    Args:
        path: The folder.
        size: Side of the prepared images in pixels.
        channels: 1, 3 or 4.
        limit: Use only the first so many images.
        cache: "ram" decodes everything now and keeps it, "none" decodes as needed, "auto" is
            "ram" when the decoded images take at most 1 GiB.
        workers: Threads that decode.

    Raises:
        FileNotFoundError: If the folder, or the target of a link in it, does not exist.
        NotADirectoryError: If the path is not a folder.
        ValueError: If there is no image, or one that cannot be decoded.
    """

    def __init__(
        self,
        path: str,
        size: int,
        channels: int,
        *,
        limit: int | None = None,
        cache: str = "auto",
        workers: int = 2,
    ) -> None:
        if cache not in ("auto", "ram", "none"):
            raise ValueError(f'data.cache is "{cache}"; allowed are "auto", "ram" and "none".')
        self.root = Path(path).expanduser()
        files = list_images(self.root)[:limit]
        self.names = [name for name, _ in files]
        self.shape = (size, size, channels)
        self.dtype = np.dtype(np.uint8)
        self.flips = True
        self.workers = max(1, workers)
        self.class_names, self.labels = _classes(self.names)
        self.digest = _folder_digest(files, self.shape)
        nbytes = len(files) * size * size * channels
        if cache == "ram" or (cache == "auto" and nbytes <= _AUTO_CACHE_BYTES):
            self.array = self._decode_all()

    def __len__(self) -> int:
        return len(self.names)

    def fetch(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self.array is not None:
            return self.array[indices]
        return np.stack([self._decode(int(i)) for i in indices])

    def describe(self) -> str:
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        kept = ", decoded in memory" if self.array is not None else ""
        shape = "x".join(map(str, self.shape))
        return f"folder {self.root}: {len(self):,} images {shape}{classes}{kept}"

    def verify(self) -> list[str]:
        """Decodes every image and returns a sentence for each one that cannot be used."""

        def check(i: int) -> str | None:
            try:
                self._decode(i)
            except (ValueError, OSError) as error:
                return str(error)
            return None

        with ThreadPoolExecutor(self.workers, "ddgan-verify") as pool:
            return [sentence for sentence in pool.map(check, range(len(self))) if sentence]

    def _decode(self, i: int) -> NDArray[np.uint8]:
        path = self.root / self.names[i]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise type(error)(
                f"{path} cannot be read ({error.strerror}): restore it or take it out of the data."
            ) from error
        return decode_image(data, str(path), self.shape[0], self.shape[2])

    def _decode_all(self) -> NDArray[np.uint8]:
        array = np.empty((len(self), *self.shape), np.uint8)

        def chunk(start: int) -> None:
            for i in range(start, min(start + _CHUNK, len(self))):
                array[i] = self._decode(i)

        pool = ThreadPoolExecutor(self.workers, "ddgan-decode")
        try:
            # In order, so that of several bad images it is always the first that is named.
            for _ in pool.map(chunk, range(0, len(self), _CHUNK)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
        return array


def list_images(root: Path) -> list[tuple[str, int]]:
    """Relative path (with slashes) and size in bytes of every image below ``root``, sorted."""
    if not root.exists():
        raise FileNotFoundError(f"data.path {root} does not exist: check the spelling of --data.")
    if not root.is_dir():
        raise NotADirectoryError(f"data.path {root} is not a folder: give a folder of images.")
    found: list[tuple[str, int]] = []
    try:
        _walk(str(root), "", (), found)
    except OSError as error:
        raise type(error)(
            f"{error.filename} cannot be read ({error.strerror}): "
            "repair it or take it out of the data."
        ) from error
    if not found:
        kinds = ", ".join(extension[1:] for extension in EXTENSIONS)
        raise ValueError(f"data.path {root} holds no images ({kinds}): check --data.")
    return sorted(found)


def _walk(
    folder: str, prefix: str, above: tuple[tuple[int, int], ...], found: list[tuple[str, int]]
) -> None:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link back to a folder we are in
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                _walk(entry.path, f"{prefix}{entry.name}/", (*above, here), found)
                continue
            extension = os.path.splitext(entry.name)[1].lower()
            if extension in _REFUSED_EXTENSIONS:
                raise ValueError(
                    f"{entry.path} is of a kind that is not read: convert it to png or webp, "
                    "or take it out of the data."
                )
            if extension in EXTENSIONS:
                found.append((prefix + entry.name, entry.stat().st_size))


def _classes(names: list[str]) -> tuple[list[str], NDArray[np.int64] | None]:
    if not all("/" in name for name in names):
        return [], None
    tops = [name.split("/", 1)[0] for name in names]
    classes = sorted(set(tops))
    number = {name: i for i, name in enumerate(classes)}
    return classes, np.array([number[top] for top in tops], np.int64)


def _folder_digest(files: list[tuple[str, int]], shape: tuple[Any, ...]) -> str:
    # Names and sizes, not contents or times: cheap, and the same for a copy on another machine.
    digest = hashlib.sha256(f"folder {shape} {TRANSFORM}\n".encode())
    for name, size in files:
        digest.update(os.fsencode(name) + f"\0{size}\n".encode())
    return digest.hexdigest()
