"""``prepare`` makes the same set of the same pixels, whatever kind of source they come from."""

import json
import os

import numpy as np
import pytest
from makers import (
    cifar_binaries,
    cifar_pickles,
    npy,
    pictures,
    png,
    write_files,
    write_folder,
    write_idx,
    write_lmdb,
    write_tars,
    write_zip,
    zip_of,
)

from ddgan_fast.data.prepare import prepare
from ddgan_fast.data.prepare_request import Request
from ddgan_fast.data.shards import open_shards

IMAGES = pictures(20, 32)
LABELS = np.arange(20) * 7 % 10


def without_labels(kind, root):
    files = [png(image) for image in IMAGES]
    if kind == "folder":
        return write_folder(root / "images", IMAGES)
    if kind == "zip":
        return zip_of(root / "images.zip", IMAGES)
    if kind == "lmdb of files":
        return write_lmdb(root / "faces" / "train.lmdb", files).parent
    if kind == "lmdb of pixels":
        return write_lmdb(
            root / "faces" / "train.lmdb", [image.tobytes() for image in IMAGES]
        ).parent
    if kind == "tar of files":
        members = [(f"{i:03}.png", data) for i, data in enumerate(files)]
    else:
        members = [(f"{i:03}.npy", npy(image)) for i, image in enumerate(IMAGES)]
    return write_tars(root / "tars", [members[:9], members[9:]])


def with_labels(kind, root):
    if kind == "cifar10":
        return write_files(root / "cifar", cifar_pickles(IMAGES, LABELS))
    if kind == "cifar10 binary":
        return write_files(root / "cifar", cifar_binaries(IMAGES, LABELS))
    if kind == "zip":
        names = [f"{i:03}.png" for i in range(20)]
        table = {"labels": [[name, int(label)] for name, label in zip(names, LABELS, strict=True)]}
        members = [(name, png(image)) for name, image in zip(names, IMAGES, strict=True)]
        return write_zip(root / "x.zip", [*members, ("dataset.json", json.dumps(table).encode())])
    members = []
    for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        members += [(f"{i:03}.png", png(image)), (f"{i:03}.cls", str(label).encode())]
    return write_tars(root / "tars", [members])


def prepared(source, out, **options):
    request = {"resolution": 32, "shard_images": 8, "workers": 1, **options}
    prepare(Request(str(source), str(out), **request))
    return open_shards(out)


@pytest.fixture(scope="module")
def digests(tmp_path_factory):
    """Of the images alone, and with their labels."""
    root = tmp_path_factory.mktemp("digests")
    return (
        prepared(without_labels("folder", root), root / "0").digest,
        prepared(with_labels("tar", root), root / "1").digest,
    )


@pytest.mark.parametrize(
    "kind",
    ["folder", "zip", "lmdb of files", "lmdb of pixels", "tar of files", "tar of arrays"],
)
def test_same_images(kind, tmp_path, digests):
    source = without_labels(kind, tmp_path)
    shards = prepared(source, tmp_path / "out", encoded="files" in kind)
    assert shards.digest == digests[0] and shards.labels is None
    np.testing.assert_array_equal(shards.fetch(np.arange(20)), IMAGES)


@pytest.mark.parametrize("kind", ["cifar10", "cifar10 binary", "zip", "tar"])
def test_same_images_and_labels(kind, tmp_path, digests):
    shards = prepared(with_labels(kind, tmp_path), tmp_path / "out")
    assert shards.digest == digests[1] != digests[0]
    np.testing.assert_array_equal(shards.labels, LABELS)
    assert (len(shards.class_names) == 10) == kind.startswith("cifar10")


def test_filters_of_files_and_of_pixels(tmp_path):
    options = {"resolution": 16, "filter": "box"}
    kinds = {kind: with_labels(kind, tmp_path) for kind in ("tar", "cifar10")}
    files, arrays = (prepared(kinds[k], tmp_path / k, **options).digest for k in kinds)
    assert files == arrays
    options["filter"] = "bilinear"
    assert prepared(kinds["cifar10"], tmp_path / "other", **options).digest != arrays


def test_two_processes_read_one_database(tmp_path, digests):
    source = without_labels("lmdb of files", tmp_path)
    assert prepared(source, tmp_path / "out", workers=2).digest == digests[0]


def test_shards_without_their_manifest_are_a_webdataset(tmp_path, digests):
    prepared(without_labels("folder", tmp_path), tmp_path / "out")
    for name in os.listdir(tmp_path / "out"):
        if not name.endswith(".tar"):
            os.remove(tmp_path / "out" / name)
    again = prepared(tmp_path / "out", tmp_path / "again")
    assert again.digest == digests[0] and again.manifest.source["kind"] == "tar"


def test_mistakes_name_the_options_of_prepare(tmp_path):
    source = write_lmdb(tmp_path / "faces" / "train.lmdb", [png(IMAGES[0])]).parent
    write_folder(tmp_path / "both", IMAGES[:1])
    write_idx(tmp_path / "both", IMAGES[..., 0], None)
    for place, options, words in [
        (tmp_path / "both", {}, "choose one by --source."),
        (source, {"kind": "cd"}, r'^--source is "cd"; allowed are auto, folder'),
        (source, {"split": "half"}, r'^--split is "half"; allowed'),
        (source, {"split": "validation"}, r'for --split "validation"; it holds'),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            prepared(place, tmp_path / "out", **options)


def test_stacked_digits_are_not_mirrored(tmp_path):
    digits = pictures(9, 28)[..., 0]
    source = write_idx(tmp_path / "digits", digits, np.arange(9))
    shards = prepared(source, tmp_path / "out", kind="stacked_mnist", limit=12)
    assert len(shards) == 12 and not shards.flips and shards.labels.max() > 99
    assert not prepared(tmp_path / "out", tmp_path / "again").flips


def test_parts(tmp_path):
    source = write_lmdb(
        tmp_path / "faces" / "train.lmdb", [png(image) for image in IMAGES[:15]]
    ).parent
    write_lmdb(tmp_path / "faces" / "validation.lmdb", [png(image) for image in IMAGES[15:]])
    counts = [
        len(prepared(source, tmp_path / split, split=split))
        for split in ("train", "validation", "both")
    ]
    assert counts == [15, 5, 20]
    with pytest.raises(ValueError, match="was begun otherwise"):
        prepared(source, tmp_path / "train", split="validation")
