"""Making one shard: decode a range of records, write the tar, then the note that it is complete."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ddgan_fast.data.images import MODES, PUBLISHED, Geometry, decode_image, prepare_pixels
from ddgan_fast.data.records import Records
from ddgan_fast.data.shards_format import (
    PROGRESS,
    TAR_END,
    TAR_HEADER,
    file_sha256,
    key,
    npy_header,
    padding,
    shard_name,
    tar_header,
)
from ddgan_fast.files import atomic_open

_EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_PNG_DEPTH = 24  # where a PNG says how many bits a sample has
_TICK_S = 0.05  # between two reports, which lock what all processes share


@dataclass(frozen=True)
class Recipe:
    """What becomes of a record."""

    size: int
    channels: int
    geometry: Geometry = PUBLISHED
    encoded: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a prepared image."""
        return self.size, self.size, self.channels


@dataclass(frozen=True)
class Work:
    """What all shards have in common."""

    records: Records
    folder: Path
    recipe: Recipe


@dataclass(frozen=True)
class Task:
    """A shard to be made of records ``start`` to ``stop``, excluded."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Made:
    """A complete shard."""

    task: Task
    first: int
    """Number of its first image in the set."""
    nbytes: int
    sha256: str
    hashes: NDArray[np.uint8]
    """SHA-256 of each image's pixels [n, 32]."""
    crcs: NDArray[np.uint32]
    """CRC-32 of each image's pixels, or of its file in an encoded set [n]."""
    spans: NDArray[np.int64]
    """Where each image's member begins behind its tar header, and its length [n, 2]."""
    rejects: tuple[tuple[int, str, str], ...]
    """Record, name and reason of what was left out."""

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.crcs)

    @property
    def kept(self) -> NDArray[np.int64]:
        """The records whose images it holds [n]."""
        left_out = [record for record, _, _ in self.rejects]
        return np.setdiff1d(np.arange(self.task.start, self.task.stop), left_out)


class Stopped(Exception):
    """The work was called off."""


def make_shard(work: Work, task: Task, tick: Callable[[int], None]) -> Made:
    """Writes a shard and the note that makes it count.

    Args:
        work: The source, where to, and how.
        task: Which records.
        tick: Called with the number of records done since its last call; may raise to call the
            work off.

    Raises:
        OSError: the shard cannot be written.
        RuntimeError: no record of the range can be used.
    """
    path = work.folder / shard_name(task.number)
    with writing(path):
        with atomic_open(path) as file:
            made = _write(work, task, tick, file)
        _note_down(work.folder, made)
    return made


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file or folder when writing fails, and says how to go on."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}): mend that, and give the same "
            "command again; complete shards are kept."
        ) from error


def finished(folder: Path, task: Task) -> Made | None:
    """The shard of a task if it is complete."""
    try:
        with np.load(_note(folder, task.number), allow_pickle=False) as note:
            facts = json.loads(note["facts"].tobytes())
            arrays = {name: note[name] for name in ("hashes", "crcs", "spans")}
        rejects = tuple((int(i), str(name), str(why)) for i, name, why in facts.pop("rejects"))
        made = Made(task=Task(**facts.pop("task")), rejects=rejects, **facts, **arrays)
        size = (folder / shard_name(task.number)).stat().st_size
    except Exception:  # numpy raises many kinds on damaged files; the shard is made anew
        return None
    return made if made.task == task and size == made.nbytes else None


def renumber(folder: Path, made: Made, first: int) -> Made:
    """Renames the members of a shard to what they are called when ``first`` images come before."""
    path = folder / shard_name(made.task.number)
    # From here until the new note is there the shard does not count.
    _note(folder, made.task.number).unlink()
    with open(path, "r+b") as file:
        for j, (offset, length) in enumerate(made.spans.tolist()):
            file.seek(offset - TAR_HEADER)
            extension = file.read(TAR_HEADER)[:100].rstrip(b"\0").decode().rsplit(".", 1)[1]
            file.seek(offset - TAR_HEADER)
            file.write(tar_header(f"{key(first + j)}.{extension}", length))
        file.flush()
        os.fsync(file.fileno())
    renamed = Made(**{**made.__dict__, "first": first, "sha256": file_sha256(path)})
    _note_down(folder, renamed)
    return renamed


