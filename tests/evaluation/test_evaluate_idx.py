"""``ddgan-fast evaluate --extractor idx``: modes of samples whose classes are known."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from forked_ranks import ForkedRanks
from idx_ranks import __file__ as RANK_SCRIPT
from idx_sets import pictures, write_set
from tiny_run import IMAGES, save_run

from ddgan_fast.cli import main
from ddgan_fast.evaluation import evaluate
from ddgan_fast.evaluation.idx_classifier import load_classifier, save_classifier
from ddgan_fast.evaluation.idx_training import train_classifier
from ddgan_fast.evaluation.kid import inception_score

SIDE = 16
TINY = {"model.image_size": SIDE, **IMAGES}
ALL = np.array(list(itertools.product(range(10), repeat=3)))


@pytest.fixture(scope="module")
def idx_set(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("set"), 300, 50, side=SIDE)


@pytest.fixture(scope="module")
def classifier(idx_set, tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "c.safetensors"
    save_classifier(train_classifier(idx_set, epochs=12), path)
    assert load_classifier(path).about.accuracy == 1.0
    return path


@pytest.fixture
def run(tmp_path, idx_set):
    return save_run(tmp_path / "run", "stacked_mnist", {**TINY, "data.path": str(idx_set)})


def words(run, classifier, *more):
    found = [run, "--extractor", "idx", "--classifier", classifier, "--device", "cpu"]
    return [str(word) for word in [*found, "--time-batches", "none", *more]]


def last_record(run):
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def draws(monkeypatch, classes):
    """Have the generator draw images of these classes, [N] or [N, 3]."""
    grey = pictures(classes.flatten(), SIDE, seed=5).reshape(*classes.shape, SIDE, SIDE)
    images = grey[..., None] if classes.ndim == 1 else grey.transpose(0, 2, 3, 1)
    monkeypatch.setattr(evaluate, "generate", lambda model, n, **_: iter([images[:n]]))


@pytest.mark.parametrize(
    ("classes", "modes", "kl"),
    [
        (ALL, 1000, 0.0),
        (ALL * [1, 0, 1] + [0, 6, 0], 100, math.log(10)),
        (ALL * [0, 0, 1], 10, math.log(100)),
    ],
)
def test_modes_are_counted(run, classifier, monkeypatch, capsys, classes, modes, kl):
    draws(monkeypatch, classes)
    assert main(["evaluate", *words(run, classifier, "--metrics", "modes", "-n", "1000")]) == 0
    record = last_record(run)
    assert record["metrics"] == {"modes": modes, "kl": pytest.approx(kl, abs=1e-9)}
    assert record["n"] == 1000
    (warning,) = record["warnings"]
    assert "of 1,000 samples, and compare with no published ones" in warning
    assert f"  modes   {modes}\n" in capsys.readouterr().out


def test_the_record_holds_what_judged(run, classifier, idx_set, monkeypatch):
    draws(monkeypatch, ALL)
    names = "modes,fid,is,pr,dc"
    assert main(["evaluate", *words(run, classifier, "--metrics", names, "-n", "1000")]) == 0
    record = last_record(run)
    names = {"fd", "cs", "cs_std", "precision", "recall", "density", "coverage"}
    assert set(record["metrics"]) == {"modes", "kl", *(f"{name}_idx" for name in names)}
    judge = load_classifier(classifier)
    x = torch.from_numpy(pictures(ALL.flatten(), SIDE, seed=5))[:, None].float() / 127.5 - 1
    r, g, b = judge.network(x).softmax(1).view(1000, 3, 10).unbind(1)
    score, _ = inception_score(torch.einsum("na,nb,nc->nabc", r, g, b).flatten(1).log())
    assert record["metrics"]["cs_idx"] == pytest.approx(score, rel=1e-4)
    extractor = record["extractor"]
    assert (extractor["name"], extractor["sha256"]) == ("idx", judge.sha256)
    assert extractor["accuracy"] == 1.0
    assert extractor["trained_on_digest"] == judge.about.data_digest
    assert (extractor["modes_in_all"], extractor["kl_from"]) == (1000, "uniform modes")
    assert record["reference"]["data_count"] == 600


def test_grey_images_have_as_many_modes_as_classes(tmp_path, classifier, idx_set, monkeypatch):
    grey = {"model.num_channels": 1, "data.source": "idx", "data.path": str(idx_set)}
    run = save_run(tmp_path / "grey", "stacked_mnist", {**TINY, **grey})
    draws(monkeypatch, np.arange(40) % 8)
    assert main(["evaluate", *words(run, classifier, "--metrics", "modes", "-n", "40")]) == 0
    record = last_record(run)
    assert record["metrics"] == {"modes": 8, "kl": pytest.approx(math.log(10 / 8))}
    assert record["extractor"]["kl_from"] == "the training split's classes"
    assert record["warnings"] == []


def test_statistics_are_of_one_classifier(run, classifier, idx_set, tmp_path, capsys):
    stats, other = tmp_path / "stats.npz", tmp_path / "other.safetensors"
    made = words(run, classifier, "--make-reference", stats)
    assert main(["evaluate", *made]) == 0
    plain = words(run, classifier, "-n", "50")
    for more in (["--reference", str(stats)], []):
        assert main(["evaluate", *plain, *more]) == 0
    one, two = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert one["metrics"] == pytest.approx(two["metrics"], rel=1e-9)
    save_classifier(train_classifier(idx_set, epochs=1, seed=1), other)
    capsys.readouterr()
    assert main(["evaluate", *words(run, other, "--reference", stats)]) == 2
    assert "is of idx with other weights" in capsys.readouterr().err


def test_two_ranks_equal_one(run, classifier, tmp_path):
    arguments = words(run, classifier, "--metrics", "modes,fid,is,pr", "-n", "61")
    assert main(["evaluate", *arguments]) == 0
    ranks = ForkedRanks(tmp_path)
    try:
        codes, output = ranks.run(2, RANK_SCRIPT, json.dumps(arguments))
    finally:
        ranks.close()
    assert codes == [0, 0], output
    one, two = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--extractor idx", "the extractor idx needs a classifier: train one by ddgan-fast clas"),
        ("--extractor idx --classifier no.safetensors", "there is no classifier no.safetensors"),
        ("--extractor idx --classifier text.safetensors", "(5 bytes) is no classifier, or it is"),
        ("--extractor idx --classifier x --inception y", "leave one out"),
        ("--extractor digits --classifier x", "a classifier is named, but the extractor is digits"),
        ("--extractor lite0 --metrics modes", "modes of images are counted by a classifier"),
    ],
)
def test_bad_input_gets_one_sentence(run, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(run.parent)
    (run.parent / "text.safetensors").write_text("hello")
    assert main(["evaluate", str(run), "--device", "cpu", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddgan-fast: ") and error.count("\n") == 1, error
    assert sentence in error
    assert not (run / "metrics.jsonl").exists()
