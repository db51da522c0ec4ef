"""The prepared format byte for byte, its reader, and what is found when bytes change."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from ddgan_fast.cli import main
from ddgan_fast.config import Config
from ddgan_fast.data import build_dataset
from ddgan_fast.data import shards as module
from ddgan_fast.data.prepare import prepare
from ddgan_fast.data.prepare_request import Request
from ddgan_fast.data.records import decode
from ddgan_fast.data.shards import is_shards, open_shards
from ddgan_fast.data.shards_check import verify
from ddgan_fast.data.shards_format import npy_header, preadv, stride

N = 11
SHAPE = (8, 8, 3)


def pixels(i, shape=SHAPE):
    return np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """Waiting for the disk is most of the time of so small sets."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def make(folder, out, **options):
    defaults = {"resolution": 8, "shard_images": 4, "workers": 1}
    prepare(Request(str(folder), str(out), **{**defaults, **options}))
    return out


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """11 images 8x8 without loss, in two classes: sorted, their pixels are pixels(0), ..."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(N):
        (folder / f"class{i // 6}").mkdir(exist_ok=True)
        Image.fromarray(pixels(i)).save(folder / f"class{i // 6}" / f"{i:02}.png")
    return folder


EXPECTED = np.stack([pixels(i) for i in range(N)])


@pytest.fixture
def out(images, tmp_path):
    return make(images, tmp_path / "out")


# The format


def test_bytes(out):
    """As Python's tarfile writes members that numpy.save wrote."""
    for k, first in enumerate(range(0, N, 4)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(first, min(first + 4, N)):
                member = io.BytesIO()
                np.save(member, pixels(i))
                info = tarfile.TarInfo(f"{i:09}.npy")
                info.size = len(member.getvalue())
                tar.addfile(info, io.BytesIO(member.getvalue()))
            end = tar.offset
        expected = buffer.getvalue()[:end] + bytes(1024)
        assert (out / f"train-{k:05}.tar").read_bytes() == expected
        crcs = np.fromfile(out / f"train-{k:05}.crc", "<u4").tolist()
        assert crcs == [zlib.crc32(x.tobytes()) for x in EXPECTED[first : first + 4]]


def test_strides():
    assert stride((32, 32, 3)) == 4096 and stride((256, 256, 3)) == 197_632
    for shape in [(8, 8, 1), (256, 256, 3), (1024, 1024, 4)]:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(shape, np.uint8))
        assert buffer.getvalue()[:128] == npy_header(shape)


def test_tar_tools_read_it(out, tmp_path):
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                found[member.name] = np.load(io.BytesIO(tar.extractfile(member).read()))
    assert list(found) == [f"{i:09}.npy" for i in range(N)]
    np.testing.assert_array_equal(np.stack(list(found.values())), EXPECTED)


def test_webdataset_reads_it(out):
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed")
    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    np.testing.assert_array_equal(np.stack([sample["npy"] for sample in samples]), EXPECTED)


def test_manifest(out):
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest["format"] == "ddgan_fast shards" and manifest["version"] == 1
    assert manifest["shape"] == [8, 8, 3] and manifest["n"] == N and manifest["rejects"] == 0
    assert [shard["n"] for shard in manifest["shards"]] == [4, 4, 3]
    assert manifest["shards"][2]["bytes"] == 3 * 1024 + 1024
    assert manifest["source"]["kind"] == "folder" and manifest["source"]["records"] == N
    assert manifest["transform"]["filter"] == "bilinear"
    assert str(out.parent) not in (out / "manifest.json").read_text()


# The reader


def test_fetch_in_any_order(out):
    shards = open_shards(out)
    for numbers in ([3, 4, 0, 10, 3], [7], [], range(N)):
        fetched = shards.fetch(np.array(list(numbers), np.int64))
        assert fetched.dtype == np.uint8 and fetched.flags.writeable
        np.testing.assert_array_equal(fetched, EXPECTED[list(numbers)])
    for wrong in (-1, N):
        with pytest.raises(IndexError, match=f"no image {wrong} in .*: it holds 11"):
            shards.fetch(np.array([wrong]))


def test_it_is_records_too(out):
    shards = open_shards(out)
    assert shards.kind == "shards" and shards.class_names == ("class0", "class1")
    np.testing.assert_array_equal(shards.read(5), pixels(5))
    np.testing.assert_array_equal(decode(shards, 5, 8, 3), pixels(5))
    assert shards.name(5) == f"{out}/train-00001.tar, image 000000005"
    assert shards.describe() == f"shards {out}: 11 images 8x8x3, 2 classes"


