"""Notices that a rank hangs, that others are gone, or that torchrun is, and ends this process.

A collective operation that waits for a lost rank cannot be interrupted, so the process has to end.
Every rank tells the others through the rendezvous store what it is doing; who waits too long looks
there, says which rank is missing and in which phase, and exits.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

EXIT_STALLED = 75
"""Exit code of a rank that gave up waiting (EX_TEMPFAIL: starting again may help)."""
PATIENCE = 6
"""How many times as long a rank may start or compile as it may take for anything else."""
PATIENT_PHASES = ("starting", "compiling", "warming up")
JOINT_PHASES = ("D step", "G step", "step", "warming up", "statistics")
"""Phases in which a rank may be waiting for the others; in the rest it is busy by itself."""
ORPHAN_GRACE_S = 20.0
"""Time to save and stop after torchrun is gone."""
SILENT_S = 5.0
"""A rank whose entry has not changed for so long is stopped, dead or cut off (or less, with a short
time-out)."""

_MAX_INTERVAL_S = 1.0


class Store(Protocol):
    """The part of torch.distributed's stores that is used here."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


@dataclass
class Entry:
    """What a rank tells about itself, and for how long it has told nothing new."""

    rank: int
    host: str
    phase: str
    step: int
    seconds: float
    """Time in this phase."""
    beat: int = 0
    silent: float = 0.0
    """Time without a sign of life; 0 while that is too short to mean anything."""

    def describe(self) -> str:
        who = f"rank {self.rank} ({self.host})"
        doing = f'in phase "{self.phase}" at step {self.step:,}'
        if self.phase == "ended":
            return f"{who} has ended at step {self.step:,}"
        if self.silent:
            return (
                f"{who} has given no sign of life for {self.silent:.0f} s and was last {doing}: "
                "it is stopped, dead or cut off from the network"
            )
        return f"{who} has been {doing} for {self.seconds:.0f} s"


def missing_rank(own: Entry, others: Mapping[int, Entry | None]) -> str:
    """Name the rank that all the others wait for, as far as their entries tell.

    Args:
        own: this rank's entry.
        others: the other ranks' entries; None where a rank never wrote one.
    """
    absent = [rank for rank, entry in others.items() if entry is None]
    if absent:
        return f"rank {absent[0]} has never been heard of"
    known = [entry for entry in others.values() if entry is not None]
    gone = [e for e in known if e.phase == "ended"] or [e for e in known if e.silent]
    if gone:
        more = f" (and {len(gone) - 1} more ranks)" if len(gone) > 1 else ""
        return gone[0].describe() + more
    if not known:
        return "nothing is known of the other ranks"
    places = {(entry.step, entry.phase) for entry in (own, *known)}
    if len(places) == 1 and own.phase in JOINT_PHASES:
        return (
            f"all ranks are in this phase of step {own.step:,} and wait for one another: the "
            "network between them fails, or a device does"
        )
    behind = min((own, *known), key=lambda e: (e.step, e.phase in JOINT_PHASES, -e.seconds))
    if behind is own:
        return "the other ranks wait for this one"
    return f"furthest behind, {behind.describe()}"


