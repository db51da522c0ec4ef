"""The GPU suite at toy size: what it writes, and what is left when something breaks."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ddgan_fast.benchmarks import (
    gpu_networks,
    gpu_parts,
    gpu_suite,
    kernel_bench,
    kernel_cases,
)
from ddgan_fast.benchmarks.gpu_units import DEVICE_LOST, Child, read
from ddgan_fast.benchmarks.kernel_timing import Clock

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COMMAND = [sys.executable, "-m", "benchmarks.gpu_suite", "--device", "cpu", "--tiny"]


def suite(tmp_path, *arguments):
    done = subprocess.run(
        [*COMMAND, "--out", str(tmp_path / "out"), *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )
    return done, json.loads((tmp_path / "out" / "results.json").read_text())


def status(results):
    return {part["name"]: part["status"] for part in results["parts"]}


def child(tmp_path, part="kernels"):
    return Child(part, tmp_path / "records.jsonl", "cpu", True, time.monotonic() + 100,
                 tmp_path, tmp_path)


def statuses(one):
    return {r["unit"]: r["status"] for r in read(one.records) if "status" in r}


@pytest.mark.slow
def test_parts_write_their_rows(tmp_path):
    done, results = suite(tmp_path, "--parts", "env,kernels,step")
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "log.txt").read_text()
    assert status(results) == {"env": "ok", "kernels": "ok", "step": "ok"}
    assert {"machine", "versions"} <= results["environment"].keys()
    kernels = [row for row in results["rows"] if row["part"] == "kernels"]
    assert {row["variant"] for row in kernels} == set(kernel_cases.OPS)
    assert all(row["agrees"] for row in kernels)
    ours = [row for row in kernels if row["provider"] == "torch"]
    assert ours
    for row in ours:
        assert row["us_p20"] <= row["us_p50"] <= row["us_p80"]
        assert row["gb_s"] == pytest.approx(row["bytes_min"] / row["us_p50"] / 1e3, rel=1e-3)
        assert "eager" in row["speedup"]
    steps = [row for row in results["rows"] if row["part"] == "step"]
    assert [row["provider"] for row in steps] == ["eager, torch", "recipe", "recipe_fp32"]
    assert steps[0]["speedup"].keys() == {"recipe", "recipe_fp32"}


@pytest.mark.slow
def test_a_failing_unit_is_reported_and_the_others_run(tmp_path):
    done, results = suite(tmp_path, "--parts", "env,sanitizer", "--break-unit", "machine")
    assert done.returncode == 1
    assert status(results) == {"env": "failed", "sanitizer": "ok"}
    env = results["parts"][0]
    assert env["units"] == {"machine": "failed", "rates": "ok"}
    assert "broken on purpose" in env["errors"]["machine"][-1]
    assert [row["case"] for row in results["rows"] if row["part"] == "env"] == ["rates"]


@pytest.mark.slow
def test_killed_in_between_leaves_the_finished_parts(tmp_path):
    file = tmp_path / "out" / "results.json"
    process = subprocess.Popen(
        [*COMMAND, "--out", str(file.parent), "--parts", "env,step"], cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 200
        while time.monotonic() < until and process.poll() is None:
            if file.exists() and status(json.loads(file.read_text()))["env"] == "ok":
                break
            time.sleep(0.1)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    results = json.loads(file.read_text())
    assert status(results)["env"] == "ok"
    assert status(results)["step"] != "ok"
    assert [row["part"] for row in results["rows"]] == ["env"]


def test_parts_import_nothing_that_gpu_machines_lack(tmp_path):
    code = (
        "import sys\n"
        "for name in ('jsonargparse', 'lmdb', 'rich'): sys.modules[name] = None\n"
        "import ddgan_fast.training.trainer, benchmarks.gpu_networks, benchmarks.kernel_bench\n"
        "import benchmarks.gpu_loader, benchmarks.gpu_stacked\n"
        "from benchmarks.gpu_suite import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--out", str(tmp_path), "--run-part", "env", "--records",
         str(tmp_path / "env.jsonl"), "--limit", "60", "--device", "cpu", "--tiny"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert '"status": "ok"' in (tmp_path / "env.jsonl").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert gpu_suite.main(["--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().out
    assert "no CUDA device" in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unknown_part(tmp_path, capsys):
    assert gpu_suite.main(["--out", str(tmp_path), "--parts", "env,kernel"]) == 2
    assert "'kernel'" in capsys.readouterr().out


def test_a_unit_that_raises_does_not_stop_the_next(tmp_path):
    one = child(tmp_path)

    def fail():
        raise ValueError("no")

    assert one.run([("a", fail), ("b", lambda: one.row(x=1))]) == 0
    assert statuses(one) == {"a": "failed", "b": "ok"}
    assert [r["row"]["x"] for r in read(one.records) if "row" in r] == [1]


def test_what_killed_a_process_is_left_out_by_the_next(tmp_path):
    first = child(tmp_path)
    for record in (
        {"process": 1},
        {"unit": "a", "status": "begun"}, {"trying": ["op", "torch"]},
        {"unit": "a", "status": "ok"},
        {"unit": "b", "status": "begun"}, {"trying": ["op", "torch"]}, {"trying": ["op", "cuda"]},
    ):
        first.write(record)
    second = child(tmp_path)
    ran, left_out = [], []

    def unit(name):
        def run():
            ran.append(name)
            left_out.append(second.poison())

        return name, run

    assert second.run([unit("a"), unit("b"), unit("c")]) == 0
    assert ran == ["b", "c"]
    assert left_out == [{("op", "cuda")}] * 2
    assert statuses(second)["crash: op cuda"] == "crashed"
    assert statuses(second)["b"] == "ok"


def test_a_unit_that_kills_without_a_culprit_is_not_run_again(tmp_path):
    child(tmp_path).write({"process": 1})
    child(tmp_path).write({"unit": "a", "status": "begun"})
    one = child(tmp_path)
    assert one.run([("a", lambda: pytest.fail("ran again")), ("b", lambda: None)]) == 0
    assert statuses(one) == {"a": "crashed", "b": "ok"}


def test_a_lost_device_ends_the_process(tmp_path, monkeypatch):
    one = child(tmp_path)
    monkeypatch.setattr(Child, "_lost", lambda self, error: True)

    def fail():
        one.trying("op", "cuda")
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert one.run([("a", fail), ("b", lambda: pytest.fail("ran on a lost device"))]) == DEVICE_LOST
    again = child(tmp_path)
    assert again.run([("a", lambda: None), ("b", lambda: None)]) == 0
    errors = [r["error"] for r in read(one.records) if r.get("status") == "crashed"]
    assert len(errors) == 1
    assert "illegal memory access" in errors[0][-1]


def test_no_unit_begins_after_the_limit(tmp_path):
    one = dataclasses.replace(child(tmp_path), deadline=time.monotonic() - 1)
    assert one.run([("a", lambda: pytest.fail("ran"))]) == 0
    assert statuses(one) == {"a": "not reached"}


def test_tests_that_take_too_long_leave_their_results(tmp_path):
    path = tmp_path / "test_two.py"
    path.write_text(
        "import time\ndef test_fast(): pass\ndef test_slow(): time.sleep(100)\n"
    )
    one = dataclasses.replace(child(tmp_path), deadline=time.monotonic() + 10)
    with pytest.raises(RuntimeError, match="ended with code 2 after 1 tests"):
        gpu_parts._test_files(one, [path], 1.0)
    (row,) = (r["row"] for r in read(one.records))
    assert (row["tests"], row["failures"], row["exit_code"]) == (1, 0, 2)


def test_programs_can_be_interrupted_though_the_shell_ignores_it(tmp_path):
    ask = "import signal, sys; sys.exit(signal.getsignal(2) is not signal.default_int_handler)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert gpu_parts._run([sys.executable, "-c", ask], tmp_path / "log", 60) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_files_with_gpu_tests_are_all_found(tmp_path):
    one = dataclasses.replace(child(tmp_path, "tests"), tiny=False)
    groups = [unit.args[1] for _, unit in gpu_parts.units(one)]
    names = [[path.name for path in group] for group in groups]
    assert names[:2] == [["test_cuda_gpu.py"], ["test_triton_gpu.py"]]
    assert {"test_data_loader.py", "test_guard.py", "test_monitor.py"} <= set(names[2])


def test_slow_providers_are_timed_less_often(monkeypatch):
    monkeypatch.setattr(kernel_bench, "_SECONDS", 0.0)
    many = dataclasses.replace(settings(), rounds=7)
    rows = kernel_bench.run_case(small_case(), Clock(torch.device("cpu")), many)
    assert {row["rounds"] for row in rows} == {3}


def test_no_pass_but_the_first_begins_after_the_limit():
    late = dataclasses.replace(settings(), deadline=time.monotonic() - 1)
    rows = kernel_bench.run_case(small_case(), Clock(torch.device("cpu")), late)
    assert {row["pass"] for row in rows} == {"forward"}


def test_compiling_ends_when_its_time_is_over(monkeypatch):
    plain = kernel_cases.OPS["fir_down"].plain
    monkeypatch.setattr(kernel_bench, "providers", lambda *_: {"eager": plain, "compile": plain})
    brief = dataclasses.replace(settings(), compile_s=1e-9)
    rows = kernel_bench.run_case(small_case(), Clock(torch.device("cpu")), brief)
    passes = {name: [r["pass"] for r in rows if r["provider"] == name]
              for name in ("eager", "compile")}
    assert passes == {"eager": ["forward", "backward", "double_backward"], "compile": ["forward"]}


def test_half_a_line_is_no_record(tmp_path):
    (tmp_path / "r").write_text('{"a": 1}\n{"b": ')
    assert read(tmp_path / "r") == [{"a": 1}]


def test_byte_minima_by_hand():
    image = 32 * 256 * 256 * 256 * 2  # bf16
    case = kernel_cases.KernelCase("bias_leaky_relu_down", (32, 256, 256, 256), "celebahq256")
    assert case.bytes_min("forward") == image + image // 4  # reads x, writes a quarter
    assert case.bytes_min("backward") == image // 4 + image + image  # reads g and x, writes dx
    assert case.bytes_min("double_backward") == image + image + image // 4
    image = 32 * 64 * 256 * 256 * 2
    case = kernel_cases.KernelCase("ada_group_norm_silu", (32, 64, 256, 256), "celebahq256")
    assert case.bytes_min("forward") == 3 * image
    assert case.bytes_min("backward") == 5 * image
    case = kernel_cases.KernelCase("norm_down", (32, 64, 256, 256), "celebahq256")
    assert case.bytes_min("forward") == 2 * image + 2 * image // 4
    # Grad of h and x to sum; both grads and x, to write dx.
    assert case.bytes_min("backward") == (image // 4 + image) + (2 * image // 4 + 2 * image)
    pixels = 32 * 3 * 256 * 256
    case = kernel_cases.KernelCase("q_sample_uint8", (32, 3, 256, 256), "celebahq256", "fp32")
    assert case.bytes_min("forward") == pixels * (1 + 4 + 4)


def test_cases_have_names_of_their_own_and_dtypes_of_their_op():
    found = kernel_cases.cases()
    assert len({case.name for case in found}) == len(found)
    assert {case.op for case in found} == set(kernel_cases.OPS)
    assert {case.preset for case in found} == {"celebahq256", "cifar10", "lsun_church256"}
    assert all(case.dtype == "fp32" for case in found if "sample" in case.op)


def small_case():
    return kernel_cases.KernelCase("fir_down", (2, 4, 8, 8), "none", "fp32")


def settings():
    return kernel_bench.Settings(torch.device("cpu"), rounds=1)


@pytest.mark.parametrize("which", ["forward", "backward", "double_backward"])
def test_a_wrong_op_gets_no_speedup(monkeypatch, which):
    case = small_case()
    op = kernel_cases.OPS["fir_down"]

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y * (1.001 if which == "forward" else 1)

        @staticmethod
        def backward(ctx, g):
            if which == "double_backward":
                return Late.apply(g)
            return g * (1.001 if which == "backward" else 1)

    class Late(torch.autograd.Function):
        @staticmethod
        def forward(ctx, g):
            return g.clone()

        @staticmethod
        def backward(ctx, v):
            return v * 1.001

    wrong = dataclasses.replace(op, ours=lambda v: (Wrong.apply(op.ours(v)[0]),))
    monkeypatch.setitem(kernel_cases.OPS, "fir_down", wrong)
    rows = kernel_bench.run_case(case, Clock(torch.device("cpu")), settings())
    ours = {row["pass"]: row for row in rows if row["provider"] == "torch"}
    assert not ours[which]["agrees"]
    assert "speedup" not in ours[which]
    right = {"forward", "backward", "double_backward"} - {which}
    if which == "backward":
        right -= {"double_backward"}  # the gradient's gradient carries the same factor
    assert all(ours[name]["agrees"] and "speedup" in ours[name] for name in right)


def test_a_raising_op_is_a_row(monkeypatch):
    def fail(values):
        raise RuntimeError("no such kernel")

    wrong = dataclasses.replace(kernel_cases.OPS["fir_down"], ours=fail)
    monkeypatch.setitem(kernel_cases.OPS, "fir_down", wrong)
    rows = kernel_bench.run_case(small_case(), Clock(torch.device("cpu")), settings())
    ours = [row for row in rows if row["provider"] == "torch"]
    assert len(ours) == 3
    assert all(row["status"] == "failed" for row in ours)
    assert all("no such kernel" in row["error_text"] for row in ours)
    assert all(row["agrees"] for row in rows if row["provider"] != "torch")


def test_what_is_left_out_is_not_run():
    chosen = dataclasses.replace(settings(), skip={("upfirdn2d", "torch")})
    rows = kernel_bench.run_case(small_case(), Clock(torch.device("cpu")), chosen)
    assert {row["provider"] for row in rows} == {"eager", "grouped_conv"}


def test_other_objectives_are_rows_of_the_ablation(tmp_path):
    one = child(tmp_path, "ablation")
    assert one.run([("objectives", lambda: gpu_networks._ablation(one, "objectives"))]) == 0
    rows = [r["row"] for r in read(one.records) if "row" in r]
    assert [row["provider"] for row in rows] == ["bf16 channels_last, torch", "with D0", "with l1"]
    assert all(row["case"] == "ablation" and row["agrees"] for row in rows)
    assert not any("tflop_s" in row for row in rows)
