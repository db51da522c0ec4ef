"""``prepare``: the same set from every way of making it, and what it refuses."""

import hashlib
import shutil

import numpy as np
import pytest
from PIL import Image
from prepare_cases import N, content, make, photo

from ddgan_fast.data.images import decode_image
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.shards import open_shards
from ddgan_fast.data.shards_format import dataset_digest
from ddgan_fast.data.torch_loader import Loader


def test_images_labels_and_classes(source, tmp_path):
    outcome = make(source, tmp_path / "out")
    shards = open_shards(tmp_path / "out")
    assert outcome.made == 6 and len(shards) == N and shards.shape == (8, 8, 3)
    assert shards.class_names == ("a", "b") and shards.labels.tolist() == [0] * 12 + [1] * 11
    files = sorted(source.rglob("*.*"))
    expected = np.stack([decode_image(f.read_bytes(), "x", 8, 3) for f in files])
    np.testing.assert_array_equal(shards.fetch(np.arange(N)), expected)
    hashes = np.stack([np.frombuffer(hashlib.sha256(x.tobytes()).digest(), "u1") for x in expected])
    assert shards.digest == dataset_digest((8, 8, 3), N, [hashes], shards.labels)
    assert shards.digest != dataset_digest((8, 8, 3), N, [hashes], None)
    assert not (tmp_path / "out" / ".progress").exists()


@pytest.mark.parametrize("options", [{"shard_images": 7}, {"shard_images": 999}, {"encoded": True}])
def test_digest_does_not_depend_on_how(source, tmp_path, options):
    one = make(source, tmp_path / "one").manifest
    other = make(source, tmp_path / "other", **options).manifest
    assert other.digest == one.digest


def test_two_processes_make_the_same_bytes(source, tmp_path):
    (source / "a" / "04.jpg").write_bytes(b"no image")
    make(source, tmp_path / "one", max_bad=1)
    make(source, tmp_path / "two", max_bad=1, workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_digest_sees_pixels_labels_and_channels(source, tmp_path):
    seen = {make(source, tmp_path / "0").manifest.digest}
    seen.add(make(source, tmp_path / "1", channels=1).manifest.digest)
    seen.add(make(source, tmp_path / "2", filter="lanczos").manifest.digest)
    seen.add(make(source, tmp_path / "3", limit=22).manifest.digest)
    (source / "a").rename(source / "c")  # the same images, of another class, in another order
    seen.add(make(source, tmp_path / "4").manifest.digest)
    assert len(seen) == 5


def test_a_set_is_not_continued_from_another_kind_of_source(source, tmp_path):
    make(source, tmp_path / "out")
    archive = shutil.make_archive(tmp_path / "images", "zip", source)
    with pytest.raises(ValueError, match="the source was of kind folder, now zip"):
        make(archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos", "box"])
def test_filters(tmp_path, name):
    (tmp_path / "in").mkdir()
    pixels = photo(1, 40, 40)
    Image.fromarray(pixels).save(tmp_path / "in" / "x.png")
    make(tmp_path / "in", tmp_path / "out", filter=name)
    resized = Image.fromarray(pixels).resize((8, 8), Image.Resampling[name.upper()])
    np.testing.assert_array_equal(open_shards(tmp_path / "out").fetch([0])[0], np.asarray(resized))


def test_crop_none_rejects_what_is_not_square(source, tmp_path):
    Image.fromarray(photo(99, 10, 10)).save(source / "a" / "00.png")
    make(source, tmp_path / "out", crop="none", max_bad=N, shard_images=N)
    assert len(open_shards(tmp_path / "out")) == 1
    assert "10x13, not square" in (tmp_path / "out" / "rejects.jsonl").read_text()


def test_duplicates_are_kept(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(6):
        Image.fromarray(photo(1 if i % 2 else i)).save(tmp_path / "in" / f"{i}.png")
    manifest = make(tmp_path / "in", tmp_path / "out").manifest
    images = open_shards(tmp_path / "out").fetch(np.arange(6))
    assert (images[1::2] == images[1]).all() and manifest.duplicates == 2


def test_fewer_images_than_a_batch_train(source, tmp_path):
    make(source, tmp_path / "out", limit=3)
    shards = open_shards(tmp_path / "out")
    with Loader(shards, Plan(3, 0, 16)) as loader:
        assert next(loader).images.shape == (16, 8, 8, 3)


def test_shards_are_a_source_too(source, tmp_path):
    make(source, tmp_path / "big", resolution=16)
    make(tmp_path / "big", tmp_path / "small")
    make(tmp_path / "small", tmp_path / "again", shard_images=9)
    small, again = open_shards(tmp_path / "small"), open_shards(tmp_path / "again")
    assert small.digest == again.digest and again.class_names == ("a", "b")
    assert again.manifest.source["fingerprint"] == small.digest


def test_source_stays_as_it_is(source, tmp_path):
    before = content(source), sorted(p.stat().st_mtime_ns for p in source.rglob("*"))
    make(source, tmp_path / "out")
    assert before == (content(source), sorted(p.stat().st_mtime_ns for p in source.rglob("*")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"filter": "box"}, r"--filter was bilinear, now box"),
        ({"resolution": 9}, r"--resolution was 8, now 9"),
        ({"channels": 1}, r"--channels was 3, now 1"),
        ({"crop": "none"}, r"--crop was center, now none"),
        ({"encoded": True}, r"--encoded was False, now True"),
        ({"shard_images": 5}, r"--shard-images was 4, now 5"),
        ({"limit": 9}, r"the number of records \(--limit\) was 23, now 9"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_another_request_in_the_same_folder(source, tmp_path, change, words, complete):
    if not complete:
        (source / "a" / "00.png").write_bytes(b"")
    try:
        make(source, tmp_path / "out")
    except RuntimeError:
        assert not complete
    before = content(tmp_path / "out")
    with pytest.raises(ValueError, match=rf"begun otherwise \({words}\): choose another folder"):
        make(source, tmp_path / "out", **change)
    assert content(tmp_path / "out") == before


def test_another_source_in_the_same_folder(source, tmp_path):
    make(source, tmp_path / "out")
    (source / "a" / "00.png").write_bytes((source / "a" / "00.png").read_bytes() + b"\0")
    with pytest.raises(ValueError, match="the source was source with other content"):
        make(source, tmp_path / "out")


def test_moved_source_is_the_same_source(source, tmp_path):
    make(source, tmp_path / "out")
    source.rename(tmp_path / "elsewhere")
    assert make(tmp_path / "elsewhere", tmp_path / "out").made == 0


def test_places(source, tmp_path):
    for inside in (source, source / "a", source / "new" / "folder"):
        with pytest.raises(ValueError, match="lies inside the source"):
            make(source, inside)
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(ValueError, match="lies inside the source"):
        make(source, tmp_path / "link" / "out")
    with pytest.raises(ValueError, match="is not empty and holds no shards"):
        make(source, tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        make(source, tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        make(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError):
        make(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (source / "new").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": 0}, "--resolution is 0: it must be at least 1"),
        ({"limit": 0}, "--limit is 0"),
        ({"shard_images": 0}, "--shard-images is 0"),
        ({"workers": 0}, "--workers is 0"),
        ({"max_bad": -1}, "--max-bad is -1"),
        ({"channels": 2}, "--channels is 2: allowed are 1, 3, 4"),
        ({"filter": "nearest"}, "--filter is nearest: allowed are bilinear, bicubic, lanczos, box"),
        ({"crop": "left"}, "--crop is left: allowed are center, none"),
    ],
)
def test_bad_values(source, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        make(source, tmp_path / "out", **options)