def test_threads_and_processes(out):
    shards = open_shards(out)
    shards.fetch(np.arange(3))  # so that a file is open already
    copy, wrong = pickle.loads(pickle.dumps(shards)), []

    def work(seed, reader):
        for numbers in np.random.default_rng(seed).integers(0, N, (50, 8)):
            if not np.array_equal(reader.fetch(numbers), EXPECTED[numbers]):
                wrong.append(numbers)

    threads = [threading.Thread(target=work, args=(k, (shards, copy)[k % 2])) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(shards.fetch(np.arange(N)), EXPECTED) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_open_files_are_bounded_and_closed(out, monkeypatch):
    def count():
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum(os.path.realpath(link).startswith(f"{out}/") for link in links)

    monkeypatch.setattr(module, "_KEPT_OPEN", 2)
    shards = open_shards(out)
    assert count() == 0
    np.testing.assert_array_equal(shards.fetch(np.arange(N)), EXPECTED)
    assert count() == 2
    shards.close()
    assert count() == 0
    shards.fetch(np.arange(N))
    del shards
    assert count() == 0


def test_short_reads_are_continued(out, monkeypatch):
    real = os.preadv

    def trickle(descriptor, parts, offset):
        return real(descriptor, [parts[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", trickle)
    np.testing.assert_array_equal(open_shards(out).fetch(np.arange(N)), EXPECTED)
    with open(out / "train-00000.tar", "rb") as file:
        assert preadv(file.fileno(), [memoryview(bytearray(9000))], 0) == 4 * 1024 + 1024


def test_cache_and_limit(out):
    whole, kept, first = open_shards(out), open_shards(out, cache="ram"), open_shards(out, limit=5)
    assert whole.array is None and open_shards(out, cache="auto").array is not None
    np.testing.assert_array_equal(kept.array, EXPECTED)
    np.testing.assert_array_equal(kept.fetch(np.array([2, 2])), EXPECTED[[2, 2]])
    assert len(first) == 5 and first.labels.tolist() == [0] * 5
    assert first.digest != whole.digest == kept.digest == open_shards(out, limit=99).digest
    with pytest.raises(IndexError):
        first.fetch(np.array([5]))
    assert open_shards(out, cache="gpu").array is None
    for shards in (whole, kept):
        target = np.zeros((3, 8, 8, 3), np.uint8)
        shards.fetch_into(np.array([9, 0, 9]), target)
        np.testing.assert_array_equal(target, EXPECTED[[9, 0, 9]])
    with pytest.raises(ValueError, match=r'data.cache is "disk"'):
        open_shards(out, cache="disk")


def test_training_reads_it(out):
    cfg = Config()
    cfg.data.path, cfg.model.image_size = str(out), 8
    shards = build_dataset(cfg)
    assert shards.digest == open_shards(out).digest and shards.flips
    for source in ("shards", "stacked_mnist"):  # whatever the preset's source was
        cfg.data.source = source
        assert build_dataset(cfg).kind == "shards"
    cfg.data.source = "synthetic"
    with pytest.raises(ValueError, match="reads no files"):
        build_dataset(cfg)
    cfg.data.source = "auto"
    cfg.model.image_size = 32
    with pytest.raises(ValueError, match=r"images 8x8x3, but the model is for 32x32x3: prepare .*"):
        build_dataset(cfg)
    cfg.model.image_size, cfg.model.num_channels = 8, 1
    with pytest.raises(ValueError, match=r"--resolution 8 --channels 1, or change"):
        build_dataset(cfg)


def test_train_by_the_command(out, tmp_path, capsys):
    options = f"""train digits --data.source auto --data {out} --run.dir {tmp_path / "run"}
        --model.num_channels 3 --model.num_channels_dae 16 --discriminator.ngf 16
        --run.steps 2 --run.sample_every 0 --run.batch_size 4 --device cpu
        --run.tensorboard false"""
    assert main(options.split()) == 0
    assert f"shards {out}: 11 images 8x8x3, 2 classes" in capsys.readouterr().out


def test_reader_needs_no_torch(out):
    code = (
        "import sys; from ddgan_fast.data.shards import open_shards\n"
        f"open_shards({str(out)!r}).fetch([0]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Damage


def damaged(path, change):
    """Changes the bytes of a file."""
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def edit_manifest(out, **changes):
    manifest = json.loads((out / "manifest.json").read_bytes())
    (out / "manifest.json").write_text(json.dumps({**manifest, **changes}))


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
    other = make(images, tmp_path / "other", limit=7)
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


def flip(place):
    return lambda data: data.__setitem__(place, data[place] ^ 1)


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


def test_verify_sees_to_what_lies_beside(out):
    (out / "train-00009.tar").write_bytes(b"")
    (out / "train-00000.crc").unlink()
    os.truncate(out / "train-00001.crc", 8)
    assert [fault.removeprefix(f"{out}/") for fault in verify(out)] == [
        "train-00009.tar does not belong to the set: take it away.",
        "train-00000.crc is missing.",
        "train-00001.crc holds 2 sums, not 4.",
    ]


# Encoded sets


@pytest.fixture
def mixed(tmp_path):
    """Files that fit as they are (a*) and files that do not (b*), 8x8."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    rgb = Image.fromarray(pixels(1))
    rgb.save(folder / "a0.png")
    rgb.save(folder / "a1.jpg", quality=90)
    rgb.save(folder / "a2.webp", quality=80)
    rgb.save(folder / "a3.jpeg", progressive=True, exif=_orientation(1))
    rgb.save(folder / "b0.jpg", exif=_orientation(6))
    rgb.quantize(16).save(folder / "b1.png")
    rgb.convert("L").save(folder / "b2.png")
    Image.fromarray(pixels(2, (8, 8, 4))).save(folder / "b3.png")
    Image.fromarray(pixels(3, (9, 8, 3))).save(folder / "b4.jpg")
    rgb.convert("CMYK").save(folder / "b5.jpg")
    rgb.save(folder / "b6.bmp")
    rgb.save(folder / "b7.tif")
    Image.fromarray(pixels(4, (8, 8, 2)).view(np.uint16)[..., 0]).save(folder / "b8.png")
    rgb.save(folder / "b9.png", transparency=(1, 2, 3))
    return folder


def _orientation(value):
    exif = Image.Exif()
    exif[274] = value
    return exif


def test_encoded(mixed, tmp_path):
    raw, encoded = make(mixed, tmp_path / "raw"), make(mixed, tmp_path / "enc", encoded=True)
    shards, plain = open_shards(encoded), open_shards(raw)
    assert shards.digest == plain.digest and shards.encoding == "image" and shards.workers == 2
    everything = np.arange(len(plain))
    np.testing.assert_array_equal(shards.fetch(everything), plain.fetch(everything))
    files = sorted(mixed.iterdir())
    kinds = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
    names = []
    for i, path in enumerate(files):
        data = shards.encoded(i)
        assert data == shards.read(i)
        if path.name.startswith("a"):
            assert data == path.read_bytes(), path
            names.append(f"{i:09}.{kinds[path.suffix]}")
        else:
            assert data != path.read_bytes() and data.startswith(b"\x89PNG"), path
            names.append(f"{i:09}.png")
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), plain.read(i))
    members = []
    for path in sorted(encoded.glob("*.tar")):
        with tarfile.open(path) as tar:
            members += tar.getnames()
    assert members == names and verify(encoded) == []
    with pytest.raises(TypeError, match="holds pixels, no encoded images"):
        plain.encoded(0)


@pytest.mark.parametrize("channels", [1, 4])
def test_encoded_grey_and_alpha(mixed, tmp_path, channels):
    raw = make(mixed, tmp_path / "raw", channels=channels)
    encoded = make(mixed, tmp_path / "enc", channels=channels, encoded=True)
    shards, plain = open_shards(encoded), open_shards(raw)
    assert shards.digest == plain.digest
    everything = np.arange(len(plain))
    np.testing.assert_array_equal(shards.fetch(everything), plain.fetch(everything))
    as_it_is = {1: 6, 4: 7}[channels]  # b2 is grey, b3 has alpha
    assert shards.encoded(as_it_is) == sorted(mixed.iterdir())[as_it_is].read_bytes()


def test_encoded_damage(mixed, tmp_path):
    out = make(mixed, tmp_path / "out", encoded=True)
    shards = open_shards(out)
    offset = int(shards.spans[5, 1])
    damaged(out / "train-00001.tar", flip(offset + 60))
    assert verify(out) == [f"{out}/train-00001.tar, image 000000005 is damaged."]
    os.truncate(out / "train-00001.tar", offset + 20)
    with pytest.raises(OSError, match=r"train-00001\.tar, image 000000005: the file ends"):
        shards.fetch(np.array([5]))
    damaged(out / "index.npy", flip(-9))
    damaged(out / "train-00001.tar", lambda data: data.extend(bytes(99_999)))
    edit_manifest(
        out,
        shards=[
            {**shard, "bytes": (out / shard["shard"]).stat().st_size}
            for shard in json.loads((out / "manifest.json").read_bytes())["shards"]
        ],
    )
    with pytest.raises(ValueError, match=r"index\.npy is not the file"):
        open_shards(out)


def test_encoded_fetch_names_what_cannot_be_decoded(mixed, tmp_path):
    out = make(mixed, tmp_path / "out", encoded=True)
    offset = int(open_shards(out).spans[0, 1])
    damaged(out / "train-00000.tar", flip(offset + 70))
    with pytest.raises(ValueError, match=r"train-00000\.tar, image 000000000 cannot be used as an"):
        open_shards(out).fetch(np.array([0]))
