"""The builder of csrc/: once for all processes, whole or not at all, and one sentence when not."""

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from ddgan_fast import doctor
from ddgan_fast.kernels import _build, backend_report, cuda_library, registry

ROOT = Path(_build.__file__).resolve().parent.parent
needs_compiler = pytest.mark.skipif(_build._compiler() is None, reason="needs a C++ compiler")

# Writes what it was called for into a log and makes an empty output.
FAKE = """#!{python}
import os, sys, time
with open({log!r}, "a") as f:
    f.write("call " + " ".join(sys.argv[1:]) + "\\n")
if "--version" in sys.argv:
    print("Cuda compilation tools, release 13.0, V13.0.88")
    sys.exit()
time.sleep(0.05)
print("ptxas info")
if os.path.exists({fail!r}) and "-c" in sys.argv:
    print("x.cu(3): error: no such thing")
    sys.exit(2)
open(sys.argv[sys.argv.index("-o") + 1], "w").write("made")
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Fake compilers on an otherwise empty path, a small csrc/, an empty cache."""
    folder, csrc = tmp_path / "bin", tmp_path / "csrc"
    folder.mkdir()
    csrc.mkdir()
    for name in ("a.cu", "b.cu", "ops.cpp", "dd.h"):
        (csrc / name).write_text(f"// {name}\n")
    text = FAKE.format(
        python=sys.executable, log=str(tmp_path / "log"), fail=str(tmp_path / "fail")
    )
    for name in ("nvcc", "c++"):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("DDGAN_FAST_BUILD", "DDGAN_FAST_CUDA_ARCHS", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_build, "SOURCES", csrc)
    return tmp_path


def calls(tools):
    """What was compiled and linked, without asking for a version."""
    lines = (tools / "log").read_text().splitlines()
    return [line for line in lines if line.startswith("call") and "--version" not in line]


def test_builds_once_and_then_finds_it(tools, capsys):
    library = _build.build(verbose=True)
    assert "ptxas info" in capsys.readouterr().err
    assert library.read_text() == "made"
    assert len(calls(tools)) == 4, "two CUDA sources, one C++ source, one link"
    assert _build.build() == library
    assert len(calls(tools)) == 4
    leftovers = {p.suffix for p in library.parent.iterdir()}
    assert leftovers == {".so", ".lock", ".log"}


def test_all_architectures_and_ptx_of_the_newest(tools):
    _build.build()
    (line,) = [c for c in calls(tools) if "a.cu -o" in c]
    assert re.findall(r"-gencode (\S+)", line) == [
        "arch=compute_80,code=sm_80",
        "arch=compute_90a,code=sm_90a",
        "arch=compute_100,code=sm_100",
        "arch=compute_120,code=sm_120",
        "arch=compute_120,code=compute_120",
    ]


@pytest.mark.parametrize("change", ["source", "header", "archs", "host_only", "torch"])
def test_another_library_for_other_inputs(tools, change, monkeypatch):
    first = _build.build()
    if change in ("source", "header"):
        (tools / "csrc" / ("a.cu" if change == "source" else "dd.h")).write_text("// other\n")
    if change == "archs":
        monkeypatch.setenv("DDGAN_FAST_CUDA_ARCHS", "90a")
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9")
    assert _build.build(host_only=change == "host_only") != first


def test_the_order_of_architectures_does_not_matter(tools):
    assert _build.build("90a;80") == _build.build("80;90a")


def test_processes_that_start_together_build_once(tools):
    # A stand-in for torch: importing the real one takes each process seconds.
    code = (
        "import importlib.util as u, sys, types; from pathlib import Path;"
        "sys.modules['torch'] = types.SimpleNamespace(__file__='/torch/x.py', __version__='2');"
        f"s = u.spec_from_file_location('_build', {_build.__file__!r});"
        "m = sys.modules['_build'] = u.module_from_spec(s); s.loader.exec_module(m);"
        f"m.SOURCES = Path({str(tools / 'csrc')!r}); print(m.build())"
    )
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = {process.communicate()[0].strip() for process in started}
    assert [p.returncode for p in started] == [0] * 4
    assert len(answers) == 1 and Path(answers.pop()).is_file()
    assert len(calls(tools)) == 4


def test_a_failure_leaves_no_library_and_is_said_in_the_compilers_words(tools):
    (tools / "fail").touch()
    with pytest.raises(_build.BuildError, match="error: no such thing"):
        _build.build()
    folder = _build.cache_folder()
    assert not list(folder.glob("*.so")) and not list(folder.glob("build-*"))
    (tools / "fail").unlink()
    assert _build.build().is_file(), "a later call tries again"
    assert not list(folder.glob("*.failed"))


def test_those_who_wait_for_a_failure_do_not_repeat_it(tools):
    (tools / "fail").touch()
    errors = []

    def attempt():
        try:
            _build.build()
        except _build.BuildError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(errors) == 3
    assert len(calls(tools)) == 1


