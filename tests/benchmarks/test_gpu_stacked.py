"""The part ``stacked`` of the GPU suite at toy size, and the clock that ends its runs."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ddgan_fast.benchmarks import gpu_stacked
from ddgan_fast.benchmarks.gpu_suite import LIMITS
from ddgan_fast.benchmarks.gpu_units import Child, read

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture
def child(tmp_path):
    return Child("stacked", tmp_path / "records.jsonl", "cpu", True, time.monotonic() + 100,
                 tmp_path, tmp_path)


def suite(out, *arguments):
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--device", "cpu", "--tiny"]
    done = subprocess.run(
        [*command, "--parts", "stacked", "--out", str(out), *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )
    return done, json.loads((out / "results.json").read_text())


@pytest.mark.slow
def test_every_method_trains_equally_long_and_is_judged(tmp_path):
    done, results = suite(tmp_path / "out")
    assert done.returncode == 0, done.stdout + (tmp_path / "out/log.txt").read_text()
    assert results["parts"][0]["units"] == dict.fromkeys(gpu_stacked.METHODS, "ok")
    real, *rows = results["rows"]
    assert (real["provider"], real["n"], real["accuracy"]) == ("real images", 240, 1.0)
    assert real["modes"] > 200
    assert [(row["provider"], row["sampler"], row["nfe"]) for row in rows] == [
        ("ddgan", "gan", 4), ("oneshot", "gan", 1), ("ddpm200", "ddim", 4),
        ("ddpm200", "ancestral", 6),
    ]
    for row in rows:
        assert row["asked_s"] == 0.2 <= row["train_s"]
        hours = 60 * row["images_per_epoch"] / row["img_s"] / 3600
        assert row["hours_for_60_epochs_extrapolated"] == pytest.approx(hours, abs=0.01)
        assert (row["n"], row["images_per_epoch"]) == (40, 240)
        assert 1 <= row["modes"] <= 40 and row["kl"] > 3 and row["fd_idx"] > 0
        assert "of 40 samples" in row["note"]
        assert row["s_per_100"] == pytest.approx(row["ms_p50"] / 100)
    names = subprocess.run(["tar", "tf", str(tmp_path / "out/pictures.tar")],
                           capture_output=True, text=True, check=True).stdout.split()
    assert len(names) == 5 and "pictures/stacked-ddpm200-ddim-4.png" in names


@pytest.mark.slow
def test_one_method_alone(tmp_path):
    done, results = suite(tmp_path / "out", "--only", "oneshot", "--only", "twoshot")
    assert done.returncode == 1
    assert "No unit 'twoshot' was in these parts." in done.stdout
    assert results["parts"][0]["units"] == {"oneshot": "ok"}
    assert [row["provider"] for row in results["rows"]] == ["real images", "oneshot"]


def test_without_a_set_it_says_so(child):
    one = replace(child, tiny=False)
    assert one.run(gpu_stacked.units(one)) == 0
    (row,) = (record["row"] for record in read(one.records) if "row" in record)
    assert "--idx FOLDER" in row["status"]


def test_only_the_units_asked_for_run(child):
    ran = []
    one = replace(child, only=("b",))
    assert one.run([(name, lambda name=name: ran.append(name)) for name in "abc"]) == 0
    assert ran == ["b"]


def test_training_time_fits_the_limit_and_is_the_same_in_the_next_process(child):
    def asked(seconds, methods):
        one = replace(child, tiny=False, deadline=time.monotonic() + seconds)
        return gpu_stacked._seconds(one, methods)

    limit = LIMITS["stacked"]
    assert 3 * asked(limit, 3) == pytest.approx(gpu_stacked._TRAINING_SHARE * limit, rel=0.01)
    assert asked(limit, 1) == gpu_stacked.TRAIN_S
    child.row(provider="ddgan", asked_s=77.0)
    assert asked(10, 1) == 77.0


def test_the_clock_is_that_of_the_run(tmp_path):
    log = tmp_path / "log.jsonl"
    assert gpu_stacked.clock(log) == (0.0, 0.0)
    lines = [
        {"step": 10, "sec_per_step": 0.5},
        {"step": 20, "sec_per_step": 0.1},
        {"step": 60, "sec_per_step": 0.1},
    ]
    log.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 61, "sec_')
    seconds, rate = gpu_stacked.clock(log)
    assert seconds == pytest.approx(5 + 1 + 4)
    assert rate == pytest.approx(10.0)  # without the first line, which begins slowly
