"""Classes, guidance and classifiers on the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ddgan_fast.cli import main
from ddgan_fast.config import load_config, to_dict
from ddgan_fast.models import build_generator
from ddgan_fast.training.checkpoint import save_ema


def snapshot(preset, path):
    """An untrained network, all of whose layers have a say."""
    cfg = load_config(preset)
    torch.manual_seed(0)
    network = build_generator(cfg)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_ema(path, 3, network.state_dict(), to_dict(cfg))
    return str(path)


@pytest.fixture
def files(tmp_path):
    """A network of each preset, by its name."""

    class Files(dict):
        def __missing__(self, preset):
            (tmp_path / preset).mkdir()
            self[preset] = snapshot(preset, tmp_path / preset / "ema-000000003.safetensors")
            return self[preset]

    return Files()


def sample(file, out, words):
    assert main(["sample", file, "-n", "4", "-o", str(out), *words.split()]) == 0
    return np.load(out)["arr_0"]


def test_samples_of_classes(files, tmp_path):
    out = tmp_path / "out.npz"
    drawn = {
        words: sample(files["digits_classes"], out, words)
        for words in ("", "--class 3", "--class 3,7", "--class all", "--class 3 --guidance 2")
    }
    assert len({images.tobytes() for images in drawn.values()}) == 5
    both, three = drawn["--class 3,7"], drawn["--class 3"]
    np.testing.assert_allclose(both[::2].astype(int), three[::2], atol=1)
    ddpm = "--steps 3 --class 3"
    first = sample(files["digits_ddpm_classes"], out, ddpm)
    assert (first != sample(files["digits_ddpm_classes"], out, ddpm + " --guidance 2")).any()


def test_a_classifier_guides_a_ddpm_with_or_without_classes(files, tmp_path):
    out = tmp_path / "out.npz"
    for preset in ("digits_ddpm", "digits_ddpm_classes"):
        words = f"--steps 3 --class 3 --classifier {files['digits_classifier']}"
        one, more, none = (
            sample(files[preset], out, f"{words} --classifier-scale {scale}")
            for scale in (1, 9, 0)
        )
        assert (one != more).any() and (none != more).any()
    bare = sample(files["digits_ddpm"], out, "--steps 3")
    none = sample(
        files["digits_ddpm"],
        out,
        f"--steps 3 --classifier {files['digits_classifier']} --classifier-scale 0",
    )
    assert np.array_equal(bare, none)


REFUSALS = [
    ("digits", "--class 3", "the model knows no classes"),
    ("digits_classes", "--class 10", "the class 10 does not exist: classes are 0 to 9."),
    ("digits_classes", "--class three", "--class is 'three': it must be a class, a list"),
    ("digits_classes", "--guidance -1", "the guidance is -1.0"),
    ("digits_classes", "--classifier {}", "so it guides a DDPM, and this model is a denoising"),
    ("digits_ddpm", "--guidance 2 --classifier {}", "the model itself knows no classes"),
    ("digits_ddpm", "--classifier-scale 2", "but there is no classifier: name one"),
    ("digits_ddpm", "--classifier nowhere", "there is no checkpoint nowhere"),
    ("gaussians25_ddpm", "--classifier {}", "was trained with model.kind = ncsnpp, and the model"),
    ("digits_classifier", "", "holds a classifier, which draws nothing"),
]


@pytest.mark.parametrize(("preset", "words", "sentence"), REFUSALS)
def test_refusals_are_one_sentence_and_leave_nothing(
    files, tmp_path, capsys, preset, words, sentence
):
    out = tmp_path / "grid.png"
    words = words.format(files["digits_classifier"]).split()
    assert main(["sample", files[preset], "-n", "4", "-o", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not out.exists()


def test_a_classifier_of_another_schedule_is_refused(files, tmp_path, capsys):
    cfg = load_config("digits_classifier", {"model.beta_max": 15.0})
    other = tmp_path / "ema-000000009.safetensors"
    save_ema(other, 9, build_generator(cfg).state_dict(), to_dict(cfg))
    words = ["-n", "2", "-o", str(tmp_path / "x.png"), "--classifier"]
    assert main(["sample", files["digits_ddpm"], *words, str(other)]) == 2
    error = capsys.readouterr().err
    assert "trained with model.beta_max = 15.0, and the model that it is to guide with 20" in error
    assert main(["sample", files["digits_ddpm"], *words, files["digits_classes"]]) == 2
    assert 'no classifier, but a model trained with loss.kind "gan"' in capsys.readouterr().err


def test_evaluations_state_classes_and_count_both_predictions(files, tmp_path):
    options = ["--metrics", "modes", "--extractor", "digits", "-n", "64", "--time-batches", "none"]
    entries = []
    for preset, words in (
        ("digits_classes", ""),
        ("digits_classes", "--guidance 2"),
        ("digits_ddpm", f"--steps 2 --guiding-classifier {files['digits_classifier']}"),
        ("digits_ddpm", "--steps 2"),
    ):
        assert main(["evaluate", files[preset], *options, *words.split()]) == 0
        path = tmp_path / preset / "metrics.jsonl"
        entries.append(json.loads(path.read_text().splitlines()[-1]))
    plain, guided, classified, free = entries
    assert (plain["nfe"], guided["nfe"], classified["nfe"], free["nfe"]) == (4, 8, 2, 2)
    assert plain["classes"] == {"labels": "uniform", "guidance": 1.0}
    assert guided["classes"]["guidance"] == 2.0
    known = classified["classes"]
    assert (known["classifier_scale"], known["classifier_nfe"]) == (1.0, 2)
    assert known["classifier"] == "ema-000000003.safetensors" and known["classifier_sha256"]
    assert "classes" not in free


def test_edits_take_one_class(files, tmp_path, capsys):
    picture, out = tmp_path / "grey.png", tmp_path / "out.npz"
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(picture)
    found = []
    for words in ([], ["--class", "3"], ["--class", "7"]):
        command = ["edit", "noise", files["digits_classes"], str(picture), "-o", str(out)]
        assert main([*command, "-n", "2", *words]) == 0
        found.append(np.load(out)["arr_0"].tobytes())
    assert len(set(found)) == 3
    for words, sentence in (("10", "the class 10 does not exist"), ("all", "an edit draws one")):
        assert main([*command, "--class", words]) == 2
        assert sentence in capsys.readouterr().err


def test_from_training_a_classifier_to_a_picture(files, tmp_path, capsys):
    """Trained by the command, named by its folder."""
    run = tmp_path / "classifier"
    words = ["--run.dir", str(run), "--run.steps", "2", "--run.tensorboard", "false"]
    assert main(["train", "digits_classifier", *words]) == 0
    assert "Guide a DDPM by it: ddgan-fast sample DDPM --classifier" in capsys.readouterr().out
    out = tmp_path / "out.png"
    words = ["-n", "20", "-o", str(out), "--steps", "2", "--classifier", str(run), "--class", "all"]
    assert main(["sample", files["digits_ddpm"], *words]) == 0
    with Image.open(out) as picture:
        assert picture.width > 3 * picture.height  # a class in each of ten columns
