"""``bench scaling``: what a measured step on one GPU predicts for many. Nothing is run."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ddgan_fast.commands import Parser
from ddgan_fast.config import load_config
from ddgan_fast.summary import parameter_counts
from ddgan_fast.tables import print_table

from . import facts
from .runner import Row

GPUS_PER_NODE = 8
BUCKET_BYTES = 25 * 2**20
"""What DistributedDataParallel reduces at once; the last such part has no backward to hide in."""

_ABOUT = (
    "Predict a training step on many GPUs. Weak scaling keeps the images per GPU, strong scaling\n"
    "those per step; efficiency compares with as many single GPUs."
)

@dataclass(frozen=True)
class Cluster:
    """Links and habits of a cluster."""

    nvlink_gbs: float = 450.0
    link_gbs: float = 50.0
    achieved: float = 0.8
    nvlink_us: float = 5.0
    link_us: float = 15.0
    overlap: float = 0.5
    jitter: float = 0.01

    def assumptions(self) -> list[str]:
        """One line each, with where the default comes from."""
        return [
            f"{GPUS_PER_NODE} GPUs per node, NVLink {self.nvlink_gbs:g} GB/s each way per GPU "
            "(default: half of an H200's 900 GB/s, MLCommons' H200-SXM-141GBx8)",
            f"network {self.link_gbs:g} GB/s each way per GPU (default: one 400 Gb/s card per "
            "GPU, same source)",
            f"{self.achieved:.0%} of both is reached (assumption); a message takes "
            f"{self.nvlink_us:g} us within a node, {self.link_us:g} us between two (assumption)",
            "all-reduce of S bytes: ring 2 (P-1)/P S/B (nccl-tests' PERFORMANCE.md) and 2 (P-1) "
            "messages, or tree 2 S/B and 2 (7 + log2 nodes); the faster one",
            f"{self.overlap:.0%} of a step can hide reduction (assumption), but not the last "
            "bucket of either network",
            f"steps vary by {self.jitter:.1%} from GPU to GPU; the slowest of P is "
            "sqrt(2 ln P) times that late (assumption)",
        ]


OPTIONS = {
    "link_gbs": "network per GPU, GB/s each way",
    "nvlink_gbs": "NVLink per GPU, GB/s each way",
    "overlap": "share of a step that can hide reduction",
    "jitter": "relative spread of the GPUs' steps",
}

FIXED_SHARE = 0.2
"""Of a step that was measured at one batch size only; assumed."""


class StepTime(NamedTuple):
    """Milliseconds of a step on one GPU, as a line over its images."""

    fixed: float
    per_image: float

    def at(self, images: float) -> float:
        return self.fixed + self.per_image * images


def fit(points: Sequence[tuple[int, float]]) -> StepTime:
    """The line through the smallest and the largest batch of (images, milliseconds)."""
    (first, low), (last, high) = min(points), max(points)
    if first == last:
        return StepTime(FIXED_SHARE * high, (1 - FIXED_SHARE) * high / last)
    slope = max((high - low) / (last - first), 0.0)
    return StepTime(max(low - slope * first, 0.0), slope)


def reduction_ms(size: float, gpus: int, cluster: Cluster) -> float:
    """One all-reduce of ``size`` bytes, by ring or tree."""
    if gpus == 1:
        return 0.0
    local = min(gpus, GPUS_PER_NODE)
    nodes = math.ceil(gpus / GPUS_PER_NODE)
    bandwidth = cluster.nvlink_gbs
    if nodes > 1:  # every card of a node carries its share
        bandwidth = min(bandwidth, local * cluster.link_gbs)
    rate = cluster.achieved * bandwidth * 1e6  # bytes per ms
    hops = 2 * (gpus - 1)
    far = 0 if nodes == 1 else round(hops * nodes / gpus)
    ring_us = (hops - far) * cluster.nvlink_us + far * cluster.link_us
    ring = 2 * (gpus - 1) / gpus * size / rate + ring_us / 1e3
    far = 2 * math.ceil(math.log2(nodes))
    tree_us = 2 * (local - 1) * cluster.nvlink_us + far * cluster.link_us
    return min(ring, 2 * size / rate + tree_us / 1e3)


def predict(
    step: StepTime, images: int, gpus: int, sizes: Sequence[float], cluster: Cluster
) -> dict[str, float]:
    """Milliseconds of a step: "compute", "reduction" (all of it), "exposed" and "total".

    ``images`` are those of one GPU, ``sizes`` the bytes of each network's gradient.
    """
    compute = step.at(images)
    reduction = sum(reduction_ms(size, gpus, cluster) for size in sizes)
    last = sum(reduction_ms(min(size, BUCKET_BYTES), gpus, cluster) for size in sizes)
    exposed = max(reduction - cluster.overlap * compute, last)
    late = compute * cluster.jitter * math.sqrt(2 * math.log(gpus))
    total = compute + late + exposed
    return {"compute": compute, "reduction": reduction, "exposed": exposed, "total": total}


def rows(
    step: StepTime, base: int, batch: int, gpus: Sequence[int], sizes: Sequence[float], on: Cluster
) -> list[Row]:
    """Weak scaling keeps ``base`` images per GPU, strong scaling ``batch`` images per step.

    Efficiency refers to a GPU alone with ``base`` images. A GPU has one image at least.
    """
    alone, result = base / step.at(base), []
    for kind in ("weak", "strong"):
        for count in gpus:
            images = base if kind == "weak" else max(math.ceil(batch / count), 1)
            ms = predict(step, images, count, sizes, on)
            speed = images * count / ms["total"]
            row: Row = {"case": "scaling", "provider": "model", "predicted": True, "scaling": kind}
            row |= {"gpus": count, "per_gpu_batch": images, "batch": images * count}
            # A prediction has no spread.
            row |= dict.fromkeys(("ms_p20", "ms_p50", "ms_p80"), _rounded(ms["total"]))
            row["ms_parts"] = {name: _rounded(value) for name, value in ms.items()}
            row["img_s"] = _rounded(1e3 * speed)
            row["efficiency"] = _rounded(speed / (count * alone))
            result.append(row)
    return result


def main(argv: Sequence[str]) -> int:
    """Predict, print the assumptions, and write if asked."""
    arguments = _parse(argv)
    cfg = load_config(arguments.preset)
    points = _points(arguments)
    step, base = fit(points), int((arguments.per_gpu_batch or [max(points)[0]])[0])
    cluster = Cluster(**{name: getattr(arguments, name) for name in OPTIONS})
    width = {"fp32": 4, "bf16": 2}[arguments.reduction or cfg.run.reduction]
    sizes = [width * count for count in parameter_counts(cfg).values()]
    batch, gpus = arguments.batch or cfg.run.batch_size, [int(count) for count in arguments.gpus]
    found = rows(step, base, batch, gpus, sizes, cluster)
    measured = ", ".join(f"{ms:g} ms at {images} images" for images, ms in points)
    line = f"{step.fixed:.4g} ms + {step.per_image:.4g} ms per image"
    line += "" if len(dict(points)) > 1 else f" ({FIXED_SHARE:.0%} fixed: assumption)"
    assumptions = [
        f"one GPU: {measured}; taken as {line}",
        f"gradients: {sizes[0] / 1e6:.1f} MB of G, {sizes[1] / 1e6:.1f} MB of D, each reduced once",
        *cluster.assumptions(),
    ]
    about = {
        "preset": arguments.preset,
        "assumptions": assumptions,
        "machine": facts.machine(torch.device("cpu")),
        "versions": facts.versions(),
        "command": shlex.join(["ddgan-fast", "bench", "scaling", *argv]),
        "when": facts.now(),
    }
    _print(arguments.preset, found, assumptions)
    if arguments.json is not None:
        facts.write(Path(arguments.json), [row | about for row in found])
        print(f"Wrote {arguments.json}.")
    return 0


def _points(arguments: argparse.Namespace) -> list[tuple[int, float]]:
    """Measured (images, milliseconds)."""
    if arguments.results is None:
        times, sizes = arguments.step_ms or [], arguments.per_gpu_batch or []
        if not times or len(times) != len(sizes):
            raise ValueError("give --step-ms and as many values of --per-gpu-batch, or --from.")
        return [(int(size), time) for size, time in zip(sizes, times, strict=True)]
    points = []
    try:
        for row in json.loads(Path(arguments.results).read_text())["rows"]:
            who = row.get("case"), row.get("provider"), row.get("preset")
            if who == ("step", "ddgan_fast", arguments.preset):
                points.append((int(row["batch"]), float(row["ms_p50"])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--from {arguments.results}: not a file of bench results.") from error
    if not points:
        raise ValueError(f"--from {arguments.results} has no step of {arguments.preset}.")
    return points


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("bench scaling", _ABOUT)
    parser.add_argument("--preset", default="celebahq256", help="default: celebahq256")
    parser.add_argument("--step-ms", type=_numbers, help="measured on one GPU: MS or MS,MS")
    parser.add_argument(
        "--per-gpu-batch", type=_numbers, help="images of each; weak scaling keeps the first"
    )
    parser.add_argument("--from", dest="results", metavar="FILE", help="JSON of bench step")
    parser.add_argument("--gpus", type=_numbers, default=[8, 64, 512], help="default: 8,64,512")
    parser.add_argument("--batch", type=int, help="of strong scaling (default: the preset's)")
    parser.add_argument("--reduction", choices=("fp32", "bf16"), help="default: the preset's")
    for name, what in OPTIONS.items():
        value = getattr(Cluster, name)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=float, default=value, help=f"{what} (default: {value:g})")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    arguments = parser.parse_args(argv)
    for name in ("step_ms", "per_gpu_batch", "gpus", "batch", "link_gbs", "nvlink_gbs"):
        values = getattr(arguments, name)
        if any(not 0 < value < math.inf for value in np.atleast_1d(values or [])):
            raise ValueError(f"--{name.replace('_', '-')}: values must be above 0.")
    if not (0 <= arguments.overlap <= 1 and 0 <= arguments.jitter <= 1):
        raise ValueError("--overlap and --jitter are shares: from 0 to 1.")
    if arguments.json is not None and not Path(arguments.json).parent.is_dir():
        raise FileNotFoundError(f"--json: there is no folder {Path(arguments.json).parent}.")
    return arguments


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _print(preset: str, found: Sequence[Row], assumptions: Sequence[str]) -> None:
    names = ("scaling", "gpus", "batch", "per_gpu_batch", "ms_p50", "img_s")
    headers = ("scaling", "GPUs", "batch", "per GPU", "ms", "img/s", "efficiency", "ms not hidden")
    lines = [
        (*(str(row[n]) for n in names), f"{row['efficiency']:.1%}", f"{row['ms_parts']['exposed']}")
        for row in found
    ]
    print_table(f"scaling: {preset}, predicted", headers, lines)
    print("\n  - ".join(["Assumptions:", *assumptions]))


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
