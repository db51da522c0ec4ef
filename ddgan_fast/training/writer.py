"""Writes checkpoints beside training: a step waits for a copy of the tensors, not for the disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ddgan_fast.training.checkpoint import CheckpointError, save_ema, save_state

_WORTH_SAYING_S = 1.0


class CheckpointWriter:
    """One thread that serialises, hashes and renames what ``save`` has copied.

    At most one checkpoint is being written: a later one waits, none is left out.

    Args:
        run_dir: the run's directory.
        keep: how many of the newest states stay (``save_state``).
        newest: step of the newest state on disk.
        device: where training runs.

    Attributes:
        newest: step of the newest state that is on disk.
        reserved: whether there is memory for the copies.
    """

    def __init__(
        self, run_dir: Path, keep: int, newest: int, device: torch.device | str = "cpu"
    ) -> None:
        self.newest = newest
        self.reserved = False
        self._run_dir, self._keep = run_dir, keep
        self._stage = Stage(torch.device(device))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ddgan-checkpoint")
        self._pending: Future[int] | None = None
        self._news: list[str] = []

    def reserve(self, content: Mapping[str, Any]) -> None:
        """Get the memory for copies of such a content, which takes longer than copying."""
        self._stage.copy(content)
        self._stage.wait()
        self.reserved = True

    def save(self, step: int, content: Mapping[str, Any]) -> list[str]:
        """Copy the state of a step and have it written: the EMA snapshot, then the state.

        Args:
            step: number of finished steps.
            content: what ``run_state.payload`` returns.

        Returns:
            Sentences about the checkpoint before this one, as ``news``.
        """
        began = time.perf_counter()
        self._join()
        waited = time.perf_counter() - began
        if waited > _WORTH_SAYING_S:
            self._news.append(
                f"Training waited {waited:.1f} s until the checkpoint before that of step "
                f"{step:,} was written: raise run.checkpoint_every, or use a faster disk."
            )
        copied = self._stage.copy(content)
        news, self._news = self._news, []
        self._pending = self._pool.submit(self._write, step, copied)
        return news

    def news(self) -> list[str]:
        """Sentences about what was written since the last call; empty when all went well."""
        if self._pending is not None and self._pending.done():
            self._join()
        news, self._news = self._news, []
        return news

    def settle(self) -> list[str]:
        """Wait for the checkpoint being written; sentences as ``news``."""
        self._join()
        return self.news()

    def finish(self) -> str | None:
        """Wait for the checkpoint being written; returns why it was not, or None."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        try:
            self.newest = pending.result()
        except CheckpointError as error:
            return f"{error} (the newest state is that of step {self.newest:,})"
        return None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()

    def _write(self, step: int, content: dict[str, Any]) -> int:
        self._stage.wait()
        save_ema(self._run_dir, step, content["ema"], content["config"])
        save_state(self._run_dir, step, content, self._keep)
        return step

    def _join(self) -> None:
        if failed := self.finish():
            self._news.append(
                f"Could not save: {failed}. Training goes on; the next checkpoint tries again."
            )


class Stage:
    """Host copies of nested tensors, in memory that is kept from one copy to the next.

    From a GPU the copy runs beside training into pinned memory. Where the GPU has room, its source
    is a copy on the GPU; else the stream that trains waits until the tensors have left the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._buffers: dict[tuple[str, ...], Tensor] = {}
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def copy(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The content with every tensor replaced by its host copy, valid until the next call.

        On a GPU the copies are complete after ``wait``.
        """
        pairs: list[tuple[Tensor, Tensor]] = []
        copied: dict[str, Any] = self._mirror(content, (), pairs)
        if self._stream is None:
            for buffer, tensor in pairs:
                buffer.copy_(tensor)
            return copied
        training = torch.cuda.current_stream(self._device)
        sources = [tensor for _, tensor in pairs]
        apart = self._has_room(sources)
        if apart:
            sources = [tensor.clone() for tensor in sources]
        self._stream.wait_stream(training)
        with torch.cuda.stream(self._stream):
            for (buffer, _), source in zip(pairs, sources, strict=True):
                buffer.copy_(source, non_blocking=True)
                if source.is_cuda:
                    source.record_stream(self._stream)
            self._copied = self._stream.record_event()
        if not apart:
            training.wait_event(self._copied)
        return copied

    def wait(self) -> None:
        """Wait until the last copy is complete."""
        if self._copied is not None:
            self._copied.synchronize()

    def _has_room(self, tensors: list[Tensor]) -> bool:
        needed = sum(tensor.nbytes for tensor in tensors if tensor.is_cuda)
        free = torch.cuda.mem_get_info(self._device)[0]
        # What the allocator holds but does not use is in pieces of unknown size: not counted.
        return free > 2 * needed

    def _mirror(self, value: Any, key: tuple[str, ...], pairs: list[tuple[Tensor, Tensor]]) -> Any:
        if isinstance(value, Tensor):
            buffer = self._buffers.get(key)
            if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
                buffer = torch.empty_like(
                    value, device="cpu", requires_grad=False, pin_memory=self._cuda
                )
                self._buffers[key] = buffer
            pairs.append((buffer, value.detach()))
            return buffer
        if isinstance(value, Mapping):
            return {k: self._mirror(v, (*key, str(k)), pairs) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._mirror(v, (*key, str(i)), pairs) for i, v in enumerate(value))
        return value
