"""Everything that is to be known about a GPU machine in one command, within a time budget.

``python -m benchmarks.gpu_suite --out DIR``. Every part runs in a process of its own, so that a
kernel that breaks the device costs one unit. DIR/results.json is replaced as a whole, every few
seconds and after every part.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .gpu_units import DEVICE_LOST, Child, die_with_parent, read

LIMITS = {
    "env": 40,
    "build": 150,
    "tests": 210,
    "engine": 400,
    "sanitizer": 90,
    "kernels": 240,
    "step": 340,
    "compiled": 500,
    "sample": 80,
    "ablation": 400,
    "train": 120,
    "loader": 90,
    "band": 420,
    "stacked": 575,
}
"""Parts, the most valuable first, and the seconds that each may take."""

_GRACE = 15.0
"""Seconds for a part to end by itself after its limit."""
_REFRESH = 10.0
_MOST_PROCESSES = 8
_PICTURES_BYTES = 15 << 20


@dataclass
class Suite:
    """The parent side.

    Attributes:
        arguments: of the command line.
        results: what results.json holds.
        work: folder for files that nobody needs later.
        began: ``time.monotonic()`` when the budget began.
    """

    arguments: argparse.Namespace
    results: dict[str, Any]
    work: Path
    began: float
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    child: subprocess.Popen[bytes] | None = None

    @property
    def out(self) -> Path:
        """Folder of the results."""
        return Path(self.arguments.out)

    def seconds_left(self) -> float:
        """Of the whole budget."""
        return self.arguments.budget - (time.monotonic() - self.began)

    def run(self, parts: Sequence[str]) -> int:
        """All parts; the exit code."""
        self.results["parts"] = [{"name": name, "status": "not begun"} for name in parts]
        self.save()
        for entry in self.results["parts"]:
            self.part(entry)
            if entry["name"] == "build" and entry.get("units", {}).get("csrc") != "ok":
                # Every later process would try again otherwise.
                self.environment["DDGAN_FAST_BUILD"] = "0"
            self.pictures()
            self.save()
        failed = [e["name"] for e in self.results["parts"] if e["status"] != "ok"]
        print(f"{len(self.results['rows'])} rows in {self.out / 'results.json'}.", flush=True)
        if failed:
            print(f"Not well: {', '.join(failed)}.", flush=True)
        ran = {unit for e in self.results["parts"] for unit in e.get("units", {})}
        unknown = [unit for unit in self.arguments.only if unit not in ran]
        if unknown:
            print(f"No unit {unknown[0]!r} was in these parts.", flush=True)
        return int(bool(failed or unknown))

    def part(self, entry: dict[str, Any]) -> None:
        """One part, in as many processes as it takes."""
        name = entry["name"]
        limit = min(self.arguments.limit or LIMITS[name], self.seconds_left() - _GRACE)
        if limit <= 0:
            entry["status"] = "not reached"
            return
        entry |= {"status": "running", "limit_s": round(limit, 1)}
        print(f"== {name} (at most {limit:.0f} s)", flush=True)
        began = time.monotonic()
        before = list(self.results["rows"])
        records = self.work / f"{name}.jsonl"
        code: int | None = DEVICE_LOST
        processes = 0
        while code not in (0, None) and processes < _MOST_PROCESSES:
            left = limit - (time.monotonic() - began)
            if left <= 0:
                break
            seen = len(read(records))
            code = self.process(name, records, left, entry, before)
            processes += 1
            if code not in (0, None, DEVICE_LOST) and len(read(records)) <= seen + 1:
                entry["error"] = f"its process ended with code {code} at once: see log.txt"
                break
        self.merge(records, entry, before)
        entry["processes"] = processes
        entry["seconds"] = round(time.monotonic() - began, 1)
        units = entry["units"].values()
        if code is None:
            entry["status"] = "timeout"
        elif code or any(s in ("failed", "crashed", "begun") for s in units):
            entry["status"] = "failed"
        elif "not reached" in units:
            entry["status"] = "cut short"
        else:
            entry["status"] = "ok"
        print(f"== {name}: {entry['status']} after {entry['seconds']} s", flush=True)

    def process(
        self, name: str, records: Path, limit: float, entry: dict[str, Any], before: list[Any]
    ) -> int | None:
        """One process of a part; its exit code, or None when it had to be stopped."""
        command = [sys.executable, "-m", __spec__.name if __spec__ else "benchmarks.gpu_suite"]
        command += ["--out", str(self.out), "--run-part", name, "--records", str(records)]
        command += ["--limit", f"{limit:.1f}", "--device", self.arguments.device]
        command += ["--tiny"] if self.arguments.tiny else []
        command += ["--images", self.arguments.images] if self.arguments.images else []
        command += ["--idx", self.arguments.idx] if self.arguments.idx else []
        command += [word for unit in self.arguments.only for word in ("--only", unit)]
        command += ["--break-unit", self.arguments.break_unit] if self.arguments.break_unit else []
        with (self.out / "log.txt").open("ab") as log:
            self.child = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=self.environment, start_new_session=True, preexec_fn=die_with_parent,
            )
        until = time.monotonic() + limit + min(_GRACE, max(self.seconds_left() - limit, 1.0))
        refreshed = time.monotonic()
        code: int | None = None
        try:
            while code is None and time.monotonic() < until:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = self.child.wait(0.5)
                if time.monotonic() - refreshed > _REFRESH:
                    refreshed = time.monotonic()
                    self.merge(records, entry, before)
                    self.save()
        finally:
            self.stop_child()
        return code

    def stop_child(self) -> None:
        """End the part's process and all that it started."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()
            self.child = None

    def merge(self, records: Path, entry: dict[str, Any], before: list[Any]) -> None:
        """Take over what the part has written so far."""
        entry["units"], entry["errors"] = {}, {}
        rows = []
        for record in read(records):
            if "row" in record:
                rows.append(record["row"])
            elif record.get("status") and record["status"] != "retried":
                entry["units"][record["unit"]] = record["status"]
                if "error" in record:
                    entry["errors"][record["unit"]] = record["error"]
            elif "environment" in record:
                self.results["environment"] |= record["environment"]
        self.results["rows"] = before + rows

    def save(self) -> None:
        """Replace results.json."""
        self.results["seconds"] = round(time.monotonic() - self.began, 1)
        temporary = self.out / f".results.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(self.results, indent=1) + "\n")
        os.replace(temporary, self.out / "results.json")

    def pictures(self) -> None:
        """Pack the pictures that parts have left."""
        found = sorted((self.work / "pictures").rglob("*.png"))
        if not found:
            return
        total = 0
        with tarfile.open(self.out / "pictures.tar", "w") as archive:
            for path in found:
                total += path.stat().st_size + 1024
                if total > _PICTURES_BYTES:
                    break
                archive.add(path, str(path.relative_to(self.work)))


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    began = time.monotonic()
    arguments = _parse(argv)
    if arguments.run_part:
        return _run_part(arguments)
    parts = arguments.parts.split(",") if arguments.parts else list(LIMITS)
    unknown = [part for part in parts if part not in LIMITS]
    if unknown:
        print(f"There is no part {unknown[0]!r}: the parts are {', '.join(LIMITS)}.")
        return 2
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print(
                "There is no CUDA device here: run this on a GPU machine, or see every part at toy "
                "size with --device cpu --tiny."
            )
            return 2
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    results = {
        "command": shlex.join(["python", "-m", "benchmarks.gpu_suite", *(argv or sys.argv[1:])]),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "budget_s": arguments.budget,
        "device": arguments.device,
        "tiny": arguments.tiny,
        "environment": {},
        "parts": [],
        "rows": [],
    }
    work = Path(tempfile.mkdtemp(prefix="ddgan-gpu-suite-"))
    # Importing torch counts: whoever gave the budget ends the command when it is over.
    suite = Suite(arguments, results, work, began)
    if arguments.device == "cuda":
        suite.environment.setdefault("DDGAN_FAST_CUDA_ARCHS", _architecture())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return suite.run(parts)
    finally:
        suite.stop_child()
        shutil.rmtree(work, ignore_errors=True)


