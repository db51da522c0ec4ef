"""Making shards in several processes, which end when their parent ends, however it does."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from ddgan_fast.data.prepare_shard import Made, Stopped, Task, Work, make_shard

_POLL_S = 0.25
_worker: tuple[Work, Any, Any]


def make_shards(
    work: Work, tasks: Sequence[Task], workers: int, advance: Callable[[int], None]
) -> Generator[Made]:
    """Makes the shards, and yields each when it is complete.

    Args:
        work: What all have in common; for several workers it is pickled.
        tasks: The shards.
        workers: Processes; with 1 this process does the work.
        advance: Called with the number of records done since its last call.

    Raises:
        OSError: a shard cannot be written.
        RuntimeError: a shard has no usable record, or a process died.
    """
    workers = min(workers, len(tasks))
    if workers > 1:
        yield from _in_processes(work, tasks, workers, advance)
        return
    for task in tasks:
        yield make_shard(work, task, advance)


def _in_processes(
    work: Work, tasks: Sequence[Task], workers: int, advance: Callable[[int], None]
) -> Generator[Made]:
    # Forked processes would inherit locks and open data bases in whatever state they are.
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (work, counter, stop))
    seen = 0
    try:
        with _no_interrupt():
            pending: set[Future[Made]] = {pool.submit(_make, task) for task in tasks}
        while pending:
            done, pending = wait(pending, _POLL_S, FIRST_COMPLETED)
            seen, before = counter.value, seen
            advance(seen - before)
            for future in done:
                yield _result(future)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C, which reaches all those of a terminal.

    They inherit the mask, even while they start. This process sees to it that they stop.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _result(future: Future[Made]) -> Made:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A process that prepared images was killed, perhaps for want of memory: give the same "
            "command again, it goes on, with fewer --workers if need be."
        ) from error
    except (OSError, RuntimeError) as error:
        raise type(error)(str(error)) from error


def _start_worker(work: Work, counter: Any, stop: Any) -> None:
    global _worker
    _worker = work, counter, stop
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(parent: int) -> None:
    multiprocessing.connection.wait([parent])
    os._exit(1)


def _make(task: Task) -> Made:
    work, counter, stop = _worker

    def tick(count: int) -> None:
        with counter.get_lock():
            counter.value += count
        if stop.is_set():
            raise Stopped

    return make_shard(work, task, tick)
