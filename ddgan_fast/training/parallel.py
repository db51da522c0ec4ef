"""One process per device: rank, device, data-parallel wrapping, and small messages between ranks.

torchrun starts the processes and sets RANK, WORLD_SIZE and LOCAL_RANK; without it there is one.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddgan_fast.training.guard import Preemption
from ddgan_fast.training.rendezvous import connect, meet
from ddgan_fast.training.watchdog import PATIENCE, Watchdog

T = TypeVar("T")

_MAY_DIFFER = ("data.path", "data.workers", "data.cache", "run.threads")
_NCCL_VARIABLES = ("NCCL_", "TORCH_NCCL_")


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    """Gloo group for host-side messages, which never wait for the device."""
    reduction: str = "fp32"
    """What gradients are exchanged in: "fp32" (their own type) or "bf16"."""
    watchdog: Watchdog = field(default_factory=Watchdog)
    """Told what this rank is doing."""
    hosts: tuple[str, ...] = ("",)
    """Every rank's machine."""

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
        wrapped = DistributedDataParallel(module, **options)
        if self.reduction == "bf16":
            wrapped.register_comm_hook(None, _mean_in_bf16)
        return wrapped

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

    def agree(self, config: Mapping[str, Any], facts: Mapping[str, str]) -> None:
        """Check that all ranks were started alike; every rank must ask.

        Args:
            config: nested configuration; what may differ from host to host is left out.
            facts: versions, digest of the data and the like by name.

        Raises:
            ValueError: a rank differs; names the rank, its host and the first difference.
        """
        if self.world == 1:
            return
        mine = {
            f"{s}.{k}": repr(v)
            for s, part in config.items()
            if isinstance(part, Mapping)
            for k, v in part.items()
        }
        mine = {key: value for key, value in mine.items() if key not in _MAY_DIFFER} | dict(facts)
        everyone: list[Any] | None = [None] * self.world if self.rank == 0 else None
        dist.gather_object(mine, everyone, dst=0, group=self.control)
        problem = None if everyone is None else _first_difference(everyone, self.hosts)
        if problem := self.share(problem):
            raise ValueError(problem)

    def describe(self) -> str:
        """How the ranks exchange gradients, in a sentence."""
        backend, chosen = str(dist.get_backend()), []
        if backend == "nccl":
            backend = f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"
            names = sorted(name for name in os.environ if name.startswith(_NCCL_VARIABLES))
            chosen = [f"{name}={os.environ[name]}" for name in names]
        return (
            f"Gradients are exchanged by {backend}"
            f"{' in bf16' if self.reduction == 'bf16' else ''}, time-out "
            f"{self.watchdog.timeout_s:g} s{''.join(f', {item}' for item in chosen)}."
        )


class Vote:
    """Whether a flag is up on any rank, answered one call later, so that no rank waits for it."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._cast: tuple[torch.Tensor, Any] | None = None

    def __call__(self, flag: bool) -> bool:
        """This rank's flag; every rank must call at every step.

        Returns:
            Whether the flag was up anywhere at the call before; with one rank, whether it is now.
        """
        if self._ranks.world == 1:
            return flag
        answer = False
        if self._cast is not None:
            votes, work = self._cast
            work.wait()
            answer = bool(votes.item())
        votes = torch.tensor([int(flag)])
        operation = dist.ReduceOp.MAX
        self._cast = votes, dist.all_reduce(votes, operation, self._ranks.control, async_op=True)
        return answer


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


def transport(device: torch.device, name: str | None) -> str:
    """What exchanges gradients: NCCL between GPUs, gloo elsewhere.

    NCCL refuses ranks that share a GPU, as those of a machine do that are all given the same one by
    its number. That is slow, and there to try several ranks on a single GPU.
    """
    if device.type != "cuda":
        return "gloo"
    numbered = name is not None and torch.device(name).index is not None
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return "gloo" if numbered and together > 1 else "nccl"


@contextlib.contextmanager
def start(
    device_name: str | None, timeout_s: float = 600.0, reduction: str = "fp32"
) -> Iterator[Ranks]:
    """Join the other ranks for the length of a ``with`` block.

    Args:
        device_name: as for ``choose_device``; several ranks on the GPU of one number use gloo.
        timeout_s: how long a rank waits for the others; after it the process ends with
            ``watchdog.EXIT_STALLED``.
        reduction: "fp32" or "bf16".

    Raises:
        ValueError: no such device on this machine.
        RuntimeError: another rank has ended, so that a message to it failed, or never came.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device(device_name, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        watchdog = Watchdog()
        watchdog.start()
        try:
            yield Ranks(0, 1, device, watchdog=watchdog)
        finally:
            watchdog.stop()
        return
    rank = int(os.environ["RANK"])
    store, news = _meet(rank, world, timeout_s)
    watchdog = Watchdog(rank, world, timeout_s, news)
    watchdog.start()
    # The watchdog speaks first, and knows whom to name; this limit is the net below it.
    patience = timedelta(seconds=PATIENCE * timeout_s + 60)
    try:
        dist.init_process_group(
            transport(device, device_name),
            store=store,
            rank=rank,
            world_size=world,
            timeout=patience,
        )
        control = dist.new_group(backend="gloo", timeout=patience)
        hosts = [watchdog.host] * world
        dist.all_gather_object(hosts, watchdog.host, group=control)
        yield Ranks(rank, world, device, control, reduction, watchdog, tuple(hosts))
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            # torchrun asks this rank to stop as soon as it misses another: not before it has said
            # which one.
            with Preemption():
                missing = watchdog.who_is_missing()
            raise RuntimeError(
                f"a message to the other ranks failed: {missing}; the same command goes on from "
                "the last saved state."
            ) from error
        raise
    finally:
        watchdog.stop()
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(rank: int, world: int, timeout_s: float) -> tuple[dist.Store, dist.Store]:
    """Two connections to what only the ranks of this attempt share: for torch, and for news."""
    try:
        store = connect(timeout_s, keep=rank == 0)
        name = meet(store, rank, world, timeout_s)
        # Apart from the first, which may be busy waiting.
        news = connect(timeout_s)
    except dist.DistError as error:
        raise RuntimeError(
            f"the rendezvous store has gone while the ranks met: {' '.join(str(error).split())}"
        ) from error
    return dist.PrefixStore(name, store), dist.PrefixStore(f"{name}/watchdog", news)


def _mean_in_bf16(_, bucket):
    """DDP's exchange of a bucket of gradients; torch's own hook for this refuses gloo."""
    # Without annotations: DDP compares them with types, and here they would be text.
    gradients = bucket.buffer()
    rounded = gradients.to(torch.bfloat16).div_(dist.get_world_size())
    work: Any = dist.all_reduce(rounded, async_op=True)

    def widen(reduced: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        return gradients.copy_(reduced.value()[0])

    return work.get_future().then(widen)


def _first_difference(everyone: list[dict[str, str]], hosts: tuple[str, ...]) -> str | None:
    first = everyone[0]
    for rank, facts in enumerate(everyone):
        for name in first | facts:
            if first.get(name) != facts.get(name):
                return (
                    f"rank {rank} ({hosts[rank]}) has {name} = {facts.get(name)}, but rank 0 has "
                    f"{first.get(name)}: start all ranks with the same command, version and data."
                )
    return None
