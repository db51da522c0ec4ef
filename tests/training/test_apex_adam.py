"""NVIDIA's apex is recognised, refused with a reason, and used without losing a step.

Apex works on GPUs only, so stand-ins take its place: packages on sys.path with what it defines.
"""

import importlib
import sys
import textwrap

import pytest
import torch
from torch import nn

from ddgan_fast.training import apex_adam
from ddgan_fast.training.guard import step_unless
from ddgan_fast.training.optim import (
    adam_state,
    adam_tensors,
    load_adam_state,
    make_adam,
    set_rate,
)

# As documented: one step count per group; the capturable kind asks a GradScaler whether to skip,
# and counts a step by the verdict on the one before.
FUSED_ADAM = """
import torch


class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8,
                 adam_w_mode=True, weight_decay=0.0, amsgrad=False, set_grad_none=True{more}):
        lr = torch.tensor(lr, dtype=torch.float32) if {capturable} else lr
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        assert not adam_w_mode
        self.capturable = {capturable}
        self._dummy_overflow_buf = torch.zeros(1, dtype=torch.int32)

    @torch.no_grad()
    def step(self, closure=None, grad_scaler=None):
        for group in self.param_groups:
            if "step" in group:
                group["step"] += (
                    (self._dummy_overflow_buf != 1).to(torch.int) if self.capturable else 1
                )
            else:
                group["step"] = torch.ones(1, dtype=torch.int) if self.capturable else 1
            if self.capturable:
                verdict = grad_scaler._check_inf_per_device(self)[torch.device("cpu")]
                self._dummy_overflow_buf.copy_(verdict)
                assert grad_scaler._get_scale_async().double().reciprocal().item() == 1
            (b1, b2), rate, step = group["betas"], float(group["lr"]), float(group["step"])
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                if self._dummy_overflow_buf.item() == 1:
                    continue
                m, v = state["exp_avg"], state["exp_avg_sq"]
                m.mul_(b1).add_(p.grad, alpha=1 - b1)
                v.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                p.sub_(rate * (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + group["eps"]))
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Writes packages that can then be imported; returns the writer."""
    ours = ("apex", "amp_C")

    def forget():
        for name in [n for n in sys.modules if n.partition(".")[0] in ours]:
            del sys.modules[name]

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        forget()

    forget()
    monkeypatch.syspath_prepend(tmp_path)
    yield write
    forget()


def apex(capturable=True):
    text = FUSED_ADAM.replace("{more}", ", capturable=False" if capturable else "")
    return {
        "apex/__init__.py": "",
        "apex/optimizers/__init__.py": text.replace("{capturable}", str(capturable)),
        "amp_C.py": "",
    }


def parameters():
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=random)) for s in ((3, 4), (5,), ())]


def make(backend, rate_on_device=False, values=None):
    values = values or parameters()
    return values, make_adam(
        values, 3e-2, (0.5, 0.9), 1e-8, backend, rate_on_device=rate_on_device
    )


def take_steps(values, optimizer, steps, skipped=()):
    for step in steps:
        random = torch.Generator().manual_seed(step)
        for p in values:
            p.grad = torch.randn(p.shape, generator=random)
        set_rate(optimizer, 3e-2 / (1 + step))
        step_unless(optimizer, torch.tensor(float(step in skipped)))