@pytest.mark.parametrize("bad", ["hopper", "90a,80", "90;;80"])
def test_bad_architectures(tools, bad, monkeypatch):
    monkeypatch.setenv("DDGAN_FAST_CUDA_ARCHS", bad)
    with pytest.raises(_build.BuildError, match="write architectures like"):
        _build.build()


def test_without_nvcc(tools):
    (tools / "bin/nvcc").unlink()
    assert _build.why_not().startswith("no nvcc")
    with pytest.raises(_build.BuildError, match="no nvcc"):
        _build.build()
    assert _build.build(host_only=True).is_file()


def test_without_a_compiler_for_the_host(tools):
    (tools / "bin/c++").unlink()
    assert _build.why_not().startswith("no C++ compiler")
    with pytest.raises(_build.BuildError, match=r"no C\+\+ compiler on the path"):
        _build.build(host_only=True)


def test_an_nvcc_that_tells_no_version(tools):
    (tools / "bin/nvcc").write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(_build.BuildError, match="bin/nvcc does not tell its version"):
        _build.build()
    assert _build.built() is None, "looking for a library never raises"


def test_forbidden(tools, monkeypatch):
    monkeypatch.setenv("DDGAN_FAST_BUILD", "0")
    assert "DDGAN_FAST_BUILD=0" in _build.why_not()
    monkeypatch.setenv("DDGAN_FAST_BUILD", "yes")
    with pytest.raises(ValueError, match="choose 0, 1 or auto"):
        _build.why_not()


