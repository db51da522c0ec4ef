"""Zip archives: labels, order, what is skipped, and every way to be damaged or hostile."""

import json
import multiprocessing
import struct
import zipfile
import zlib

import numpy as np
import pytest
from makers import pictures, png, write_zip, zip_of

from ddgan_fast.data.records import decode
from ddgan_fast.data.records_zip import ZipRecords

IMAGES = pictures()
FILES = [(f"{i}.png", png(x)) for i, x in enumerate(IMAGES[:4])]


def test_labels_and_order(tmp_path, unchanged):
    names = [f"00000/img{i:08}.png" for i in (3, 1, 2)]
    table = {"labels": [[name, k] for k, name in enumerate(names)]}
    members = [(name, png(IMAGES[int(name[-5])])) for name in names]
    path = write_zip(tmp_path / "a.zip", [*members, ("dataset.json", json.dumps(table))])
    unchanged()
    records = ZipRecords(path)
    np.testing.assert_array_equal([decode(records, i, 32, 3) for i in range(3)], IMAGES[1:4])
    assert records.labels.tolist() == [1, 2, 0] and records.labels.dtype == np.int64
    assert records.name(0) == f"{path}, member 00000/img00000001.png"


@pytest.mark.parametrize(
    "table", [{"labels": None}, {}, {"labels": [["0.png", 1]]}, {"labels": [["0.png", [0.5, 1]]]}]
)
def test_no_labels(tmp_path, table):
    path = write_zip(tmp_path / "a.zip", [*FILES, ("dataset.json", json.dumps(table))])
    assert ZipRecords(path).labels is None


@pytest.mark.parametrize("text", ["{", "[]", '{"labels": 3}', '{"labels": [1, 2]}'])
def test_unreadable_labels(tmp_path, text):
    path = write_zip(tmp_path / "a.zip", [*FILES, ("dataset.json", text)])
    with pytest.raises(ValueError, match=r'dataset\.json is not \{"labels": \[\[name, class\]'):
        ZipRecords(path)


def test_what_is_no_training_image_is_skipped(tmp_path):
    extra = [("notes.txt", b"x"), (".hidden/0.png", b""), ("__MACOSX/._0.png", b""), ("a/", b"")]
    records = ZipRecords(write_zip(tmp_path / "a.zip", extra + FILES))
    assert len(records) == 4
    with pytest.raises(ValueError, match=r"x\.gif is of a kind that is not read"):
        ZipRecords(write_zip(tmp_path / "b.zip", [*FILES, ("x.gif", b"")]))