def assert_equal(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def refusal(**options):
    with pytest.raises(RuntimeError) as caught:
        make("apex", **options)
    text = str(caught.value)
    assert text.startswith('optim.backend is "apex", but') and 'optim.backend to "torch"' in text
    return text


def test_absent(packages, monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)
    assert apex_adam.why_not() == apex_adam.ABSENT
    assert "not installed" in refusal()


@pytest.mark.parametrize(
    "files",
    [
        {"apex/__init__.py": "import pyramid_of_no_such_name"},
        {"apex/__init__.py": ""},
        {"apex/__init__.py": "", "apex/optimizers.py": ""},
    ],
    ids=["cannot be imported", "no optimizers", "no FusedAdam"],
)
def test_another_project_of_that_name(packages, files, monkeypatch):
    packages(files)
    about = {"Name": "apex", "Version": "0.9.10dev", "Summary": "Toolkit for Pyramid"}
    monkeypatch.setattr(apex_adam.importlib.metadata, "metadata", lambda name: about)
    for words in ("not NVIDIA's", "apex 0.9.10dev: Toolkit for Pyramid", "pip uninstall apex"):
        assert words in refusal()


def test_without_its_extension(packages, monkeypatch):
    packages(apex())
    monkeypatch.setitem(sys.modules, "amp_C", None)
    assert "without its CUDA extension amp_C" in refusal()


def test_an_extension_that_does_not_load(packages):
    packages(apex() | {"amp_C.py": "raise ImportError('libc10.so: undefined symbol: x')"})
    assert "undefined symbol: x" in refusal()


def test_broken(packages):
    packages(apex() | {"apex/__init__.py": "raise OSError('libcudart.so.12 is missing')"})
    assert "libcudart.so.12 is missing" in refusal()
    broken = {"apex/optimizers/__init__.py": "raise OSError('libcublas.so.12 is missing')"}
    packages(apex() | broken)
    found = refusal()
    assert "apex.optimizers cannot be imported" in found and "libcublas.so.12 is missing" in found


def test_on_a_cpu(packages):
    packages(apex())
    assert apex_adam.why_not() is None
    assert "on GPUs only, and this run is on cpu" in refusal()


@pytest.fixture(params=["capturable", "plain"])
def usable(packages, monkeypatch, request):
    """Apex on a CPU, where the real one does not work."""
    packages(apex(request.param == "capturable"))
    monkeypatch.setattr(apex_adam, "why_not", lambda device=None: None)
    return request.param


def test_skipped_steps_leave_no_trace(usable):
    skipped = (0, 3, 4, 7)
    (ours, optimizer), (theirs, other) = make("torch"), make("apex")
    assert apex_adam.is_apex(other) and not apex_adam.is_apex(optimizer)
    assert apex_adam.skips_on_device(other) == (usable == "capturable")
    for step in range(9):
        take_steps(ours, optimizer, [step], skipped)
        take_steps(theirs, other, [step], skipped)
        assert_equal(theirs, ours)
    counts = {float(s["step"]) for s in adam_state(other)["state"].values()}
    assert counts == {5.0}


@pytest.mark.parametrize("way", [("torch", "apex"), ("apex", "torch"), ("loop", "apex")])
@pytest.mark.parametrize("skipped", [(), (3,)], ids=["", "after a skipped step"])
def test_going_on_with_another_adam(usable, way, skipped):
    whole, optimizer = make(way[0])
    take_steps(whole, optimizer, range(8), skipped)
    first, optimizer = make(way[0])
    take_steps(first, optimizer, range(4), skipped)
    saved = adam_state(optimizer)
    assert {"step", "exp_avg", "exp_avg_sq"} == set(saved["state"][0])
    assert all("step" not in group for group in saved["param_groups"])
    second, optimizer = make(way[1], values=[nn.Parameter(p.detach().clone()) for p in first])
    load_adam_state(optimizer, saved)
    take_steps(second, optimizer, range(4, 8), skipped)
    assert_equal(second, whole)


def test_old_apex_is_refused_for_graphs(packages, monkeypatch):
    packages(apex(capturable=False))
    monkeypatch.setattr(apex_adam, "why_not", lambda device=None: None)
    assert "too old for CUDA graphs" in refusal(rate_on_device=True)


def test_the_rate_and_the_count_stay_the_same_tensors(packages, monkeypatch):
    packages(apex())
    monkeypatch.setattr(apex_adam, "why_not", lambda device=None: None)
    values, optimizer = make("apex", rate_on_device=True)
    group = optimizer.param_groups[0]
    rate, count = group["lr"], group["step"]
    take_steps(values, optimizer, range(3), (1,))
    load_adam_state(optimizer, adam_state(optimizer))
    assert group["lr"] is rate and group["step"] is count and count.item() == 2
    assert rate.item() == pytest.approx(3e-2 / 3)
    assert any(tensor is count for tensor in adam_tensors(optimizer))
    assert len(adam_tensors(optimizer)) == 1 + 2 * len(values)
