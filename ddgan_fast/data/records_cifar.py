"""CIFAR-10 as records: the Python or the binary version, unpacked or as the archive."""

from __future__ import annotations

import io
import os
import pickle
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.data.records_idx import SPLITS, ArrayRecords, Images

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_BATCHES = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "validation": ("test_batch",),
}
_FOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
_ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
_ARCHIVE = re.compile(r"cifar-?10[-_.].*(tar\.gz|tgz)")
_LARGEST_FILE = 1 << 28
_PIXELS = 3 * 32 * 32


def open_cifar10(path: str | os.PathLike[str], split: str = "train") -> ArrayRecords:
    """CIFAR-10 with its labels.

    Args:
        path: A folder of the files data_batch_1 and so on (or data_batch_1.bin), one that holds
            cifar-10-batches-py, cifar-10-batches-bin or the archive; or the archive itself.
        split: "train" (five files), "validation" (the test file) or "both".

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is not what its name says, or damaged; nothing it asks for is executed.
    """
    path = Path(path)
    return ArrayRecords(
        "cifar10", path, partial(_load, path, split), flips=True, class_names=CLASSES
    )


def is_cifar10(path: Path) -> bool:
    """Whether a path is CIFAR-10's archive or holds its files."""
    if path.is_file():
        return bool(_ARCHIVE.fullmatch(path.name))
    return path.is_dir() and _place(path) is not None


def _place(path: Path) -> Path | None:
    """The folder of the files, or the archive, at or below ``path``."""
    for name in _FOLDERS:
        place = path / name
        if any((place / f"{b}{e}").is_file() for b in _all_batches() for e in ("", ".bin")):
            return place
    return next((path / name for name in _ARCHIVES if (path / name).is_file()), None)


def _all_batches() -> tuple[str, ...]:
    return tuple(batch for batches in _BATCHES.values() for batch in batches)


def _load(path: Path, split: str) -> Images:
    if split not in SPLITS:
        raise ValueError(f'data.split is "{split}"; allowed are {", ".join(SPLITS)}.')
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: check the spelling of the data's path.")
    place = path if path.is_file() else _place(path)
    if place is None:
        raise ValueError(f"{path} holds no files of CIFAR-10 (such as data_batch_1).")
    files = dict(_archived(place) if place.is_file() else _unpacked(place))
    parts = []
    for batch in (batch for part in SPLITS[split] for batch in _BATCHES[part]):
        kinds = ((batch, _from_pickle), (f"{batch}.bin", _from_binary))
        found = next(((name, read) for name, read in kinds if name in files), None)
        if found is None:
            raise FileNotFoundError(f"{place} has no {batch}: copy the whole set.")
        name, read = found
        parts.append(read(files[name], f"{place}, {name}"))
    labels = [part.labels for part in parts if part.labels is not None]
    pixels = np.ascontiguousarray(np.concatenate([part.pixels for part in parts]))
    return Images(pixels, np.concatenate(labels))


def _wanted(name: str) -> bool:
    return name.removesuffix(".bin") in _all_batches()


def _too_large(name: str, size: int) -> ValueError:
    return ValueError(f"{name} has {size:,} bytes, too many for a file of CIFAR-10.")


def _unpacked(folder: Path) -> Iterator[tuple[str, bytes]]:
    for place in folder.iterdir():
        if _wanted(place.name) and place.is_file():
            if place.stat().st_size > _LARGEST_FILE:
                raise _too_large(str(place), place.stat().st_size)
            yield place.name, place.read_bytes()


def _archived(archive: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                name = os.path.basename(member.name)
                file = tar.extractfile(member) if member.isreg() and _wanted(name) else None
                if file is not None:
                    if member.size > _LARGEST_FILE:
                        raise _too_large(f"{archive}, {name}", member.size)
                    yield name, file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{archive} is cut short or damaged ({error}): copy it again.") from error


def _from_binary(data: bytes, name: str) -> Images:
    if not data or len(data) % (1 + _PIXELS):
        raise ValueError(
            f"{name} has {len(data):,} bytes, no multiple of {1 + _PIXELS}: copy it again."
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return _images(rows[:, 1:], rows[:, 0].astype(np.int64), name)


def _from_pickle(data: bytes, name: str) -> Images:
    try:
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises of any kind
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} cannot be used ({reason}): copy it again.") from error
    batch = batch if isinstance(batch, dict) else {}
    fields = {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}
    pixels, labels = fields.get("data"), fields.get("labels")
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != _PIXELS
        or not isinstance(labels, list)
        or not all(isinstance(label, int) for label in labels)
    ):
        raise ValueError(f"{name} holds no images and labels of CIFAR-10: copy it again.")
    return _images(pixels, np.array(labels, np.int64), name)


def _images(pixels: NDArray[np.uint8], labels: NDArray[np.int64], name: str) -> Images:
    if len(labels) != len(pixels) or not len(labels):
        raise ValueError(f"{name} has {len(pixels):,} images, but {len(labels):,} labels.")
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise ValueError(f"{name} has labels beyond 0 to {len(CLASSES) - 1}: copy it again.")
    return Images(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)


def _latin(text: str, encoding: str) -> bytes:
    """What Python 3 calls for the bytes of an array, without the door to other codecs."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f'it asks for the codec "{encoding}", which is not allowed')
    return text.encode("latin-1")


class _Unpickler(pickle.Unpickler):
    """Rebuilds arrays, and nothing else: a pickle may otherwise call any function."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            return np.ndarray.__reduce__(np.empty(0))[0]  # where it lies differs by version
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _latin
        raise pickle.UnpicklingError(f'it asks for "{module}.{name}", which is not allowed')
