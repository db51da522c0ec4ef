"""The distribution holds what the tree holds, imports anywhere, and asks for nothing optional."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("ddgan_fast", "kernels", "benchmarks", "csrc", "tools")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "Makefile", "README.md")
SUFFIXES = {".py", ".yaml", ".typed", ".cu", ".cuh", ".h", ".cpp"}



def run_python(code: str, cwd: Path, path: Path | None = None, **env: str) -> str:
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | env
    if path:
        environ["PYTHONPATH"] = str(path)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A copy of the tree, the sdist built from it, and the wheel built from that sdist alone."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("out")
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in FOLDERS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=skipped)
    for name in FILES:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, tree / name)
    (tree / "tests").mkdir()
    shutil.copy(ROOT / "tests/conftest.py", tree / "tests")
    (tree / "csrc").mkdir(exist_ok=True)
    for name in ("probe.cu", "probe.cuh", "probe.h", "probe.cpp"):
        (tree / "csrc" / name).write_text("// carried\n")
    (tree / "benchmarks/results").mkdir(exist_ok=True)
    (tree / "benchmarks/results/probe.json").write_text("{}\n")

    build = "from setuptools import build_meta as b; b.build_{0}({1!r})"
    run_python(build.format("sdist", str(out)), cwd=tree)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    run_python(build.format("wheel", str(out)), cwd=out / sdist.name.removesuffix(".tar.gz"))
    (wheel,) = out.glob("*.whl")
    return tree, sdist, wheel


@pytest.fixture(scope="module")
def installed(distribution: tuple[Path, Path, Path], tmp_path_factory) -> Path:
    """A folder that holds the installed wheel."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(distribution[2]) as archive:
        archive.extractall(target)
    return target


def test_wheel_holds_the_whole_tree(distribution: tuple[Path, Path, Path]) -> None:
    tree, _, wheel = distribution
    results = tree / "benchmarks" / "results"
    carried = [*results.glob("*.json"), *results.glob("*/*")]
    expected = {f"ddgan_fast/{path.relative_to(tree).as_posix()}" for path in carried}
    assert "ddgan_fast/benchmarks/results/probe.json" in expected
    for folder in ("ddgan_fast", "kernels", "benchmarks", "csrc"):
        for path in (tree / folder).rglob("*"):
            if path.suffix in SUFFIXES:
                inside = path.relative_to(tree).as_posix()
                expected.add(inside if folder == "ddgan_fast" else f"ddgan_fast/{inside}")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    kept = {n for n in names if Path(n).suffix in SUFFIXES or "/results/" in n}
    assert kept == expected
    assert names == kept, "nothing else is carried"


def test_wheel_metadata(distribution: tuple[Path, Path, Path]) -> None:
    archive = zipfile.ZipFile(distribution[2])
    info = {Path(n).name: archive.read(n).decode() for n in archive.namelist() if "dist-info" in n}
    assert info["LICENSE"] == (ROOT / "LICENSE").read_text()
    assert "ddgan-fast = ddgan_fast.cli:main" in info["entry_points.txt"]
    lines = info["METADATA"].splitlines()
    for line in ("Name: ddgan-fast", "License: Apache-2.0", "Requires-Python: >=3.11"):
        assert line in lines
    extras = {line.split()[1] for line in lines if line.startswith("Provides-Extra:")}
    assert extras >= {"dali", "lmdb", "demo", "eval", "baselines", "wandb", "test", "dev"}
    always = [
        line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line
    ]
    assert not any("triton" in line or "torchvision" in line for line in always)
    (triton,) = (line for line in lines if line.startswith("Requires-Dist: triton"))
    assert 'platform_system == "Linux"' in triton and 'extra == "test"' in triton


def test_sdist_holds_what_a_developer_needs(distribution: tuple[Path, Path, Path]) -> None:
    with tarfile.open(distribution[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"LICENSE", "Makefile", "pyproject.toml", "tools/venv.sh", "tests/conftest.py"}
    assert "kernels/__init__.py" in names


def test_installed_copy_imports_from_elsewhere(installed: Path, tmp_path: Path) -> None:
    code = """
import importlib.resources as resources
import ddgan_fast, ddgan_fast.kernels, ddgan_fast.benchmarks
for package in (ddgan_fast, ddgan_fast.kernels, ddgan_fast.benchmarks):
    print(package.__file__)
print(resources.files("ddgan_fast.csrc") / "probe.cu")
"""
    for line in run_python(code, cwd=tmp_path, path=installed).splitlines():
        assert Path(line).is_relative_to(installed / "ddgan_fast")
        assert Path(line).is_file()


def test_every_module_imports_without_optional_packages(installed: Path, tmp_path: Path) -> None:
    # This PATH has no compiler, no device is visible, and names set to None cannot be imported.
    code = """
import importlib, pkgutil, sys
absent = ("triton", "nvidia", "lmdb", "apex", "sklearn", "matplotlib", "diffusers", "wandb")
sys.modules.update(dict.fromkeys(absent))
import ddgan_fast
names = [m.name for m in pkgutil.walk_packages(ddgan_fast.__path__, "ddgan_fast.")]
for name in names:
    # Modules of one backend or of one optional package are imported only where that is present.
    leaf = name.rpartition(".")[2]
    needs_triton = leaf.startswith("triton_") and leaf != "triton_support"
    if not needs_triton and leaf not in ("dali_loader", "__main__"):
        importlib.import_module(name)
print(len(names))
"""
    env = {"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    assert int(run_python(code, cwd=tmp_path, path=installed, **env)) > 10


def test_import_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'triton', 'jsonargparse', 'sklearn', 'tensorboard', 'matplotlib', 'PIL'}"
    code = f"import sys, ddgan_fast; print(sorted({heavy} & set(sys.modules)))"
    assert run_python(code, cwd=ROOT).strip() == "[]"


def test_tree_imports_without_an_installation() -> None:
    code = """
import sys
# An editable installation would supply what the tree itself must.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
import benchmarks, ddgan_fast.benchmarks, ddgan_fast.kernels
for package in (benchmarks, ddgan_fast.benchmarks, ddgan_fast.kernels):
    print(package.__file__)
"""
    timing, kernels = ROOT / "benchmarks/__init__.py", ROOT / "kernels/__init__.py"
    assert [Path(p) for p in run_python(code, cwd=ROOT).split()] == [timing, timing, kernels]


def test_bare_kernels_is_refused() -> None:
    code = """
try:
    import kernels
except ImportError as error:
    print(error)
"""
    assert "ddgan_fast.kernels" in run_python(code, cwd=ROOT)
