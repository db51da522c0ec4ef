"""Encoded sets: files that fit stay as they are, all others keep their pixels."""

import io
import json
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image
from prepare_cases import damaged, flip, make_set, pixels

from ddgan_fast.data.images import decode_image
from ddgan_fast.data.shards import open_shards
from ddgan_fast.data.shards_check import verify


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
    (folder / "c0.png").write_bytes(_png_of_16_bits(pixels(5, (8, 8, 6))))
    return folder


def _png_of_16_bits(samples):
    """An RGB file such as Pillow cannot write; samples are bytes [H, W, 6]."""
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def _orientation(value):
    exif = Image.Exif()
    exif[274] = value
    return exif


def test_encoded(mixed, tmp_path):
    raw, encoded = (
        make_set(mixed, tmp_path / "raw"),
        make_set(mixed, tmp_path / "enc", encoded=True),
    )
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
    raw = make_set(mixed, tmp_path / "raw", channels=channels)
    encoded = make_set(mixed, tmp_path / "enc", channels=channels, encoded=True)
    shards, plain = open_shards(encoded), open_shards(raw)
    assert shards.digest == plain.digest
    everything = np.arange(len(plain))
    np.testing.assert_array_equal(shards.fetch(everything), plain.fetch(everything))
    as_it_is = {1: 6, 4: 7}[channels]  # b2 is grey, b3 has alpha
    assert shards.encoded(as_it_is) == sorted(mixed.iterdir())[as_it_is].read_bytes()


def test_encoded_damage(mixed, tmp_path):
    out = make_set(mixed, tmp_path / "out", encoded=True)
    shards = open_shards(out)
    offset = int(shards.spans[5, 1])
    damaged(out / "train-00001.tar", flip(offset + 60))
    assert verify(out) == [f"{out}/train-00001.tar, image 000000005 is damaged."]
    os.truncate(out / "train-00001.tar", offset + 20)
    with pytest.raises(OSError, match=r"train-00001\.tar, image 000000005: the file ends"):
        shards.fetch(np.array([5]))


def test_stale_index(mixed, tmp_path):
    out = make_set(mixed, tmp_path / "out", encoded=True)
    damaged(out / "index.npy", flip(-9))
    with pytest.raises(
        ValueError, match=r"index\.npy is not the file that manifest.json describes"
    ):
        open_shards(out)
    (out / "index.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.npy is missing"):
        open_shards(out)


def test_encoded_fetch_names_what_cannot_be_decoded(mixed, tmp_path):
    out = make_set(mixed, tmp_path / "out", encoded=True)
    offset = int(open_shards(out).spans[0, 1])
    damaged(out / "train-00000.tar", flip(offset + 70))
    with pytest.raises(ValueError, match=r"train-00000\.tar, image 000000000 cannot be used as an"):
        open_shards(out).fetch(np.array([0]))


def test_a_file_whose_metadata_are_damaged_is_kept_as_pixels(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(pixels(1)).save(folder / "0.jpg", quality=90)
    plain = (folder / "0.jpg").read_bytes()

    def broken(self):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    shards = open_shards(make_set(folder, tmp_path / "out", encoded=True))
    assert shards.read(0).startswith(b"\x89PNG")
    np.testing.assert_array_equal(shards.fetch(np.array([0]))[0], decode_image(plain, "x", 8, 3))


def test_a_manifest_without_its_index(mixed, tmp_path):
    out = make_set(mixed, tmp_path / "out", encoded=True)
    manifest = json.loads((out / "manifest.json").read_bytes())
    del manifest["files"]["index.npy"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json names no index\.npy: copy it again"):
        open_shards(out)
