"""What "auto" takes on CUDA tensors: the measured table, and what it says about it."""

import ast
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from ddgan_fast.kernels import (
    backend_report,
    bias_leaky_relu,
    measured,
    preference,
    registry,
    use_backend,
)

LARGE = ("bias_leaky_relu", "bfloat16", "channels_last", "large")


@pytest.fixture
def backends(monkeypatch):
    """All three backends of bias_leaky_relu, each by its name; yields why which cannot run."""
    reasons = {"cuda": None, "triton": None, "accepts triton": None}
    table = {
        name: registry.Backend(
            name,
            lambda name=name: reasons.get(name),
            lambda *args, name=name: reasons.get(f"accepts {name}"),
        )
        for name in registry.BACKENDS
    }
    monkeypatch.setattr(registry, "_table", {"bias_leaky_relu": table})
    monkeypatch.setattr(registry, "_environment", "auto")
    monkeypatch.setattr(registry, "_environment_per_op", {})
    monkeypatch.setattr(registry, "_announced", False)
    monkeypatch.delenv("RANK", raising=False)
    return reasons


@pytest.fixture
def table(monkeypatch):
    """A measured table with one entry."""
    monkeypatch.setattr(measured, "TABLE", {LARGE: ("triton", "cuda", "torch")})
    monkeypatch.setattr(measured, "SOURCE", "some GPU, results.json")


def on_cuda(*shape, dtype=torch.bfloat16, order=torch.channels_last):
    """A tensor without data: choosing a backend must not need any."""
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda", memory_format=order)


def chosen(*tensors):
    return registry.select("bias_leaky_relu", (*tensors, None, 0.2, 1.0))


def test_without_a_measurement_torch_runs(backends):
    assert measured.TABLE == {} and preference.AUTOMATIC == ("torch",)
    assert chosen(on_cuda(32, 128, 256, 256)) == "torch"


def test_the_table_decides_by_kind_of_tensors(backends, table):
    assert chosen(on_cuda(32, 128, 256, 256)) == "triton"
    assert chosen(on_cuda(2, 128, 256, 256)) == "torch"
    assert chosen(on_cuda(32, 128, 256, 256, dtype=torch.float16)) == "torch"
    assert chosen(on_cuda(32, 128, 256, 256, order=torch.contiguous_format)) == "torch"
    assert chosen(torch.empty(1, device="meta").expand(32, 128, 256, 256)) == "torch", "no GPU"
    # An adjoint's first argument may be a quarter of the image it belongs to.
    assert chosen(on_cuda(8, 128, 128, 128), on_cuda(8, 128, 256, 256)) == "triton"


def test_the_next_one_runs_where_the_first_cannot(backends, table):
    x = on_cuda(32, 128, 256, 256)
    backends["accepts triton"] = "not for these"
    assert chosen(x) == "cuda"
    backends["cuda"] = "no nvcc"
    assert chosen(x) == "torch"


def test_asking_by_name_goes_first(backends, table):
    x = on_cuda(32, 128, 256, 256)
    with use_backend("cuda"):
        assert chosen(x) == "cuda"
    with use_backend("inductor"):
        assert chosen(x) == "triton"
    backends["cuda"] = "no nvcc"
    with use_backend("cuda"), pytest.raises(RuntimeError, match="no nvcc"):
        chosen(x)


@pytest.mark.parametrize(("size", "name"), [
    (0, "small"), (2**22 - 1, "small"), (2**22, "medium"), (2**26 - 1, "medium"), (2**26, "large"),
])
def test_sizes(size, name):
    assert preference.key("op", torch.float32, False, size) == ("op", "float32", "contiguous", name)


def test_the_choice_is_announced_once(backends, table, capsys):
    for _ in range(2):
        chosen(torch.empty(1))
    assert capsys.readouterr().err == "", "nothing to say about CPUs"
    for _ in range(2):
        chosen(on_cuda(2, 2, 2, 2))
    assert capsys.readouterr().err == (
        "ddgan_fast: automatic choice of kernels: the fastest of cuda, triton, torch "
        "(some GPU, results.json).\n"
    )


def test_the_announcement_without_a_measurement(backends, capsys):
    chosen(on_cuda(2, 2, 2, 2))
    (line,) = capsys.readouterr().err.splitlines()
    assert "torch (the others are not measured yet: DDGAN_FAST_BACKEND=cuda or triton" in line


def test_other_ranks_and_choices_by_name_are_silent(backends, monkeypatch, capsys):
    with use_backend("cuda"):
        chosen(on_cuda(2, 2, 2, 2))
    monkeypatch.setenv("RANK", "3")
    chosen(on_cuda(2, 2, 2, 2))
    assert capsys.readouterr().err == ""


def test_tracing_chooses_and_says_nothing(monkeypatch, capsys):
    def never(*_):
        raise AssertionError("a backend was chosen while tracing")

    monkeypatch.setattr("ddgan_fast.kernels._library.select", never)
    with FakeTensorMode():
        bias_leaky_relu(torch.empty(2, 2, device="cuda"))
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return lambda *values: values

    torch._dynamo.reset()
    torch.compile(bias_leaky_relu, backend=backend, fullgraph=True)(torch.ones(2, 2))
    torch._dynamo.reset()
    assert traced and capsys.readouterr().err == ""


def test_the_report_names_what_leads(backends, table, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def leader():
        return [r["backend"] for r in backend_report() if r["chosen"]]

    assert leader() == ["triton"]
    backends["triton"] = "not installed"
    assert leader() == ["cuda"]
    monkeypatch.setattr(measured, "TABLE", {})
    assert leader() == ["torch"]


def test_the_table_holds_known_names():
    """Whatever was measured last."""
    ops = registry._table
    for (op, dtype, layout, size), names in measured.TABLE.items():
        assert op in ops and isinstance(getattr(torch, dtype), torch.dtype)
        assert layout in ("channels_last", "contiguous") and size in ("small", "medium", "large")
        assert set(names) <= set(registry.BACKENDS) and names[-1] == "torch"
    assert set(measured.DECOMPOSED) <= set(registry._decomposed)
    assert bool(measured.SOURCE) == bool(measured.TABLE)
    ast.parse(Path(measured.__file__).read_text())
