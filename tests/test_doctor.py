"""The doctor looks at whatever is there, and never fails."""

import importlib
import importlib.metadata
import json
import subprocess
import sys
import types

import pytest
import screen
import torch

from ddgan_fast import doctor
from ddgan_fast.cli import main


def row(name):
    return next(row for row in doctor.report() if row.name == name)


def test_reports_this_machine():
    rows = {row.name: row for row in doctor.report()}
    assert {"ddgan_fast", "python", "torch", "cuda", "triton", "csrc", "dali", "apex"} <= set(rows)
    assert {"scikit-learn", "matplotlib", "lmdb", "pyarrow"} <= set(rows)
    assert rows["python"].ok and rows["torch"].ok
    assert torch.__version__ in rows["torch"].value
    assert rows["cuda"].ok == torch.cuda.is_available()
    assert "compiled" in rows["csrc"].value


def test_prints_plain_text_where_there_is_no_terminal(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out and "upfirdn2d" in out and "chosen" in out
    assert "\x1b" not in out and out.isascii()


def test_in_a_terminal_nothing_is_taken_for_markup(monkeypatch):
    shown = screen.put(monkeypatch, "stdout", columns=200)
    monkeypatch.setattr(doctor, "_extras", lambda: [doctor.Row("x", False, "[demo] [/red]")])
    assert main(["doctor"]) == 0
    assert "[demo] [/red]" in shown.text() and "upfirdn2d" in shown.text()


def test_json(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"name", "ok", "value"} == set(report["machine"][0])
    assert {"op", "backend", "usable", "why_not", "chosen"} <= set(report["kernels"][0])
    ops = {row["op"] for row in report["kernels"]}
    assert {"upfirdn2d", "sample_posterior", "q_sample_pair", "bias_leaky_relu"} <= ops


def fake(monkeypatch, name, **attributes):
    module = types.ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_triton(monkeypatch):
    fake(monkeypatch, "triton", __version__="3.9.1")
    assert row("triton") == doctor.Row("triton", True, "3.9.1")


def test_missing_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not row("triton").ok
    assert row("triton").value.startswith("not installed")


def test_triton_that_breaks_on_import(monkeypatch):
    real = importlib.import_module

    def broken(name, *rest):
        if name == "triton":
            raise OSError("libtriton.so: cannot open shared object file")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", broken)
    assert row("triton").value == (
        "cannot be imported: OSError: libtriton.so: cannot open shared object file"
    )


def test_nvidia_apex(monkeypatch):
    optimizers = fake(monkeypatch, "apex.optimizers", FusedAdam=object)
    fake(monkeypatch, "apex", optimizers=optimizers)
    monkeypatch.setitem(sys.modules, "amp_C", None)
    assert not row("apex").ok and "without its CUDA extension" in row("apex").value
    fake(monkeypatch, "amp_C")
    assert row("apex").ok and row("apex").value.startswith("NVIDIA's")
    assert "optim.backend" in row("apex").value


def test_the_other_apex(monkeypatch):
    fake(monkeypatch, "apex")
    monkeypatch.setattr(
        doctor.importlib.metadata,
        "metadata",
        lambda name: {"Name": name, "Version": "0.9.10dev", "Summary": "Pyramid toolkit"},
    )
    assert not row("apex").ok
    for words in ("not NVIDIA's", "apex 0.9.10dev: Pyramid toolkit", "pip uninstall apex"):
        assert words in row("apex").value


def test_no_apex(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)
    real = importlib.import_module

    def missing(name, *rest):
        if name == "apex":
            raise ModuleNotFoundError("No module named 'apex'", name="apex")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert "not installed, and not needed" in row("apex").value


def test_dali(monkeypatch):
    nvidia = fake(monkeypatch, "nvidia")
    nvidia.dali = fake(monkeypatch, "nvidia.dali", __version__="2.4.0")
    assert row("dali").ok and row("dali").value.startswith("2.4.0")


def test_dali_that_breaks_on_import(monkeypatch):
    real = importlib.import_module

    def broken(name, *rest):
        if name == "nvidia.dali":
            raise OSError("libdali.so: cannot open shared object file")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", broken)
    words = "cannot be imported (OSError: libdali.so: cannot open shared object file)"
    assert not row("dali").ok and row("dali").value.startswith(words)


def test_missing_extras(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    found = {row.name: row for row in doctor._extras()}
    assert not any(row.ok for row in found.values())
    assert "digits need it: pip install 'ddgan_fast[demo]'" in found["scikit-learn"].value
    assert "'ddgan_fast[parquet]'" in found["pyarrow"].value


def test_a_driver_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: f"/bin/{name}")
    said = "NVIDIA-SMI has failed because\n it could not talk to the driver. " + "x" * 300

    def run(*command):
        return subprocess.CompletedProcess(command, 9, said, "")

    monkeypatch.setattr(doctor, "_run", run)
    (found,) = doctor._driver()
    assert not found.ok and len(found.value) < 250
    assert "NVIDIA-SMI has failed because it could not talk to the driver. x" in found.value


def test_no_nvcc(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: None)
    assert doctor._nvcc() == [doctor.Row("nvcc", False, "not found, and not needed")]


def test_gpus_and_driver(monkeypatch):
    gpu = types.SimpleNamespace(name="H200", total_memory=139 << 30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpu)
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: f"/bin/{name}")

    def run(*command):
        out = "release 13.0, V13" if "nvcc" in command[0] else "580.95\n580.95\n"
        return subprocess.CompletedProcess(command, 0, out, "")

    monkeypatch.setattr(doctor, "_run", run)
    assert row("cuda").value == "2 GPUs usable"
    assert row("cuda:1").value == "H200, 139 GiB, compute capability 9.0"
    assert row("driver") == doctor.Row("driver", True, "580.95")
    assert row("nvcc") == doctor.Row("nvcc", True, "13.0, /bin/nvcc")


