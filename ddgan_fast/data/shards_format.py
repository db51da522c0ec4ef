"""The prepared format: how images lie in tar files, and the manifest that describes a set.

A shard is an ordinary WebDataset tar (USTAR). Its members are named 000000000.npy, 000000001.npy,
... on through all shards; each is a uint8 array [H, W, C] as ``numpy.save`` writes it. All members
of a set have one length, so image k of a shard begins at k * stride. In an encoded set the members
are png, jpg or webp files of any length; index.npy holds shard, offset and length of each.
Beside the shards lie manifest.json, a CRC-32 of each image (train-*.crc), labels.npy where the
source has classes, and rejects.jsonl.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "ddgan_fast shards"
VERSION = 1
MANIFEST = "manifest.json"
LABELS = "labels.npy"
INDEX = "index.npy"
REJECTS = "rejects.jsonl"
PROGRESS = ".progress"
"""Folder that exists while a set is being prepared."""

TAR_HEADER = 512
NPY_HEADER = 128
TAR_END = bytes(1024)
_SHARD_NAME = re.compile(r"train-\d{5,}\.tar")
_ANEW = "delete the folder and prepare it again"


@dataclass(frozen=True)
class Shard:
    """One tar file of a set."""

    shard: str
    n: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says."""

    shape: tuple[int, int, int]
    """Height, width, channels."""
    n: int
    """Number of images."""
    encoding: str
    """"npy" (pixels) or "image" (png, jpg, webp)."""
    flips: bool
    """Whether a mirrored image is as good as the original."""
    classes: tuple[str, ...]
    """Names of the classes, where the source knows them."""
    digest: str
    """SHA-256 of pixels, labels and shape; see ``dataset_digest``."""
    source: Mapping[str, Any]
    """Kind, name, fingerprint and number of records of what the set was made from."""
    transform: Mapping[str, Any]
    """How it was made: resolution, channels, filter, crop, rules."""
    duplicates: int
    """Images that are equal to one before them; they are part of the set."""
    rejects: int
    """Records that were left out; rejects.jsonl lists them."""
    tool: str
    """Versions of the programs that made it."""
    files: Mapping[str, str]
    """SHA-256 of labels.npy and index.npy, where they exist."""
    shards: tuple[Shard, ...]
    """The tar files, in order."""

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def to_json(self) -> bytes:
        """The content of manifest.json."""
        head = {"format": FORMAT, "version": VERSION, "layout": "HWC", "dtype": "uint8"}
        return (json.dumps({**head, **asdict(self)}, indent=1) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks manifest.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, of another program, or of a newer version of this one.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / PROGRESS).is_dir():
            raise ValueError(
                f"{folder} is not finished: give the same ddgan-fast prepare command again, it "
                "goes on where it stopped."
            )
        raise FileNotFoundError(
            f"{folder} holds no {MANIFEST}, so it is no prepared set: check the path, or make one "
            "with ddgan-fast prepare."
        )
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        if content["version"] > VERSION:
            raise ValueError(f"it is of version {content['version']}, newer than {VERSION}")
        return _checked(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} cannot be used ({what}): {_ANEW}.") from None


def _checked(content: dict[str, Any]) -> Manifest:
    height, width, channels = (int(side) for side in content["shape"])
    known = {name: content[name] for name in Manifest.__dataclass_fields__}
    known["shape"] = shape = (height, width, channels)
    known["shards"] = shards = tuple(Shard(**shard) for shard in content["shards"])
    known["classes"] = tuple(content["classes"])
    if content["encoding"] not in ("npy", "image"):
        raise ValueError(f"its encoding is {content['encoding']!r}")
    if not shards or sum(shard.n for shard in shards) != content["n"] or min(shape) < 1:
        raise ValueError("its numbers of images contradict each other")
    for shard in shards:
        if not _SHARD_NAME.fullmatch(shard.shard):
            raise ValueError(f"a shard is called {shard.shard!r}")
        expected = shard.n * stride(shape) + len(TAR_END)
        if content["encoding"] == "npy" and shard.bytes != expected:
            raise ValueError(f"{shard.shard} should have {expected:,} bytes, not {shard.bytes:,}")
    return Manifest(**known)


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"train-{number:05d}.tar"


def crc_name(shard: str) -> str:
    """The file with the checksums of a shard's images: little-endian uint32 each."""
    return shard.removesuffix(".tar") + ".crc"


def key(i: int) -> str:
    """Name of image i's member, without its extension."""
    return f"{i:09d}"


def padding(size: int) -> int:
    """Zero bytes that follow ``size`` bytes up to the next tar block."""
    return -size % TAR_HEADER


def stride(shape: tuple[int, ...]) -> int:
    """Bytes from one image of this shape to the next in a shard of pixels."""
    size = NPY_HEADER + math.prod(shape)
    return TAR_HEADER + size + padding(size)


def tar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member; equal names and sizes give equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT, "ascii")


def npy_header(shape: tuple[int, ...]) -> bytes:
    """What ``numpy.save`` writes before the pixels of a uint8 array."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    header = buffer.getvalue()
    if len(header) != NPY_HEADER:
        raise RuntimeError(
            f"this numpy writes npy headers of {len(header)} bytes where the format of shards has "
            f"{NPY_HEADER}: use an older numpy, and report it."
        )
    return header


def dataset_digest(
    shape: tuple[int, ...],
    n: int,
    hashes: Iterable[NDArray[np.uint8]],
    labels: NDArray[np.int64] | None,
) -> str:
    """SHA-256 of a set's shape, of the SHA-256 of each image's pixels in order, and of the labels.

    Args:
        shape: [H, W, C].
        n: Number of images.
        hashes: uint8 [., 32] each, [n, 32] together.
        labels: [n] or None.
    """
    digest = hashlib.sha256(f"ddgan_fast images {n} {'x'.join(map(str, shape))}\n".encode())
    for part in hashes:
        digest.update(np.ascontiguousarray(part).tobytes())
    if labels is not None:
        digest.update(b"labels\n" + labels.astype("<i8").tobytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def preadv(descriptor: int, parts: list[memoryview], offset: int) -> int:
    """Fills the buffers one after another from ``offset`` on; returns the bytes that were there."""
    wanted = sum(map(len, parts))
    count = os.preadv(descriptor, parts, offset)
    while 0 < count < wanted:
        rest, skip = [], count
        for part in parts:
            rest.append(part[min(skip, len(part)) :])
            skip = max(0, skip - len(part))
        more = os.preadv(descriptor, [part for part in rest if len(part)], offset + count)
        if more == 0:
            break
        count += more
    return count
