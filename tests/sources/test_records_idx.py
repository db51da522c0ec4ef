"""IDX files and StackedMNIST: padding, triples, labels, damaged files, Fashion-MNIST."""

import gzip
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from makers import idx, pictures, png, write_idx

from ddgan_fast.config import load_config
from ddgan_fast.data import build_dataset
from ddgan_fast.data.open import open_records
from ddgan_fast.data.records import decode
from ddgan_fast.data.records_idx import read_idx

DIGITS = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
LABELS = np.arange(30) * 7 % 10
PADDED = np.pad(DIGITS, ((0, 0), (2, 2), (2, 2)))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("inside", ["", "raw", "MNIST/raw", "FashionMNIST/raw"])
def test_digits_are_padded(tmp_path, packed, inside, unchanged):
    write_idx(tmp_path / inside, DIGITS, LABELS, packed=packed)
    write_idx(tmp_path / inside, DIGITS[::-1], LABELS[::-1], "t10k", packed)
    unchanged()
    records = open_records(tmp_path)
    assert records.kind == "idx" and len(records) == 30 and not records.flips
    np.testing.assert_array_equal([decode(records, i, 32, 1)[..., 0] for i in range(30)], PADDED)
    np.testing.assert_array_equal(records.labels, LABELS)
    assert records.class_names[3] == "3"
    test = open_records(tmp_path, split="validation")
    np.testing.assert_array_equal(test.pixels()[..., 0], PADDED[::-1])
    both = open_records(tmp_path, split="both")
    np.testing.assert_array_equal(both.pixels(), [*records.pixels(), *test.pixels()])
    assert len(both.labels) == 60


def test_padding_depends_on_the_network(tmp_path):
    path = write_idx(tmp_path, DIGITS, LABELS) / "train-images-idx3-ubyte.gz"
    assert open_records(path, size=28).pixels().shape == (30, 28, 28, 1)
    assert open_records(path, size=64).pixels().shape == (30, 32, 32, 1)
    large = write_idx(tmp_path / "large", PADDED, None)
    assert open_records(large).pixels().shape == (30, 32, 32, 1)
    assert open_records(large).labels is None
    cfg = load_config("stacked_mnist", {"data.path": str(path), "data.source": "idx"})
    dataset = build_dataset(cfg)
    images = dataset.fetch(np.arange(30))
    np.testing.assert_array_equal(images, PADDED[..., None].repeat(3, axis=3))


def test_stacked_mnist(tmp_path, unchanged):
    path = write_idx(tmp_path / "MNIST" / "raw", DIGITS, LABELS).parent.parent
    unchanged()
    dataset = build_dataset(load_config("stacked_mnist", {"data.path": str(path)}))
    images = dataset.fetch(np.arange(60))
    assert images.shape == (60, 32, 32, 3) and not dataset.flips
    which = {digit.tobytes(): i for i, digit in enumerate(PADDED)}
    triples = np.array(
        [[which[np.ascontiguousarray(x[..., c]).tobytes()] for c in range(3)] for x in images]
    )
    for channel in triples.T:  # two orders of all digits
        np.testing.assert_array_equal(np.sort(channel[:30]), np.arange(30))
        np.testing.assert_array_equal(np.sort(channel[30:]), np.arange(30))
    assert len({tuple(channel) for c in triples.T for channel in (c[:30], c[30:])}) == 6
    red, green, blue = LABELS[triples].T
    np.testing.assert_array_equal(dataset.labels, 100 * red + 10 * green + blue)
    # Fixed for ever: another order would be another data set under the same digest.
    assert triples[:3].tolist() == [[28, 22, 1], [24, 2, 28], [15, 29, 3]]


def test_stacked_records_one_by_one(tmp_path):
    records = open_records(write_idx(tmp_path, DIGITS, LABELS), "stacked_mnist")
    whole = records.pixels()
    copy = pickle.loads(pickle.dumps(records))
    np.testing.assert_array_equal([copy.read(i) for i in range(60)], whole)
    assert "stacked image 4 of the digits" in copy.name(4) and copy.fingerprint
    assert records.fingerprint != open_records(tmp_path).fingerprint
    assert len(records.class_names) == 1000
    unlabelled = open_records(write_idx(tmp_path / "x", DIGITS, None), "stacked_mnist")
    assert unlabelled.labels is None and len(unlabelled) == 60


