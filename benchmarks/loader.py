"""The case "loader": what the training data cost the CPU, per image and loader."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddgan_fast.commands import Parser
from ddgan_fast.data import dali_loader
from ddgan_fast.data.dataset import Dataset
from ddgan_fast.data.device import to_model_input
from ddgan_fast.data.loading import make_loader
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.prepare import prepare
from ddgan_fast.data.prepare_request import Request
from ddgan_fast.data.shards import open_shards
from ddgan_fast.data.sources import Synthetic

from . import facts
from .photographs import patches
from .reference_loader import loader as reference_loader
from .reference_loader import write_lmdb

NODE_IMAGES_PER_SECOND = 8 * 400
"""What eight fast GPUs train on."""
REFERENCES = ("reference", "reference_jpeg")
_QUALITY = 95
_SETTLE = 8  # batches before the clock starts: the queues have filled by then
_LEAST = 8  # batches in a measurement
_EPILOG = """\
Patches of photographs are written as raw shards, as JPEG shards and as an LMDB, in a temporary
folder. First every loader must deliver the right pixels; then they take turns. CPU time is that of
the process and of all its children. Photographs come from --images, from the folder that
tools/photographs.sh fills, or from scikit-learn.

example:
  ddgan-fast bench loader --json loader.json
"""

Row = dict[str, Any]


@dataclass
class Provider:
    """One loader."""

    name: str
    """"ring", "workers", "dali", "synthetic" or "reference" or "reference_jpeg"."""
    data: str
    """What it reads."""
    workers: int
    """Threads or processes that fetch."""
    open: Callable[[], contextlib.AbstractContextManager[Iterator[Tensor]]]
    """A fresh iterator over the plan's batches from step 0 on."""
    cpu_ms: list[float] = field(default_factory=list)
    """CPU milliseconds per image, by round."""
    wall_ms: list[float] = field(default_factory=list)
    """Milliseconds per batch, by round."""


def providers(images: NDArray[np.uint8], batch: int, workers: int, work: Path) -> list[Provider]:
    """Every loader that can run here, over the same images, checked against each other.

    Raises:
        RuntimeError: A loader delivers other pixels, or the package lmdb is missing.
    """
    size, plan = images.shape[1], Plan(len(images), 0, batch)
    # A database that this process has opened could not be opened in its children: so two of them.
    published, published_jpeg = work / "lmdb", work / "jpeg_lmdb"
    for place in (published, work / "source" / "train.lmdb"):
        write_lmdb((image.tobytes() for image in images), images.nbytes, place)
    raw = _prepared(work / "source", work / "raw", size, workers)
    files = work / "files"
    files.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(files / f"{i:06}.jpg", quality=_QUALITY)
    encoded = (path.read_bytes() for path in sorted(files.iterdir()))
    write_lmdb(encoded, images.nbytes, published_jpeg)
    jpeg = _prepared(files, work / "jpeg", size, workers, encoded=True)
    synthetic = Synthetic(size, 3, len(images))
    quality = f"JPEG, quality {_QUALITY}"
    reference = partial(_reference, size=size, plan=plan, workers=workers)
    found = [
        Provider("ring", "raw shards", 1, partial(_ours, raw, plan, "ring")),
        Provider("workers", f"shards of {quality}", workers, partial(_ours, jpeg, plan, "workers")),
        Provider("synthetic", "noise", 1, partial(_ours, synthetic, plan, "ring")),
        Provider("reference", "raw LMDB", workers, partial(reference, published)),
        Provider(
            "reference_jpeg",
            f"LMDB of {quality}",
            workers,
            partial(reference, published_jpeg, encoded=True),
        ),
    ]
    reason = dali_loader.why_not(jpeg, torch.device("cpu"), "cpu")
    if reason is None:
        decoded = partial(_ours, jpeg, plan, "dali")
        found.insert(2, Provider("dali", f"shards of {quality}", workers, decoded))
    else:
        print(f"Without the loader dali: {reason}.")
    _agree(found, images, plan)
    return found


def _prepared(
    source: Path, out: Path, size: int, workers: int, encoded: bool = False
) -> Dataset:
    prepare(
        Request(str(source), str(out), resolution=size, encoded=encoded, workers=1)
    )
    return open_shards(out, size, 3, workers=workers)


