"""Writes a loaded generator as a snapshot of ours or in the published format."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import torch

from . import convert
from .config import to_dict
from .files import atomic_open
from .sampling import LoadedGenerator
from .training.checkpoint import save_ema

_SUFFIXES = (".safetensors", ".pth")


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a name that ``save_generator`` could not write; to be asked before loading.

    Raises:
        ValueError: the suffix is neither of the two.
    """
    suffix = Path(path).suffix
    if suffix not in _SUFFIXES:
        raise ValueError(
            f"the suffix {suffix!r} of {os.fspath(path)} is unknown: use .safetensors for a "
            "snapshot of ddgan_fast, or .pth for the published format (netG_*.pth)."
        )


def save_generator(model: LoadedGenerator, path: str | os.PathLike[str]) -> None:
    """Write the generator to one file, which appears only when it is complete.

    ``.safetensors`` holds our names, the configuration and the step (0 when it is not known);
    ``.pth`` is the published ``netG_*.pth``: published names with ``module.``, in their order.

    Raises:
        ValueError: unknown suffix, or a model without a published format.
        CheckpointError: the disk is full or cannot be written to.
    """
    check_target(path)
    path = Path(path)
    tensors = model.network.state_dict()
    if path.suffix == ".safetensors":
        save_ema(path, model.step or 0, tensors, to_dict(model.cfg))
        return
    published = convert.generator_to_published(tensors, model.cfg)
    plain = OrderedDict(
        (f"module.{name}", tensor.detach().cpu().clone(memory_format=torch.contiguous_format))
        for name, tensor in published.items()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        torch.save(plain, file)
