"""The one builder of csrc/: ahead of time for a wheel, or at first use, into the user's cache.

Stands alone (setup.py loads it by its path) and needs torch only for its headers and libraries.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "csrc"
DEFAULT_ARCHS = "80;90a;100;120"
TORCH_TARGET = "0x020b000000000000"
"""The oldest torch that the library loads into: 2.11."""

_SUFFIXES = (".cpp", ".cu", ".h", ".cuh")
_HOST_FLAGS = (
    "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas",
)
# Products and sums round separately on the host, as torch's do.
_HOST_ONLY_FLAGS = ("-O2", "-ffp-contract=off")
_CUDA_FLAGS = ("-std=c++17", "-O3", "-Xcompiler", "-fPIC", "--extended-lambda", "-Xptxas", "-v")


class BuildError(RuntimeError):
    """csrc/ cannot be built here; the message says why."""


@dataclass(frozen=True)
class _Plan:
    """Everything that decides what the library is."""

    archs: str
    nvcc: str | None
    cuda: str
    compiler: str
    torch_folder: Path
    torch_version: str

    @property
    def label(self) -> str:
        return f"cuda={self.cuda};archs={self.archs.replace(';', ',')}"

    def host_flags(self) -> list[str]:
        flags = [*_HOST_FLAGS, f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", "-I", str(SOURCES)]
        flags += ["-isystem", str(self.torch_folder / "include"), f'-DDD_BUILD="{self.label}"']
        return flags + (["-O3", "-DDD_WITH_CUDA"] if self.nvcc else list(_HOST_ONLY_FLAGS))

    def cuda_flags(self) -> list[str]:
        flags = [*_CUDA_FLAGS, "-I", str(SOURCES), "-isystem", str(self.torch_folder / "include")]
        flags += ["-ccbin", self.compiler]
        archs = self.archs.split(";")
        for arch in archs:
            flags += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
        newest = archs[-1]
        return [*flags, "-gencode", f"arch=compute_{newest},code=compute_{newest}"]

    def key(self) -> str:
        parts = [sources_key(), self.torch_version, *self.host_flags()]
        if self.nvcc:
            parts += self.cuda_flags()
        # Where torch lies does not matter, only which one it is.
        text = "\0".join(parts).replace(str(self.torch_folder), "").replace(str(SOURCES), "")
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def mode() -> str:
    """DDGAN_FAST_BUILD: "0" never compiles, "1" insists on it, "auto" compiles where it can."""
    value = os.environ.get("DDGAN_FAST_BUILD", "auto")
    if value not in ("0", "1", "auto"):
        raise ValueError(f"DDGAN_FAST_BUILD is {value!r}: choose 0, 1 or auto.")
    return value


def sources_key() -> str:
    """Hash of the names and contents of all sources."""
    digest = hashlib.sha256()
    for path in sorted(p for p in SOURCES.glob("*") if p.suffix in _SUFFIXES):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


def prebuilt() -> Path:
    """Where the library of these very sources lies when it was built ahead of time."""
    return SOURCES / f"ddgan_fast_c-{sources_key()}.so"


def cache_folder() -> Path:
    """The user's cache folder of this project."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ddgan_fast"


