"""Training data: sources, the plan that orders the records, the loaders that deliver them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ddgan_fast.data.dataset import Dataset

if TYPE_CHECKING:
    from ddgan_fast.config import Config

__all__ = ["Dataset", "build_dataset"]


def build_dataset(cfg: Config) -> Dataset:
    """Opens the data set that ``cfg.data`` describes, in the shape that ``cfg.model`` expects.

    Raises:
        ValueError: If the source is unknown, does not fit the model, has a path too many or too
            few, or holds no image or an unreadable one.
        OSError: If there is nothing at the path, or it cannot be read.
        RuntimeError: If a package is missing.
    """
    from ddgan_fast.data import shards, sources
    from ddgan_fast.validation import FILE_SOURCES

    data, model = cfg.data, cfg.model
    if data.cache == "gpu":  # the loader fetches the records straight to the device
        data = replace(data, cache="none")
    from_files = data.source in FILE_SOURCES and data.path is not None
    if from_files and (data.source == "shards" or shards.is_shards(str(data.path))):
        return shards.open_shards(
            str(data.path),
            model.image_size,
            model.num_channels,
            limit=data.limit,
            cache=data.cache,
            workers=data.workers,
        )
    return sources.build(data, model)
