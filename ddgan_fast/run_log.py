"""What a run directory says, read while the run may still be writing it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOG, METRICS, CONFIG = "log.jsonl", "metrics.jsonl", "config.yaml"

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """The JSON objects of a file with one per line that name a step; others are left out.

    A file that is not there has none.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return list(_records(data.split(b"\n")))


def value_of(record: Mapping[str, Any], name: str) -> float | None:
    """A number of a record; the log has words for those that are not finite."""
    try:
        return float(record[name])
    except (KeyError, TypeError, ValueError):
        return None


def seconds_trained(records: Sequence[Mapping[str, Any]], step: int | None = None) -> float | None:
    """Seconds that a run took up to a step, by its log; None where there is none.

    Building, saving and sampling do not count.
    """
    total, last = 0.0, 0
    for record in records:
        if step is not None and record["step"] > step:
            break
        total += (value_of(record, "sec_per_step") or 0.0) * (record["step"] - last)
        last = record["step"]
    return total if records else None


def points(records: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) where the value is finite."""
    found = ((record["step"], value_of(record, name)) for record in records)
    return [(step, value) for step, value in found if value is not None and math.isfinite(value)]


def read_config(run_dir: Path) -> dict[str, Any]:
    """The run's configuration as nested mappings, {} where there is none to be read.

    Unlike ``load_config`` it takes files of other versions.
    """
    from ddgan_fast.options import read_yaml

    try:
        return read_yaml(run_dir / CONFIG)
    except (OSError, ValueError):
        return {}


def option(config: Mapping[str, Any], name: str) -> Any:
    """A dotted option, or None."""
    section, _, key = name.partition(".")
    inside = config.get(section)
    return inside.get(key) if key and isinstance(inside, Mapping) else inside


def timesteps(records: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    """The statistics "name/t0", "name/t1", ... that the records have, by timestep."""
    begin = f"{name}/t"
    found = {k for r in records for k in r if k.startswith(begin) and k[len(begin) :].isdigit()}
    return sorted(found, key=lambda key: int(key[len(begin) :]))


@dataclass
class Follower:
    """Reads a growing log: what is new since the last look, or all of it when it was rewritten.

    A line without its end is left for the next look. When the run goes back to an earlier step it
    replaces the file, so ``records`` never hold what was taken back.

    Args:
        path: the log; it need not be there yet.
    """

    path: Path
    records: list[Record] = field(default_factory=list)
    _file: tuple[int, int] | None = None
    _offset: int = 0

    def look(self) -> bool:
        """Take in what was written; whether there was anything."""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                identity = status.st_dev, status.st_ino
                size = file.seek(0, 2)
                anew = identity != self._file or size < self._offset
                if anew:
                    self.records, self._file, self._offset = [], identity, 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        new = list(_records(whole.split(b"\n")))
        if new:
            first = new[0]["step"]
            self.records = [r for r in self.records if r["step"] < first] + new
        return bool(new) or anew


def _records(lines: Iterable[bytes]) -> Iterable[Record]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # cut short, or just being written
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record
