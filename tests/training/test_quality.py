"""Metrics during training: as ``ddgan-fast evaluate`` finds them, and without touching the run."""

import json

import pytest
import torch
from idx_sets import write_set
from tiny_runs import final_state, tensors_of, tiny

pytest.importorskip("sklearn")

from ddgan_fast.cli import main
from ddgan_fast.config import load_config
from ddgan_fast.evaluation.idx_classifier import save_classifier
from ddgan_fast.evaluation.idx_training import train_classifier
from ddgan_fast.training import trainer

EVALUATED = {
    "run__evaluate_every": 2,
    "run__evaluate_n": 100,
    "run__evaluate_metrics": "fid,kid,pr",
    "run__evaluate_extractor": "digits",
}


def test_measured_every_so_often_and_nothing_else_changes(tmp_path, capsys):
    common = {"data__source": "digits", "data__limit": None, "run__steps": 4, "run__tick": 3}
    trainer.train(tiny(tmp_path / "plain", **common), device="cpu", quiet=True)
    cfg = tiny(tmp_path / "measured", **common, **EVALUATED, run__tensorboard=True)
    trainer.train(cfg, device="cpu")
    out = capsys.readouterr().out
    path = tmp_path / "measured/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert f"Step 4, 100 samples: fd_digits {lines[1]['metrics']['fd_digits']:.5g}, kd" in out
    assert lines[0]["metrics"] != lines[1]["metrics"]
    assert any((tmp_path / "measured").glob("events.out.tfevents*"))
    plain, measured = (tensors_of(final_state(tmp_path / run)) for run in ("plain", "measured"))
    assert all(torch.equal(plain[name], measured[name]) for name in plain)
    words = ["--extractor", "digits", "--metrics", "fid,kid,pr", "-n", "100", "--device", "cpu"]
    words += ["--seed", str(cfg.run.seed), "--time-batches", "none"]
    assert main(["evaluate", str(tmp_path / "measured"), *words]) == 0
    again = json.loads(path.read_text().splitlines()[-1])
    assert again["checkpoint"] == "ema-000000004.safetensors"
    assert again["metrics"] == pytest.approx(lines[1]["metrics"], rel=1e-5)
    assert again["reference"] == lines[1]["reference"]


def test_modes_of_stacked_images(tmp_path):
    folder = write_set(tmp_path / "set", 40, 20, classes=4, side=8)
    path = tmp_path / "c.safetensors"
    save_classifier(train_classifier(folder, epochs=1), path)
    stacked = {"data__source": "stacked_mnist", "data__path": str(folder), "run__steps": 2}
    modes = {"run__evaluate_metrics": "modes", "run__evaluate_extractor": "idx"}
    cfg = tiny(tmp_path / "run", **{**EVALUATED, **stacked, **modes})
    with pytest.raises(ValueError, match=r"needs a classifier.*run\.evaluate_classifier"):
        trainer.train(cfg, device="cpu", quiet=True)
    cfg.run.evaluate_classifier = str(path)
    trainer.train(cfg, device="cpu", quiet=True)
    (line,) = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert set(json.loads(line)["metrics"]) == {"modes", "kl"}
    assert json.loads(line)["extractor"]["modes_in_all"] == 64


POINTS = {"model.hidden": 8, "discriminator.hidden": 8, "data.limit": 100, "run.batch_size": 8,
          "run.sample_every": 0, "run.tensorboard": False, "run.tick": 2, "run.steps": 2,
          "run.evaluate_every": 2, "run.evaluate_n": 100}


def test_points_are_counted_unless_other_metrics_are_named(tmp_path, capsys):
    run = tmp_path / "run"
    cfg = load_config("gaussians25", {**POINTS, "run.dir": str(run)})
    trainer.train(cfg, device="cpu")
    said = capsys.readouterr().out
    words = ["--metrics", "modes", "-n", "100", "--time-batches", "none", "--device", "cpu"]
    assert main(["evaluate", str(run), *words, "--seed", str(cfg.run.seed)]) == 0
    during, after = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert during["command"] == "training" and during["step"] == after["step"] == 2
    assert during["metrics"] == pytest.approx(after["metrics"], rel=1e-5)
    assert f"Step 2, 100 samples: modes {during['metrics']['modes']:.5g}, near" in said


def test_a_record_that_cannot_be_written_is_said_and_the_run_goes_on(tmp_path, capsys):
    cfg = load_config("gaussians25", {**POINTS, "run.dir": str(tmp_path), "run.steps": 4})
    (tmp_path / "metrics.jsonl").mkdir()
    assert trainer.train(cfg, device="cpu").finished
    said = capsys.readouterr().out
    assert said.count("Could not write metrics.jsonl (Is a directory); going on.") == 2
    assert "Step 4, 100 samples: modes" in said


def test_what_cannot_be_measured_is_said_before_training(tmp_path):
    for options, sentence in (
        ({"run__evaluate_extractor": "inception"}, "needs its weights"),
        ({"run__evaluate_metrics": "fid,fad"}, "the metric 'fad' is unknown"),
        ({"run__evaluate_n": 99}, "run.evaluate_n is 99: it must be at least 100"),
    ):
        cfg = tiny(tmp_path / "run", **{**EVALUATED, **options})
        with pytest.raises(ValueError, match=sentence):
            trainer.train(cfg, device="cpu", quiet=True)
        assert not list((tmp_path / "run").glob("state-*"))
    assert load_config("cifar10").run.evaluate_every == 0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"run__evaluate_every": 2}, ValueError, "inception needs its weights"),
        ({"data__loader": "dali"}, RuntimeError, "DALI decodes image files"),
    ],
)
def test_what_is_refused_leaves_no_run(options, error, words, tmp_path):
    with pytest.raises(error, match=words):
        trainer.train(tiny(tmp_path / "run", **options), device="cpu", quiet=True)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock"}
