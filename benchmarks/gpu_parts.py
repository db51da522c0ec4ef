"""What the parts of the GPU suite do: each is a list of units."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from ddgan_fast.kernels import backend_report

from . import facts
from .gpu_units import Child, Unit, die_with_parent

ROOT = Path(__file__).resolve().parent.parent
_ENGINE_TESTS = ROOT / "tests/training/test_engine_gpu.py"
_INTERRUPTED_S = 8.0
"""For a program to end by itself after it is interrupted."""
_COMPILE_S = 80.0
"""For a baseline of the ops: our kernels at further shapes are worth more."""
_SHARE = 0.7
"""Of the time left, for one group of tests before others."""


def units(child: Child) -> list[Unit]:
    """The units of the child's part."""
    found: list[Unit] = _PARTS[child.part](child)
    return found


def _run(command: list[str], log: Path, seconds: float, **variables: str) -> int:
    """A program's exit code; its output goes to ``log``. What takes too long is interrupted."""
    with log.open("ab") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
            env={**os.environ, **variables}, preexec_fn=_begin,
        )
    try:
        return process.wait(max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        # Interrupted, pytest still writes its report.
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_INTERRUPTED_S)
    finally:
        process.kill()
    return process.wait()



def _begin() -> None:
    die_with_parent()
    # What a shell starts in the background would ignore it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _environment(child: Child) -> list[Unit]:
    return [("machine", partial(_machine, child)), ("rates", partial(_rates, child))]


def _machine(child: Child) -> None:
    found: dict[str, Any] = {
        "machine": facts.machine(torch.device(child.device)),
        "versions": facts.versions() | {"cuda": torch.version.cuda},
        "variables": {k: v for k, v in os.environ.items() if k.startswith("DDGAN_FAST")},
    }
    with contextlib.suppress(Exception):
        import triton

        found["versions"]["triton"] = triton.__version__
    if child.device == "cuda":
        found["versions"]["cudnn"] = str(torch.backends.cudnn.version())
        query = "name,driver_version,memory.total,clocks.max.sm,clocks.sm,power.limit"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            found["nvidia_smi"] = subprocess.run(
                ["nvidia-smi", f"--query-gpu={query}", "--format=csv"],
                capture_output=True, text=True, timeout=20, check=True,
            ).stdout
    child.write({"environment": found})


def _rates(child: Child) -> None:
    from .kernel_timing import Clock

    device = torch.device(child.device)
    clock = Clock(device, 1 << 16) if child.tiny else Clock(device)
    size, dtype = (64, torch.float32) if child.tiny else (8192, torch.bfloat16)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    timed = clock.prepare(lambda: a @ b)
    clock.rounds({"product": timed}, 10)
    rates = {
        "copy_gb_s": round(clock.copy_gb_s(), 1),
        "matrix_tflop_s": round(2 * size**3 / sorted(timed.micros)[5] / 1e6, 1),
    }
    child.row(case="rates", **rates)
    child.write({"environment": rates})



def _build(child: Child) -> list[Unit]:
    return [("csrc", partial(_compile, child)), ("doctor", partial(_doctor, child))]


def _compile(child: Child) -> None:
    name = "ddgan_fast.kernels._build"
    if importlib.util.find_spec(name) is None:
        child.row(case="build", status="this version has no csrc")
        return
    builder = importlib.import_module(name)
    if child.device == "cpu":
        child.row(case="build", status="no GPU: not compiled", reason=builder.why_not())
        return
    began = time.monotonic()
    path = builder.build(verbose=True)
    child.row(case="build", status="ok", seconds=round(time.monotonic() - began, 1),
              library=path.name, archs=os.environ.get("DDGAN_FAST_CUDA_ARCHS"))


def _doctor(child: Child) -> None:
    from ddgan_fast.doctor import as_dict

    child.write({"environment": {"doctor": as_dict()}})



def _tests(child: Child) -> list[Unit]:
    if child.tiny:
        files = [ROOT / "tests" / "kernels" / "test_layout.py"]
        files = [f for f in files if f.exists()] or sorted(ROOT.glob("tests/kernels/test_reg*.py"))
    else:
        files = [
            path for path in sorted(ROOT.glob("tests/**/test_*.py"))
            if re.search(r"mark\.gpu\b", path.read_text()) and path != _ENGINE_TESTS
        ]
    # The kernels' own tests come first: everything else stands on them. The rest share one start.
    own = sorted(path for path in files if "kernels" in path.parts)
    rest = sorted(set(files) - set(own))
    groups = [[path] for path in own] + ([rest] if rest else [])
    return [
        (
            str(group[0].relative_to(ROOT)) + (" …" if len(group) > 1 else ""),
            partial(_test_files, child, group, 1.0 if group is groups[-1] else _SHARE),
        )
        for group in groups
    ]


def _engine(child: Child) -> list[Unit]:
    """Training itself: graphs, compiled code, ranks. It compiles for minutes."""
    return [] if child.tiny else [("engine", partial(_test_files, child, [_ENGINE_TESTS], 1.0))]


