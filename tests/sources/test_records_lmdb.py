"""LMDB: layouts, order, raw or encoded, and files that would kill a process that maps them."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from makers import pictures, png, write_lmdb

from ddgan_fast.data import lmdb_files, records_lmdb
from ddgan_fast.data.open import open_records
from ddgan_fast.data.records import decode
from ddgan_fast.data.records_lmdb import LmdbRecords

IMAGES = pictures()


def raw(images):
    return [x.tobytes() for x in images]


def decoded(records):
    return np.stack([decode(records, i, 32, 3) for i in range(len(records))])


def published(root):
    write_lmdb(root / "train.lmdb", raw(IMAGES[:13]))
    write_lmdb(root / "validation.lmdb", raw(IMAGES[13:]))
    return root


def test_published_parts_in_numeric_order(tmp_path, unchanged):
    root = published(tmp_path)
    unchanged()
    np.testing.assert_array_equal(decoded(LmdbRecords(root)), IMAGES[:13])
    np.testing.assert_array_equal(decoded(LmdbRecords(root, "validation")), IMAGES[13:])
    both = LmdbRecords(root, "both")
    np.testing.assert_array_equal(decoded(both), IMAGES)
    assert both.name(14) == f"{root / 'validation.lmdb'}, key 1"
    # One of the two by its own path.
    np.testing.assert_array_equal(decoded(LmdbRecords(root / "train.lmdb")), IMAGES[:13])
    validation = LmdbRecords(root / "validation.lmdb", "validation")
    np.testing.assert_array_equal(decoded(validation), IMAGES[13:])
    with pytest.raises(ValueError, match=r'one database, but data\.split is "both"'):
        LmdbRecords(root / "train.lmdb", "both")
    with pytest.raises(ValueError, match=r'data\.split is "test"; allowed are train, validation'):
        LmdbRecords(root, "test")


def test_raw_images_that_begin_like_files_stay_raw(tmp_path):
    images = IMAGES.copy()
    for i, magic in enumerate((b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM")):
        images[i].reshape(-1)[: len(magic)] = list(magic)
    root = write_lmdb(tmp_path / "train.lmdb", raw(images)).parent
    np.testing.assert_array_equal(decoded(LmdbRecords(root)), images)


def test_one_length_for_all_is_not_enough_to_be_raw(tmp_path):
    same = [png(IMAGES[0], "BMP"), png(IMAGES[1], "BMP"), png(IMAGES[2], "BMP")]
    assert len(set(map(len, same))) == 1
    root = write_lmdb(tmp_path / "train.lmdb", same).parent
    np.testing.assert_array_equal(decoded(LmdbRecords(root)), IMAGES[:3])


def test_damaged_values_do_not_change_what_the_set_is(tmp_path):
    values = raw(IMAGES)
    values[3], values[7] = b"", values[7][:100]
    records = LmdbRecords(write_lmdb(tmp_path / "train.lmdb", values))
    for i, length in ((3, 0), (7, 100)):
        with pytest.raises(ValueError, match=rf"key {i} has {length} bytes, but .* 32x32x3: repla"):
            records.read(i)
    np.testing.assert_array_equal(records.read(8), IMAGES[8])
    encoded = [png(x) for x in IMAGES]
    encoded[5] = IMAGES[5].tobytes()
    records = LmdbRecords(write_lmdb(tmp_path / "encoded.lmdb", encoded))
    with pytest.raises(ValueError, match=r"encoded\.lmdb, key 5 cannot be used as an image"):
        decode(records, 5, 32, 3)


def lsun(root):
    """Two categories; keys in no order of time; one note that is no image."""
    for k, name in enumerate(("church_outdoor_train", "church_outdoor_val", "bedroom_train")):
        keys = [f"{(i * 7919) % 256:040x}".encode() for i in range(5)]
        values = [png(x) for x in IMAGES[5 * k : 5 * k + 5]]
        write_lmdb(root / f"{name}_lmdb", [*values, b"5"], [*keys, b"length"])
    return root


def test_lsun(tmp_path, unchanged):
    root = lsun(tmp_path)
    unchanged()
    order = np.argsort([(i * 7919) % 256 for i in range(5)])
    church = open_records(root, lsun_class="church_outdoor")
    np.testing.assert_array_equal(decoded(church), IMAGES[:5][order])
    assert f"key {(order[0] * 7919) % 256:040x}" in church.name(0)
    both = open_records(root, lsun_class="church_outdoor", split="both")
    np.testing.assert_array_equal(decoded(both)[5:], IMAGES[5:10][order])
    alone = open_records(root / "bedroom_train_lmdb")
    np.testing.assert_array_equal(decoded(alone), IMAGES[10:15][order])
    two = open_records(root / "bedroom_train_lmdb", lsun_class="bedroom", limit=2)
    np.testing.assert_array_equal(decoded(two), IMAGES[10:15][order][:2])


def test_lsun_mistakes(tmp_path):
    root = lsun(tmp_path)
    with pytest.raises(ValueError, match="categories bedroom, church_outdoor: choose one by"):
        open_records(root)
    with pytest.raises(
        FileNotFoundError, match=r"no tower_train_lmdb .*; it holds bedroom_train_l"
    ):
        open_records(root, lsun_class="tower")
    with pytest.raises(FileNotFoundError, match="no bedroom_val_lmdb"):
        open_records(root, lsun_class="bedroom", split="validation")
    with pytest.raises(ValueError, match=r'holds "bedroom", but data\.lsun_class is "church_outd'):
        open_records(root / "bedroom_train_lmdb", lsun_class="church_outdoor")


def test_other_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        LmdbRecords(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no LMDB database and holds none"):
        LmdbRecords(tmp_path)
    write_lmdb(tmp_path / "train.lmdb", [])
    with pytest.raises(ValueError, match=r"train\.lmdb: no records in it"):
        LmdbRecords(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no validation\.lmdb .* it holds train\.lmdb"):
        LmdbRecords(tmp_path, "validation")


def test_without_the_package(tmp_path, monkeypatch):
    published(tmp_path)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(RuntimeError, match=r'missing: pip install "ddgan_fast\[lmdb\]"'):
        open_records(tmp_path)


def cut(root, size):
    file = write_lmdb(root / "train.lmdb", raw(IMAGES)) / "data.mdb"
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    return root


# In a process of its own, because reading a cut database kills the process.
@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (0, "is no database: its file has 0 bytes; copy it again."),
        (5000, "is no database: its file has 5,000 bytes; copy it again."),
        (8192, "is cut short: it has 8,192 of at least"),
        (-4096, "is cut short: it has"),
        (40_000, "is cut short: it has 40,000 of at least"),
    ],
)
def test_cut_database_is_a_sentence(tmp_path, size, sentence):
    code = (
        "import sys; from ddgan_fast.data.open import open_records\n"
        "records = open_records(sys.argv[1])\n"
        "for i in range(len(records)): records.read(i)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(cut(tmp_path, size))], capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("OSError: ") and sentence in last, done


def test_garbage_is_a_sentence(tmp_path):
    (tmp_path / "data.mdb").write_bytes(np.random.default_rng(0).bytes(20_000))
    with pytest.raises(
        OSError, match=r"cannot be read \(.*not an LMDB file\): the database is dam"
    ):
        open_records(tmp_path)


def test_a_database_that_changes_is_noticed(tmp_path):
    path = write_lmdb(tmp_path / "train.lmdb", raw(IMAGES))
    records = LmdbRecords(path)
    os.truncate(path / "data.mdb", 20_000)
    with pytest.raises(OSError, match="has changed since its keys were read: start again"):
        records.read(15)
    shutil.rmtree(path)
    write_lmdb(path, raw(IMAGES[::-1]))
    np.testing.assert_array_equal(decoded(LmdbRecords(path)), IMAGES[::-1])


def test_a_forked_process_reads_on(tmp_path):
    records = LmdbRecords(write_lmdb(tmp_path / "train.lmdb", raw(IMAGES)))
    records.read(0)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if np.array_equal(records.read(5), IMAGES[5]) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(records.read(6), IMAGES[6])


def test_a_database_in_one_file(tmp_path):
    folder = write_lmdb(tmp_path / "x", raw(IMAGES))
    (folder / "data.mdb").rename(tmp_path / "train.lmdb")
    folder.rmdir()
    np.testing.assert_array_equal(decoded(open_records(tmp_path)), IMAGES)
    np.testing.assert_array_equal(decoded(open_records(tmp_path / "train.lmdb")), IMAGES)


def test_keys_are_read_once(tmp_path, monkeypatch, cache_home):
    scans, keys_of = [], records_lmdb.keys_of
    monkeypatch.setattr(
        records_lmdb, "keys_of", lambda path, status: scans.append(path) or keys_of(path, status)
    )
    path = write_lmdb(tmp_path / "train.lmdb", raw(IMAGES))
    first, second = LmdbRecords(path), LmdbRecords(tmp_path)
    assert scans == [path] and first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(decoded(second), IMAGES)
    shutil.rmtree(path)
    write_lmdb(path, raw(IMAGES[::-1][:19]))
    np.testing.assert_array_equal(decoded(LmdbRecords(path)), IMAGES[::-1][:19])
    assert scans == [path, path]


def test_keys_of_an_open_database_and_one_that_is_gone(tmp_path, monkeypatch):
    path = write_lmdb(tmp_path / "train.lmdb", raw(IMAGES))
    LmdbRecords(path).read(0)
    status = lmdb_files.status_of(path)
    opened = lmdb_files._open
    monkeypatch.setattr(lmdb_files, "_open", None)  # lmdb opens no file twice
    assert sorted(lmdb_files.keys_of(path, status), key=int) == [
        str(i).encode() for i in range(len(IMAGES))
    ]
    monkeypatch.setattr(lmdb_files, "_open", opened)
    with pytest.raises(OSError, match="record 99: gone since the database was opened; start aga"):
        lmdb_files.value_of(path, status, b"99", "record 99")


def test_large_sets_are_judged_by_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(records_lmdb, "_SAMPLE", 3)
    values = raw(IMAGES)
    read, value_of = [], records_lmdb.value_of
    monkeypatch.setattr(
        records_lmdb, "value_of", lambda *facts: read.append(facts[2]) or value_of(*facts)
    )
    records = LmdbRecords(write_lmdb(tmp_path / "train.lmdb", values))
    assert read == [b"0", b"9", b"19"] and records.side == 32
