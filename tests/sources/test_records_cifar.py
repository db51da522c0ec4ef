"""CIFAR-10: layouts, splits, and pickles that want more than arrays."""

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from makers import cifar_binaries, cifar_pickles, pictures, tar_bytes, write_files

from ddgan_fast.data import records_cifar
from ddgan_fast.data.open import open_records
from ddgan_fast.data.records_cifar import open_cifar10

IMAGES = pictures(24)
LABELS = np.arange(24) * 7 % 10


@pytest.fixture(params=["pickle", "binary"])
def files(request):
    make = cifar_pickles if request.param == "pickle" else cifar_binaries
    return dict(make(IMAGES, LABELS))


def pickled_by_python2(rows, labels):
    """The published files: protocol 2 of Python 2, with byte strings for text and for the array."""
    out = io.BytesIO()
    head = b"cnumpy.core.multiarray\n_reconstruct\n"
    out.write(b"\x80\x02}(U\x04data" + head + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R")
    out.write(b"(K\x01M" + len(rows).to_bytes(2, "little") + b"M\x00\x0c\x86")
    out.write(
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    out.write(b"\x89T" + rows.nbytes.to_bytes(4, "little") + rows.tobytes() + b"tb")
    out.write(b"U\x06labels](" + b"".join(b"K" + bytes([n]) for n in labels) + b"eu.")
    return out.getvalue()


def test_files_as_python_2_wrote_them(tmp_path):
    for name, data in cifar_pickles(IMAGES, LABELS):
        batch = pickle.loads(data)
        (tmp_path / name).write_bytes(pickled_by_python2(batch[b"data"], batch[b"labels"]))
    records = open_cifar10(tmp_path)
    np.testing.assert_array_equal(records.pixels(), IMAGES[:20])
    np.testing.assert_array_equal(records.labels, LABELS[:20])


def test_splits_and_places(tmp_path, files, unchanged):
    folder = write_files(tmp_path / "cifar-10-batches-py", files.items())
    archive = tmp_path / "other" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(gzip.compress(tar_bytes([(f"x/{n}", d) for n, d in files.items()])))
    renamed = tmp_path / "cifar10-mine.tgz"
    renamed.write_bytes(archive.read_bytes())
    unchanged()
    for path in (folder, tmp_path, archive, archive.parent, renamed):
        records = open_records(path)
        assert records.kind == "cifar10" and len(records.class_names) == 10 and records.flips
        np.testing.assert_array_equal(records.pixels(), IMAGES[:20])
    np.testing.assert_array_equal(records.labels, LABELS[:20])
    test = open_records(tmp_path, split="validation")
    np.testing.assert_array_equal(test.read(2), IMAGES[22])
    np.testing.assert_array_equal(test.labels, LABELS[20:])
    both = open_records(tmp_path, "cifar10", split="both")
    np.testing.assert_array_equal(both.pixels(), IMAGES)
    assert len({records.fingerprint, test.fingerprint, both.fingerprint}) == 3


def test_python_and_binary_version_are_one_set(tmp_path):
    one = write_files(tmp_path / "one", cifar_pickles(IMAGES, LABELS))
    two = write_files(tmp_path / "two", cifar_binaries(IMAGES, LABELS))
    assert open_records(one).fingerprint == open_records(two).fingerprint


def test_mistakes(tmp_path, files):
    folder = write_files(tmp_path, files.items())
    name = next(name for name in files if "batch_3" in name)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match="has no data_batch_3: copy the whole set"):
        open_records(folder)
    for data in (b"", files[name][:5000], b"<html>" * 20):
        (folder / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name} .*: copy it again"):
            open_records(folder)
    with pytest.raises(ValueError, match="holds no files of CIFAR-10"):
        open_records(tmp_path / "..", "cifar10")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        open_records(tmp_path / "nowhere", "cifar10")
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(gzip.compress(tar_bytes(files.items()))[:20_000])
    with pytest.raises(ValueError, match=r"tar\.gz is cut short or damaged .*: copy it again"):
        open_records(archive)


@pytest.mark.parametrize("field", ["data", "labels"])
@pytest.mark.parametrize("value", [None, [1, "a"], np.zeros((4, 3072)), np.zeros(9, np.uint8)])
def test_pickles_of_something_else(tmp_path, field, value):
    batch = {b"data": np.zeros((4, 3072), np.uint8), b"labels": [0] * 4, field.encode(): value}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(ValueError, match="holds no images and labels of CIFAR-10"):
        open_records(tmp_path, split="validation")


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [([0, 1, 2], "4 images, but 3 labels"), ([0, 1, 2, 10], "labels beyond 0 to 9")],
)
def test_wrong_labels(tmp_path, labels, sentence):
    batch = {"data": np.zeros((4, 3072), np.uint8), "labels": labels}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(ValueError, match=sentence):
        open_records(tmp_path, split="validation")


class Attack:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(6))
def test_hostile_pickles_are_refused(tmp_path, protocol):
    witness = tmp_path / "witness"
    attacks = {
        "posix.mkdir": Attack(os.mkdir, str(witness)),
        "builtins.eval": Attack(eval, f"open({str(witness)!r}, 'w')"),
        "builtins.getattr": Attack(getattr, str, "join"),
        "numpy.": Attack(np.save, str(witness), np.zeros(1)),
    }
    for function, attack in attacks.items():
        data = pickle.dumps({b"data": attack, b"labels": []}, protocol)
        (tmp_path / "test_batch").write_bytes(data)
        with pytest.raises(ValueError, match=r'asks for ".*", which is not allowed') as caught:
            open_records(tmp_path, split="validation")
        spelling = function.replace("builtins", "__builtin__") if protocol < 3 else function
        assert f'"{spelling}' in str(caught.value)
        assert not witness.exists()


def test_other_codecs_stay_shut(tmp_path):
    data = b"c_codecs\nencode\n(Vx\nVzip\ntR."
    (tmp_path / "test_batch").write_bytes(data)
    with pytest.raises(ValueError, match='codec "zip", which is not allowed'):
        open_records(tmp_path, split="validation")


def test_archive_members_lead_nowhere(tmp_path):
    files = [(f"../../{n}", d) for n, d in cifar_pickles(IMAGES, LABELS)]
    path = tmp_path / "cifar-10-python.tar.gz"
    stream = io.BytesIO(tar_bytes(files))
    with tarfile.open(fileobj=stream, mode="a") as tar:
        link = tarfile.TarInfo("data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    path.write_bytes(gzip.compress(stream.getvalue()))
    np.testing.assert_array_equal(open_records(path).pixels(), IMAGES[:20])
    assert [place.name for place in tmp_path.iterdir()] == [path.name]


def test_a_split_that_there_is_not(tmp_path, files):
    folder = write_files(tmp_path, files.items())
    with pytest.raises(ValueError, match=r'data\.split is "test"; allowed are train, valid'):
        open_cifar10(folder, "test")


def test_files_too_large_are_not_read(tmp_path, files, monkeypatch):
    size = max(map(len, files.values()))
    folder = write_files(tmp_path / "unpacked", files.items())
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(gzip.compress(tar_bytes(files.items())))
    monkeypatch.setattr(records_cifar, "_LARGEST_FILE", size - 1)
    for path in (folder, archive):
        with pytest.raises(ValueError, match=rf"{path}.*batch.* has {size:,} bytes, too many"):
            open_cifar10(path)
