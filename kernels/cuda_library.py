"""The compiled library of csrc/: found or built once, loaded once, or the reason why not."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import _build
from .registry import lazy, register_backend

COMPILE = "python -m ddgan_fast.kernels"
"""The command that compiles csrc/."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_lock = threading.Lock()
_loaded: Path | None = None
_reason: str | None = None
_asked = False
_on_cpu = False


def register(name: str, folder: str, function: str) -> None:
    """Add the CUDA implementation of one op: a function of ``<folder>/cuda_impl.py``."""
    run = lazy(f"{__package__}.{folder}.cuda_impl", function)
    register_backend(name, "cuda", run, why_not=why_not, accepts=accepts, outlook=outlook)


def outlook() -> tuple[str | None, str]:
    """What ``why_not`` would say, and a note or ""; loads a library but never compiles one."""
    try:
        reason = _build.why_not()
    except ValueError as error:
        return str(error), ""
    if _on_cpu or _asked or _loaded or not torch.cuda.is_available() or _build.built():
        return why_not(), ""
    if reason:
        return f"the CUDA library is not compiled: {reason}", ""
    return None, f"not compiled yet: compiled at first use, for minutes, or now by `{COMPILE}`"


def why_not() -> str | None:
    """None when the CUDA kernels are loaded, else the reason; the first call may compile them."""
    global _asked, _reason
    if _on_cpu:
        return None
    if _asked:
        return _reason
    with _lock:
        if not _asked:
            _reason = _load()
            _asked = True
    return _reason


def accepts(*args: Any) -> str | None:
    """None when the library can run on these arguments of an op, else the reason."""
    first = args[0]
    if first.device.type != "cuda" and not (_on_cpu and first.device.type == "cpu"):
        return f"its tensors are on {first.device}, and this backend runs on CUDA devices"
    if first.dtype not in (*_DTYPES, torch.uint8):
        return f"it has no kernel for {first.dtype}"
    return None


@contextmanager
def cpu_loops() -> Iterator[Path]:
    """Let ``use_backend("cuda")`` run the library's plain loops on CPU tensors inside the block.

    For tests: the loops and the CUDA kernels are the same functions. Without a CUDA device the
    library is built without nvcc.

    Yields:
        The library.

    Raises:
        BuildError: it cannot be built.
    """
    global _on_cpu
    usable = torch.cuda.is_available() and why_not() is None
    if not usable and _loaded is None:
        load(_build.build(host_only=True))
    assert _loaded is not None
    _on_cpu = True
    try:
        yield _loaded
    finally:
        _on_cpu = False


def load(path: Path) -> None:
    """Register the ops of one library, which is the only one of this process."""
    global _loaded
    if _loaded is None:
        torch.ops.load_library(path)
        _loaded = path
    elif path != _loaded:
        raise RuntimeError(f"this process has loaded {_loaded}, and cannot load {path}, too.")


def description(path: Path) -> dict[str, str]:
    """What a loaded library was built for: ``{"cuda": "13.0", "archs": "80,90a"}``."""
    function = ctypes.CDLL(str(path)).ddgan_fast_build
    function.restype = ctypes.c_char_p
    pairs = function().decode().split(";")
    return dict(pair.split("=", 1) for pair in pairs)


def unsuitable(
    cuda: str, archs: str, driver: int | None, capability: tuple[int, int]
) -> str | None:
    """Why a library does not fit a machine, or None.

    Args:
        cuda: CUDA release of the library, e.g. "13.0".
        archs: its architectures, e.g. "80,90a"; the last one is kept as PTX, too.
        driver: newest CUDA the driver knows, e.g. 12080, or None.
        capability: of the device.
    """
    major = int(cuda.split(".")[0])
    if driver is not None and driver // 1000 < major:
        return (
            f"it is built with CUDA {cuda}, but the driver knows CUDA {driver // 1000}."
            f"{driver % 1000 // 10} at most; update the driver or compile with an older CUDA"
        )
    names = archs.split(",")
    numbers = [divmod(int(name.rstrip("af")), 10) for name in names]
    for name, number in zip(names, numbers, strict=True):
        exact = name.endswith(("a", "f"))
        if number == capability or (
            not exact and number[0] == capability[0] and number[1] <= capability[1]
        ):
            return None
    if not names[-1].endswith(("a", "f")) and numbers[-1] <= capability:
        return None
    return (
        f"it is built for the architectures {archs}, and the device has {capability[0]}."
        f"{capability[1]}; set DDGAN_FAST_CUDA_ARCHS"
    )


def _load() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if _loaded is None:
        path = _build.built()
        if path is None:
            reason = _build.why_not()
            if reason and _build.mode() == "1":
                raise RuntimeError(f"DDGAN_FAST_BUILD=1, but csrc/ is not compiled: {reason}.")
            if reason:
                return f"the CUDA library is not compiled: {reason}"
            try:
                path = compile_now()
            except _build.BuildError as error:
                if _build.mode() == "1":
                    raise
                warnings.warn(f"ddgan_fast runs without its CUDA library: {error}", stacklevel=2)
                return str(error).splitlines()[0]
        try:
            load(path)
        except OSError as error:
            return f"the CUDA library {path} does not load: {error}"
    assert _loaded is not None
    built = description(_loaded)
    if not built["cuda"]:
        return "the loaded library was built without CUDA"
    return unsuitable(
        built["cuda"], built["archs"], driver_version(), torch.cuda.get_device_capability()
    )


def compile_now() -> Path:
    """Compile csrc/ unless it is compiled, and say so beforehand.

    Raises:
        BuildError: it cannot be built.
    """
    library, archs = _build.planned()
    if not library.is_file() and os.environ.get("LOCAL_RANK", "0") == "0":
        text = f"compiling CUDA kernels for {archs} into {library.parent}, for minutes, once"
        print(f"ddgan_fast: {text}.", file=sys.stderr, flush=True)
    return _build.build()


def driver_version() -> int | None:
    """The newest CUDA that the driver knows, e.g. 13000, or None where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    return version.value if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 else None


def op(name: str) -> Callable[..., None]:
    """An op of the loaded library."""
    return getattr(torch.ops.ddgan_fast_c, name).default
