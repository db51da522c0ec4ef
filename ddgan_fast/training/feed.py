"""What feeds a training: which records each step takes, their loader and their classes."""

from __future__ import annotations

import contextlib

import torch

from ..config import Config
from ..data import Dataset, dali_loader
from ..data.labels import Labels, check_labels
from ..data.loading import make_loader
from ..data.plan import Plan
from ..data.torch_loader import Batch, Loader
from .parallel import Ranks

_PATIENCE_S = 600.0  # with slow storage, also where ranks wait less for one another


class Feed:
    """One rank's batches, from the step that it was opened at.

    Args:
        cfg: the run's configuration.
        dataset: where the records come from.
        ranks: this process among the others.

    Raises:
        ValueError: the data cannot teach the networks their classes.
        RuntimeError: DALI is asked for and cannot be used.

    Attributes:
        plan: which records a step takes.
        labels: their classes; None where the networks know none.
        loader: the records; there once the feed is open.
    """

    loader: Loader

    def __init__(self, cfg: Config, dataset: Dataset, ranks: Ranks) -> None:
        check_labels(dataset, cfg.model.num_classes)
        if cfg.data.loader == "dali":
            dali_loader.refuse(dataset, ranks.device, cfg.data.dali_device)
        self._options, self._dataset, self._ranks = cfg.data, dataset, ranks
        self._patience = max(_PATIENCE_S, cfg.run.timeout_s)
        flip = cfg.data.flip and dataset.flips
        self.plan = Plan(len(dataset), cfg.run.seed, cfg.run.batch_size, cfg.data.mode, flip)
        self.labels: Labels | None = None
        if cfg.model.num_classes:
            assert dataset.labels is not None
            here = (ranks.device, ranks.rank, ranks.world)
            self.labels = Labels(dataset.labels, self.plan, *here)
        self._open = contextlib.ExitStack()

    def positions(self) -> torch.Tensor:
        """This rank's positions in the global batch, int64 [N] on the device."""
        index = self.plan.positions(0, self._ranks.rank, self._ranks.world)
        return torch.from_numpy(index).to(self._ranks.device)

    def open(self, step: int = 0) -> None:
        """Have the loader begin with this step's batch; one that is open is closed before."""
        self.close()
        ranks, options = self._ranks, self._options
        self.loader = self._open.enter_context(
            make_loader(
                self._dataset,
                self.plan,
                ranks.device,
                ranks.rank,
                ranks.world,
                step,
                loader=options.loader,
                cache=options.cache,
                dali_device=options.dali_device,
                timeout=self._patience,
            )
        )

    def next_batch(self) -> Batch:
        """The loader's next batch, with its classes where the networks know any."""
        batch = next(self.loader)
        if self.labels is not None:
            batch.label = self.labels.at(batch.step)
        return batch

    def close(self) -> None:
        """Close the loader."""
        self._open.close()
