"""Micro-batches that fit: the largest is found by trying on GPUs, by an estimate on CPUs."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.parallel import DistributedDataParallel

from ..config import Config
from ..data.torch_loader import Batch
from .footprint import estimate_memory

if TYPE_CHECKING:
    from .engine import Engine

# Share of a GPU's memory that a trial must leave: samples, graphs and fragmentation need some.
_ROOM = 0.05
# Share of the host's free memory that a run may take.
_HOST_SHARE = 0.9
# What torch, CUDA and cuBLAS say where they raise a plain RuntimeError.
_FULL = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
_NOTHING_FITS = (
    "run.micro_batch is auto, but not even one image at a time fits into the memory of the device: "
    "let blocks run again instead of being kept (run.recompute), or set run.precision to bf16."
)


def largest_micro_batch(attempt: Callable[[int], None], local_batch: int) -> int:
    """The largest divisor of the local batch with which an attempt does not run out of memory.

    Multiples of 4 come first: with them the sets of the minibatch statistic are those of the whole
    batch. Only if none fits, smaller divisors are tried.

    Args:
        attempt: takes a size and does the work; other errors than want of memory pass through.
        local_batch: images of this rank in a step.

    Raises:
        RuntimeError: not even one image fits.
    """
    divisors = [size for size in range(local_batch, 0, -1) if local_batch % size == 0]
    keeping = [size for size in divisors if keeps_sets(size, local_batch)]
    for size in keeping + [size for size in divisors if size < keeping[-1]]:
        if _fits(attempt, size):
            return size
        # Only now is the error gone, and with it the frames that held the tensors.
        _free_caches()
    raise RuntimeError(_NOTHING_FITS)


def keeps_sets(size: int, local_batch: int) -> bool:
    """Whether the sets of the minibatch statistic stay those of the whole batch."""
    return size == local_batch or size % 4 == 0


def _fits(attempt: Callable[[int], None], size: int) -> bool:
    try:
        attempt(size)
    except MemoryError:
        return False
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in _FULL):
            return False
        raise
    return True


def _free_caches() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def estimated_micro_batch(
    cfg: Config, local_batch: int, precision: str, available: int | None
) -> int:
    """The largest micro-batch whose estimated step fits into ``available`` bytes (None: any).

    Raises:
        RuntimeError: not even one image fits.
    """

    def attempt(size: int) -> None:
        if available is not None:
            memory = estimate_memory(cfg, size, precision, local_batch // size)
            if memory.total > available:
                raise MemoryError

    return largest_micro_batch(attempt, local_batch)


def fit_micro_batch(engine: Engine) -> str:
    """Give an engine the largest micro-batch that fits, the same on all ranks.

    Every rank makes this call, before the first step.

    Returns:
        What was chosen, for the user.

    Raises:
        RuntimeError: on some rank not even one image fits.
    """
    ranks, local = engine.ranks, len(engine.index)
    try:
        if ranks.device.type == "cuda":
            size = largest_micro_batch(_trial(engine), local)
        else:
            free = available_bytes(ranks.device)
            size = estimated_micro_batch(engine.cfg, local, engine.precision.name, free)
    except RuntimeError as error:
        if str(error) != _NOTHING_FITS:
            raise
        size = 0
    sizes = ranks.gather(torch.tensor([size]))
    size = ranks.share(min(int(s) for s in sizes) if sizes else 0)
    if not size:
        raise RuntimeError(_NOTHING_FITS)
    engine.micros = local // size
    how = "tried" if ranks.device.type == "cuda" else "by an estimate"
    note = f"Micro-batches: {size} of {local} images at once, the largest that fits ({how})."
    if not keeps_sets(size, local):
        note += (
            " Fewer than 4 change the sets of the discriminator's minibatch statistic, so the run "
            "is not that of the whole batch."
        )
    return note


def _trial(engine: Engine) -> Callable[[int], None]:
    """Takes steps of every kind that leave no trace."""
    cfg, device, local = engine.cfg, engine.ranks.device, len(engine.index)
    if cfg.model.kind == "mlp":
        batch = Batch(torch.zeros(local, cfg.model.num_channels, device=device), None, 0)
    else:
        shape = (local, cfg.model.image_size, cfg.model.image_size, cfg.model.num_channels)
        flip = torch.zeros(local, dtype=torch.bool, device=device)
        batch = Batch(torch.zeros(shape, dtype=torch.uint8, device=device), flip, 0)
    batch.label = torch.zeros_like(engine.index)

    def attempt(size: int) -> None:
        engine.micros = local // size
        try:
            with engine.precision.settings(), _unreduced(engine), engine.rehearsal():
                # What a later step finds there lies there from the beginning.
                engine.ema.update(engine.step)
                for penalize in engine.kinds:
                    engine.update_both(*engine.network_input(batch), penalize)
            if device.type == "cuda":
                free, total = torch.cuda.mem_get_info(device)
                if free < _ROOM * total:
                    raise MemoryError
        finally:
            for network in engine.modules.values():
                network.zero_grad(set_to_none=True)
        _free_caches()

    return attempt


@contextlib.contextmanager
def _unreduced(engine: Engine) -> Iterator[None]:
    """No rank waits for another: one of them may run out of memory on its way."""
    with contextlib.ExitStack() as stack:
        for loss in engine.train_step.losses:
            if isinstance(loss, DistributedDataParallel):
                stack.enter_context(loss.no_sync())
        yield


def available_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Memory that a run may take on a device, or None where nothing tells.

    On the host that is what the system and its control groups leave, shared with the other ranks
    of this node.

    Args:
        device: the device.
        root: where /proc and /sys are.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free - _ROOM * total)
    left = _left_by_groups(root)
    with contextlib.suppress(OSError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                left.append(1024 * int(line.split()[1]))
    if not left:
        return None
    return int(_HOST_SHARE * min(left)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _left_by_groups(root: Path) -> list[int]:
    """What the limits of this process's control groups leave, from its own group upwards."""
    left: list[int] = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                base, limit, used = root / "sys/fs/cgroup", "memory.max", "memory.current"
            elif "memory" in controllers.split(","):
                base, limit = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
                used = "memory.usage_in_bytes"
            else:
                continue
            group = base / path.lstrip("/")
            while group.is_relative_to(base):
                # A group without a limit says "max", one without such files is the root.
                with contextlib.suppress(OSError, ValueError):
                    most, now = (int((group / name).read_text()) for name in (limit, used))
                    left.append(most - now + _file_cache(group))
                group = group.parent
    return left


def _file_cache(group: Path) -> int:
    """Bytes of a group that the system frees when they are needed."""
    for line in (group / "memory.stat").read_text().splitlines():
        name, value = line.split()
        if name == "inactive_file":
            return int(value)
    return 0