@pytest.mark.parametrize(
    ("built_for", "driver", "hidden", "words"),
    [
        (None, None, None, "no GPU, and this torch is built for the CPU only"),
        (None, "/bin/nvidia-smi", None, "there is a driver: install a CUDA build"),
        ("13.0", "/bin/nvidia-smi", "", "CUDA_VISIBLE_DEVICES hides all GPUs"),
        ("13.0", None, None, "torch finds no usable GPU: RuntimeError: Found no NVIDIA driver"),
        ("13.0", None, "0", "torch finds no usable GPU"),
    ],
)
def test_why_there_is_no_cuda(monkeypatch, built_for, driver, hidden, words):
    def init():
        if hidden is None:
            raise RuntimeError("Found no NVIDIA driver on your system.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert words in doctor._why_no_cuda(torch)


def test_old_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.4.1+cpu")
    assert row("torch") == doctor.Row(
        "torch", False, "2.4.1+cpu is too old: 2.11 or newer is needed"
    )


def test_a_torch_for_amd_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4", raising=False)
    assert row("torch").value.endswith("ROCm 6.4")


def test_survives_anything(monkeypatch):
    def broken(*_):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(doctor, "_driver", broken)
    assert row("driver") == doctor.Row(
        "driver", False, "looking at it failed: RuntimeError: no such luck"
    )


def test_without_torch():
    """In a process where torch cannot be imported: one row says so, and the report goes on."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from ddgan_fast.cli import main; sys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install torch" in done.stdout and "scikit-learn" in done.stdout


def test_kernels_that_cannot_be_imported(monkeypatch, capsys):
    import ddgan_fast.kernels

    def broken():
        raise RuntimeError("no such luck")

    monkeypatch.setattr(ddgan_fast.kernels, "backend_report", broken)
    assert doctor.kernel_lines() == ["  none could be imported"]
    assert main(["doctor"]) == 0
    assert "Kernels" not in capsys.readouterr().out


def test_reasons_are_said_once():
    ops = [
        {
            "op": op,
            "backend": name,
            "usable": name == "torch",
            "chosen": name == "torch",
            "why_not": "" if name == "torch" else reason,
        }
        for op, reason in (("a", "no kernel"), ("b", "too old"))
        for name in ("cuda", "torch")
    ]
    headers, rows, notes = doctor.kernel_table(ops)
    assert headers == ("op", "cuda", "torch")
    assert rows == [("a", "-", "chosen"), ("b", "-", "chosen")]
    assert notes == ["  cuda: no kernel (a)", "  cuda: too old (b)"]


@pytest.mark.parametrize(
    ("compiler", "ok", "words"),
    [
        (None, False, "not needed: no nvcc"),
        ("/opt/nvcc", True, "or now by `python -m ddgan_fast.kernels`"),
    ],
)
def test_compiled_kernels(monkeypatch, tmp_path, compiler, ok, words):
    from ddgan_fast.kernels import _build

    monkeypatch.setattr(_build, "find_nvcc", lambda: compiler)
    monkeypatch.setattr(_build, "prebuilt", lambda: tmp_path / "library.so")
    monkeypatch.setattr(_build, "planned", lambda: (tmp_path / "cached.so", "90a"))
    (row,) = doctor._csrc()
    assert row.ok is ok and words in row.value
    (tmp_path / "library.so").touch()
    (row,) = doctor._csrc()
    assert row.ok and str(tmp_path) in row.value