def test_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file: check the spelling"):
        ZipRecords(tmp_path)
    with pytest.raises(ValueError, match=r"a\.zip holds no images"):
        ZipRecords(write_zip(tmp_path / "a.zip", [("notes.txt", b"x")]))
    for data in (b"", b"<html>", b"PK\3\4" + bytes(100)):
        (tmp_path / "b.zip").write_bytes(data)
        with pytest.raises(ValueError, match=r"b\.zip is no zip archive or a damaged one"):
            ZipRecords(tmp_path / "b.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path):
    path = write_zip(tmp_path / "a.zip", [*FILES, ("2.png", FILES[0][1])])
    with pytest.raises(ValueError, match=r"member 2\.png is there twice"):
        ZipRecords(path)


def test_names_that_lead_elsewhere_lead_nowhere(tmp_path):
    names = ["../../up.png", "/etc/root.png", "a\nb\x1b[31m.png"]
    path = write_zip(tmp_path / "a.zip", [(name, FILES[0][1]) for name in names])
    records = ZipRecords(path)
    assert [records.name(i).isprintable() for i in range(3)] == [True] * 3
    for i in range(3):
        np.testing.assert_array_equal(decode(records, i, 32, 3), IMAGES[0])
    assert [place.name for place in tmp_path.iterdir()] == ["a.zip"]


def test_encrypted_and_unknown_packing(tmp_path):
    data = bytearray(zip_of(tmp_path / "a.zip", IMAGES[:1]).read_bytes())
    start = data.index(b"PK\1\2")
    data[start + 8] |= 1
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"img00000000\.png is encrypted: make an archive without"):
        ZipRecords(tmp_path / "b.zip")
    path = zip_of(tmp_path / "c.zip", IMAGES[:1], zipfile.ZIP_LZMA)
    with pytest.raises(
        ValueError, match=r"packed by method 14, which is not read: make .* `zip -0"
    ):
        ZipRecords(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_flipped_byte_is_found_by_the_checksum(tmp_path, method):
    pixels = np.repeat(IMAGES[:1, :1], 32, axis=1)
    path = zip_of(tmp_path / "a.zip", [*pixels, IMAGES[1]], method)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\3\4", 4) // 2] ^= 4
    path.write_bytes(data)
    records = ZipRecords(path)
    with pytest.raises(
        ValueError, match=r"img00000000\.png (does not match its length|cannot be u)"
    ):
        records.read(0)
    np.testing.assert_array_equal(decode(records, 1, 32, 3), IMAGES[1])


def test_archive_that_is_cut_or_changes(tmp_path):
    path = zip_of(tmp_path / "a.zip", IMAGES)
    whole = path.read_bytes()
    records = ZipRecords(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"a\.zip has changed since its index was read: start again"):
        records.read(0)
    with pytest.raises(ValueError, match="is no zip archive or a damaged one"):
        ZipRecords(path)
    path.write_bytes(whole)
    records = ZipRecords(path)
    records.read(0)
    with open(path, "r+b") as file:  # under the open descriptor
        file.truncate(3000)
    with pytest.raises(OSError, match=r"a\.zip has changed since its index was read"):
        records.read(19)


def test_zip_bombs(tmp_path):
    zeros = bytes(1 << 22)
    path = write_zip(tmp_path / "a.zip", [("0.png", zeros)], zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2")
    data[start + 24 : start + 28] = struct.pack("<I", 1000)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"0\.png unpacks to more than the 1,000 bytes it claims"):
        ZipRecords(path).read(0)
    data[start + 24 : start + 28] = struct.pack("<I", 1 << 31)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"holds 2,147,483,648 bytes, more than the 268,435,456"):
        ZipRecords(path).read(0)


def test_image_bomb_in_a_small_member(tmp_path):
    good = bytearray(png(np.zeros((1, 1, 3), np.uint8)))
    good[16:29] = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    good[29:33] = struct.pack(">I", zlib.crc32(good[12:29]))
    records = ZipRecords(write_zip(tmp_path / "a.zip", [("0.png", bytes(good))]))
    with pytest.raises(
        ValueError, match=r"member 0\.png cannot be used .* more than 178,956,970 pix"
    ):
        decode(records, 0, 32, 3)


def _read_all(records, queue):
    queue.put(all(np.array_equal(decode(records, i, 32, 3), IMAGES[i]) for i in range(20)))


def test_forked_readers_do_not_mix(tmp_path):
    records = ZipRecords(zip_of(tmp_path / "a.zip", IMAGES))
    records.read(0)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_read_all, args=(records, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [True] * 3
    for worker in workers:
        worker.join()


@pytest.mark.parametrize(
    ("place", "sentence"),
    [(0, "does not begin where the archive says"), (30 + 21, "cannot be unpacked")],
    ids=["header", "content"],
)
def test_members_that_are_not_where_or_what_they_should_be(tmp_path, place, sentence):
    path = zip_of(tmp_path / "a.zip", IMAGES[:2], zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    assert len("00000/img00000000.png") == 21
    data[place] = 0xFF  # no such kind of block in what is packed
    path.write_bytes(data)
    records = ZipRecords(path)
    with pytest.raises(ValueError, match=rf"img00000000\.png {sentence}.*damaged"):
        records.read(0)
    np.testing.assert_array_equal(decode(records, 1, 32, 3), IMAGES[1])