def member(records: Records, i: int, recipe: Recipe) -> tuple[NDArray[np.uint8], bytes, str]:
    """Pixels of record i, and content and extension of its member; pixels have no npy header yet.

    Raises:
        OSError, ValueError: the record cannot be read or used.
    """
    data, name = records.read(i), records.name(i)
    size, channels, geometry = recipe.size, recipe.channels, recipe.geometry
    if isinstance(data, np.ndarray):
        pixels = prepare_pixels(data, name, size, channels, geometry)
    else:
        pixels = decode_image(data, name, size, channels, geometry)
    pixels = np.ascontiguousarray(pixels)
    if not recipe.encoded:
        return pixels, pixels.tobytes(), "npy"
    extension = None if isinstance(data, np.ndarray) else _as_it_is(data, recipe)
    if isinstance(data, bytes) and extension:
        return pixels, data, extension
    return pixels, _png(pixels), "png"


def _as_it_is(data: bytes, recipe: Recipe) -> str | None:
    """The extension for an encoded image that needs no change; None if it needs one."""
    with Image.open(io.BytesIO(data)) as image:
        plain = (
            image.format in _EXTENSIONS
            and image.size == (recipe.size, recipe.size)
            and image.mode == MODES[recipe.channels]
            and "transparency" not in image.info
            and not (image.format == "PNG" and data[_PNG_DEPTH] != 8)
        )
        if not plain:
            return None
        try:
            upright = image.getexif().get(ExifTags.Base.Orientation, 1) in (0, 1)
        except Exception:  # damaged metadata: readers may differ on it
            upright = False
        return _EXTENSIONS[image.format or ""] if upright else None


def _png(pixels: NDArray[np.uint8]) -> bytes:
    # PNG keeps grey and alpha as they are, which lossless WebP does not, and every tool reads it.
    # Level 1: a tenth larger than the default, but four times as fast to write.
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write(work: Work, task: Task, tick: Callable[[int], None], file: BinaryIO) -> Made:
    digest, offset = hashlib.sha256(), 0
    hashes: list[bytes] = []
    crcs: list[int] = []
    spans: list[tuple[int, int]] = []
    rejects: list[tuple[int, str, str]] = []
    prefix = b"" if work.recipe.encoded else npy_header(work.recipe.shape)
    for i in _ticking(task, tick):
        try:
            pixels, content, extension = member(work.records, i, work.recipe)
        except (OSError, ValueError) as error:
            rejects.append((i, work.records.name(i), " ".join(str(error).split())))
            continue
        length = len(prefix) + len(content)
        name = f"{key(task.start + len(crcs))}.{extension}"
        for part in (tar_header(name, length), prefix, content, bytes(padding(length))):
            digest.update(part)
            file.write(part)
        hashes.append(hashlib.sha256(pixels.data).digest())
        crcs.append(zlib.crc32(content))
        spans.append((offset + TAR_HEADER, length))
        offset += TAR_HEADER + length + padding(length)
    if not crcs:
        raise RuntimeError(
            f"Every record from {task.start:,} to {task.stop - 1:,} is unusable, which is more "
            f"than some bad images; the first: {rejects[0][2]}"
        )
    digest.update(TAR_END)
    file.write(TAR_END)
    return Made(
        task=task,
        first=task.start,
        nbytes=offset + len(TAR_END),
        sha256=digest.hexdigest(),
        hashes=np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32),
        crcs=np.array(crcs, np.uint32),
        spans=np.array(spans, np.int64),
        rejects=tuple(rejects),
    )


def _ticking(task: Task, tick: Callable[[int], None]) -> Iterator[int]:
    count, last = 0, time.monotonic()
    for i in range(task.start, task.stop):
        yield i
        count += 1
        if time.monotonic() - last >= _TICK_S:
            tick(count)
            count, last = 0, time.monotonic()
    tick(count)


def _note(folder: Path, number: int) -> Path:
    return folder / PROGRESS / f"{shard_name(number)}.npz"


def _note_down(folder: Path, made: Made) -> None:
    facts: dict[str, Any] = {
        "task": made.task.__dict__,
        "first": made.first,
        "nbytes": made.nbytes,
        "sha256": made.sha256,
        "rejects": made.rejects,
    }
    encoded = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    with atomic_open(_note(folder, made.task.number)) as file:
        np.savez(file, facts=encoded, hashes=made.hashes, crcs=made.crcs, spans=made.spans)
