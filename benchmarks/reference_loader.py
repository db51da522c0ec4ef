"""The loader that published training code uses, for comparison: worker processes that turn every
image of an LMDB into a PIL image, mirror it at random, and return it as normalised float32.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ddgan_fast.data.plan import Plan


def write_lmdb(values: Iterable[bytes], nbytes: int, path: Path) -> None:
    """Raw or encoded images under the keys 0, 1, ..., as the published CelebA-HQ has them."""
    import lmdb

    path.mkdir(parents=True)
    with (
        lmdb.open(str(path), map_size=2 * nbytes + (1 << 24), sync=False) as database,
        database.begin(write=True) as transaction,
    ):
        for i, value in enumerate(values):
            transaction.put(str(i).encode(), value)


class LmdbImages(TorchDataset[Tensor]):
    """Images [3, H, W] in [-1, 1]; every process opens the database for itself."""

    def __init__(self, path: Path, size: int, encoded: bool) -> None:
        self._path, self._size, self._encoded = path, size, encoded
        self._database: Any = None

    def __getitem__(self, i: int) -> Tensor:
        if self._database is None:
            import lmdb

            self._database = lmdb.open(
                str(self._path), readonly=True, lock=False, readahead=False, meminit=False
            )
        with self._database.begin(write=False, buffers=True) as transaction:
            value = transaction.get(str(i).encode())
            if self._encoded:
                image = Image.open(io.BytesIO(value)).convert("RGB")
            else:
                pixels = np.frombuffer(value, np.uint8)
                image = Image.fromarray(pixels.reshape(self._size, self._size, 3))
        if torch.rand(1).item() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        planes = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return planes.to(torch.float32).div(255).sub_(0.5).div_(0.5)


def loader(
    path: Path, size: int, plan: Plan, workers: int, encoded: bool = False
) -> Iterator[Tensor]:
    """Batches [B, 3, H, W] in the plan's order, from ``workers`` processes.

    Raises:
        RuntimeError: The package lmdb is missing.
    """
    images = LmdbImages(path, size, encoded)
    return iter(DataLoader(images, batch_sampler=_Order(plan), num_workers=workers))


class _Order:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __iter__(self) -> Iterator[list[int]]:
        step = 0
        while True:
            yield self._plan.batch(step)[0].tolist()
            step += 1
