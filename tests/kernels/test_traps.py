"""What would give wrong results silently must not occur in the code, or must be refused."""

import ast
from pathlib import Path

import pytest
import torch

import ddgan_fast
import ddgan_fast.kernels
from ddgan_fast.kernels import q_sample_pair, sample_posterior, use_backend

KERNELS = Path(ddgan_fast.kernels.__file__).parent
PACKAGE = Path(ddgan_fast.__file__).parent
SEED, T = torch.tensor([123456789012345]), torch.tensor([0, 2])
TABLES = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))

DRAWING = {
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal",
    "bernoulli", "multinomial", "poisson", "dropout", "normal_", "uniform_", "random_",
    "bernoulli_", "exponential_",
}


def autograd_functions(code):
    """Classes that derive from torch.autograd.Function, under whatever name, and imports of it."""
    names = {"Function"}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.autograd"):
            names |= {a.asname or a.name for a in node.names if a.name == "Function"}
    return [
        node.name
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if ast.unparse(base).split(".")[-1] in names
    ]


def draws(code):
    """Calls that draw from torch's generator."""
    called = [node.func for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    names = [ast.unparse(function) for function in called]
    return [n for n in names if n.split(".")[-1] in DRAWING and not n.startswith("philox.")]


def test_no_autograd_function_anywhere():
    """torch.compile differentiates an autograd.Function twice to silently wrong numbers."""
    for base in ("Function", "torch.autograd.Function", "autograd.function.Function", "F"):
        code = f"from torch.autograd.function import Function as F\nclass A({base}): pass"
        assert autograd_functions(code) == ["A"]
    for path in (*KERNELS.rglob("*.py"), *PACKAGE.rglob("*.py")):
        assert not autograd_functions(path.read_text()), path


def test_a_step_draws_nothing_by_torchs_generator():
    """Compiled code would draw other numbers than eager code from the same state."""
    assert draws("torch.randint(3, (2,)); x.normal_(); F.dropout(x); philox.normal(s)") == [
        "torch.randint", "x.normal_", "F.dropout",
    ]
    inside = [PACKAGE / "diffusion.py", PACKAGE / "training/steps.py", *KERNELS.rglob("*.py")]
    for path in inside:
        assert not draws(path.read_text()), path


CALLS = {
    "posterior": lambda x, s: sample_posterior(x, x.sin(), T, TABLES[:, :3], seed=s),
    "pair": lambda x, s: torch.stack(q_sample_pair(x, T, TABLES, seed=s)),
}


@pytest.mark.parametrize("choice", ["auto", "inductor"])
@pytest.mark.parametrize("name", CALLS)
def test_compiled_code_draws_what_eager_code_draws(name, choice):
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    torch._dynamo.reset()
    with use_backend(choice):
        compiled = torch.compile(CALLS[name], backend="aot_eager", fullgraph=True)
        for seed in (SEED, SEED + 1):
            assert torch.equal(compiled(x, seed), CALLS[name](x, seed))
    torch._dynamo.reset()
    assert not torch.equal(CALLS[name](x, SEED), CALLS[name](x, SEED + 1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("seed", [7, 7.0, [7], torch.tensor([7], dtype=torch.int32)], ids=repr)
def test_a_seed_is_a_tensor(name, seed):
    """A captured CUDA graph would replay a Python number for ever: the same noise in every step."""
    with pytest.raises(ValueError, match=r"seed must be int64\[1\]"):
        CALLS[name](torch.zeros(2, 3, 4, 5), seed)
