"""Which backend runs: choice, override, reasons, and who sees the choice."""

import importlib.util
import os
import subprocess
import sys
import threading

import pytest
import torch

from ddgan_fast.kernels import (
    _library,
    backend_report,
    bias_leaky_relu,
    registry,
    upfirdn2d,
    use_backend,
)

X = torch.ones(1, 2, 3, 3)


@pytest.fixture
def fake_backend(monkeypatch):
    """A backend "triton" of bias_leaky_relu that answers with fives; yields its settings."""
    settings = {"why_not": None, "accepts": None}
    table = {op: dict(backends) for op, backends in registry._table.items()}
    monkeypatch.setattr(registry, "_table", table)
    monkeypatch.setattr(registry, "_environment", "auto")
    monkeypatch.setattr(registry, "_environment_per_op", {})
    registry.register_backend(
        "bias_leaky_relu",
        "triton",
        lambda x, *_: torch.full_like(x, 5.0),
        why_not=lambda: settings["why_not"],
        accepts=lambda *args: settings["accepts"],
    )
    return settings


def runs_fake():
    return bool((bias_leaky_relu(X) == 5).all())


def test_every_op_has_the_torch_backend():
    assert set(registry._table) == set(_library.op_names)
    for backends in registry._table.values():
        assert backends["torch"].why_not() is None
        assert backends["torch"].accepts(X) is None


def test_a_forced_backend_runs_inside_the_block_only(fake_backend):
    assert not runs_fake()
    with use_backend("triton"):
        assert runs_fake()
        with use_backend("torch"):
            assert not runs_fake()
        assert runs_fake()
        with use_backend("auto"):
            assert not runs_fake(), "auto takes torch on the CPU"
    assert not runs_fake()


def test_the_choice_is_restored_after_an_exception(fake_backend):
    with pytest.raises(KeyError), use_backend("triton"):
        raise KeyError
    assert not runs_fake()
    with pytest.raises(ValueError), use_backend("nonsense"):
        pass
    assert not runs_fake()


def test_other_threads_see_the_choice(fake_backend):
    seen = []
    with use_backend("triton"):
        thread = threading.Thread(target=lambda: seen.append(runs_fake()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_a_forced_backend_that_cannot_run_says_why(fake_backend):
    fake_backend["why_not"] = "the moon is in the wrong phase"
    with use_backend("triton"):
        with pytest.raises(RuntimeError, match=r"'triton'.*bias_leaky_relu.*the wrong phase"):
            bias_leaky_relu(X)
        # Another op, without such a kernel at all.
        with pytest.raises(RuntimeError, match=r"'triton'.*upfirdn2d cannot use it: "):
            upfirdn2d(X, torch.ones(1))
    fake_backend["why_not"], fake_backend["accepts"] = None, "it takes bf16 only"
    with use_backend("triton"), pytest.raises(RuntimeError, match="it takes bf16 only"):
        bias_leaky_relu(X)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_cuda_cannot_be_forced_on_the_cpu():
    with use_backend("cuda"), pytest.raises(RuntimeError, match="backend 'cuda' was asked for"):
        bias_leaky_relu(X)


def test_backward_sees_the_choice(fake_backend):
    x = X.clone().requires_grad_()
    y = bias_leaky_relu(x)
    with use_backend("triton"), pytest.raises(RuntimeError, match="bias_leaky_relu_grad"):
        y.sum().backward()


def test_an_unknown_backend_is_refused():
    with (
        pytest.raises(ValueError, match="'metal': choose one of auto, cuda, triton, torch, induc"),
        use_backend("metal"),
    ):
        pass


def test_report(fake_backend):
    fake_backend["why_not"] = "no reason"
    rows = backend_report()
    assert len(rows) == len(_library.op_names) * 4
    assert {tuple(sorted(row)) for row in rows} == {
        ("backend", "chosen", "note", "op", "usable", "why_not")
    }
    for row in rows:
        assert row["usable"] == (not row["why_not"])
    for op in _library.op_names:
        assert [row["backend"] for row in rows if row["op"] == op and row["chosen"]] == ["torch"]
    row = next(r for r in rows if (r["op"], r["backend"]) == ("bias_leaky_relu", "triton"))
    assert row == {
        "op": "bias_leaky_relu",
        "backend": "triton",
        "usable": False,
        "why_not": "no reason",
        "note": "",
        "chosen": False,
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_environment_variables():
    """One for all ops, and one for each op, which goes first."""
    code = """
import torch
from ddgan_fast.kernels import bias_leaky_relu, upfirdn2d, use_backend
print(upfirdn2d(torch.ones(1, 1, 2, 2), torch.ones(1)).sum().item())
try:
    bias_leaky_relu(torch.ones(1, 1))
except RuntimeError as error:
    print(error)
with use_backend("torch"):
    print(bias_leaky_relu(torch.ones(1, 1)).item())
"""
    choices = {"DDGAN_FAST_BACKEND": "cuda", "DDGAN_FAST_BACKEND_UPFIRDN2D": "torch"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | choices, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "4.0" and lines[2] == "1.0"
    assert "backend 'cuda' was asked for, but bias_leaky_relu cannot use it: " in lines[1]


@pytest.mark.parametrize("variable", ["DDGAN_FAST_BACKEND", "DDGAN_FAST_BACKEND_UPFIRDN2D"])
def test_an_unknown_name_in_the_environment_is_refused(variable, monkeypatch):
    """On import; here a second copy of the module is executed."""
    monkeypatch.setenv(variable, "metal")
    name = f"{registry.__name__}_again"
    spec = importlib.util.spec_from_file_location(name, registry.__file__)
    copy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, copy)
    with pytest.raises(ValueError, match=f"{variable} is 'metal': choose one of auto, cuda"):
        spec.loader.exec_module(copy)
        copy.register_backend("upfirdn2d", "torch", lambda: None)


def run_with(**variables):
    program = (
        "import torch\n"
        "from ddgan_fast.kernels import bias_leaky_relu, use_backend\n"
        "x = torch.ones(1, 2, requires_grad=True)\n"
        "def attempt(f):\n"
        "    try:\n"
        "        f(); print('ran')\n"
        "    except RuntimeError:\n"
        "        print('refused')\n"
        "attempt(lambda: bias_leaky_relu(x))\n"
        "with use_backend('torch'):\n"
        "    attempt(lambda: bias_leaky_relu(x))\n"
        "    y = bias_leaky_relu(x)\n"
        "attempt(lambda: y.sum().backward())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def test_an_ops_variable_covers_its_adjoint_and_yields_to_a_with_block():
    done = run_with(DDGAN_FAST_BACKEND_BIAS_LEAKY_RELU="cuda")
    assert done.stdout.split() == ["refused", "ran", "refused"], done.stderr


def test_a_variable_of_no_op_is_refused():
    done = run_with(DDGAN_FAST_BACKEND_UPFIRDN="torch")
    assert done.returncode != 0
    assert "DDGAN_FAST_BACKEND_UPFIRDN names no op: the ops are ada_group_norm_silu" in done.stderr