def _architecture() -> str:
    """The card's own architecture alone: the others would take minutes to compile."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        number = done.stdout.split()[0].replace(".", "")
    except (OSError, subprocess.SubprocessError, IndexError):
        return "80;90a;100;120"
    return "90a" if number == "90" else number


def _run_part(arguments: argparse.Namespace) -> int:
    records = Path(arguments.records)
    child = Child(
        arguments.run_part, records, arguments.device, arguments.tiny,
        time.monotonic() + arguments.limit, records.parent, Path(arguments.out),
        arguments.images, arguments.break_unit, arguments.idx, tuple(arguments.only),
    )
    from . import gpu_parts

    return child.run(gpu_parts.units(child))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_suite", description=__doc__.split("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--parts", help=f"comma-separated (default: {','.join(LIMITS)})")
    parser.add_argument("--budget", type=float, default=540, help="seconds (default: 540)")
    parser.add_argument("--limit", type=float, help="seconds for every part (default: its own)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--images", metavar="FOLDER", help="images to train on for a while")
    parser.add_argument("--idx", metavar="FOLDER", help="a set like MNIST, for the part stacked")
    parser.add_argument(
        "--only", metavar="UNIT", action="append", default=[],
        help="run this unit of the parts, and others so named",
    )
    parser.add_argument("--run-part", help=argparse.SUPPRESS)
    parser.add_argument("--records", help=argparse.SUPPRESS)
    parser.add_argument("--break-unit", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