def _test_files(child: Child, paths: list[Path], share: float) -> None:
    first = paths[0].stem
    report = child.work / f"{first}.xml"
    # With names and stacks, so that one that hangs is known though there is no report.
    command = [sys.executable, "-m", "pytest", *map(str, paths), "-v", "--tb=short", "-p",
               "no:cacheprovider", f"--junitxml={report}", "--durations=5",
               "-o", "faulthandler_timeout=90"]
    if not child.tiny:
        command += ["-m", "gpu"]
    if "triton" in first and importlib.util.find_spec("xdist") and not child.tiny:
        # Hundreds of kernels to compile, each by one core.
        command += ["-n", "8"]
    code = _run(command, child.out / "pytest.txt", share * child.seconds_left())
    if not report.exists():
        raise RuntimeError(f"pytest ended with code {code} and left no report: see pytest.txt")
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")}
    failing = {}
    for case in suite.iter("testcase"):
        for kind in ("failure", "error"):
            found = case.find(kind)
            if found is not None:
                failing[str(case.get("name"))] = str(found.get("message", ""))[:300]
    names = " ".join(path.name for path in paths)
    child.row(case="tests", file=names, **counts, failing=failing, exit_code=code)
    if counts["failures"] or counts["errors"]:
        raise RuntimeError(f"{len(failing)} tests fail: {', '.join(failing)[:1000]}")
    if code:
        raise RuntimeError(f"pytest ended with code {code} after {counts['tests']} tests")


def _sanitizer(child: Child) -> list[Unit]:
    return [(name, partial(_sanitize, child, name)) for name in ("cuda", "triton")]


def _sanitize(child: Child, backend: str) -> None:
    usable = {r["op"] for r in backend_report() if r["backend"] == backend and r["usable"]}
    if child.device == "cpu" or not usable:
        child.row(case="sanitizer", backend=backend, status="backend not usable here")
        return
    log = child.out / f"sanitizer-{backend}.txt"
    command = [
        "compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c",
        "import sys; from benchmarks.kernel_bench import main; sys.exit(main(sys.argv[1:]))",
        "--tiny", "--check", "--backend", backend,
    ]
    try:
        # Torch's own pool would hide reads beyond a tensor.
        code = _run(command, log, min(child.seconds_left(), 60), PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    except FileNotFoundError:
        child.row(case="sanitizer", backend=backend, status="no compute-sanitizer here")
        return
    text = log.read_text(errors="replace")
    if "Device not supported" in text:
        child.row(case="sanitizer", backend=backend, status="it refuses this device")
        return
    found = re.findall(r"ERROR SUMMARY: (\d+)", text)
    child.row(case="sanitizer", backend=backend, exit_code=code, errors=found)
    if code:
        raise RuntimeError(f"the sanitizer ended with code {code}: see {log.name}")



def _kernels(child: Child) -> list[Unit]:
    from .kernel_bench import Settings
    from .kernel_cases import cases, tiny_cases
    from .kernel_timing import Clock

    device = torch.device(child.device)
    clock = Clock(device)
    settings = Settings(device, 2 if child.tiny else 20, child.deadline, trying=child.trying,
                        compile_s=_COMPILE_S)
    selected = tiny_cases() if child.tiny else cases()
    state: dict[str, Any] = {"clock": clock, "settings": settings}
    return [(case.name, partial(_kernel, child, case, state)) for case in selected]


def _kernel(child: Child, case: Any, state: dict[str, Any]) -> None:
    from .kernel_bench import OURS, line, run_case

    clock, settings = state["clock"], state["settings"]
    settings.skip = child.poison()
    if settings.copy_gb_s is None and child.device == "cuda":
        settings.copy_gb_s = clock.copy_gb_s()
    rows = run_case(case, clock, settings)
    for row in rows:
        print(line(row), flush=True)
        child.row(**row, copy_gb_s=settings.copy_gb_s)
    ours = [row for row in rows if row["provider"] in OURS]
    bad = [f"{row['provider']} {row['pass']}" for row in ours if not row["agrees"]]
    if bad:
        raise RuntimeError(f"wrong or failing: {', '.join(bad)}")


def _network_parts(part: str) -> Callable[[Child], list[Unit]]:
    def find(child: Child) -> list[Unit]:
        from . import gpu_networks

        return gpu_networks.units(part, child)

    return find


def _loader(child: Child) -> list[Unit]:
    from . import gpu_loader

    return gpu_loader.units(child)


def _band(child: Child) -> list[Unit]:
    from . import band

    return band.units(child)


def _stacked(child: Child) -> list[Unit]:
    from . import gpu_stacked

    return gpu_stacked.units(child)


_PARTS: dict[str, Callable[[Child], Any]] = {
    "env": _environment,
    "build": _build,
    "tests": _tests,
    "engine": _engine,
    "sanitizer": _sanitizer,
    "kernels": _kernels,
    **{part: _network_parts(part) for part in ("step", "compiled", "sample", "ablation", "train")},
    "loader": _loader,
    "band": _band,
    "stacked": _stacked,
}
