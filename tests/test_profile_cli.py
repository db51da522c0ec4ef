"""``ddgan-fast profile``: what it prints and writes, and what it refuses."""

import json

import pytest

from ddgan_fast.cli import main
from ddgan_fast.profiling import profiler, report


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(profiler, "_TRACED", 1)
        patch.setattr(profiler, "_WARM_UP", 1)
        command = ["profile", "gaussians25", "--run.batch_size", "16", "--device", "cpu"]
        assert main([*command, "--run.threads", "1", "--steps", "2", "--json", "mine.json"]) == 0
    return folder


def test_it_writes_its_folder_and_the_file(done):
    folder = done / "runs/profile-gaussians25"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["profile.json", "trace-with-r1.json.gz", "trace-without-r1.json.gz"]
    content = json.loads((done / "mine.json").read_text())
    assert content == json.loads((folder / "profile.json").read_text())
    found = content["profile"]
    assert found["version"] == profiler.VERSION and found["batch"] == 16
    assert found["command"].startswith("ddgan-fast profile gaussians25 --run.batch_size 16")
    assert found["machine"].keys() >= {"cpu", "cores", "threads", "gpu"}
    assert content["rows"][0]["phase"] == "step"
    assert content["rows"][0]["ms_p50"] == found["step"]["ms_p50"]


def test_it_prints_tables_and_hints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(profiler, "_TRACED", 0)
    monkeypatch.setattr(profiler, "_WARM_UP", 1)
    command = ["profile", "gaussians25", "--run.batch_size", "4", "--device", "cpu", "--steps", "1"]
    assert main([*command, "--out", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    for words in (
        "Step of gaussians25, batch 4, cpu, fp32, engine eager",
        "Phases of a mean step",
        "G step: backward",
        "Operators (",
        "of roofline",
        "PointGenerator",
        "Memory at its peak",
        "Adam's moments",
        "Hints",
        f"Wrote {tmp_path / 'new' / 'profile.json'}",
    ):
        assert words in printed, words


def test_a_profile_of_a_gpu_also_shows_kernels_and_the_allocator(done, capsys):
    found = json.loads((done / "mine.json").read_text())["profile"]
    names = [f"kernel_{i}<float, {'x' * 90}>" for i in range(12)]
    found["kernels"] = [
        {"kernel": name, "ms": 1.25, "calls": 3.5, "us_each": 40.0 + i}
        for i, name in enumerate(names)
    ]
    sizes = {"allocated_peak_bytes": 3 << 30, "reserved_peak_bytes": 4 << 30}
    found["memory"]["allocator"] = {**sizes, "device_bytes": 139 << 30, "retries": 2}
    report.show(found)
    printed = capsys.readouterr().out
    assert "Kernels (12 in all)" in printed
    shown = [line.split() for line in printed.splitlines() if line.startswith("  kernel_")]
    assert [line[-3:] for line in shown] == [["1.250", "3.5", f"{40 + i}.0"] for i in range(10)]
    assert all(len(" ".join(line[:-3])) == 70 for line in shown)
    memory = "3.00 GiB allocated, 4.00 GiB reserved at the peak, of 139.00 GiB; 2 retries."
    assert f"CUDA's allocator: {memory}" in printed


def test_profiles_can_be_compared(done, capsys):
    path = str(done / "mine.json")
    assert main(["bench", "--compare", path, path, "--fail-above", "1"]) == 0
    printed = capsys.readouterr().out
    assert "G step: backward" in printed and "0 faster, 0 slower" in printed


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "profile what?"),
        (["--steps", "3"], "profile what?"),
        (["digits", "--steps", "0"], "--steps is 0"),
        (["digits", "--dry-run"], "--dry-run belongs to train"),
        (["digit"], "did you mean 'digits'"),
        (["digits", "--json", "none/x.json"], "there is no folder none"),
        (["digits", "--run.batch_size", "x"], "run.batch_size"),
        (["digits", "--device", "cpu", "--run.engine", "graph"], "CUDA graphs need a GPU"),
    ],
)
def test_bad_input_is_told_and_nothing_is_left(words, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["profile", *words]) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
