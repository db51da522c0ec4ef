"""Parquet: splits, labels and their names, row groups that come and go, damaged files."""

import sys

import numpy as np
import pytest
from makers import pictures, png, write_parquet

from ddgan_fast.data.open import open_records
from ddgan_fast.data.records import decode
from ddgan_fast.data.records_parquet import ParquetRecords

IMAGES = pictures(40)
FILES = [png(x) for x in IMAGES]


def test_splits_labels_and_names(tmp_path, unchanged):
    names = ["cat", "dog"]
    labels = [i % 2 for i in range(40)]
    write_parquet(tmp_path / "train-00000.parquet", FILES[:15], labels[:15], names=names)
    write_parquet(tmp_path / "train-00001.parquet", FILES[15:30], labels[15:30], names=names)
    write_parquet(tmp_path / "test-00000.parquet", FILES[30:], labels[30:], names=names)
    unchanged()
    train, test, both = (open_records(tmp_path, split=s) for s in ("train", "validation", "both"))
    assert (len(train), len(test), len(both)) == (30, 10, 40)
    assert both.labels.tolist() == labels and both.class_names == ("cat", "dog")
    assert test.labels.tolist() == labels[30:] and test.fingerprint != train.fingerprint
    order = np.random.default_rng(0).permutation(40)  # six row groups, of which four are kept
    np.testing.assert_array_equal([decode(both, i, 32, 3) for i in order], IMAGES[order])
    assert len(both._kept) == 4
    assert train.name(24) == f"{tmp_path / 'train-00001.parquet'}, row 9"


def test_plain_bytes_and_other_labels(tmp_path):
    records = open_records(write_parquet(tmp_path / "a.parquet", FILES[:5], plain=True))
    np.testing.assert_array_equal([decode(records, i, 32, 3) for i in range(5)], IMAGES[:5])
    assert records.labels is None and records.class_names == ()
    for labels in (["a"] * 5, [0, 1, None, 2, 3], [0, -1, 1, 1, 1]):
        path = write_parquet(tmp_path / "b.parquet", FILES[:5], labels)
        assert open_records(path).labels is None


def test_rows_without_an_image(tmp_path):
    records = open_records(write_parquet(tmp_path / "a.parquet", [FILES[0], None, FILES[2]]))
    with pytest.raises(ValueError, match=r"a\.parquet, row 1 holds no encoded image, but NoneType"):
        records.read(1)
    np.testing.assert_array_equal(decode(records, 2, 32, 3), IMAGES[2])


def test_mistakes(tmp_path):
    path = write_parquet(tmp_path / "train-0.parquet", FILES[:9])
    with pytest.raises(FileNotFoundError, match='has no files of the split "validation"'):
        open_records(tmp_path, split="validation")
    with pytest.raises(ValueError, match=r'data\.split is "test"; allowed are'):
        open_records(tmp_path, split="test")
    with pytest.raises(ValueError, match="is no parquet file and holds none"):
        ParquetRecords(tmp_path / "..")
    whole = path.read_bytes()
    for data in (b"", b"<html>" * 99, whole[:-9], whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(
            ValueError, match=r"is no parquet file or a damaged one \(.*copy it aga"
        ):
            open_records(path)
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "n": [1]}), path)
    with pytest.raises(ValueError, match=r"has no column of images: .* found text, n"):
        open_records(path)
    pyarrow.parquet.write_table(pyarrow.table({"image": pyarrow.array([], "binary")}), path)
    with pytest.raises(ValueError, match="holds no images: check"):
        open_records(path)


def test_damaged_row_group(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", FILES)
    records = open_records(path)
    data = bytearray(path.read_bytes())
    data[4:5000] = bytes(4996)
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"a\.parquet, row group 0 cannot be read"):
        open_records(path).read(0)
    assert len(records) == 40


def test_without_the_package(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(RuntimeError, match=r'missing: pip install "ddgan_fast\[parquet\]"'):
        open_records(tmp_path)
