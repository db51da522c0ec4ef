"""The classifier of an IDX set: what it learns, its file, and what is refused."""

import json
import struct
from dataclasses import asdict

import numpy as np
import pytest
import torch
from idx_sets import pictures, write_set, write_split

from ddgan_fast.cli import main
from ddgan_fast.data.records_idx import StackedRecords, open_idx
from ddgan_fast.evaluation import idx_classifier
from ddgan_fast.evaluation.features import build_extractor
from ddgan_fast.evaluation.idx_classifier import (
    load_classifier,
    make_classifier,
    save_classifier,
)
from ddgan_fast.evaluation.idx_training import train_classifier


@pytest.fixture(scope="module")
def idx_set(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def trained(idx_set, tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    classifier = train_classifier(idx_set, epochs=8)
    save_classifier(classifier, path)
    return classifier, path


def complaint(capsys, *arguments: object) -> str:
    assert main(["classifier", *map(str, arguments), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddgan-fast: ") and error.count("\n") == 1, error
    return error


def test_learns_and_says_how_well(idx_set, trained):
    about = trained[0].about
    assert about.accuracy == 1.0
    assert (about.size, about.classes, about.counts) == (12, 10, (60,) * 10)
    assert about.tested_on == "100 images, its test split"
    assert about.data_digest == open_idx(idx_set, "train").fingerprint
    test = open_idx(idx_set, "validation")
    counts = np.bincount(StackedRecords(test).labels, minlength=1000)
    share = counts[counts > 0] / 200
    assert about.stacked_modes == (counts > 0).sum()
    assert about.stacked_kl == pytest.approx((share * np.log(1000 * share)).sum())


def test_accuracy_is_that_of_the_test_split(tmp_path):
    """Half of the test labels are wrong."""
    labels = np.arange(200) % 4
    wrong = np.where(np.arange(200) < 100, labels, (labels + 1) % 4)
    folder = write_split(tmp_path, "train", pictures(labels, 12, 0), labels)
    write_split(folder, "t10k", pictures(labels, 12, 1), wrong)
    assert train_classifier(folder, epochs=8).about.accuracy == 0.5


def test_the_same_seed_gives_the_same_file(idx_set, trained, tmp_path):
    torch.manual_seed(99)  # of the caller: neither read nor moved
    state = torch.random.get_rng_state()
    save_classifier(train_classifier(idx_set, epochs=8), tmp_path / "again.safetensors")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (tmp_path / "again.safetensors").read_bytes() == trained[1].read_bytes()
    assert train_classifier(idx_set, epochs=8, seed=1).sha256 != trained[0].sha256


@pytest.mark.gpu
def test_repeats_itself_on_a_gpu(idx_set):
    one, two = (train_classifier(idx_set, epochs=8, device="cuda") for _ in range(2))
    assert one.sha256 == two.sha256
    assert one.about.accuracy == 1.0
    assert {p.device.type for p in one.network.parameters()} == {"cpu"}


def test_a_tenth_is_held_out_without_a_test_split(tmp_path):
    folder = write_set(tmp_path / "set", n=500, n_test=0, classes=5)
    about = train_classifier(folder, epochs=12).about
    assert about.tested_on == "50 images, held out"
    assert about.accuracy == 1.0
    file = next(folder.glob("train-images*"))
    write_set(folder, n=500, n_test=50, classes=5)  # a file is by itself
    assert train_classifier(file, epochs=1).about.tested_on == "50 images, held out"


def test_splits_of_different_sizes_are_refused(tmp_path):
    folder = write_set(tmp_path, n=20, n_test=0, classes=2)
    labels = np.arange(10) % 2
    write_split(folder, "t10k", pictures(labels, 16), labels)
    with pytest.raises(ValueError, match="its training and test images differ in size"):
        train_classifier(folder, epochs=1)


def test_published_sides_are_padded(tmp_path):
    folder = write_set(tmp_path, n=100, n_test=20, classes=2, side=28)
    assert train_classifier(folder, epochs=1).about.size == 32


def test_the_file_gives_the_same_network_back(trained):
    classifier, path = trained
    loaded = load_classifier(path)
    assert (loaded.about, loaded.sha256) == (classifier.about, classifier.sha256)
    x = torch.rand(3, 1, 12, 12)
    assert torch.equal(loaded.network(x), classifier.network(x))
    assert not loaded.network.training


def test_the_command_writes_it(idx_set, tmp_path, capsys):
    path = tmp_path / "deep/c.safetensors"
    words = ["classifier", str(idx_set), "-o", str(path), "--epochs", "8", "--device", "cpu"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "Epoch 8 of 8: 100.00% right." in out
    assert f"{path}: 10 classes of 12x12 images, 100.00% of 100 images, its test split" in out
    assert load_classifier(path).sha256[:8] in out
    assert "of 1,000 modes, and a KL from even ones of 1." in out
    assert [place.name for place in path.parent.iterdir()] == [path.name]


def test_a_write_that_fails_leaves_what_was_there(trained, tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    path.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ddgan_fast.evaluation.idx_classifier.write_safetensors", full)
    with pytest.raises(OSError, match="No space"):
        save_classifier(trained[0], path)
    assert path.read_text() == "before"
    assert [place.name for place in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_learnt_is_refused(idx_set, tmp_path, capsys):
    out = ("-o", tmp_path / "c.safetensors")
    labels = np.arange(20) % 2
    bare = write_split(tmp_path / "bare", "train", pictures(labels), None)
    assert f"{bare} has no labels: put the file of" in complaint(capsys, bare, *out)
    one = write_split(tmp_path / "one", "train", pictures(labels), labels * 0 + 3)
    assert "has labels from 3 to 3: a classifier needs at least" in complaint(capsys, one, *out)
    many = write_split(tmp_path / "many", "train", pictures(labels), labels * 255)
    assert "has labels from 0 to 255" in complaint(capsys, many, *out)
    wide = write_split(tmp_path / "wide", "train", pictures(labels)[:, :8], labels)
    assert "has images of 8x12 pixels" in complaint(capsys, wide, *out)
    assert "nowhere does not exist" in complaint(capsys, "nowhere", *out)
    assert "holds no IDX files" in complaint(capsys, tmp_path, *out)
    assert "epochs is 0" in complaint(capsys, idx_set, *out, "--epochs", 0)
    assert "c.pt is none" in complaint(capsys, idx_set, "-o", tmp_path / "c.pt")
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "deep" / "c.safetensors"
    assert "is no folder that you may write to" in complaint(capsys, idx_set, "-o", below)
    assert not list(tmp_path.glob("c.*"))


def changed_header(data: bytes, change) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data[8 + length :]


def renamed(header):
    header["out.wait"] = header.pop("out.weight")


def of_others(header):
    header["__metadata__"] = {"format": "pt"}


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: data[:-100], "is no classifier, or it is cut short"),
        (lambda data: b"", "(0 bytes) is no classifier, or it is cut short"),
        (lambda data: data[:-9] + bytes(8) + data[-1:], "its bytes changed after it was written"),
        (lambda data: changed_header(data, renamed), "its bytes changed after it was written"),
        (lambda data: changed_header(data, of_others), "is no classifier of this version (pt)"),
    ],
)
def test_other_files_are_refused(trained, tmp_path, damage, sentence):
    path = tmp_path / "other.safetensors"
    path.write_bytes(damage(trained[1].read_bytes()))
    with pytest.raises(ValueError) as error:
        build_extractor("idx", classifier=path, size=12)
    assert sentence in str(error.value)
    assert "make it again by ddgan-fast classifier." in str(error.value)


def test_what_another_version_wrote_is_refused(trained, tmp_path, monkeypatch):
    network, about, path = trained[0].network, trained[0].about, tmp_path / "other.safetensors"
    save_classifier(make_classifier(torch.nn.Linear(2, 2), about), path)
    with pytest.raises(ValueError, match="holds another network than this version's: make it ag"):
        load_classifier(path)
    less = {name: value for name, value in asdict(about).items() if name != "stacked_kl"}
    monkeypatch.setattr(idx_classifier, "_to_json", lambda about: json.dumps(less))
    save_classifier(make_classifier(network, about), path)
    with pytest.raises(ValueError, match="holds another network than this version's: make it ag"):
        load_classifier(path)


def test_the_extractor_sees_each_channel_by_itself(trained, idx_set):
    extractor = build_extractor("idx", classifier=trained[1], size=12, channels=3)
    assert (extractor.dim, extractor.sha256) == (384, trained[0].sha256)
    labels = torch.tensor([[0, 3, 7], [9, 9, 1]])
    grey = torch.from_numpy(pictures(labels.flatten().numpy()))
    features, logits = extractor(grey.view(2, 3, 12, 12).permute(0, 2, 3, 1))
    assert extractor.modes.numbers(logits).tolist() == [37, 991]
    x = grey[:, None].float() / 127.5 - 1
    want = trained[0].network.features(x).view(2, 384)
    torch.testing.assert_close(features, want)
    alone = build_extractor("idx", classifier=trained[1], size=12, channels=1)
    assert alone.modes.shares == (0.1,) * 10
    got, verdicts = alone(grey[..., None])
    torch.testing.assert_close(got.view(2, 384), features)
    assert verdicts.argmax(1).tolist() == labels.flatten().tolist()


def test_images_of_28_are_padded_with_black(tmp_path):
    path = tmp_path / "c.safetensors"
    save_classifier(train_classifier(write_set(tmp_path, 100, 20, 2, 28), epochs=1), path)
    small, large = (build_extractor("idx", classifier=path, size=s, channels=1) for s in (28, 32))
    images = torch.randint(0, 256, (2, 28, 28, 1), dtype=torch.uint8)
    padded = torch.nn.functional.pad(images, (0, 0, 2, 2, 2, 2))
    assert torch.equal(small(images)[0], large(padded)[0])


def test_what_does_not_fit_the_images_is_refused(trained, tmp_path):
    path = trained[1]
    for options, sentence in (
        ({"size": 32}, "is of images of 12x12 pixels, and those to be judged have 32x32"),
        ({"size": 12, "channels": 4}, "the images have 4 channels"),
    ):
        with pytest.raises(ValueError, match=sentence):
            build_extractor("idx", classifier=path, **options)
    folder = write_set(tmp_path / "set", 48, 24, classes=12)
    many = tmp_path / "many.safetensors"
    save_classifier(train_classifier(folder, epochs=1), many)
    assert build_extractor("idx", classifier=many, size=12, channels=1).modes.total == 12
    with pytest.raises(ValueError, match="has 12 classes, and stacked images are of modes 100 R"):
        build_extractor("idx", classifier=many, size=12, channels=3)
    with pytest.raises(ValueError, match="the extractor idx needs a classifier: train one by"):
        build_extractor("idx")
    with pytest.raises(ValueError, match="the extractor is digits: leave one out"):
        build_extractor("digits", classifier=path)
    with pytest.raises(FileNotFoundError, match=r"there is no classifier none\.safetensors"):
        build_extractor("idx", classifier="none.safetensors")
