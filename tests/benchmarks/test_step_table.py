"""The tables of steps: chosen, compared and left out as they should be."""

import json
from pathlib import Path

import pytest

from benchmarks import readme, step_table

ROOT = Path(__file__).resolve().parents[2]


def row(case, provider, ms, **more):
    base = {"case": case, "provider": provider, "preset": "celebahq256", "batch": 32,
            "dtype": "bf16", "ms_p50": ms, "img_s": 32e3 / ms, "agrees": True, "peak_gib": 20.04,
            "tflop_s": 200.0}
    return base | more


def suite(folder, name, rows, began="2030-01-01", device="cuda", tiny=False):
    environment = {"machine": {"gpu": "H200"}, "matrix_tflop_s": 800.0}
    content = {"began": began, "device": device, "tiny": tiny, "environment": environment}
    (folder / name).write_text(json.dumps(content | {"rows": rows}))


def cells(table):
    return [[c.strip() for c in line.strip("|\n").split("|")] for line in table.splitlines()[2:]]


def test_the_fastest_of_ours_meets_the_recipe_of_its_own_run(tmp_path):
    suite(tmp_path, "a.json", [
        row("step", "eager, torch", 200), row("step", "graph, cuda", 160),
        row("step", "recipe", 640, dtype="tf32"), row("step", "recipe_fp32", 1280, dtype="fp32"),
        row("step_compiled", "compile+graph, inductor", 100, chain="inductor"),
        row("step_compiled", "recipe", 500, dtype="tf32", chain="inductor"),
        row("step_compiled", "compile+graph, cuda", 120, chain="cuda"),
        row("step_compiled", "recipe", 700, dtype="tf32", chain="cuda"),
        row("step", "graph, triton", 1.0, agrees=False, disagreement="wrong"),
    ])
    ((card, preset, batch, how, speed, ms, peak, share, recipe, ratio, strict),) = cells(
        step_table.steps(step_table.gpu_rows(tmp_path))
    )
    assert (card, preset, batch, how) == (
        "H200", "celebahq256", "32", "bf16, compile+graph, inductor"
    )
    assert (speed, ms, peak, ratio) == ("**320**", "100.0", "20.0 GiB", "**5.0**")
    assert share == "25% (200 of 800 TFLOP/s)"
    assert recipe == "64 img/s, 20.0 GiB" and strict == "25 img/s"


def test_what_is_not_known_is_a_dash_and_a_recipe_alone_is_no_row(tmp_path):
    suite(tmp_path, "a.json", [
        row("step", "eager, torch", 200, tflop_s=None, peak_gib=None),
        row("step", "recipe", 640, batch=64, dtype="tf32"),
    ])
    (found,) = cells(step_table.steps(step_table.gpu_rows(tmp_path)))
    assert found[2] == "32" and found[6:] == ["-"] * 5


def test_newer_results_replace_older_ones_and_toys_do_not_count(tmp_path):
    suite(tmp_path, "z.json", [row("step", "eager, torch", 300)], began="2030-01-01")
    suite(tmp_path, "a.json", [row("step", "eager, torch", 200)], began="2030-01-02")
    suite(tmp_path, "b.json", [row("step", "eager, torch", 1)], device="cpu", began="2031")
    suite(tmp_path, "c.json", [row("step", "eager, torch", 2)], tiny=True, began="2032")
    assert [r["ms_p50"] for r in step_table.gpu_rows(tmp_path)] == [200]


def test_sampling_and_ablation(tmp_path):
    suite(tmp_path, "a.json", [
        row("sample", "ddgan_fast_bf16_graph", 90, batch=100), row("sample", "reference", 400),
        row("ablation", "bf16 channels_last, torch", 200, chain="torch"),
        row("ablation", "recipe", 600, chain="torch"),
        row("ablation", "cuda, graph", 100, chain="cuda"),
    ])
    text = step_table.tables(tmp_path)
    assert "| 100 | bf16, ddgan_fast_bf16_graph | 0.090 |" in text
    assert "| torch | recipe | 53 | 600.0 | 0.33 |" in text
    assert "| cuda | cuda, graph | 320 | 100.0 | - |" in text


def test_without_results_it_says_so(tmp_path):
    assert step_table.tables(tmp_path) == step_table.NOTHING


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="not in the tree")
def test_the_readme_is_up_to_date():
    text = (ROOT / "README.md").read_text()
    assert readme.renewed(text, step_table.BEGIN, step_table.END, step_table.tables()) == text
