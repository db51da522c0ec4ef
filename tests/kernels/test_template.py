"""The op that does nothing: every property that the others have, too."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_helpers import DTYPES, LAYOUTS, laid_out, randn

from ddgan_fast.kernels.template.op import identity

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(2, 8, 4, 6), (3, 5, 3, 1), (1, 1, 1, 1)], ids=str)
def test_copies_every_number_in_its_order(size, layout, dtype):
    x = laid_out(randn(*size, dtype=dtype), layout)
    y = identity(x)
    assert torch.equal(y, x)
    assert y.data_ptr() != x.data_ptr()
    assert (y.dtype, y.stride()) == (dtype, torch.empty_like(x).stride())


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (2, 2, 3, 2, 3), (0, 4, 3, 3), (2, 3, 0, 2)])
def test_any_trailing_shape_and_none(shape):
    x = randn(*shape, dtype=torch.float32)
    assert torch.equal(identity(x), x)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_derivatives(layout):
    x = laid_out(randn(2, 3, 2, 4), layout).requires_grad_()
    assert torch.autograd.gradcheck(identity, x)
    assert torch.autograd.gradgradcheck(identity, x)


def test_gradient_of_an_expanded_gradient():
    x = randn(2, 3, 4, 4).requires_grad_()
    (g,) = torch.autograd.grad(identity(x).sum(), x)
    assert torch.equal(g, torch.ones_like(x))


def test_compiles_to_one_graph():
    torch._dynamo.reset()
    x = randn(2, 4, 6, 5).requires_grad_()
    compiled = torch.compile(identity, backend="aot_eager", fullgraph=True)
    (g,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(g, 2 * x)


@pytest.mark.parametrize("x", [torch.ones(3), torch.ones(2, 3, dtype=torch.int64)])
def test_errors_are_sentences(x):
    with pytest.raises(ValueError, match=r"^identity: x must be floating-point \[N, C, \.\.\.\]"):
        identity(x)


def test_users_do_not_meet_it():
    code = (
        "from ddgan_fast.kernels import backend_report\n"
        "print('identity' in {row['op'] for row in backend_report()})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr
