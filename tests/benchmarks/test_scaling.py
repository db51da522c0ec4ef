"""``bench scaling`` predicts what the formulas say by hand, and says what it assumes."""

import json
import math

import pytest

from ddgan_fast.benchmarks import scaling
from ddgan_fast.benchmarks.scaling import Cluster, StepTime, fit, predict, reduction_ms
from ddgan_fast.cli import main

# 100 GB/s each way in a node, 10 GB/s per GPU outside, all of it reached.
CLUSTER = Cluster(
    nvlink_gbs=100, link_gbs=10, achieved=1.0, nvlink_us=10, link_us=20, overlap=0.5, jitter=0.0
)


def test_one_gpu_reduces_nothing():
    assert reduction_ms(1e9, 1, CLUSTER) == 0


def test_a_large_reduction_goes_round_the_ring():
    # 2 * 7/8 * 1 GB at 100 GB/s, and 14 messages of 10 us; the tree takes 20 ms.
    assert reduction_ms(1e9, 8, CLUSTER) == pytest.approx(17.5 + 0.14)


def test_between_nodes_the_cards_are_the_bottleneck():
    # 16 GPUs: 8 cards of 10 GB/s. 2 * 15/16 * 1 GB at 80 GB/s; 30 messages, 4 of them far.
    assert reduction_ms(1e9, 16, CLUSTER) == pytest.approx(23.4375 + (26 * 10 + 4 * 20) / 1e3)


def test_a_small_reduction_takes_the_tree():
    # 512 GPUs: 64 nodes. Nearly no bytes: 14 near and 2 * 6 far messages, not 1,022 of the ring.
    assert reduction_ms(1, 512, CLUSTER) == pytest.approx((14 * 10 + 12 * 20) / 1e3, rel=1e-3)


def test_two_points_make_a_line_and_one_an_assumption():
    assert fit([(32, 150.0), (4, 38.0)]) == StepTime(22.0, 4.0)
    assert fit([(10, 100.0)]) == StepTime(20.0, 8.0)
    # Slower with fewer images: noise, which must not become a negative cost.
    assert fit([(4, 50.0), (8, 40.0)]) == StepTime(50.0, 0.0)


def test_reduction_hides_in_the_backward_but_not_its_last_bucket():
    step, gigabyte = StepTime(0.0, 10.0), 1e9
    each = reduction_ms(gigabyte, 8, CLUSTER)
    last = reduction_ms(scaling.BUCKET_BYTES, 8, CLUSTER)
    short = predict(step, 1, 8, [gigabyte, gigabyte], CLUSTER)
    assert short["exposed"] == pytest.approx(2 * each - 5)
    assert short["total"] == pytest.approx(10 + 2 * each - 5)
    long = predict(step, 100, 8, [gigabyte, gigabyte], CLUSTER)
    assert long["exposed"] == pytest.approx(2 * last)
    small = predict(step, 100, 8, [1e6], CLUSTER)
    assert small["exposed"] == pytest.approx(reduction_ms(1e6, 8, CLUSTER))


def test_the_slowest_gpu_is_waited_for():
    cluster = Cluster(overlap=1.0, jitter=0.02)
    found = predict(StepTime(0.0, 10.0), 10, 64, [0.0], cluster)
    late = 100 * 0.02 * math.sqrt(2 * math.log(64))
    assert found["total"] - found["exposed"] == pytest.approx(100 + late)


def test_weak_and_strong_scaling():
    rows = scaling.rows(StepTime(10.0, 2.0), 20, 64, [1, 8, 128], [0.0], Cluster(jitter=0.0))
    weak, strong = rows[:3], rows[3:]
    assert [row["per_gpu_batch"] for row in weak] == [20, 20, 20]
    assert [row["batch"] for row in weak] == [20, 160, 2560]
    assert [row["per_gpu_batch"] for row in strong] == [64, 8, 1]
    # One image each for 128 GPUs: more than the 64 asked for.
    assert [row["batch"] for row in strong] == [64, 64, 128]
    assert weak[0]["efficiency"] == 1 and weak[0]["ms_p50"] == 50 and weak[0]["img_s"] == 400
    # Alone, 20 images take 50 ms. 8 take 26 ms, and messages: 8 GPUs do 64 * 1000 / 26 img/s.
    messages = strong[1]["ms_parts"]["exposed"]
    assert strong[1]["img_s"] == pytest.approx(64_000 / (26 + messages), rel=1e-4)
    assert strong[1]["efficiency"] == pytest.approx(64_000 / (26 + messages) / 3200, rel=1e-4)


def test_command(tmp_path, capsys):
    output = tmp_path / "scaling.json"
    command = ["bench", "scaling", "--preset", "digits", "--step-ms", "20,8"]
    command += ["--per-gpu-batch", "16,4", "--gpus", "2,64", "--json", str(output)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "Assumptions:" in out and "20 ms at 16 images, 8 ms at 4 images" in out
    assert "4 ms + 1 ms per image" in out and "450 GB/s" in out
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 4
    for row in rows:
        assert row["case"] == "scaling" and row["predicted"] is True and row["preset"] == "digits"
        assert row["ms_p20"] == row["ms_p50"] == row["ms_p80"] > 0
        assert row["efficiency"] > 0 and row["img_s"] > 0 and row["versions"]
        assert any("(assumption)" in line for line in row["assumptions"])
    assert {row["gpus"] for row in rows} == {2, 64}


def test_bf16_reduction_halves_the_bytes(capsys):
    command = ["bench", "scaling", "--preset", "celebahq256", "--step-ms", "150"]
    command += ["--per-gpu-batch", "32", "--gpus", "8"]
    assert main(command) == 0
    assert "158.9 MB of G, 110.9 MB of D" in capsys.readouterr().out
    assert main([*command, "--reduction", "bf16"]) == 0
    out = capsys.readouterr().out
    assert "79.5 MB of G, 55.5 MB of D" in out and "20% fixed: assumption" in out


def test_measured_rows_are_read(tmp_path, capsys):
    row = {"case": "step", "provider": "ddgan_fast", "preset": "digits", "batch": 4, "ms_p50": 8.0}
    file = tmp_path / "step.json"
    others = [row | {"provider": "reference"}, row | {"preset": "cifar10"}]
    file.write_text(json.dumps({"rows": [*others, row, row | {"batch": 16, "ms_p50": 20.0}]}))
    command = ["bench", "scaling", "--from", str(file), "--gpus", "8"]
    assert main([*command, "--preset", "digits"]) == 0
    out = capsys.readouterr().out
    assert "8 ms at 4 images, 20 ms at 16 images" in out
    assert main([*command, "--preset", "celebahq256"]) != 0
    assert "no step of celebahq256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--step-ms"),
        (["--step-ms", "1,2", "--per-gpu-batch", "3"], "as many values"),
        (["--step-ms", "0", "--per-gpu-batch", "3"], "--step-ms: values must be above 0"),
        (["--step-ms", "nan", "--per-gpu-batch", "3"], "--step-ms: values must be above 0"),
        (["--step-ms", "1", "--per-gpu-batch", "3", "--gpus", "-8"], "--gpus"),
        (["--step-ms", "1", "--per-gpu-batch", "3", "--overlap", "2"], "from 0 to 1"),
        (["--step-ms", "x", "--per-gpu-batch", "3"], "--step-ms"),
        (["--step-ms", "1", "--json", "nowhere/x.json"], "--json: there is no folder nowhere"),
        (["--from", "{file}"], "not a file of bench results"),
    ],
)
def test_bad_options_are_told(options, words, tmp_path, capsys):
    file = tmp_path / "bad.json"
    file.write_text("[1, 2]")
    options = [option.replace("{file}", str(file)) for option in options]
    assert main(["bench", "scaling", *options]) == 2
    assert words in capsys.readouterr().err
