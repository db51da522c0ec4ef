"""``bench --compare``: like rows meet, noise is no verdict, and a regression can fail a check."""

import json

import pytest

from ddgan_fast.benchmarks import cli, compare, facts
from ddgan_fast.cli import main

HERE = {"cpu": "A", "cores": 2, "threads": 1, "gpu": None, "load": [9.0]}
ORIGIN = {"machine": HERE, "versions": {"torch": "2.13", "commit": "abc"}, "when": "2026-01-02"}


def row(p50, spread=0.1, **columns):
    times = {"ms_p50": p50, "ms_p20": p50 * (1 - spread), "ms_p80": p50 * (1 + spread)}
    return {"case": "step", "provider": "ddgan_fast", "batch": 4, **times, **ORIGIN, **columns}


def write(path, *rows):
    facts.write(path, list(rows))
    return str(path)


@pytest.mark.parametrize(
    ("after", "verdict"),
    [(100, "within noise"), (119, "within noise"), (130, "slower"), (70, "faster")],
)
def test_verdicts(after, verdict):
    (found,), alone = compare.compare([row(100)], [row(after)])
    assert (found.verdict, alone) == (verdict, 0)
    assert found.ratio == pytest.approx(after / 100)
    assert found.low == pytest.approx(0.9 * after / 110) and found.low < found.ratio < found.high


def test_rows_meet_by_what_was_measured():
    before = [row(1, batch=4), row(2, batch=8), row(3, provider="reference"), row(9, dtype="bf16")]
    after = [
        row(30, provider="reference"),
        row(20, batch=8),
        row(10, engine="eager"),
        row(5, op="x"),
    ]
    found, alone = compare.compare(before, after)
    # A column that says nothing unusual may be missing in older rows.
    assert sorted(c.ms for c in found) == [(1, 10), (2, 20), (3, 30)]
    assert alone == 2
    assert sorted(c.what for c in found) == [
        "ddgan_fast batch 4",
        "ddgan_fast batch 8",
        "reference batch 4",
    ]


def test_of_loaders_the_cpu_time_counts_and_of_kernels_microseconds_do():
    loader = {"cpu_ms_p50": 1.0, "cpu_ms_p20": 0.9, "cpu_ms_p80": 1.1}
    kernel = {"case": "kernels", "us_p50": 500.0, "us_p20": 400.0, "us_p80": 600.0, **ORIGIN}
    (first, second), _ = compare.compare([row(7, **loader), kernel], [row(9, **loader), kernel])
    assert first.ms == (1.0, 1.0) and second.ms == (0.5, 0.5)
    assert second.high == pytest.approx(1.5)


def test_a_time_without_its_spread_is_not_compared():
    bare = {"case": "stacked", "ms_p50": 5.0, **ORIGIN}
    assert compare._times(bare) is None
    timed = [row(1, sampler="ddim", nfe=4), row(2, sampler="ddim", nfe=50)]
    found, _ = compare.compare(timed, timed)
    assert sorted(c.ms for c in found) == [(1, 1), (2, 2)]


def test_fail_above_looks_beyond_the_noise(tmp_path, capsys):
    old = write(tmp_path / "old.json", row(100), row(100, spread=0.5, batch=8))
    new = write(tmp_path / "new.json", row(130), row(130, spread=0.5, batch=8))
    assert main(["bench", "--compare", old, new]) == 0
    assert "1 slower, 1 within noise" in capsys.readouterr().out
    assert main(["bench", "--compare", old, new, "--fail-above", "1.5"]) == 0
    assert main(["bench", "--compare", old, new, "--fail-above=1.1"]) == 1
    assert "More than 1.1 times as slow, beyond the noise: batch 4." in capsys.readouterr().out
    assert main(["bench", "--compare", new, old, "--fail-above", "1.1"]) == 0


def test_differing_machines_are_told(tmp_path, capsys):
    old = write(tmp_path / "old.json", row(100))
    there = HERE | {"gpu": "H200", "load": [0.0]}
    newer = {"torch": "2.14", "commit": "abc"}
    new = write(tmp_path / "new.json", row(100, machine=there, versions=newer))
    assert main(["bench", "--compare", old, new]) == 0
    printed = capsys.readouterr().out
    assert "The machines differ: gpu None against H200." in printed
    assert "The versions differ: torch 2.13 against 2.14." in printed
    assert printed.count("differ:") == 2


def test_one_file_meets_the_newest_committed_rows_of_its_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    write(tmp_path / "b.json", row(50, when="2026-01-01"), row(70, machine=HERE | {"cores": 64}))
    write(tmp_path / "a.json", row(100))
    (tmp_path / "c.json").write_text('{"other": 1}')
    (tmp_path / "new").mkdir()
    new = write(tmp_path / "new/new.json", row(130))
    assert main(["bench", "--compare", new, "--fail-above", "1.2"]) == 1
    assert "1.300" in capsys.readouterr().out
    # A committed file is not compared with itself.
    assert main(["bench", "--compare", str(tmp_path / "a.json")]) == 0
    assert "2.000" in capsys.readouterr().out
    other = write(tmp_path / "new/other.json", row(1, machine=HERE | {"cpu": "B"}))
    assert main(["bench", "--compare", other]) == 2
    assert "no other committed results of such a machine" in capsys.readouterr().err


def test_results_of_the_gpu_suite_name_their_machine_once(tmp_path):
    rows = [{k: v for k, v in row(5).items() if k not in ORIGIN}, row(6, agrees=False)]
    content = {"environment": {"machine": HERE, "versions": {}}, "rows": rows}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    (found,) = compare.read(path)
    assert found["machine"] == HERE


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["none.json", "none.json"], "there is no file none.json"),
        (["bad.json"], "bad.json is not a file of bench results"),
        (["list.json"], "list.json is not a file of bench results"),
        (["a.json", "b.json"], "no timed row in common"),
        (["a.json", "b.json", "a.json"], "takes one or two files, not 3"),
        (["a.json", "a.json", "--fail-above", "0.5"], "--fail-above is 0.5"),
    ],
)
def test_bad_input_is_told(words, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("no JSON")
    (tmp_path / "list.json").write_text("[]")
    write(tmp_path / "a.json", row(1))
    write(tmp_path / "b.json", row(1, batch=99))
    assert main(["bench", "--compare", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_all_commands_write_rows_of_one_form(tmp_path):
    commands = {
        "step": ["--preset", "gaussians25", "--batch", "2", "--steps", "1", "--warmup", "0"],
        "sample": ["--preset", "gaussians25", "--batch", "2", "--steps", "1", "--warmup", "0"],
        "kernels": ["--tiny", "--match", "q_sample_pair", "--rounds", "3"],
        "scaling": ["--preset", "gaussians25", "--step-ms", "10", "--per-gpu-batch", "4"],
    }
    columns = {"case", "provider", "ms_p20", "ms_p50", "ms_p80", "img_s"}
    columns |= {"machine", "versions", "command", "when"}
    for case, options in commands.items():
        out = tmp_path / f"{case}.json"
        if case != "scaling":
            options += ["--device", "cpu"]
        assert cli.main([case, *options, "--json", str(out)]) == 0
        rows = compare.read(out)
        assert rows and all(row.keys() >= columns for row in rows), case
        found, alone = compare.compare(rows, rows)
        assert len(found) == len(rows) and alone == 0, f"{case}: rows that look alike"
        assert {c.verdict for c in found} == {compare.NOISE}
