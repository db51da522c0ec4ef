"""What this machine can do: software, devices and kernels, and why not more. Never fails."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .machine import cores
from .tables import align, print_table

_OLDEST_TORCH = (2, 11)
_TIMEOUT_S = 10
_EXTRAS = {
    "scikit-learn": ("demo", "the digits need it"),
    "matplotlib": ("demo", "diagrams need it"),
    "lmdb": ("lmdb", "LMDB data need it"),
    "pyarrow": ("parquet", "Parquet data need it"),
}
"""Distribution: the extra that brings it, and what for."""


@dataclass(frozen=True)
class Row:
    """One thing that was looked at."""

    name: str
    ok: bool
    """Whether it is there and usable; what is optional may be missing."""
    value: str
    """Its version or size, or in one phrase why it is not usable and what to do."""


def report() -> list[Row]:
    """Look at everything there is to know, GPUs one by one.

    Nothing is raised, whatever is missing or broken.
    """
    rows = [
        Row("ddgan_fast", True, f"{__version__} in {Path(__file__).resolve().parent}"),
        Row(
            "python", sys.version_info >= (3, 11), f"{platform.python_version()}, {sys.executable}"
        ),
    ]
    probes: dict[str, Callable[[], list[Row]]] = {
        "cpu": _cpu,
        "torch": _torch,
        "driver": _driver,
        "cuda": _cuda,
        "triton": _triton,
        "nvcc": _nvcc,
        "csrc": _csrc,
        "dali": _dali,
        "apex": _apex,
        "extras": _extras,
    }
    for name, probe in probes.items():
        try:
            rows += probe()
        except Exception as error:  # a broken installation can raise anything at all
            rows.append(Row(name, False, f"looking at it failed: {_brief(error)}"))
    return rows


def backends() -> list[dict[str, Any]]:
    """``ddgan_fast.kernels.backend_report()``, or nothing where the kernels cannot be imported."""
    try:
        from .kernels import backend_report

        return backend_report()
    except Exception:  # the row "torch" says why
        return []


def as_dict() -> dict[str, Any]:
    """The whole report in plain types: "machine" and "kernels"."""
    return {"machine": [asdict(row) for row in report()], "kernels": backends()}


def print_report() -> None:
    """Print the report as tables, and below them why kernels are not usable."""
    rows = [(row.name, "ok" if row.ok else "-", row.value) for row in report()]
    print_table("This machine", ("", "", "version, or why not and what to do"), rows)
    ops = backends()
    if ops:
        headers, matrix, notes = kernel_table(ops)
        print()
        print_table("Kernels", headers, matrix)
        print("\n".join(notes))


def kernel_table(
    ops: list[dict[str, Any]],
) -> tuple[tuple[str, ...], list[tuple[str, ...]], list[str]]:
    """One row per op, one column per backend; and a line for each remark, why not to use one.

    Args:
        ops: rows of ``backend_report``.

    Returns:
        Headers, rows and notes.
    """
    names = list(dict.fromkeys(row["backend"] for row in ops))
    states: dict[str, dict[str, str]] = {}
    reasons: dict[str, list[str]] = {}
    for row in ops:
        state = "chosen" if row["chosen"] else "usable" if row["usable"] else "-"
        states.setdefault(row["op"], {})[row["backend"]] = state
        remark = row["why_not"] or row.get("note")
        if remark:
            reasons.setdefault(f"{row['backend']}: {remark}", []).append(row["op"])
    matrix = [(op, *(cells.get(name, "-") for name in names)) for op, cells in states.items()]
    notes = [
        f"  {reason} ({'all ops' if len(affected) == len(states) else ', '.join(affected)})"
        for reason, affected in reasons.items()
    ]
    return ("op", *names), matrix, notes


def kernel_lines() -> list[str]:
    """The table of kernels as plain lines."""
    ops = backends()
    if not ops:
        return ["  none could be imported"]
    headers, matrix, notes = kernel_table(ops)
    return [*align([headers, *matrix]), *notes]


def _cpu() -> list[Row]:
    value = f"{cores()} cores, {platform.machine()}, {platform.system()}"
    with contextlib.suppress(Exception):
        import torch

        value += f", {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return [Row("cpu", True, value)]


def _torch() -> list[Row]:
    try:
        import torch
    except Exception as error:
        return [Row("torch", False, f"cannot be imported ({_brief(error)}): pip install torch")]
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    if getattr(torch.version, "hip", None):
        built = f"ROCm {torch.version.hip}"
    if version < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        return [Row("torch", False, f"{torch.__version__} is too old: {oldest} or newer is needed")]
    return [Row("torch", True, f"{torch.__version__}, built for {built}")]


def _driver() -> list[Row]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [Row("driver", False, "no NVIDIA driver: nvidia-smi is not on the PATH")]
    done = _run(tool, "--query-gpu=driver_version", "--format=csv,noheader")
    version = done.stdout.strip().splitlines()
    if done.returncode or not version:
        said = " ".join((done.stdout + done.stderr).split())
        return [Row("driver", False, f"nvidia-smi finds none: {said[:200]}")]
    return [Row("driver", True, version[0])]


def _cuda() -> list[Row]:
    import torch

    if not torch.cuda.is_available():
        return [Row("cuda", False, _why_no_cuda(torch))]
    rows = [Row("cuda", True, f"{torch.cuda.device_count()} GPUs usable")]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        value = (
            f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, "
            f"compute capability {gpu.major}.{gpu.minor}"
        )
        rows.append(Row(f"cuda:{i}", True, value))
    return rows


def _why_no_cuda(torch: Any) -> str:
    if torch.version.cuda is None and not getattr(torch.version, "hip", None):
        if shutil.which("nvidia-smi") is None:
            return "no GPU, and this torch is built for the CPU only"
        return (
            "this torch is built for the CPU only, but there is a driver: install a CUDA build "
            "(pip install --force-reinstall torch)"
        )
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides all GPUs: unset it"
    try:
        torch.cuda.init()
    except Exception as error:
        return f"torch finds no usable GPU: {_brief(error)}"
    return "torch finds no usable GPU"


def _triton() -> list[Row]:
    try:
        triton = importlib.import_module("triton")
    except ModuleNotFoundError:
        return [Row("triton", False, "not installed: it comes with CUDA builds of torch on Linux")]
    except Exception as error:
        return [Row("triton", False, f"cannot be imported: {_brief(error)}")]
    return [Row("triton", True, str(getattr(triton, "__version__", "of unknown version")))]


def _nvcc() -> list[Row]:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    tool = shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(home, "bin"))
    if tool is None:
        return [Row("nvcc", False, "not found, and not needed")]
    release = re.search(r"release ([\d.]+)", _run(tool, "--version").stdout)
    return [Row("nvcc", True, f"{release[1] if release else 'of unknown version'}, {tool}")]


def _csrc() -> list[Row]:
    from .kernels import _build

    library = _build.built()
    if library is not None:
        return [Row("csrc", True, f"compiled: {library}")]
    reason = _build.why_not()
    if reason is not None:
        return [Row("csrc", False, f"not compiled, and not needed: {reason}")]
    hint = "compiled at the first use of backend cuda, or now by `python -m ddgan_fast.kernels`"
    return [Row("csrc", True, f"not compiled; {hint}")]


def _dali() -> list[Row]:
    use = "it decodes images that were not prepared at less cost of the CPU"
    try:
        dali = importlib.import_module("nvidia.dali")
    except ModuleNotFoundError:
        return [Row("dali", False, f"not installed, and not needed: {use}")]
    except Exception as error:
        return [Row("dali", False, f"cannot be imported ({_brief(error)}): {use}")]
    return [Row("dali", True, f"{getattr(dali, '__version__', 'of unknown version')}: {use}")]


def _apex() -> list[Row]:
    from .training import apex_adam

    reason = apex_adam.why_not()
    if reason is None:
        return [Row("apex", True, "NVIDIA's, with FusedAdam; optim.backend apex uses it")]
    unused = "torch's own fused Adam is used"
    if reason == apex_adam.ABSENT:
        return [Row("apex", False, f"{reason}, and not needed: {unused}")]
    return [Row("apex", False, f"{reason}; {unused}")]


def _extras() -> list[Row]:
    rows = []
    for name, (extra, use) in _EXTRAS.items():
        try:
            rows.append(Row(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            hint = f"not installed; {use}: pip install 'ddgan_fast[{extra}]'"
            rows.append(Row(name, False, hint))
    return rows


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__
