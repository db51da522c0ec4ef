"""The Triton kernels as machine code: spills, width of loads, instructions per number.

Compiled without a GPU, at the tiles and specialisations of real launches.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_op_registration import _library  # with the op that only tests import

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
ARCHITECTURES = [
    (90, "all"),
    *((arch, "main") for arch in (80, 100, 120)),
    *(pytest.param(arch, "all", marks=pytest.mark.slow) for arch in (80, 100, 120)),
]

# Instructions per number that the hot part stores (or loads, where it stores nothing): bfloat16,
# channels_last, sm_90 as compiled by Triton 3.6, plus a tenth. For comparison: at 4.3 TB/s and 4
# bytes per number a 132-core GPU has about 28 to spend, for FIR downsampling (10 bytes) about 70.
BUDGETS = {
    ("identity", "identity_kernel"): 5.3,
    ("upfirdn2d down", "down2"): 33.5,
    ("upfirdn2d up", "up2"): 8.3,
    ("upfirdn2d same", "same"): 18.6,
    ("bias_leaky_relu", "act_kernel"): 11.1,
    ("bias_leaky_relu without bias", "flat_kernel"): 6.1,
    ("bias_leaky_relu_grad", "flat_kernel"): 8.0,
    ("bias_leaky_relu_down", "down2"): 53.0,
    ("bias_leaky_relu_down_tangent", "down2"): 65.6,
    ("bias_leaky_relu_down_grad", "up2"): 12.9,
    ("ada_group_norm_silu", "moments"): 8.3,
    ("ada_group_norm_silu", "combine_moments"): 49.0,
    ("ada_group_norm_silu", "apply"): 20.8,
    ("ada_group_norm_silu_backward", "backward_sums"): 13.9,
    ("ada_group_norm_silu_backward", "combine_sums"): 46.8,
    ("ada_group_norm_silu_backward", "backward_apply"): 28.5,
    ("ada_group_norm_silu_resample down", "moments"): 8.3,
    ("ada_group_norm_silu_resample down", "combine_moments"): 49.0,
    ("ada_group_norm_silu_resample down", "down2"): 46.2,
    ("ada_group_norm_silu_resample_backward", "sums"): 16.0,
    ("ada_group_norm_silu_resample_backward", "combine_sums"): 46.8,
    ("ada_group_norm_silu_resample_backward", "write"): 30.8,
    ("ada_group_norm_silu_resample up", "moments"): 8.3,
    ("ada_group_norm_silu_resample up", "combine_moments"): 49.0,
    ("ada_group_norm_silu_resample up", "up2"): 11.4,
    ("sample_posterior", "posterior_kernel"): 98.5,
    ("q_sample_pair", "pair_kernel"): 85.4,
}
DRAWN = ("posterior_kernel", "pair_kernel")
# Other instruction sets need a little more here and there.
ELSEWHERE = 1.3


@cache
def compiled(arch, layout, which):
    """One row of counts per kernel."""
    return [json.loads(line) for line in output(str(arch), layout, which).splitlines()]


def output(*arguments):
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    outside = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as cache:
        result = subprocess.run(
            [sys.executable, str(HERE / "triton_aot.py"), *arguments],
            cwd=HERE.parents[1],
            env=outside | {"PYTHONPATH": path, "TRITON_CACHE_DIR": cache},
            capture_output=True,
            text=True,
        )
    assert result.returncode == 0, result.stderr
    return result.stdout


def per_number(row):
    size = 4 if row["kernel"] in DRAWN else 2
    return row["hot"] * size / (row["stored"] or row["loaded"])


@pytest.mark.parametrize(("arch", "which"), ARCHITECTURES)
def test_channels_last_is_fast(arch, which):
    rows = compiled(arch, "nhwc", which)
    found = {(row["case"], row["kernel"]) for row in rows}
    assert found == set(BUDGETS) if which == "all" else found < set(BUDGETS)
    assert {case.split()[0] for case, _ in found} == set(_library.op_names), "every op is here"
    for row in rows:
        budget = BUDGETS[row["case"], row["kernel"]] * (1 if arch == 90 else ELSEWHERE)
        assert row["spills"] == 0, row
        assert per_number(row) <= budget, (per_number(row), row)
        if not (row["small"] or row["kernel"] in DRAWN):
            # All but a bias are 128 bits wide.
            assert row["wide_loads"] >= max(row["loads"] - 1, 1), row
            assert row["wide_stores"] == row["stores"], row


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_channels_first_does_not_spill_in_its_loops(arch):
    rows = compiled(arch, "nchw", "all")
    assert {(row["case"], row["kernel"]) for row in rows} == set(BUDGETS)
    assert all(row["hot_spills"] == 0 for row in rows)


@pytest.mark.slow
def test_the_smallest_tensors_and_float64_compile():
    assert int(output("edges")) > 30


def test_results_are_rounded_to_the_nearest():
    """The interpreter truncates bfloat16; machine code must not."""
    # A copy needs no rounding, and its compiler knows.
    without = (*DRAWN, "identity_kernel")
    rows = [r for r in compiled(90, "nhwc", "all") if not (r["small"] or r["kernel"] in without)]
    for row in rows:
        packs = row["packs"]
        assert bool(packs) == bool(row["stores"]), row
        assert not any(re.search(r"\.R[ZMP]\b", pack) for pack in packs), packs


# What Triton's interpreter runs without complaint or not at all, so that its tests would mislead.
AVOIDED = {
    r"tl\.atomic": "sums would differ from run to run, and the interpreter knows one order only",
    r"\bmake_block_ptr\b": "later versions of Triton lack it",
    r"\blibdevice\b|inline_asm": "the interpreter cannot run it",
    r"triton\.autotune": "it needs a device, so that the interpreter cannot run it",
}


@pytest.mark.parametrize("pattern", AVOIDED)
def test_kernels_do_without(pattern):
    for path in sorted((HERE.parents[1] / "kernels").rglob("triton*.py")):
        assert not re.search(pattern, path.read_text()), f"{path.name}: {AVOIDED[pattern]}"


def test_every_launch_says_whether_products_and_sums_fuse():
    """The default changes between versions of Triton."""
    for path in sorted((HERE.parents[1] / "kernels").rglob("triton_impl.py")):
        code = path.read_text()
        assert code.count("num_warps=") == code.count("enable_fp_fusion="), path
        assert code.count('"num_warps":') == code.count('"enable_fp_fusion":'), path
        assert "enable_fp_fusion" in code, path


def test_what_is_loaded_is_widened_at_once():
    """Arithmetic in bfloat16 is garbage in the interpreter, without a message."""
    # Integers, float32 statistics, and what a helper widens for its caller.
    narrow = re.compile(
        r"tl\.load\((?:index|t|flip|seed|means|squares|da|product)_ptr|_ptr \+ n \* groups|"
        r"tl\.load\(ptr \+ n \* groups"
    )
    found = 0
    for path in sorted((HERE.parents[1] / "kernels").rglob("triton*.py")):
        for line in path.read_text().splitlines():
            if "tl.load(" in line and not narrow.search(line):
                found += 1
                assert ").to(" in line, f"{path.name}: {line.strip()}"
    assert found > 15