class Watchdog:
    """Follows this rank's phases; under torchrun or among several ranks it ends what hangs.

    Args:
        rank: of this process.
        world: number of ranks.
        timeout_s: longest time in one phase, PATIENCE times as long while starting and compiling.
            Time in which the process was stopped does not count.
        store: where the ranks tell each other; None for one rank.
    """

    def __init__(
        self, rank: int = 0, world: int = 1, timeout_s: float = 600.0, store: Store | None = None
    ) -> None:
        self.rank, self.world, self.timeout_s = rank, world, timeout_s
        self.host = socket.gethostname()
        self._store = store
        self._interval = min(_MAX_INTERVAL_S, timeout_s / 20)
        self._silent_s = min(SILENT_S, timeout_s / 4)
        # One tuple, replaced as a whole, so that a reading thread never sees half of a change.
        self._now = ("starting", 0)
        self._seconds = 0.0
        self._beat = 0
        self._others: dict[int, Entry | None] = {}
        self._heard: dict[int, tuple[int, float]] = {}
        self._trouble = "no answer"
        self._answered = time.monotonic()
        self._failed = False
        self._late = False
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def enter(self, phase: str, step: int | None = None) -> None:
        """This rank now does something else; costs next to nothing."""
        self._now = (phase, self._now[1] if step is None else step)

    def start(self) -> None:
        """Watch from now on, unless there is nothing to watch."""
        jobs = []
        if self._store is not None and self.world > 1:
            self._publish(self._store)
            jobs.append(("ddgan-news", self._exchange_news))
        if jobs or self._parent is not None:
            jobs.append(("ddgan-watchdog", self._watch))
        # Apart, because the network may hold up the one and must not hold up the other.
        for name, job in jobs:
            thread = threading.Thread(target=job, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Stop watching; the others learn that this rank has ended."""
        self.enter("ended")
        self._closing.set()
        for thread in self._threads:
            thread.join(2 * _MAX_INTERVAL_S)
        self._threads.clear()

    def who_is_missing(self) -> str:
        """Ask now which rank is gone, after a collective operation has failed."""
        if self._store is None or not self._threads:
            return "another rank has ended"
        self._failed = True
        deadline = time.monotonic() + self._silent_s + 3 * self._interval
        while time.monotonic() < deadline:
            time.sleep(self._interval)
            others = self._others.values()
            if any(e and (e.phase == "ended" or e.silent) for e in others):
                break
        return self._missing()

    def _missing(self) -> str:
        if self._store_is_silent():
            return (
                "the rendezvous store does not answer, so the process that keeps it (torchrun or "
                f"rank 0) is gone or cut off from the network ({self._trouble})"
            )
        return missing_rank(self._entry(), self._others)

    def _store_is_silent(self) -> bool:
        return time.monotonic() - self._answered > self._silent_s

    def _watch(self) -> None:
        seen = self._now
        last = time.monotonic()
        orphan = 0.0
        while not self._closing.wait(self._interval):
            now = time.monotonic()
            # A process that was stopped wakes up late; that time is not its own.
            passed, last = min(now - last, 2 * self._interval), now
            if self._parent is not None and os.getppid() != self._parent:
                if orphan == 0.0:
                    self._say("torchrun is gone, so this rank saves and stops")
                    os.kill(os.getpid(), signal.SIGTERM)
                orphan += passed
                if orphan > ORPHAN_GRACE_S:
                    self._end(f"not stopped {ORPHAN_GRACE_S:.0f} s after torchrun was gone")
            current = self._now
            if current is not seen:
                seen, self._seconds, self._late = current, 0.0, False
                continue
            self._seconds += passed
            if self.world > 1:
                self._judge(seen)

    def _judge(self, now: tuple[str, int]) -> None:
        phase, step = now
        limit = self.timeout_s * (PATIENCE if phase in PATIENT_PHASES else 1)
        # Ask early enough that a silent rank can be told from a busy one.
        margin = max(limit / 2, limit - 2 * SILENT_S)
        self._late = self._seconds > margin
        if self._seconds <= limit or self._others_compile():
            return
        self._end(
            f'time-out: this rank has been in phase "{phase}" at step {step:,} for '
            f"{self._seconds:.0f} s (run.timeout_s is {self.timeout_s:g}); {self._missing()}. The "
            "same command goes on from the last saved state"
        )

    def _others_compile(self) -> bool:
        """Whether to wait on, because another rank is alive in a phase that may take long."""
        if self._store_is_silent():
            return False
        return any(
            entry is not None
            and entry.phase in PATIENT_PHASES
            and not entry.silent
            and entry.seconds < PATIENCE * self.timeout_s
            for entry in self._others.values()
        )

    def _exchange_news(self) -> None:
        store = self._store
        assert store is not None
        while True:
            closing = self._closing.wait(self._interval)
            try:
                self._publish(store)
                if (self._late or self._failed) and not closing:
                    self._read(store)
                self._answered = time.monotonic()
            except Exception as error:  # torch raises several kinds; none may end training
                self._trouble = " ".join(str(error).split())[:120]
            if closing:
                return

    def _publish(self, store: Store) -> None:
        self._beat += 1
        store.set(f"rank/{self.rank}", json.dumps(asdict(self._entry())))

    def _entry(self) -> Entry:
        phase, step = self._now
        return Entry(self.rank, self.host, phase, step, self._seconds, self._beat)

    def _read(self, store: Store) -> None:
        others: dict[int, Entry | None] = {}
        for rank in range(self.world):
            if rank == self.rank:
                continue
            key = f"rank/{rank}"
            if not store.check([key]):
                others[rank] = None
                continue
            entry = Entry(**json.loads(store.get(key)))
            now = time.monotonic()
            beat, since = self._heard.get(rank, (-1, now))
            if beat != entry.beat:
                since = now
            self._heard[rank] = (entry.beat, since)
            if now - since >= self._silent_s:
                entry.silent = now - since
            others[rank] = entry
        self._others = others

    def _say(self, text: str) -> None:
        where = f" [rank {self.rank}]" if self.rank else ""
        print(f"ddgan-fast:{where} {text}.", file=sys.stderr, flush=True)

    def _end(self, why: str) -> None:
        self._say(why)
        sys.stdout.flush()
        os._exit(EXIT_STALLED)
