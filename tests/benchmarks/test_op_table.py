"""The README on the ops: its table says what the code and the results say, its snippet runs."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import op_table, readme
from benchmarks.kernel_cases import OPS, PASSES
from ddgan_fast import kernels

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_readme_is_up_to_date():
    wanted = readme.renewed(
        README, op_table.BEGIN, op_table.END, op_table.table(ROOT / "benchmarks/results")
    )
    assert wanted == README, "run: python -m benchmarks.op_table"


def test_every_public_op_has_a_row():
    written = README.split(op_table.BEGIN)[1].split(op_table.END)[0]
    rows = re.findall(r"^\| `(\w+)` \|", written, re.MULTILINE)
    assert rows == sorted(set(kernels.__all__) - {"use_backend", "backend_report"})


def test_the_snippet_runs():
    part = README.split("## The ops alone")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def write(folder, name, provider, *, gpu, agrees, inside=True):
    machine = {"gpu": gpu}
    rows = [{"op": "upfirdn2d", "provider": provider, "agrees": a} for a in agrees]
    if inside:
        content = {"rows": [row | {"machine": machine} for row in rows]}
    else:
        content = {"environment": {"machine": machine}, "rows": rows}
    (folder / name).write_text(json.dumps(content))


def cells(folder):
    lines = op_table.table(folder).splitlines()
    (line,) = (line for line in lines if line.startswith("| `upfirdn2d`"))
    return line.strip("| ").split(" | ")[-3:]


def test_where_an_op_ran_comes_from_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(op_table, "public_ops", lambda: ["upfirdn2d"])
    never = op_table.NEVER
    assert cells(tmp_path) == [f"CPU, {never}", never, never]
    write(tmp_path, "cpu.json", "triton", gpu=None, agrees=[True])
    write(tmp_path, "other.json", "grouped_conv", gpu="NVIDIA H200", agrees=[True])
    assert cells(tmp_path) == [f"CPU, {never}", never, never]
    write(tmp_path, "kernels.json", "triton", gpu="NVIDIA H200", agrees=[True, True])
    write(tmp_path, "suite.json", "cuda", gpu="NVIDIA H200", agrees=[True, False], inside=False)
    write(tmp_path, "torch.json", "torch", gpu="NVIDIA H200", agrees=[True], inside=False)
    failed = "H200 (1 of 2 checks failed)"
    assert cells(tmp_path) == ["CPU, H200", "H200", failed]


def test_orders_and_dtypes_are_found_out(monkeypatch):
    op = OPS["fir_down"]
    assert op_table.gradient_orders(op) == "any"
    assert op_table.own_passes(op) == ["forward", "backward", "double backward"]
    assert op_table.dtypes(op, "cuda") == ["fp64", "fp32", "fp16", "bf16"]

    def accepts(x, *_):
        return None if x.dtype == torch.bfloat16 and x.is_cuda else "bfloat16 on GPUs only"

    backends = kernels.registry._table["upfirdn2d"]
    monkeypatch.setitem(backends, "cuda", dataclasses.replace(backends["cuda"], accepts=accepts))
    assert op_table.dtypes(op, "cuda") == ["bf16"]


def test_a_missing_case_and_missing_markers_are_named():
    with pytest.raises(ValueError, match="op nonesuch has no case: add one to OPS"):
        op_table.variants("nonesuch")
    with pytest.raises(ValueError, match=r"README\.md must have the lines"):
        readme.renewed("# nothing", op_table.BEGIN, op_table.END, "")


def test_the_entry_points_of_pytest_benchmark_run():
    command = [sys.executable, "-m", "pytest", "benchmarks/", "--benchmark-only", "-q"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", "-k", "fir_down and fp32 and forward"]
    # What xdist tells its workers would turn the benchmarks off.
    env = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout and "grouped_conv" in done.stdout


def test_the_bytes_in_the_kernels_readme_are_those_of_the_cases():
    text = (ROOT / "kernels/README.md").read_text()
    number = r" ([\d.-]+) \|"
    rows = re.findall(r"^\| `(\w+)`(?: \(.*\))? \|" + 3 * number + "$", text, re.MULTILINE)
    said = {name: [None if v == "-" else float(v) for v in values] for name, *values in rows}
    assert said == {name: [op.passes.get(p) for p in PASSES] for name, op in OPS.items()}


def test_what_the_kernels_readme_names_exists():
    text = (ROOT / "kernels/README.md").read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link.startswith("https://") or (ROOT / "kernels" / link).is_file(), link
    tests = "".join(path.read_text() for path in (ROOT / "tests/kernels").glob("*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 10
    for test in named:
        assert f"def {test}(" in tests, test
