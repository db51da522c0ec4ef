"""The comparison from the command line, with networks so small that they learn nothing."""

import json
import shutil

import pytest

from ddgan_fast.cli import main
from ddgan_fast.commands import trilemma as command
from ddgan_fast.evaluation import features
from ddgan_fast.trilemma import budget, compare

TINY = [
    *("--model.hidden", "8", "--discriminator.hidden", "8", "--run.batch_size", "8"),
    *("--data.limit", "200", "--run.tick", "5"),
]
PICTURES = ("samples.png", "quality.png", "coverage.png")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(budget, "_BLOCK_S", 0.001)
    monkeypatch.setattr(compare, "_TIMING_S", 0.001)


def trilemma(out, *arguments, preset="gaussians25", methods="ddgan,ddpm20,oneshot"):
    fixed = ["--budget", "0.1s", "--out", str(out), "--methods", methods, "-n", "200"]
    return main(["trilemma", preset, *fixed, "--device", "cpu", *TINY, *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison, its output, and its folder."""
    out = tmp_path_factory.mktemp("comparison") / "trilemma"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "_BLOCK_S", 0.001)
        patch.setattr(compare, "_TIMING_S", 0.001)
        assert trilemma(out, "--seeds", "1,2") == 0
    return out


@pytest.fixture
def copied(finished, tmp_path):
    """The comparison, to be changed."""
    return shutil.copytree(finished, tmp_path / "again")


def test_the_report_has_a_line_for_every_way_to_sample(finished):
    report = json.loads((finished / "report.json").read_text())

    titles = [row["title"] for row in report["rows"]]
    assert titles == ["DDGAN, T = 8", "DDPM-20", "DDPM-20, DDIM-8", "one-shot GAN"]
    assert [row["nfe"] for row in report["rows"]] == [8, 20, 8, 1]
    assert all(row["s_per_100"] > 0 for row in report["rows"])
    assert {row["steps"] for row in report["rows"][1:3]} == {report["rows"][1]["steps"]}
    final = [row for row in report["measured"] if row["kind"] == "final"]
    assert sorted((row["drawing"], row["seed"]) for row in final) == sorted(
        (title, seed) for title in titles for seed in (1, 2)
    )
    assert all(sum(row["counts"]) <= 200 and len(row["counts"]) == 25 for row in final)
    assert "trilemma gaussians25" in report["command"]
    text = (finished / "report.md").read_text()
    assert all(f"| {title} |" in text for title in titles)
    for name in PICTURES:
        assert (finished / name).stat().st_size > 5000
        assert f"({name})" in text


def test_training_is_measured_on_the_way(finished):
    rows = [json.loads(x) for x in (finished / "measured.jsonl").read_text().splitlines()]
    own = [r for r in rows if r["kind"] == "progress" and r["method"] == "ddgan" and r["seed"] == 1]

    steps = [row["step"] for row in own]
    assert len(steps) >= compare.SNAPSHOTS
    assert steps == sorted(set(steps))
    seconds = [row["train_s"] for row in own]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_what_is_done_is_not_done_again(copied, monkeypatch, capsys):
    before = (copied / "measured.jsonl").read_bytes()
    monkeypatch.setattr(compare, "seconds_per_step", None)
    (copied / "report.md").unlink()

    assert trilemma(copied, "--seeds", "1,2") == 0

    assert (copied / "measured.jsonl").read_bytes() == before
    assert (copied / "report.md").is_file()
    assert "Drawing" not in capsys.readouterr().out


def test_a_further_method_joins(copied):
    steps = json.loads((copied / "plan.json").read_text())["steps"]

    assert trilemma(copied, "--seeds", "1,2", methods="ddgan,ddpm20,oneshot,noz") == 0

    plan = json.loads((copied / "plan.json").read_text())
    assert plan["steps"].items() > steps.items()
    titles = [row["title"] for row in json.loads((copied / "report.json").read_text())["rows"]]
    assert titles[-1] == "DDGAN without latent, T = 8"


def test_a_line_cut_short_costs_that_line_alone(copied, capsys):
    path = copied / "measured.jsonl"
    lines = path.read_text().splitlines()
    whole = next(i for i, line in enumerate(lines) if '"kind": "final"' in line)
    lines[whole] = lines[whole][:50]
    path.write_text("\n".join(lines) + "\n")

    assert trilemma(copied, "--seeds", "1,2") == 0

    assert capsys.readouterr().out.count("Drawing") == 1


@pytest.mark.parametrize(
    "change", [["--budget", "9s"], ["--model.hidden", "16"]], ids=["budget", "options"]
)
def test_another_comparison_wants_another_folder(copied, change, capsys):
    assert trilemma(copied, *change) == 2

    assert "holds a comparison of gaussians25 under 0.1 s" in capsys.readouterr().err


def test_a_finished_run_stands_in_for_a_training(finished, tmp_path):
    run = finished / "runs" / "oneshot-seed1"

    code = trilemma(tmp_path / "out", "--load", f"oneshot={run}", methods="oneshot")

    assert code == 0
    assert not (tmp_path / "out" / "runs").exists()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows"][0]["train_s"]["median"] > 0
    assert str(run) in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("change", ["number", "checkpoint"])
def test_what_was_measured_otherwise_stays_out_of_the_report(copied, change):
    run = copied / "runs" / "oneshot-seed2"
    arguments = ["-n", "300"] if change == "number" else ["--load", f"oneshot={run}"]

    assert trilemma(copied, *arguments, methods="oneshot") == 0

    rows = json.loads((copied / "report.json").read_text())["measured"]
    kinds = [(row["kind"], row["seed"], row.get("n")) for row in rows if row["kind"] != "progress"]
    want = (1, 300) if change == "number" else (None, 200)
    assert sorted(kinds) == [("final", *want), ("time", None, None)]


def test_images_are_judged_by_an_extractor(tmp_path):
    small = ["--model.num_channels_dae", "8", "--model.z_emb_dim", "8"]

    code = trilemma(
        tmp_path, *small, "--metrics", "fid,pr,modes", preset="digits", methods="ddgan,ddpm5"
    )

    assert code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["rows"][0]["metrics"]) >= {"fd_digits", "precision_digits", "modes"}
    assert report["extractor"]["name"] == "digits"
    assert "FID" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "name", "with_modes"),
    [
        ("digits", "digits", True),
        ("cifar10 --data images", "lite0", False),
        ("cifar10 --data images --inception fid.pth", "inception", False),
        ("stacked_mnist --data images --classifier c.safetensors", "idx", True),
        ("digits --extractor lite0", "lite0", False),
    ],
)
def test_what_is_given_says_who_judges(monkeypatch, words, name, with_modes):
    asked = []
    monkeypatch.setattr(features, "build_extractor", lambda *name, **options: asked.append(name))

    request = command._request(*command._parse([*words.split(), "--budget", "1m"]))

    assert asked == [(name,)]
    assert request.metrics == ("fid", "pr", "dc", *(("modes",) if with_modes else ()))
    path = "images" if "--data" in words else None
    assert [method.cfg.data.path for method in request.methods] == [path] * 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--budget", "soon"], "it must be a time"),
        (["--seeds", "a"], "--seeds is 'a'"),
        (["--n", "3"], "--n is 3"),
        (["--methods", "gan"], "the method 'gan' is unknown"),
        (["--load", "ddgan"], "it must be METHOD=CHECKPOINT"),
        (["--load", "ddgan=nowhere"], "there is no nowhere"),
        (["--model.hidden"], "--model.hidden needs a value"),
        (["--model.hiden", "3"], "model.hiden"),
        (["--metrics", "fid"], "this model draws points"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, arguments, sentence):
    assert trilemma(tmp_path / "out", *arguments) == 2

    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_ranks_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    assert trilemma(tmp_path / "out") == 2

    assert "without torchrun" in capsys.readouterr().err


def test_without_matplotlib_nothing_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)

    assert trilemma(tmp_path / "out") == 1

    assert 'matplotlib: pip install "ddgan_fast[demo]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
