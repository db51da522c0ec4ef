"""Looking at a prepared set: are all its bytes still what they were, and what is in it."""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.data.shards import ShardSet, lost_shards, open_shards
from ddgan_fast.data.shards_format import (
    NPY_HEADER,
    TAR_HEADER,
    Shard,
    crc_name,
    key,
    padding,
    read_manifest,
)
from ddgan_fast.images import grid, readable_scale, save_png

CONTACT_SHEET = "contact-sheet.png"
_SHEET_IMAGES = 64
_LISTED = 8  # damaged images of one shard that are named


def verify(
    path: str | os.PathLike[str],
    workers: int | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Compares every shard with its SHA-256 and every image with its CRC-32.

    Args:
        path: The folder of the set.
        workers: Threads; default one per core.
        done: Called with the number of images of each shard that was read.

    Returns:
        A sentence for each fault; of the contents only when no shard is missing or cut short.

    Raises:
        FileNotFoundError, ValueError: As for ``open_shards``, but for lost shards.
    """
    folder = Path(path).expanduser()
    manifest = read_manifest(folder)
    if lost := [str(fault) for fault in lost_shards(folder, manifest)]:
        return lost
    shards = open_shards(folder)
    faults = [
        f"{folder / stray} does not belong to the set: take it away."
        for stray in sorted(
            {tar.name for tar in folder.glob("*.tar")} - {s.shard for s in manifest.shards}
        )
    ]

    def check(number: int) -> list[str]:
        found = _faults(shards, number)
        done(manifest.shards[number].n)
        return found

    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), "ddgan-verify") as pool:
        for found in pool.map(check, range(len(manifest.shards))):
            faults += found
    shards.close()
    return faults


def _faults(shards: ShardSet, number: int) -> list[str]:
    shard = shards.manifest.shards[number]
    first = sum(s.n for s in shards.manifest.shards[:number])
    try:
        crcs = np.fromfile(shards.path / crc_name(shard.shard), "<u4")
    except FileNotFoundError:
        return [f"{shards.path / crc_name(shard.shard)} is missing."]
    if len(crcs) != shard.n:
        return [f"{shards.path / crc_name(shard.shard)} holds {len(crcs)} sums, not {shard.n}."]
    digest, faults = hashlib.sha256(), []
    skip = NPY_HEADER if shards.encoding == "npy" else 0
    try:
        with open(shards.path / shard.shard, "rb") as file:
            for j, length in enumerate(_lengths(shards, number, shard)):
                block = file.read(TAR_HEADER + length + padding(length))
                digest.update(block)
                content = memoryview(block)[TAR_HEADER + skip : TAR_HEADER + length]
                named = block.startswith(key(first + j).encode())
                if not named or zlib.crc32(content) != crcs[j]:
                    faults.append(f"{shards.name(first + j)} is damaged.")
            digest.update(file.read())
    except OSError as error:
        return [f"{shards.path / shard.shard} cannot be read ({error.strerror})."]
    if len(faults) > _LISTED:
        faults[_LISTED:] = [f"{shards.path / shard.shard}: {len(faults) - _LISTED:,} more."]
    if digest.hexdigest() != shard.sha256 and not faults:
        faults.append(f"{shards.path / shard.shard} is damaged between its images.")
    return faults


def _lengths(shards: ShardSet, number: int, shard: Shard) -> NDArray[np.int64] | list[int]:
    if shards.spans is not None:
        return shards.spans[shards.spans[:, 0] == number, 2]
    return [NPY_HEADER + math.prod(shards.shape)] * shard.n


def facts(shards: ShardSet) -> list[tuple[str, str]]:
    """What a set is, as pairs of words for the user."""
    manifest = shards.manifest
    source, transform = manifest.source, dict(manifest.transform)
    rules = transform.pop("rules", "")
    kind = "pixels (npy)" if manifest.encoding == "npy" else "image files"
    rows = [
        ("images", f"{manifest.n:,} of {'x'.join(map(str, shards.shape))}, {kind}"),
        ("shards", f"{len(manifest.shards):,}, {manifest.nbytes / 1e9:,.3f} GB"),
        ("classes", _classes(shards)),
        ("source", f"{source['kind']} {source['name']}, {source['records']:,} records"),
        ("fingerprint", str(source["fingerprint"])),
        ("transform", ", ".join([rules, *(f"{k} {v}" for k, v in transform.items())])),
        ("mirrored", "as good as the original" if manifest.flips else "not equivalent"),
        ("duplicates", f"{manifest.duplicates:,}"),
        ("left out", f"{manifest.rejects:,}"),
        ("made by", manifest.tool),
        ("digest", manifest.digest),
    ]
    return rows


def contact_sheet(shards: ShardSet) -> Path:
    """Writes a grid of images spread over the set beside its manifest.

    Raises:
        OSError: it cannot be written, or an image cannot be read.
    """
    chosen = np.linspace(0, len(shards) - 1, min(_SHEET_IMAGES, len(shards))).astype(np.int64)
    path = shards.path / CONTACT_SHEET
    scale = readable_scale(max(shards.shape[:2]))
    save_png(path, grid(shards.fetch(chosen), scale=scale, smooth=scale > 1))
    return path


def _classes(shards: ShardSet) -> str:
    if shards.labels is None:
        return "none"
    numbers, counts = np.unique(shards.labels, return_counts=True)
    spread = f"{counts.min():,} to {counts.max():,} images each"
    names = ", ".join(shards.class_names[:10])
    more = ", ..." if len(shards.class_names) > 10 else ""
    return f"{len(numbers):,} ({spread})" + (f": {names}{more}" if names else "")
