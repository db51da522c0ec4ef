"""The Triton kernels on the CPU, in Triton's interpreter: forward, backward, double backward.

Triton reads TRITON_INTERPRET when it sees a kernel, so these tests run in processes of their own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

OPS = sorted(path.parent.name for path in (HERE.parents[1] / "kernels").glob("*/op.py"))

# Equal to the last bit in one backend only, or hours of loops in the interpreter.
LEFT_OUT = "gradcheck or 16x or noise_from_a_seed or bytes_are_scaled"


def run(*arguments, **environment):
    """pytest with these arguments in the interpreter; fails with its output."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    # Tracing for coverage would make the interpreter many times slower.
    theirs = ("PYTEST_", "COVERAGE_")
    outside = {k: v for k, v in os.environ.items() if not k.startswith(theirs)}
    result = subprocess.run(
        [*command, *arguments],
        cwd=HERE.parents[1],
        env=outside | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


@pytest.mark.parametrize(
    "which",
    [
        "agrees and channels_last and float32",
        "not agrees and not larger",
        pytest.param("agrees and nchw and float32", marks=pytest.mark.slow),
        pytest.param("agrees and not float32 and channels_last", marks=pytest.mark.slow),
        pytest.param("agrees and not float32 and nchw", marks=pytest.mark.slow),
        pytest.param("larger", marks=pytest.mark.slow),
    ],
)
def test_agrees_with_torch(which):
    run(str(HERE / "triton_interpreted.py"), "-k", which)


@pytest.mark.slow
@pytest.mark.parametrize("module", OPS)
def test_passes_the_tests_of_the_torch_backend(module):
    file = str(HERE / f"test_{module}.py")
    run(file, "-k", f"not ({LEFT_OUT})", DDGAN_FAST_BACKEND="triton")


@pytest.mark.slow
def test_is_a_well_behaved_op():
    file = str(HERE / "test_op_registration.py")
    run(file, "-k", "not any_size", DDGAN_FAST_BACKEND="triton")


def test_importing_the_ops_does_not_import_triton():
    code = "import sys, ddgan_fast.kernels; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parents[1])
