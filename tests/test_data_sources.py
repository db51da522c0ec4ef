"""Sources: what they hold, and the sentences for what is wrong."""

import hashlib
import os
import sys

import numpy as np
import pytest
from PIL import Image

from ddgan_fast.config import Config
from ddgan_fast.data import build_dataset
from ddgan_fast.data.decoded import Decoded
from ddgan_fast.data.images import decode_image
from ddgan_fast.data.open import open_records
from ddgan_fast.data.records_folder import list_images
from ddgan_fast.data.sources import Synthetic, digits, gaussians25


def photo(height, width, seed=0):
    """Pixels that no other seed has."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def opened(path, size, channels, *, limit=None, **options):
    return Decoded(open_records(path, "folder", limit=limit), size, channels, **options)


def config(source, path=None, size=8, channels=3, **data):
    cfg = Config()
    cfg.data.source, cfg.data.path = source, None if path is None else str(path)
    cfg.model.image_size, cfg.model.num_channels = size, channels
    for name, value in data.items():
        setattr(cfg.data, name, value)
    return cfg


@pytest.fixture
def folder(tmp_path):
    """b.png, a/1.JPG, a/2.png, and things that are no training images."""
    (tmp_path / "a").mkdir()
    (tmp_path / ".hidden").mkdir()
    Image.fromarray(photo(20, 30, seed=1)).save(tmp_path / "b.png")
    Image.fromarray(photo(30, 20, seed=2)).save(tmp_path / "a" / "1.JPG")
    Image.fromarray(photo(16, 16, seed=3)).save(tmp_path / "a" / "2.png")
    Image.fromarray(photo(16, 16)).save(tmp_path / ".hidden" / "3.png")
    (tmp_path / ".4.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


# Digits, Gaussians, noise


def test_digits_are_the_originals():
    from sklearn.datasets import load_digits

    ds = digits(8, 1)
    assert len(ds) == 1797 and ds.shape == (8, 8, 1) and not ds.flips
    raw = load_digits()
    images = ds.fetch(np.arange(1797))
    assert images.dtype == np.uint8 and images.max() == 255 and images.min() == 0
    levels = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    np.testing.assert_array_equal(images[..., 0], np.array(levels)[raw.images.astype(int)])
    np.testing.assert_array_equal(ds.labels, raw.target)
    assert ds.labels.dtype == np.int64


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_digits_sizes(size, channels):
    ds = build_dataset(config("digits", size=size, channels=channels, limit=20))
    images = ds.fetch(np.array([3, 3, 7]))
    assert images.shape == (3, size, size, channels) and len(ds) == 20 and len(ds.labels) == 20
    assert (images == images[..., :1]).all()
    small = digits(8, 1).fetch(np.array([3]))[0, ..., 0].astype(float)
    blocks = images[0, ..., 0].reshape(8, size // 8, 8, size // 8).mean((1, 3))
    assert np.corrcoef(small.ravel(), blocks.ravel())[0, 1] > 0.97


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(RuntimeError, match=r'pip install "ddgan_fast\[demo\]"'):
        build_dataset(config("digits", channels=1))


def test_gaussians():
    ds = gaussians25()
    points = ds.fetch(np.arange(len(ds)))
    assert points.shape == (100_000, 2) and points.dtype == np.float32 and not ds.flips
    nearest = np.rint(points / 2) * 2
    assert set(map(tuple, nearest.astype(int))) == {
        (x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)
    }
    np.testing.assert_array_equal(5 * (nearest[:, 0] + 4) / 2 + (nearest[:, 1] + 4) / 2, ds.labels)
    assert np.bincount(ds.labels).tolist() == [4000] * 25
    offset = (points - nearest).astype(np.float64) / 0.05
    np.testing.assert_allclose(offset.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(np.cov(offset.T), np.eye(2), atol=0.02)
    assert abs((offset**4).mean() - 3) < 0.1
    np.testing.assert_array_equal(gaussians25(50).array, points[:50])
    np.testing.assert_allclose(
        points[:2], [[-4.02276087, -4.01011562], [-3.96121741, -1.96647394]], atol=1e-6
    )


def test_gaussians_belong_to_the_mlp():
    cfg = config("gaussians25")
    with pytest.raises(ValueError, match=r'gaussians25" does not fit model.kind "ncsnpp"'):
        build_dataset(cfg)
    cfg.model.kind = "mlp"
    assert build_dataset(cfg).shape == (2,)
    with pytest.raises(ValueError, match=r'digits" does not fit model.kind "mlp"'):
        cfg.data.source = "digits"
        build_dataset(cfg)


def test_synthetic():
    ds = build_dataset(config("synthetic", size=16, channels=4, limit=300))
    images = ds.fetch(np.array([0, 299, 0, 1]))
    assert images.shape == (4, 16, 16, 4) and images.dtype == np.uint8 and images.flags.writeable
    np.testing.assert_array_equal(images[0], images[2])
    assert not np.array_equal(images[0], images[1])
    assert abs(images.mean() - 127.5) < 5 and 70 < images.std() < 78
    assert len(ds) == 300 and len(Synthetic(8, 1, 7)) == 7


# Folder


def test_folder_order_labels_and_pixels(folder):
    ds = opened(folder, 8, 3)
    assert ds.records.names == ["a/1.JPG", "a/2.png", "b.png"]
    assert ds.labels is None and ds.flips and len(ds) == 3
    images = ds.fetch(np.array([2, 0]))
    assert images.shape == (2, 8, 8, 3) and images.dtype == np.uint8
    expected = decode_image((folder / "b.png").read_bytes(), "b", 8, 3)
    np.testing.assert_array_equal(images[0], expected)
    assert "3 images 8x8x3" in ds.describe()


def test_folder_classes(folder):
    os.remove(folder / "b.png")
    (folder / "c" / "deep").mkdir(parents=True)
    Image.fromarray(photo(16, 16)).save(folder / "c" / "deep" / "0.webp")
    ds = opened(folder, 8, 3)
    assert ds.records.class_names == ("a", "c") and ds.labels.tolist() == [0, 0, 1]
    assert ds.labels.dtype == np.int64 and "2 classes" in ds.describe()


def test_cached_and_uncached_are_equal(folder):
    kept, lazy = (opened(folder, 8, 1, cache=cache) for cache in ("ram", "none"))
    assert kept.array is not None and lazy.array is None
    np.testing.assert_array_equal(kept.fetch(np.arange(3)), lazy.fetch(np.arange(3)))
    assert kept.digest == lazy.digest


def test_auto_cache_stops_at_its_limit(folder, monkeypatch):
    monkeypatch.setattr("ddgan_fast.data.decoded._AUTO_CACHE_BYTES", 3 * 8 * 8 * 3)
    assert opened(folder, 8, 3).array is not None
    assert opened(folder, 9, 3).array is None


def test_many_files_land_in_their_places(tmp_path):
    for i in range(70):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i:03}.png")
    ds = opened(tmp_path, 8, 1, workers=3)
    np.testing.assert_array_equal(ds.array[:, 0, 0, 0], np.arange(70))
    assert len(opened(tmp_path, 8, 1, limit=5)) == 5


def test_digest_sees_names_sizes_and_transform_only(folder, tmp_path_factory):
    digest = opened(folder, 8, 3).digest
    copy = tmp_path_factory.mktemp("copy")
    for name, _ in list_images(folder):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes((folder / name).read_bytes())
    assert opened(copy, 8, 3).digest == digest
    os.utime(copy / "b.png", (0, 0))
    assert opened(copy, 8, 3).digest == digest
    assert opened(copy, 9, 3).digest != digest
    assert opened(copy, 8, 1).digest != digest
    assert opened(copy, 8, 3, limit=2).digest != digest
    with open(copy / "b.png", "ab") as file:
        file.write(b"\0")
    longer = opened(copy, 8, 3).digest
    assert longer != digest
    (copy / "b.png").rename(copy / "c.png")
    assert opened(copy, 8, 3).digest not in (digest, longer)


def test_digests_are_sha256_and_differ():
    found = [digits(8, 1), digits(8, 3), digits(16, 1), digits(8, 1, 9), gaussians25(9)]
    found += [Synthetic(8, 1, 5), Synthetic(8, 1, 6)]
    values = {ds.digest for ds in found}
    assert len(values) == len(found)
    assert all(len(value) == hashlib.sha256().digest_size * 2 for value in values)
    assert digits(8, 1).digest == digits(8, 1).digest


def test_links_are_followed_and_loops_end(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    Image.fromarray(photo(16, 16)).save(other / "z.png")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "linked").symlink_to(other)
    (other / "back").symlink_to(folder)
    names = [name for name, _ in list_images(folder)]
    assert names == ["a/1.JPG", "a/2.png", "b.png", "linked/z.png"]


def test_folder_mistakes(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="give --data PATH"):
        build_dataset(config("folder"))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: check the spelling"):
        build_dataset(config("folder", folder / "nowhere"))
    with pytest.raises(NotADirectoryError, match=r"b\.png is not a folder"):
        build_dataset(config("folder", folder / "b.png"))
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match=r"holds no images \(png, jpg"):
        build_dataset(config("folder", empty))
    with pytest.raises(ValueError, match=r'data.cache is "disk"; allowed are'):
        build_dataset(config("folder", folder, cache="disk"))


def test_other_mistakes(folder):
    with pytest.raises(ValueError, match=r'data.source is "lmdbs"; allowed are digits'):
        build_dataset(config("lmdbs"))
    with pytest.raises(ValueError, match=r'digits" reads no files, but data.path is "/x"'):
        build_dataset(config("digits", "/x", channels=1))
    with pytest.raises(ValueError, match=r"data.limit is 0"):
        build_dataset(config("digits", channels=1, limit=0))
    with pytest.raises(ValueError, match=r"image_size is 64; digits come in 8, 16 or 32"):
        build_dataset(config("digits", size=64, channels=1))
    with pytest.raises(ValueError, match="num_channels is 4; digits have 1"):
        build_dataset(config("digits", channels=4))
    with pytest.raises(ValueError, match="num_channels is 2; images have 1, 3 or 4"):
        build_dataset(config("folder", folder, channels=2))


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_unreadable_image_is_named(folder, cache):
    whole = (folder / "a" / "2.png").read_bytes()
    (folder / "a" / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"a/2\.png cannot be used as an image \(.*: replace it or"
    ):
        opened(folder, 8, 3, cache=cache).fetch(np.arange(3))


def test_first_of_several_bad_images_is_named(tmp_path):
    for i in range(100):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i:03}.png")
    for i in (5, 40, 99):
        (tmp_path / f"{i:03}.png").write_bytes(b"bad")
    for _ in range(3):
        with pytest.raises(ValueError, match=r"005\.png"):
            opened(tmp_path, 8, 3, workers=4)


def test_verify_lists_all_bad_images(folder):
    ds = opened(folder, 8, 3, cache="none")
    assert ds.verify() == []
    (folder / "b.png").write_bytes(b"<html>")
    (folder / "a" / "1.JPG").unlink()
    first, second = ds.verify()
    assert "1.JPG cannot be read (No such file" in first and "b.png cannot be used" in second


def test_refused_kinds_and_broken_links(folder):
    (folder / "a" / "deep").mkdir()
    link = folder / "a" / "deep" / "gone.png"
    link.symlink_to(folder / "nothing.png")
    with pytest.raises(FileNotFoundError, match=r"gone\.png cannot be read \(No such file"):
        list_images(folder)
    link.unlink()
    Image.fromarray(photo(8, 8)).save(folder / "a" / "x.GIF")
    with pytest.raises(ValueError, match=r"x\.GIF is of a kind that is not read"):
        list_images(folder)
