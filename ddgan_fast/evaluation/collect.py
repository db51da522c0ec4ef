"""Features of many images, real or generated: computed by all ranks, brought together on one."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddgan_fast.data.dataset import Dataset
from ddgan_fast.evaluation.features import Extractor
from ddgan_fast.evaluation.frechet import Moments
from ddgan_fast.training.parallel import Ranks

_READ_AT_ONCE = 64

Batches = Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]
"""Numbers [b] of images in their set, ascending, and the images [b, H, W, C]."""


@dataclass
class Collected:
    """What is known of a set of images.

    Attributes:
        moments: of the features of each part of the set; empty when not asked for.
        features: float32 [n, D] of the images kept, in order; None when not asked for.
        logits: float32 [n, K] likewise.
    """

    moments: list[Moments]
    features: torch.Tensor | None
    logits: torch.Tensor | None


class Collector:
    """Takes in this rank's images, and hands what they add up to to rank 0.

    Args:
        extractor: what makes features of images.
        splits: numbers of images at which a further part of the set begins, for its own moments.
        moments: whether to accumulate them.
        keep: bool [n], the images whose features are kept; None for none.
        logits: whether to keep the logits of all images.
    """

    def __init__(
        self,
        extractor: Extractor,
        *,
        splits: tuple[int, ...] = (),
        moments: bool = True,
        keep: NDArray[np.bool_] | None = None,
        logits: bool = False,
    ) -> None:
        self._extractor, self._splits = extractor, np.array(splits, np.int64)
        parts = len(splits) + 1 if moments else 0
        self._moments = [Moments(extractor.dim, extractor.device) for _ in range(parts)]
        self._keep, self._keeps_logits = keep, logits
        self._features: list[torch.Tensor] = []
        self._logits: list[torch.Tensor] = []
        self._numbers: list[torch.Tensor] = []
        self._all_numbers: list[torch.Tensor] = []

    def add(self, numbers: NDArray[np.int64], images: NDArray[np.uint8]) -> None:
        """Take in images [b, H, W, C] with these numbers in their set."""
        features, logits = self._extractor(torch.from_numpy(np.ascontiguousarray(images)))
        part = np.searchsorted(self._splits, numbers, side="right")
        for i, moments in enumerate(self._moments):
            moments.update(features[torch.from_numpy(part == i)])
        if self._keep is not None:
            kept = torch.from_numpy(self._keep[numbers])
            self._features.append(features[kept].float().cpu())
            self._numbers.append(torch.from_numpy(numbers)[kept])
        if self._keeps_logits:
            self._logits.append(logits.float().cpu())
            self._all_numbers.append(torch.from_numpy(numbers))

    def gather(self, ranks: Ranks) -> Collected | None:
        """What all ranks took in, on rank 0 (else None); every rank must ask."""
        merged = []
        for own in self._moments:
            parts = ranks.gather(own.pack())
            total = Moments(self._extractor.dim)
            for part in parts or ():
                total.merge(Moments.unpack(part, self._extractor.dim))
            merged.append(total)
        features = logits = None
        if self._keep is not None:
            features = gather_rows(ranks, self._numbers, self._features)
        if self._keeps_logits:
            logits = gather_rows(ranks, self._all_numbers, self._logits)
        return Collected(merged, features, logits) if ranks.rank == 0 else None


def gather_rows(
    ranks: Ranks, numbers: list[torch.Tensor], rows: list[torch.Tensor]
) -> torch.Tensor | None:
    """Rows of all ranks in the order of their numbers, on rank 0 (else None)."""
    own_numbers = torch.cat(numbers) if numbers else torch.empty(0, dtype=torch.int64)
    lengths = torch.tensor([len(own_numbers), rows[0].shape[1] if rows else 0])
    everyone = ranks.gather(lengths)
    most = ranks.share(None if everyone is None else torch.stack(everyone).amax(0).tolist())
    assert most is not None
    # Messages between ranks have one shape; -1 marks rows that are only there for that.
    padded = torch.full((most[0],), -1, dtype=torch.int64)
    padded[: len(own_numbers)] = own_numbers
    values = torch.zeros(most[0], most[1])
    if rows:
        values[: len(own_numbers)] = torch.cat(rows)
    all_numbers, all_values = ranks.gather(padded), ranks.gather(values)
    if all_numbers is None or all_values is None:
        return None
    order = torch.cat(all_numbers).argsort()
    return torch.cat(all_values)[order[int((torch.cat(all_numbers) < 0).sum()) :]]


def real_batches(dataset: Dataset, numbers: NDArray[np.int64]) -> Batches:
    """Records with these numbers, unflipped, read by threads ahead of their use."""
    parts = [numbers[i : i + _READ_AT_ONCE] for i in range(0, len(numbers), _READ_AT_ONCE)]
    waiting: deque[tuple[NDArray[np.int64], Future[NDArray[np.uint8]]]] = deque()
    pool = ThreadPoolExecutor(max(1, dataset.workers), "ddgan-evaluate")
    try:
        for part in parts:
            waiting.append((part, pool.submit(dataset.fetch, part)))
            if len(waiting) > 2 * max(1, dataset.workers):
                first, images = waiting.popleft()
                yield first, images.result()
        for first, images in waiting:
            yield first, images.result()
    finally:
        pool.shutdown(cancel_futures=True)


def evenly(n: int, total: int) -> NDArray[np.bool_]:
    """Marks n of so many records at even distances, or all if they are fewer; bool [total]."""
    chosen = np.zeros(total, np.bool_)
    chosen[np.arange(min(n, total)) * total // max(1, min(n, total))] = True
    return chosen


def through_jpeg(images: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Images [b, H, W, C] after Pillow's JPEG encoder and decoder, colours at half resolution."""
    results = []
    for image in images[..., :3]:
        file = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            file, "JPEG", quality=quality
        )
        with Image.open(file) as decoded:
            results.append(np.asarray(decoded).reshape(image.shape))
    return np.stack(results)


def counted(batches: Batches, total: int, watch: Callable[[int, int], None]) -> Batches:
    """The batches; ``watch`` is told how many images have passed, out of ``total``."""
    done = 0
    for numbers, images in batches:
        yield numbers, images
        done += len(numbers)
        watch(done, total)
