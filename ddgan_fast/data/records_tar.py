"""WebDataset tars as records, found by an index of our own that is kept in the user's cache."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.data.index_cache import CachedIndex
from ddgan_fast.data.records import (
    LARGEST_RECORD,
    Records,
    SourceFile,
    fingerprint_of,
    printable,
)

_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "npy")
_LABEL = "cls"
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)  # key, and all from its first dot
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS = 1_000_000
_BLOCK = 512
_LONGEST_LABEL = 20


class TarRecords(Records):
    """The images of WebDataset shards, in the order of the shards and of their members.

    A sample is the members of one key, which ends at the first dot of the file's name; its image
    has the extension jpg, jpeg, png, webp or npy (uint8 [H, W, C]), its class cls. Tars of every
    format are read, with GNU's and PAX's long names. Nothing is extracted.

    Args:
        path: A tar, a folder of tars, or a pattern such as train-{00000..00012}.tar.

    Raises:
        FileNotFoundError: If a tar does not exist.
        ValueError: If one is damaged or cut short, a sample has two images, or there is none.
    """

    kind = "tar"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._shards = [SourceFile(shard) for shard in shards_at(self.path)]
        indexes = [_index(shard) for shard in self._shards]
        self._starts = np.cumsum([0, *(len(index.offsets) for index in indexes)])
        self._offsets = np.concatenate([index.offsets for index in indexes])
        self._sizes = np.concatenate([index.sizes for index in indexes])
        self._names = [name for index in indexes for name in index.names]
        if not self._names:
            raise ValueError(
                f"{self.path} holds no images ({', '.join(_EXTENSIONS)}): check the data's path."
            )
        labels = np.concatenate([index.labels for index in indexes])
        self.labels = labels if (labels >= 0).all() else None
        self.fingerprint = fingerprint_of(
            self.kind, zip(map(os.fsencode, self._names), self._sizes, strict=True)
        )

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        return f"{self._shard(i).path}, member {printable(self._names[i])}"

    def read(self, i: int) -> bytes | NDArray[np.uint8]:
        name, size = self.name(i), int(self._sizes[i])
        if size > LARGEST_RECORD:
            raise ValueError(
                f"{name} holds {size:,} bytes, more than the {LARGEST_RECORD:,} that an image may "
                "have: take it out of the data."
            )
        data = self._shard(i).read(size, int(self._offsets[i]), name)
        return _array(data, name) if name.endswith(".npy") else data

    def _shard(self, i: int) -> SourceFile:
        return self._shards[int(np.searchsorted(self._starts, i, side="right")) - 1]


def is_tar(path: Path) -> bool:
    """Whether a path is a tar, a pattern of tars or a folder of some."""
    if path.is_dir():
        return any(path.glob("*.tar"))
    return path.suffix == ".tar"


def shards_at(path: Path) -> list[Path]:
    """The tars that a path stands for.

    Raises:
        FileNotFoundError: If one does not exist.
        ValueError: If there is none, or the pattern stands for too many.
    """
    if path.is_dir():
        shards = sorted(place for place in path.glob("*.tar") if place.name[0] != ".")
        if not shards:
            raise ValueError(f"{path} holds no tars: check the data's path.")
        return shards
    shards = [path] if path.exists() else [Path(name) for name in _expand(str(path))]
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{shard} does not exist: check the data's path.")
    return shards


def _expand(pattern: str) -> list[str]:
    """What a shell makes of braces: {000..012} and {a,b}."""
    pieces = _BRACES.split(pattern)  # text, inside of braces, text, ...
    choices = [_alternatives(p) if i % 2 else [p] for i, p in enumerate(pieces)]
    if np.prod([float(len(choice)) for choice in choices]) > _MOST_SHARDS:
        raise ValueError(f"{pattern} stands for more than {_MOST_SHARDS:,} files.")
    return ["".join(parts) for parts in product(*choices)]


def _alternatives(inside: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",")
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first <= _MOST_SHARDS:
        raise ValueError(f"{{{inside}}} is no range of shards: give {{FIRST..LAST}}.")
    return [f"{i:0{len(match[1])}}" for i in range(first, last + 1)]


def _array(data: bytes, name: str) -> NDArray[np.uint8]:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy raises many kinds on damaged headers
        raise ValueError(
            f"{name} is no array ({error}): replace it or take it out of the data."
        ) from error
    return array[..., None] if isinstance(array, np.ndarray) and array.ndim == 2 else array


class _Index(NamedTuple):
    """Where the images of a tar lie."""

    names: list[str]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    """-1 where there is none."""


def _index(shard: SourceFile) -> _Index:
    cached = CachedIndex(TarRecords.kind, shard.path)
    arrays = cached.load(*_Index._fields)
    if arrays is not None:
        return _unpack(*arrays)
    index = _walk(shard)
    cached.save(**_pack(index))
    return index


def _walk(shard: SourceFile) -> _Index:
    """Reads all headers of a tar."""
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in _members(shard):
        match = _NAME.fullmatch(member.name)
        if match is None:
            continue
        sample = found.setdefault(match[1], {})
        if sample.setdefault(match[2].lower(), member) is not member:
            raise ValueError(
                f"{shard.path}, member {printable(member.name)} is there twice: make the tar anew."
            )
    names, offsets, sizes, labels = [], [], [], []
    for key, sample in found.items():
        image = _image(sample, f"{shard.path}, key {printable(key)}")
        if image is None:
            continue
        names.append(image.name)
        offsets.append(image.offset_data)
        sizes.append(image.size)
        labels.append(_label(shard, sample.get(_LABEL)))
    as_array = (np.array(column, np.int64) for column in (offsets, sizes, labels))
    return _Index(names, *as_array)


def _members(shard: SourceFile) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar; unlike tarfile, does not take damage for the end."""
    damaged = f"{shard.path} is cut short or damaged; copy it again."
    try:
        with tarfile.open(shard.path, "r:") as tar:
            for member in tar:
                if member.isreg():
                    if member.sparse is not None:
                        raise ValueError(
                            f"{shard.path}, member {printable(member.name)} is stored with holes: "
                            "make the tar without --sparse."
                        )
                    yield member
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(damaged) from error
    if end + _BLOCK > shard.size or any(shard.read(_BLOCK, end, str(shard.path))):
        raise ValueError(damaged)


