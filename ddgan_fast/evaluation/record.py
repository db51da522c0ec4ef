"""What an evaluation leaves behind: one JSON line with all that is needed to repeat it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ddgan_fast import __version__
from ddgan_fast.files import atomic_open
from ddgan_fast.guidance import bind
from ddgan_fast.machine import device_name
from ddgan_fast.samplers import choose

if TYPE_CHECKING:
    from ddgan_fast.data.dataset import Dataset
    from ddgan_fast.evaluation.evaluate import Plan, Result
    from ddgan_fast.evaluation.features import Extractor
    from ddgan_fast.evaluation.statistics import Statistics
    from ddgan_fast.sampling import LoadedGenerator
    from ddgan_fast.training.parallel import Ranks


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Of everything that numbers depend on."""
    return {
        "ddgan_fast": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def facts(
    model: LoadedGenerator,
    plan: Plan,
    result: Result,
    extractor: Extractor | None,
    ranks: Ranks,
    reference: Mapping[str, Any],
) -> dict[str, Any]:
    """What a record says of the samples, their judge, and the result."""
    sampler = choose(model.cfg, plan.sampler, plan.steps, plan.eta)
    steps = sampler.evaluations if sampler else model.cfg.model.num_timesteps
    condition = bind(model.cfg, plan.guidance, model.device)
    found: dict[str, Any] = {
        "step": model.step,
        "preset": model.cfg.preset,
        "n": plan.n,
        "seed": plan.seed,
        "nfe": steps * (condition.evaluations if condition else 1),
        "sampler": asdict(sampler) if sampler else "gan",
        "precision": plan.precision,
        "jpeg75": plan.jpeg75,
        "ranks": ranks.world,
        "device": device_name(ranks.device),
        "versions": versions(),
        "metrics": result.metrics,
        "warnings": result.warnings,
    }
    if condition is not None:
        found["classes"] = condition.facts()
        if plan.guidance is not None and plan.guidance.classifier is not None:
            found["classes"]["classifier_nfe"] = steps
            found["classes"]["classifier_sha256"] = file_sha256(plan.guidance.classifier.source)
    if extractor is not None:
        found["extractor"] = {
            "name": extractor.name,
            "sha256": extractor.sha256,
            "transform": extractor.transform,
            **extractor.facts,
        }
        found["reference"] = dict(reference)
    return found


def reference_facts(
    path: str | None, statistics: Statistics | None, data: Dataset | None
) -> dict[str, Any]:
    """What a record says of the real images, or of their statistics in the file ``path``."""
    found: dict[str, Any] = {}
    if statistics is not None:
        found |= {"statistics": Path(str(path)).name, "statistics_sha256": statistics.sha256}
        if (source := statistics.provenance) is not None:
            found |= {"statistics_of": source.data, "statistics_digest": source.data_digest}
            found["statistics_count"] = source.count
    if data is not None:
        found |= {"data": data.describe(), "data_digest": data.digest, "data_count": len(data)}
    return found


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to a JSON-lines file in one write; a line that was cut short stays by itself.

    Raises:
        OSError: the file cannot be written; it is then as it was.
    """
    line = (to_json(record) + "\n").encode()
    with open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        try:
            if file.write(line) != len(line):
                raise OSError(f"{path}: the disk is full.")
        except OSError:
            file.truncate(size)
            raise


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record as a JSON file, which appears when it is complete.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        file.write((to_json(record, 2) + "\n").encode())


def to_json(record: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON in which numbers that it has no words for are text such as "nan"."""
    return json.dumps(_plain(record), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
