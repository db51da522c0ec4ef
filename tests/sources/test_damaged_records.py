"""A damaged image in any source: a sentence that names it, and its neighbours stay readable."""

import json

import numpy as np
import pytest
from makers import pictures, png, tar_bytes, write_files, write_lmdb, write_zip

from ddgan_fast.data.decoded import Decoded
from ddgan_fast.data.open import open_records

IMAGES = pictures(3)
PNG = png(IMAGES[1])
JPEG = png(IMAGES[1], "JPEG")
WEBP = png(IMAGES[1], "WEBP", lossless=True)
IEND = PNG.index(b"IEND") - 4
FLIPPED = bytearray(PNG)
FLIPPED[len(PNG) // 2] ^= 255
DAMAGED = {
    "cut PNG": PNG[: len(PNG) // 2],
    "PNG without its end": PNG[:IEND],
    "PNG with a bad checksum": bytes(FLIPPED),
    "cut JPEG": JPEG[: len(JPEG) // 2],
    "cut WebP": WEBP[: len(WEBP) // 2],
    "nothing": b"",
    "one byte": b"\0",
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "garbage": np.random.default_rng(1).bytes(5000),
}


def put(kind, root, files):
    named = [(f"{i}.png", data) for i, data in enumerate(files)]
    if kind == "folder":
        return write_files(root / "images", named)
    if kind == "zip":
        return write_zip(root / "images.zip", named)
    if kind == "tar":
        return write_files(root, [("images.tar", tar_bytes(named))]) / "images.tar"
    return write_lmdb(root / "train.lmdb", files).parent


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "lmdb"])
@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged_image(tmp_path, kind, fault, unchanged):
    path = put(kind, tmp_path, [png(IMAGES[0]), DAMAGED[fault], png(IMAGES[2])])
    unchanged()
    records = open_records(path)
    dataset = Decoded(records, 32, 3, cache="none")
    assert len(records) == 3
    (sentence,) = dataset.verify()
    assert sentence.startswith(f"{records.name(1)} cannot be used as an image (")
    assert sentence.endswith("): replace it or take it out of the data.")
    np.testing.assert_array_equal(dataset.fetch(np.array([0, 2])), IMAGES[[0, 2]])
    with pytest.raises(ValueError, match="cannot be used as an image"):
        Decoded(records, 32, 3, cache="ram")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "lmdb"])
def test_mixed_sizes_and_kinds(tmp_path, kind):
    sizes = [pictures(1, size)[0] for size in (16, 32, 48)]
    files = [png(sizes[0]), png(sizes[1], "JPEG"), png(sizes[2][..., 0])]
    images = Decoded(open_records(put(kind, tmp_path, files)), 32, 3).fetch(np.arange(3))
    assert images.shape == (3, 32, 32, 3)
    assert (images[2] == images[2][..., :1]).all() and not (images[0] == images[0][..., :1]).all()


def test_fewer_images_than_a_batch(tmp_path):
    from ddgan_fast.data.plan import Plan

    dataset = Decoded(open_records(put("zip", tmp_path, [png(x) for x in IMAGES])), 32, 3)
    indices, _ = Plan(len(dataset), 0, 8).batch(0)
    np.testing.assert_array_equal(dataset.fetch(indices), IMAGES[indices])


def test_train_from_a_zip_by_the_command(tmp_path, capsys):
    from ddgan_fast.cli import main

    names = [f"{i}.png" for i in range(6)]
    table = {"labels": [[name, i % 2] for i, name in enumerate(names)]}
    members = [(name, png(x)) for name, x in zip(names, pictures(6, 8), strict=True)]
    path = write_zip(tmp_path / "set.zip", [*members, ("dataset.json", json.dumps(table))])
    options = f"""train digits --data.source auto --data {path} --run.dir {tmp_path / "run"}
        --model.num_channels 3 --model.num_channels_dae 16 --discriminator.ngf 16
        --run.steps 2 --run.sample_every 0 --run.batch_size 4 --device cpu
        --run.tensorboard false"""
    assert main(options.split()) == 0
    assert f"zip {path}: 6 images 8x8x3" in capsys.readouterr().out
