"""The set-up of the environment: what it says, when it does nothing, and what it heals."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
TORCH = 'import os\n__version__ = "2.13.0+cpu"\n'


def run(command: list, **options: object) -> subprocess.CompletedProcess:
    """subprocess.run, but for pip, whose installation into each new environment takes seconds."""
    if "venv" not in command:
        return subprocess.run(command, **options)
    done = subprocess.run([*command, "--without-pip"], **options)
    (site,) = Path(command[command.index("venv") + 2]).glob("lib/*/site-packages")
    (site / "pip.py").touch()
    return done


def add_triton(site: Path, version: str) -> None:
    """What pip leaves of a Triton."""
    metadata = site / f"triton-{version}.dist-info/METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: triton\nVersion: {version}\n")


def environment(path: Path, torch: str, triton: str | None = None) -> Path:
    """An environment with a torch of that version; the torch's file."""
    run([sys._base_executable, "-m", "venv", "--clear", str(path)])
    (site,) = path.glob("lib/*/site-packages")
    (site / "torch").mkdir()
    (site / "torch/__init__.py").write_text(f'__version__ = "{torch}"')
    if triton:
        add_triton(site, triton)
    return site / "torch/__init__.py"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/venv.py working in a small tree of its own, where pip only writes what it is told."""
    spec = importlib.util.spec_from_file_location("venv_tool", ROOT / "tools/venv.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tree = tmp_path / "tree"
    for name in (*module.INPUTS, "ddgan_fast/__init__.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")
    calls: list[str] = []

    def pip(venv: Path, *args: str) -> bool:
        calls.append(args[-1])
        site = next(venv.glob("lib/python*/site-packages"))
        if args[-1] in module.refused:
            return False
        if args[-1].startswith("torch"):
            (site / "torch").mkdir(exist_ok=True)
            (site / "torch/__init__.py").write_text(TORCH)
        if args[-1].startswith("triton"):
            add_triton(site, "3.6.0")
        if args[-1].startswith("."):
            (site / "numpy").mkdir(exist_ok=True)
            (venv / "bin/ddgan-fast").touch()
        return True

    module.refused = set()
    module.calls = calls
    monkeypatch.setattr(module, "ROOT", tree)
    monkeypatch.setattr(module, "pip", pip)
    error = subprocess.CalledProcessError
    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run, CalledProcessError=error))
    monkeypatch.setattr(module, "has_driver", lambda: False)
    # The interpreter that runs the tests has a torch; most machines' first Python has none.
    bare = module.probe(sys._base_executable)
    bare |= {"torch": None, "torch_path": None}
    monkeypatch.setattr(module, "source_of", lambda venv, stamp, chosen: bare)
    monkeypatch.delenv("VENV", raising=False)
    return module


def set_up(tool: ModuleType, *args: str) -> list[str]:
    """What was installed by one call."""
    tool.calls.clear()
    sys.argv, saved = ["venv.py", *args], sys.argv
    try:
        tool.main()
    finally:
        sys.argv = saved
    return list(tool.calls)


def test_second_call_installs_nothing(tool: ModuleType) -> None:
    first = ["torch==2.13.0", "triton==3.6.0", "setuptools>=77", ".[demo,test]"]
    assert set_up(tool, "demo,test") == first
    assert set_up(tool, "demo,test") == []
    assert set_up(tool, "test") == []
    assert set_up(tool, "demo,test,dev") == ["setuptools>=77", ".[demo,dev,test]"]
    assert set_up(tool, "demo,test") == []
    (tool.ROOT / "setup.py").write_text("changed")
    assert set_up(tool, "demo,test") == ["setuptools>=77", ".[demo,dev,test]"]


@pytest.mark.parametrize("lost", ["bin/python", "lib/*/site-packages/torch", "bin/ddgan-fast"])
def test_damage_is_healed(tool: ModuleType, lost: str) -> None:
    set_up(tool, "test")
    (path,) = (tool.ROOT / ".venv").glob(lost)
    path.rename(path.with_name("lost"))
    assert set_up(tool, "test")[0] == "torch==2.13.0"
    assert set_up(tool, "test") == []


def test_interrupted_installation_starts_anew(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tool, "install", killed)
        with pytest.raises(KeyboardInterrupt):
            set_up(tool, "test")
    (half,) = (tool.ROOT / ".venv").glob("lib/*/site-packages")
    (half / "half_written").mkdir()
    assert set_up(tool, "test")[-1] == ".[test]"
    assert not (half / "half_written").exists()


def test_torch_that_does_not_import_is_replaced(tool: ModuleType) -> None:
    set_up(tool, "test")
    (init,) = (tool.ROOT / ".venv").glob("lib/*/site-packages/torch/__init__.py")
    init.write_text("raise ImportError")
    (tool.ROOT / "setup.py").write_text("changed")
    assert "torch==2.13.0" in set_up(tool, "test")
    assert init.read_text() == TORCH


def test_existing_environment_and_its_torch_are_kept(tool: ModuleType) -> None:
    torch = environment(tool.ROOT / ".venv", torch="2.14.1+cpu")
    assert set_up(tool, "test") == ["triton==3.6.0", "setuptools>=77", ".[test]"]
    assert "2.14.1" in torch.read_text()


def test_torch_of_an_environment_is_seen_by_the_new_one(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tmp_path / "parent"
    environment(parent, torch="2.11.0+cu130", triton="3.6.1")
    monkeypatch.setattr(tool, "source_of", lambda *_: tool.probe(parent / "bin/python"))
    assert set_up(tool, "test") == ["setuptools>=77", ".[test]"]
    assert tool.probe(tool.ROOT / ".venv/bin/python")["torch"] == "2.11.0+cu130"
    assert set_up(tool, "test") == []


def test_triton_of_a_cuda_torch_is_kept(tool: ModuleType) -> None:
    environment(tool.ROOT / ".venv", torch="2.13.0+cu130", triton="3.9.1")
    assert set_up(tool, "test") == ["setuptools>=77", ".[test]"]


def test_triton_is_for_the_tests_and_need_not_be_this_one(
    tool: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    assert tool.TRITON not in set_up(tool, "demo")
    tool.refused.add(tool.TRITON)
    assert set_up(tool, "test") == ["triton==3.6.0", "setuptools>=77", ".[demo,test]"]
    assert "triton==3.6.0 is not to be had here" in capsys.readouterr().out


def test_too_old_torch_is_not_kept(tool: ModuleType) -> None:
    assert tool.fits_torch({"torch": "2.11.0a0+git1"})
    assert tool.fits_torch({"torch": "3.0"})
    assert not tool.fits_torch({"torch": "2.9.1+cu128"})
    assert not tool.fits_torch(None)


def test_newest_torch_where_the_cpu_release_is_missing(
    tool: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    tool.refused.add(tool.CPU_TORCH)
    assert set_up(tool, "test")[:2] == ["torch==2.13.0", "torch>=2.11"]
    assert (
        "torch==2.13.0 is not to be had here: taking the newest torch." in capsys.readouterr().out
    )


def test_failed_installation_says_so_and_goes_on_later(tool: ModuleType) -> None:
    tool.refused.add(".[test]")
    with pytest.raises(SystemExit, match="pip could not install ddgan_fast"):
        set_up(tool, "test")
    tool.refused.clear()
    assert set_up(tool, "test") == ["setuptools>=77", ".[test]"]


def test_cuda_torch_once_a_driver_is_there(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(tool, "test")
    monkeypatch.setattr(tool, "has_driver", lambda: True)
    assert set_up(tool, "test")[0] == "torch>=2.11"
    monkeypatch.setattr(tool, "has_driver", lambda: False)
    assert set_up(tool, "test") == []


def test_a_folder_that_is_no_environment_is_left_alone(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    monkeypatch.setenv("VENV", str(tmp_path / "mine"))
    with pytest.raises(SystemExit, match="is not a virtual environment"):
        set_up(tool, "test")
    assert (tmp_path / "mine/thesis.txt").exists()


def find_python(tmp_path: Path, **env: str) -> str:
    command = ["/bin/sh", ROOT / "tools/venv.sh", "test"]
    env = {"PATH": "/usr/bin:/bin", "VENV": str(tmp_path / "venv")} | env
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    os.chmod(path, 0o755)
    return str(path)


def test_unfit_pythons_are_named(tmp_path: Path) -> None:
    assert "PYTHON=nonesuch is not a program" in find_python(tmp_path, PYTHON="nonesuch")
    old = script(tmp_path / "old", '[ "$1" = --version ] && echo Python 3.9.2; exit 1')
    said = find_python(tmp_path, PYTHON=old)
    assert f"PYTHON={old} is Python 3.9.2; ddgan_fast needs Python 3.11 or later." in said
    commands = tmp_path / "bin"
    commands.mkdir()
    script(commands / "python3", "exit 1")
    (commands / "dirname").symlink_to("/usr/bin/dirname")
    said = find_python(tmp_path, PATH=str(commands))
    assert said.startswith("No Python 3.11 or later was found") and said.count("\n") == 1
