"""From any source to shards: resumable after any kill, and the same set however often it stopped.

While a set is being made its folder holds ``.progress``: the request, a lock, and a note for each
complete shard. The manifest is written last, from the notes, and takes their place.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddgan_fast.data.prepare_finish import finish, rejected, restore
from ddgan_fast.data.prepare_pool import make_shards
from ddgan_fast.data.prepare_progress import Meter, clock
from ddgan_fast.data.prepare_request import Request, check, check_places, compare, job_of
from ddgan_fast.data.prepare_shard import Made, Task, Work, finished, member, writing
from ddgan_fast.data.prepare_source import open_source
from ddgan_fast.data.shards import open_shards
from ddgan_fast.data.shards_format import (
    MANIFEST,
    PROGRESS,
    REJECTS,
    TAR_END,
    TAR_HEADER,
    Manifest,
    Shard,
    crc_name,
    padding,
    read_manifest,
    stride,
)
from ddgan_fast.files import atomic_open, remove_leftovers

_JOB = "job.json"
_SAMPLES = 16  # records that are encoded to estimate the size of an encoded set
_MARGIN_BYTES = 16 << 20


@dataclass(frozen=True)
class Outcome:
    """What ``prepare`` found or made."""

    manifest: Manifest
    made: int
    """Shards that this call made; 0 if the set was complete."""


def prepare(request: Request) -> Outcome:
    """Makes the shards that are missing, and the manifest.

    Raises:
        ValueError: the request cannot work, or does not fit what lies in the output folder.
        FileNotFoundError, NotADirectoryError: there is no such source.
        OSError: the disk is too small, or a file cannot be written.
        RuntimeError: too many records are unusable, or another process prepares this folder.
    """
    check(request)
    out = Path(request.out).expanduser()
    source = Path(request.source).expanduser()
    check_places(source, out)
    records = open_source(
        source,
        request.kind,
        request.split,
        request.lsun_class,
        request.resolution,
    )
    n = len(records) if request.limit is None else min(len(records), request.limit)
    if n == 0:
        raise ValueError(f"{source} holds no images: check the path.")
    job = job_of(request, records, n)
    work = Work(records, out, request.recipe)
    tasks = [
        Task(k, start, min(start + request.shard_images, n))
        for k, start in enumerate(range(0, n, request.shard_images))
    ]
    if (out / MANIFEST).exists():
        return _already_there(work, job, tasks, request.workers)
    compare(out, _job_begun(out), job)
    notes = [finished(out, task) for task in tasks]
    missing = [task for task, note in zip(tasks, notes, strict=True) if note is None]
    _check_space(work, missing)
    with _alone(out):
        with atomic_open(out / PROGRESS / _JOB) as file:
            file.write(json.dumps(job).encode())
        complete = {note.task.number: note for note in notes if note is not None}
        if complete:
            print(f"Going on: {len(complete):,} of {len(tasks):,} shards are complete.")
        _make_missing(work, missing, complete, request.workers)
        ordered = [complete[task.number] for task in tasks]
        with writing(out):
            _check_rejects(out, ordered, request.max_bad)
            manifest = finish(work, job, ordered)
    return Outcome(manifest, len(missing))


def progress_of(out: str | os.PathLike[str]) -> int:
    """How many shards of an unfinished set are complete."""
    return len(list((Path(out).expanduser() / PROGRESS).glob("*.npz")))


def _make_missing(
    work: Work, missing: list[Task], complete: dict[int, Made], workers: int | None
) -> None:
    """Makes shards and puts them beside those that are complete."""
    if not missing:
        return
    remove_leftovers(work.folder, "train-*")
    remove_leftovers(work.folder / PROGRESS, "*")
    workers = workers or len(os.sched_getaffinity(0))
    done = sum(made.task.stop - made.task.start for made in complete.values())
    todo = sum(task.stop - task.start for task in missing)
    with Meter(done + todo, done) as meter:
        with closing(make_shards(work, missing, workers, meter.advance)) as shards:
            for made in shards:
                complete[made.task.number] = made
        speed = meter.speed()
    print(f"{todo:,} records in {clock(todo / speed)}, {speed:,.0f} per second.")


def _job_begun(out: Path) -> dict[str, Any] | None:
    try:
        begun: dict[str, Any] = json.loads((out / PROGRESS / _JOB).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None  # not begun, or killed before there was anything to continue
    return begun


def _already_there(
    work: Work, job: dict[str, Any], tasks: list[Task], workers: int | None
) -> Outcome:
    """The set that lies there; shards that it has lost are made again."""
    out, manifest = work.folder, read_manifest(work.folder)
    compare(out, {"source": manifest.source, "transform": manifest.transform}, job)
    lost = [
        task for task, shard in zip(tasks, manifest.shards, strict=True) if not _whole(out, shard)
    ]
    if lost:
        _check_space(work, lost)
        print(f"{len(lost):,} shards are missing or cut short; they are made again.")
        made: dict[int, Made] = {}
        with _alone(out):
            _make_missing(work, lost, made, workers)
            restore(out, manifest, made)
    open_shards(out).close()  # says what else is missing
    shutil.rmtree(out / PROGRESS, ignore_errors=True)
    return Outcome(manifest, len(lost))


def _whole(out: Path, shard: Shard) -> bool:
    try:
        sizes = [(out / name).stat().st_size for name in (shard.shard, crc_name(shard.shard))]
    except FileNotFoundError:
        return False
    return sizes == [shard.bytes, 4 * shard.n]


def _check_space(work: Work, missing: list[Task]) -> None:
    count = sum(task.stop - task.start for task in missing)
    if not count:
        return
    each = float(stride(work.recipe.shape))
    if work.recipe.encoded:
        each = _encoded_bytes(work, missing)
    needed = int(count * each) + len(missing) * len(TAR_END) + _MARGIN_BYTES
    existing = work.folder
    while not existing.exists():
        existing = existing.absolute().parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            f"{work.folder} needs about {needed / 1e9:,.2f} GB more, but {free / 1e9:,.2f} GB are "
            "free there: free some, or choose a folder on a larger disk; --encoded takes less."
        )


def _encoded_bytes(work: Work, missing: list[Task]) -> float:
    """Mean size of a member, from some records spread over all."""
    first, last = missing[0].start, missing[-1].stop - 1
    sizes = []
    for i in np.linspace(first, last, min(_SAMPLES, last - first + 1)).astype(int).tolist():
        try:
            size = len(member(work.records, i, work.recipe)[1])
        except (OSError, ValueError):  # a reject: found and listed later
            continue
        sizes.append(TAR_HEADER + size + padding(size))
    return float(np.mean(sizes)) if sizes else 0.0


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keeps a second process out of the folder; a killed one leaves no lock behind."""
    (out / PROGRESS).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / PROGRESS / "lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RuntimeError(
                f"another process is preparing {out}: wait for it, or stop it."
            ) from error
        yield
    finally:
        os.close(descriptor)


def _check_rejects(out: Path, shards: list[Made], max_bad: int) -> None:
    count = rejected(out, shards)
    if count > max_bad:
        first = next(why for made in shards for _, _, why in made.rejects)
        raise RuntimeError(
            f"{count:,} records are unusable, more than --max-bad {max_bad} allows; all are listed "
            f"in {out / REJECTS}. Give --max-bad {count} to leave them out, or repair them "
            f"and delete {out}. The first: {first}"
        )
