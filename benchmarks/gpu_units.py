"""The child side of the GPU suite: runs one part unit by unit, and appends the results to a file.

A unit that raises is recorded, and the next one runs. A unit in whose midst the process dies is
recorded by the next process, which goes on behind it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEVICE_LOST = 3
"""Exit code: the device answers with errors, a new process must go on."""

Record = dict[str, Any]
Unit = tuple[str, Callable[[], Any]]


@dataclass
class Child:
    """One part in one process.

    Attributes:
        part: its name.
        records: JSON lines, shared by all processes of this part.
        device: "cuda" or "cpu".
        tiny: toy sizes.
        deadline: ``time.monotonic()`` after which no unit begins.
        work: folder for files that nobody needs later.
        out: folder of the results.
        images: folder of images to train on, or None.
        break_unit: name of a unit that fails on purpose, for tests.
        idx: folder of IDX files to train on, or None.
        only: names of the units to run; empty for all.
    """

    part: str
    records: Path
    device: str
    tiny: bool
    deadline: float
    work: Path
    out: Path
    images: str | None = None
    break_unit: str | None = None
    idx: str | None = None
    only: tuple[str, ...] = ()
    _unit: str = ""
    _earlier: list[Record] = field(default_factory=list)

    def write(self, record: Record) -> None:
        """Append a line; it is on its way to the disk when this returns."""
        with self.records.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def row(self, **columns: Any) -> None:
        """A result."""
        self.write({"row": {"part": self.part, "unit": self._unit, **columns}})

    def wants(self, unit: str) -> bool:
        """Whether this unit is to be run."""
        return not self.only or unit in self.only

    def seconds_left(self) -> float:
        """Until the part's limit."""
        return self.deadline - time.monotonic()

    def trying(self, *what: str) -> None:
        """Note what may kill this process."""
        self.write({"trying": list(what)})

    def poison(self) -> set[tuple[str, ...]]:
        """What was tried last by processes that died."""
        found: set[tuple[str, ...]] = set()
        last: tuple[str, ...] | None = None
        for record in self._earlier:
            if "trying" in record:
                last = tuple(record["trying"])
            elif record.get("status") in ("ok", "failed"):
                last = None
            elif "process" in record and last:
                found.add(last)
                last = None
        return found

    def run(self, units: Iterator[Unit] | list[Unit]) -> int:
        """Run what earlier processes of this part have not run; the process's exit code."""
        self._earlier = read(self.records)
        self.write({"process": os.getpid()})
        self._earlier.append({"process": os.getpid()})
        done = {r["unit"] for r in self._earlier if r.get("status") in ("ok", "failed", "crashed")}
        begun = [r["unit"] for r in self._earlier if r.get("status") == "begun"]
        retried = {r["unit"] for r in self._earlier if r.get("status") == "retried"}
        poison = self.poison()
        lost = {r["unit"]: r["lost"] for r in self._earlier if "lost" in r}
        for what in sorted(poison):
            name = f"crash: {' '.join(what)}"
            if name not in done:
                error = list(lost.values())[-1] if lost else ["the process died"]
                self.write({"unit": name, "status": "crashed", "error": error})
                self._say(f"left out from here on: {' '.join(what)}")
        for name, function in units:
            if name in done or not self.wants(name):
                continue
            if name in begun:
                # What is known to have killed it is left out now, so it gets one more chance.
                if not poison or name in retried:
                    error = lost.get(name, ["the process died in this unit"])
                    self.write({"unit": name, "status": "crashed", "error": error})
                    continue
                self.write({"unit": name, "status": "retried"})
            if self.seconds_left() <= 0:
                self.write({"unit": name, "status": "not reached"})
                continue
            if self._one(name, function) == DEVICE_LOST:
                return DEVICE_LOST
        return 0

    def _one(self, name: str, function: Callable[[], Any]) -> int:
        self._unit = name
        self.write({"unit": name, "status": "begun"})
        self._say(f"{name} …")
        began = time.monotonic()
        record: Record = {"unit": name, "status": "ok"}
        code = 0
        try:
            if name == self.break_unit:
                raise RuntimeError("broken on purpose")
            function()
        except Exception as error:
            record |= {"status": "failed", "error": last_lines(error)}
            code = DEVICE_LOST if self._lost(error) else 0
            print("".join(traceback.format_exception(error)), flush=True)
        record["seconds"] = round(time.monotonic() - began, 2)
        if code == DEVICE_LOST:
            self.write({"unit": name, "lost": record["error"]})
        else:
            self.write(record)
            self._say(f"{name}: {record['status']} in {record['seconds']} s")
        return code

    def _lost(self, error: Exception) -> bool:
        if self.device != "cuda" or "torch" not in sys.modules:
            return False
        import torch

        if not torch.cuda.is_initialized():
            return False
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except Exception:
            return True
        return False

    def _say(self, text: str) -> None:
        print(f"[{self.part}] {text}", flush=True)


def last_lines(error: BaseException, count: int = 6) -> list[str]:
    """The end of an exception's traceback."""
    text = "".join(traceback.format_exception(error)).rstrip().split("\n")
    return [line[:300] for line in text[-count:]]


def read(path: Path) -> list[Record]:
    """All whole lines."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:  # the last line of a process that was killed while writing it
            continue
    return records


def die_with_parent() -> None:
    """On Linux: end this process when the one that started it ends, however it ends."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
