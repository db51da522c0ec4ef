"""Every kind of source gives the same pixels, is found out, and survives a trip to a process."""

import gzip
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from makers import (
    cifar_binaries,
    cifar_pickles,
    npy,
    pictures,
    png,
    tar_bytes,
    write_files,
    write_folder,
    write_idx,
    write_lmdb,
    write_parquet,
    write_tars,
    zip_of,
)

from ddgan_fast.config import Config
from ddgan_fast.data import build_dataset
from ddgan_fast.data.decoded import Decoded
from ddgan_fast.data.open import open_records
from ddgan_fast.data.records import decode, pread

IMAGES = pictures()
LABELS = np.arange(20) % 10


def make(kind, root):
    """The twenty images as a source below ``root``; where it lies."""
    encoded = [png(x) for x in IMAGES]
    if kind == "folder":
        return write_folder(root / "images", IMAGES)
    if kind == "zip":
        return zip_of(root / "images.zip", IMAGES)
    if kind == "deflated zip":
        return zip_of(root / "images.zip", IMAGES, zipfile.ZIP_DEFLATED)
    if kind == "tar":
        members = [(f"{i:06}.png", data) for i, data in enumerate(encoded)]
        return write_tars(root / "shards", [members[:13], members[13:]])
    if kind == "npy tar":
        members = [(f"{i:06}.npy", npy(x)) for i, x in enumerate(IMAGES)]
        return write_tars(root / "shards", [members])
    if kind == "parquet":
        write_parquet(root / "hub" / "data" / "train-00000-of-00002.parquet", encoded[:11])
        return write_parquet(root / "hub/data/train-00001-of-00002.parquet", encoded[11:]).parents[
            1
        ]
    if kind == "raw lmdb":
        return write_lmdb(root / "celeba" / "train.lmdb", [x.tobytes() for x in IMAGES]).parent
    if kind == "encoded lmdb":
        return write_lmdb(root / "celeba" / "train.lmdb", encoded).parent
    if kind == "lsun":
        keys = [f"{i:040x}".encode() for i in range(0xA0, 0xA0 + 20)]
        return write_lmdb(root / "church_outdoor_train_lmdb", encoded, keys).parent
    if kind == "cifar pickle":
        return write_files(root / "cifar-10-batches-py", cifar_pickles(IMAGES, LABELS))
    if kind == "cifar binary":
        return write_files(root / "cifar-10-batches-bin", cifar_binaries(IMAGES, LABELS))
    assert kind == "cifar archive"
    files = [(f"cifar-10-batches-py/{n}", data) for n, data in cifar_pickles(IMAGES, LABELS)]
    (root / "cifar-10-python.tar.gz").write_bytes(gzip.compress(tar_bytes(files)))
    return root / "cifar-10-python.tar.gz"


KINDS = {
    "folder": "folder",
    "zip": "zip",
    "deflated zip": "zip",
    "tar": "tar",
    "npy tar": "tar",
    "parquet": "parquet",
    "raw lmdb": "lmdb",
    "encoded lmdb": "lmdb",
    "lsun": "lmdb",
    "cifar pickle": "cifar10",
    "cifar binary": "cifar10",
    "cifar archive": "cifar10",
}


@pytest.mark.parametrize("kind", KINDS)
def test_same_pixels_from_every_kind(kind, tmp_path, unchanged):
    path = make(kind, tmp_path)
    unchanged()
    records = open_records(path)
    assert records.kind == KINDS[kind] and len(records) == 20 and records.flips
    np.testing.assert_array_equal([decode(records, i, 32, 3) for i in range(20)], IMAGES)
    assert str(path) in records.describe() and "20 images" in records.describe()
    assert len({records.name(i) for i in range(20)}) == 20
    assert len(records.fingerprint) == 64
    if KINDS[kind] == "cifar10":
        np.testing.assert_array_equal(records.labels, LABELS)
    for cache in ("ram", "none"):
        dataset = Decoded(records, 32, 3, cache=cache)
        np.testing.assert_array_equal(dataset.fetch(np.arange(20)), IMAGES)
        assert dataset.digest and dataset.verify() == []


