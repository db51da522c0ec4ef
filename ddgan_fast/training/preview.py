"""Sample grids during training: fixed noise, averaged weights, drawn by all ranks together."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..files import atomic_open
from ..guidance import Guidance, bind, grid_columns
from ..images import grid, readable_scale, save_png, to_uint8
from ..kernels import philox
from ..models.labels import told
from ..samplers import draw, for_preview

if TYPE_CHECKING:
    from .trainer import Run

# The fixed noise of all grids of a run: a step that training never reaches.
_NOISE_STEP = -1


class Preview:
    """Draws a grid every so often.

    Each rank draws its share of the images, so that none waits for another; a thread of rank 0
    encodes and writes the file.

    Args:
        run: the run whose generator is shown.
        stack: waits at its end for the last file.
    """

    def __init__(self, run: Run, stack: contextlib.ExitStack) -> None:
        self.run = run
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future[Path] | None = None
        self._pending_step = 0
        if run.ranks.rank == 0 and run.cfg.run.sample_every:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="ddgan-preview")
            stack.callback(self._writer.shutdown)
            stack.callback(self._report)

    def draw(self) -> None:
        """Sample with the averaged weights and hand the picture to the writer."""
        run = self.run
        if run.cfg.loss.kind == "classifier":
            return
        self._report()
        samples = self._samples()
        parts = run.ranks.gather(samples)
        if parts is None or self._writer is None:
            return
        # Back from the dealt order: position p was drawn by rank p mod W.
        images = torch.stack(parts, 1).flatten(0, 1)[: run.cfg.run.sample_count].numpy()
        folder = run.run_dir / "samples"
        self._pending_step = run.step
        columns = grid_columns(len(images), run.cfg.model.num_classes)
        stem = folder / f"step-{run.step:09d}"
        self._pending = self._writer.submit(_write, stem, images, columns)

    @torch.no_grad()
    def _samples(self) -> torch.Tensor:
        """This rank's share, on the host: uint8 [n, H, W, C], or float32 points [n, D]."""
        run, model = self.run, self.run.cfg.model
        device, world = run.ranks.device, run.ranks.world
        share = -(-run.cfg.run.sample_count // world)
        index = torch.arange(share, device=device) * world + run.ranks.rank
        seed = philox.seed_tensor(run.cfg.run.seed, _NOISE_STEP, 0, device)
        weights = run.engine.ema.weights()
        sampler = for_preview(run.cfg)
        # One class after the other, so that a class fills a column.
        classes = Guidance(tuple(range(model.num_classes))) if model.num_classes else None
        condition = bind(run.cfg, classes, device)

        def generator(
            x: torch.Tensor, t: torch.Tensor, z: torch.Tensor, label: torch.Tensor | None = None
        ) -> torch.Tensor:
            known = told(label)
            return torch.func.functional_call(run.engine.generator, weights, (x, t, z), known)

        run.engine.generator.eval()
        try:
            batches = index.split(max(1, len(run.engine.index) // run.engine.micros))
            drawn = [
                draw(
                    generator,
                    run.engine.diffusion,
                    sampler,
                    model,
                    seed,
                    part,
                    run.engine.dtype,
                    condition,
                )
                for part in batches
            ]
        finally:
            run.engine.generator.train()
        samples = torch.cat(drawn)
        if model.kind == "mlp":
            return samples.float().cpu()
        return torch.from_numpy(to_uint8(samples.nan_to_num()))

    def _report(self) -> None:
        """Say what became of the last grid, once its file is written."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            path = pending.result()
        except OSError as error:
            what = f"the sample grid of step {self._pending_step:,}"
            self.run.say(f"Could not write {what} ({error.strerror or error}); going on.")
            return
        if self.run.monitor is not None and path.suffix == ".png":
            self.run.monitor.image("samples", self._pending_step, path)


def _write(stem: Path, samples: np.ndarray, columns: int | None) -> Path:
    stem.parent.mkdir(parents=True, exist_ok=True)
    if samples.ndim == 2:
        path = stem.with_suffix(".npz")
        with atomic_open(path) as file:
            np.savez(file, samples)
        return path
    path = stem.with_suffix(".png")
    scale = readable_scale(samples.shape[1])
    save_png(path, grid(samples, columns, scale=scale, smooth=True))
    return path
