"""The table of objectives says what its results say."""

import json

import pytest

from benchmarks import objectives
from ddgan_fast.commands.train import parse
from ddgan_fast.config import load_config


def test_the_page_holds_the_table_of_the_results():
    part = objectives.DOC.read_text().split(objectives.BEGIN)[1].split(objectives.END)[0]
    hint = "run: python -m benchmarks.objectives"
    assert part == f"\n\n{objectives.table(objectives.load()['rows'])}\n", hint


def test_rows_of_a_preset_stand_by_objective(tmp_path):
    def row(objective, seed, distance):
        metrics = {"fd_digits": distance, "modes": 10}
        return {"preset": "digits", "objective": objective, "seed": seed, "step": 2000,
                "metrics": metrics}

    rows = [row("+ l1", 1, 31.26), row("DDGAN", 1, 20.0), row("DDGAN", 1024, 47.0)]
    assert objectives.table(rows) == (
        "`digits`, 2,000 steps:\n\n"
        "| objective | seed | Fréchet distance | modes |\n| --- | --- | --- | --- |\n"
        "| DDGAN | 1 | 20.0 | 10 |\n| DDGAN | 1024 | 47.0 | 10 |\n| + l1 | 1 | 31.3 | 10 |\n"
    )


@pytest.mark.parametrize("preset", objectives.SEEDS)
def test_the_objectives_are_options(preset):
    found = [
        parse(["train", preset, *options][1:]).config.loss
        for options in objectives.OBJECTIVES.values()
    ]
    assert [loss.x0_weight for loss in found] == [0.0, 1.0, 0.1, 0.0]
    assert ["l1" in loss.terms for loss in found] == [False, False, False, True]


def test_results_are_rows_of_what_was_asked_for():
    for row in json.loads(objectives.RESULTS.read_text())["rows"]:
        assert row["seed"] in objectives.SEEDS[row["preset"]]
        assert row["step"] == load_config(row["preset"]).run.steps
        assert all(word in row["commands"][0] for word in objectives.OBJECTIVES[row["objective"]])