def find_nvcc() -> str | None:
    """The CUDA compiler: on the path, else under CUDA_HOME, else in its usual place."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(home, "bin"))


def why_not() -> str | None:
    """None when csrc/ can be compiled for CUDA here, else the reason."""
    if mode() == "0":
        return "DDGAN_FAST_BUILD=0 forbids compiling it"
    if find_nvcc() is None:
        return "no nvcc on the path or under CUDA_HOME to compile it with"
    if _compiler() is None:
        return "no C++ compiler on the path (CXX, c++ or g++)"
    return None if any(SOURCES.glob("*.cu")) else f"no CUDA sources in {SOURCES}"


def planned() -> tuple[Path, str]:
    """The library that ``build`` returns, which may not exist yet, and its architectures.

    Raises:
        BuildError: it cannot be built.
    """
    plan = _plan(None, False)
    return _in_cache(plan), plan.archs


def built() -> Path | None:
    """The CUDA library where it is compiled already: ahead of time, or in the cache."""
    if prebuilt().is_file():
        return prebuilt()
    if why_not():
        return None
    try:
        library, _ = planned()
    except BuildError:
        return None
    return library if library.is_file() else None


def build(archs: str | None = None, verbose: bool = False, *, host_only: bool = False) -> Path:
    """Compile csrc/ unless the cache has it; processes that start together compile once.

    Args:
        archs: CUDA architectures, oldest first, e.g. "80;90a"; the newest is kept as PTX, too.
            Default: DDGAN_FAST_CUDA_ARCHS, else "80;90a;100;120".
        verbose: print the compilers' output.
        host_only: only the plain CPU loops, without nvcc.

    Returns:
        The shared library.

    Raises:
        BuildError: no compiler, or it failed.
    """
    plan = _plan(archs, host_only)
    library = _in_cache(plan)
    library.parent.mkdir(parents=True, exist_ok=True)
    if library.is_file():
        return library
    failure = library.with_suffix(".failed")
    started = time.time()
    with _lock(library.with_suffix(".lock")):
        if library.is_file():
            return library
        if failure.is_file() and failure.stat().st_mtime >= started:
            # Another process failed while this one waited: no use in trying again.
            raise BuildError(failure.read_text())
        try:
            _compile(plan, library, verbose)
        except BuildError as error:
            failure.write_text(str(error))
            raise
        failure.unlink(missing_ok=True)
    return library


def _in_cache(plan: _Plan) -> Path:
    return cache_folder() / f"ddgan_fast_c-{plan.key()}.so"


def _plan(archs: str | None, host_only: bool) -> _Plan:
    compiler = _compiler()
    if compiler is None:
        raise BuildError("csrc/ cannot be built: no C++ compiler on the path (CXX, c++ or g++).")
    import torch

    folder = Path(torch.__file__).resolve().parent
    if host_only:
        return _Plan("", None, "", compiler, folder, torch.__version__)
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError("csrc/ cannot be built: no nvcc on the path or under CUDA_HOME.")
    chosen = archs or os.environ.get("DDGAN_FAST_CUDA_ARCHS") or DEFAULT_ARCHS
    if not re.fullmatch(r"\d+[af]?(;\d+[af]?)*", chosen):
        raise BuildError(
            f"DDGAN_FAST_CUDA_ARCHS is {chosen!r}: write architectures like {DEFAULT_ARCHS!r}."
        )
    ordered = sorted(set(chosen.split(";")), key=lambda a: (int(a.rstrip("af")), a))
    release = re.search(r"release ([\d.]+)", _output([nvcc, "--version"]))
    if release is None:
        raise BuildError(f"csrc/ cannot be built: {nvcc} does not tell its version.")
    return _Plan(";".join(ordered), nvcc, release[1], compiler, folder, torch.__version__)


def _compiler() -> str | None:
    for name in (os.environ.get("CXX", ""), "c++", "g++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(plan: _Plan, library: Path, verbose: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="build-", dir=library.parent) as name:
        folder = Path(name)
        steps = _steps(plan, folder)
        ninja = shutil.which("ninja")
        output = _run_ninja(ninja, steps, folder) if ninja else _run_in_turn(steps)
        if verbose:
            print(output, file=sys.stderr)
        library.with_suffix(".log").write_text(output)
        os.replace(folder / "library.so", library)


def _steps(plan: _Plan, folder: Path) -> list[tuple[Path, list[Path], list[str]]]:
    """(output, inputs, command) of every compilation, the link last."""
    steps = []
    for source in sorted(SOURCES.glob("*.cpp")):
        target = folder / f"{source.name}.o"
        command = [plan.compiler, *plan.host_flags(), "-c", str(source), "-o", str(target)]
        steps.append((target, [source], command))
    if plan.nvcc:
        for source in sorted(SOURCES.glob("*.cu")):
            target = folder / f"{source.name}.o"
            command = [plan.nvcc, *plan.cuda_flags(), "-c", str(source), "-o", str(target)]
            steps.append((target, [source], command))
    objects = [target for target, _, _ in steps]
    linker = [plan.nvcc, "-ccbin", plan.compiler] if plan.nvcc else [plan.compiler]
    link = [*linker, "-shared", *map(str, objects), "-o", str(folder / "library.so")]
    link += ["-L", str(plan.torch_folder / "lib"), "-ltorch_cpu", "-ldl"]
    return [*steps, (folder / "library.so", objects, link)]


def _run_ninja(
    ninja: str, steps: list[tuple[Path, list[Path], list[str]]], folder: Path
) -> str:
    lines = ["rule run", "  command = $line", ""]
    for target, inputs, command in steps:
        sources = " ".join(_ninja_path(p) for p in inputs)
        lines += [f"build {_ninja_path(target)}: run {sources}"]
        lines += [f"  line = {shlex.join(command).replace('$', '$$')}", ""]
    (folder / "build.ninja").write_text("\n".join(lines))
    jobs = os.environ.get("MAX_JOBS")
    command = [ninja, "-C", str(folder), "-v", *(["-j", jobs] if jobs else [])]
    return _run(command)


def _ninja_path(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def _run_in_turn(steps: list[tuple[Path, list[Path], list[str]]]) -> str:
    return "".join(_run(command) for _, _, command in steps)


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        errors = [line for line in done.stdout.splitlines() if "error" in line.lower()]
        shown = "\n".join((errors or done.stdout.splitlines())[:8])
        raise BuildError(f"csrc/ does not compile here:\n{shown}")
    return done.stdout