class TestLoading:
    """On a machine with a pretended CUDA device."""

    @pytest.fixture(autouse=True)
    def device(self, tools, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        for name, value in (("_loaded", None), ("_asked", False), ("_reason", None)):
            monkeypatch.setattr(cuda_library, name, value)
        # Triton would ask for the pretended device's capability, and remember the answer.
        table = {op: {n: b for n, b in known.items() if n != "triton"}
                 for op, known in registry._table.items()}
        monkeypatch.setattr(registry, "_table", table)
        self.tools = tools

    def test_a_failure_is_remembered_and_said_once(self):
        (self.tools / "fail").touch()
        with pytest.warns(UserWarning, match="runs without its CUDA library"):
            reason = cuda_library.why_not()
        assert "does not compile" in reason
        count = len(calls(self.tools))
        assert cuda_library.why_not() == reason
        assert len(calls(self.tools)) == count

    def test_an_unloadable_library_is_a_reason(self):
        assert "does not load" in cuda_library.why_not()

    def test_no_compiler_is_a_reason(self):
        (self.tools / "bin/nvcc").unlink()
        assert "no nvcc" in cuda_library.why_not()

    def test_insisting_raises(self, monkeypatch):
        monkeypatch.setenv("DDGAN_FAST_BUILD", "1")
        (self.tools / "bin/nvcc").unlink()
        with pytest.raises(RuntimeError, match="DDGAN_FAST_BUILD=1, but"):
            cuda_library.why_not()

    def test_a_report_compiles_nothing(self, capsys):
        for _ in range(2):
            rows = [r for r in backend_report() if r["backend"] == "cuda"]
            assert all(r["usable"] and not r["why_not"] for r in rows)
            assert {r["note"] for r in rows} == {
                "not compiled yet: compiled at first use, for minutes, or now by "
                "`python -m ddgan_fast.kernels`"
            }
            doctor.print_report()
        assert not calls(self.tools) and not _build.cache_folder().exists()
        captured = capsys.readouterr()
        assert "cuda: not compiled yet" in captured.out and captured.err == ""

    def test_real_use_says_that_it_compiles(self, capsys):
        assert "does not load" in cuda_library.why_not()
        (line,) = capsys.readouterr().err.splitlines()
        folder = self.tools / "cache" / "ddgan_fast"
        assert line == (
            f"ddgan_fast: compiling CUDA kernels for 80;90a;100;120 into {folder}, for minutes, "
            "once."
        )
        assert "does not load" in cuda_library.why_not()
        assert capsys.readouterr().err == ""

    def test_only_the_first_rank_says_it(self, monkeypatch, capsys):
        monkeypatch.setenv("LOCAL_RANK", "1")
        cuda_library.why_not()
        assert capsys.readouterr().err == "" and calls(self.tools)

    def test_a_report_loads_what_is_compiled(self, capsys):
        library = cuda_library.compile_now()
        count = len(calls(self.tools))
        capsys.readouterr()
        assert _build.built() == cuda_library.compile_now() == library
        reasons = {r["why_not"] for r in backend_report() if r["backend"] == "cuda"}
        (reason,) = reasons
        assert reason.startswith(f"the CUDA library {library} does not load")
        assert len(calls(self.tools)) == count and capsys.readouterr().err == ""

    @pytest.mark.parametrize(
        ("mode", "words"),
        [("0", "forbids compiling"), ("1", "no nvcc"), ("maybe", "choose 0, 1 or auto")],
    )
    def test_a_report_never_raises(self, monkeypatch, mode, words):
        monkeypatch.setenv("DDGAN_FAST_BUILD", mode)
        if mode == "1":
            (self.tools / "bin/nvcc").unlink()
        reason, note = cuda_library.outlook()
        assert words in reason and note == ""

    def test_one_built_ahead_is_taken_first(self):
        _build.prebuilt().write_text("not a library")
        assert str(_build.prebuilt()) in cuda_library.why_not()
        assert not (self.tools / "log").exists()


@pytest.mark.parametrize(
    ("cuda", "archs", "driver", "capability", "words"),
    [
        ("13.0", "80,90a", 13000, (9, 0), None),
        ("13.0", "80,90a", 13010, (8, 6), None),
        ("12.8", "80,90a", 13000, (9, 0), None),
        ("13.0", "80,90a,100,120", 13000, (10, 3), None),
        ("13.0", "80,90a,100,120", 13000, (12, 1), None),
        ("13.0", "80,90a,100,120", 13000, (13, 0), None),
        ("13.0", "80,90a", 12080, (9, 0), "the driver knows CUDA 12.8"),
        ("13.0", "80,90a", 13000, (10, 0), "the device has 10.0"),
        ("13.0", "80,90a", 13000, (7, 5), "the device has 7.5"),
        ("13.0", "90", 13000, (8, 9), "the device has 8.9"),
    ],
)
def test_library_and_machine(cuda, archs, driver, capability, words):
    reason = cuda_library.unsuitable(cuda, archs, driver, capability)
    assert reason is None if words is None else words in reason


def test_the_command_that_compiles(tools):
    command = [sys.executable, "-m", "ddgan_fast.kernels"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    (tools / "bin/nvcc").unlink()
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "csrc/ cannot be built: no nvcc on the path or under CUDA_HOME.\n"


def test_nothing_is_compiled_or_loaded_at_import():
    code = (
        "import ddgan_fast.kernels as k, torch;"
        "assert not any('ddgan_fast_c::' in n for n in torch._C._dispatch_get_all_op_names());"
        "k.upfirdn2d(torch.zeros(1, 1, 4, 4), torch.ones(2));"
        "print([r['why_not'] for r in k.backend_report() if r['backend'] == 'cuda'][0])"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "torch sees no CUDA device"


needs_nvcc = pytest.mark.skipif(_build.find_nvcc() is None, reason="needs nvcc")


@pytest.mark.slow
@needs_nvcc
@needs_compiler
def test_compiles_for_all_architectures_without_spills(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DDGAN_FAST_CUDA_ARCHS", raising=False)
    library = _build.build()
    report = library.with_suffix(".log").read_text()
    spills = re.findall(r"Compiling entry function '(\S+)' for '(\S+)'|(\d+) bytes spill stores",
                        report)
    kernel, targets, bad = None, set(), []
    for name, target, stores in spills:
        if name:
            kernel = (name, target)
            targets.add(target)
        elif int(stores):
            bad.append((*kernel, stores))
    assert targets == {"sm_80", "sm_90a", "sm_100", "sm_120"}
    assert not bad
    code = (
        "import sys, torch; from pathlib import Path;"
        "from ddgan_fast.kernels import cuda_library as c;"
        "p = Path(sys.argv[1]); c.load(p); print(c.description(p)['archs']);"
        "print(torch.ops.ddgan_fast_c.upfirdn2d.default._schema)"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(library)],
        env=environ, capture_output=True, text=True, check=True,
    )
    archs, schema = done.stdout.splitlines()
    assert archs == "80,90a,100,120"
    assert schema.startswith("ddgan_fast_c::upfirdn2d(Tensor x, Tensor taps")


@pytest.mark.slow
@needs_compiler
def test_a_wheel_with_the_library_inside(tmp_path):
    """DDGAN_FAST_BUILD=1 pip install . with fake nvcc: the library lies beside the sources."""
    tree = tmp_path / "tree"
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in ("ddgan_fast", "kernels", "csrc", "benchmarks"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=skipped)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, tree / name)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("nvcc", "c++"):
        text = FAKE.format(python=sys.executable, log=str(tmp_path / "log"), fail="/none")
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environ = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "DDGAN_FAST_BUILD": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    environ.pop("PYTHONPATH", None)
    code = f"from setuptools import build_meta as b; print(b.build_wheel({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "none-any" not in wheel.name
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    (library,) = [n for n in names if n.endswith(".so")]
    assert library == f"ddgan_fast/csrc/{_build.prebuilt().name}"
