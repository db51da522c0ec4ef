"""The end of ``prepare``: from complete shards to a set with a manifest."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

import ddgan_fast
from ddgan_fast.data.prepare_shard import Made, Work, renumber
from ddgan_fast.data.shards_format import (
    INDEX,
    LABELS,
    MANIFEST,
    PROGRESS,
    REJECTS,
    Manifest,
    Shard,
    crc_name,
    dataset_digest,
    file_sha256,
    shard_name,
)
from ddgan_fast.files import atomic_open


def rejected(folder: Path, shards: list[Made]) -> int:
    """Writes rejects.jsonl; returns how many records are in it."""
    rejects = [reject for made in shards for reject in made.rejects]
    with atomic_open(folder / REJECTS) as file:
        for record, name, reason in rejects:
            line = {"record": record, "name": name, "reason": reason}
            file.write((json.dumps(line) + "\n").encode())
    return len(rejects)


def finish(work: Work, job: dict[str, Any], shards: list[Made]) -> Manifest:
    """Numbers the images without holes, and writes what belongs beside the shards.

    Args:
        work: Source, folder and recipe.
        job: What the manifest says of source and transform.
        shards: All of them, in order.
    """
    folder, records, recipe = work.folder, work.records, work.recipe
    shards = _without_holes(folder, shards)
    n = sum(made.n for made in shards)
    for made in shards:
        _save_crcs(folder, made)
    labels = None
    files: dict[str, str] = {}
    if records.labels is not None:
        labels = np.concatenate([records.labels[made.kept] for made in shards]).astype(np.int64)
        files[LABELS] = _save(folder / LABELS, labels)
    if recipe.encoded:
        index = np.concatenate(
            [np.insert(made.spans, 0, k, axis=1) for k, made in enumerate(shards)]
        )
        files[INDEX] = _save(folder / INDEX, index)
    manifest = Manifest(
        shape=recipe.shape,
        n=n,
        encoding="image" if recipe.encoded else "npy",
        flips=records.flips,
        classes=tuple(records.class_names),
        digest=dataset_digest(recipe.shape, n, (made.hashes for made in shards), labels),
        source=job["source"],
        transform=job["transform"],
        duplicates=_duplicates(shards),
        rejects=sum(len(made.rejects) for made in shards),
        tool=f"ddgan_fast {ddgan_fast.__version__}, Pillow {PIL.__version__}",
        files=files,
        shards=tuple(
            Shard(shard_name(made.task.number), made.n, made.nbytes, made.sha256) for made in shards
        ),
    )
    with atomic_open(folder / MANIFEST) as file:
        file.write(manifest.to_json())
    shutil.rmtree(folder / PROGRESS)
    return manifest


def restore(folder: Path, manifest: Manifest, shards: dict[int, Made]) -> None:
    """Gives shards that were made again their place in a complete set.

    Args:
        folder: Of the set.
        manifest: What it says.
        shards: By number.

    Raises:
        RuntimeError: one is not what it was before; it is removed.
    """
    for number, made in shards.items():
        first = sum(shard.n for shard in manifest.shards[:number])
        if made.first != first:
            made = renumber(folder, made, first)
        path = folder / shard_name(number)
        if made.sha256 != manifest.shards[number].sha256:
            path.unlink()
            raise RuntimeError(
                f"{path} would not be what it was: the source, or the library that decodes it, has "
                f"changed; delete {folder} and prepare it again."
            )
        _save_crcs(folder, made)


def _save_crcs(folder: Path, made: Made) -> None:
    with atomic_open(folder / crc_name(shard_name(made.task.number))) as file:
        file.write(made.crcs.astype("<u4").tobytes())


def _duplicates(shards: list[Made]) -> int:
    rows = np.ascontiguousarray(np.concatenate([made.hashes for made in shards]))
    return len(rows) - len(np.unique(rows.view("V32")))


def _without_holes(folder: Path, shards: list[Made]) -> list[Made]:
    first, result = 0, []
    for made in shards:
        result.append(made if made.first == first else renumber(folder, made, first))
        first += made.n
    return result


def _save(path: Path, array: NDArray[np.int64]) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    with atomic_open(path) as file:
        file.write(buffer.getvalue())
    return file_sha256(path)