def _image(sample: dict[str, tarfile.TarInfo], name: str) -> tarfile.TarInfo | None:
    images = [extension for extension in sample if extension in _EXTENSIONS]
    if not images:  # a dot in the name of the file: "0001.jpg" of a key "photo"
        images = [e for e in sample if e.rsplit(".", 1)[-1] in _EXTENSIONS]
    if len(images) > 1:
        raise ValueError(
            f"{name} has {len(images)} images ({', '.join(map(printable, images[:3]))}): a name's "
            "key ends at its first dot, and each key may have one image."
        )
    return sample[images[0]] if images else None


def _label(shard: SourceFile, member: tarfile.TarInfo | None) -> int:
    if member is None or member.size > _LONGEST_LABEL:
        return -1
    name = f"{shard.path}, member {printable(member.name)}"
    text = shard.read(member.size, member.offset_data, name)
    try:
        label = int(text)
    except ValueError:
        label = -1
    if not 0 <= label < 1 << 63:
        raise ValueError(f"{name} is no class number: it holds {text!r}.")
    return label


def _pack(index: _Index) -> dict[str, NDArray]:
    names = os.fsencode("".join(f"{name}\0" for name in index.names))
    return index._asdict() | {"names": np.frombuffer(names, np.uint8)}


def _unpack(names: NDArray, *columns: NDArray) -> _Index:
    return _Index(os.fsdecode(names.tobytes()).split("\0")[:-1], *columns)
