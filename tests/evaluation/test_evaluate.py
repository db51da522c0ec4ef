"""``ddgan-fast evaluate``: numbers against the parts they are made of, records, ranks, refusals."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_ranks import __file__ as RANK_SCRIPT
from forked_ranks import ForkedRanks
from PIL import Image
from plain_inception import PlainInception, seeded_weights
from tiny_run import IMAGES, save_run

pytest.importorskip("sklearn")

from ddgan_fast.cli import main
from ddgan_fast.data.prepare import prepare
from ddgan_fast.data.prepare_request import Request
from ddgan_fast.data.sources import digits as real_digits
from ddgan_fast.evaluation import digits, timing
from ddgan_fast.evaluation.collect import through_jpeg
from ddgan_fast.evaluation.features import build_extractor
from ddgan_fast.evaluation.frechet import frechet_distance, gaussian_of
from ddgan_fast.evaluation.kid import inception_score, kernel_distance
from ddgan_fast.evaluation.prdc import density_coverage, precision_recall
from ddgan_fast.evaluation.statistics import Provenance, read_statistics, write_statistics
from ddgan_fast.sampling import generate, load_generator

POINTS = {"model.hidden": 8, "model.hidden_layers": 1, "model.num_timesteps": 2}
N = 61
SMALL = ["-n", str(N), "--extractor", "digits", "--device", "cpu", "--time-batches", "none"]


@pytest.fixture
def run(tmp_path):
    return save_run(tmp_path / "run", "digits", IMAGES)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("judge") / "classifier.pt"
    torch.save(digits.digit_judge().classifier.state_dict(), path)
    return path


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def complaint(capsys, *arguments: object) -> str:
    assert main(["evaluate", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddgan-fast: ") and error.count("\n") == 1, error
    return error


def test_numbers_are_those_of_the_parts(run, capsys):
    names = "fid,kid,is,pr,dc,modes"
    assert main(["evaluate", str(run), *SMALL, "--metrics", names, "--seed", "3"]) == 0
    out = capsys.readouterr().out
    (record,) = records(run)
    model, extractor = load_generator(run), build_extractor("digits")
    own = torch.from_numpy(np.concatenate(list(generate(model, N, seed=3))))
    real = torch.from_numpy(real_digits(8).array)
    fake, logits = extractor(own)
    reals = extractor(real)[0]
    subset = reals[torch.arange(N) * len(reals) // N]
    want = {
        "fd_digits": frechet_distance(gaussian_of(reals), gaussian_of(fake)),
        **zip_two("kd{}_digits", kernel_distance(subset, fake, seed=3)),
        **zip_two("cs{}_digits", inception_score(logits)),
    }
    want["precision_digits"], want["recall_digits"] = precision_recall(subset, fake)
    want["density_digits"], want["coverage_digits"] = density_coverage(subset, fake)
    got = record["metrics"]
    assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-5)
    assert set(got) == {*want, "modes", "kl"}
    assert not any("fid" in name or "kid" in name for name in got)
    assert f"fd_digits         {got['fd_digits']:.5g}\n" in out
    assert f"Added to {run / 'metrics.jsonl'}." in out


def zip_two(title: str, values: tuple[float, float]) -> dict[str, float]:
    return {title.format(""): values[0], title.format("_std"): values[1]}


def test_the_record_holds_what_repeats_it(run, tmp_path, monkeypatch):
    few = functools.partial(timing.time_sampling, rounds=5)
    monkeypatch.setattr(timing, "time_sampling", few)
    (run / "metrics.jsonl").write_text('{"cut sho')  # a killed process left it
    file = tmp_path / "deep/result.json"
    words = [str(run), *SMALL, "--json", str(file), "--jpeg75"]
    words[words.index("none")] = "2,3"
    assert main(["evaluate", *words]) == 0
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == '{"cut sho' and len(lines) == 2
    record = json.loads(lines[1])
    assert record == json.loads(file.read_text())
    assert record["command"] == "ddgan-fast evaluate " + " ".join(words)
    assert record["checkpoint"] == "ema-000000007.safetensors"
    assert len(record["checkpoint_sha256"]) == 64
    assert (record["step"], record["n"], record["seed"], record["nfe"]) == (7, N, 0, 2)
    assert record["weights"] == "ema" and record["jpeg75"] is True and record["ranks"] == 1
    assert record["extractor"]["name"] == "digits" and len(record["extractor"]["sha256"]) == 64
    assert record["reference"]["data_digest"] == real_digits(8).digest
    assert record["reference"]["data_count"] == 1797
    assert set(record["versions"]) == {"ddgan_fast", "torch", "numpy", "python"}
    assert [row["batch"] for row in record["sampling"]] == [2, 3]
    for row in record["sampling"]:
        assert 1 <= row["rounds"] <= 5
        assert (row["warm_up"], row["clock"], row["engine"]) == (1, "perf_counter", "eager")
        assert row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
        assert row["s_per_100"] == pytest.approx(row["ms_p50"] / 1000 * 100 / row["batch"])


def test_too_few_samples_are_told_with_the_bias(run, capsys):
    assert main(["evaluate", str(run), *SMALL]) == 0
    assert "Warning: fd_digits of 61 samples is too high" in capsys.readouterr().out
    (record,) = records(run)
    few, reference = record["warnings"]
    assert "by about" in few and "take 10,000 or more" in few
    assert "the reference is of 1,797 images only" in reference
    assert main(["evaluate", str(run), *SMALL, "-n", "3"]) == 0  # no two halves to compare
    assert "understate their own spread: take 10,000 or more" in records(run)[1]["warnings"][0]


def test_statistics_made_and_used_again(run, tmp_path, capsys, monkeypatch):
    stats = tmp_path / "stats.npz"
    assert main(["evaluate", "--make-reference", str(stats), str(run), *SMALL]) == 0
    assert f"Statistics of 1,797 images in {stats}." in capsys.readouterr().out
    for source in (["--reference", str(stats)], []):
        assert main(["evaluate", str(run), *SMALL, *source]) == 0
    by_file, by_data = records(run)
    assert by_file["metrics"] == pytest.approx(by_data["metrics"], rel=1e-9)
    assert by_file["reference"]["statistics_digest"] == real_digits(8).digest
    assert by_file["reference"]["statistics_count"] == 1797
    classifier = digits.digit_judge().classifier
    monkeypatch.setattr(digits, "digit_judge", lambda: type("J", (), {"classifier": other})())
    other = digits.Classifier().eval()
    assert other is not classifier
    error = complaint(capsys, run, *SMALL, "--reference", stats)
    assert "is of digits with other weights" in error


def test_statistics_of_shards_need_no_preset(tmp_path, capsys):
    folder, shards, stats = tmp_path / "images", tmp_path / "shards", tmp_path / "stats.npz"
    folder.mkdir()
    real = real_digits(8).array[:30]
    for i, pixels in enumerate(real):
        Image.fromarray(pixels[..., 0]).save(folder / f"{i:02}.png")
    prepare(Request(str(folder), str(shards), resolution=8, channels=1, workers=1))
    assert main(["evaluate", "--make-reference", str(stats), "--data", str(shards), *SMALL]) == 0
    assert f"Statistics of 30 images in {stats}." in capsys.readouterr().out
    extractor = build_extractor("digits")
    found = read_statistics(stats, extractor)
    assert found.provenance.image_size == 8
    want = gaussian_of(extractor(torch.from_numpy(real))[0])
    assert torch.allclose(found.gaussian.mean, want.mean, rtol=1e-6)


def test_samples_of_another_size_than_the_reference_are_told(run, tmp_path, capsys):
    stats = tmp_path / "stats.npz"
    extractor = build_extractor("digits")
    gaussian = gaussian_of(extractor(torch.from_numpy(real_digits(8).array))[0])
    own = (extractor.name, extractor.sha256, extractor.transform)
    write_statistics(stats, gaussian, Provenance(*own, 1797, "", "", 32, "", ""))
    assert main(["evaluate", str(run), *SMALL, "--reference", str(stats)]) == 0
    sentence = "the reference is of images of 32x32 pixels, and the samples have 8x8."
    assert f"Warning: {sentence}" in capsys.readouterr().out
    assert sentence in records(run)[0]["warnings"]


def test_jpeg_is_for_the_samples_and_not_for_the_real_images(run):
    assert main(["evaluate", str(run), *SMALL, "--jpeg75"]) == 0
    extractor = build_extractor("digits")
    drawn = through_jpeg(np.concatenate(list(generate(load_generator(run), N))), 75)
    fake, real = (
        gaussian_of(extractor(torch.from_numpy(x))[0]) for x in (drawn, real_digits(8).array)
    )
    (record,) = records(run)
    want = frechet_distance(real, fake)
    assert record["metrics"]["fd_digits"] == pytest.approx(want, rel=1e-5)


def test_two_ranks_equal_one(run, classifier, tmp_path):
    arguments = [str(run), *SMALL, "--metrics", "fid,kid,is,pr,dc,modes"]
    assert main(["evaluate", *arguments]) == 0
    ranks = ForkedRanks(tmp_path)
    try:
        codes, output = ranks.run(2, RANK_SCRIPT, classifier, json.dumps(arguments))
    finally:
        ranks.close()
    assert codes == [0, 0], output
    assert output.count("Added to") == 1
    one, two = records(run)
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    assert len(two["warnings"]) == len(one["warnings"])


def test_points_have_modes_only(tmp_path, capsys):
    run = save_run(tmp_path / "points", "gaussians25", POINTS)
    words = ["-n", "300", "--device", "cpu", "--time-batches", "none"]
    assert main(["evaluate", str(run), *words]) == 0
    (record,) = records(run)
    assert set(record["metrics"]) == {"modes", "near", "kl", "spread", "bridges"}
    assert "extractor" not in record
    assert record["sampling"] == []
    error = complaint(capsys, run, "--metrics", "fid,modes", "--device", "cpu")
    assert "the metric fid judges images, and this model draws points: use modes." in error
    assert "--jpeg75 is for images" in complaint(capsys, run, "--jpeg75", "--device", "cpu")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--metrics fid,fud", "the metric 'fud' is unknown: choose among fid, kid, is"),
        ("", "the extractor inception needs its weights: name pytorch-fid's file"),
        ("--inception none.pth", "there is no Inception weight file none.pth"),
        ("--extractor vgg", "the extractor is 'vgg': choose one of inception, lite0, digits"),
        ("--metrics modes", "modes of images are counted by a classifier: choose --extractor"),
        ("--extractor digits --reference no.npz", "there is no statistics file no.npz"),
        ("-n 0", "--n is 0: it must be at least 1"),
        ("--batch 0", "--batch is 0"),
        ("--time-batches 1,x", "--time-batches is '1,x'"),
        ("--extractor digits --data nowhere", "nowhere does not exist"),
        ("--extractor digits -n 3 --metrics dc", "at least 6 real and 6 generated images"),
        ("--extractor digits -n 1", "needs at least 2 feature vectors, but there are 1"),
        ("--make-reference stats.npy", "statistics are written as .npz files"),
    ],
)
def test_bad_input_gets_one_sentence(run, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(run.parent)
    assert sentence in complaint(capsys, run, "--device", "cpu", *words.split())
    assert not (run / "metrics.jsonl").exists()


def test_what_has_nothing_to_compare_with(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = save_run(tmp_path / "files", "digits", {**IMAGES, "data.source": "auto"})
    words = (run, "--extractor", "digits", "--device", "cpu")
    assert "give --data PATH, or their statistics by --ref" in complaint(capsys, *words)
    error = complaint(capsys, *words, "--metrics", "pr,dc", "--reference", "stats.npz")
    assert "pr, dc compare with real images one by one" in error
    for words, sentence in (
        ([], "evaluate what? Name a checkpoint"),
        (["--make-reference", "a.npz"], "statistics of what? Name the images by --data PATH"),
        (["--make-reference", "a.npz", "--data", "."], "name a preset of that size by --recipe"),
        (["--make-reference", "a.npz", "--recipe", "gaussians25"], "this configuration is of po"),
    ):
        assert sentence in complaint(capsys, *words)


@pytest.mark.slow
def test_fid_with_inception(tmp_path, capsys):
    """The whole way with seeded weights, which are not the published ones."""
    weights = tmp_path / "seeded.pth"
    torch.save(seeded_weights(PlainInception()), weights)
    run = save_run(tmp_path / "run", "digits", IMAGES)
    words = ["-n", "12", "--metrics", "kid,is,pr", "--inception", str(weights)]
    assert main(["evaluate", str(run), *words, "--device", "cpu", "--time-batches", "none"]) == 0
    (record,) = records(run)
    assert set(record["metrics"]) == {"kid", "kid_std", "is", "is_std", "precision", "recall"}
    assert "the Inception weights (SHA-256" in capsys.readouterr().out
