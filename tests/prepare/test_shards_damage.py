"""What is found when bytes of a prepared set are lost or change."""

import errno
import hashlib
import json
import os

import numpy as np
import pytest
from prepare_cases import EXPECTED, damaged, flip, make_set

from ddgan_fast.data import shards as module
from ddgan_fast.data import shards_check
from ddgan_fast.data.shards import is_shards, open_shards
from ddgan_fast.data.shards_check import verify


def test_faults_at_opening(out, images, tmp_path):
    manifest = (out / "manifest.json").read_bytes()
    os.truncate(out / "train-00001.tar", 3000)
    with pytest.raises(
        ValueError, match=r"train-00001\.tar has 3,000 bytes, but manifest.json say"
    ):
        open_shards(out)
    (out / "train-00001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00001\.tar is missing: copy it again"):
        open_shards(out)
    other = make_set(images, tmp_path / "other", limit=7)
    (other / "manifest.json").write_bytes(manifest)  # stale
    with pytest.raises(ValueError, match=r"train-00001\.tar has 4,096 bytes, but .* says 5,120"):
        open_shards(other)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"format": "ddgan_fast shards", "ver', "cannot be used"),
        (b"", "cannot be used"),
        (b"[]", "cannot be used"),
        (b'{"format": "else"}', "its format is 'else'"),
        (b'{"format": "ddgan_fast shards", "version": 2}', "of version 2, newer than 1"),
        (b'{"format": "ddgan_fast shards", "version": 1}', "'shape' is missing"),
    ],
)
def test_unusable_manifests(out, content, words):
    (out / "manifest.json").write_bytes(content)
    assert is_shards(out)
    with pytest.raises(ValueError, match=rf"manifest\.json .*{words}.*prepare it again"):
        open_shards(out)


def test_contradicting_manifests(out):
    good = json.loads((out / "manifest.json").read_bytes())
    for changes, words in [
        ({"n": 12}, "numbers of images contradict"),
        ({"shards": []}, "numbers of images contradict"),
        ({"shape": [16, 16, 3]}, "should have"),
        ({"shape": [8, 8]}, "not enough values"),
        ({"encoding": "zip"}, "its encoding is 'zip'"),
        ({"shards": [{**good["shards"][0], "shard": "../x.tar"}, *good["shards"][1:]]}, "x.tar"),
    ]:
        (out / "manifest.json").write_text(json.dumps({**good, **changes}))
        with pytest.raises(ValueError, match=words):
            open_shards(out)


def test_no_manifest(out, tmp_path):
    (out / "manifest.json").unlink()
    assert not is_shards(out) and not is_shards(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json, so it is no prepared"):
        open_shards(out)


def test_the_manifest_of_another_program_is_none(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "my app"}')
    assert not is_shards(tmp_path)


def test_damaged_labels(out):
    damaged(out / "labels.npy", lambda data: data.__setitem__(-8, 9))
    with pytest.raises(ValueError, match=r"labels\.npy is not the file that manifest.json desc"):
        open_shards(out)
    (out / "labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels\.npy is missing"):
        open_shards(out)


def change_manifest(out, **changes):
    path = out / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def test_labels_of_another_length(out):
    np.save(out / "labels.npy", np.zeros(12, np.int64))
    digest = hashlib.sha256((out / "labels.npy").read_bytes()).hexdigest()
    change_manifest(out, files={"labels.npy": digest})
    with pytest.raises(ValueError, match=r"labels\.npy holds int64 \[12\]: copy it again"):
        open_shards(out)


def test_classes_without_names_are_counted(out):
    change_manifest(out, classes=[])
    shards = open_shards(out)
    assert shards.class_names == () and shards.describe().endswith("11 images 8x8x3, 2 classes")


def test_a_disk_that_fails_is_named_with_the_image(out, monkeypatch):
    def broken(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module, "preadv", broken)
    words = r"train-00001\.tar, image 000000005 cannot be read \(Input/output error\)"
    with pytest.raises(OSError, match=words):
        open_shards(out).fetch(np.array([5]))
    monkeypatch.setattr(shards_check, "open", broken, raising=False)
    assert verify(out) == [
        f"{out}/train-{k:05}.tar cannot be read (Input/output error)." for k in range(3)
    ]


def test_faults_while_reading(out):
    shards = open_shards(out)
    os.truncate(out / "train-00000.tar", 2 * 1024 + 700)  # within the third image
    with pytest.raises(OSError, match=r"train-00000\.tar, image 000000002: the file ends 132 byt"):
        shards.fetch(np.array([0, 1, 2]))
    np.testing.assert_array_equal(shards.fetch(np.array([0, 1])), EXPECTED[:2])
    (out / "train-00002.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00002\.tar is missing"):
        shards.fetch(np.array([9]))
    damaged(out / "train-00001.tar", lambda data: data.__setitem__(slice(0, 3), b"abc"))
    with pytest.raises(ValueError, match=r"image 000000004 is not where it should be"):
        shards.fetch(np.array([4]))
    damaged(out / "train-00001.tar", lambda data: data.__setitem__(1024 + 520, 0))
    with pytest.raises(ValueError, match=r"image 000000005 is no uint8 \[8, 8, 3\]"):
        shards.fetch(np.array([5]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flip(1024 + 640 + 100), ["train-00001.tar, image 000000005 is damaged."]),
        (flip(2048 + 4), ["train-00001.tar, image 000000006 is damaged."]),
        (flip(1024 + 512 + 20), ["train-00001.tar is damaged between its images."]),
        (flip(1024 + 640 + 192), ["train-00001.tar is damaged between its images."]),
        (flip(-1), ["train-00001.tar is damaged between its images."]),
    ],
)
def test_verify_finds_a_flipped_bit(out, change, words):
    assert verify(out) == []
    damaged(out / "train-00001.tar", change)
    assert verify(out, workers=1) == [f"{out}/{sentence}" for sentence in words]


def test_verify_lists_some_of_many(out, monkeypatch):
    monkeypatch.setattr("ddgan_fast.data.shards_check._LISTED", 2)
    damaged(out / "train-00000.tar", lambda data: data.__setitem__(slice(0, 4096), bytes(4096)))
    assert [fault.removeprefix(f"{out}/train-00000.tar") for fault in verify(out)] == [
        ", image 000000000 is damaged.",
        ", image 000000001 is damaged.",
        ": 2 more.",
    ]


def test_verify_lists_all_lost_shards(out):
    (out / "train-00000.tar").unlink()
    os.truncate(out / "train-00002.tar", 5)
    missing, short = verify(out)
    assert "train-00000.tar is missing: copy it again" in missing
    assert "train-00002.tar has 5 bytes, but manifest.json says 4,096" in short


def test_verify_sees_to_what_lies_beside(out):
    (out / "train-00009.tar").write_bytes(b"")
    (out / "train-00000.crc").unlink()
    os.truncate(out / "train-00001.crc", 8)
    assert [fault.removeprefix(f"{out}/") for fault in verify(out)] == [
        "train-00009.tar does not belong to the set: take it away.",
        "train-00000.crc is missing.",
        "train-00001.crc holds 2 sums, not 4.",
    ]
