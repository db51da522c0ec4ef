"""Which module may import which: the floors of the house, and no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Floors below `training/steps.py`, each with what it may stand on.
FLOORS = {
    "kernels": {"kernels"},
    "diffusion": {"kernels", "config"},
    "models": {"models", "kernels", "config"},
    "data": {"data", "config", "files", "images", "validation"},
    "config": {"config", "files", "options", "validation"},
    "options": set(),
    "files": set(),
    "images": {"files"},
    "guidance": {"kernels", "diffusion", "config"},
    "samplers": {"kernels", "diffusion", "config", "guidance"},
}
# What a step is made of; `data.device` is the formula from bytes to [-1, 1].
ALGORITHM = ("steps", "draws", "denoising", "second_judge", "terms", "accumulation", "compiling")


def sources() -> dict[str, Path]:
    """Every module of the installed package, by its name within it."""
    found = {}
    for folder in ("ddgan_fast", "kernels", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            parts = parts[1:] if folder == "ddgan_fast" else parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = sources()


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those that run at import: not in functions, not under TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse)
            continue
        yield node
        for name in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, name, []))


def imported(name: str, everywhere: bool = False) -> set[str]:
    """Modules of the package that a module imports; everywhere: in functions, too."""
    path = MODULES[name]
    tree = ast.parse(path.read_text())
    package = ["ddgan_fast", *name.split(".")] if name else ["ddgan_fast"]
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in ast.walk(tree) if everywhere else statements(tree.body):
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    inside = {full.removeprefix("ddgan_fast.") for full in found if full.startswith("ddgan_fast.")}
    return {module for module in inside if module in MODULES}


def room(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_stands_on_what_is_below_it(floor):
    above = {
        (name, module)
        for name in MODULES
        if room(name) == floor
        for module in imported(name, everywhere=True)
        if room(module) not in FLOORS[floor]
    }
    assert above == set()


def test_the_algorithm_knows_nothing_of_the_run():
    algorithm = {f"training.{name}" for name in ALGORITHM}
    for name in algorithm:
        own = imported(name, everywhere=True) - algorithm - {"training", "data", "data.device"}
        assert {room(module) for module in own} <= {"kernels", "diffusion", "models"}, name


def test_only_commands_know_benchmarks():
    assert {
        name
        for name in MODULES
        if room(name) not in ("benchmarks", "commands")
        and any(room(m) == "benchmarks" for m in imported(name, everywhere=True))
    } == set()


def test_nothing_imports_commands_but_the_command_line():
    """`commands` itself holds the parser that the demo and the benchmarks share."""
    users = {
        (name, module)
        for name in MODULES
        if room(name) != "commands"
        for module in imported(name, everywhere=True)
        if module.startswith("commands.") and module != "commands.arguments"
    }
    assert users == set()


def test_no_circle():
    graph = {name: imported(name) - {name} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for module in sorted(graph[name]):
            # A package's own names are imported through it; its __init__ is not a station.
            if not name.startswith(f"{module}."):
                visit(module, (*path, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())
