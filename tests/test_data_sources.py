"""Sources: what they hold, the rules for images, and the sentences for what is wrong."""

import hashlib
import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ddgan_fast.config import Config
from ddgan_fast.data import build_dataset
from ddgan_fast.data.images import decode_image
from ddgan_fast.data.sources import Folder, Synthetic, digits, gaussians25, list_images


def photo(height, width, channels=3, seed=0):
    """A smooth picture with some noise, so that a shift by one pixel shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [
        127 + 80 * np.sin(x / (7 + c)) * np.cos(y / (9 - c)) + rng.normal(0, 12, (height, width))
        for c in range(channels)
    ]
    return np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8)


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decode(image, size, channels, kind="PNG", **options):
    return decode_image(encode(image, kind, **options), "x", size, channels)


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
    np.testing.assert_array_equal(np.rint(images[..., 0] / (255 / 16)), raw.images)
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
    ds = Folder(str(folder), 8, 3)
    assert ds.names == ["a/1.JPG", "a/2.png", "b.png"]
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
    ds = Folder(str(folder), 8, 3)
    assert ds.class_names == ["a", "c"] and ds.labels.tolist() == [0, 0, 1]
    assert ds.labels.dtype == np.int64 and "2 classes" in ds.describe()


def test_cached_and_uncached_are_equal(folder):
    kept, lazy = (Folder(str(folder), 8, 1, cache=cache) for cache in ("ram", "none"))
    assert kept.array is not None and lazy.array is None
    np.testing.assert_array_equal(kept.fetch(np.arange(3)), lazy.fetch(np.arange(3)))
    assert kept.digest == lazy.digest


def test_auto_cache_stops_at_its_limit(folder, monkeypatch):
    monkeypatch.setattr("ddgan_fast.data.sources._AUTO_CACHE_BYTES", 3 * 8 * 8 * 3)
    assert Folder(str(folder), 8, 3).array is not None
    assert Folder(str(folder), 9, 3).array is None


def test_many_files_land_in_their_places(tmp_path):
    for i in range(70):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i:03}.png")
    ds = Folder(str(tmp_path), 8, 1, workers=3)
    np.testing.assert_array_equal(ds.array[:, 0, 0, 0], np.arange(70))
    assert len(Folder(str(tmp_path), 8, 1, limit=5)) == 5


def test_digest_sees_names_sizes_and_transform_only(folder, tmp_path_factory):
    digest = Folder(str(folder), 8, 3).digest
    copy = tmp_path_factory.mktemp("copy")
    for name, _ in list_images(folder):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes((folder / name).read_bytes())
    assert Folder(str(copy), 8, 3).digest == digest
    os.utime(copy / "b.png", (0, 0))
    assert Folder(str(copy), 8, 3).digest == digest
    assert Folder(str(copy), 9, 3).digest != digest
    assert Folder(str(copy), 8, 1).digest != digest
    assert Folder(str(copy), 8, 3, limit=2).digest != digest
    with open(copy / "b.png", "ab") as file:
        file.write(b"\0")
    longer = Folder(str(copy), 8, 3).digest
    assert longer != digest
    (copy / "b.png").rename(copy / "c.png")
    assert Folder(str(copy), 8, 3).digest not in (digest, longer)


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
        Folder(str(folder), 8, 3, cache=cache).fetch(np.arange(3))


def test_first_of_several_bad_images_is_named(tmp_path):
    good = encode(Image.new("RGB", (8, 8)))
    for i in range(100):
        (tmp_path / f"{i:03}.png").write_bytes(b"bad" if i in (5, 40, 99) else good)
    for _ in range(3):
        with pytest.raises(ValueError, match=r"005\.png"):
            Folder(str(tmp_path), 8, 3, workers=4)


def test_verify_lists_all_bad_images(folder):
    ds = Folder(str(folder), 8, 3, cache="none")
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


# Image rules


@pytest.mark.parametrize(
    ("width", "height", "size", "new_width", "left"),
    [
        # int(S * long / short), and Python's rounding of halves to even
        (640, 427, 256, 383, 64),  # 383.7 -> 383; 63.5 -> 64
        (639, 427, 256, 383, 64),
        (636, 427, 256, 381, 62),  # 62.5 -> 62
        (500, 375, 64, 85, 10),  # 10.5 -> 10
        (177, 100, 32, 56, 12),
        (33, 32, 32, 33, 0),  # 0.5 -> 0
        (35, 32, 32, 35, 2),  # 1.5 -> 2
        (20, 13, 32, 49, 8),  # enlarging; 8.5 -> 8
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_geometry(width, height, size, new_width, left, turned):
    pixels = photo(height, width)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(
        x, size=(size, new_width), mode="bilinear", antialias=True
    )
    expected = resized[0, :, :, left : left + size].permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    if turned:
        image, expected = image.transpose(Image.Transpose.TRANSPOSE), expected.transpose(1, 0, 2)
    difference = np.abs(decode(image, size, 3).astype(float) - expected)
    assert difference.max() <= 1.5 and difference.mean() < 0.5


def test_right_size_is_untouched():
    pixels = photo(32, 32)
    np.testing.assert_array_equal(decode(Image.fromarray(pixels), 32, 3), pixels)


GREY = 0.299, 0.587, 0.114


def test_colour_rules():
    rgb = photo(16, 16)
    grey = photo(16, 16, 1, seed=5)
    alpha = photo(16, 16, 1, seed=6)
    rgba = np.concatenate([rgb, alpha], axis=2)
    np.testing.assert_array_equal(decode(Image.fromarray(rgba), 16, 3), rgb)
    np.testing.assert_array_equal(decode(Image.fromarray(rgba), 16, 4), rgba)
    opaque = decode(Image.fromarray(rgb), 16, 4)
    np.testing.assert_array_equal(opaque[..., :3], rgb)
    assert (opaque[..., 3] == 255).all()
    luma = decode(Image.fromarray(rgb), 16, 1)[..., 0]
    assert np.abs(luma - rgb @ np.array(GREY)).max() <= 1
    np.testing.assert_array_equal(
        decode(Image.fromarray(grey[..., 0]), 16, 3), grey.repeat(3, axis=2)
    )
    np.testing.assert_array_equal(decode(Image.fromarray(grey[..., 0]), 16, 1), grey)
    la = Image.fromarray(np.concatenate([grey, alpha], axis=2), "LA")
    np.testing.assert_array_equal(decode(la, 16, 1), grey)
    np.testing.assert_array_equal(decode(la, 16, 3), grey.repeat(3, axis=2))
    np.testing.assert_array_equal(decode(la, 16, 4)[..., 3], alpha[..., 0])


def test_black_and_white():
    bits = photo(16, 16, 1)[..., 0] > 127
    expected = np.where(bits, 255, 0)[..., None]
    np.testing.assert_array_equal(decode(Image.fromarray(bits), 16, 1), expected)
    np.testing.assert_array_equal(decode(Image.fromarray(bits), 16, 3), expected.repeat(3, axis=2))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 160, 10))])
def test_palette(transparency):
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (16, 3), dtype=np.uint8)
    numbers = rng.integers(0, 16, (16, 16), dtype=np.uint8)
    image = Image.fromarray(numbers, "P")
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    np.testing.assert_array_equal(decode(image, 16, 3, **options), palette[numbers])
    luma = decode(image, 16, 1, **options)[..., 0]
    assert np.abs(luma - palette[numbers] @ np.array(GREY)).max() <= 1
    alpha = np.full(16, 255)
    if isinstance(transparency, int):
        alpha[transparency] = 0
    elif transparency is not None:
        alpha[:] = list(transparency)
    np.testing.assert_array_equal(decode(image, 16, 4, **options)[..., 3], alpha[numbers])


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B")])
def test_sixteen_bit_grey_keeps_the_upper_byte(kind, mode):
    values = np.random.default_rng(0).integers(0, 65536, (16, 16)).astype(np.uint16)
    order = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, (16, 16), values.astype(order).tobytes())
    upper = (values >> 8).astype(np.uint8)[..., None]
    np.testing.assert_array_equal(decode(image, 16, 1, kind), upper)
    np.testing.assert_array_equal(decode(image, 16, 3, kind), upper.repeat(3, axis=2))


def test_cmyk():
    solid = Image.new("CMYK", (16, 16), (0, 200, 255, 20))
    for kind in ("JPEG", "TIFF"):
        colour = decode(solid, 16, 3, kind).reshape(-1, 3).mean(0)
        expected = [(255 - ink) * (255 - 20) / 255 for ink in (0, 200, 255)]
        np.testing.assert_allclose(colour, expected, atol=4)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    upright = np.zeros((16, 16), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = 255, 170, 85
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind == "JPEG" else {}
    if kind == "WEBP":
        options["lossless"] = True
    image = Image.fromarray(np.ascontiguousarray(stored))
    result = decode(image, 16, 1, kind, exif=exif, **options)[..., 0]
    assert np.abs(result.astype(int) - upright).max() <= 3


def test_damaged_metadata_does_not_matter():
    pixels = photo(16, 16)
    for exif in (b"Exif\0\0MM", b"Exif\0\0garbage" * 3, b"\xff" * 40):
        np.testing.assert_array_equal(decode(Image.fromarray(pixels), 16, 3, exif=exif), pixels)


def refusal(data, size=8, channels=3):
    with pytest.raises(ValueError, match=r"^some\.png cannot be used as an image") as caught:
        decode_image(data, "some.png", size, channels)
    message = str(caught.value)
    assert message.endswith("replace it or take it out of the data.") and "\n" not in message
    return message


def test_unusable_images():
    assert "its 0 bytes are no PNG, JPEG, WEBP, BMP or TIFF image" in refusal(b"")
    assert "its 6 bytes" in refusal(b"<html>")
    good = encode(Image.fromarray(photo(64, 64)))
    for length in (20, 200, len(good) // 2):
        refusal(good[:length])
    refusal(encode(Image.fromarray(photo(64, 64)), "JPEG")[:900])
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 255
    refusal(bytes(flipped))
    assert "no PNG" in refusal(encode(Image.fromarray(photo(8, 8)), "GIF"))


def test_several_frames_are_refused_but_not_the_cameras_preview():
    frames = [Image.fromarray(photo(8, 8, seed=i)) for i in range(2)]
    for kind in ("PNG", "WEBP", "TIFF"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert "several frames or pages" in refusal(data)
    camera = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(decode_image(camera, "x", 8, 3), photo(8, 8), atol=90)


def test_undefined_ranges_are_refused():
    assert "32-bit" in refusal(encode(Image.new("F", (8, 8)), "TIFF"))
    assert "32-bit" in refusal(encode(Image.new("I", (8, 8)), "TIFF"))


def test_decompression_bomb_is_refused():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    good = bytearray(encode(Image.new("RGB", (1, 1))))
    good[16:29] = header
    good[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    assert "more than 178,956,970 pixels" in refusal(bytes(good))


def test_elongated_image_is_refused():
    assert "60000x1, too elongated" in refusal(encode(Image.new("L", (60_000, 1))), size=256)
