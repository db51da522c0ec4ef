"""The part "loader" of the GPU suite: steps fed by the ring, and decoding on the GPU."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddgan_fast.data import dali_loader
from ddgan_fast.data.dataset import Dataset
from ddgan_fast.data.loading import make_loader
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.prepare import prepare
from ddgan_fast.data.prepare_request import Request
from ddgan_fast.data.shards import open_shards

from . import loader, runner, step
from .gpu_networks import tiny_preset
from .gpu_units import Child, Unit
from .photographs import patches
from .runner import Case, Options, Provider

_STEPS = 12
"""Steps in a row that are timed as one: what was read ahead before them is then a small part."""


def units(child: Child) -> list[Unit]:
    """The units of this part."""
    return [("step", partial(_steps, child)), ("decode", partial(_decode, child))]


def _steps(child: Child) -> None:
    """A training step on a batch that is on the device, and on batches from raw shards."""
    device, batch = torch.device(child.device), 4 if child.tiny else 32
    options = Options(tiny_preset(child, "celebahq256"), batch, device)
    with contextlib.ExitStack() as stack:
        cfg = step._configuration(options)
        stepper = step.Stepper(cfg, device, stack)
        size = cfg.model.image_size
        images = np.concatenate([_images(child, 8 if child.tiny else 256, size)] * 2)
        shards = _shards(child.work / "steps", images, encoded=False)
        plan = Plan(len(shards), 0, batch)
        fed = stack.enter_context(make_loader(shards, plan, device, loader="ring"))

        def steps(batches: Callable[[], object]) -> Callable[[], None]:
            def call() -> None:
                with stepper.engine.precision.settings():
                    for _ in range(2 if child.tiny else _STEPS):
                        stepper.engine.step = 1  # without R1
                        stepper.engine.take_step(batches())  # type: ignore[arg-type]

            return call

        count = 2 if child.tiny else _STEPS
        sources = {"ring": lambda: next(fed), "synthetic": lambda: stepper.batch}
        precision = stepper.engine.precision.name
        providers = [Provider(k, precision, {"steps": steps(v)}) for k, v in sources.items()]
        facts = {"preset": Path(options.preset).stem, "batch": batch, "steps": count}
        case = Case("fed_step", providers, {"steps": 1.0}, batch * count, device, facts)
        waited = fed.wait_seconds
        rows = runner.run(case, 1 if child.tiny else 8, 0 if child.tiny else 2)
        rows[0]["wait_s"] = round(fed.wait_seconds - waited, 4)
        for row in rows:
            print(row, flush=True)
            child.row(**row)


def _decode(child: Child) -> None:
    """JPEG by Pillow, by DALI on the CPU and by DALI on the GPU: cost, and the difference."""
    device = torch.device(child.device)
    size, batch, workers = (32, 4, 1) if child.tiny else (256, 32, 8)
    images = _images(child, 8 if child.tiny else 512, size)
    shards = _shards(child.work / "decode", images, encoded=True, workers=workers)
    plan = Plan(len(shards), 0, batch)
    kinds = {"workers": ("workers", "cpu"), "dali": ("dali", "cpu")}
    kinds["dali_mixed"] = ("dali", "mixed")
    found, first = [], {}
    for name, (kind, where) in kinds.items():
        reason = dali_loader.why_not(shards, device, where) if kind == "dali" else None
        if reason is not None:
            child.row(case="decode", provider=name, status=reason)
            continue
        opened = partial(_batches, shards, plan, device, kind, where)
        found.append(loader.Provider(name, "JPEG shards", workers, opened))
        with opened() as batches:
            first[name] = next(batches).cpu()
    loader.measure(found, 1 if child.tiny else 3, 0.001 if child.tiny else 0.5)
    for row in loader.rows(found, batch, images, "photographs"):
        difference = (first[row["provider"]].int() - first["workers"].int()).abs()
        row |= {"device": child.device, "case": "decode"}
        row |= {"largest_difference": int(difference.max())}
        row |= {"mean_difference": round(float(difference.float().mean()), 4)}
        print(row, flush=True)
        child.row(**row)


@contextlib.contextmanager
def _batches(
    dataset: Dataset, plan: Plan, device: torch.device, kind: str, where: str
) -> Iterator[Iterator[Tensor]]:
    with make_loader(dataset, plan, device, loader=kind, dali_device=where) as batches:
        yield (_arrived(batch.images) for batch in batches)


def _arrived(images: Tensor) -> Tensor:
    if images.is_cuda:
        torch.cuda.current_stream(images.device).synchronize()
    return images


def _images(child: Child, count: int, size: int) -> NDArray[np.uint8]:
    folder = Path(child.images) if child.images else None
    return patches(count, size, folder)[0]


def _shards(work: Path, images: NDArray[np.uint8], encoded: bool, workers: int = 2) -> Dataset:
    files = work / "files"
    files.mkdir(parents=True)
    for i, image in enumerate(images):
        name, options = ("jpg", {"quality": 95}) if encoded else ("bmp", {})
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG" if encoded else "BMP", **options)
        (files / f"{i:06}.{name}").write_bytes(buffer.getvalue())
    prepare(
        Request(
            str(files), str(work / "out"), resolution=images.shape[1], encoded=encoded, workers=1
        )
    )
    return open_shards(work / "out", workers=workers)
