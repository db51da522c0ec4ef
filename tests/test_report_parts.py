"""Parts of the report that stand only in some reports, and what a chapter makes of gaps."""

import json
import math

import numpy as np
import pytest
from report_results import profile, suite_rows, timed, write_run

from ddgan_fast import cli
from ddgan_fast.benchmarks.report import charts, comparisons, ops, profiles, runs, sources, steps
from ddgan_fast.benchmarks.report.html import section

pytest.importorskip("matplotlib")


def results(folder, rows, **about):
    (folder / "a.json").write_text(json.dumps({**about, "rows": rows}))
    return sources.read_results(folder)


def test_predictions_for_many_gpus_are_shown_as_such(tmp_path, capsys):
    words = ["--preset", "digits", "--step-ms", "20", "--per-gpu-batch", "16", "--gpus", "64"]
    output = tmp_path / "scaling.json"
    assert cli.main(["bench", "scaling", *words, "--json", str(output)]) == 0
    capsys.readouterr()
    found = sources.read_results(tmp_path)
    shown = str(ops.scaling(found))
    assert "nothing was run" in shown
    weak = next(row for row in found.rows if row["scaling"] == "weak")
    cells = ("weak", "64", "16", "1,024", f"{weak['img_s']:,.0f}", f"{weak['efficiency']:.0%}")
    for cell in (*cells, "scaling.json"):
        assert f">{cell}<" in shown, cell
    assert ops.scaling(sources.Results()) == ""


def test_seeds_without_their_fast_run_have_no_band(tmp_path):
    rows = [row for row in suite_rows() if row["case"] == "band"]
    both = str(comparisons.seeds(results(tmp_path, rows)))
    assert "inside the band" in both and "no band" not in both
    alone = str(comparisons.seeds(results(tmp_path, [r for r in rows if r["provider"] != "fast"])))
    assert "a.json: no band, the results hold no fast run" in alone


def test_a_step_that_failed_says_why_and_an_untimed_one_has_no_time(tmp_path):
    failed = {"case": "step", "provider": "p", "status": "failed", "error_text": "out of <memory>"}
    found = results(tmp_path, [failed, {"case": "sample", "provider": "p", "batch": 4}])
    assert "failed: out of &lt;memory&gt;" in str(steps.steps(found))
    assert ">p<" in str(steps.sampling(found)) and "s per 100" not in str(steps.sampling(found))
    timed_one = results(tmp_path, [timed("sample", "p", 500, batch=50)])
    assert "s per 100" in str(steps.sampling(timed_one))


def test_a_machine_may_be_told_in_words(tmp_path):
    found = results(tmp_path, [timed("step", "x", 1)], machine="Some Xeon, 2 cores")
    assert found.rows[0]["card"] == "Some Xeon, 2 cores"


def test_a_profile_without_peaks_has_no_roofline(tmp_path):
    content = profile()
    (tmp_path / "p.json").write_text(json.dumps(content))
    assert "Roofline" in str(profiles.profiles(sources.read_results(tmp_path)))
    del content["profile"]["ceilings"]
    (tmp_path / "p.json").write_text(json.dumps(content))
    shown = str(profiles.profiles(sources.read_results(tmp_path)))
    assert "Roofline" not in shown and "Phases of a mean step" in shown


def test_no_chart_of_nothing():
    nowhere = [(1.0, math.nan), (math.inf, 2.0)]
    assert charts.lines("x", {"a": nowhere}) == ""
    assert charts.plane("x", nowhere) == ""
    assert charts.cloud("x", {"a": [(0.0, 1.0), (1.0, -1.0)]}, x="x", y="y") == ""
    assert section("a", "A chapter") == "" == section("a", "A chapter", "")


def test_a_run_without_times_or_pictures_is_shown_all_the_same(tmp_path):
    run = write_run(tmp_path / "run", upto=50)
    lines = (run / "log.jsonl").read_text().replace("2030-01-01T", "yesterday ")
    (run / "log.jsonl").write_text(lines)
    for path in (run / "samples").iterdir():
        path.unlink()
    np.savez(run / "samples/step-000000020.npz", np.zeros((4, 3)))  # points, but not in a plane
    shown = str(runs.run_chapter(runs.read_run(run)))
    assert "50 of 300" in shown and "time in the log" not in shown
    assert "step 20" not in shown and "cannot be shown" not in shown