@contextlib.contextmanager
def _ours(dataset: Dataset, plan: Plan, kind: str) -> Iterator[Iterator[Tensor]]:
    with make_loader(dataset, plan, loader=kind) as loader:
        yield (batch.images for batch in loader)


@contextlib.contextmanager
def _reference(
    path: Path, size: int, plan: Plan, workers: int, encoded: bool = False
) -> Iterator[Iterator[Tensor]]:
    batches = reference_loader(path, size, plan, workers, encoded)
    try:
        yield batches
    finally:
        del batches  # ends its processes


def _agree(found: Iterable[Provider], images: NDArray[np.uint8], plan: Plan) -> None:
    """Raises RuntimeError unless all deliver the plan's first batch."""
    raw = torch.from_numpy(images[plan.batch(0)[0]])
    first = {}
    for provider in found:
        with provider.open() as batches:
            first[provider.name] = next(batches)
    jpeg = first["workers"]
    checks = {"ring": torch.equal(first["ring"], raw)}
    checks["dali"] = torch.equal(first.get("dali", jpeg), jpeg)
    checks["reference"] = _is_mirror_of(first["reference"], raw)
    checks["reference_jpeg"] = _is_mirror_of(first["reference_jpeg"], jpeg)
    wrong = [name for name, good in checks.items() if not good]
    if wrong:
        raise RuntimeError(f"loader {wrong[0]} delivers other pixels, so no time is told.")


def _is_mirror_of(images: Tensor, raw: Tensor) -> bool:
    """Whether each float image is the raw one, mirrored or not; ours is rounded once less."""
    truth = to_model_input(raw, None)
    distances = [(images - x).abs().amax((1, 2, 3)) for x in (truth, truth.flip(3))]
    return float(torch.minimum(*distances).max()) < 1e-6


def measure(found: Sequence[Provider], rounds: int, seconds: float) -> None:
    """Lets the loaders take turns; each turn lasts until it has cost ``seconds`` of the CPU."""
    for _ in range(rounds):
        for provider in found:
            with provider.open() as batches:
                for _ in range(_SETTLE):
                    next(batches)
                began, cpu, images, taken = time.perf_counter(), cpu_seconds(), 0, 0
                spent = 0.0
                while taken < _LEAST or spent < seconds:
                    images += len(next(batches))
                    taken += 1
                    if taken % _LEAST == 0:
                        spent = cpu_seconds() - cpu
                provider.cpu_ms.append(1e3 * (cpu_seconds() - cpu) / images)
                provider.wall_ms.append(1e3 * (time.perf_counter() - began) / taken)


