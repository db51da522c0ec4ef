"""One process per device: rank, device, data-parallel wrapping, and small messages between ranks.

torchrun starts the processes and sets RANK, WORLD_SIZE and LOCAL_RANK; without it there is one.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

TIMEOUT = timedelta(minutes=20)


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    """Gloo group for host-side messages, which never wait for the device."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over ranks during backward."""
        if self.world == 1:
            return module
        # 1x1 convolutions in channels_last order differ from their bucket view in strides of
        # size-1 dimensions only.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # Buffers are constants. torch 2.13 renamed the option.
        names = inspect.signature(DistributedDataParallel).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        options: dict[str, Any] = {option: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(module, **options)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank; every rank must ask at the same step."""
        if self.world == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.control)
        return bool(votes.item())

    def gather(self, values: torch.Tensor) -> list[torch.Tensor] | None:
        """Host tensors of equal shape from all ranks, in rank order, on rank 0 (else None)."""
        if self.world == 1:
            return [values]
        parts = [torch.empty_like(values) for _ in range(self.world)] if self.rank == 0 else None
        dist.gather(values, parts, dst=0, group=self.control)
        return parts

    def share(self, value: T) -> T:
        """Rank 0's plain value, on every rank."""
        if self.world == 1:
            return value
        box: list[T] = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]


def is_first_rank() -> bool:
    """Whether this process speaks for the run; known before anything is initialised."""
    return int(os.environ.get("RANK", "0")) == 0


def choose_device(name: str | None, local_rank: int = 0) -> torch.device:
    """The device called ``name``, by default this rank's GPU or else the CPU.

    Raises:
        ValueError: no such device on this machine.
    """
    has_gpu = torch.cuda.is_available()
    if name is None:
        name = "cuda" if has_gpu else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'device is {name!r}: use "cpu", "cuda" or "cuda:0".') from error
    if device.type == "cuda":
        if not has_gpu:
            raise ValueError(
                f"device is {name!r}, but torch {torch.__version__} finds no usable GPU; "
                "`ddgan-fast doctor` says why. Use --device cpu to go on without."
            )
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise ValueError(
                f"device cuda:{index} is asked for, but there are {torch.cuda.device_count()} "
                "GPUs: start at most one process per GPU."
            )
        device = torch.device("cuda", index)
    return device


@contextlib.contextmanager
def start(device_name: str | None) -> Iterator[Ranks]:
    """Join the other ranks for the length of a ``with`` block.

    Raises:
        ValueError: no such device on this machine.
        RuntimeError: another rank has ended, so that a message to it failed.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device(device_name, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield Ranks(0, 1, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        yield Ranks(dist.get_rank(), world, device, control)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            raise RuntimeError(
                "another rank ended in the middle of a step: its own message says why."
            ) from error
        raise
    finally:
        dist.destroy_process_group()