@pytest.mark.parametrize("kind", KINDS)
def test_threads_copies_and_fingerprints(kind, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    records = open_records(make(kind, tmp_path / "one"))
    again = open_records(make(kind, tmp_path / "two"))
    assert again.fingerprint == records.fingerprint
    records.read(0)
    copy = pickle.loads(pickle.dumps(records))
    assert len(pickle.dumps(records)) < IMAGES.nbytes / 10
    with ThreadPoolExecutor(4) as pool:
        order = list(range(20)) * 5
        for i, pixels in zip(order, pool.map(lambda i: decode(copy, i, 32, 3), order), strict=True):
            np.testing.assert_array_equal(pixels, IMAGES[i])
    assert copy.fingerprint == records.fingerprint and copy.name(3) == records.name(3)


@pytest.mark.parametrize("kind", ["folder", "zip", "raw lmdb", "cifar pickle"])
def test_limit(kind, tmp_path):
    path = make(kind, tmp_path)
    whole, five = open_records(path), open_records(path, limit=5)
    assert len(five) == 5 and five.name(4) == whole.name(4) and five.kind == whole.kind
    assert five.labels is None or len(five.labels) == 5
    np.testing.assert_array_equal([decode(five, i, 32, 3) for i in range(5)], IMAGES[:5])
    assert five.fingerprint != whole.fingerprint
    assert open_records(path, limit=20).fingerprint == whole.fingerprint
    assert len(open_records(path, limit=99)) == 20
    with pytest.raises(ValueError, match=r"data\.limit is 0"):
        open_records(path, limit=0)


def config(path, **data):
    cfg = Config()
    cfg.data.path = str(path)
    for name, value in data.items():
        setattr(cfg.data, name, value)
    return cfg


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "lsun", "cifar binary"])
def test_data_sets_are_found_out(kind, tmp_path):
    path = make(kind, tmp_path)
    dataset = build_dataset(config(path))
    np.testing.assert_array_equal(dataset.fetch(np.arange(20)), IMAGES)
    assert dataset.describe().startswith(f"{KINDS[kind]} {path}: 20 images 32x32x3")
    again = build_dataset(config(path, source=KINDS[kind], cache="none"))
    assert again.digest == dataset.digest
    assert len(build_dataset(config(path, limit=7))) == 7


def test_short_reads_are_errors(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    with open(path, "rb") as file:
        assert pread(file.fileno(), 10, 90, "x") == bytes(range(90, 100))
        with pytest.raises(OSError, match="the file ends 5 bytes before the end of the record"):
            pread(file.fileno(), 10, 95, "x")


def test_nothing_that_fits(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        open_records(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="an empty folder; understood are a folder of images, a z"):
        open_records(empty)
    for i in range(7):
        (empty / f"notes{i}.txt").write_text("")
    with pytest.raises(ValueError, match=r"of notes0\.txt, .*, notes4\.txt and 2 more; understood"):
        open_records(empty)
    with pytest.raises(ValueError, match=r"notes1\.txt is no source of images: a file of 0 bytes"):
        open_records(empty / "notes1.txt")
    with pytest.raises(ValueError, match=r'data\.source is "hdf5"; allowed are auto, folder'):
        open_records(empty, "hdf5")
    (empty / "deep").mkdir()
    with pytest.raises(ValueError, match=r"holds no images \(png, jpg"):
        open_records(empty)


def test_two_kinds_in_one_place_need_a_choice(tmp_path):
    write_idx(tmp_path, np.zeros((3, 28, 28)), [0, 1, 2])
    (tmp_path / "0.png").write_bytes(png(IMAGES[0]))
    with pytest.raises(ValueError, match=r"may be meant as idx or folder: choose one"):
        open_records(tmp_path)
    assert len(open_records(tmp_path, "idx")) == 3
    assert len(open_records(tmp_path, "folder")) == 1