def cpu_seconds() -> float:
    """CPU time of this process, its threads, and its children that still run (on Linux)."""
    total = time.process_time()
    for child in _children():
        # Finer than the clock ticks of stat.
        for task in child.glob("task/*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(task.read_text().split()[0]) / 1e9
    return total


def _children() -> list[Path]:
    found = []
    for tasks in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [Path("/proc", number) for number in tasks.read_text().split()]
    return found


def rows(
    found: Sequence[Provider], batch: int, images: NDArray[np.uint8], origin: str
) -> list[Row]:
    """One row per loader: medians and 20th and 80th percentiles over the rounds."""
    result = []
    for provider in found:
        p20, p50, p80 = np.quantile(provider.wall_ms, (0.2, 0.5, 0.8))
        cpu20, cpu50, cpu80 = np.quantile(provider.cpu_ms, (0.2, 0.5, 0.8))
        result.append(
            {
                "case": "loader",
                "provider": provider.name,
                "data": provider.data,
                "images": origin,
                "count": len(images),
                "size": images.shape[1],
                "batch": batch,
                "workers": provider.workers,
                "output": "float32 NCHW" if provider.name in REFERENCES else "uint8 NHWC",
                "device": "cpu",
                "cpu_ms_p50": _rounded(cpu50),
                "cpu_ms_p20": _rounded(cpu20),
                "cpu_ms_p80": _rounded(cpu80),
                "cores_for_node": _rounded(cpu50 * NODE_IMAGES_PER_SECOND / 1e3),
                "ms_p50": _rounded(p50),
                "ms_p20": _rounded(p20),
                "ms_p80": _rounded(p80),
                "img_s": _rounded(1e3 * batch / p50),
                "rounds": len(provider.wall_ms),
                "less_cpu_than": {
                    other.name: _ratio(other.cpu_ms, provider.cpu_ms)
                    for other in found
                    if other is not provider
                },
            }
        )
    return result


def _ratio(other: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    p20, p80 = np.quantile(np.divide(other, ours), (0.2, 0.8))
    return {
        "p50": _rounded(np.median(other) / np.median(ours)),
        "p20": _rounded(p20),
        "p80": _rounded(p80),
    }


def _rounded(value: Any) -> float:
    return float(f"{value:.4g}")


def main(argv: Sequence[str]) -> int:
    """Check, measure, print, and write if asked."""
    arguments = _parse(argv)
    output = Path(arguments.json) if arguments.json else None
    if output is not None and not output.parent.is_dir():
        raise FileNotFoundError(f"--json: there is no folder {output.parent}.")
    if not os.path.isdir("/proc/self/task"):
        raise RuntimeError("bench loader reads the CPU time of child processes from Linux's /proc.")
    folder = Path(arguments.images).expanduser() if arguments.images else None
    images, origin = patches(arguments.count, arguments.size, folder)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    command = shlex.join(["ddgan-fast", "bench", "loader", *argv])
    about = {
        "machine": facts.machine(torch.device("cpu")),
        "versions": facts.versions() | dali_loader.versions(),
        "command": command,
        "when": facts.now(),
    }
    try:
        with tempfile.TemporaryDirectory(prefix="ddgan-bench-", dir=arguments.work) as work:
            found = providers(images, arguments.batch, arguments.workers, Path(work))
            measure(found, arguments.rounds, arguments.seconds)
    finally:
        torch.set_num_threads(before)
    result = [row | about for row in rows(found, arguments.batch, images, origin)]
    _print(result)
    if output is not None:
        facts.write(output, result)
        print(f"Wrote {output}.")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("bench loader", "Compare the loaders' CPU time per image.", _EPILOG)
    parser.add_argument("--images", metavar="DIR", help="photographs to cut patches from")
    parser.add_argument("--count", type=int, default=512, help="patches (default: 512)")
    parser.add_argument("--size", type=int, default=256, help="their side (default: 256)")
    parser.add_argument("--batch", type=int, default=32, help="images per batch (default: 32)")
    parser.add_argument("--workers", type=int, default=2, help="threads, processes (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="CPU time of a turn, at least (default: 0.5)"
    )
    parser.add_argument("--work", metavar="DIR", help="where the temporary folder goes")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    arguments = parser.parse_args(argv)
    for name in ("count", "size", "batch", "workers", "rounds"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} is {getattr(arguments, name)}: it must be at least 1.")
    return arguments


def _print(result: Sequence[Row]) -> None:
    from ddgan_fast.tables import print_table

    first = result[0]
    print_table(
        f"loader: {first['count']} patches {first['size']}x{first['size']} of {first['images']}, "
        f"batch {first['batch']}",
        ("loader", "data", "CPU-ms/image", "(20-80 %)", "img/s", "cores for 8 x 400 img/s"),
        [
            (
                row["provider"],
                row["data"],
                f"{row['cpu_ms_p50']:g}",
                f"{row['cpu_ms_p20']:g} - {row['cpu_ms_p80']:g}",
                f"{row['img_s']:g}",
                f"{row['cores_for_node']:g}",
            )
            for row in result
        ],
    )
    pairs = (("ring", "reference"), ("dali", "reference_jpeg"), ("dali", "workers"))
    for name, other in pairs:
        for row in result:
            if row["provider"] == name and other in row["less_cpu_than"]:
                ratio = row["less_cpu_than"][other]
                print(
                    f"By the medians {name} takes {ratio['p50']:.1f} times less CPU per image than "
                    f"{other}; round by round {ratio['p20']:.1f} - {ratio['p80']:.1f} times."
                )
