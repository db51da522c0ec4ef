"""The prepared format byte for byte, and its reader."""

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
from prepare_cases import EXPECTED, SHARD_N, pixels

from ddgan_fast.cli import main
from ddgan_fast.config import Config
from ddgan_fast.data import build_dataset
from ddgan_fast.data import shards as module
from ddgan_fast.data.records import decode
from ddgan_fast.data.shards import open_shards
from ddgan_fast.data.shards_format import npy_header, preadv, stride


def test_bytes(out):
    """As Python's tarfile writes members that numpy.save wrote."""
    for k, first in enumerate(range(0, SHARD_N, 4)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(first, min(first + 4, SHARD_N)):
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
    assert list(found) == [f"{i:09}.npy" for i in range(SHARD_N)]
    np.testing.assert_array_equal(np.stack(list(found.values())), EXPECTED)


def test_webdataset_reads_it(out):
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed")
    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    np.testing.assert_array_equal(np.stack([sample["npy"] for sample in samples]), EXPECTED)


def test_manifest(out):
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest["format"] == "ddgan_fast shards" and manifest["version"] == 1
    assert manifest["shape"] == [8, 8, 3] and manifest["n"] == SHARD_N and manifest["rejects"] == 0
    assert [shard["n"] for shard in manifest["shards"]] == [4, 4, 3]
    assert manifest["shards"][2]["bytes"] == 3 * 1024 + 1024
    assert manifest["source"]["kind"] == "folder" and manifest["source"]["records"] == SHARD_N
    assert manifest["transform"]["filter"] == "bilinear"
    assert str(out.parent) not in (out / "manifest.json").read_text()


# The reader


def test_fetch_in_any_order(out):
    shards = open_shards(out)
    for numbers in ([3, 4, 0, 10, 3], [7], [], range(SHARD_N)):
        fetched = shards.fetch(np.array(list(numbers), np.int64))
        assert fetched.dtype == np.uint8 and fetched.flags.writeable
        np.testing.assert_array_equal(fetched, EXPECTED[list(numbers)])
    for wrong in (-1, SHARD_N):
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
        for numbers in np.random.default_rng(seed).integers(0, SHARD_N, (50, 8)):
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
        os._exit(0 if np.array_equal(shards.fetch(np.arange(SHARD_N)), EXPECTED) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_open_files_are_bounded_and_closed(out, monkeypatch):
    def count():
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum(os.path.realpath(link).startswith(f"{out}/") for link in links)

    monkeypatch.setattr(module, "_KEPT_OPEN", 2)
    shards = open_shards(out)
    assert count() == 0
    np.testing.assert_array_equal(shards.fetch(np.arange(SHARD_N)), EXPECTED)
    assert count() == 2
    shards.close()
    assert count() == 0
    shards.fetch(np.arange(SHARD_N))
    del shards
    assert count() == 0


def test_short_reads_are_continued(out, monkeypatch):
    real = os.preadv

    def trickle(descriptor, parts, offset):
        return real(descriptor, [parts[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", trickle)
    np.testing.assert_array_equal(open_shards(out).fetch(np.arange(SHARD_N)), EXPECTED)
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


def test_training_reads_it(out, images):
    cfg = Config()
    cfg.data.path, cfg.model.image_size = str(out), 8
    shards = build_dataset(cfg)
    assert shards.digest == open_shards(out).digest and shards.flips
    for source in ("shards", "stacked_mnist"):  # whatever the preset's source was
        cfg.data.source = source
        assert build_dataset(cfg).kind == "shards"
    cfg.data.path, cfg.data.source = str(images), "shards"
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json"):
        build_dataset(cfg)
    cfg.data.path, cfg.data.source = str(out), "synthetic"
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


def test_no_torch_is_needed(out):
    code = (
        "import sys; from ddgan_fast.data.shards import open_shards\n"
        "import ddgan_fast.data.prepare, ddgan_fast.data.shards_check\n"
        f"open_shards({str(out)!r}).fetch([0]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