def test_stacked_mnist_of_something_else(tmp_path):
    (tmp_path / "0.png").write_bytes(png(pictures(1)[0]))
    with pytest.raises(
        ValueError, match=r"holds no IDX files \(such as train-images-idx3-ubyte\.g"
    ):
        open_records(tmp_path, "stacked_mnist")


def test_packed_and_plain_are_one_set(tmp_path):
    one = open_records(write_idx(tmp_path / "one", DIGITS, LABELS))
    two = open_records(write_idx(tmp_path / "two", DIGITS, LABELS, packed=False))
    assert one.fingerprint == two.fingerprint
    other = open_records(write_idx(tmp_path / "three", DIGITS, LABELS[::-1]))
    assert other.fingerprint != one.fingerprint


GOOD = idx(DIGITS)
PACKED = gzip.compress(GOOD)
DAMAGED = {
    "empty": (b"", "it begins with nothing"),
    "HTML": (b"<html>" * 9, "begins with 3c 68 74 6d"),
    "labels": (idx(LABELS), "is no IDX file of bytes in 3 dimensions: it begins with 00 00 08 01"),
    "cut header": (GOOD[:9], "is no IDX file of bytes in 3 dim"),
    "cut": (GOOD[:-1], r"claims an array of \[30, 28, 28\], 23,520 bytes, but has 23,519: copy"),
    "longer": (GOOD + b"x", "23,520 bytes, but has more: copy it again"),
    "cut gzip": (PACKED[:-2000], "is cut short or damaged"),
    "flipped gzip": (
        PACKED[:5000] + b"\0\0" + PACKED[5002:],
        "is cut short or damaged .*|claims .* but has",
    ),
    "no images": (idx(DIGITS[:0]), r"claims to hold an array of \[0, 28, 28\]"),
    "huge": (GOOD[:4] + b"\xff" * 12, "claims to hold an array of"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged_files(tmp_path, fault):
    data, sentence = DAMAGED[fault]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"train-images-idx3-ubyte .*({sentence})"):
        read_idx(path, 3)


def test_a_bomb_unpacks_to_no_more_than_it_claims(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(1 << 26)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="but has more: copy it again"):
            read_idx(path, 3)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


def test_mistakes(tmp_path):
    folder = write_idx(tmp_path / "a", DIGITS, LABELS[:-1])
    with pytest.raises(ValueError, match=r"has 29 labels for the 30 images of train-images-idx3"):
        open_records(folder)
    with pytest.raises(FileNotFoundError, match='has no images of the split "validation"'):
        open_records(folder, split="validation")
    with pytest.raises(ValueError, match=r'data\.split is "test"; allowed are'):
        open_records(folder, split="test")
    write_idx(folder, DIGITS[:, :16, :16], LABELS, "t10k")
    write_idx(folder, DIGITS, LABELS)
    with pytest.raises(ValueError, match="its parts hold images of several sizes; load one split"):
        open_records(folder, split="both")
    two = tmp_path / "b"
    for name in ("emnist-digits-train", "emnist-letters-train"):
        write_idx(two, DIGITS, LABELS, name)
    with pytest.raises(ValueError, match=r"holds several sets \(emnist-digits-train-images-idx3"):
        open_records(two)
    assert len(open_records(two / "emnist-letters-train-images-idx3-ubyte.gz")) == 30


def fashion_mnist():
    """Where tools/fashion_mnist.sh puts the real set."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    default = Path(home) / "ddgan_fast" / "fashion-mnist"
    return Path(os.environ.get("DDGAN_FAST_TEST_DATA", default))


FASHION = fashion_mnist()


@pytest.mark.skipif(
    not (FASHION / "train-images-idx3-ubyte.gz").is_file(),
    reason="needs Fashion-MNIST: sh tools/fashion_mnist.sh fetches it",
)
def test_fashion_mnist():
    train, test = (open_records(FASHION, split=split) for split in ("train", "validation"))
    assert (len(train), len(test)) == (60_000, 10_000)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert train.pixels().shape[1:] == (32, 32, 1) and not train.pixels()[:, :2].any()
    assert 60 < train.pixels()[:, 2:30, 2:30].mean() < 85
    stacked = open_records(FASHION, "stacked_mnist")
    assert len(stacked) == 120_000 and len(set(stacked.labels.tolist())) == 1000
    digits = train.pixels()[..., 0][stacked.triples[77_777]]
    np.testing.assert_array_equal(stacked.read(77_777), digits.transpose(1, 2, 0))
